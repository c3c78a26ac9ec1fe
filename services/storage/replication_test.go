package storage

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

const (
	none   = logv1.Acks_ACKS_NONE
	leader = logv1.Acks_ACKS_LEADER
	all    = logv1.Acks_ACKS_ALL
)

func wantReason(t *testing.T, what string, err error, reasons ...errorsv1.Reason) {
	t.Helper()
	if !slices.Contains(reasons, rpcerr.ReasonOf(err)) {
		t.Errorf("%s: %v, want %v", what, err, reasons)
	}
}

// Records are acknowledged by all that are in sync, each node may lead next, and one
// that comes back catches up and rejoins.
func TestReplicates(t *testing.T) {
	t.Parallel()
	r := startReplicaSet(t)
	var want []string
	produce := func(n int) {
		t.Helper()
		for range n {
			value := fmt.Sprint(len(want))
			if offset := r.produce(value); offset != int64(len(want)) {
				t.Fatalf("%q has offset %d", value, offset)
			}
			want = append(want, value)
		}
	}
	produce(20)
	for range 4 {
		before := int32(r.inSync(3).Leader)
		r.stop(before)
		now := int32(r.inSync(2).Leader)
		if now == before {
			t.Fatalf("node %d leads though it has stopped", before)
		}
		produce(10)
		if got := r.readAt(now); !slices.Equal(got, want) {
			t.Fatalf("node %d leads with %v, want %v", now, got, want)
		}
		r.start(before)
		r.inSync(3)
		produce(5)
	}
	if got := r.read(); !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}

// A partition with one replica gets two more while it is written to: nothing is refused
// meanwhile, though the first of them cannot catch up for long, and both can lead it
// in the end.
func TestReplicasAreAdded(t *testing.T) {
	t.Parallel()
	r := newReplicaSet(t, 1, 2, 3)
	r.controller.setReplica(1)
	r.controller.setMinInsync(1)
	for id := range r.dirs {
		r.start(id)
	}
	r.inSync(1)
	var want []string
	produce := func(n int) {
		t.Helper()
		for range n {
			value := fmt.Sprint(len(want))
			if _, err := r.append(1, all, 10*time.Second, r.batch(-1, 0, value)); err != nil {
				t.Fatalf("%q is refused: %v", value, err)
			}
			want = append(want, value)
		}
	}
	produce(20)
	r.isolate(2, true, false)
	r.controller.grow(t, 2)
	produce(20)
	r.controller.grow(t, 3)
	r.inSync(2)
	produce(20)
	r.isolate(2, false, false)
	r.inSync(3)
	produce(20)
	r.controller.setMinInsync(2)
	produce(1)
	for _, id := range []int32{1, 2} {
		r.stop(id)
		now := r.inSync(3 - int(id)).Leader
		if got := r.readAt(int32(now)); !slices.Equal(got, want) {
			t.Fatalf("node %d leads with %v, want %v", now, got, want)
		}
	}
}

// Who does not lead serves nobody but its leader, and names that.
func TestFollowersRefuse(t *testing.T) {
	t.Parallel()
	r := startReplicaSet(t)
	r.produce("a")
	leads := r.leader()
	for id, node := range r.nodes {
		if id == leads {
			continue
		}
		for _, acks := range []logv1.Acks{leader, all} {
			_, err := r.append(id, acks, time.Second, r.batch(-1, 0, "b"))
			wantReason(t, "append", err, errorsv1.Reason_REASON_NOT_LEADER)
			e, _ := rpcerr.Parse(err)
			if d, ok := e.Detail.(*errorsv1.NotLeader); !ok || d.GetLeaderId() != leads || d.GetLeaderAddress() == "" {
				t.Errorf("the error names %v, node %d leads", e.Detail, leads)
			}
		}
		_, err := r.readFrom(id, &storagev1.PartitionStart{Start: at(0)})
		wantReason(t, "read", err, errorsv1.Reason_REASON_NOT_LEADER)
		_, err = r.latest(id)
		wantReason(t, "latest", err, errorsv1.Reason_REASON_NOT_LEADER)
		deleted, err := node.client.DeleteRecords(t.Context(), &storagev1.DeleteRecordsRequest{Partitions: []*storagev1.PartitionPosition{{Topic: "orders", Position: at(1)}}})
		if err != nil || deleted.GetPartitions()[0].GetFailure().GetReason() != errorsv1.Reason_REASON_NOT_LEADER {
			t.Errorf("delete records: %v, %v", deleted, err)
		}
	}
	if got := r.readAt(leads); !slices.Equal(got, []string{"a"}) {
		t.Errorf("read %v", got)
	}
}

// Below min.insync.replicas acks=all is refused before anything is appended. What was
// appended while the ISR was large enough, and is not acknowledged, has an unknown
// outcome: the same sequence gets its original offset once replicas are back. Until
// then nobody reads any of it, nor what acks=leader and acks=none have appended.
func TestTooFewInSync(t *testing.T) {
	t.Parallel()
	r := startReplicaSet(t)
	r.produce("a")
	leads := r.leader()
	var others []int32
	for id := range r.nodes {
		if id != leads {
			others = append(others, id)
		}
	}
	for _, id := range others {
		r.isolate(id, true, false)
	}
	unknown := make(chan error, 1)
	go func() {
		_, err := r.append(leads, all, 2*time.Second, r.batch(7, 0, "b"))
		unknown <- err
	}()
	// Its successor is refused until it is in the log.
	for deadline := time.Now().Add(10 * time.Second); ; {
		res, err := r.append(leads, leader, 2*time.Second, r.batch(7, 1, "c"))
		if err == nil && res.GetBaseOffset() == 2 {
			break
		}
		if wantReason(t, "before its predecessor", err, errorsv1.Reason_REASON_UNKNOWN_PRODUCER); t.Failed() || time.Now().After(deadline) {
			t.Fatalf("acks=leader: %v, %v", res, err)
		}
	}
	for _, id := range others {
		r.controller.setLive(id, false)
	}
	r.inSync(1)
	wantReason(t, "appended, and then too few were in sync", <-unknown, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND)
	_, err := r.append(leads, all, time.Second, r.batch(8, 0, "refused"))
	wantReason(t, "acks=all with one replica in sync", err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	if _, err := r.append(leads, none, time.Second, r.batch(-1, 0, "d")); err != nil {
		t.Errorf("acks=none: %v", err)
	}
	res, err := r.append(leads, leader, time.Second, r.batch(-1, 0, "e"))
	if err != nil || res.GetBaseOffset() != 4 {
		t.Errorf("acks=leader: %v, %v; want offset 4: nothing refused was appended", res, err)
	}
	if got := r.readAt(leads); !slices.Equal(got, []string{"a"}) {
		t.Errorf("read %v above the high watermark", got)
	}
	if end, err := r.latest(leads); err != nil || end != 1 {
		t.Errorf("latest is %d, %v", end, err)
	}

	for _, id := range others {
		r.isolate(id, false, false)
		r.controller.setLive(id, true)
	}
	r.inSync(3)
	for deadline := time.Now().Add(20 * time.Second); ; {
		// The leader learns of its larger ISR a moment after the controller.
		res, err = r.append(leads, all, 10*time.Second, r.batch(7, 0, "b"))
		if rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS || time.Now().After(deadline) {
			break
		}
	}
	if err != nil || res.GetBaseOffset() != 1 || !res.GetDuplicate() {
		t.Errorf("the same sequence again: %v, %v; want its original offset, 1", res, err)
	}
	if got := r.readAt(leads); !slices.Equal(got, []string{"a", "b", "c", "d", "e"}) {
		t.Errorf("read %v", got)
	}
}

// A leader that does not know that it was superseded acknowledges nothing to
// acks=all, shows nothing that its successor does not have, and gives up what it
// appended when it learns of it. Who has read on from such an offset is told.
func TestSupersededLeader(t *testing.T) {
	t.Parallel()
	r := startReplicaSet(t)
	want := []string{"a", "b"}
	for _, v := range want {
		r.produce(v)
	}
	zombie := int32(r.inSync(3).Leader)
	r.isolate(zombie, true, true)
	for i := range 3 {
		if _, err := r.append(zombie, leader, 5*time.Second, r.batch(-1, 0, fmt.Sprint("lost ", i))); err != nil {
			t.Fatal(err)
		}
	}
	r.controller.setLive(zombie, false)
	next := r.controller.await(t, func(p cluster.Partition) bool { return p.Leader != cluster.NoNode && int32(p.Leader) != zombie })
	for _, v := range []string{"c", "d"} {
		r.produce(v)
		want = append(want, v)
	}
	_, err := r.append(zombie, all, 500*time.Millisecond, r.batch(-1, 0, "lost too"))
	wantReason(t, "acks=all at the superseded leader", err, errorsv1.Reason_REASON_TIMED_OUT)
	if got := r.readAt(zombie); !slices.Equal(got, want[:2]) {
		t.Errorf("the superseded leader shows %v", got)
	}
	if end, err := r.latest(zombie); err != nil || end != 2 {
		t.Errorf("latest at the superseded leader is %d, %v", end, err)
	}
	if got := r.readAt(int32(next.Leader)); !slices.Equal(got, want) {
		t.Errorf("its successor shows %v, want %v", got, want)
	}
	before := int32(next.LeaderEpoch) - 1
	_, err = r.readFrom(int32(next.Leader), &storagev1.PartitionStart{Start: at(4), LastReadEpoch: &before})
	wantReason(t, "reading on behind a record that was lost", err, errorsv1.Reason_REASON_LOG_TRUNCATED)
	if d := truncation(err); d.GetEndOffset() != 2 || d.GetEpoch() != before {
		t.Errorf("the logs part at %v, want offset 2", d)
	}

	r.isolate(zombie, false, true)
	r.controller.setLive(zombie, true)
	r.inSync(3)
	r.produce("e")
	want = append(want, "e")
	// It leads again, and what it had by itself is gone.
	for id := range r.nodes {
		if id != zombie {
			r.controller.setLive(id, false)
		}
	}
	r.controller.await(t, func(p cluster.Partition) bool { return int32(p.Leader) == zombie })
	for id := range r.nodes {
		r.controller.setLive(id, true)
	}
	r.inSync(3)
	if got := r.readAt(zombie); !slices.Equal(got, want) {
		t.Errorf("leading again it shows %v, want %v", got, want)
	}
}

// A consumer that has read records which an unclean election gave up is told, though
// others stand at their offsets by then, and reads those when it decides to.
func TestConsumersAreToldOfLostRecords(t *testing.T) {
	t.Parallel()
	r := startReplicaSet(t)
	client, err := runnel.Config{Bootstrap: []string{publicAddress(1), publicAddress(2)}, Transports: r}.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	consumer, err := client.NewConsumer(runnel.WithReset(runnel.ResetNone))
	if err != nil {
		t.Fatal(err)
	}
	if err := consumer.Assign(t.Context(), runnel.At("orders", 0, runnel.Earliest())); err != nil {
		t.Fatal(err)
	}
	poll := func(want ...string) {
		t.Helper()
		var got []string
		for len(got) < len(want) {
			records, err := consumer.Poll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for record := range records.All() {
				got = append(got, string(record.Value))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("read %v, want %v", got, want)
		}
	}
	r.produce("a")
	r.produce("b")
	poll("a", "b")
	behind := 1 + r.leader()%3
	r.isolate(behind, true, false)
	r.controller.setLive(behind, false)
	r.inSync(2)
	r.produce("c")
	r.produce("d")
	poll("c", "d")

	for id := range r.nodes {
		r.controller.setLive(id, id == behind)
	}
	r.controller.await(t, func(p cluster.Partition) bool { return p.Leader == cluster.NoNode })
	r.isolate(behind, false, false)
	r.controller.electUnclean(t)
	if leads := r.leader(); leads != behind {
		t.Fatalf("node %d leads, want %d", leads, behind)
	}
	for id := range r.nodes {
		r.controller.setLive(id, true)
	}
	r.inSync(3)
	for i, v := range []string{"x", "y", "z"} {
		if offset := r.produce(v); offset != int64(2+i) {
			t.Errorf("%q has offset %d", v, offset)
		}
	}
	_, err = consumer.Poll(t.Context())
	fault, ok := errors.AsType[*runnel.PartitionError](err)
	if !ok || runnel.ReasonOf(err) != errorsv1.Reason_REASON_LOG_TRUNCATED || fault.Offset != 4 || fault.NextOffset != 2 {
		t.Fatalf("the consumer was told %v, want that the log was truncated to offset 2", err)
	}
	if err := consumer.Seek(fault.TopicPartition, runnel.Offset(fault.NextOffset)); err != nil {
		t.Fatal(err)
	}
	poll("x", "y", "z")
	if got := r.read(); !slices.Equal(got, []string{"a", "b", "x", "y", "z"}) {
		t.Errorf("read %v", got)
	}
}

func truncation(err error) *errorsv1.LogTruncated {
	e, _ := rpcerr.Parse(err)
	d, _ := e.Detail.(*errorsv1.LogTruncated)
	return d
}

// A batch that is sent again after its leader has gone gets the offset that it had
// there, and the sequence goes on: the producer state is part of the log.
func TestProducersSurviveTheirLeader(t *testing.T) {
	t.Parallel()
	r := startReplicaSet(t)
	const id = 7
	next := int32(0)
	for range 4 {
		leads := int32(r.inSync(3).Leader)
		for range 3 {
			if res, err := r.append(leads, all, 10*time.Second, r.batch(id, next, fmt.Sprint(next))); err != nil || res.GetBaseOffset() != int64(next) {
				t.Fatalf("sequence %d: %v, %v", next, res, err)
			}
			next++
		}
		r.stop(leads)
		successor := int32(r.inSync(2).Leader)
		for again := next - 3; again < next; again++ {
			res, err := r.append(successor, all, 10*time.Second, r.batch(id, again, fmt.Sprint(again)))
			if err != nil || !res.GetDuplicate() || res.GetBaseOffset() != int64(again) {
				t.Fatalf("sequence %d again: %v, %v", again, res, err)
			}
		}
		_, err := r.append(successor, all, 10*time.Second, r.batch(id, next+1, "too far"))
		wantReason(t, "a sequence with a gap before it", err, errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE)
		r.start(leads)
	}
	r.inSync(3)
	var want []string
	for i := range next {
		want = append(want, fmt.Sprint(i))
	}
	if got := r.read(); !slices.Equal(got, want) {
		t.Errorf("read %v, want each value once", got)
	}
}

// A node whose disk does not answer gives up what others can lead, and comes back
// into the ISR once it does.
func TestStalledLeaderResigns(t *testing.T) {
	t.Parallel()
	r := startReplicaSet(t)
	r.produce("a")
	before := r.inSync(3)
	stalled := r.nodes[int32(before.Leader)].service
	stalled.stalled(true)
	next := r.controller.await(t, func(p cluster.Partition) bool { return p.Leader != cluster.NoNode && p.Leader != before.Leader })
	if next.LeaderEpoch <= before.LeaderEpoch {
		t.Errorf("node %d leads in epoch %d, after %d", next.Leader, next.LeaderEpoch, before.LeaderEpoch)
	}
	r.produce("b")
	stalled.stalled(false)
	r.inSync(3)
	if got, want := r.read(), []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}
