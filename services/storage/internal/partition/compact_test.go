package partition

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// compactions runs a host whose partitions note their runs.
type compactions struct {
	host *Host
	mu   sync.Mutex
	runs []string
}

func startCompactions(t *testing.T) *compactions {
	c := &compactions{host: NewHost(DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)}
	c.host.SetSelf(self)
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { _ = c.host.Run(ctx); close(stopped) }()
	t.Cleanup(func() { cancel(); <-stopped })
	return c
}

// add returns a partition that leads, and its log, whose runs succeed.
func (c *compactions) add(t *testing.T, index int32, settings ...string) (*Partition, *memoryLog) {
	log := &memoryLog{}
	log.compact = func(o store.CompactOptions) (store.Compacted, error) {
		c.mu.Lock()
		c.runs = append(c.runs, fmt.Sprintf("%d below %d", index, o.Below))
		c.mu.Unlock()
		log.mu.Lock()
		defer log.mu.Unlock()
		log.compactedTo = o.Below
		return store.Compacted{Progress: true}, nil
	}
	p := New(c.host, NewTopic(cluster.TopicID{1}, "orders", parseConfig(t, settings...)), index, log)
	apply(t, p, led(0))
	return p, log
}

// after lets time pass and wants these runs.
func (c *compactions) after(t *testing.T, d time.Duration, want ...string) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.runs, want) {
		t.Fatalf("runs %q, want %q", c.runs, want)
	}
	c.runs = nil
}

// queued returns how many partitions the compactor looks after.
func (c *compactions) queued() int { return len(c.host.compactor.list()) }

// TestCompactorOrder: one after another, the dirtiest first, and each once.
func TestCompactorOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startCompactions(t)
		var logs []*memoryLog
		for i, clean := range []int64{3 << 20, 0, 1 << 20} {
			p, log := c.add(t, int32(i), rules.CleanupPolicy, rules.CleanupCompact, rules.MinCleanableDirtyRatio, "0.1")
			log.mu.Lock()
			log.dirt.Bytes, log.dirt.Dirty = clean+2<<20, 2<<20
			log.mu.Unlock()
			logs = append(logs, log)
			add(t, p, plain(t, "a", "b"), all).result(t)
		}
		p, _ := c.add(t, 3, rules.CleanupPolicy, rules.CleanupDelete)
		add(t, p, plain(t, "a"), all).result(t)
		if c.queued() != 3 {
			t.Errorf("%d partitions are looked after", c.queued())
		}
		for _, log := range logs {
			log.mu.Lock()
			run := log.compact
			log.compact = func(o store.CompactOptions) (store.Compacted, error) {
				log.mu.Lock()
				log.dirt = store.Dirt{}
				log.mu.Unlock()
				return run(o)
			}
			log.mu.Unlock()
		}
		c.after(t, c.host.config.CompactEvery+time.Millisecond, "1 below 2", "2 below 2", "0 below 2")
		c.after(t, time.Hour)
		if c.queued() != 0 {
			t.Errorf("%d clean partitions are looked after", c.queued())
		}
		// The compactor comes back for what is appended.
		p, log := c.add(t, 4, rules.CleanupPolicy, rules.CleanupCompactDelete)
		add(t, p, plain(t, "a"), all).result(t)
		log.mu.Lock()
		log.dirt.Dirty = 1 << 20
		log.mu.Unlock()
		c.after(t, time.Minute, "4 below 1", "4 below 1", "4 below 1", "4 below 1")
	})
}

// TestCompactorWaits: for enough, or for an hour; for tombstones to expire; after
// what has failed.
func TestCompactorWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startCompactions(t)
		p, log := c.add(t, 0, rules.CleanupPolicy, rules.CleanupCompact)
		add(t, p, plain(t, "a"), all).result(t)
		c.after(t, 59*time.Minute)
		c.after(t, 2*time.Minute, "0 below 1")
		c.after(t, 24*time.Hour)

		log.mu.Lock()
		log.dirt.TombstonesUntil = time.Now().Add(time.Hour)
		log.mu.Unlock()
		add(t, p, plain(t, "b"), all).result(t)
		c.after(t, 59*time.Minute, "0 below 2")
		log.mu.Lock()
		run := log.compact
		log.compact = func(o store.CompactOptions) (store.Compacted, error) {
			_, _ = run(o)
			return store.Compacted{}, errors.New("disk on fire")
		}
		log.mu.Unlock()
		c.after(t, 2*time.Minute, "0 below 2")
		c.after(t, 8*time.Minute)
		c.after(t, 3*time.Minute, "0 below 2")
		log.mu.Lock()
		log.dirt = store.Dirt{}
		log.mu.Unlock()
		c.after(t, time.Hour)

		// What is too young keeps the compactor awake, but no more.
		log.mu.Lock()
		log.dirt.Young, log.compactedTo = 10<<20, 3
		log.mu.Unlock()
		add(t, p, plain(t, "c"), all).result(t)
		c.after(t, 59*time.Minute)
		if c.queued() != 1 {
			t.Error("what is young is forgotten")
		}
		p.Close()
		c.after(t, time.Hour)
		if c.queued() != 0 {
			t.Error("a closed partition is looked after")
		}
	})
}

// TestCompactOptions: what the settings of a topic mean to the store.
func TestCompactOptions(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	host, p := open(t, log, rules.CleanupPolicy, rules.CleanupCompactDelete, rules.MinCompactionLagMs, "1000", rules.DeleteRetentionMs, "2000",
		rules.RetentionMs, "40000", rules.RetentionBytes, "4000")
	at := time.UnixMilli(1_700_000_000_000)
	host.config.Now = func() time.Time { return at }
	var got store.CompactOptions
	log.compact = func(o store.CompactOptions) (store.Compacted, error) {
		got = o
		return store.Compacted{MapFull: true}, nil
	}
	add(t, p, plain(t, "a"), all)
	log.commit(1, nil)
	add(t, p, plain(t, "b"), all)
	if done, err := p.Compact(t.Context()); err != nil || !done.MapFull {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, _, ok := host.tails.read(&p.tail, 0, 1, 100); !ok {
		t.Error("the cache has lost what was not compacted")
	}
	// The cache must not go on with what is compacted away.
	log.compact = func(store.CompactOptions) (store.Compacted, error) {
		return store.Compacted{Progress: true, End: 1}, nil
	}
	if _, err := p.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := host.tails.read(&p.tail, 0, 2, 100); ok {
		t.Error("the cache has what was compacted")
	}
	if _, _, ok := host.tails.read(&p.tail, 1, 2, 100); !ok {
		t.Error("the cache has lost what comes after")
	}
	want := store.CompactOptions{
		Set: store.SetSyncedCompacted, Below: 1, Now: at, MinLag: time.Second, DeleteRetention: 2 * time.Second,
		MapBytes: 64 << 20, Limits: host.config.Decoding, SpanBytes: minSpanBytes, SpanAge: 10 * time.Second,
	}
	if got != want {
		t.Errorf("options %+v, want %+v", got, want)
	}
	if last := log.last(); last.SpanBytes != minSpanBytes || last.SpanAge != time.Second {
		t.Errorf("spans of up to %d bytes and %v are appended", last.SpanBytes, last.SpanAge)
	}
	p.Close()
	if _, err := p.Compact(t.Context()); err == nil {
		t.Error("a closed partition was compacted")
	}
}

func TestCompactedPartitionIsQueuedOnce(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	host, p := open(t, log, rules.CleanupPolicy, rules.CleanupCompact)
	if n := len(host.compactor.list()); n != 0 {
		t.Fatalf("%d partitions without a record are queued", n)
	}
	for range 3 {
		add(t, p, plain(t, "a"), all).result(t)
	}
	if n := len(host.compactor.list()); n != 1 {
		t.Fatalf("%d partitions are queued", n)
	}
	// A policy that changes is noticed with the next assignment.
	p.topic.SetConfig(parseConfig(t, rules.CleanupPolicy, rules.CleanupDelete))
	if _, due := p.compactionDue(time.Now()); due || len(host.compactor.list()) != 0 {
		t.Error("a topic that is not compacted is looked after")
	}
	p.topic.SetConfig(parseConfig(t, rules.CleanupPolicy, rules.CleanupCompact))
	apply(t, p, led(0))
	if n := len(host.compactor.list()); n != 1 {
		t.Errorf("%d partitions are queued after the change", n)
	}
}
