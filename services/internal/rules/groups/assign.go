package groups

// Assignor is a way to share partitions out.
type Assignor string

const (
	// Range gives each member one stretch of each topic's partitions, so that equal
	// numbers of topics that are partitioned alike go to the same member.
	Range Assignor = "range"
	// RoundRobin deals the partitions of all topics out in turn.
	RoundRobin Assignor = "roundrobin"
	// Sticky balances like RoundRobin and moves no more than it must.
	Sticky Assignor = "sticky"
)
