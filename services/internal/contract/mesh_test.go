package contract

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// mesh is a cluster of one process per service beside a real etcd.
type mesh struct {
	etcd, metadata, storage *process
	// bootstrap is the public address of the metadata process, log that of the
	// storage process.
	bootstrap, log string
}

func startMesh(t *testing.T) *mesh {
	t.Helper()
	runnel := runnelProgram(t)
	etcd := program(t, "go.etcd.io/etcd/server/v3")
	client, peer := freeAddress(t), freeAddress(t)
	m := &mesh{bootstrap: freeAddress(t), log: freeAddress(t)}
	m.etcd = start(t, etcd, "--data-dir", t.TempDir(), "--log-level", "error",
		"--listen-client-urls", "http://"+client, "--advertise-client-urls", "http://"+client,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster", "default=http://"+peer)
	awaitHTTP(t, "http://"+client+"/health")
	metadataPeer := freeAddress(t)
	m.metadata = start(t, runnel, "metadata", "--etcd-endpoints", client, "--data-dir", t.TempDir(), "--listen", m.bootstrap, "--peer-listen", metadataPeer)
	if err := m.metadata.awaitReady(t.Context(), m.bootstrap); err != nil {
		t.Fatal(err)
	}
	m.storage = start(t, runnel, "storage", "--metadata", metadataPeer, "--data-dir", t.TempDir(), "--listen", m.log, "--peer-listen", freeAddress(t))
	if err := m.storage.awaitReady(t.Context(), m.log); err != nil {
		t.Fatal(err)
	}
	return m
}

func awaitHTTP(t *testing.T, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for tick := time.Tick(50 * time.Millisecond); ; {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick:
		case <-ctx.Done():
			t.Fatalf("%s does not answer", url)
		}
	}
}

// TestContract holds every shape of a cluster to the same contract, through the
// command line.
func TestContract(t *testing.T) {
	t.Run("one process", func(t *testing.T) {
		cluster := startUp(t)
		contract(t, []string{cluster.address})
	})
	t.Run("one process per service", func(t *testing.T) {
		m := startMesh(t)
		// Any address of any role is a bootstrap address.
		contract(t, []string{m.bootstrap, m.log})
	})
}

func contract(t *testing.T, bootstraps []string) {
	for i, bootstrap := range bootstraps {
		topic := fmt.Sprintf("orders-%d", i)
		runnel(t, bootstrap, nil, "topics", "create", topic, "--partitions", "3", "--config", "retention.ms=3600000").mustSucceed(t)
		if list := runnel(t, bootstrap, nil, "topics", "list").mustSucceed(t); !strings.Contains(list.stdout, topic) {
			t.Errorf("%s is not in the list:\n%s", topic, list.stdout)
		}
		input := "a:1\nb:2\nno key\na:3\n:empty key\nlast without line feed:\r"
		produced := runnel(t, bootstrap, strings.NewReader(input), "produce", topic, "--key-separator", ":").mustSucceed(t)
		if !strings.Contains(produced.stderr, "6") {
			t.Errorf("the summary does not count 6 records: %s", produced.stderr)
		}
		read := runnel(t, bootstrap, nil, "consume", topic, "--from-beginning", "--exit-at-end", "-o", "json").mustSucceed(t)
		compareByKeyOf(t, topic, read.stdout, map[string][]string{"a": {"1", "3"}, "b": {"2"}, "": {"empty key", "no key"}, "last without line feed": {"\r"}})

		described := runnel(t, bootstrap, nil, "topics", "describe", topic, "-o", "json").mustSucceed(t)
		if !json.Valid([]byte(described.stdout)) || !strings.Contains(described.stdout, "3600000") {
			t.Errorf("describe answers %s", described.stdout)
		}
		nodes := runnel(t, bootstrap, nil, "cluster", "describe").mustSucceed(t)
		for _, word := range []string{"metadata", "storage", "live"} {
			if !strings.Contains(nodes.stdout, word) {
				t.Errorf("cluster describe does not say %q:\n%s", word, nodes.stdout)
			}
		}
		runnel(t, bootstrap, nil, "topics", "alter", topic, "--config", "retention.bytes=1000000000", "--unset", "retention.ms").mustSucceed(t)
		altered := runnel(t, bootstrap, nil, "topics", "describe", topic, "-o", "json").mustSucceed(t)
		if strings.Contains(altered.stdout, "3600000") || !strings.Contains(altered.stdout, "1000000000") {
			t.Errorf("altered, describe answers %s", altered.stdout)
		}
		runnel(t, bootstrap, nil, "topics", "delete-records", topic, "--before", "0:end", "--before", "1:end", "--before", "2:end").mustSucceed(t)
		if rest := runnel(t, bootstrap, nil, "consume", topic, "--from-beginning", "--exit-at-end").mustSucceed(t); rest.stdout != "" {
			t.Errorf("after all records were deleted the topic holds %q", rest.stdout)
		}
		measured(t, bootstrap)
		runnel(t, bootstrap, nil, "topics", "delete", topic).mustSucceed(t)
		gone := runnel(t, bootstrap, nil, "consume", topic, "--from-beginning", "--exit-at-end")
		if gone.code != 1 || !strings.Contains(gone.stderr, topic) {
			t.Errorf("reading a deleted topic ends with code %d: %s", gone.code, gone.stderr)
		}
	}
}

// measured: every process shows what it measures, at the address of its clients.
func measured(t *testing.T, address string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s/metrics: status %d, %v", address, response.StatusCode, err)
	}
	if !strings.Contains(string(body), "# HELP runnel_storage_commit_seconds ") && !strings.Contains(string(body), "# HELP runnel_metadata_controller_active ") {
		t.Errorf("%s/metrics shows neither storage nor metadata:\n%s", address, tail(string(body), 2000))
	}
}

func compareByKeyOf(t *testing.T, topic, output string, want map[string][]string) {
	t.Helper()
	got := make(map[string][]string)
	decoder := json.NewDecoder(strings.NewReader(output))
	for decoder.More() {
		var c consumed
		if err := decoder.Decode(&c); err != nil {
			t.Fatalf("%s: reading the output: %v", topic, err)
		}
		key := text(t, c.Key, c.KeyEncoding)
		got[key] = append(got[key], text(t, c.Value, c.ValueEncoding))
	}
	for key, values := range want {
		if key == "" {
			continue
		}
		if fmt.Sprint(got[key]) != fmt.Sprint(values) {
			t.Errorf("%s: key %q has %q, want %q", topic, key, got[key], values)
		}
	}
	if len(got[""]) != len(want[""]) {
		t.Errorf("%s: %d records with an empty key or none, want %d", topic, len(got[""]), len(want[""]))
	}
}
