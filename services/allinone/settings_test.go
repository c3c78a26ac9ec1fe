package allinone

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
)

// TestSettingsChangeWhileInUse: a topic whose records have to lie elsewhere from
// now on is one log all the same, also for a process after kill -9.
func TestSettingsChangeWhileInUse(t *testing.T) {
	dir := t.TempDir()
	address, kill := startChild(t, dir)
	client := connectTo(t, address)
	client.createTopic(t, "t")
	var want []string
	add := func() {
		t.Helper()
		value := fmt.Sprint("v", len(want))
		response, err := client.log.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{
			Topic: "t", Acks: logv1.Acks_ACKS_ALL, Records: []*logv1.Record{{Key: []byte(value), Value: []byte(value)}},
		}})
		if err != nil || response.GetResult().GetBaseOffset() != int64(len(want)) {
			t.Fatalf("record %d: %v, %v", len(want), response, err)
		}
		want = append(want, value)
	}
	for i, step := range []struct {
		set    string
		change *metadatav1.AlterTopicRequest
	}{
		{"synced", &metadatav1.AlterTopicRequest{Config: map[string]string{"retention.ms": "-1"}}},
		{"replicated", &metadatav1.AlterTopicRequest{Config: map[string]string{"durability": "replicated"}}},
		{"replicated-compacted", &metadatav1.AlterTopicRequest{Config: map[string]string{"cleanup.policy": "compact"}}},
		{"synced-compacted", &metadatav1.AlterTopicRequest{Unset: []string{"durability"}}},
		{"synced", &metadatav1.AlterTopicRequest{Config: map[string]string{"cleanup.policy": "delete"}}},
		{"replicated", &metadatav1.AlterTopicRequest{Config: map[string]string{"durability": "replicated"}}},
	} {
		step.change.Name = "t"
		if _, err := client.topics.AlterTopic(t.Context(), step.change); err != nil {
			t.Fatal(err)
		}
		// The storage service hears of it a moment later; from then on its commits are
		// those of the other set.
		before, deadline := commits(t, address, step.set), time.Now().Add(20*time.Second)
		for add(); commits(t, address, step.set) == before; add() {
			if time.Now().After(deadline) {
				t.Fatalf("step %d: nothing is written to the set %s", i, step.set)
			}
		}
		if i%2 == 1 {
			kill()
			address, kill = startChild(t, dir)
			client = connectTo(t, address)
		}
		if got := client.values(t, "t"); !slices.Equal(got, want) {
			t.Fatalf("step %d: read %q, want %q", i, got, want)
		}
	}
}

// commits returns how many commits a set has had in this process.
func commits(t *testing.T, address, set string) int {
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
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^runnel_storage_commit_seconds_count\{set="` + set + `"\} (\d+)$`).FindSubmatch(body)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRetentionIsShortenedWhileInUse: records that were to be kept for ever go
// when the topic's settings say so, those that come later first of all do not.
func TestRetentionIsShortenedWhileInUse(t *testing.T) {
	config := testConfig(t)
	config.Storage.RetentionEvery = 20 * time.Millisecond
	c, _ := startCluster(t, config)
	client := connectTo(t, c.Address())
	if _, err := client.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "t", Partitions: 1, Config: map[string]string{"retention.ms": "-1"}}); err != nil {
		t.Fatal(err)
	}
	earliest := func() int64 {
		t.Helper()
		response, err := client.log.ListOffsets(t.Context(), &storagev1.ListOffsetsRequest{Partitions: []*storagev1.PartitionPosition{
			{Topic: "t", Position: &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}},
		}})
		if err != nil || response.GetPartitions()[0].GetFailure() != nil {
			t.Fatal(response, err)
		}
		return response.GetPartitions()[0].GetOffset()
	}
	value := strings.Repeat("x", 32<<10)
	var last int64
	add := func() {
		t.Helper()
		var err error
		if last, err = client.append(t.Context(), "t", value); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		add()
	}
	if start := earliest(); start != 0 {
		t.Fatalf("records that are kept for ever begin at %d", start)
	}
	if _, err := client.topics.AlterTopic(t.Context(), &metadatav1.AlterTopicRequest{Name: "t", Config: map[string]string{"retention.bytes": "100000"}}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); earliest() < 10; add() {
		if time.Now().After(deadline) {
			t.Fatalf("after %d records the log still begins at %d", last+1, earliest())
		}
	}
	// What stays is at least what was asked for, and soon not much more.
	kept := func() int64 { return (last + 1 - earliest()) * int64(len(value)) }
	for deadline := time.Now().Add(20 * time.Second); kept() > 3*100_000; {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are kept", kept())
		}
	}
	if got := kept(); got < 100_000 {
		t.Errorf("only %d bytes are kept", got)
	}
}
