package runnel

import (
	"errors"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// stumble pauses a reading because of an error of a whole call. Callers hold mu.
func (c *Consumer) stumble(r *reading, err error, now time.Time) {
	r.streaming = false
	if e, ok := errors.AsType[*Error](err); ok && e.outcome == fatal {
		c.fail(r, -1, e)
		return
	}
	c.retry(r, now)
}

// retry makes the fetcher take a reading up again after a pause. Callers hold
// mu.
func (c *Consumer) retry(r *reading, now time.Time) {
	r.retryAt = now.Add(r.pause.next())
	select {
	case c.attention <- struct{}{}:
	default:
	}
}

// setBack draws conclusions from the failure of one partition. Callers hold mu.
func (c *Consumer) setBack(r *reading, next int64, failure *errorsv1.Failure, now time.Time) {
	// Nothing more of it follows on this stream.
	r.streaming = false
	err := failureError(failure)
	switch failure.GetReason() {
	case errorsv1.Reason_REASON_NOT_LEADER:
		detail := failure.GetNotLeader()
		c.retry(r, now)
		if detail.GetLeaderAddress() != "" {
			c.follow(r, route{address: detail.GetLeaderAddress(), epoch: cluster.LeaderEpoch(detail.GetLeaderEpoch())})
		}
		return
	case errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE:
		c.reset(r, err)
		return
	case errorsv1.Reason_REASON_LOG_TRUNCATED:
		c.truncated(r, err)
		return
	case errorsv1.Reason_REASON_CORRUPT_LOG:
		if next <= r.ahead.Offset {
			next = -1
		}
		c.fail(r, next, err)
		return
	}
	if err.outcome == fatal {
		c.fail(r, -1, err)
		return
	}
	c.client.config.Logger.Debug("partition cannot be read for now", "partition", r.partition, "error", err)
	c.retry(r, now)
}

// truncated stops a reading whose log has lost records that were read, so that
// Poll tells of it; then, unless the policy leaves that to the program, it goes on.
// Callers hold mu.
func (c *Consumer) truncated(r *reading, err *Error) {
	from, known := err.Truncation()
	known = known && from.Offset >= 0
	next := int64(-1)
	if known {
		next = from.Offset
	}
	c.fail(r, next, err)
	if o := r.tenure; o != nil && r.parted(o.finished.Offset) {
		o.finished = noPosition
	}
	to, ok := c.config.reset.start()
	switch {
	case !ok:
	case known:
		r.resume = new(From(from))
	default:
		r.resume = &to
	}
}

// parted reports whether the log has lost what lies before an offset, and nobody has said
// yet where to go on. Callers hold mu.
func (r *reading) parted(offset int64) bool {
	if r == nil {
		return false
	}
	fault, ok := errors.AsType[*PartitionError](r.fault)
	return ok && ReasonOf(fault) == errorsv1.Reason_REASON_LOG_TRUNCATED && offset > fault.NextOffset
}

// reset applies the policy to a reading whose offset is not there. Callers hold
// mu.
func (c *Consumer) reset(r *reading, err *Error) {
	earliest, latest, known := err.OffsetRange()
	to, ok := c.config.reset.start()
	switch {
	case r.start.kind == startEarliest && !r.received:
		// Retention was faster than the first fetch.
		to = r.start
	case !ok:
		next := int64(-1)
		if known && r.ahead.Offset < earliest {
			next = earliest
		}
		c.fail(r, next, err)
		return
	}
	c.client.config.Logger.Warn("position is out of range and reset", "partition", r.partition,
		"offset", r.ahead.Offset, "earliest", earliest, "latest", latest, "reset", to)
	if o := r.tenure; o != nil && (!known || o.finished.Offset > latest) {
		o.finished = noPosition
	}
	r.aim(to)
	c.summon(r)
}
