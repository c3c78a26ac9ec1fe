package sim

import (
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// keyKind is the folder of a key.
type keyKind uint8

const (
	// nodeKey holds a registration; its mod revision is the node epoch.
	nodeKey keyKind = iota
	// statusKey holds what the controller makes of the node.
	statusKey
	// liveKey is leased.
	liveKey
	partitionKey
	// electionKey is leased; the candidate whose key is the oldest has won.
	electionKey
	// topicKey holds a topic's min.insync.replicas once that was changed.
	topicKey
	// termKey is written by the first transaction of a term, and by those that
	// write nothing else.
	termKey
	// sourceKey holds a topic that groups read, by its name.
	sourceKey
)

type key struct {
	kind keyKind
	id   int
}

// registration is what stands in a nodeKey.
type registration struct {
	boot, directory int
	history         rules.History
}

// status is what stands in a statusKey.
type status struct {
	fenced, deregistered, leaving bool
}

// stored is a key's value with the revisions that etcd keeps.
type stored struct {
	value       any
	create, mod int64
	lease       int64
}

// change is what a watcher is told: stored is the zero value for a deleted key.
type change struct {
	revision int64
	key      key
	stored   stored
}

type lease struct {
	id      int64
	ttl     time.Duration
	expires time.Duration
	keys    []key
}

// etcd is a model of a healthy etcd cluster: a linear history of transactions.
// What is not modelled is that it may lose its own quorum, other than by nobody
// reaching it.
type etcd struct {
	process
	w        *world
	revision int64
	entries  map[key]stored
	leases   map[int64]*lease
	history  []change
	// partitions and nodes hold what stands in entries, for the checks of each step.
	partitions []rules.PartitionState
	nodes      []registeredNode
}

type registeredNode struct {
	epoch   cluster.NodeEpoch
	history rules.History
	fenced  bool
}

func newEtcd(w *world) *etcd {
	e := &etcd{w: w, entries: make(map[key]stored), leases: make(map[int64]*lease), partitions: make([]rules.PartitionState, len(w.topics))}
	w.register(&e.process, "etcd")
	e.begin()
	return e
}

// comparison is a condition of a transaction: the key was last written at mod, or
// is absent with mod 0; or, with present, merely exists; or was created at create.
type comparison struct {
	key     key
	mod     int64
	present bool
	create  int64
}

func (e *etcd) holds(c comparison) bool {
	s := e.entries[c.key]
	switch {
	case c.create != 0:
		return s.create == c.create
	case c.present:
		return s.mod != 0
	default:
		return s.mod == c.mod
	}
}

// operation writes a key, or deletes it with a nil value.
type operation struct {
	key   key
	value any
	lease int64
	// unclean says that an operator has asked for a partition's state.
	unclean bool
}

// committed is the outcome of a controller's transaction.
type committed struct {
	revision   int64
	conflict   bool
	superseded bool
}

// commit is a transaction of a term: it holds only while the election key that
// won is there.
func (e *etcd) commit(term term, comparisons []comparison, operations []operation) committed {
	if !e.holds(comparison{key: term.key, create: term.create}) {
		return committed{superseded: true}
	}
	for _, c := range comparisons {
		if !e.holds(c) {
			return committed{conflict: true}
		}
	}
	for _, o := range operations {
		if o.lease != 0 && e.leases[o.lease] == nil {
			return committed{conflict: true} // It has run out before it was used.
		}
	}
	e.w.check.termWrites(term.create)
	e.write(operations)
	return committed{revision: e.revision}
}

// put writes one key without conditions.
func (e *etcd) put(k key, value any, lease int64) {
	e.write([]operation{{key: k, value: value, lease: lease}})
}

// write writes all operations at one revision.
func (e *etcd) write(operations []operation) {
	e.revision++
	for _, o := range operations {
		before := e.entries[o.key]
		if o.value == nil {
			delete(e.entries, o.key)
			e.history = append(e.history, change{revision: e.revision, key: o.key})
			continue
		}
		s := stored{value: o.value, create: before.create, mod: e.revision, lease: o.lease}
		if before.mod == 0 {
			s.create = e.revision
		}
		if o.lease != 0 {
			l := e.leases[o.lease]
			l.keys = append(l.keys, o.key)
		}
		e.entries[o.key] = s
		e.history = append(e.history, change{revision: e.revision, key: o.key, stored: s})
		switch o.key.kind {
		case partitionKey:
			state, _ := before.value.(rules.PartitionState)
			e.partitions[o.key.id] = o.value.(rules.PartitionState)
			e.w.agreed(o.key.id, state, before.mod != 0, e.partitions[o.key.id], o.unclean)
		case nodeKey:
			n := e.node(o.key.id)
			epoch := cluster.NodeEpoch(s.mod)
			if epoch <= n.epoch {
				e.w.check.fail(24, -1, "node %d has epoch %d after %d", o.key.id, epoch, n.epoch)
			}
			n.epoch, n.history = epoch, o.value.(registration).history.Resolve(epoch)
		case statusKey:
			e.node(o.key.id).fenced = o.value.(status).fenced
		default:
		}
	}
	for _, c := range e.w.controllers {
		e.notify(c)
	}
}

// notify tells a controller's watch what is there by now.
func (e *etcd) notify(c *controller) {
	revision := e.revision
	e.w.send(&e.process, &c.process, func() { c.watched(revision) })
}

// grant returns the id of a new lease.
func (e *etcd) grant(ttl time.Duration) int64 {
	e.revision++
	l := &lease{id: e.revision, ttl: ttl, expires: e.w.now + ttl}
	e.leases[l.id] = l
	e.expire(l)
	return l.id
}

// expire waits for the end of a lease.
func (e *etcd) expire(l *lease) {
	e.w.queue.add(l.expires, func() {
		switch {
		case e.leases[l.id] == nil:
		case e.w.now < l.expires:
			e.expire(l)
		default:
			e.revoke(l.id)
		}
	})
}

// keepAlive renews a lease; it reports whether there is one.
func (e *etcd) keepAlive(id int64) bool {
	l := e.leases[id]
	if l == nil {
		return false
	}
	l.expires = e.w.now + l.ttl
	return true
}

// revoke ends a lease and deletes its keys.
func (e *etcd) revoke(id int64) {
	l := e.leases[id]
	if l == nil {
		return
	}
	delete(e.leases, id)
	var gone []operation
	for _, k := range l.keys {
		if e.entries[k].lease == id {
			gone = append(gone, operation{key: k})
		}
	}
	if len(gone) > 0 {
		e.write(gone)
	}
}

// revokeAll ends the leases of all nodes, as a stall of etcd does.
func (e *etcd) revokeAll() {
	var ids []int64
	for i := range e.w.allNodes() {
		if s := e.entries[key{liveKey, i + 1}]; s.lease != 0 {
			ids = append(ids, s.lease)
		}
	}
	for _, id := range slices.Compact(ids) {
		e.revoke(id)
	}
}

// heartbeat renews the live key of a node's process, or gives it one again. It
// reports whether the process is the node's latest.
func (e *etcd) heartbeat(id cluster.NodeID, epoch cluster.NodeEpoch, ttl time.Duration) bool {
	if e.entries[key{nodeKey, int(id)}].mod != int64(epoch) {
		return false
	}
	if s := e.entries[key{liveKey, int(id)}]; s.mod != 0 {
		e.keepAlive(s.lease)
		return true
	}
	e.put(key{liveKey, int(id)}, true, e.grant(ttl))
	return true
}

// partition returns a partition as it was agreed on last.
func (e *etcd) partition(i int) (rules.PartitionState, bool) {
	return e.partitions[i], e.partitions[i].Replicas != nil
}

// node returns what is registered of a node.
func (e *etcd) node(id int) *registeredNode {
	for len(e.nodes) <= id {
		e.nodes = append(e.nodes, registeredNode{})
	}
	return &e.nodes[id]
}
