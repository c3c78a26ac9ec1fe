package runnel

import (
	"context"
	"slices"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// PartitionOffset is a position as an offset.
type PartitionOffset struct {
	TopicPartition
	// Offset is -1 if Err is set.
	Offset int64
	// LeaderEpoch is that of the record at the offset, or of the leader at its
	// end.
	LeaderEpoch int32
	// Time is the record's timestamp where the position was a time and a record
	// was found; else zero.
	Time time.Time
	Err  error
	// Failed says why the partition takes no more records although what is left of
	// it can be read: some were lost.
	Failed error
	// Bytes is what the partition's batches take on the leader's disk; -1 where that is
	// not known.
	Bytes int64
}

// ListOffsets turns positions into offsets, in their order. A partition that
// cannot be asked has its error in its entry; the call as a whole fails only if
// the cluster cannot be reached or a topic does not exist.
func (a *Admin) ListOffsets(ctx context.Context, positions ...Assignment) ([]PartitionOffset, error) {
	return a.atLeaders(ctx, positions, maxPositions, func(ctx context.Context, address string, positions []*storagev1.PartitionPosition) ([]*storagev1.PartitionOffset, error) {
		response, err := call(ctx, address, a.client.log(address, transport.Control).ListOffsets, &storagev1.ListOffsetsRequest{Partitions: positions})
		return response.GetPartitions(), err
	})
}

// DeleteRecords removes the records before a position from each partition:
// readers no longer find them, and their space is given back later. The offsets
// returned are the new starts. Errors are reported as by ListOffsets.
func (a *Admin) DeleteRecords(ctx context.Context, positions ...Assignment) ([]PartitionOffset, error) {
	return a.atLeaders(ctx, positions, maxDeletions, func(ctx context.Context, address string, positions []*storagev1.PartitionPosition) ([]*storagev1.PartitionOffset, error) {
		response, err := call(ctx, address, a.client.log(address, transport.Control).DeleteRecords, &storagev1.DeleteRecordsRequest{Partitions: positions})
		return response.GetPartitions(), err
	})
}

// atLeaders makes a call about partitions to the leader of each, at most limit
// of them at a time, and again where the leader has moved.
func (a *Admin) atLeaders(ctx context.Context, positions []Assignment, limit int,
	do func(context.Context, string, []*storagev1.PartitionPosition) ([]*storagev1.PartitionOffset, error),
) ([]PartitionOffset, error) {
	view := a.client.view
	if _, err := view.fresh(ctx); err != nil {
		return nil, err
	}
	results := make([]PartitionOffset, len(positions))
	open := make([]int, len(positions))
	for i, p := range positions {
		if p.partition == allPartitions {
			return nil, newError(errorsv1.Reason_REASON_INVALID_REQUEST, "name each partition of topic %q with At", p.topic)
		}
		if _, err := view.topic(ctx, p.topic); err != nil {
			return nil, err
		}
		results[i] = PartitionOffset{TopicPartition: TopicPartition{Topic: p.topic, Partition: p.partition}, Offset: -1, Bytes: -1}
		open[i] = i
	}
	routes := make(map[TopicPartition]route)
	var pause backoff
	for try := 0; len(open) > 0 && try < 5; try++ {
		if try > 0 {
			if err := sleep(ctx, pause.next()); err != nil {
				return nil, err
			}
			if err := view.refresh(ctx, view.image()); err != nil {
				return nil, err
			}
		}
		byAddress := make(map[string][]int)
		var again []int
		for _, i := range open {
			r := &results[i]
			to, err := a.route(r.TopicPartition, routes)
			if err != nil {
				r.Err = err
				if IsRetriable(err) {
					again = append(again, i)
				}
				continue
			}
			byAddress[to.address] = append(byAddress[to.address], i)
		}
		for address, indexes := range byAddress {
			for chunk := range slices.Chunk(indexes, limit) {
				request := make([]*storagev1.PartitionPosition, len(chunk))
				for k, i := range chunk {
					p := &positions[i]
					request[k] = &storagev1.PartitionPosition{Topic: p.topic, Partition: p.partition, Position: p.start.proto()}
				}
				answers, err := do(ctx, address, request)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				if err == nil && len(answers) != len(chunk) {
					err = newError(errorsv1.Reason_REASON_INTERNAL, "%s answers %d of %d positions", address, len(answers), len(chunk))
				}
				for k, i := range chunk {
					r := &results[i]
					r.Err = err
					if err == nil {
						r.answer(answers[k], routes)
					}
					// Both calls may be repeated: a position is where it is, and records
					// are deleted once.
					if notFatal(r.Err) {
						again = append(again, i)
					}
				}
			}
		}
		open = again
	}
	return results, nil
}

// route returns where to ask about a partition: what a node has said in this
// call, or else what is known of the cluster.
func (a *Admin) route(tp TopicPartition, routes map[TopicPartition]route) (route, error) {
	image := a.client.view.image()
	topic, ok := image.Topic(tp.Topic)
	if !ok {
		return route{}, topicNotFound(tp.Topic).withOutcome(fatal)
	}
	if tp.Partition < 0 || int(tp.Partition) >= len(topic.Partitions) {
		return route{}, newError(errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
			"topic %q has no partition %d: it has %d, from 0", tp.Topic, tp.Partition, len(topic.Partitions))
	}
	to, led := leader(image, &topic.Partitions[tp.Partition])
	if told, ok := routes[tp]; ok && told.epoch >= to.epoch {
		return told, nil
	}
	if !led {
		return route{}, newError(errorsv1.Reason_REASON_NO_LEADER, "%s has no leader at the moment", tp)
	}
	return to, nil
}

// answer takes what the leader says.
func (r *PartitionOffset) answer(o *storagev1.PartitionOffset, routes map[TopicPartition]route) {
	if failure := o.GetFailure(); failure != nil {
		r.Err = failureError(failure)
		if d := failure.GetNotLeader(); d.GetLeaderAddress() != "" {
			routes[r.TopicPartition] = route{address: d.GetLeaderAddress(), epoch: cluster.LeaderEpoch(d.GetLeaderEpoch())}
		}
		return
	}
	r.Offset, r.LeaderEpoch = o.GetOffset(), o.GetLeaderEpoch()
	if o.SizeBytes != nil {
		r.Bytes = o.GetSizeBytes()
	}
	if failed := o.GetFailed(); failed != nil {
		r.Failed = failureError(failed)
	}
	if o.GetTime() != nil {
		r.Time = o.GetTime().AsTime()
	}
}
