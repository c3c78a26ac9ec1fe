package rules

import "slices"

// SetFailed notes whether something of the log was lost. Such a replica takes part in
// nothing that others rely on: it acknowledges nothing, has no position, and as a
// leader it tells no follower what to do, and resigns if another member of the ISR
// can lead.
func (r *Replica) SetFailed(failed bool) {
	r.failed, r.withdrawn = failed, r.withdrawn && failed
	r.advance()
}

// beginsAnew says that a failed replica may drop what it has and follow from
// nothing: the cluster has agreed not to count on it. It does so once its leader has
// answered: what is left of its log may be the best that there is where the leader has
// lost records too.
func (r *Replica) beginsAnew() bool { return r.failed && r.role == Following && r.withdrawn }

// withdraws says that a failed follower asks the cluster not to count on it, so that it
// may begin anew. It does so also where neither ISR nor ELR name it: its leader may be
// about to admit it for a position that it has told, and the cluster may keep that it
// was in sync once, which is a claim in an unclean election. A leader withdraws as it
// resigns.
func (r *Replica) withdraws() bool { return r.failed && r.role == Following && !r.withdrawn }

// counted says that the replica leads, or that the ISR or the ELR name it.
func (r *Replica) counted() bool {
	p := &r.assignment
	return r.role == Leading || slices.Contains(p.ISR, r.self) || slices.Contains(p.ELR, r.self)
}
