package replica

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

// awake counts the partitions of a topic that have an object.
func (n *node) awake(id cluster.TopicID) (count int, dormant partition.Roles) {
	n.replicas.mu.RLock()
	defer n.replicas.mu.RUnlock()
	t := n.replicas.topics[id]
	for _, p := range t.partitions {
		if p != nil {
			count++
		}
	}
	return count, t.dormant
}

func (n *node) wantAwake(id []byte, count int, dormant partition.Roles) {
	n.t.Helper()
	if gotCount, got := n.awake(cluster.TopicID(id)); gotCount != count || got != dormant {
		n.t.Fatalf("%d partitions are awake, %+v dormant; want %d, %+v", gotCount, got, count, dormant)
	}
}

func TestPartitionsThatNobodyWroteToAreDormant(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir, 0)
	topic := newTopic("a", 1, 1, 1, 2, 2)
	topic.Partitions[4].Replicas = []int32{2, 1}
	n.snapshot.Topics = append(n.snapshot.Topics, topic)
	n.act(1)
	n.wantAwake(topic.TopicId, 0, partition.Roles{Leaders: 3, Followers: 1})
	write(t, n.mustHave("a", 1, rules.Leading))
	if p := n.mustHave("a", 1, rules.Leading); p != n.mustHave("a", 1, rules.Leading) {
		t.Fatal("a partition woke up twice")
	}
	n.wantAwake(topic.TopicId, 1, partition.Roles{Leaders: 2, Followers: 1})

	// A dormant partition that wakes up later knows what was agreed on meanwhile.
	topic.Partitions[0].LeaderEpoch, topic.Partitions[0].PartitionEpoch = 7, 7
	topic.Partitions[2].LeaderId, topic.Partitions[2].PartitionEpoch = 2, 1
	topic.Partitions[2].Replicas = []int32{2, 1}
	n.act(2)
	n.wantAwake(topic.TopicId, 1, partition.Roles{Leaders: 1, Followers: 2})
	if _, epoch := n.mustHave("a", 0, rules.Leading).Role(); epoch != 7 {
		t.Fatalf("leader epoch %d, want 7", epoch)
	}
	n.mustHave("a", 2, rules.Following)
	n.stop()

	// Those that were written to are awake from the start.
	n = startNode(t, dir, 0)
	n.snapshot.Topics = append(n.snapshot.Topics, topic)
	n.act(2)
	n.wantAwake(topic.TopicId, 1, partition.Roles{Leaders: 1, Followers: 2})
	if got, want := len(n.store.Partitions()), 1; got != want {
		t.Fatalf("the store knows %d partitions, want %d", got, want)
	}
}

func TestWakingUpWhileTheClusterChanges(t *testing.T) {
	n := startNode(t, t.TempDir(), 0)
	id := uuid.New()
	topic := newTopic("a", 1, 1, 1, 1, 1, 1, 1, 1)
	topic.TopicId = id[:]
	n.snapshot.Topics = append(n.snapshot.Topics, topic)
	n.act(1)
	const versions = 200
	var callers sync.WaitGroup
	for i := range topic.PartitionCount {
		callers.Go(func() {
			first, err := n.partition("a", i)
			for range versions {
				again, againErr := n.partition("a", i)
				if err != nil || againErr != nil || first != again {
					t.Errorf("partition %d: %p (%v), then %p (%v)", i, first, err, again, againErr)
					return
				}
			}
		})
	}
	for v := int64(2); v <= versions; v++ {
		for _, p := range topic.Partitions {
			p.LeaderEpoch, p.PartitionEpoch = int32(v), int32(v)
		}
		n.act(v)
	}
	callers.Wait()
	n.wantAwake(topic.TopicId, int(topic.PartitionCount), partition.Roles{})
	for i := range topic.PartitionCount {
		if _, epoch := n.mustHave("a", i, rules.Leading).Role(); epoch != versions {
			t.Fatalf("partition %d is in leader epoch %d, want %d", i, epoch, versions)
		}
	}
}

// tapped calls a function for each line that is logged, before whoever logs goes
// on.
type tapped struct {
	slog.Handler
	tap func(slog.Record)
}

func (h tapped) Enabled(context.Context, slog.Level) bool { return true }

func (h tapped) Handle(_ context.Context, r slog.Record) error {
	h.tap(r)
	return nil
}

// A partition that wakes up while its topic is acted on has the assignment
// before, and must neither stay with it nor be replaced.
func TestWakingUpWhileTheTopicIsActedOn(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir, 0)
	topic := newTopic("a", 1, 1)
	topic.Partitions[0].LeaderEpoch = 7
	n.snapshot.Topics = append(n.snapshot.Topics, topic)
	n.act(1)
	write(t, n.mustHave("a", 0, rules.Leading))
	n.stop()

	n = startNode(t, dir, 0)
	n.snapshot.Topics = append(n.snapshot.Topics, topic)
	topic.Partitions[0].LeaderId, topic.Partitions[0].Replicas = 2, []int32{2}
	n.act(2)
	var woken *partition.Partition
	n.replicas.logger = slog.New(tapped{slog.DiscardHandler, func(slog.Record) {
		// This node refuses partition 0 at this moment.
		var err error
		if woken, err = n.partition("a", 1); err != nil {
			t.Error(err)
		}
	}})
	topic.Partitions[0] = &metadatav1.Partition{LeaderId: 1, Replicas: []int32{1}, LeaderEpoch: 3, PartitionEpoch: 8}
	topic.Partitions[1].LeaderEpoch, topic.Partitions[1].PartitionEpoch = 9, 9
	n.act(3)
	if woken == nil {
		t.Fatal("nothing was logged, so that no partition woke up")
	}
	if n.mustHave("a", 1, rules.Leading) != woken {
		t.Fatal("the partition that woke up was replaced")
	}
	if _, epoch := woken.Role(); epoch != 9 {
		t.Fatalf("leader epoch %d, want 9", epoch)
	}
}

// awaitAsleep waits until so many partitions are asleep.
func (n *node) awaitAsleep(want float64) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		families, err := n.metrics.Gather()
		if err != nil {
			n.t.Fatal(err)
		}
		at := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "runnel_storage_partitions_asleep" })
		got := families[at].GetMetric()[0].GetGauge().GetValue()
		if got == want {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.t.Fatalf("%g partitions are asleep, want %g", got, want)
		}
	}
}

// Partitions that were written to fall asleep, and what the cluster agrees on
// meanwhile, and a restart, find in the store what they knew.
func TestWrittenPartitionsFallAsleep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startNode(t, dir, 0)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- n.host.Run(ctx) }()
	topic := newTopic("a", 1, 1, 1)
	topic.Config[rules.RetentionMs] = "-1"
	n.snapshot.Topics = append(n.snapshot.Topics, topic)
	n.act(1)
	for i := range topic.PartitionCount {
		for range i + 1 {
			write(t, n.mustHave("a", i, rules.Leading))
		}
	}
	n.awaitAsleep(3)
	// Only the partition that changes wakes up.
	topic.Partitions[1].LeaderEpoch, topic.Partitions[1].PartitionEpoch = 7, 7
	n.act(2)
	n.awaitAsleep(3)
	for i := range topic.PartitionCount {
		p := n.mustHave("a", i, rules.Leading)
		want := partition.Bounds{HighWatermark: int64(i) + 1}
		if i == 1 {
			want.LeaderEpoch = 7
		}
		if got, err := p.Bounds(rules.NoEpoch); err != nil || got != want {
			t.Errorf("partition %d: %+v, %v; want %+v", i, got, err, want)
		}
		if r := write(t, p); r.Err != nil || r.BaseOffset != int64(i)+1 {
			t.Errorf("partition %d: %+v", i, r)
		}
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	n.stop()
	n = startNode(t, dir, 0)
	n.snapshot.Topics = append(n.snapshot.Topics, topic)
	n.act(2)
	for i := range topic.PartitionCount {
		if end := n.mustHave("a", i, rules.Leading).LogEnd(); end != int64(i)+2 {
			t.Errorf("partition %d ends at %d", i, end)
		}
	}
}
