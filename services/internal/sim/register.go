package sim

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/anishathalye/porcupine"

	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// Committed offsets as registers: what was read and written has to have happened in
// some order, each at one moment between its beginning and its end.

// register is the history of the committed offset of a group in a partition.
type register struct {
	operations []operationFact
}

// operationFact is a read or a write of a register. Times are places in the order of
// all that happened.
type operationFact struct {
	began, ended int64
	write        bool
	// commit is what was written or read: each write has a number of its own, and 0 is
	// what nobody has written.
	commit int64
}

func commitID(o *groups.OffsetRecord) int64 {
	id, _ := strconv.ParseInt(o.Metadata, 10, 64)
	return id
}

// read is what a reader was told; began is when it had asked.
func (h *groupHistory) read(key offsetKey, began, ended, commit int64) {
	if c := h.commits[commit]; c != nil && c.by < h.epoch {
		h.k.counts.AcrossFailovers++
	}
	r := h.register(key)
	r.operations = append(r.operations, operationFact{began: began, ended: ended, commit: commit})
}

// wrote is what came of a commit: with an answer that it was recorded, ended is when
// that was given. Otherwise it may have been, unless the log does not have it.
func (h *groupHistory) wrote(key offsetKey, began, ended, commit int64, ok bool) {
	c := h.commits[commit]
	if ok {
		if !c.logged {
			h.fail(28, "a commit of member %s of offset %d is answered, and the log does not have it", c.member, c.offset)
		}
	} else {
		ended = math.MaxInt64
	}
	r := h.register(key)
	r.operations = append(r.operations, operationFact{began: began, ended: ended, write: true, commit: commit})
}

// refused is a commit that was refused for good.
func (h *groupHistory) refused(commit int64) {
	c := h.commits[commit]
	if c.logged {
		h.fail(29, "a commit of member %s at epoch %d is refused, and the log has it", c.member, c.epoch)
	}
	c.refused = true
}

func (h *groupHistory) register(key offsetKey) *register {
	r := h.registers[key]
	if r == nil {
		r = &register{}
		h.registers[key] = r
	}
	return r
}

// registerModel is one register; a state is the number of the commit that it holds.
var registerModel = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, output any) (bool, any) {
		o := input.(operationFact)
		if o.write {
			return true, o.commit
		}
		return state.(int64) == o.commit, state
	},
	Equal: func(a, b any) bool { return a.(int64) == b.(int64) },
}

func compareRecordKeys(a, b recordKey) int {
	return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.member, b.member), comparePartitions(a.partition, b.partition))
}

func compareOffsetKeys(a, b offsetKey) int {
	return cmp.Or(cmp.Compare(a.group, b.group), comparePartitions(a.partition, b.partition))
}

// linearizable looks at the registers in the end.
func (h *groupHistory) linearizable() {
	for _, key := range slices.SortedFunc(maps.Keys(h.registers), compareOffsetKeys) {
		r := h.registers[key]
		operations := h.bounded(r)
		h.k.counts.Overlaps += overlaps(operations)
		if !porcupine.CheckOperations(registerModel, operations) {
			h.fail(28, "group %s: the committed offset of partition %d of topic %d is no register: %d reads and writes cannot be put in an order",
				key.group, key.partition.Index, key.partition.Topic[15], len(operations))
		}
	}
}

// bounded returns the operations of a register that have happened. A write came no later
// than the log had it, whether or not somebody was told of it: whoever answers a read that
// came later knows where the log ends. Without that bound some could be anywhere, and
// checking take for ever.
func (h *groupHistory) bounded(r *register) []porcupine.Operation {
	var operations []porcupine.Operation
	for i, o := range r.operations {
		if c := h.commits[o.commit]; o.write && c != nil {
			if !c.logged {
				continue
			}
			o.ended = min(o.ended, c.at)
		}
		if !o.write && slices.ContainsFunc(r.operations, func(x operationFact) bool { return x.implies(o) }) {
			continue
		}
		operations = append(operations, porcupine.Operation{ClientId: i, Input: o, Call: o.began, Return: o.ended})
	}
	return operations
}

// implies says whether a read holds because another one does: that went on within it, and
// was told the same. Reads that wait together would have to be tried in every order.
func (x operationFact) implies(o operationFact) bool {
	return !x.write && x.commit == o.commit && o.began < x.began && x.ended <= o.ended
}

// overlaps counts the reads that went on at the same time as a write.
func overlaps(operations []porcupine.Operation) (n int) {
	var writes []porcupine.Operation
	for _, o := range operations {
		if o.Input.(operationFact).write {
			writes = append(writes, o)
		}
	}
	for _, o := range operations {
		if !o.Input.(operationFact).write && slices.ContainsFunc(writes, func(w porcupine.Operation) bool { return w.Call < o.Return && o.Call < w.Return }) {
			n++
		}
	}
	return n
}
