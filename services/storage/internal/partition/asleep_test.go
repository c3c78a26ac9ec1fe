package partition

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// applyShared applies an assignment that stays where it is.
func applyShared(t testing.TB, p *Partition, a cluster.Partition) {
	t.Helper()
	apply(t, p, a)
	p.Share(&a)
}

func (p *Partition) isAsleep() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.awake == nil
}

// visited does to a partition what its host does by and by until it should be
// asleep.
func visited(p *Partition) {
	p.expire(time.Now())
	p.Checkpoint()
	for range restsAfter {
		p.rest()
	}
}

func sleep(t testing.TB, p *Partition) {
	t.Helper()
	visited(p)
	if !p.isAsleep() {
		t.Fatal("awake")
	}
}

// gauge returns what a registry has for a gauge.
func gauge(t testing.TB, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// What a partition knew it knows again: its ends, epochs, coordinator and producers.
func TestAsleepPartitionForgetsNothing(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	host, p := open(t, log)
	applyShared(t, p, led(3))
	for sequence := range int32(3) {
		add(t, p, idempotent(t, 9, 1, sequence, "a"), all).result(t)
	}
	if _, err := p.DeleteRecords(t.Context(), 1, rules.NoEpoch); err != nil {
		t.Fatal(err)
	}
	for range 2 { // The second time without a look at the producers.
		sleep(t, p)
		if used := host.tails.used; used != 0 {
			t.Errorf("%d bytes in the tail cache", used)
		}
		if bounds, err := p.Bounds(3); err != nil || bounds != (Bounds{LogStart: 1, HighWatermark: 3, LeaderEpoch: 3}) {
			t.Errorf("bounds %+v, %v", bounds, err)
		}
		if role, epoch := p.Role(); role != rules.Leading || epoch != 3 {
			t.Errorf("%s in epoch %d", role, epoch)
		}
		_, err := p.Bounds(2)
		wantReason(t, err, errorsv1.Reason_REASON_FENCED_LEADER_EPOCH)
		if err := p.CheckPosition(3, 3, 3); err != nil {
			t.Error(err)
		}
	}
	sleep(t, p)
	if r := add(t, p, idempotent(t, 9, 1, 2, "a"), all).result(t); !r.Duplicate || r.BaseOffset != 2 {
		t.Errorf("repeated: %+v", r)
	}
	sleep(t, p)
	err := p.Append(request(idempotent(t, 9, 1, 7, "a"), all), newOutcome())
	wantReason(t, err, errorsv1.Reason_REASON_OUT_OF_ORDER_SEQUENCE)
	sleep(t, p)
	if r := add(t, p, idempotent(t, 9, 1, 3, "a"), all).result(t); r.Duplicate || r.BaseOffset != 3 || r.LeaderEpoch != 3 || r.LogStart != 1 {
		t.Errorf("the next: %+v", r)
	}
	if f, err := p.Read(t.Context(), fetch(1)); err != nil || f.NextOffset != 4 {
		t.Errorf("read up to %d, %v", f.NextOffset, err)
	}
	want := store.State{LogStart: 1, LogEnd: 4, HighWatermark: 3, Epochs: []store.EpochStart{{Epoch: 3, StartOffset: 1}}}
	if got := log.last().State; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("state %+v, want %+v", got, want)
	}
	// Another leadership, told to a partition that is asleep.
	sleep(t, p)
	applyShared(t, p, led(5))
	if r := add(t, p, plain(t, "a"), all).result(t); r.LeaderEpoch != 5 || r.BaseOffset != 4 {
		t.Errorf("in the next leadership: %+v", r)
	}
	sleep(t, p)
	p.Close()
	_, err = p.Bounds(rules.NoEpoch)
	wantReason(t, err, errorsv1.Reason_REASON_DRAINING)
}

// A coordinator's epoch outlives the sleep, too.
func TestAsleepPartitionKeepsItsFence(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	p := New(host, NewTopic(cluster.TopicID{1}, cluster.OffsetsTopic, parseConfig(t)), 0, log)
	applyShared(t, p, led(0))
	fenced := func(epoch cluster.CoordinatorEpoch) error {
		a := request(plain(t, "a"), all)
		a.Claim = &rules.Claim{Epoch: epoch, Expected: -1}
		return p.Append(a, newOutcome())
	}
	if err := fenced(4); err != nil {
		t.Fatal(err)
	}
	sleep(t, p)
	wantReason(t, fenced(3), errorsv1.Reason_REASON_COORDINATOR_FENCED)
	sleep(t, p)
	if err := p.CheckFence(t.Context(), rules.Claim{Epoch: 4, Expected: 1}); err != nil {
		t.Error(err)
	}
}

// A partition stays awake that knows, or owes somebody, what neither its log nor its
// assignment says.
func TestWhatKeepsAPartitionAwake(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]func(t *testing.T, log *memoryLog, p *Partition){
		"a reader who waits": func(_ *testing.T, _ *memoryLog, p *Partition) {
			p.Await(NewReady(), 0, 1, rules.NoEpoch)
		},
		"an append that is not written": func(t *testing.T, log *memoryLog, p *Partition) {
			log.hold = true
			add(t, p, plain(t, "a"), none)
		},
		"a high watermark without a checkpoint": func(t *testing.T, _ *memoryLog, p *Partition) {
			add(t, p, plain(t, "a"), all).result(t)
		},
		"followers": func(_ *testing.T, _ *memoryLog, p *Partition) {
			two := led(2)
			two.Replicas = []cluster.NodeID{self, 2}
			applyShared(t, p, two)
		},
		"a leader elsewhere": func(_ *testing.T, _ *memoryLog, p *Partition) {
			other := led(2)
			other.Leader, other.Replicas = 2, []cluster.NodeID{2, self}
			applyShared(t, p, other)
		},
		"no leader": func(_ *testing.T, _ *memoryLog, p *Partition) {
			other := led(2)
			other.Leader = cluster.NoNode
			applyShared(t, p, other)
		},
		"an assignment that was not shared": func(t *testing.T, _ *memoryLog, p *Partition) {
			apply(t, p, led(2))
		},
		"a loss": func(_ *testing.T, log *memoryLog, _ *Partition) {
			log.failed = errors.New("lost")
		},
		"its end": func(_ *testing.T, _ *memoryLog, p *Partition) { p.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &memoryLog{}
			_, p := open(t, log)
			applyShared(t, p, led(1))
			add(t, p, plain(t, "a"), all).result(t)
			p.expire(time.Now())
			p.Checkpoint()
			keep(t, log, p)
			for range 2 * restsAfter {
				p.rest()
			}
			if p.isAsleep() {
				t.Error("asleep")
			}
		})
	}
}

// The host puts to sleep what nobody uses, and nothing else; retention, which it
// sees to as well, is no use, but for what it removes.
func TestHostLetsPartitionsFallAsleep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, registry)
		host.SetSelf(self)
		topic := NewTopic(cluster.TopicID{1}, "orders", parseConfig(t, rules.RetentionMs, "600000"))
		used, unused := New(host, topic, 0, &memoryLog{}), New(host, topic, 1, &memoryLog{})
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			if err := host.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		for _, p := range []*Partition{used, unused} {
			applyShared(t, p, led(1))
			add(t, p, timed(t, time.Now()), all).result(t)
		}
		asleep := func(want float64) {
			t.Helper()
			if got := gauge(t, registry, "runnel_storage_partitions_asleep"); got != want || unused.isAsleep() != (want > 0) || used.isAsleep() {
				t.Fatalf("%s after the start %g partitions are asleep, want %g", time.Since(time.Unix(946684800, 0)), got, want)
			}
		}
		time.Sleep(time.Second)
		asleep(0)
		for range 8 * 12 { // 8 minutes
			time.Sleep(5 * time.Second)
			used.LogEnd()
		}
		asleep(1)
		if got := gauge(t, registry, "runnel_storage_partitions_led"); got != 2 {
			t.Errorf("%g partitions are led, want 2", got)
		}
		for range 3 * 12 {
			time.Sleep(5 * time.Second)
			used.LogEnd()
		}
		// Retention has removed the record, and after that it has slept again.
		asleep(1)
		if bounds, err := unused.Bounds(rules.NoEpoch); err != nil || bounds.LogStart != 1 || bounds.HighWatermark != 1 {
			t.Errorf("bounds %+v, %v", bounds, err)
		}
		asleep(0)
		cancel()
		<-stopped
	})
}

// While others append, read, wait and are elected, a partition falls asleep and is
// visited at any moment: all batches get a place of their own, in order.
func TestFallingAsleepInUse(t *testing.T) {
	t.Parallel()
	log := &queueLog{queue: make(chan func(error), 2)}
	var committer sync.WaitGroup
	committer.Go(func() {
		for done := range log.queue {
			done(nil)
		}
	})
	host := NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	p := New(host, NewTopic(cluster.TopicID{1}, "orders", parseConfig(t)), 0, log)
	applyShared(t, p, led(0))
	const producers, batches = 4, 200
	stop := make(chan struct{})
	var others, appends sync.WaitGroup
	slept := 0
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			visited(p)
			if p.isAsleep() {
				slept++
			}
			p.Retain(time.Now(), nil)
		}
	})
	others.Go(func() {
		ready := NewReady()
		for epoch := cluster.LeaderEpoch(1); ; epoch++ {
			select {
			case <-stop:
				return
			default:
			}
			applyShared(t, p, led(epoch))
			bounds, err := p.Bounds(rules.NoEpoch)
			if err == nil {
				_, err = p.Read(t.Context(), fetch(bounds.HighWatermark))
				p.Await(ready, 0, bounds.HighWatermark, rules.NoEpoch)
				p.Forget(ready)
			}
			switch rpcerr.ReasonOf(err) {
			case errorsv1.Reason_REASON_UNSPECIFIED, errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE:
			case errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE:
				// Retention was quicker than the read.
				if after, boundsErr := p.Bounds(rules.NoEpoch); boundsErr == nil && after.LogStart <= bounds.HighWatermark {
					t.Errorf("%v, but the log starts at %d", err, after.LogStart)
					return
				}
			default:
				t.Error(err)
				return
			}
		}
	})
	var mu sync.Mutex
	placed := map[int64]bool{}
	for id := range int64(producers) {
		appends.Go(func() {
			last := int64(-1)
			for sequence := range int32(batches) {
				batch := idempotent(t, id, 0, sequence, "a")
				for repeat := range 2 {
					o := newOutcome()
					if err := p.Append(request(append([]byte(nil), batch...), all), o); err != nil {
						t.Error(err)
						return
					}
					r := <-o.results
					if r.Err != nil || r.Duplicate != (repeat == 1) || repeat == 0 && r.BaseOffset <= last || repeat == 1 && r.BaseOffset != last {
						t.Errorf("after %d, repeat %d: %+v", last, repeat, r)
						return
					}
					last = r.BaseOffset
				}
				mu.Lock()
				placed[last] = true
				mu.Unlock()
			}
		})
	}
	appends.Wait()
	close(stop)
	others.Wait()
	p.Checkpoint()
	close(log.queue)
	committer.Wait()
	sleep(t, p)
	if len(placed) != producers*batches || p.LogEnd() != producers*batches {
		t.Errorf("%d places, log end %d; want %d", len(placed), p.LogEnd(), producers*batches)
	}
	if slept == 0 {
		t.Error("it never fell asleep")
	}
}
