// Package controller makes the decisions of a cluster: which nodes count as live,
// who leads which partition, which topics there are.
//
// Every metadata node has a [Controller], and the one that won the election runs
// it for as long as its term lasts. It reads the state from the catalog and writes
// with the fenced transactions of its term, so that what two of them do at the
// same time cannot mix. It does one thing at a time, after the catalog has shown
// it the result of the one before: its transactions fail only if its term is over
// or a lease has come or gone meanwhile.
//
// Its work is level-triggered. What has to be done follows from the state alone:
// a controller that dies half-way through leaves nothing to its successor but a
// state with more to do.
package controller

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
)

const (
	// maxWaiting bounds the calls that wait for their turn.
	maxWaiting = 1000
	// attempts is how often a call starts over because a lease came or went.
	attempts = 5
	// inFlight bounds the transactions that [Controller.commitAll] has under way.
	inFlight      = 16
	minRetryDelay = 50 * time.Millisecond
	maxRetryDelay = 3 * time.Second
)

// Limits bounds what the cluster holds.
type Limits struct {
	// Partitions is how many the topics of the cluster have together.
	Partitions int
	// PartitionsPerTopic is how many one topic has.
	PartitionsPerTopic int
	// Nodes is how many nodes of all roles are registered.
	Nodes int
	// ReplicationFactor is how many replicas a partition of a new topic has.
	ReplicationFactor int
}

// Options is what a [Controller] works with.
type Options struct {
	Client  *clientv3.Client
	Layout  catalog.Layout
	Catalog *catalog.Catalog
	Logger  *slog.Logger
	Limits  Limits
	// PeerAddress is where fellow metadata nodes reach the controller.
	PeerAddress string
	// LeaseTTL is how long a node's lease lasts, whole seconds.
	LeaseTTL time.Duration
	// Settle is how long a lost lease must stay lost before its node is fenced, and
	// Grace how long if many fell at once.
	Settle, Grace time.Duration
	// BalanceInterval is how often leaderships go back to preferred replicas, 0 for
	// never, and BalanceMoves how many do so at a time.
	BalanceInterval time.Duration
	BalanceMoves    int
	// OffsetsPartitions is how many partitions the offsets topic is created with.
	OffsetsPartitions int
	// RequestTimeout bounds each request to etcd.
	RequestTimeout time.Duration
	// ProducerIDs is how many ids one block has.
	ProducerIDs int32
	// DeletedTopicRetention is how long it is remembered that a topic was deleted.
	// The data of a storage node that was away for longer stays where it is.
	DeletedTopicRetention time.Duration
}

// Controller makes the decisions while it has a term. All methods may be called
// concurrently; they wait for their turn.
type Controller struct {
	o       Options
	metrics metrics

	leading atomic.Bool
	waiting atomic.Int64

	// turn holds a token while somebody works; its holder owns the fields below.
	turn chan struct{}
	// term is that of the newest leadership; nil before the first.
	term *election.Term
	// over ends the term once a write has shown that another controller took over.
	over context.CancelCauseFunc
	// written is the revision of the newest own write.
	written int64
	// uncertain says that it is not known what came of a write of this term: that the
	// catalog shows all of written says nothing about that one.
	uncertain bool
	// judged is the newest change of nodes that elections have followed.
	judged int64
	// lost holds since when nodes that are not fenced have had no lease.
	lost map[cluster.NodeID]time.Time
	// pause is until when nobody is fenced, because many leases fell at once.
	pause time.Time
	// fenced holds when nodes were fenced for a lost lease, for as long as Grace.
	fenced []time.Time
	// untidy says that a call, of this term or an earlier one, may have left
	// something behind.
	untidy bool
	// pruned is when deleted topics were last looked through.
	pruned   time.Time
	balancer balancer
	// spreads is when coordinated partitions may be moved again for the sake of
	// evenness.
	spreads time.Time
}

type metrics struct {
	leading prometheus.GaugeFunc
	waiting prometheus.GaugeFunc
	// uncoordinated is the controller's word; others have nothing to say.
	uncoordinated    prometheus.GaugeFunc
	coordinatorMoves prometheus.Counter
	replicasAdded    prometheus.Counter
	elections        prometheus.Counter
	unclean          prometheus.Counter
	balanced         prometheus.Counter
	fences           prometheus.Counter
	massLosses       prometheus.Counter
	abandoned        prometheus.Counter
}

// New returns a controller without a term.
func New(o Options) *Controller {
	c := &Controller{o: o, turn: make(chan struct{}, 1), balancer: balancer{interval: o.BalanceInterval, moves: o.BalanceMoves}}
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "runnel", Subsystem: "metadata", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	c.metrics = metrics{
		leading: prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("controller_active", "1 while this node is controller.")), func() float64 {
			if c.Leading() {
				return 1
			}
			return 0
		}),
		waiting: prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("controller_waiting", "Calls that wait for their turn at the controller.")), func() float64 {
			return float64(c.waiting.Load())
		}),
		uncoordinated: prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts("partitions_without_coordinator", "Partitions of the offsets topic whose groups nobody coordinates; 0 where this node is not controller.")), func() float64 {
			return float64(c.uncoordinated())
		}),
		coordinatorMoves: counter("coordinator_moves_total", "Times that a partition of the offsets topic got another coordinator, or lost the one it had."),
		replicasAdded:    counter("replicas_added_total", "Replicas that partitions of the offsets topic got after it was created."),
		elections:        counter("partition_changes_total", "Changes of leader, ISR, ELR or coordinator that the controller made."),
		unclean:          counter("unclean_elections_total", "Leaders elected by an operator although they may lack acknowledged records."),
		balanced:         counter("leaderships_balanced_total", "Leaderships that the controller gave back to preferred replicas by itself."),
		fences:           counter("nodes_fenced_total", "Nodes fenced because they lost their lease."),
		massLosses:       counter("mass_lease_losses_total", "Times when fencing paused because many leases fell at once."),
		abandoned:        counter("topics_abandoned_total", "Topics removed because their creation was interrupted."),
	}
	return c
}

// Collectors returns the controller's metrics.
func (c *Controller) Collectors() []prometheus.Collector {
	m := c.metrics
	return []prometheus.Collector{m.leading, m.waiting, m.uncoordinated, m.coordinatorMoves, m.replicasAdded, m.elections, m.unclean, m.balanced, m.fences, m.massLosses, m.abandoned}
}

// Leading reports whether this node is controller, as far as it knows.
func (c *Controller) Leading() bool { return c.leading.Load() }

// Lead is controller for one term: it opens the term, makes good what earlier
// terms left undone, and then follows the leases until ctx ends or another
// controller has taken over.
func (c *Controller) Lead(ctx context.Context, node cluster.NodeID, term *election.Term) error {
	record := &catalogv1.ControllerRecord{NodeId: int32(node), PeerAddress: c.o.PeerAddress}
	response, err := term.Commit(ctx, nil, catalog.Put(c.o.Layout.Controller(), record))
	if err != nil {
		return fmt.Errorf("open term: %w", err)
	}
	c.o.Logger.Info("this node is controller", "node", node, "term", response.Header.GetRevision())
	defer c.resign(ctx, node, term)
	ctx, over := context.WithCancelCause(ctx)
	defer over(nil)
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		// A call of the term before still waits for etcd.
		return nil
	}
	c.term, c.over, c.written, c.uncertain = term, over, response.Header.GetRevision(), false
	c.judged, c.lost, c.fenced, c.pause = 0, make(map[cluster.NodeID]time.Time), nil, time.Time{}
	c.untidy, c.pruned, c.spreads = true, time.Time{}, time.Time{}
	c.balancer.reset(time.Now())
	<-c.turn

	delay := minRetryDelay
	for failing := false; ; {
		changed := c.o.Catalog.Changed()
		wait, err := c.supervise(ctx)
		switch {
		case ctx.Err() != nil:
			return superseded(ctx)
		case err == nil:
			delay, failing = minRetryDelay, false
			c.leading.Store(true)
		default:
			if !failing && !errors.Is(err, election.ErrConflict) {
				// Once per outage.
				c.o.Logger.Warn("the controller cannot act on the state of the cluster; trying again", "error", err)
				failing = true
			}
			wait = delay/2 + rand.N(delay/2)
			delay = min(2*delay, maxRetryDelay)
			changed = nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// superseded returns why a term ended if it was not the lease or a shutdown.
func superseded(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, election.ErrSuperseded) {
		return cause
	}
	return nil
}

// resign ends the term, and says so in etcd unless that is superfluous by now. It
// does not wait for the turn: what a call still tries to write in this term fails.
func (c *Controller) resign(ctx context.Context, node cluster.NodeID, term *election.Term) {
	c.leading.Store(false)
	farewell := catalog.Put(c.o.Layout.Controller(), &catalogv1.ControllerRecord{NodeId: int32(cluster.NoNode)})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(c.o.RequestTimeout, time.Second))
	defer cancel()
	if err := term.Resign(ctx, farewell); err != nil {
		c.o.Logger.Warn("the controller could not resign; its lease has to run out", "error", err)
		return
	}
	c.o.Logger.Info("this node is controller no more", "node", node)
}

// supervise does all that the state asks for, and returns after how long to look
// again even if nothing changes.
func (c *Controller) supervise(ctx context.Context) (time.Duration, error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-c.turn }()
	if err := c.catchUp(ctx); err != nil {
		return 0, err
	}
	if err := c.sweep(ctx); err != nil {
		return 0, err
	}
	wait, err := c.judge(ctx)
	if err != nil {
		return 0, err
	}
	for _, step := range []func(context.Context, time.Time) (time.Duration, error){c.balance, c.spread, c.grow} {
		if err := c.catchUp(ctx); err != nil {
			return 0, err
		}
		next, err := step(ctx, time.Now())
		if err != nil {
			return 0, err
		}
		wait = min(wait, next)
	}
	return wait, nil
}

// begin waits for the caller's turn. The caller ends it with end.
func (c *Controller) begin(ctx context.Context) error {
	if c.waiting.Add(1) > maxWaiting {
		c.waiting.Add(-1)
		return rpcerr.New(errorsv1.Reason_REASON_THROTTLED, "more than %d calls wait for the controller; try again", maxWaiting)
	}
	defer c.waiting.Add(-1)
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for the controller: %w", ctx.Err())
	}
	if c.term == nil || !c.leading.Load() {
		c.end()
		return ErrNotController()
	}
	if err := c.catchUp(ctx); err != nil {
		c.end()
		return err
	}
	return nil
}

func (c *Controller) end() { <-c.turn }

// ErrNotController is the failure of a call to a node that is not controller.
func ErrNotController() error {
	return rpcerr.New(errorsv1.Reason_REASON_NOT_CONTROLLER, "this metadata node is not controller: a new one is being elected; try again")
}

// catchUp waits until the catalog shows all that this term has written, and what
// stands in etcd now if that is not known: else a node that has just been fenced
// could be elected.
func (c *Controller) catchUp(ctx context.Context) error {
	if c.uncertain {
		return c.refresh(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
	defer cancel()
	return c.o.Catalog.WaitRevision(ctx, c.written)
}

// version returns the version of the image that shows all that this term has
// written.
func (c *Controller) version(ctx context.Context) (int64, error) {
	if err := c.catchUp(ctx); err != nil {
		return 0, err
	}
	return c.o.Catalog.Version(), nil
}

// commit writes in this term.
func (c *Controller) commit(ctx context.Context, comparisons []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	response, err := c.term.Commit(ctx, comparisons, ops...)
	if err != nil {
		return 0, c.noted(err)
	}
	c.written = max(c.written, response.Header.GetRevision())
	return response.Header.GetRevision(), nil
}

// transaction is what one fenced transaction compares and writes.
type transaction struct {
	comparisons []clientv3.Cmp
	ops         []clientv3.Op
}

// commitAll writes transactions that do not depend on each other, in any order
// and several at a time, so that they share the syncs of etcd's log. With an
// error some of them may have been written.
func (c *Controller) commitAll(ctx context.Context, txns iter.Seq[transaction]) error {
	var writers sync.WaitGroup
	var mu sync.Mutex // Guards failed, c.written and c.uncertain, which are the caller's otherwise.
	var failed error
	broken := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return failed != nil
	}
	slots := make(chan struct{}, inFlight)
	for t := range txns {
		slots <- struct{}{}
		if broken() {
			break
		}
		writers.Go(func() {
			defer func() { <-slots }()
			response, err := c.term.Commit(ctx, t.comparisons, t.ops...)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				c.written = max(c.written, response.Header.GetRevision())
				return
			}
			c.uncertain = c.uncertain || unknown(err)
			if failed == nil || errors.Is(err, election.ErrSuperseded) {
				failed = err
			}
		})
	}
	writers.Wait()
	return c.noted(failed)
}

// noted ends the term if a write has failed because it is over. It returns the
// error.
func (c *Controller) noted(err error) error {
	c.uncertain = c.uncertain || unknown(err)
	if errors.Is(err, election.ErrSuperseded) {
		c.leading.Store(false)
		c.over(err)
	}
	return err
}

// unknown says that a failed write may have come through all the same.
func unknown(err error) bool {
	return err != nil && !errors.Is(err, election.ErrSuperseded) && !errors.Is(err, election.ErrConflict)
}

// retry calls f until it succeeds, fails for another reason than a conflict, or
// has had its attempts. Before each the catalog shows what stands in etcd.
func (c *Controller) retry(ctx context.Context, f func() error) error {
	var err error
	for range attempts {
		if err = f(); !errors.Is(err, election.ErrConflict) {
			return err
		}
		if err := c.refresh(ctx); err != nil {
			return err
		}
	}
	return err
}

// refresh waits until the catalog shows what stands in etcd now.
func (c *Controller) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
	defer cancel()
	// Only a write has a revision that the catalog is bound to see.
	revision, err := c.commit(ctx, nil, c.o.Layout.Mark())
	if err != nil {
		return err
	}
	if err := c.o.Catalog.WaitRevision(ctx, revision); err != nil {
		return err
	}
	c.uncertain = false
	return nil
}
