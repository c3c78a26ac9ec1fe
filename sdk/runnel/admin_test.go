package runnel

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func TestTopicsComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		client := c.client(t)
		admin := client.Admin()
		for i := range 3 {
			name := fmt.Sprint("t", i)
			topic, err := admin.CreateTopic(t.Context(), TopicSpec{Name: name, Partitions: int32(i + 1), Config: map[string]string{"k": "v"}})
			if err != nil || topic.Name != name || topic.Partitions != i+1 || topic.ID == "" {
				t.Errorf("topic = %+v, %v", topic, err)
			}
			// This client knows it at once.
			if _, ok := client.view.image().Topic(name); !ok {
				t.Errorf("%s is not known", name)
			}
		}
		if _, err := admin.CreateTopic(t.Context(), TopicSpec{Name: "t0"}); ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_EXISTS {
			t.Errorf("creating t0 again: %v", err)
		}
		topics, err := admin.ListTopics(t.Context())
		if err != nil || len(topics) != 3 || topics[1].Name != "t1" || topics[1].Partitions != 2 || topics[1].Config["k"] != "v" {
			t.Errorf("topics = %+v, %v", topics, err)
		}
		change := TopicChange{Name: "t1", Config: map[string]string{"a": "b"}, Unset: []string{"k"}, ValidateOnly: true}
		for range 2 {
			if altered, err := admin.AlterTopic(t.Context(), change); err != nil || fmt.Sprint(altered.Config) != "map[a:b]" || altered.ID != topics[1].ID || altered.Partitions != 2 {
				t.Errorf("altered = %+v, %v", altered, err)
			}
			if d, err := admin.DescribeTopic(t.Context(), "t1"); err != nil || (d.Config["a"] == "b") == change.ValidateOnly {
				t.Errorf("with ValidateOnly %t: %+v, %v", change.ValidateOnly, d.Config, err)
			}
			change.ValidateOnly = false
		}
		if _, err := admin.AlterTopic(t.Context(), TopicChange{Name: "t9"}); ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Errorf("altering t9: %v", err)
		}
		if err := admin.DeleteTopic(t.Context(), "t1"); err != nil {
			t.Error(err)
		}
		start := time.Now()
		if err := admin.DeleteTopic(t.Context(), "t1"); ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND || time.Since(start) > 0 {
			t.Errorf("deleting t1 again: %v after %v", err, time.Since(start))
		}
		if topics, err := admin.ListTopics(t.Context()); err != nil || len(topics) != 2 {
			t.Errorf("topics = %+v, %v", topics, err)
		}
	})
}

func TestDescribeTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		topic := c.createTopic("t", 3)
		c.fill(t, "t", 1, recordbatch.None, "a", "b")
		c.fill(t, "t", 1, recordbatch.None, "c")
		topic.partitions[1].deleteBefore(2)
		c.moveLeader("t", 2, -1, true)
		d, err := c.client(t).Admin().DescribeTopic(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		if d.Name != "t" || len(d.Replicas) != 3 || len(d.Settings) != 1 || !d.Settings[0].Default {
			t.Fatalf("description = %+v", d)
		}
		p := d.Replicas[1]
		if p.Partition != 1 || p.Leader != 3 || p.Earliest != 2 || p.Latest != 3 || p.Err != nil || !slices.Equal(p.InSync, []int32{2}) {
			t.Errorf("partition 1 = %+v", p)
		}
		p = d.Replicas[2]
		if p.Leader != -1 || p.Earliest != -1 || p.Latest != -1 || ReasonOf(p.Err) != errorsv1.Reason_REASON_NO_LEADER {
			t.Errorf("partition 2 = %+v", p)
		}

		placement, err := c.client(t).Admin().DescribeTopicPlacement(t.Context(), "t")
		if err != nil || len(placement.Replicas) != 3 || len(placement.Settings) != 1 {
			t.Fatalf("placement = %+v, %v", placement, err)
		}
		for i, p := range placement.Replicas {
			if p.Leader != d.Replicas[i].Leader || p.Earliest != -1 || p.Latest != -1 || p.Bytes != -1 || p.Err != nil {
				t.Errorf("placement of partition %d = %+v: only the metadata service was to be asked", i, p)
			}
		}
	})
}

func TestElectLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		c.createTopic("t", 3)
		c.createTopic("a", 1)
		c.moveLeader("t", 2, -1, true)
		admin := c.client(t).Admin()
		elect := func(spec ElectionSpec) []LeaderElection {
			t.Helper()
			spec.Topics = map[string][]int32{"t": {2, 1}, "a": {0}}
			got, err := admin.ElectLeaders(t.Context(), spec)
			if err != nil || len(got) != 3 || got[0].Topic != "a" || got[1].Partition != 2 || got[2].Partition != 1 {
				t.Fatalf("elected %+v, %v", got, err)
			}
			return got
		}
		if e := elect(ElectionSpec{})[1]; e.Leader != -1 || e.PreviousLeader != -1 || ReasonOf(e.Err) != errorsv1.Reason_REASON_PREFERRED_LEADER_NOT_AVAILABLE || !IsRetriable(e.Err) {
			t.Errorf("preferred: %+v", e)
		}
		if e := elect(ElectionSpec{Unclean: true, ValidateOnly: true})[1]; e.Leader != 2 || e.PreviousLeader != -1 || !e.Unclean || e.Err != nil {
			t.Errorf("checked: %+v", e)
		}
		if e := elect(ElectionSpec{Unclean: true})[1]; e.Leader != 2 || e.PreviousLeader != -1 {
			t.Errorf("unclean: %+v", e)
		}
		if e := elect(ElectionSpec{})[1]; e.Leader != 2 || e.PreviousLeader != 2 || e.Unclean {
			t.Errorf("again: %+v", e)
		}
		if _, err := admin.ElectLeaders(t.Context(), ElectionSpec{Topics: map[string][]int32{"b": nil}}); ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Errorf("unknown topic: %v", err)
		}
	})
}

func TestDescribeCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(2)
		d, err := c.client(t).Admin().DescribeCluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d.Controller != 1 || len(d.Nodes) != 3 || d.Nodes[0].Role != "metadata" || d.Nodes[2].Role != "storage" || d.Nodes[2].Address != "store-3:1" ||
			d.ID != "01000000-0000-0000-0000-000000000000" {
			t.Errorf("cluster = %+v", d)
		}
	})
}

func TestOffsetsAreAskedOfLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(3)
		c.createTopic("t", 3)
		for partition := range 3 {
			c.fill(t, "t", partition, recordbatch.None, numbers(0, partition+1)...)
		}
		admin := c.client(t).Admin()
		ask := func() {
			t.Helper()
			offsets, err := admin.ListOffsets(t.Context(), At("t", 2, Latest()), At("t", 0, Earliest()), At("t", 7, Latest()), At("t", 1, Latest()))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range offsets {
				got = append(got, fmt.Sprintf("%s=%d", o.TopicPartition, o.Offset))
			}
			want(t, got, "t-2=3", "t-0=0", "t-7=-1", "t-1=2")
			if ReasonOf(offsets[2].Err) != errorsv1.Reason_REASON_PARTITION_NOT_FOUND || offsets[0].Err != nil {
				t.Errorf("errors: %v, %v", offsets[2].Err, offsets[0].Err)
			}
		}
		ask()
		// What is known of leaders may be out of date.
		c.moveLeader("t", 2, 2, false)
		ask()
		if _, err := admin.ListOffsets(t.Context(), At("nobody", 0, Latest())); ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Errorf("unknown topic: %v", err)
		}
		deleted, err := admin.DeleteRecords(t.Context(), At("t", 2, Offset(1)))
		if err != nil || deleted[0].Err != nil || deleted[0].Offset != 1 {
			t.Errorf("deleted = %+v, %v", deleted, err)
		}
		if offsets, err := admin.ListOffsets(t.Context(), At("t", 2, Earliest())); err != nil || offsets[0].Offset != 1 {
			t.Errorf("earliest = %+v, %v", offsets, err)
		}
	})
}

func TestAdminWaitsForAMetadataNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		client, err := Config{Bootstrap: []string{"store-2:1"}, Transports: c}.NewClient()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c.node(1).setDown(true)
		start := time.Now()
		_, err = client.Admin().ListTopics(t.Context())
		if waited := time.Since(start); !IsRetriable(err) || waited < callTimeout || waited > 2*callTimeout {
			t.Errorf("ListTopics = %v after %v", err, waited)
		}
		go func() {
			time.Sleep(time.Second)
			c.node(1).setDown(false)
		}()
		if _, err := client.Admin().CreateTopic(t.Context(), TopicSpec{Name: "t"}); err != nil {
			t.Error(err)
		}
		if e, ok := errors.AsType[*Error](err); ok && e.OutcomeUnknown() {
			t.Errorf("a call that never left has an unknown outcome: %v", err)
		}
	})
}
