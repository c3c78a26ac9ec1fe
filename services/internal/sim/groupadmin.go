package sim

import (
	"strconv"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// admin is an operator's program that looks at groups, and at times does what only those
// allow that have no members: set offsets, delete them, and delete the group.
type admin struct {
	process
	g    *crowd
	w    *world
	view *image
	// described is the last description of each group, and at since when it was asked.
	described []*groups.Description
	asked     []time.Duration
}

func newAdmin(g *crowd) *admin {
	a := &admin{g: g, w: g.w, described: make([]*groups.Description, len(g.groups)), asked: make([]time.Duration, len(g.groups))}
	g.w.register(&a.process, "admin")
	return a
}

func (a *admin) start() {
	a.begin()
	for i := range a.g.groups {
		a.w.every(&a.process, 100*time.Millisecond, 600*time.Millisecond, func() { a.look(i) })
	}
}

func (a *admin) show(i *image) {
	if a.view == nil || i.revision > a.view.revision {
		a.view = i
	}
}

// look asks about a group.
func (a *admin) look(group int) {
	id := a.g.groups[group]
	request := func() groups.Request { return &groups.Fetch{Group: id} }
	switch a.w.rng.IntN(4) {
	case 0:
		request = func() groups.Request { return &groups.Describe{Group: id} }
	case 1:
		request = func() groups.Request { return &groups.List{} }
	}
	at := a.w.now
	a.request(group, request, func(r groups.Reply) {
		if d, ok := r.Value.(*groups.Description); ok && at >= a.asked[group] {
			a.described[group], a.asked[group] = d, at
		}
	})
}

// meddle changes offsets of a group, or deletes them or the group.
func (a *admin) meddle(group int) {
	if a.w.calm {
		return
	}
	id := a.g.groups[group]
	switch x := a.w.rng.IntN(10); {
	case x < 5:
		a.reset(group)
	case x < 8:
		partitions := a.somePartitions()
		a.insist(group, func() groups.Request { return &groups.DeleteOffsets{Group: id, Partitions: partitions} }, attempts)
	default:
		a.insist(group, func() groups.Request { return &groups.DeleteGroup{Group: id} }, attempts)
	}
}

// reset sets offsets of a group, wherever they were.
func (a *admin) reset(group int) {
	partitions := a.somePartitions()
	targets := make([]int64, len(partitions))
	for i, p := range partitions {
		targets[i] = a.w.rng.Int64N(a.g.end(p) + 1)
	}
	sent := a.g.newCommit()
	a.insist(group, func() groups.Request {
		c := &groups.Commit{Group: a.g.groups[group]}
		for i, p := range partitions {
			c.Offsets = append(c.Offsets, groups.CommitOffset{
				Partition: p, TopicName: a.g.source(p.Topic).topic.Name, Offset: targets[i], LeaderEpoch: -1,
				Metadata: strconv.FormatInt(a.g.newCommit(), 10),
			})
		}
		a.g.sawCommit(group, 0, sent, c)
		return c
	}, attempts)
}

// somePartitions draws partitions, now and then of topics that are deleted.
func (a *admin) somePartitions() []groups.Partition {
	var partitions []groups.Partition
	for _, s := range a.g.sources {
		if s.deleted && a.w.chance(700) {
			continue
		}
		for i := range s.ends {
			if a.w.chance(500) {
				partitions = append(partitions, groups.Partition{Topic: s.topic.ID, Index: int32(i)})
			}
		}
	}
	return partitions
}

// attempts is how often the program asks for what nobody is there to do.
const attempts = 10

// insist asks for something until the group's coordinator has decided on it.
func (a *admin) insist(group int, request func() groups.Request, attempts int) {
	if attempts == 0 || a.w.calm {
		return
	}
	answered := false
	again := func() {
		if !answered {
			answered = true
			a.w.after(&a.process, a.w.between(50*time.Millisecond, 400*time.Millisecond), func() { a.insist(group, request, attempts-1) })
		}
	}
	a.request(group, request, func(r groups.Reply) {
		if r.Refusal == nil || r.Refusal.Reason != errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE && r.Refusal.Reason != errorsv1.Reason_REASON_NOT_COORDINATOR {
			answered = true
			return
		}
		again()
	})
	a.w.after(&a.process, 2*requestTimeout, again)
}

// request asks the coordinator of a group, as far as the program knows it.
func (a *admin) request(group int, request func() groups.Request, then func(groups.Reply)) {
	w := a.w
	if a.view == nil {
		return
	}
	index, number := a.g.partition(group)
	to, ok := a.g.coordinator(a.view.partitions[index].Coordinator)
	if !ok {
		return
	}
	w.send(&a.process, &to.process, func() {
		to.submit(number, request(), func(r groups.Reply) {
			w.sendOnce(&to.process, &a.process, func() { then(r) })
		})
	})
}
