package sim

// invariants are what is checked, by the numbers that the checks name.
//
// What is committed is what any leader's high watermark has passed: readers may
// have seen it and acknowledgements by all rest on it. The checks hold the
// protocol to that, which is more than what the clients of a run happen to see.
//
// Not here: 33 and 34 are about transactions; 36 is for real
// processes.
var invariants = map[int]string{
	1:  "what was acknowledged by all in-sync replicas is not lost",
	2:  "one offset has one value",
	3:  "a value of an idempotent producer has at most one offset, and a live producer is not forgotten",
	4:  "what failed for certain is never seen",
	5:  "a batch that was sent after another was acknowledged comes behind it",
	6:  "the batches of a producer are in its order",
	7:  "offsets rise by one for each record",
	8:  "below their high watermarks all logs are equal",
	9:  "the leader epoch does not fall along a log, and the records of an epoch are those of its leader",
	10: "a new leader has all that is committed",
	11: "each running member of ISR and ELR has all that is committed",
	12: "the maximal ISR of the leader holds ISR and ELR",
	13: "the high watermark stands still while the ISR is below min ISR",
	14: "the high watermark is not above the end of the log of any member of the maximal ISR",
	15: "the latest offset does not go back for a client",
	16: "nothing at or above the high watermark is read, and what was read stays",
	17: "a consumer reads on where it stopped",
	18: "a client that has its acknowledgement sees the record",
	19: "a truncation is told to a consumer that has read what was cut",
	20: "the log start of a replica does not go back, nor below what a leader has answered to be deleted",
	21: "compaction leaves the newest record of each key",
	22: "the states of a partition follow one from the other as they may",
	23: "a term that was followed by another one writes nothing any more",
	24: "the epochs of a node rise, and whoever is added to an ISR is the process that is registered and live",
	25: "a superseded leader acknowledges nothing that its successors lack",
	26: "a node that stopped uncleanly is in no ISR or ELR before it has caught up, and a replica that drops what damage has left has no claim to lead",
	27: "a partition of a group has one owner at any time, and the epochs of groups and members rise",
	28: "a committed offset is a register, which falls by its owner's commits only, and goes when it may",
	29: "a commit counts if the member has the partition at the epoch that it carries, and only then",
	30: "all below a committed offset was processed, or passed over by who set it",
	31: "the memory of a coordinator is the fold of its log",
	32: "a coordinator that is superseded appends, answers and assigns nothing",
	35: "once everything is healed everything comes to rest",
}
