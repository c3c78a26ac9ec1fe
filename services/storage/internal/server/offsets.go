package server

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

const (
	maxListPartitions   = 10_000
	maxDeletePartitions = 1000
)

// ListOffsets turns positions into offsets. Each position fails alone.
func (s *Server) ListOffsets(ctx context.Context, req *storagev1.ListOffsetsRequest) (*storagev1.ListOffsetsResponse, error) {
	out, err := s.eachPosition(ctx, req.GetPartitions(), maxListPartitions, s.listOffset)
	return &storagev1.ListOffsetsResponse{Partitions: out}, err
}

// DeleteRecords moves log starts forward. Each partition fails alone.
func (s *Server) DeleteRecords(ctx context.Context, req *storagev1.DeleteRecordsRequest) (*storagev1.DeleteRecordsResponse, error) {
	// All log starts move before the first is waited for.
	begun := make(map[*storagev1.PartitionOffset]*partition.Deletion)
	out, err := s.eachPosition(ctx, req.GetPartitions(), maxDeletePartitions, func(ctx context.Context, in *storagev1.PartitionPosition, out *storagev1.PartitionOffset) error {
		d, err := s.deleteRecords(ctx, in, out)
		if err == nil {
			begun[out] = d
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, deleteWithin(ctx))
	defer cancel()
	for _, o := range out {
		d := begun[o]
		if d == nil {
			continue
		}
		err := d.Wait(waiting)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			o.Offset, o.LeaderEpoch, o.Failure = -1, 0, s.failure(ctx, err)
		}
	}
	return &storagev1.DeleteRecordsResponse{Partitions: out}, nil
}

// deleteWithin is how long to wait for deletions: a little less than the client, which
// is to learn why they are not done.
func deleteWithin(ctx context.Context) time.Duration {
	within := defaultTimeoutMs * time.Millisecond
	if deadline, ok := ctx.Deadline(); ok {
		within = min(within, time.Until(deadline)*9/10)
	}
	return within
}

// eachPosition answers the entries of a request one after another.
func (s *Server) eachPosition(ctx context.Context, in []*storagev1.PartitionPosition, limit int, answer func(context.Context, *storagev1.PartitionPosition, *storagev1.PartitionOffset) error) ([]*storagev1.PartitionOffset, error) {
	if n := len(in); n == 0 || n > limit {
		return nil, invalid("partitions has %d entries, must have 1 to %d", n, limit)
	}
	out := make([]*storagev1.PartitionOffset, len(in))
	for i, position := range in {
		out[i] = &storagev1.PartitionOffset{Topic: position.GetTopic(), Partition: position.GetPartition()}
		err := checkPosition(position.GetPosition())
		if err == nil {
			err = answer(ctx, position, out[i])
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			out[i].Offset, out[i].Time, out[i].LeaderEpoch = -1, nil, 0
			out[i].Failure = s.failure(ctx, err)
		}
	}
	return out, nil
}

func (s *Server) listOffset(ctx context.Context, in *storagev1.PartitionPosition, out *storagev1.PartitionOffset) error {
	p, err := s.replicas.Partition(ctx, in.GetTopic(), in.GetTopicId(), in.GetPartition())
	if err != nil {
		return err
	}
	bounds, err := p.Bounds(rules.NoEpoch)
	if err != nil {
		return err
	}
	found, err := resolve(ctx, p, bounds, in.GetPosition())
	if err != nil {
		return err
	}
	if err := p.CheckPosition(found.Offset, rules.NoEpoch, bounds.LeaderEpoch); err != nil {
		return err
	}
	if err := p.Failed(); err != nil {
		out.Failed = s.failure(ctx, err)
	}
	out.Offset = found.Offset
	out.LeaderEpoch = int32(p.EpochAt(found.Offset))
	if preceding := p.EpochAt(found.Offset - 1); preceding != rules.NoEpoch {
		out.PrecedingEpoch = new(int32(preceding))
	}
	out.SizeBytes = proto.Int64(p.Size())
	if found.Found {
		out.Time = timestamppb.New(time.UnixMilli(found.Timestamp))
	}
	return nil
}

// deleteRecords begins one deletion.
func (s *Server) deleteRecords(ctx context.Context, in *storagev1.PartitionPosition, out *storagev1.PartitionOffset) (*partition.Deletion, error) {
	if strings.HasPrefix(in.GetTopic(), "__") {
		return nil, errInternalTopic(in.GetTopic())
	}
	p, err := s.replicas.Partition(ctx, in.GetTopic(), in.GetTopicId(), in.GetPartition())
	if err != nil {
		return nil, err
	}
	bounds, err := p.Bounds(rules.NoEpoch)
	if err != nil {
		return nil, err
	}
	found, err := resolve(ctx, p, bounds, in.GetPosition())
	if err != nil {
		return nil, err
	}
	d, err := p.BeginDelete(found.Offset, bounds.LeaderEpoch)
	if err != nil {
		return nil, err
	}
	out.Offset = d.LogStart
	out.LeaderEpoch = int32(p.EpochAt(d.LogStart))
	return d, nil
}

// resolve turns a position into an offset; an unset one is the latest.
func resolve(ctx context.Context, p *partition.Partition, bounds partition.Bounds, position *logv1.StartPosition) (partition.RecordAt, error) {
	switch position := position.GetPosition().(type) {
	case *logv1.StartPosition_Earliest:
		return partition.RecordAt{Offset: bounds.LogStart}, nil
	case *logv1.StartPosition_Offset:
		return partition.RecordAt{Offset: position.Offset}, nil
	case *logv1.StartPosition_Time:
		return p.FindTime(ctx, position.Time.AsTime().UnixMilli(), bounds.LeaderEpoch)
	default:
		return partition.RecordAt{Offset: bounds.HighWatermark}, nil
	}
}

func checkPosition(position *logv1.StartPosition) error {
	switch position := position.GetPosition().(type) {
	case *logv1.StartPosition_Offset:
		if position.Offset < 0 {
			return invalid("offset is %d, must be 0 or more; earliest and latest are positions of their own", position.Offset)
		}
	case *logv1.StartPosition_Time:
		if err := position.Time.CheckValid(); err != nil {
			return invalid("time is not a valid timestamp; give one between the years 1 and 9999")
		}
	}
	return nil
}
