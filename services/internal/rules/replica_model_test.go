package rules

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// storedBatch is a batch in a model log. writer and value make it unlike any other.
type storedBatch struct {
	BatchBounds
	writer cluster.NodeID
	value  int
}

// host is a node with a replica and its log. What is queued lies in the log beyond
// what is written.
type host struct {
	*Replica
	id    cluster.NodeID
	epoch cluster.NodeEpoch
	up    bool
	log   []storedBatch
	// stored is what a restart finds.
	stored ReplicaLog
	// since is the first state of the partition that the process may be told.
	since   int
	history History
	clean   bool
}

// written returns the part of the log that is written.
func (h *host) written() []storedBatch {
	return slices.DeleteFunc(slices.Clone(h.log), func(b storedBatch) bool { return b.LastOffset >= h.LogEnd() })
}

// end returns the log end that counts for the host, up or down.
func (h *host) end() int64 {
	if h.up {
		return h.LogEnd()
	}
	return h.stored.LogEnd
}

// sent is a message on its way; exactly one of the bodies is set.
type sent struct {
	to cluster.NodeID
	// process is the one that it is sent to: it comes on a stream of that process.
	process  cluster.NodeEpoch
	position *Position
	data     *Replicated
	batches  []storedBatch
	proposal *ISRProposal
	answer   *answered
}

type answered struct {
	proposal ISRProposal
	accepted bool
	current  cluster.Partition
}

// world runs one partition on three hosts, with a controller that applies the rules
// of elections, and a network that drops, delays, repeats and reorders.
type world struct {
	t     *rapid.T
	topic TopicTraits
	hosts map[cluster.NodeID]*host
	nodes Nodes
	// states are all that the partition went through, the last one holds.
	states []PartitionState
	net    []sent
	now    time.Time
	// nodeEpoch is the latest that was given to a process, value to a batch.
	nodeEpoch cluster.NodeEpoch
	value     int
	// known is what was below a leader's high watermark once, by base offset, and
	// highWatermark the highest of these.
	known         map[int64]storedBatch
	highWatermark int64
	// lowWatermark is the highest that a leader had.
	lowWatermark int64
	// writers names the process that appended in an epoch.
	writers map[cluster.LeaderEpoch]cluster.NodeEpoch
	// happened counts what the rules have decided, to tell a run that shows something
	// from one in which nothing happens.
	happened map[string]int
	// healing says that nothing is held back any more.
	healing bool
}

func newWorld(t *rapid.T, minInsync int, happened map[string]int) *world {
	w := &world{
		happened: happened,
		t:        t, topic: TopicTraits{MinInsyncReplicas: minInsync}, hosts: map[cluster.NodeID]*host{}, nodes: Nodes{},
		now: time.Unix(1000, 0), known: map[int64]storedBatch{}, writers: map[cluster.LeaderEpoch]cluster.NodeEpoch{},
	}
	replicas := ids{1, 2, 3}
	for _, id := range replicas {
		w.hosts[id] = &host{id: id, clean: true}
		w.register(w.hosts[id])
	}
	w.states = []PartitionState{NewPartition(0, replicas, w.nodes)}
	return w
}

func (w *world) state() PartitionState { return w.states[len(w.states)-1] }

func (w *world) change(p PartitionState) { w.states = append(w.states, p) }

// register starts a process on a host that is down, on what its log kept.
func (w *world) register(h *host) {
	w.nodeEpoch++
	if h.epoch > 0 {
		h.history = h.history.After(h.epoch, Restart{Clean: h.clean, SameBoot: true, SameDirectory: true})
	}
	h.epoch, h.up, h.clean = w.nodeEpoch, true, false
	r := NewReplica(h.id, w.topic.MinInsyncReplicas, h.stored)
	h.Replica = &r
	w.nodes[h.id] = NodeState{Epoch: h.epoch, Live: true, History: h.history.Resolve(h.epoch)}
	if len(w.states) > 0 {
		w.elect()
		h.since = len(w.states) - 1
	}
}

func (w *world) elect() {
	if next, changed := Elect(w.state(), w.nodes, w.topic); changed {
		w.change(next)
	}
}

// crash ends a process: what is queued is lost, and the checkpoint of the high
// watermark lags.
func (w *world) crash(h *host, clean bool) {
	h.log = h.written()
	h.stored = ReplicaLog{
		Epochs: h.Epochs().TruncateEnd(h.LogEnd()), LogStart: min(h.LogStart(), h.LogEnd()), LogEnd: h.LogEnd(),
		HighWatermark: rapid.Int64Range(0, h.HighWatermark()).Draw(w.t, "checkpoint"),
	}
	h.up, h.clean = false, clean
	if clean {
		// It deregisters.
		w.fence(h.id)
	}
}

func (w *world) fence(id cluster.NodeID) {
	n := w.nodes[id]
	n.Live = false
	w.nodes[id] = n
}

func (w *world) send(m sent) { w.net = append(w.net, m) }

// tell shows a host a state of the partition.
func (w *world) tell(h *host, p cluster.Partition) { w.applied(h, h.Apply(p, w.now)) }

// applied checks a leadership that begins: it has all that was ever known (10).
func (w *world) applied(h *host, a Applied) {
	if a.TooNew {
		w.t.Fatalf("node %d was told of an epoch below %d", h.id, h.Epochs().Latest())
	}
	if !a.Began || h.Epoch() != w.state().LeaderEpoch {
		// Who learns late that it was to lead may know less; it is superseded.
		return
	}
	if h.LogEnd() < w.highWatermark {
		w.t.Fatalf("invariant 10: node %d leads epoch %d with log end %d, %d was acknowledged", h.id, h.Epoch(), h.LogEnd(), w.highWatermark)
	}
	if h.EpochStart() < w.highWatermark {
		w.t.Fatalf("epoch %d begins at %d, below the high watermark %d", h.Epoch(), h.EpochStart(), w.highWatermark)
	}
}

// append adds a batch to a leader's log.
func (w *world) append(h *host) {
	if by, ok := w.writers[h.Epoch()]; ok && by != h.epoch {
		w.t.Fatalf("invariant 9: processes %d and %d append in epoch %d", by, h.epoch, h.Epoch())
	}
	w.writers[h.Epoch()] = h.epoch
	w.value++
	base := h.Next()
	last := base + rapid.Int64Range(0, 2).Draw(w.t, "records")
	h.log = append(h.log, storedBatch{BatchBounds{base, last, h.Epoch()}, h.id, w.value})
	h.Queue(last + 1)
}

// commit writes some of what is queued.
func (w *world) commit(h *host, all bool) {
	var ends []int64
	for _, b := range h.log {
		if b.LastOffset >= h.LogEnd() {
			ends = append(ends, b.LastOffset+1)
		}
	}
	switch {
	case len(ends) == 0:
	case all:
		h.Committed(ends[len(ends)-1])
	default:
		h.Committed(rapid.SampledFrom(ends).Draw(w.t, "written up to"))
	}
	h.StartCommitted(min(h.LogStart(), h.LogEnd()))
}

// start returns where the batch begins that holds the log start.
func (h *host) start() int64 {
	for _, b := range h.log {
		if b.LastOffset >= h.LogStart() {
			return min(b.BaseOffset, h.LogStart())
		}
	}
	return h.LogStart()
}

// fetched is what a leader does with a position: it answers with up to n messages.
func (w *world) fetched(h *host, p Position, n int) {
	answer := func(in Replicated, batches []storedBatch) {
		w.send(sent{to: p.Node, process: p.NodeEpoch, data: &in, batches: batches})
	}
	f := h.Fetch(p, w.now)
	w.happened[fmt.Sprint("fetch ", f.Outcome)]++
	base := Replicated{LeaderEpoch: h.Epoch(), Follows: p.LogEnd, HighWatermark: h.HighWatermark(), LogStart: h.LogStart()}
	restart := func() {
		h.ServesFrom(h.start())
		base.Restarts, base.RestartOffset = true, h.start()
		answer(base, nil)
	}
	switch f.Outcome {
	case FetchDiverges:
		base.Diverges, base.Epoch, base.End = true, f.Epoch, f.End
		answer(base, nil)
	case FetchRestarts:
		restart()
	case FetchServed:
		rest := slices.DeleteFunc(h.written(), func(b storedBatch) bool { return b.LastOffset < p.LogEnd })
		if len(rest) > 0 && rest[0].BaseOffset < p.LogEnd {
			restart()
			return
		}
		for range n {
			some := rest
			if !w.healing {
				some = rest[:min(len(rest), rapid.IntRange(0, 2).Draw(w.t, "batches"))]
			}
			rest = rest[len(some):]
			in := base
			for _, b := range some {
				in.Batches = append(in.Batches, b.BatchBounds)
			}
			if len(some) > 0 {
				last := some[len(some)-1].LastOffset
				for _, e := range h.Epochs() {
					if e.StartOffset >= in.Follows && e.StartOffset <= last {
						in.Epochs = append(in.Epochs, e)
					}
				}
				base.Follows = last + 1
			}
			answer(in, some)
		}
	}
}

// received is what a follower does with what the leader sent.
func (w *world) received(h *host, in Replicated, batches []storedBatch) {
	r := h.Receive(in)
	w.happened[fmt.Sprint("receive ", r.Outcome)]++
	switch r.Outcome {
	case ReceiveInvalid:
		w.t.Fatalf("node %d at %d finds %+v invalid, with epochs %v", h.id, h.Next(), in, h.Epochs())
	case ReceiveAppends:
		h.QueueCopies(in)
		h.log = append(slices.Clip(h.log), batches...)
		h.AdvanceStart(r.LogStart)
		h.log = slices.DeleteFunc(slices.Clone(h.log), func(b storedBatch) bool { return b.LastOffset < h.LogStart() })
	case ReceiveTruncates:
		w.commit(h, true)
		end := r.Offset
		h.log = slices.DeleteFunc(slices.Clone(h.log), func(b storedBatch) bool {
			if b.LastOffset < r.Offset {
				return false
			}
			end = min(end, max(b.BaseOffset, h.LogStart()))
			return true
		})
		h.Cut(end)
	case ReceiveRestarts:
		h.log = nil
		h.Restart(r.Offset)
	}
}

// deliver brings a message to where it goes.
func (w *world) deliver(m sent) {
	if m.proposal != nil {
		current := w.state()
		next, err := ProposeISR(current, *m.proposal, w.nodes, w.topic)
		if err == nil {
			w.change(next)
			w.happened["proposal accepted"]++
			if len(next.ISR) > len(current.ISR) {
				w.happened["ISR expanded"]++
			}
		} else {
			w.happened["proposal refused"]++
		}
		w.send(sent{to: m.to, process: m.process, answer: &answered{*m.proposal, err == nil, next.Partition}})
		return
	}
	h := w.hosts[m.to]
	if !h.up || m.process != 0 && m.process != h.epoch {
		return
	}
	switch {
	case m.position != nil:
		n := 1
		if !w.healing {
			n = rapid.IntRange(1, 2).Draw(w.t, "messages")
		}
		w.fetched(h, *m.position, n)
	case m.data != nil:
		w.received(h, *m.data, m.batches)
	case m.answer != nil:
		w.applied(h, h.Answer(m.answer.proposal, m.answer.accepted, m.answer.current, w.now))
	}
}

// live is what a leader believes of the others: it may be wrong about leases.
func (w *world) live(id cluster.NodeID) (cluster.NodeEpoch, bool) { return w.nodes[id].Epoch, true }

// position lets a follower state its position.
func (w *world) position(h *host) {
	if p, ok := h.Position(h.epoch); ok {
		assignment, _ := h.Assignment()
		w.send(sent{to: assignment.Leader, position: &p})
	}
}

// do takes one step and holds every replica against what was ever known.
func (w *world) do(step func()) {
	before := map[cluster.NodeID]int64{}
	for id, h := range w.hosts {
		before[id] = h.HighWatermark()
	}
	step()
	w.check(before)
}

// check holds every replica against what was ever known. before are the high
// watermarks before the latest step.
func (w *world) check(before map[cluster.NodeID]int64) {
	t := w.t
	for _, h := range w.hosts {
		if !h.up {
			continue
		}
		if h.HighWatermark() > h.LogEnd() || h.LogEnd() > h.Next() {
			t.Fatalf("node %d: high watermark %d, log end %d, next %d", h.id, h.HighWatermark(), h.LogEnd(), h.Next())
		}
		if h.Role() != Leading {
			continue
		}
		if h.HighWatermark() > before[h.id] {
			w.moved(h)
		}
		if h.LowWatermark() > w.lowWatermark {
			w.happened["low watermark moved"]++
			w.lowWatermark = h.LowWatermark()
		}
	}
	for _, h := range w.hosts {
		w.checkLog(h)
	}
	p := w.state()
	for _, id := range slices.Concat(p.ISR, p.ELR) {
		if w.hosts[id].end() < w.highWatermark {
			t.Fatalf("invariant 11: node %d is in ISR %v or ELR %v with log end %d, %d was acknowledged", id, p.ISR, p.ELR, w.hosts[id].end(), w.highWatermark)
		}
		start := w.hosts[id].stored.LogStart
		if w.hosts[id].up {
			start = w.hosts[id].StartWritten()
		}
		if start < w.lowWatermark {
			t.Fatalf("invariant 20: node %d is in ISR %v or ELR %v with log start %d, all below %d was deleted", id, p.ISR, p.ELR, start, w.lowWatermark)
		}
	}
}

// checkLog: below its high watermark a log is what was known (8), and its epochs
// rise along it and stand in its table (9).
func (w *world) checkLog(h *host) {
	t := w.t
	highWatermark, epochs, start := h.stored.HighWatermark, h.stored.Epochs, h.stored.LogStart
	if h.up {
		highWatermark, epochs, start = h.HighWatermark(), h.Epochs(), h.LogStart()
	}
	epoch := NoEpoch
	for _, b := range h.log {
		if b.Epoch < epoch {
			t.Fatalf("invariant 9: node %d: epoch %d follows %d at %d", h.id, b.Epoch, epoch, b.BaseOffset)
		}
		epoch = b.Epoch
		if got := epochs.At(max(b.BaseOffset, start)); b.LastOffset >= start && got != b.Epoch {
			t.Fatalf("node %d: the batch at %d is of epoch %d, its table %v says %d", h.id, b.BaseOffset, b.Epoch, epochs, got)
		}
		if b.LastOffset >= highWatermark || b.LastOffset < start {
			continue
		}
		if known, ok := w.known[b.BaseOffset]; !ok || known != b {
			t.Fatalf("invariant 8: node %d has %+v below its high watermark %d, known is %+v", h.id, b, highWatermark, known)
		}
	}
}

// moved checks a high watermark that a leader has moved, and what it shows.
func (w *world) moved(h *host) {
	t, p := w.t, w.state()
	w.happened["high watermark moved"]++
	if len(h.possible) > 0 {
		w.happened["high watermark moved during a proposal"]++
	}
	assignment, _ := h.Assignment()
	if have, need := h.InSync(); have < need {
		t.Fatalf("invariant 13: node %d moves its high watermark with ISR %v", h.id, assignment.ISR)
	}
	if h.Epoch() < p.LeaderEpoch {
		w.happened["high watermark moved by a superseded leader"]++
	}
	if h.Epoch() == p.LeaderEpoch {
		maximal := slices.Concat(assignment.ISR, assignment.ELR, h.possible)
		for _, id := range slices.Concat(p.ISR, p.ELR) {
			if !slices.Contains(maximal, id) {
				t.Fatalf("invariant 12: node %d is in ISR %v or ELR %v, and not in %v of leader %d", id, p.ISR, p.ELR, maximal, h.id)
			}
		}
		for _, id := range maximal {
			if end := w.hosts[id].end(); end < h.HighWatermark() {
				t.Fatalf("invariant 14: leader %d moves its high watermark to %d, node %d ends at %d", h.id, h.HighWatermark(), id, end)
			}
		}
	}
	for _, b := range h.log {
		if b.LastOffset >= h.HighWatermark() {
			continue
		}
		if known, ok := w.known[b.BaseOffset]; ok && known != b {
			t.Fatalf("invariant 2: leader %d shows %+v, earlier it was %+v", h.id, b, known)
		}
		w.known[b.BaseOffset] = b
	}
	w.highWatermark = max(w.highWatermark, h.HighWatermark())
}

// heal ends all faults and lets the hosts talk until all logs are equal (35).
func (w *world) heal() {
	w.net, w.healing = nil, true
	for _, id := range slices.Sorted(maps.Keys(w.hosts)) {
		h := w.hosts[id]
		if h.up && w.nodes[id].Leaving {
			w.crash(h, true)
		}
		if !h.up {
			w.register(h)
		}
		n := w.nodes[id]
		n.Live = true
		w.nodes[id] = n
	}
	w.elect()
	for range 300 {
		p := w.state()
		done := len(p.ISR) == len(w.hosts)
		for _, h := range w.hosts {
			done = done && h.HighWatermark() == w.hosts[1].Next() && h.LogEnd() == h.HighWatermark() && h.Next() == h.LogEnd() && h.Epoch() == p.LeaderEpoch
		}
		if done && len(w.net) == 0 {
			return
		}
		if len(w.net) > 0 {
			m := w.net[0]
			w.net = w.net[1:]
			w.do(func() { w.deliver(m) })
		} else {
			for _, id := range p.Replicas {
				h := w.hosts[id]
				w.do(func() { h.SetMinInsync(w.topic.MinInsyncReplicas) })
				w.do(func() { w.tell(h, p.Partition) })
				w.do(func() { w.commit(h, true) })
				w.position(h)
				if h.Role() == Leading {
					h.Propose(w.now, time.Hour, w.live)
					if proposal, ok := h.Proposal(); ok {
						w.send(sent{to: h.id, process: h.epoch, proposal: &proposal})
					}
				}
			}
		}
	}
	for _, h := range w.hosts {
		w.t.Logf("node %d: %s in epoch %d, start %d, high watermark %d, end %d, next %d, %v: %v", h.id, h.Role(), h.Epoch(), h.LogStart(), h.HighWatermark(), h.LogEnd(), h.Next(), h.Epochs(), h.log)
	}
	w.t.Fatalf("the replicas do not agree after all faults have ended: %+v", w.state())
}
