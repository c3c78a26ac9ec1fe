package store

// Span is a stretch of a log that lies together: what retention removes at once.
type Span struct {
	// FirstOffset is where it begins, EndOffset where the next one does.
	FirstOffset, EndOffset int64
	// Bytes are those of its batches.
	Bytes int64
	// MaxTimestamp is at least that of every record in it, in milliseconds since
	// the Unix epoch.
	MaxTimestamp int64
}

// Spans appends the spans of the log to a list, the oldest first, as far as they
// can be read.
func (l *Log) Spans(list []Span) []Span {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.durable.Deleted || l.fault != nil {
		return list
	}
	for _, s := range l.durable.spans {
		if s.first >= l.readable {
			break
		}
		list = append(list, Span{FirstOffset: s.first, EndOffset: min(s.end, l.readable), Bytes: s.bytes, MaxTimestamp: s.maxTimestamp})
	}
	return list
}

// splitsLocked says whether a batch begins a new span though it could go on with
// the last one.
func (l *Log) splitsLocked(a *Append, last *span) bool {
	if a.SpanBytes > 0 && last.bytes >= a.SpanBytes {
		return true
	}
	if a.SpanAge <= 0 {
		return false
	}
	now := l.store.cfg.Now().UnixNano()
	if l.spanSince == 0 {
		// Nobody knows how old it was when the store was opened.
		l.spanSince = now
	}
	return now-l.spanSince >= int64(a.SpanAge)
}
