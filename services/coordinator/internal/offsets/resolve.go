package offsets

import (
	"context"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

const (
	// resolveWithin bounds one request to a leader.
	resolveWithin = 5 * time.Second
	// maxPositions is how many positions a request may have.
	maxPositions = 10_000
	// maxLeaders is how many leaders are asked at a time.
	maxLeaders = 8
)

// Position is a position in a partition.
type Position struct {
	Topic string
	// ID is that of the topic, so that another one under its name does not answer; nil for
	// whichever has the name.
	ID    []byte
	Index int32
	At    *logv1.StartPosition
}

var (
	// Earliest and Latest are the ends of a partition. They are shared: messages are
	// never changed after they were sent.
	Earliest = &logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}
	Latest   = &logv1.StartPosition{Position: &logv1.StartPosition_Latest{Latest: &logv1.Latest{}}}
)

// Resolved is a position as an offset.
type Resolved struct {
	Offset int64
	// PrecedingEpoch is the leader epoch of the record before it; nil where there is none.
	PrecedingEpoch *int32
	// Err is why it is not known: a *rpcerr.Error or what [rpcerr.Classify] makes of it.
	Err error
}

// Resolve asks the leaders of partitions for the offsets of positions, at most
// [maxLeaders] at a time and one request for up to [maxPositions] of a leader. The
// answers are in the order of the positions.
func (l *Leaders) Resolve(ctx context.Context, positions []Position) []Resolved {
	out := make([]Resolved, len(positions))
	var requests []*resolveRequest
	open := make(map[*storageNode]*resolveRequest)
	image := l.view.Image()
	for i, p := range positions {
		if image == nil {
			out[i].Err = rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "this node does not know the cluster yet; try again")
			continue
		}
		topic, ok := image.Topic(p.Topic)
		if !ok {
			out[i].Err = rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q does not exist; create it, or check the name", p.Topic)
			continue
		}
		node, _, err := l.of(topic, p.Index)
		if err != nil {
			out[i].Err = err
			continue
		}
		r := open[node]
		if r == nil || len(r.at) >= maxPositions {
			r = &resolveRequest{node: node}
			open[node], requests = r, append(requests, r)
		}
		r.at = append(r.at, i)
		r.positions = append(r.positions, &storagev1.PartitionPosition{Topic: p.Topic, TopicId: p.ID, Partition: p.Index, Position: p.At})
	}
	turns := make(chan struct{}, maxLeaders)
	var asking sync.WaitGroup
	for _, r := range requests {
		turns <- struct{}{}
		asking.Go(func() {
			defer func() { <-turns }()
			r.send(ctx, out)
		})
	}
	asking.Wait()
	return out
}

// resolveRequest is a request to one leader.
type resolveRequest struct {
	node      *storageNode
	positions []*storagev1.PartitionPosition
	// at says where the answers belong.
	at []int
}

func (r *resolveRequest) send(ctx context.Context, out []Resolved) {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	res, err := r.node.log.ListOffsets(ctx, &storagev1.ListOffsetsRequest{Partitions: r.positions})
	switch _, authored := rpcerr.Parse(err); {
	case err == nil && len(res.GetPartitions()) == len(r.at):
	case authored:
	default:
		err = rpcerr.New(errorsv1.Reason_REASON_NO_LEADER, "the leader at %s does not answer; try again later", r.node.address).WithCause(err)
	}
	for i, at := range r.at {
		if err != nil {
			out[at].Err = err
			continue
		}
		answer := res.GetPartitions()[i]
		if failure := answer.GetFailure(); failure != nil {
			out[at].Err = rpcerr.FromFailure(failure)
			continue
		}
		out[at].Offset, out[at].PrecedingEpoch = answer.GetOffset(), answer.PrecedingEpoch
	}
}

// Ends are the ends of a partition for readers.
type Ends struct {
	Start, End int64
	// Err is why they are not known, as in [Resolved].
	Err error
}

// Lag returns how many offsets are left to read from a committed offset; where that is
// no longer in the partition, from the partition's first.
func (e Ends) Lag(committed int64) int64 { return max(e.End-max(committed, e.Start), 0) }

// Ends asks the leaders for the ends of n partitions, which partition names.
func (l *Leaders) Ends(ctx context.Context, n int, partition func(i int) (topic string, index int32)) []Ends {
	positions := make([]Position, 0, 2*n)
	for i := range n {
		topic, index := partition(i)
		positions = append(positions, Position{Topic: topic, Index: index, At: Earliest}, Position{Topic: topic, Index: index, At: Latest})
	}
	resolved := l.Resolve(ctx, positions)
	out := make([]Ends, n)
	for i := range out {
		start, end := resolved[2*i], resolved[2*i+1]
		out[i] = Ends{Start: start.Offset, End: end.Offset, Err: start.Err}
		if out[i].Err == nil {
			out[i].Err = end.Err
		}
	}
	return out
}
