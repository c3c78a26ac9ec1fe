package groups

// The shard is driven by these calls, none of which blocks or is called concurrently:
//
//	NewShard(config Config, self cluster.NodeID) *Shard
//	Begin(epoch CoordinatorEpoch)                     the node coordinates the partition from now on: fence, load, serve
//	End(why *Refusal)                                 it does no longer: everything that waits is refused, every stream closed
//	SetTopics(topics Topics)                          a newer version of the cluster
//	Submit(ticket Ticket, request Request, now)       a request has arrived
//	Appended(ticket Ticket, outcome Outcome, end int64, now)   end: offset after the batch, with Done
//	Checked(ticket Ticket, outcome Outcome, now)
//	Load(ticket Ticket, records []Record)             a piece of the log, in its order
//	Loaded(ticket Ticket, outcome Outcome, now)
//	Step(now) Effects                                 after any of the above
//
// These two are for metrics, between the calls above; what they tell may be another
// coordinator's by now, and they ask nobody:
//
//	Stats() Stats                                     sizes, and whether the shard serves
//	Offsets(yield func(*OffsetRecord) bool)           all committed offsets, those of a group one after another

// Stats is how much a shard holds.
type Stats struct {
	// Serving says that it is neither loading nor without an epoch.
	Serving bool
	// Groups and Members are counted over the shard.
	Groups, Members int
	// Queued is how many requests wait for a round.
	Queued int
}
