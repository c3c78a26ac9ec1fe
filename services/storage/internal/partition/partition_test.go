package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memoryLog is a log of the store whose commits the test releases one by one.
type memoryLog struct {
	mu       sync.Mutex
	state    store.State
	restored []store.Producer
	fault    error
	failed   error
	full     error
	held     []func(error)
	hold     bool
	appends  []store.Append
	batches  []store.Batch
	reads    int

	// dirt is added to 100 bytes a record from compactedTo on.
	dirt        store.Dirt
	compactedTo int64
	compact     func(store.CompactOptions) (store.Compacted, error)
}

func (l *memoryLog) Err() error { return l.fault }

func (l *memoryLog) Failed() error { return l.failed }

func (l *memoryLog) Compact(_ context.Context, o store.CompactOptions) (store.Compacted, error) {
	l.mu.Lock()
	run := l.compact
	l.mu.Unlock()
	return run(o)
}

func (l *memoryLog) Dirt(below int64, _ time.Time, _ time.Duration) store.Dirt {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.dirt
	d.Bytes += 100 * max(below-l.compactedTo, 0)
	d.Dirty += 100 * max(below-l.compactedTo, 0)
	return d
}

func (l *memoryLog) Admit(int) error { return l.full }

func (l *memoryLog) Loaded() (store.State, store.PackedProducers) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, store.PackProducers(l.restored)
}

func (l *memoryLog) Append(a store.Append, done func(error)) {
	l.mu.Lock()
	l.appends = append(l.appends, a)
	l.state = a.State
	l.batches = append(l.batches, a.Batches...)
	l.held = append(l.held, done)
	hold := l.hold
	l.mu.Unlock()
	if !hold {
		l.commit(1, nil)
	}
}

// commit releases the oldest n appends.
func (l *memoryLog) commit(n int, err error) {
	for range n {
		l.mu.Lock()
		done := l.held[0]
		l.held = l.held[1:]
		l.mu.Unlock()
		done(err)
	}
}

func (l *memoryLog) last() store.Append {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.appends[len(l.appends)-1]
}

func (l *memoryLog) Read(_ context.Context, offset, endOffset int64, maxBytes int) ([]store.Batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	var out []store.Batch
	size := 0
	for _, b := range l.batches {
		if b.LastOffset < offset || b.BaseOffset >= endOffset || (len(out) > 0 && size+len(b.Bytes) > maxBytes) {
			continue
		}
		out = append(out, b)
		size += len(b.Bytes)
	}
	return out, nil
}

func (l *memoryLog) OffsetForTime(_ context.Context, timestamp, endOffset int64) (*store.Batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.batches {
		if b.MaxTimestamp >= timestamp && b.BaseOffset < endOffset {
			return &b, nil
		}
	}
	return nil, nil
}

func (l *memoryLog) Spans(list []store.Span) []store.Span {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.batches {
		list = append(list, store.Span{FirstOffset: b.BaseOffset, EndOffset: b.LastOffset + 1, Bytes: int64(len(b.Bytes)), MaxTimestamp: b.MaxTimestamp})
	}
	return list
}

func (l *memoryLog) Truncate(_ context.Context, offset int64, state store.State) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := offset
	for _, b := range l.batches {
		if b.LastOffset >= offset {
			end = min(end, b.BaseOffset)
		}
	}
	l.batches = slices.DeleteFunc(l.batches, func(b store.Batch) bool { return b.LastOffset >= offset })
	return max(end, state.LogStart), nil
}

func (l *memoryLog) Restart(context.Context, store.Set, store.State) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batches = nil
	return nil
}

// cut has a follower truncate its log at an offset, as its leader says, and returns
// where the log ends then.
func cut(t testing.TB, p *Partition, offset int64) int64 {
	t.Helper()
	_, epoch := p.Role()
	in := rules.Replicated{LeaderEpoch: epoch, Follows: p.replica.Next(), Diverges: true, Epoch: rules.NoEpoch, End: offset}
	told := 0
	r, err := p.Receive(t.Context(), in, nil, func(err error) {
		if told++; err != nil {
			t.Error(err)
		}
	})
	if err != nil || r.Outcome != rules.ReceiveTruncates || !r.Writes || told != 1 {
		t.Fatalf("received %+v, %v, told %d times", r, err, told)
	}
	return p.replica.LogEnd()
}

const self cluster.NodeID = 1

// led is what the cluster says of a partition that this node leads alone.
func led(epoch cluster.LeaderEpoch) cluster.Partition {
	return cluster.Partition{
		Leader: self, LeaderEpoch: epoch, PartitionEpoch: cluster.PartitionEpoch(epoch),
		Replicas: []cluster.NodeID{self}, ISR: []cluster.NodeID{self}, LastLeader: cluster.NoNode,
	}
}

func parseConfig(t testing.TB, settings ...string) rules.TopicConfig {
	t.Helper()
	set := map[string]string{}
	for i := 0; i < len(settings); i += 2 {
		set[settings[i]] = settings[i+1]
	}
	config, err := rules.ParseTopicConfig(set)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// open returns a partition that leads in epoch 0, unless the test opens it
// otherwise.
func open(t testing.TB, log *memoryLog, settings ...string) (*Host, *Partition) {
	t.Helper()
	host := NewHost(DefaultConfig(), func(id cluster.NodeID) string { return fmt.Sprintf("node-%d:7070", id) }, nil)
	host.SetSelf(self)
	p := New(host, NewTopic(cluster.TopicID{1}, "orders", parseConfig(t, settings...)), 3, log)
	apply(t, p, led(0))
	return host, p
}

func apply(t testing.TB, p *Partition, a cluster.Partition) {
	t.Helper()
	if err := p.Apply(a); err != nil {
		t.Fatal(err)
	}
}

// batchOf builds a batch with a record per value; the key is the value.
func batchOf(t testing.TB, o recordbatch.Options, values ...string) []byte {
	t.Helper()
	var b recordbatch.Builder
	for i, v := range values {
		if err := b.Append([]byte(v), []byte(v), nil, int64(1000+i)); err != nil {
			t.Fatal(err)
		}
	}
	batch, err := b.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

func plain(t testing.TB, values ...string) []byte {
	t.Helper()
	return batchOf(t, recordbatch.WithoutProducer(recordbatch.None), values...)
}

func idempotent(t testing.TB, id int64, epoch int16, sequence int32, values ...string) []byte {
	t.Helper()
	return batchOf(t, recordbatch.Options{ProducerID: id, ProducerEpoch: epoch, BaseSequence: sequence}, values...)
}

// outcome is a Completion that a test can look at.
type outcome struct{ results chan Result }

func newOutcome() *outcome { return &outcome{results: make(chan Result, 10)} }

func (o *outcome) Complete(r Result) { o.results <- r }

func (o *outcome) done() bool { return len(o.results) > 0 }

func (o *outcome) result(t testing.TB) Result {
	t.Helper()
	if !o.done() {
		t.Fatal("not acknowledged")
	}
	return <-o.results
}

func request(batch []byte, acks logv1.Acks) Append {
	return Append{Batch: batch, Acks: acks, Deadline: time.Now().Add(time.Minute), LeaderEpoch: rules.NoEpoch}
}

// add appends and returns the outcome to come.
func add(t testing.TB, p *Partition, batch []byte, acks logv1.Acks) *outcome {
	t.Helper()
	o := newOutcome()
	if err := p.Append(request(batch, acks), o); err != nil {
		t.Fatal(err)
	}
	return o
}

func wantReason(t testing.TB, err error, reason errorsv1.Reason) *rpcerr.Error {
	t.Helper()
	var e *rpcerr.Error
	if !errors.As(err, &e) || e.Reason != reason {
		t.Fatalf("got %v, want %s", err, reason)
	}
	return e
}

const (
	none   = logv1.Acks_ACKS_NONE
	leader = logv1.Acks_ACKS_LEADER
	all    = logv1.Acks_ACKS_ALL
)

func TestAppendTakesPlacesInOrder(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	apply(t, p, led(7))
	for i, want := range []int64{0, 2, 4} {
		r := add(t, p, plain(t, "a", "b"), all).result(t)
		if r.BaseOffset != want || r.Records != 2 || r.AppendTime != -1 || r.LeaderEpoch != 7 || r.Duplicate {
			t.Errorf("append %d: %+v, want base offset %d", i, r, want)
		}
	}
	header, err := recordbatch.Verify(log.batches[2].Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if header.BaseOffset != 4 || header.LeaderEpoch != 7 {
		t.Errorf("stored header has base offset %d and leader epoch %d, want 4 and 7", header.BaseOffset, header.LeaderEpoch)
	}
	state := log.last().State
	if state.LogEnd != 6 || state.HighWatermark != 4 || !slices.Equal(state.Epochs, []store.EpochStart{{Epoch: 7, StartOffset: 0}}) {
		t.Errorf("state after the last append: %+v", state)
	}
}

func TestAcks(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	_, p := open(t, log)
	// The ISR has a member that never fetches: acks=leader does not wait for it.
	two := led(1)
	two.Replicas = []cluster.NodeID{self, 2}
	two.ISR = two.Replicas
	apply(t, p, two)

	onNone, onLeader, onAll := add(t, p, plain(t, "a"), none), add(t, p, plain(t, "b"), leader), add(t, p, plain(t, "c"), all)
	if r := onNone.result(t); r.BaseOffset != 0 || r.Err != nil {
		t.Errorf("acks=none: %+v", r)
	}
	log.commit(1, nil)
	if onLeader.done() {
		t.Error("acks=leader before its own commit")
	}
	log.commit(2, nil)
	if r := onLeader.result(t); r.BaseOffset != 1 {
		t.Errorf("acks=leader: %+v", r)
	}
	if onAll.done() {
		t.Fatal("acks=all although a member of the ISR has nothing")
	}
	if _, err := p.Bounds(rules.NoEpoch); err != nil {
		t.Errorf("bounds: %v", err)
	}
	// The ISR shrinks to the leader: all of it has the record.
	two.ISR = []cluster.NodeID{self}
	two.PartitionEpoch++
	p.topic.SetConfig(parseConfig(t, rules.MinInsyncReplicas, "1"))
	apply(t, p, two)
	if r := onAll.result(t); r.BaseOffset != 2 || r.Err != nil {
		t.Errorf("acks=all: %+v", r)
	}
}

func TestMinInsyncReplicas(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log, rules.MinInsyncReplicas, "2")
	add(t, p, plain(t, "a"), all).result(t) // At most the replication factor, which is 1.

	shrunk := led(1)
	shrunk.Replicas = []cluster.NodeID{self, 2, 3}
	apply(t, p, shrunk)
	err := p.Append(request(plain(t, "b"), all), newOutcome())
	wantReason(t, err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	if len(log.batches) != 1 {
		t.Errorf("%d batches stored, want 1", len(log.batches))
	}
	// acks=leader is not asked, but readers do not see the record: the high
	// watermark stands still below min ISR.
	add(t, p, plain(t, "b"), leader).result(t)
	if p.replica.HighWatermark() != 1 || p.replica.LogEnd() != 2 {
		t.Errorf("high watermark %d and log end %d, want 1 and 2", p.replica.HighWatermark(), p.replica.LogEnd())
	}
	// The setting changes: the record becomes readable without an append.
	p.topic.SetConfig(parseConfig(t, rules.MinInsyncReplicas, "1"))
	apply(t, p, shrunk)
	if p.replica.HighWatermark() != 2 {
		t.Errorf("high watermark %d after min.insync.replicas=1, want 2", p.replica.HighWatermark())
	}
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log, rules.MessageTimestampType, rules.TimestampLogAppendTime)
	first := add(t, p, idempotent(t, 9, 0, 0, "a", "b"), all).result(t)
	again := add(t, p, idempotent(t, 9, 0, 0, "a", "b"), all).result(t)
	if again.BaseOffset != first.BaseOffset || again.AppendTime != first.AppendTime || !again.Duplicate || again.Records != 2 {
		t.Errorf("first %+v, repeated %+v", first, again)
	}
	if len(log.batches) != 1 {
		t.Errorf("%d batches stored, want 1", len(log.batches))
	}
	if producers := log.last().Producers; len(producers) != 1 || producers[0].ID != 9 || producers[0].Batches[0].LastSequence != 1 {
		t.Errorf("producers in the state record: %+v", producers)
	}

	err := p.Append(request(idempotent(t, 9, 0, 3, "c"), all), newOutcome())
	e := wantReason(t, err, errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE)
	if d, ok := e.Detail.(*errorsv1.OutOfOrderSequence); !ok || d.GetExpectedSequence() != 2 || d.GetReceivedSequence() != 3 || d.GetProducerId() != 9 {
		t.Errorf("detail %+v", e.Detail)
	}
	add(t, p, idempotent(t, 9, 1, 0, "c"), all).result(t)
	err = p.Append(request(idempotent(t, 9, 0, 2, "d"), all), newOutcome())
	wantReason(t, err, errorsv1.Reason_REASON_PRODUCER_FENCED)
	err = p.Append(request(idempotent(t, 10, 0, 1, "d"), all), newOutcome())
	wantReason(t, err, errorsv1.Reason_REASON_UNKNOWN_PRODUCER)
}

func TestDuplicateWaitsForItsOriginal(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	_, p := open(t, log)
	original := add(t, p, idempotent(t, 9, 0, 0, "a"), all)
	again := add(t, p, idempotent(t, 9, 0, 0, "a"), all)
	unanswered := add(t, p, idempotent(t, 9, 0, 0, "a"), none)
	if r := unanswered.result(t); !r.Duplicate || r.BaseOffset != 0 {
		t.Errorf("acks=none: %+v", r)
	}
	if original.done() || again.done() {
		t.Fatal("acknowledged before the commit")
	}
	if len(log.appends) != 1 {
		t.Fatalf("%d appends, want 1", len(log.appends))
	}
	log.commit(1, nil)
	if r := original.result(t); r.Duplicate || r.BaseOffset != 0 {
		t.Errorf("original: %+v", r)
	}
	if r := again.result(t); !r.Duplicate || r.BaseOffset != 0 {
		t.Errorf("repeated: %+v", r)
	}
}

// What the store kept of producers and epochs holds after a restart.
func TestRestart(t *testing.T) {
	t.Parallel()
	log := &memoryLog{
		state: store.State{LogStart: 2, LogEnd: 10, HighWatermark: 7, Epochs: []store.EpochStart{{Epoch: 0, StartOffset: 2}, {Epoch: 3, StartOffset: 5}}},
		restored: []store.Producer{{ID: 9, Epoch: 1, Batches: []store.ProducerBatch{
			{BaseSequence: 0, LastSequence: 1, BaseOffset: 8, AppendTime: -1},
		}}},
	}
	host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	p := New(host, NewTopic(cluster.TopicID{1}, "orders", parseConfig(t)), 0, log)
	if _, err := p.Bounds(rules.NoEpoch); err == nil {
		t.Error("serves before the cluster says so")
	}
	apply(t, p, led(4))
	bounds, err := p.Bounds(4)
	if err != nil || bounds != (Bounds{LogStart: 2, HighWatermark: 10, LeaderEpoch: 4}) {
		t.Errorf("bounds %+v, %v: the only member of the ISR has all there is", bounds, err)
	}
	if r := add(t, p, idempotent(t, 9, 1, 0, "a", "b"), all).result(t); !r.Duplicate || r.BaseOffset != 8 {
		t.Errorf("repeated after the restart: %+v", r)
	}
	if r := add(t, p, idempotent(t, 9, 1, 2, "c"), all).result(t); r.BaseOffset != 10 {
		t.Errorf("next after the restart: %+v", r)
	}
	want := []store.EpochStart{{Epoch: 0, StartOffset: 2}, {Epoch: 3, StartOffset: 5}, {Epoch: 4, StartOffset: 10}}
	if got := log.last().State.Epochs; !slices.Equal(got, want) {
		t.Errorf("epochs %v, want %v", got, want)
	}
	for offset, epoch := range map[int64]cluster.LeaderEpoch{2: 0, 5: 3, 9: 3, 10: 4, 11: 4} {
		if got := p.EpochAt(offset); got != epoch {
			t.Errorf("epoch at %d: %d, want %d", offset, got, epoch)
		}
	}
}

func TestLogNewerThanTheCluster(t *testing.T) {
	t.Parallel()
	log := &memoryLog{state: store.State{LogEnd: 10, Epochs: []store.EpochStart{{Epoch: 5, StartOffset: 0}}}}
	host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	p := New(host, NewTopic(cluster.TopicID{1}, "orders", parseConfig(t)), 0, log)
	wantReason(t, p.Apply(led(4)), errorsv1.Reason_REASON_CORRUPT_LOG)
	wantReason(t, p.Append(request(plain(t, "a"), all), newOutcome()), errorsv1.Reason_REASON_CORRUPT_LOG)
}

func TestLeaderEpochIsChecked(t *testing.T) {
	t.Parallel()
	_, p := open(t, &memoryLog{})
	apply(t, p, led(5))
	for epoch, reason := range map[cluster.LeaderEpoch]errorsv1.Reason{
		4: errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
		6: errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
	} {
		a := request(plain(t, "a"), all)
		a.LeaderEpoch = epoch
		wantReason(t, p.Append(a, newOutcome()), reason)
		_, err := p.Read(t.Context(), Fetch{LeaderEpoch: epoch})
		wantReason(t, err, reason)
		_, err = p.Bounds(epoch)
		wantReason(t, err, reason)
		_, err = p.DeleteRecords(t.Context(), 0, epoch)
		wantReason(t, err, reason)
	}
	a := request(plain(t, "a"), all)
	a.LeaderEpoch = 5
	if err := p.Append(a, newOutcome()); err != nil {
		t.Error(err)
	}
	// An older assignment changes nothing.
	apply(t, p, led(3))
	if role, epoch := p.Role(); role != rules.Leading || epoch != 5 {
		t.Errorf("%s in epoch %d after an old assignment", role, epoch)
	}
}

func TestLeadershipIsLost(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	_, p := open(t, log, rules.MinInsyncReplicas, "1")
	ready := NewReady()
	if !p.Await(ready, 4, 0, 0) {
		t.Fatal("something to read in an empty log")
	}
	onLeader, onAll := add(t, p, plain(t, "a"), leader), add(t, p, plain(t, "b"), all)
	lost := led(1)
	lost.Leader, lost.Replicas = 2, []cluster.NodeID{self, 2}
	apply(t, p, lost)
	if role, _ := p.Role(); role != rules.Following {
		t.Errorf("role %s", role)
	}
	for name, o := range map[string]*outcome{"leader": onLeader, "all": onAll} {
		wantReason(t, o.result(t).Err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND)
		if o.done() {
			t.Errorf("acks=%s: completed twice", name)
		}
	}
	if got := ready.Take(nil); !slices.Equal(got, []int{4}) {
		t.Errorf("told %v of the loss, want [4]", got)
	}
	e := wantReason(t, p.Append(request(plain(t, "c"), all), newOutcome()), errorsv1.Reason_REASON_NOT_LEADER)
	want := &errorsv1.NotLeader{Topic: "orders", Partition: 3, LeaderId: 2, LeaderAddress: "node-2:7070", LeaderEpoch: 1}
	if d, ok := e.Detail.(*errorsv1.NotLeader); !ok || d.String() != want.String() {
		t.Errorf("detail %v, want %v", e.Detail, want)
	}
	log.commit(2, nil)
	if p.replica.HighWatermark() != 0 || p.replica.LogEnd() != 2 {
		t.Errorf("high watermark %d and log end %d, want 0 and 2: a follower does not move it", p.replica.HighWatermark(), p.replica.LogEnd())
	}
	offline := led(2)
	offline.Leader = cluster.NoNode
	apply(t, p, offline)
	_, err := p.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_NO_LEADER)

	// Back again: what was committed meanwhile counts, since the ISR is this node.
	apply(t, p, led(3))
	if bounds, err := p.Bounds(3); err != nil || bounds.HighWatermark != 2 {
		t.Errorf("bounds %+v, %v after the return", bounds, err)
	}
}

func TestHighWatermarkIsUnknownToANewLeader(t *testing.T) {
	t.Parallel()
	log := &memoryLog{state: store.State{LogEnd: 10, HighWatermark: 4}}
	_, p := open(t, log, rules.MinInsyncReplicas, "2")
	elected := led(1)
	elected.Replicas = []cluster.NodeID{self, 2}
	elected.ISR = elected.Replicas
	host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	p = New(host, p.topic, 0, log)
	apply(t, p, elected)
	_, err := p.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE)
	// A reader that an earlier leader let read further must not be told to reset.
	_, err = p.Read(t.Context(), Fetch{Offset: 8, End: 100, MaxBytes: 1, LeaderEpoch: rules.NoEpoch})
	wantReason(t, err, errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE)
	if _, err = p.Read(t.Context(), Fetch{Offset: 4, End: 100, MaxBytes: 1, LeaderEpoch: rules.NoEpoch}); err != nil {
		t.Errorf("read at the known high watermark: %v", err)
	}
}

func TestAcknowledgementTimesOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &memoryLog{hold: true}
		host, p := open(t, log)
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() { _ = host.Run(ctx); close(stopped) }()
		defer func() { cancel(); <-stopped }()

		short, long := request(plain(t, "a"), all), request(plain(t, "b"), all)
		short.Deadline, long.Deadline = time.Now().Add(time.Second), time.Now().Add(10*time.Second)
		first, second := newOutcome(), newOutcome()
		if err := errors.Join(p.Append(short, first), p.Append(long, second)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second - time.Millisecond)
		synctest.Wait()
		if first.done() {
			t.Fatal("gave up before its time")
		}
		time.Sleep(overdueEvery + 2*time.Millisecond)
		synctest.Wait()
		wantReason(t, first.result(t).Err, errorsv1.Reason_REASON_TIMED_OUT)
		if second.done() {
			t.Fatal("the other gave up, too")
		}
		log.commit(2, nil)
		if r := second.result(t); r.Err != nil || r.BaseOffset != 1 {
			t.Errorf("the other: %+v", r)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if first.done() {
			t.Error("completed twice")
		}

		// Below min ISR the reason is another.
		shrunk := led(1)
		shrunk.Replicas = []cluster.NodeID{self, 2}
		shrunk.ISR = shrunk.Replicas
		apply(t, p, shrunk)
		third := request(plain(t, "c"), all)
		third.Deadline = time.Now().Add(time.Second)
		o := newOutcome()
		if err := p.Append(third, o); err != nil {
			t.Fatal(err)
		}
		shrunk.ISR = []cluster.NodeID{self}
		shrunk.PartitionEpoch++
		apply(t, p, shrunk)
		log.commit(1, nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantReason(t, o.result(t).Err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND)
	})
}

func TestHighWatermarkIsCheckpointed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &memoryLog{}
		host, p := open(t, log, rules.RetentionMs, "-1")
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() { _ = host.Run(ctx); close(stopped) }()
		defer func() { cancel(); <-stopped }()
		add(t, p, plain(t, "a"), all).result(t)
		if got := log.last().State.HighWatermark; got != 0 {
			t.Fatalf("high watermark %d in the append's own record", got)
		}
		time.Sleep(checkpointEvery + time.Second)
		synctest.Wait()
		if got := log.last(); got.State.HighWatermark != 1 || got.State.LogEnd != 1 || len(got.Batches) != 0 {
			t.Errorf("checkpoint %+v", got)
		}
		n := len(log.appends)
		time.Sleep(10 * checkpointEvery)
		synctest.Wait()
		if len(log.appends) != n {
			t.Errorf("%d records written while nothing moved", len(log.appends)-n)
		}
		add(t, p, plain(t, "b"), all).result(t)
		time.Sleep(checkpointEvery + time.Second)
		synctest.Wait()
		if got := log.last().State.HighWatermark; got != 2 {
			t.Errorf("second checkpoint at %d, want 2", got)
		}
	})
}

func TestStoreFails(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	_, p := open(t, log)
	first, second := add(t, p, plain(t, "a"), leader), add(t, p, plain(t, "b"), all)
	log.commit(1, errors.New("disk on fire"))
	for _, o := range []*outcome{first, second} {
		if r := o.result(t); r.Err == nil {
			t.Errorf("acknowledged although the store failed: %+v", r)
		}
	}
	e := wantReason(t, p.Append(request(plain(t, "c"), none), newOutcome()), errorsv1.Reason_REASON_STORAGE_FAILED)
	if bytes.Contains([]byte(e.Message), []byte("fire")) {
		t.Errorf("the message tells clients of %q", e.Message)
	}
	log.commit(1, errors.New("disk on fire"))
}

// The reason names what can still be done, and nothing that cannot.
func TestFailedPartitionNamesTheRemedy(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	for _, c := range []struct {
		failed store.ErrFailed
		says   string
	}{
		{store.ErrFailed{LogEndUnknown: true}, `partition 3 of topic "orders" has lost records and takes no more: volume 1 is lost; nothing of it is left on this node; restart the node with --accept-loss orders:3 to go on at offset 0, or delete the topic and create it anew`},
		{store.ErrFailed{LogEndUnknown: true, LogStart: 3, LogEnd: 9}, "; what is intact of its offsets 3 to 8 can be read; restart the node with --accept-loss orders:3 to go on at offset 9, or delete the topic and create it anew"},
		{store.ErrFailed{LostTo: 7, LogEnd: 9}, "; delete its records below offset 7 to go on without them"},
	} {
		c.failed.Reason = "volume 1 is lost"
		log.failed = &c.failed
		if e := wantReason(t, p.Failed(), errorsv1.Reason_REASON_CORRUPT_LOG); !strings.HasSuffix(e.Message, c.says) {
			t.Errorf("the reason is %s, want %s", e.Message, c.says)
		}
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	add(t, p, plain(t, "a"), all).result(t)
	ready := NewReady()
	p.Await(ready, 0, 1, rules.NoEpoch)
	p.Delete(func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	if !log.last().State.Deleted {
		t.Error("the deletion is not in the state record")
	}
	if got := ready.Take(nil); len(got) != 1 {
		t.Errorf("readers were told %v", got)
	}
	_, err := p.Read(t.Context(), Fetch{End: 100, MaxBytes: 100, LeaderEpoch: rules.NoEpoch})
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	wantReason(t, p.Append(request(plain(t, "b"), all), newOutcome()), errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	// Nothing brings it back.
	apply(t, p, led(9))
	_, err = p.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
	log.state = log.last().State
	again := New(p.host, p.topic, 3, log)
	apply(t, again, led(10))
	_, err = again.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_TOPIC_NOT_FOUND)
}

func TestTruncate(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	host, p := open(t, log)
	add(t, p, idempotent(t, 9, 0, 0, "a", "b"), all).result(t)
	apply(t, p, led(1))
	add(t, p, idempotent(t, 9, 0, 2, "c"), all).result(t)
	add(t, p, idempotent(t, 8, 0, 0, "d"), all).result(t)
	in := rules.Replicated{LeaderEpoch: 1, Follows: 4, Diverges: true, Epoch: rules.NoEpoch, End: 2}
	if r, err := p.Receive(t.Context(), in, nil, nil); err != nil || r.Outcome != rules.ReceiveDropped {
		t.Errorf("a leader was truncated: %+v, %v", r, err)
	}
	follower := led(2)
	follower.Leader, follower.Replicas = 2, []cluster.NodeID{self, 2}
	apply(t, p, follower)
	cut(t, p, 2)
	if _, _, ok := host.tails.read(&p.tail, 2, 100, 100); ok {
		t.Error("the tail cache holds what was cut")
	}
	apply(t, p, led(3))
	if r := add(t, p, idempotent(t, 9, 0, 2, "C"), all).result(t); r.BaseOffset != 2 || r.Duplicate {
		t.Errorf("append after the cut: %+v", r)
	}
	wantReason(t, p.Append(request(idempotent(t, 8, 0, 1, "e"), all), newOutcome()), errorsv1.Reason_REASON_UNKNOWN_PRODUCER)
	want := []store.EpochStart{{Epoch: 0, StartOffset: 0}, {Epoch: 3, StartOffset: 2}}
	if got := log.last().State.Epochs; !slices.Equal(got, want) {
		t.Errorf("epochs %v, want %v", got, want)
	}
	f, err := p.Read(t.Context(), Fetch{Offset: 0, End: 100, MaxBytes: 1 << 20, LeaderEpoch: rules.NoEpoch})
	if err != nil || f.NextOffset != 3 || len(f.Batches) != 2 {
		t.Errorf("read %d batches up to %d, %v", len(f.Batches), f.NextOffset, err)
	}
}

// Not parallel: it counts what the process allocates.
func TestIdlePartitionIsSmall(t *testing.T) {
	log := &memoryLog{state: store.State{LogEnd: 10, HighWatermark: 10, Epochs: []store.EpochStart{{Epoch: 0, StartOffset: 0}}}}
	host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	topic := NewTopic(cluster.TopicID{1}, "orders", parseConfig(t))
	const n = 1000
	partitions := make([]*Partition, n)
	shared := led(0)
	var before, awake, asleep runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range partitions {
		partitions[i] = New(host, topic, 0, log)
		apply(t, partitions[i], shared)
		partitions[i].Share(&shared)
	}
	runtime.ReadMemStats(&awake)
	for _, p := range partitions {
		sleep(t, p)
	}
	runtime.GC()
	runtime.ReadMemStats(&asleep)
	for _, size := range []struct {
		what        string
		bytes, most uint64
	}{
		{"an idle", (awake.TotalAlloc - before.TotalAlloc) / n, 700},
		{"a sleeping", (asleep.HeapAlloc - before.HeapAlloc) / n, 160},
	} {
		t.Logf("%s partition takes %d bytes", size.what, size.bytes)
		if size.bytes > size.most {
			t.Errorf("%s partition takes %d bytes, at most %d are planned for", size.what, size.bytes, size.most)
		}
	}
	runtime.KeepAlive(partitions)
}

// A new epoch of the same leader is no loss: what waits goes on waiting, readers
// look again.
func TestLeaderIsElectedAnew(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	_, p := open(t, log)
	ready := NewReady()
	p.Await(ready, 0, 0, 0)
	waiting := add(t, p, plain(t, "a"), all)
	apply(t, p, led(1))
	if waiting.done() || len(ready.Take(nil)) != 1 {
		t.Error("acknowledged, or readers were not told")
	}
	log.commit(1, nil)
	if r := waiting.result(t); r.Err != nil || r.LeaderEpoch != 0 {
		t.Errorf("append of the epoch before: %+v", r)
	}
}

// queueLog commits from a goroutine of its own and blocks while its queue is full,
// as the store does.
type queueLog struct {
	memoryLog
	queue chan func(error)
}

func (l *queueLog) Append(a store.Append, done func(error)) {
	l.mu.Lock()
	l.state = a.State
	l.batches = append(l.batches, a.Batches...)
	l.mu.Unlock()
	l.queue <- done
}

// Everybody at once, against a store that is slow: nothing deadlocks, every
// acknowledged batch has its own place, and readers get exactly those.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	log := &queueLog{queue: make(chan func(error), 2)}
	var committer sync.WaitGroup
	committer.Go(func() {
		for done := range log.queue {
			done(nil)
		}
	})
	config := DefaultConfig()
	config.TailBytes = 10 * (tailOverhead + 100)
	host := NewHost(config, func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	p := New(host, NewTopic(cluster.TopicID{1}, "orders", parseConfig(t)), 0, log)
	apply(t, p, led(0))

	const producers, batches = 8, 50
	var mu sync.Mutex
	placed := map[int64]string{}
	var wg sync.WaitGroup
	for id := range int64(producers) {
		wg.Go(func() {
			for i := range int32(batches) {
				value := fmt.Sprintf("%d/%d", id, i)
				batch := idempotent(t, id, 0, i, value)
				o := newOutcome()
				if err := p.Append(request(slices.Clone(batch), all), o); err != nil {
					t.Error(err)
					return
				}
				again := newOutcome()
				if err := p.Append(request(batch, all), again); err != nil {
					t.Error(err)
					return
				}
				r, repeated := <-o.results, <-again.results
				if r.Err != nil || repeated.BaseOffset != r.BaseOffset || !repeated.Duplicate {
					t.Errorf("%+v, repeated %+v", r, repeated)
				}
				mu.Lock()
				if other, taken := placed[r.BaseOffset]; taken {
					t.Errorf("%s and %s are both at %d", value, other, r.BaseOffset)
				}
				placed[r.BaseOffset] = value
				mu.Unlock()
			}
		})
	}
	wg.Go(func() {
		for epoch := range cluster.LeaderEpoch(20) {
			apply(t, p, led(epoch))
			p.Checkpoint()
			if _, err := p.DeleteRecords(t.Context(), 0, rules.NoEpoch); err != nil {
				t.Error(err)
			}
		}
	})
	read := map[int64]string{}
	wg.Go(func() {
		ready := NewReady()
		for position := int64(0); position < producers*batches; {
			f, err := p.Read(t.Context(), fetch(position))
			if err != nil {
				t.Error(err)
				return
			}
			for _, batch := range f.Batches {
				records, err := recordbatch.Decode(batch, recordbatch.Limits{})
				if err != nil || records[0].Offset != position {
					t.Errorf("records %v at %d, %v", records, position, err)
					return
				}
				read[position] = string(records[0].Value)
				position++
			}
			if p.Await(ready, 0, position, rules.NoEpoch) && position < producers*batches {
				<-ready.C()
				ready.Take(nil)
			}
		}
		p.Forget(ready)
	})
	wg.Wait()
	close(log.queue)
	committer.Wait()
	if len(placed) != producers*batches || !maps.Equal(placed, read) {
		t.Errorf("%d batches acknowledged, %d read; want %d of each, the same", len(placed), len(read), producers*batches)
	}
}

// Whatever bytes come, they are refused or stored as a batch that passes its
// checks.
func FuzzAppend(f *testing.F) {
	f.Add([]byte{})
	f.Add(plain(f, "a", "b"))
	f.Add(idempotent(f, 1, 0, 0, "a"))
	f.Add(batchOf(f, recordbatch.WithoutProducer(recordbatch.Zstd), "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "b"))
	f.Fuzz(func(t *testing.T, batch []byte) {
		for _, policy := range []string{rules.CleanupDelete, rules.CleanupCompact} {
			log := &memoryLog{}
			_, p := open(t, log, rules.CleanupPolicy, policy)
			if len(batch) >= recordbatch.HeaderSize {
				// A wrong checksum would end most of the inputs at once.
				resum(batch)
			}
			o := newOutcome()
			if p.Append(request(slices.Clone(batch), all), o) != nil {
				continue
			}
			r := o.result(t)
			header, err := recordbatch.Verify(log.batches[0].Bytes)
			if err != nil || r.Err != nil || r.BaseOffset != 0 || header.RecordCount != r.Records || p.replica.Next() != int64(r.Records) || header.LastOffset() != p.replica.Next()-1 {
				t.Fatalf("stored %+v with %+v, %v; next offset %d", header, r, err, p.replica.Next())
			}
		}
	})
}
