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
