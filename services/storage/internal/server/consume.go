package server

import (
	"context"
	"math"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

const (
	maxConsumePartitions       = 1000
	defaultResponseBytes       = 1 << 20
	maxResponseBytes           = 16 << 20
	minShareBytes              = 64 << 10
	following            int64 = math.MaxInt64
)

// Consume serves a stream. It sends from one partition after another, one
// response each, and sleeps when it has sent what there is. While the client does
// not read, it waits in Send and holds nothing but the response at hand, and what
// was read for the next.
func (s *Server) Consume(ctx context.Context, req *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	if err := checkConsume(req); err != nil {
		return err
	}
	if err := s.streams.Enter(); err != nil {
		return err
	}
	defer s.streams.Leave()
	s.consuming.Inc()
	s.consumers.Add(1)
	defer s.consuming.Dec()
	defer s.consumers.Add(-1)
	// Tells the client that the stream stands before there is a record.
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	c := &consumeStream{
		server:   s,
		req:      req,
		stream:   stream,
		maxBytes: int(req.GetMaxResponseBytes()),
		left:     req.GetMaxRecords(),
		ready:    partition.NewReady(),
		readers:  make([]reader, len(req.GetPartitions())),
	}
	if c.maxBytes == 0 {
		c.maxBytes = defaultResponseBytes
	}
	defer c.close()
	return c.run(ctx)
}

// share is how many bytes of records a response may hold when the client asks for
// so many. Clients that do not read keep their response in memory, and one that was
// read ahead, so what all streams may hold is shared out among them; a budget that
// streams wait for would let those who do not read hold up those who do.
func (s *Server) share(asked int) int {
	return min(asked, max(minShareBytes, s.config.ResponseBytes/int(2*max(s.consumers.Load(), 1))))
}

// consumeStream is a Consume stream; it belongs to its handler's goroutine.
type consumeStream struct {
	server   *Server
	req      *storagev1.ConsumeRequest
	stream   responseSender
	maxBytes int
	// left is how many records may still be sent; with max_records only.
	left    int64
	ready   *partition.Ready
	readers []reader
	// queue has the readers that may have something to send, in the order of their
	// turns; the others wait for ready.
	queue []int
	live  int
	// ahead is what is being read for the turn after this one, while its response is
	// sent; nil for nothing.
	ahead *readAhead
}

// responseSender takes the responses; it is the stream but for tests.
type responseSender interface {
	Send(*storagev1.ConsumeResponse) error
}

// reader is a partition of the stream. The zero value has ended.
type reader struct {
	partition *partition.Partition
	// position is where the partition goes on.
	position int64
	// end is where it ends, or following.
	end int64
	// epoch is the leadership that the stream belongs to. Under another one the
	// position has to be checked anew, which is for the client to ask.
	epoch cluster.LeaderEpoch
	// news says that the client does not know the position: it asked for another
	// than an offset, and nothing was sent yet.
	news bool
}

func (c *consumeStream) run(ctx context.Context) error {
	for slot, start := range c.req.GetPartitions() {
		r, err := c.open(ctx, start)
		if err != nil {
			if err := c.fail(ctx, slot, err); err != nil {
				return err
			}
			continue
		}
		c.readers[slot] = r
		c.queue = append(c.queue, slot)
		c.live++
	}
	return c.serve(ctx)
}

// serve gives the readers their turns until all have ended.
func (c *consumeStream) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		if c.ahead != nil {
			<-c.ahead.done
		}
	}()
	drain := c.server.drain
	for c.live > 0 {
		if len(c.queue) == 0 {
			select {
			case <-c.ready.C():
			case <-drain.C():
			case <-ctx.Done():
			}
		}
		select {
		case <-drain.C():
			return drain.Err()
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if c.queue = c.ready.Take(c.queue); len(c.queue) == 0 {
			continue
		}
		slot := c.queue[0]
		c.queue = append(c.queue[:0], c.queue[1:]...)
		again, err := c.turn(ctx, slot)
		if err != nil {
			return err
		}
		if c.req.GetMaxRecords() > 0 && c.left == 0 {
			return nil
		}
		if again {
			c.queue = append(c.queue, slot)
		}
	}
	return nil
}

// open finds a partition and where to begin in it.
func (c *consumeStream) open(ctx context.Context, start *storagev1.PartitionStart) (reader, error) {
	p, err := c.server.replicas.Partition(ctx, start.GetTopic(), start.GetTopicId(), start.GetPartition())
	if err != nil {
		return reader{}, err
	}
	bounds, err := p.Bounds(leaderEpoch(start.LeaderEpoch))
	if err != nil {
		return reader{}, err
	}
	_, explicit := start.GetStart().GetPosition().(*logv1.StartPosition_Offset)
	r := reader{partition: p, end: following, epoch: bounds.LeaderEpoch, news: !explicit}
	if c.req.GetStopAtEnd() {
		r.end = bounds.HighWatermark
	}
	found, err := resolve(ctx, p, bounds, start.GetStart())
	if err != nil {
		return reader{}, err
	}
	r.position = found.Offset
	return r, p.CheckPosition(r.position, leaderEpoch(start.LastReadEpoch), r.epoch)
}

// turn sends one response of a partition, if there is anything to send. It
// reports whether the partition wants another turn at once.
func (c *consumeStream) turn(ctx context.Context, slot int) (again bool, err error) {
	r := &c.readers[slot]
	if r.partition == nil {
		return false, nil
	}
	f, err := c.read(ctx, slot)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return false, c.fail(ctx, slot, err)
	}
	if len(f.Batches) == 0 && f.NextOffset > r.position {
		// Compaction has removed what there was up to here.
		r.position, r.news = f.NextOffset, true
	}
	switch {
	case len(f.Batches) > 0 && c.req.GetForm() == storagev1.RecordForm_RECORD_FORM_BATCHES:
		r.position = f.NextOffset
		c.readOn(ctx, slot, f)
		out := c.response(slot, f)
		out.Batches = f.Batches
		if err := c.send(r, out); err != nil {
			return false, err
		}
	case len(f.Batches) > 0:
		if err := c.sendRecords(ctx, slot, f); err != nil {
			return false, err
		}
	case r.position >= r.end || r.news:
		if err := c.send(r, c.response(slot, f)); err != nil {
			return false, err
		}
	}
	if r.partition == nil {
		return false, nil
	}
	if r.position >= r.end {
		c.drop(slot)
		return false, nil
	}
	return !r.partition.Await(c.ready, slot, r.position, r.epoch), nil
}

// response returns one without records, at the reader's position.
func (c *consumeStream) response(slot int, f partition.Fetched) *storagev1.ConsumeResponse {
	r := &c.readers[slot]
	start := c.req.GetPartitions()[slot]
	return &storagev1.ConsumeResponse{
		Topic:          start.GetTopic(),
		Partition:      start.GetPartition(),
		NextOffset:     r.position,
		HighWatermark:  f.HighWatermark,
		LogStartOffset: f.LogStart,
		LeaderEpoch:    int32(f.LeaderEpoch),
		EndReached:     r.position >= r.end,
	}
}

func (c *consumeStream) send(r *reader, out *storagev1.ConsumeResponse) error {
	r.news = false
	return c.stream.Send(out)
}

// sendRecords opens batches and sends their records, in several responses where
// they are larger opened than closed.
func (c *consumeStream) sendRecords(ctx context.Context, slot int, f partition.Fetched) error {
	r := &c.readers[slot]
	var records []*logv1.Record
	size, limit := 0, c.server.share(c.maxBytes)
	flush := func(next int64) error {
		r.position = next
		out := c.response(slot, f)
		out.Records = records
		records, size = nil, 0
		return c.send(r, out)
	}
	for _, batch := range f.Batches {
		header, err := recordbatch.ParseHeader(batch)
		if err != nil || header.Control() {
			continue
		}
		for record, err := range recordbatch.Records(batch, c.server.host.Decoding()) {
			if err != nil {
				if len(records) > 0 {
					if err := flush(header.BaseOffset); err != nil {
						return err
					}
				}
				return c.fail(ctx, slot, rpcerr.New(errorsv1.Reason_REASON_CORRUPT_BATCH,
					"the records of partition %d of topic %q from offset %d to %d cannot be opened: their producer sent them damaged, or larger than %d bytes opened; read on at offset %d, or read them as RECORD_FORM_BATCHES",
					r.partition.Index(), r.partition.Topic().Name, header.BaseOffset, header.LastOffset(), c.server.host.Decoding().MaxBytes, header.LastOffset()+1).WithCause(err))
			}
			if record.Offset < r.position {
				continue
			}
			bytes := plainSize(record)
			if len(records) > 0 && size+bytes > limit {
				if err := flush(record.Offset); err != nil {
					return err
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
			records = append(records, plainRecord(record, c.req.GetAsText()))
			size += bytes
			if c.req.GetMaxRecords() > 0 {
				if c.left--; c.left == 0 {
					return flush(record.Offset + 1)
				}
			}
		}
	}
	return flush(f.NextOffset)
}

// fail tells why a partition ends early; the others go on.
func (c *consumeStream) fail(ctx context.Context, slot int, cause error) error {
	start := c.req.GetPartitions()[slot]
	out := &storagev1.ConsumeResponse{
		Topic:      start.GetTopic(),
		Partition:  start.GetPartition(),
		NextOffset: c.readers[slot].position,
		Failure:    c.server.failure(ctx, cause),
	}
	c.drop(slot)
	return c.stream.Send(out)
}

// drop ends a partition.
func (c *consumeStream) drop(slot int) {
	if c.readers[slot].partition != nil {
		c.live--
	}
	c.readers[slot] = reader{}
}

func (c *consumeStream) close() {
	for _, r := range c.readers {
		if r.partition != nil {
			r.partition.Forget(c.ready)
		}
	}
}

func checkConsume(req *storagev1.ConsumeRequest) error {
	starts := req.GetPartitions()
	if n := len(starts); n == 0 || n > maxConsumePartitions {
		return invalid("partitions has %d entries, must have 1 to %d", n, maxConsumePartitions)
	}
	plain := false
	switch req.GetForm() {
	case storagev1.RecordForm_RECORD_FORM_UNSPECIFIED, storagev1.RecordForm_RECORD_FORM_RECORDS:
		plain = true
	case storagev1.RecordForm_RECORD_FORM_BATCHES:
	default:
		return invalid("form is %d, must be RECORD_FORM_RECORDS or RECORD_FORM_BATCHES", req.GetForm())
	}
	switch {
	case req.GetMaxRecords() < 0:
		return invalid("max_records is %d, must be 0 or more", req.GetMaxRecords())
	case req.GetMaxRecords() > 0 && !plain:
		return invalid("max_records needs form RECORD_FORM_RECORDS; batches are sent whole")
	case req.GetAsText() && !plain:
		return invalid("as_text needs form RECORD_FORM_RECORDS")
	case req.GetMaxResponseBytes() < 0 || req.GetMaxResponseBytes() > maxResponseBytes:
		return invalid("max_response_bytes is %d, must be 1 to %d, or 0 for %d", req.GetMaxResponseBytes(), maxResponseBytes, defaultResponseBytes)
	}
	seen := make(map[laneID]struct{}, len(starts))
	for i, start := range starts {
		if start.GetTopic() == "" {
			return invalid("partitions[%d].topic is empty; name the topic", i)
		}
		id := laneID{start.GetTopic(), start.GetPartition()}
		if _, twice := seen[id]; twice {
			return invalid("partitions[%d] names partition %d of topic %q a second time; name it once", i, id.partition, id.topic)
		}
		seen[id] = struct{}{}
		if n := len(start.GetTopicId()); n != 0 && n != len(cluster.TopicID{}) {
			return invalid("partitions[%d].topic_id has %d bytes, must have 16 or none", i, n)
		}
		for _, err := range []error{
			checkEpoch("leader_epoch", start.LeaderEpoch), checkEpoch("last_read_epoch", start.LastReadEpoch), checkPosition(start.GetStart()),
		} {
			if err != nil {
				return err
			}
		}
	}
	return nil
}
