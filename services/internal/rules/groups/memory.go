package groups

// Memory yields the records of which a serving shard's memory is the fold, those of a
// round too that is being appended: what a log holds that is compacted to its end. The
// groups are in ascending order of their names; of one that has never had a member there
// are its offsets only. There are none while the shard does not serve.
func (s *Shard) Memory(yield func(Record) bool) {
	if s.phase != serving {
		return
	}
	for _, g := range s.sorted() {
		if g.record.Epoch > 0 && !yield(g.record) {
			return
		}
		for _, m := range g.members {
			if !yield(m.MemberRecord) {
				return
			}
		}
		for _, o := range g.sortedOffsets() {
			if !yield(o) {
				return
			}
		}
	}
}
