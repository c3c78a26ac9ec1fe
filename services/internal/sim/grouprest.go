package sim

import (
	"fmt"
	"slices"

	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// unrest returns what of the groups is not at rest, or "": each offsets partition has a
// coordinator, each partition of a source that somebody is subscribed to has an owner
// who has read and committed all of it, and the group is stable.
func (g *crowd) unrest() string {
	w := g.w
	for _, c := range g.coordinators {
		if known := w.etcd.node(int(c.id)); !c.up || c.epoch == 0 || c.stopping || known.fenced || known.epoch != c.epoch {
			return fmt.Sprintf("%s is not live", c.name)
		}
	}
	for _, index := range g.offsets {
		p := w.etcd.partitions[index]
		c, ok := g.coordinator(p.Coordinator)
		if !ok || c.shards[g.number(index)] == nil || c.shards[g.number(index)].epoch != p.CoordinatorEpoch || p.CoordinatorNodeEpoch != c.epoch {
			return fmt.Sprintf("partition %d is not coordinated by node %d, which the cluster has agreed on", index, p.Coordinator)
		}
		for _, a := range c.shards[g.number(index)].waiting {
			if w.now-a.at > 10*requestTimeout {
				return fmt.Sprintf("partition %d: a request waits at %s since %s: %T", index, c.name, a.at, a.request)
			}
		}
	}
	for i := range g.groups {
		if what := g.unstable(i); what != "" {
			index, _ := g.partition(i)
			return fmt.Sprintf("partition %d: group %s: %s", index, g.groups[i], what)
		}
	}
	return ""
}

// unstable returns what of a group is not at rest, or "".
func (g *crowd) unstable(group int) string {
	var wanted []groups.Partition
	owners := make(map[groups.Partition]*member)
	var least, most, count int
	alike := true
	for _, m := range g.members {
		if m.group != group {
			continue
		}
		if m.pending != nil || m.yielding || m.committing > 0 || m.epoch == 0 {
			return fmt.Sprintf("%s has not come to rest: epoch %d, yielding %t, %d commits", m.name, m.epoch, m.yielding, m.committing)
		}
		for _, s := range g.sources {
			if s.deleted {
				continue
			}
			if !subscribed(m.subscription, s.topic.Name) {
				alike = false
				continue
			}
			for i := range s.ends {
				if p := (groups.Partition{Topic: s.topic.ID, Index: int32(i)}); !slices.Contains(wanted, p) {
					wanted = append(wanted, p)
				}
			}
		}
		for _, r := range m.readings {
			if other := owners[r.partition]; other != nil {
				return fmt.Sprintf("%s and %s have %v", m.name, other.name, r.partition)
			}
			owners[r.partition] = m
			if end := g.end(r.partition); !r.known || r.position != end || r.committed != end {
				return fmt.Sprintf("%s is at %d, has committed %d of %d of %v", m.name, r.position, r.committed, end, r.partition)
			}
		}
		if count++; count == 1 || len(m.readings) < least {
			least = len(m.readings)
		}
		most = max(most, len(m.readings))
	}
	for _, p := range wanted {
		if owners[p] == nil {
			return fmt.Sprintf("nobody has %v", p)
		}
	}
	if len(owners) > len(wanted) {
		return fmt.Sprintf("members have %d partitions and are subscribed to %d", len(owners), len(wanted))
	}
	// Range shares each topic out by itself.
	if alike && most-least > len(sourceNames) {
		return fmt.Sprintf("one member has %d partitions, another %d", most, least)
	}
	if what := g.check(group).unsettled(g.groups[group], wanted, g.end); what != "" {
		return what
	}
	d := g.admin.described[group]
	if d == nil || d.State == groups.Reconciling || len(d.Members) != count {
		return fmt.Sprintf("described as %+v", d)
	}
	return ""
}

func subscribed(s groups.Subscription, topic string) bool {
	return s.Pattern != "" || slices.Contains(s.Topics, topic)
}
