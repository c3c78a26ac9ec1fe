package rules

// RetainedSpan is a stretch of a partition's log, which retention removes as a
// whole.
type RetainedSpan struct {
	// EndOffset is the offset after its last record.
	EndOffset int64
	// Bytes are those of its batches.
	Bytes int64
	// MaxTimestamp is the greatest of its records, in milliseconds since the Unix
	// epoch.
	MaxTimestamp int64
}

// Retention is what decides which records a leader removes for their age or for
// the size of the partition, as Kafka does with segments.
type Retention struct {
	// LogStart and HighWatermark are the partition's.
	LogStart, HighWatermark int64
	// NowMs is the time, in milliseconds since the Unix epoch.
	NowMs int64
	// RetentionMs and RetentionBytes are the topic's, or Unlimited.
	RetentionMs, RetentionBytes int64
	// Spans make up the log, the oldest first.
	Spans []RetainedSpan
}

// NewLogStart returns where the log begins from now on, never before LogStart nor
// beyond the high watermark. The oldest spans go while all of their records are
// older than RetentionMs, and while those that stay have RetentionBytes.
func (r Retention) NewLogStart() int64 {
	var rest int64
	for _, s := range r.Spans {
		rest += s.Bytes
	}
	start := r.LogStart
	for _, s := range r.Spans {
		rest -= s.Bytes
		if s.EndOffset <= r.LogStart {
			continue
		}
		expired := r.RetentionMs != Unlimited && s.MaxTimestamp < r.NowMs-r.RetentionMs
		surplus := r.RetentionBytes != Unlimited && rest >= r.RetentionBytes
		if s.EndOffset > r.HighWatermark || !expired && !surplus {
			break
		}
		start = s.EndOffset
	}
	return start
}
