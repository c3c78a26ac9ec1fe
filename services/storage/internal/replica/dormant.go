package replica

import (
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// A partition of which the store has nothing is dormant: there is no object for
// it until somebody asks for it, as there is nothing that it could know but its
// assignment. A cluster has many partitions that nobody has written to, and they
// cost a pointer each. One that has woken up has an object for good, which forgets
// most of itself while nobody uses it, see package partition.

// wakeLocked makes a dormant partition. What the cluster has agreed on meanwhile
// is the same to an empty log as the latest of it. The mutex is held.
func (r *Replicas) wakeLocked(t *topic, index int32) *partition.Partition {
	p := partition.New(r.host, t.shared, index, r.store.Log(store.PartitionID{Topic: t.seen.ID, Index: index}))
	t.partitions[index] = p
	assignment := &t.seen.Partitions[index]
	roles := t.dormant
	roles.Add(r.role(*assignment), -1)
	r.countDormant(t, roles)
	r.applyTo(p, assignment)
	return p
}

// adoptWoken takes over the partitions that woke up while next was made, and
// returns their numbers: they have an earlier assignment.
func adoptWoken(next, present []*partition.Partition) []int {
	var woken []int
	for i, p := range present {
		if p != nil && next[i] == nil {
			next[i] = p
			woken = append(woken, i)
		}
	}
	return woken
}

// dormantRoles counts the dormant partitions of a topic.
func (r *Replicas) dormantRoles(t *topic) partition.Roles {
	var roles partition.Roles
	for i, p := range t.partitions {
		if p == nil {
			roles.Add(r.role(t.seen.Partitions[i]), 1)
		}
	}
	return roles
}

// countDormant replaces the count of a topic, in the metrics too.
func (r *Replicas) countDormant(t *topic, now partition.Roles) {
	r.host.CountDormant(t.dormant, now)
	t.dormant = now
}

func (r *Replicas) role(a cluster.Partition) rules.Role {
	return rules.RoleIn(a, r.host.Self())
}
