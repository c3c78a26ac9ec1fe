package replication

// window has what was sent of a partition and is not acknowledged. The zero value
// is empty.
type window struct {
	// sent is in the order of its offsets.
	sent  []sentBatches
	bytes int
}

// sentBatches are the batches of one message.
type sentBatches struct {
	// end is the offset after the last of them.
	end   int64
	bytes int
}

func (w *window) push(end int64, bytes int) {
	w.sent = append(w.sent, sentBatches{end: end, bytes: bytes})
	w.bytes += bytes
}

// acknowledge takes out what ends at or below an offset, and returns its bytes.
func (w *window) acknowledge(offset int64) int {
	n, freed := 0, 0
	for n < len(w.sent) && w.sent[n].end <= offset {
		freed += w.sent[n].bytes
		n++
	}
	w.sent = append(w.sent[:0], w.sent[n:]...)
	w.bytes -= freed
	return freed
}

// clear forgets everything, and returns its bytes.
func (w *window) clear() int {
	freed := w.bytes
	w.sent, w.bytes = nil, 0
	return freed
}
