package offsets

import (
	"context"
	"errors"
	"fmt"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

const (
	// loadResponseBytes is about how much a leader sends at once. A load has one
	// response in memory, and the records of one batch.
	loadResponseBytes = 1 << 20
	// loadSilence is how long a leader may send nothing before the load asks anew who
	// leads.
	loadSilence = 3 * time.Second
	// loadPatience is how long a load goes on without getting any further.
	loadPatience = 15 * time.Second
	// loadPause is how long it waits between two attempts at first, maxLoadPause, at
	// most.
	loadPause    = 20 * time.Millisecond
	maxLoadPause = time.Second
)

// leader is who leads a partition.
type leader struct {
	log   storagev1connect.LogServiceClient
	topic string
	epoch cluster.LeaderEpoch
}

// loading reads a partition from its start. What it has read lies below the high
// watermark, and holds when it goes on at another leader. It belongs to one goroutine.
type loading struct {
	partition groups.Partition
	// end is where to stop: the offset after a record that is known to lie below the
	// high watermark.
	end     int64
	deliver func([]groups.Record)
	// next is the offset to go on at, 0 for the start of the log.
	next int64
	// epoch is the leader epoch of the last batch read, -1 before it.
	epoch int32
	// unknown counts the records of a kind that this version does not know.
	unknown int
}

// load hands out the records of a partition up to offset end, in their order and a
// batch at a time. It returns how many it passed over because a newer version has
// written them, and why it has not come to the end. Failures that the next leader, or
// the same one later, may make good are tried again; find says who leads.
func load(ctx context.Context, partition groups.Partition, end int64, find func() (leader, error), deliver func([]groups.Record)) (unknown int, err error) {
	l := &loading{partition: partition, end: end, deliver: deliver, epoch: -1}
	pause, since := loadPause, time.Now()
	for {
		before := l.next
		from, err := find()
		if err == nil {
			if err = l.read(ctx, from); err == nil {
				return l.unknown, nil
			}
		}
		if ctx.Err() != nil || !passing(err) {
			return l.unknown, err
		}
		if l.next > before {
			pause, since = loadPause, time.Now()
		}
		if time.Since(since) >= loadPatience {
			return l.unknown, fmt.Errorf("got no further than offset %d of %d for %v: %w", l.next, end, loadPatience, err)
		}
		select {
		case <-ctx.Done():
			return l.unknown, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, maxLoadPause)
	}
}

// read reads on at a leader, and returns nil at the end.
func (l *loading) read(ctx context.Context, from leader) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(loadSilence, func() { cancel(errSilent) })
	defer silence.Stop()
	stream, err := from.log.Consume(ctx, l.request(from))
	if err != nil {
		return causeOf(ctx, err)
	}
	defer stream.Close()
	for first := true; ; first = false {
		response, err := stream.Receive()
		if err != nil {
			return causeOf(ctx, err)
		}
		silence.Stop()
		if failure := response.GetFailure(); failure != nil {
			return rpcerr.FromFailure(failure)
		}
		if err := l.take(response, first); err != nil {
			return err
		}
		if l.next >= l.end {
			return nil
		}
		silence.Reset(loadSilence)
	}
}

func (l *loading) request(from leader) *storagev1.ConsumeRequest {
	epoch := int32(from.epoch)
	start := &storagev1.PartitionStart{
		Topic: from.topic, TopicId: l.partition.Topic[:], Partition: l.partition.Index, LeaderEpoch: &epoch,
		Start: &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}},
	}
	if l.next > 0 {
		start.Start = &logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: l.next}}
	}
	if last := l.epoch; last >= 0 {
		start.LastReadEpoch = &last
	}
	return &storagev1.ConsumeRequest{
		Partitions: []*storagev1.PartitionStart{start}, Form: storagev1.RecordForm_RECORD_FORM_BATCHES, MaxResponseBytes: loadResponseBytes,
	}
}

// take hands a response out. The first batch of a stream may begin below the offset
// that was asked for.
func (l *loading) take(response *storagev1.ConsumeResponse, first bool) error {
	for i, batch := range response.GetBatches() {
		header, err := recordbatch.Verify(batch)
		if err != nil {
			return fmt.Errorf("%w at offset %d: %w", errUnreadable, l.next, err)
		}
		if header.LastOffset() < l.next || header.BaseOffset < l.next && !(first && i == 0) {
			return fmt.Errorf("%w: offsets %d to %d came where %d was to follow", errUnreadable, header.BaseOffset, header.LastOffset(), l.next)
		}
		records, unknown, err := Decode(batch, max(l.next, response.GetLogStartOffset()), l.end)
		if err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
		l.unknown += unknown
		if len(records) > 0 {
			l.deliver(records)
		}
		l.next, l.epoch = header.LastOffset()+1, header.LeaderEpoch
	}
	if response.GetNextOffset() < l.next {
		return fmt.Errorf("%w: the leader goes on at offset %d, behind %d", errUnreadable, response.GetNextOffset(), l.next)
	}
	l.next = response.GetNextOffset()
	return nil
}

var (
	errSilent = fmt.Errorf("the leader has sent nothing for %v", loadSilence)
	// errUnreadable is of what a leader sends and another would send as well.
	errUnreadable = errors.New("log of consumer groups cannot be read")
)

// causeOf says why a call failed whose context may have been cancelled for a reason.
func causeOf(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

// passing reports whether a failure may pass without anything done about it: the
// leader changes, or the way to it is cut.
func passing(err error) bool {
	e, authored := rpcerr.Parse(err)
	if !authored {
		return !errors.Is(err, errUnreadable)
	}
	switch e.Reason {
	case errorsv1.Reason_REASON_NOT_LEADER,
		errorsv1.Reason_REASON_NO_LEADER,
		errorsv1.Reason_REASON_FENCED_LEADER_EPOCH,
		errorsv1.Reason_REASON_UNKNOWN_LEADER_EPOCH,
		errorsv1.Reason_REASON_OFFSET_NOT_AVAILABLE,
		errorsv1.Reason_REASON_METADATA_UNAVAILABLE,
		errorsv1.Reason_REASON_STORAGE_FAILED,
		errorsv1.Reason_REASON_LIMIT_REACHED,
		errorsv1.Reason_REASON_THROTTLED,
		errorsv1.Reason_REASON_TIMED_OUT,
		errorsv1.Reason_REASON_DRAINING:
		return true
	}
	return false
}
