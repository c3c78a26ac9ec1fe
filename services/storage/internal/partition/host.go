package partition

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

const (
	// overdueEvery is how late an acknowledgement's timeout may be noticed.
	overdueEvery = 50 * time.Millisecond
	// checkpointEvery is how far the checkpoint of a high watermark that moves
	// without appends may lag.
	checkpointEvery = 5 * time.Second
)

// Config is what all partitions of a process are configured with.
type Config struct {
	// TailBytes bounds the memory for batches that were appended last; 0 or more.
	TailBytes int64
	// InFlightBytes bounds the batches that are on their way into the store; 1 or
	// more.
	InFlightBytes int64
	// ProducersPerPartition is how many idempotent producers a partition
	// remembers; 1 or more.
	ProducersPerPartition int
	// MaxTimestampAhead is how far the timestamp of a record may lie in the future
	// (KIP-937).
	MaxTimestampAhead time.Duration
	// RetentionEvery is how often partitions look for records to remove, and fall
	// asleep that were not used meanwhile and in the period before; more than 0.
	RetentionEvery time.Duration
	// Now tells the time by which retention and compaction go; nil stands for
	// time.Now.
	Now func() time.Time
	// Decoding bounds what the server itself decompresses.
	Decoding recordbatch.Limits
	// KeyMapBytes bounds the memory of compaction, for about 28 bytes a key; at
	// least 1.
	KeyMapBytes int64
	// CompactEvery is how often compaction looks for work; above 0.
	CompactEvery time.Duration
	// Logger takes what goes wrong where no caller is told; it may be nil.
	Logger *slog.Logger
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		TailBytes:             64 << 20,
		InFlightBytes:         64 << 20,
		ProducersPerPartition: rules.DefaultProducersPerPartition,
		MaxTimestampAhead:     time.Hour,
		RetentionEvery:        30 * time.Second,
		// A plain record must fit into a message, which has at most 32 MiB.
		Decoding:     recordbatch.Limits{MaxBytes: 16 << 20},
		KeyMapBytes:  64 << 20,
		CompactEvery: 15 * time.Second,
	}
}

// Host is what all partitions of a process share.
type Host struct {
	config  Config
	address func(cluster.NodeID) string
	budget  *Budget
	metrics *metrics
	tails   tails
	self    atomic.Int32
	stalled atomic.Bool
	// failed says that logs have lost something.
	failed atomic.Bool

	// mu guards led, the partitions that this node leads, followed, those of them that
	// others follow, and following, those that this node follows.
	mu                       sync.Mutex
	led, followed, following map[*Partition]struct{}

	// overdue has the partitions with appends that wait for acknowledgement,
	// checkpoints those whose high watermark has moved.
	overdue, checkpoints *sweeper
	compactor            *compactor
}

// SetStalled notes that the disk does not answer, or does again. While it does not,
// the node resigns what it leads and others can lead, see [Partition.Propose].
func (h *Host) SetStalled(stalled bool) { h.stalled.Store(stalled) }

// SetFailed notes whether any log has lost something. While one has, the partitions that
// follow are looked at, too, see [Host.Proposing].
func (h *Host) SetFailed(failed bool) { h.failed.Store(failed) }

// NewHost returns a host. address names where clients reach a node, or returns
// the empty string; it must not block. registerer may be nil.
func NewHost(config Config, address func(cluster.NodeID) string, registerer prometheus.Registerer) *Host {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	m := newMetrics(registerer)
	h := &Host{
		config:  config,
		address: address,
		budget:  newBudget(config.InFlightBytes, m),
		metrics: m,
		led:     make(map[*Partition]struct{}),
		// Apart from led, as it is gone through each second: it is empty where a node is
		// alone, however many partitions that has.
		followed:  make(map[*Partition]struct{}),
		following: make(map[*Partition]struct{}),
		tails:     tails{budget: config.TailBytes, metrics: m},
	}
	h.self.Store(int32(cluster.NoNode))
	h.overdue = newSweeper(overdueEvery, func(p *Partition) { p.expire(time.Now()) })
	h.checkpoints = newSweeper(checkpointEvery, (*Partition).Checkpoint)
	h.compactor = newCompactor(h)
	return h
}

// SetSelf says which node this process is; before, it leads nothing.
func (h *Host) SetSelf(id cluster.NodeID) { h.self.Store(int32(id)) }

// Self returns which node this process is.
func (h *Host) Self() cluster.NodeID { return cluster.NodeID(h.self.Load()) }

// Budget returns what bounds the bytes in flight.
func (h *Host) Budget() *Budget { return h.budget }

// Decoding returns the limits for opening batches.
func (h *Host) Decoding() recordbatch.Limits { return h.config.Decoding }

// CountDormant says how many partitions there are in the process without a
// [Partition], and how many there were before: they count as led and followed.
func (h *Host) CountDormant(before, now Roles) {
	h.metrics.leaders.Add(float64(now.Leaders - before.Leaders))
	h.metrics.followers.Add(float64(now.Followers - before.Followers))
}

// Run looks after what is late until ctx ends: acknowledgements that do not
// come, high watermarks that are not written, records that need not be kept any
// longer, partitions that nobody uses, and compaction.
func (h *Host) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { h.overdue.run(ctx) })
	wg.Go(func() { h.checkpoints.run(ctx) })
	wg.Go(func() { h.visit(ctx) })
	wg.Go(func() { h.compactor.run(ctx) })
	wg.Wait()
	return nil
}

// sweeper visits partitions that have asked for it, all together and not sooner
// than a period after the first has asked.
type sweeper struct {
	period time.Duration
	visit  func(*Partition)
	wake   chan struct{}

	mu   sync.Mutex
	asks []*Partition
}

func newSweeper(period time.Duration, visit func(*Partition)) *sweeper {
	return &sweeper{period: period, visit: visit, wake: make(chan struct{}, 1)}
}

// add asks for one visit. A partition asks again only after it was visited.
func (s *sweeper) add(p *Partition) {
	s.mu.Lock()
	s.asks = append(s.asks, p)
	first := len(s.asks) == 1
	s.mu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

func (s *sweeper) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.period):
		}
		s.mu.Lock()
		asks := s.asks
		s.asks = nil
		s.mu.Unlock()
		for _, p := range asks {
			s.visit(p)
		}
	}
}

// Budget bounds the bytes of appends that are on their way. Safe for concurrent
// use.
type Budget struct {
	size    int64
	metrics *metrics

	mu      sync.Mutex
	used    int64
	waiting fifo[budgetWaiter]
}

type budgetWaiter struct {
	bytes   int64
	granted chan struct{}
}

func newBudget(size int64, m *metrics) *Budget { return &Budget{size: size, metrics: m} }

// Acquire takes bytes from the budget, in the order of the calls, and waits
// while there are not enough. It returns how many to release: more than the whole
// budget counts as the whole. The error is that of ctx.
func (b *Budget) Acquire(ctx context.Context, bytes int64) (int64, error) {
	bytes = min(bytes, b.size)
	b.mu.Lock()
	if b.waiting.len() == 0 && b.used+bytes <= b.size {
		b.used += bytes
		b.metrics.inFlight.Set(float64(b.used))
		b.mu.Unlock()
		return bytes, nil
	}
	granted := make(chan struct{})
	b.waiting.push(budgetWaiter{bytes: bytes, granted: granted})
	b.mu.Unlock()
	b.metrics.budgetWaits.Inc()
	select {
	case <-granted:
		return bytes, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	select {
	case <-granted:
		b.mu.Unlock()
		return bytes, nil
	default:
	}
	b.waiting.removeFunc(func(w *budgetWaiter) bool { return w.granted == granted })
	b.grantLocked()
	b.mu.Unlock()
	return 0, ctx.Err()
}

// Release gives bytes back.
func (b *Budget) Release(bytes int64) {
	if bytes == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= bytes
	b.grantLocked()
	b.metrics.inFlight.Set(float64(b.used))
}

func (b *Budget) grantLocked() {
	for b.waiting.len() > 0 && b.used+b.waiting.front().bytes <= b.size {
		w := b.waiting.pop()
		b.used += w.bytes
		close(w.granted)
	}
}
