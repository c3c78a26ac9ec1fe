package contract

import (
	"context"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestTools runs the calls that the README shows, with the programs that it
// names.
func TestTools(t *testing.T) {
	cluster := startUp(t)

	t.Run("grpcurl", func(t *testing.T) {
		grpcurl := program(t, "github.com/fullstorydev/grpcurl/cmd/grpcurl")
		call := func(stdin string, args ...string) result {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			return run(t, ctx, strings.NewReader(stdin), append([]string{grpcurl, "-plaintext"}, args...)...)
		}
		listed := call("", cluster.address, "list").mustSucceed(t)
		for _, service := range []string{"runnel.metadata.v1.TopicService", "runnel.metadata.v1.ClusterService", "runnel.storage.v1.LogService", "grpc.health.v1.Health"} {
			if !strings.Contains(listed.stdout, service) {
				t.Errorf("%s is not listed in:\n%s", service, listed.stdout)
			}
		}
		for _, peer := range []string{"peer.v1"} {
			if strings.Contains(listed.stdout, peer) {
				t.Errorf("peer services are on the public port:\n%s", listed.stdout)
			}
		}
		call("", "-d", `{"name":"grpcurl","partitions":2}`, cluster.address, "runnel.metadata.v1.TopicService/CreateTopic").mustSucceed(t)
		appended := call("", "-d", `{"append":{"topic":"grpcurl","records":[{"key_text":"k","value_text":"hello"},{"value":"d29ybGQ="}]}}`, cluster.address, "runnel.storage.v1.LogService/Append").mustSucceed(t)
		if !strings.Contains(appended.stdout, `"recordCount": 2`) {
			t.Errorf("Append answered:\n%s", appended.stdout)
		}
		produced := call(`{"request_id":1,"topic":"grpcurl","records":[{"value_text":"one"}]} {"request_id":2,"topic":"grpcurl","partition":1,"records":[{"value_text":"two"}]} {"request_id":3,"topic":"grpcurl","partition":7,"records":[{"value_text":"nowhere"}]}`,
			"-d", "@", cluster.address, "runnel.storage.v1.LogService/Produce").mustSucceed(t)
		if n := strings.Count(produced.stdout, `"recordCount": 1`); n != 2 {
			t.Errorf("Produce acknowledged %d of 2 records:\n%s", n, produced.stdout)
		}
		if !strings.Contains(produced.stdout, "REASON_PARTITION_NOT_FOUND") {
			t.Errorf("Produce does not name the partition that is not there:\n%s", produced.stdout)
		}
		read := call("", "-d", `{"partitions":[{"topic":"grpcurl","start":{"earliest":{}}},{"topic":"grpcurl","partition":1,"start":{"earliest":{}}}],"stop_at_end":true,"as_text":true}`,
			cluster.address, "runnel.storage.v1.LogService/Consume").mustSucceed(t)
		for _, value := range []string{"hello", "world", "one", "two"} {
			if !strings.Contains(read.stdout, `"valueText": "`+value+`"`) {
				t.Errorf("Consume does not return %q:\n%s", value, read.stdout)
			}
		}
		refused := call("", "-d", `{"name":"no spaces"}`, cluster.address, "runnel.metadata.v1.TopicService/CreateTopic")
		if refused.code == 0 || !strings.Contains(refused.stderr, "REASON_INVALID_TOPIC_NAME") {
			t.Errorf("a bad name is answered with code %d:\n%s", refused.code, refused.stderr)
		}
		altered := call("", "-d", `{"name":"grpcurl","config":{"retention.ms":"1000"},"unset":["durability"]}`, cluster.address, "runnel.metadata.v1.TopicService/AlterTopic").mustSucceed(t)
		if !strings.Contains(altered.stdout, `"retention.ms": "1000"`) {
			t.Errorf("AlterTopic answered:\n%s", altered.stdout)
		}
		health := call("", cluster.address, "grpc.health.v1.Health/Check").mustSucceed(t)
		if !strings.Contains(health.stdout, "SERVING") {
			t.Errorf("health: %s", health.stdout)
		}
	})

	t.Run("buf curl", func(t *testing.T) {
		buf := program(t, "github.com/bufbuild/buf/cmd/buf")
		call := func(stdin, method, data string) result {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			return run(t, ctx, strings.NewReader(stdin), buf, "curl", "--http2-prior-knowledge", "--protocol", "grpc", "--data", data, "http://"+cluster.address+"/"+method)
		}
		call("", "runnel.metadata.v1.TopicService/CreateTopic", `{"name":"buf"}`).mustSucceed(t)
		call("", "runnel.storage.v1.LogService/Append", `{"append":{"topic":"buf","records":[{"value_text":"by buf"}]}}`).mustSucceed(t)
		call(`{"topic":"buf","records":[{"value_text":"by stream"}]}`, "runnel.storage.v1.LogService/Produce", "@-").mustSucceed(t)
		read := call("", "runnel.storage.v1.LogService/Consume", `{"partitions":[{"topic":"buf","start":{"earliest":{}}}],"stop_at_end":true,"as_text":true}`).mustSucceed(t)
		for _, value := range []string{"by buf", "by stream"} {
			if !strings.Contains(read.stdout, value) {
				t.Errorf("Consume does not return %q:\n%s", value, read.stdout)
			}
		}
	})

	t.Run("curl", func(t *testing.T) {
		curl, err := exec.LookPath("curl")
		if err != nil {
			t.Skip("curl is not installed")
		}
		call := func(method, data string) string {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			return run(t, ctx, nil, curl, "-sS", "-H", "Content-Type: application/json", "-d", data, "http://"+cluster.address+"/"+method).mustSucceed(t).stdout
		}
		call("runnel.metadata.v1.TopicService/CreateTopic", `{"name":"curl"}`)
		answer := call("runnel.storage.v1.LogService/Append", `{"append":{"topic":"curl","records":[{"valueText":"by curl"}]}}`)
		var appended struct {
			Result struct {
				RecordCount int
			}
		}
		if err := json.Unmarshal([]byte(answer), &appended); err != nil || appended.Result.RecordCount != 1 {
			t.Errorf("Append answered %s (%v)", answer, err)
		}
		// A server stream is a sequence of messages behind a prefix of 5 bytes each:
		// the README shows the same line.
		request := `{"partitions":[{"topic":"curl","start":{"earliest":{}}}],"stopAtEnd":true,"asText":true}`
		envelope := string([]byte{0, 0, 0, byte(len(request) >> 8), byte(len(request))}) + request
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		read := run(t, ctx, strings.NewReader(envelope), curl, "-sS", "-H", "Content-Type: application/connect+json", "--data-binary", "@-", "http://"+cluster.address+"/runnel.storage.v1.LogService/Consume").mustSucceed(t)
		if !strings.Contains(read.stdout, "by curl") {
			t.Errorf("Consume answered %q", read.stdout)
		}
		refused := call("runnel.metadata.v1.TopicService/CreateTopic", `{"name":"curl"}`)
		if !strings.Contains(refused, "already_exists") {
			t.Errorf("a second creation is answered with %s", refused)
		}
	})
}
