// Package sim steps the rules of replication and of consumer groups through a model of
// a cluster: storage nodes on model disks, metadata nodes over a model etcd, coordinators,
// clients and members, and a network that delays, drops, duplicates and reorders. All that happens follows from one
// seed: there is one thread, one source of random numbers, and no clock but the
// time of the event at hand, so that a seed replays exactly.
//
// Every second seed, the even ones, has groups: one or two offsets partitions beside
// the others, which live through the same faults as these, coordinators that write
// them, and members (see groups.go). The odd ones are of replication alone, so that
// groups take nothing from it: their numbers are drawn as if there were none.
//
// The decisions are those of package rules, as the services make them. What is
// modelled is the rest: when a write is on the disk and what a crash leaves of it,
// what a message meets on its way, who watches what, how late, and who is paused.
// After each step the invariants of [invariants] are checked, and at the end, when
// everything is healed, that everything comes to rest (see heal.go).
package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// Result is what came of a seed.
type Result struct {
	Seed uint64
	// Hash is that of the whole trace: equal for equal runs.
	Hash uint64
	// Steps is how many events were run, and Elapsed how much virtual time passed.
	Steps   int
	Elapsed time.Duration
	// Violation is nil if every invariant held.
	Violation *Violation
	// Counts says how often what happened, so that a test can tell whether the seeds
	// reach what they are for.
	Counts Counts
	// Report describes a violation: seed, step, the trace of the partition, the logs
	// of its replicas.
	Report string
	// Trace is the end of the trace of all partitions, with [Options.Trace].
	Trace string
}

// Counts says how often what happened.
type Counts struct {
	Acked, Consumed, Deletions, Elections, Unclean, ISRChanges, Truncations, Restarts, Crashes, MachineCrashes, CleanStops,
	Duplicates, Fences, Terms, MassLosses, UnknownProducers, Truncated, Preferred, Altered, Grown, Superseded, Damages, Withdrawals, BegunAnew int
	// Of the seeds with groups.
	Coordinators, CoordinatorCrashes, Loads, Fenced, FencedOff, Doubtful, Assignments, Revoked, MemberCrashes, Lost, Processed, Committed, CommitsRefused,
	TopicsDeleted, Resets, OffsetsDeleted, GroupsDeleted, GroupsExpired, OffsetsPurged, Compactions, Compacted, TombstonesGone, InstancesFenced, Overlaps, AcrossFailovers int
}

// Options says how a seed is run.
type Options struct {
	// Trace keeps the whole trace.
	Trace bool
}

// topic is what the partitions of a run have in common with those of a topic.
type topic struct {
	replicas  int
	minInsync int
	synced    bool
	// offsets says that coordinators write it, and no producers.
	offsets bool
}

func (t topic) traits() rules.TopicTraits {
	return rules.TopicTraits{Synced: t.synced, MinInsyncReplicas: t.minInsync}
}

// world is one run.
type world struct {
	rng   *rand.Rand
	now   time.Duration
	queue queue
	steps int
	trace *trace
	check *checker

	settings settings
	growth   growth
	damage   damage
	topics   []topic // By partition: each has a topic of its own.
	// lowest and highest are the extremes that min.insync.replicas has had.
	lowest, highest []int
	nodes           []*node // Node n has id n+1.
	controllers     []*controller
	etcd            *etcd
	clients         []*client
	processes       []*process
	// crowd is nil in seeds without groups.
	crowd *crowd
	// cut holds the directed links that are cut, by the indexes of the processes.
	cut [][]bool
	// stalled holds until when links hold back what is sent.
	stalled [][]time.Duration
	// calm is while there are no faults: before they begin and after they have ended.
	calm   bool
	counts Counts
}

// settings differ from seed to seed.
type settings struct {
	lease, settle, grace, maxLag time.Duration
	// length is how long faults go on.
	length time.Duration
	// drop and duplicate are per mille of messages.
	drop, duplicate int
	slowest         time.Duration
	// faultEvery is the mean time between faults.
	faultEvery time.Duration
	// eager sends to followers what the leader has not written yet.
	eager bool
	// balance is how often leaderships go back to preferred replicas.
	balance time.Duration
	// slow is per mille of messages that take up to slowest.
	slow int
	// churn is the mean time between moves of leaderships back and forth, 0 for none.
	churn time.Duration
	// unclean lets an operator elect uncleanly while faults go on, altered change
	// min.insync.replicas.
	unclean, altered bool
}

// Run runs a seed.
func Run(seed uint64, o Options) Result {
	w := newWorld(seed, o)
	w.run()
	w.counts.add(w.check.counts)
	r := Result{Seed: seed, Steps: w.steps, Elapsed: w.now, Counts: w.counts, Violation: w.check.violation, Hash: w.trace.hash}
	if r.Violation != nil {
		r.Report = w.report(seed)
	}
	if o.Trace {
		r.Trace = w.trace.format(-1)
	}
	return r
}

func newWorld(seed uint64, o Options) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 0x5eed)), trace: newTrace(o.Trace), growth: newGrowth(seed), damage: newDamage(seed)}
	w.settings = settings{
		lease: w.between(2*time.Second, 6*time.Second), settle: w.between(100*time.Millisecond, time.Second),
		grace: w.between(3*time.Second, 8*time.Second), maxLag: w.between(time.Second, 5*time.Second),
		length: w.between(20*time.Second, 40*time.Second),
		drop:   []int{0, 10, 50}[w.rng.IntN(3)], duplicate: []int{0, 20, 100}[w.rng.IntN(3)],
		slowest:    []time.Duration{5 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond}[w.rng.IntN(3)],
		faultEvery: w.between(300*time.Millisecond, 2*time.Second),
		eager:      w.chance(500), unclean: w.chance(250), altered: w.chance(250),
		balance: w.between(500*time.Millisecond, 8*time.Second),
	}
	w.settings.slow = []int{100, 300}[w.rng.IntN(2)]
	if w.chance(200) {
		w.settings.churn = w.between(50*time.Millisecond, 500*time.Millisecond)
	}
	nodes := 3 + w.rng.IntN(3)
	for range 1 + w.rng.IntN(3) {
		t := topic{replicas: []int{3, 3, 3, 2, 4, 1}[w.rng.IntN(6)], minInsync: []int{2, 2, 2, 1, 3}[w.rng.IntN(5)], synced: w.chance(500)}
		t.replicas = min(t.replicas, nodes)
		w.topics = append(w.topics, t)
	}
	if seed%2 == 0 {
		w.crowd = newCrowd(w, nodes)
	}
	for _, t := range w.topics {
		w.lowest, w.highest = append(w.lowest, t.minInsync), append(w.highest, t.minInsync)
	}
	w.check = newChecker(w.topics)
	w.etcd = newEtcd(w)
	for i := range 2 {
		w.controllers = append(w.controllers, newController(w, i))
	}
	for i := range nodes {
		w.nodes = append(w.nodes, newNode(w, cluster.NodeID(i+1)))
	}
	for i := range w.topics {
		w.clients = append(w.clients, newClient(w, i))
	}
	if w.crowd != nil {
		w.crowd.populate()
	}
	w.cut = make([][]bool, len(w.processes))
	for i := range w.cut {
		w.cut[i] = make([]bool, len(w.processes))
		w.stalled = append(w.stalled, make([]time.Duration, len(w.processes)))
	}
	return w
}

// run plays the faults, heals, and waits for rest.
func (w *world) run() {
	for _, c := range w.controllers {
		c.start()
	}
	for _, n := range w.nodes {
		n.start()
	}
	w.calm = true
	if w.crowd != nil {
		w.crowd.start()
	}
	w.until(time.Minute, w.created)
	w.calm = false
	for _, c := range w.clients {
		c.start()
	}
	w.later(time.Second, w.fault)
	if w.crowd != nil {
		w.crowd.begin()
	}
	if w.settings.churn > 0 {
		w.later(time.Second, w.churn)
	}
	if w.growth.every > 0 {
		w.later(time.Second, w.grow)
	}
	if w.damage.every > 0 {
		w.later(time.Second, w.damageOne)
	}
	w.until(w.now+w.settings.length, func() bool { return false })
	if w.check.violation != nil {
		return
	}
	w.heal()
	w.until(w.now+healWithin, w.atRest)
	if w.check.violation == nil && !w.stuck() {
		w.checkRest()
	}
}

// created creates the partitions once all nodes have registered; it reports whether
// they are there.
func (w *world) created() bool {
	nodes := make(rules.Nodes)
	for _, n := range w.nodes {
		if n.epoch == 0 {
			return false
		}
		nodes[n.id] = rules.NodeState{Epoch: n.epoch, Live: true}
	}
	for i, t := range w.topics {
		order := w.rng.Perm(len(w.nodes))[:t.replicas]
		replicas := make([]cluster.NodeID, t.replicas)
		for j, at := range order {
			replicas[j] = w.nodes[at].id
		}
		w.etcd.put(key{partitionKey, i}, rules.NewPartition(int32(i), replicas, nodes), 0)
	}
	return true
}

// maxSteps is far above what a run takes: time stands still.
const maxSteps = 2_000_000

// until runs events up to a time, until done or until an invariant is violated.
func (w *world) until(end time.Duration, done func() bool) {
	for w.check.violation == nil && !done() {
		e, ok := w.queue.pop()
		if !ok || e.at > end {
			if ok {
				w.queue.push(e)
			}
			w.now = max(w.now, end)
			return
		}
		w.now = e.at
		w.steps++
		w.trace.step(w.now, e.sequence)
		e.run()
		w.checkStep()
		if w.steps == maxSteps {
			w.check.fail(35, -1, "%d events do not bring it to an end", w.steps)
		}
	}
}

// time is the virtual time as the rules want it.
func (w *world) time() time.Time { return time.Unix(0, 0).Add(w.now) }

// chance says yes so many times of a thousand.
func (w *world) chance(perMille int) bool { return w.rng.IntN(1000) < perMille }

// between draws a duration.
func (w *world) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rng.Int64N(int64(high-low)+1))
}

func (w *world) node(id cluster.NodeID) *node { return w.nodes[int(id)-1] }

// allNodes returns how many nodes there are: those of coordinators follow those of
// storage.
func (w *world) allNodes() int {
	if w.crowd == nil {
		return len(w.nodes)
	}
	return len(w.nodes) + len(w.crowd.coordinators)
}

// report describes the violation.
func (w *world) report(seed uint64) string {
	v := w.check.violation
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, step %d, %s: invariant %d (%s) is violated in partition %d:\n  %s\n",
		seed, w.steps, w.now, v.Invariant, invariants[v.Invariant], v.Partition, v.Text)
	fmt.Fprintf(&b, "settings %+v\n", w.settings)
	for i, t := range w.topics {
		if v.Partition >= 0 && i != v.Partition {
			continue
		}
		h := w.check.partitions[i]
		fmt.Fprintf(&b, "partition %d: %+v, committed up to %d, excused %t\n", i, t, h.end(), h.excused)
		if p, ok := w.etcd.partition(i); ok {
			fmt.Fprintf(&b, "  etcd: leader %d epoch %d partition epoch %d replicas %v isr %v elr %v last leader %d epochs %v\n",
				p.Leader, p.LeaderEpoch, p.PartitionEpoch, p.Replicas, p.ISR, p.ELR, p.LastLeader, p.Epochs)
		}
		for _, n := range w.nodes {
			fmt.Fprintf(&b, "  %s\n", n.describe(i))
		}
	}
	for _, n := range w.nodes {
		registered, status, live := w.etcd.entries[key{nodeKey, int(n.id)}], w.etcd.entries[key{statusKey, int(n.id)}], w.etcd.entries[key{liveKey, int(n.id)}]
		fmt.Fprintf(&b, "%s in etcd: epoch %d %+v, status %+v, live key of %d with lease %d; up %t paused %t epoch %d\n",
			n.name, registered.mod, registered.value, status.value, live.mod, live.lease, n.up, n.paused, n.epoch)
	}
	for _, c := range w.controllers {
		fmt.Fprintf(&b, "%s: up %t paused %t own %v leads %t opening %t busy %t judging %t, %d jobs, catalog at %d of %d, written %d, elections %v\n",
			c.name, c.up, c.paused, c.own, c.leads, c.opening, c.busy, c.judging, len(c.jobs), c.catalog.revision, w.etcd.revision, c.written, c.catalog.elections)
	}
	b.WriteString("trace of the partition:\n")
	b.WriteString(w.trace.format(v.Partition))
	return b.String()
}

func (c *Counts) add(o Counts) {
	c.Acked += o.Acked
	c.Consumed += o.Consumed
	c.Elections += o.Elections
	c.Deletions += o.Deletions
	c.Unclean += o.Unclean
	c.ISRChanges += o.ISRChanges
	c.Truncations += o.Truncations
	c.Restarts += o.Restarts
	c.Damages += o.Damages
	c.Withdrawals += o.Withdrawals
	c.BegunAnew += o.BegunAnew
	c.Crashes += o.Crashes
	c.MachineCrashes += o.MachineCrashes
	c.CleanStops += o.CleanStops
	c.Duplicates += o.Duplicates
	c.Fences += o.Fences
	c.Terms += o.Terms
	c.MassLosses += o.MassLosses
	c.UnknownProducers += o.UnknownProducers
	c.Truncated += o.Truncated
	c.Preferred += o.Preferred
	c.Altered += o.Altered
	c.Grown += o.Grown
	c.Superseded += o.Superseded
	c.Coordinators += o.Coordinators
	c.CoordinatorCrashes += o.CoordinatorCrashes
	c.Loads += o.Loads
	c.Fenced += o.Fenced
	c.FencedOff += o.FencedOff
	c.Doubtful += o.Doubtful
	c.Assignments += o.Assignments
	c.Revoked += o.Revoked
	c.MemberCrashes += o.MemberCrashes
	c.Lost += o.Lost
	c.Processed += o.Processed
	c.Committed += o.Committed
	c.CommitsRefused += o.CommitsRefused
	c.TopicsDeleted += o.TopicsDeleted
	c.Resets += o.Resets
	c.OffsetsDeleted += o.OffsetsDeleted
	c.GroupsDeleted += o.GroupsDeleted
	c.GroupsExpired += o.GroupsExpired
	c.OffsetsPurged += o.OffsetsPurged
	c.Compactions += o.Compactions
	c.Compacted += o.Compacted
	c.TombstonesGone += o.TombstonesGone
	c.InstancesFenced += o.InstancesFenced
	c.Overlaps += o.Overlaps
	c.AcrossFailovers += o.AcrossFailovers
}
