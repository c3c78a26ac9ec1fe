package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// node is a storage node: a machine, its disk, and the process on it.
type node struct {
	process
	w  *world
	id cluster.NodeID

	// The machine. boot counts its boots, directory the data directories it has had.
	boot, directory int
	files           []*file
	// clean is the clean marker.
	clean bool
	// lossy says, by partition, that the disk may lack records that its replica had,
	// until a process with an epoch above lostAt is in the ISR.
	lossy  []bool
	lostAt []cluster.NodeEpoch
	// everLossy says, by partition, that the disk may once have lost what was written,
	// as far as anybody can know.
	everLossy []bool

	// The process. epoch is 0 until it is registered.
	epoch    cluster.NodeEpoch
	version  int64
	view     *image
	replicas []*replica
	// stopping says that it is to stop in good order, silent that it renews its lease
	// no more.
	stopping, silent bool
}

func newNode(w *world, id cluster.NodeID) *node {
	n := &node{w: w, id: id, boot: 1, directory: 1, lossy: make([]bool, len(w.topics)), lostAt: make([]cluster.NodeEpoch, len(w.topics)), everLossy: make([]bool, len(w.topics))}
	for range w.topics {
		n.files = append(n.files, &file{})
	}
	w.register(&n.process, fmt.Sprintf("node%d", id))
	return n
}

// start begins a life of the process: it removes the clean marker, opens its files,
// and registers.
func (n *node) start() {
	n.begin()
	clean := n.clean
	n.clean = false
	n.epoch, n.version, n.view, n.stopping, n.silent = 0, 0, nil, false, false
	n.replicas = make([]*replica, len(n.files))
	damaged := false
	for i, f := range n.files {
		damaged = damaged || f.failed
		n.replicas[i] = newReplica(n, i, f)
	}
	for i := range n.files {
		// Nobody knows which of them.
		n.everLossy[i] = n.everLossy[i] || damaged
	}
	n.w.note(-1, n.name, "start", int64(n.boot), int64(n.directory), number(clean), number(damaged))
	n.register(admission{n.id, n.boot, n.directory, clean, damaged})
}

func number(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

func (n *node) register(a admission) {
	c := n.w.anyController()
	n.w.call(&n.process, c, func(answer func(any)) { c.register(a, answer) }, func(answer any, known bool) {
		r, ok := answer.(registered)
		switch {
		case n.epoch != 0:
		case !known || !ok:
			n.w.after(&n.process, n.w.between(50*time.Millisecond, 300*time.Millisecond), func() { n.register(a) })
		default:
			n.epoch, n.version = r.epoch, r.version
			n.w.note(-1, n.name, "registered", int64(n.epoch), n.version)
			n.w.checkRegistered(n)
			n.serve()
		}
	})
}

// serve begins what a process does once it is registered.
func (n *node) serve() {
	w := n.w
	n.heartbeat()
	w.every(&n.process, 300*time.Millisecond, 700*time.Millisecond, func() {
		for _, r := range n.replicas {
			r.tick()
		}
	})
	w.every(&n.process, time.Second, 4*time.Second, func() {
		// The kernel writes back what nobody has asked for.
		for _, f := range n.files {
			f.synced = f.written
		}
	})
}

func (n *node) heartbeat() {
	w, c := n.w, n.w.anyController()
	w.after(&n.process, w.settings.lease/3, n.heartbeat)
	if n.silent {
		return
	}
	id, epoch := n.id, n.epoch
	n.w.call(&n.process, c, func(answer func(any)) {
		c.ask(func() any { return w.etcd.heartbeat(id, epoch, w.settings.lease) }, func(current any, known bool) {
			if known {
				answer(current)
			}
		})
	}, func(current any, known bool) {
		if known && !current.(bool) {
			// A later registration, of this very process if its answer was lost.
			n.crash()
			w.later(100*time.Millisecond, n.startAgain)
		}
	})
}

// show takes over what a metadata node shows, unless more is known.
func (n *node) show(i *image) {
	if n.epoch == 0 || i.revision < n.version || n.view != nil && i.revision <= n.view.revision {
		return
	}
	n.view = i
	for index, p := range i.partitions {
		n.replicas[index].setMinInsync(i.minInsync[index])
		if p.Replicas != nil && slices.Contains(p.Replicas, n.id) {
			n.replicas[index].assign(p)
		}
	}
}

// live returns the epoch of a node's process that counts as live in the view and is
// not about to stop.
func (n *node) live(id cluster.NodeID) (cluster.NodeEpoch, bool) {
	if n.view == nil {
		return 0, false
	}
	epoch := n.view.epochs[int(id)-1]
	return epoch, epoch != 0
}

// crash kills the process; the machine goes on.
func (n *node) crash() {
	if !n.up {
		return
	}
	n.w.counts.Crashes++
	n.w.note(-1, n.name, "crash")
	n.end()
	for _, f := range n.files {
		f.crashProcess(n.w)
	}
}

// crashMachine makes the machine lose its power.
func (n *node) crashMachine() {
	n.w.counts.MachineCrashes++
	n.w.note(-1, n.name, "machine crash")
	n.end()
	n.boot++
	for i, f := range n.files {
		before := f.written
		f.crashMachine(n.w)
		n.everLossy[i] = n.everLossy[i] || !n.w.topics[i].synced
		if len(f.ops) < before && !n.w.topics[i].synced {
			n.lose(i)
		}
	}
}

// loseDirectory makes the node come back with an empty one.
func (n *node) loseDirectory() {
	n.w.note(-1, n.name, "directory lost")
	n.end()
	n.directory++
	n.clean = false
	for i := range n.files {
		if n.holds(i) {
			n.lose(i)
		}
		n.files[i] = &file{}
	}
}

// lose notes that a replica may have lost records.
func (n *node) lose(i int) {
	n.everLossy[i] = true
	n.lossy[i], n.lostAt[i] = true, n.w.etcd.node(int(n.id)).epoch
}

func (n *node) holds(i int) bool {
	p, ok := n.w.etcd.partition(i)
	return ok && slices.Contains(p.Replicas, n.id)
}

// startAgain starts the process if it does not run.
func (n *node) startAgain() {
	if !n.up {
		n.start()
	}
}

// current says whether this is the node's latest process and has handed on all that
// the members of an ISR of these epochs are bound to have.
func (n *node) current(p rules.PartitionState) bool {
	known := n.w.etcd.node(int(n.id))
	return n.up && n.epoch != 0 && n.epoch == known.epoch && p.Epochs[slices.Index(p.Replicas, n.id)] >= known.history.CleanSince
}

// describe shows a replica of a partition.
func (n *node) describe(i int) string {
	var b strings.Builder
	f := n.files[i]
	fmt.Fprintf(&b, "%s up %t paused %t epoch %d boot %d directory %d lossy %t; ops %d written %d synced %d", n.name, n.up, n.paused, n.epoch, n.boot, n.directory, n.lossy[i], len(f.ops), f.written, f.synced)
	if n.replicas == nil {
		return b.String()
	}
	r := n.replicas[i]
	p, _ := r.rules.Assignment()
	fmt.Fprintf(&b, "\n    %s epoch %d partition epoch %d isr %v possible %v start %d hw %d end %d next %d epoch start %d epochs %v",
		r.rules.Role(), p.LeaderEpoch, p.PartitionEpoch, p.ISR, r.possible, r.rules.LogStart(), r.rules.HighWatermark(), r.rules.LogEnd(), r.rules.Next(), r.rules.EpochStart(), r.rules.Epochs())
	from := max(0, len(r.batches)-12)
	for _, x := range r.batches[from:] {
		fmt.Fprintf(&b, " [%d-%d e%d v%d]", x.base, x.last, x.epoch, x.value)
	}
	return b.String()
}
