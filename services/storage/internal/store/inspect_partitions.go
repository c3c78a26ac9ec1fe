package store

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"
)

// readPartitions reads the states of all partitions, and what contradicts them.
func (i *inspector) readPartitions() error {
	for _, set := range allSets {
		states := make(map[PartitionID]bool)
		for n := range slices.Backward(i.out.Volumes) {
			v := &i.out.Volumes[n]
			if v.Set != set || v.Copies || v.Condemned != "" || v.Unreadable != "" {
				continue
			}
			if err := i.ctx.Err(); err != nil {
				return err
			}
			err := i.open(v, func(in entries) error {
				return i.found.readVolume(in, v.Number, set, states, i.mayHaveHoles(v))
			})
			if err != nil {
				return err
			}
		}
	}
	lost := i.lostVolumes()
	for _, id := range slices.SortedFunc(maps.Keys(i.found.partitions), comparePartitions) {
		i.addPartition(id, i.found.partitions[id], lost)
	}
	i.account()
	return nil
}

// lostVolumes returns those that were set aside, and that a start would.
func (i *inspector) lostVolumes() (lost []*condemnedVolume) {
	for n := range i.out.Volumes {
		v := &i.out.Volumes[n]
		switch {
		case v.Condemned != "":
			lost = append(lost, readCondemned(i.dir.Path(volumesFolder, v.Name), v.Number, v.Set))
		case v.Unreadable != "":
			lost = append(lost, &condemnedVolume{number: v.Number, set: v.Set, copies: v.Copies, reason: v.Unreadable})
		}
	}
	return lost
}

// addPartition adds what was found of a partition to the result.
func (i *inspector) addPartition(id PartitionID, p *recoveredPartition, lost []*condemnedVolume) {
	damaged := func(volume uint64, offset int64, format string, args ...any) {
		i.damaged(Damage{Volume: volume, Partition: &id, Offset: offset, Reason: fmt.Sprintf(format, args...)})
	}
	out := InspectedPartition{ID: id, StateVolume: p.stateVolume}
	fault := p.fault
	if fault == nil && p.durable == nil {
		if i.rebooted && len(lost) == 0 {
			// A set that is not synced has lost all else.
			return
		}
		fault = errors.New("there are producers, but no state record")
	}
	if fault == nil {
		if err := p.durable.check(); err != nil {
			fault = fmt.Errorf("its state record contradicts itself: %w", err)
		}
	}
	if fault != nil {
		out.Failed = fault.Error()
		if p.fault == nil || !i.options.Verify {
			// Else the record is reported when all of its volume are verified.
			damaged(p.stateVolume, 0, "%v", fault)
		}
	}
	d := p.durable
	if d == nil || fault != nil {
		i.out.Partitions = append(i.out.Partitions, out)
		return
	}
	out.State, out.Generation, out.CompactedTo = d.State, d.generation, d.compactedTo
	if d.deletedAt != 0 {
		out.DeletedAt = time.UnixMilli(d.deletedAt)
	}
	if !d.Deleted {
		out.Producers = len(p.remembered())
	}
	for _, sp := range d.spans {
		out.Spans = append(out.Spans, InspectedSpan{
			Volume: sp.volume, First: sp.first, End: sp.end, MaxTimestamp: sp.maxTimestamp, Bytes: sp.bytes, Sparse: sp.sparse,
		})
		i.spans[sp.volume] = append(i.spans[sp.volume], heldSpan{id: id, in: d, span: sp})
	}
	if d.failed != nil {
		out.Failed, out.LogEndUnknown = d.failed.reason, d.failed.logEndUnknown
	}
	if !d.Deleted {
		known := i.reportLosses(d, damaged)
		if c := newestMayBeLost(lost, p.home, p.stateVolume, d.moved); c != nil && d.failed == nil {
			damaged(c.number, d.LogEnd, "its last records may have been in the volume, which is lost: %s", c.reason)
		} else if d.failed != nil && !known {
			damaged(d.failed.volume, d.LogStart, "it has failed: %s", d.failed.reason)
		}
	}
	i.out.Partitions = append(i.out.Partitions, out)
}

// reportLosses reports the spans whose volume is lost, as far as they can still be
// asked for. It says whether there is one.
func (i *inspector) reportLosses(d *durable, damaged func(volume uint64, offset int64, format string, args ...any)) (found bool) {
	for _, sp := range d.spans {
		v := i.volume(sp.volume)
		reason := "it is missing"
		switch {
		case sp.end <= d.LogStart:
			continue
		case v == nil:
		case v.Condemned != "":
			reason = "it was set aside: " + v.Condemned
		case v.Unreadable != "":
			reason = v.Unreadable
		default:
			continue
		}
		found = true
		damaged(sp.volume, max(sp.first, d.LogStart), "the volume with the offsets %d to %d is lost: %s", sp.first, sp.end-1, reason)
	}
	return found
}

// reportMissing reports the volumes that must be there and are not.
func (i *inspector) reportMissing(d *directory) error {
	expected, _, err := d.expected()
	if err != nil {
		return err
	}
	for _, m := range expected {
		if i.volume(m.GetVolume()) == nil {
			name := volumeName(Set(m.GetSet()), m.GetVolume())
			i.damaged(Damage{Volume: m.GetVolume(), File: filepath.Join(volumesFolder, name), Reason: "the volume is missing"})
		}
	}
	return nil
}

// volume returns a volume on disk, or nil.
func (i *inspector) volume(number uint64) *InspectedVolume {
	n := slices.IndexFunc(i.out.Volumes, func(v InspectedVolume) bool { return v.Number == number })
	if n < 0 {
		return nil
	}
	return &i.out.Volumes[n]
}

// account says of each volume what lies in it.
func (i *inspector) account() {
	for n := range i.out.Volumes {
		v := &i.out.Volumes[n]
		held := make(map[PartitionID]bool)
		for _, sp := range i.spans[v.Number] {
			held[sp.id] = true
			v.Spans++
			if v.Condemned == "" && v.Unreadable == "" {
				v.LiveBytes += sp.bytes
			}
		}
		v.Partitions = len(held)
		if i.options.Verify {
			i.total += v.LiveBytes
		}
	}
}
