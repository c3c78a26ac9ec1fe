package rules

import "time"

const (
	// compactionFloor is how many new bytes are worth a run of compaction at once.
	compactionFloor = 1 << 20
	// compactionPause is how long fewer bytes wait, so that small partitions are
	// compacted too, but not with every record.
	compactionPause = time.Hour
)

// CompactionFacts are what compaction of a partition depends on besides the
// settings of its topic.
type CompactionFacts struct {
	// Bytes are those of all records that may be compacted, Dirty of those that
	// have come since the last run.
	Bytes, Dirty int64
	// Unfinished says that the last run had too many keys for its memory.
	Unfinished bool
	// TombstonesExpired says that all tombstones which compaction has left may go.
	TombstonesExpired bool
	// SinceLast is the time since the last run.
	SinceLast time.Duration
}

// CompactionDue says whether a partition of a compacted topic should be compacted
// now; the greater its urgency, the sooner.
func (c TopicConfig) CompactionDue(f CompactionFacts) (urgency float64, due bool) {
	if f.Dirty > 0 {
		urgency = float64(f.Dirty) / float64(max(f.Bytes, f.Dirty))
	}
	switch {
	case f.Dirty > 0 && f.Unfinished:
		return urgency + 1, true
	case f.TombstonesExpired:
		return urgency, true
	default:
		return urgency, f.Dirty > 0 && urgency >= c.MinCleanableDirtyRatio && (f.Dirty >= compactionFloor || f.SinceLast >= compactionPause)
	}
}
