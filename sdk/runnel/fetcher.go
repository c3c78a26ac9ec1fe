package runnel

import (
	"context"
	"math"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// maxStreamPartitions is how many partitions one stream may cover.
const maxStreamPartitions = 1000

// fetcherKey names a fetcher: nodes that lead more partitions than one stream
// covers get several.
type fetcherKey struct {
	address string
	number  int
}

// fetcher reads ahead what one node leads, over one stream at a time. When the
// set of partitions or a position changes it is interrupted: it ends the stream
// and opens another from where each partition stands. What is buffered stays.
type fetcher struct {
	consumer *Consumer
	address  string
	client   storagev1connect.LogServiceClient
	// stop ends run.
	stop context.CancelFunc

	// Guarded by the consumer's mu.

	// readings counts the partitions that are routed here.
	readings int
	// interrupted tells the stream to end, hangUp makes its Receive return.
	interrupted bool
	hangUp      context.CancelFunc
}

// interrupt ends the stream, so that the fetcher looks at its readings anew.
// Callers hold the consumer's mu.
func (f *fetcher) interrupt() {
	f.interrupted = true
	if f.hangUp != nil {
		f.hangUp()
	}
}

// summon makes the reading's fetcher take it up. Callers hold mu.
func (c *Consumer) summon(r *reading) {
	if r.fetcher != nil {
		r.fetcher.interrupt()
	}
}

// follow routes a reading to the leader of a newer epoch. Callers hold mu.
func (c *Consumer) follow(r *reading, to route) {
	if to.epoch < r.route.epoch || to == r.route && r.fetcher != nil || to.epoch == r.route.epoch && to.address == "" {
		return
	}
	moved := to.address != r.route.address || r.fetcher == nil
	r.route = to
	if !moved {
		return
	}
	c.leave(r)
	// What the old leader still sends is void.
	r.session++
	if to.address == "" || c.closed {
		return
	}
	r.retryAt = time.Time{}
	r.fetcher = c.fetcher(to.address)
	r.fetcher.readings++
	r.fetcher.interrupt()
	c.broadcast()
}

// leave takes a reading from its fetcher. Callers hold mu.
func (c *Consumer) leave(r *reading) {
	if r.fetcher == nil {
		return
	}
	r.fetcher.readings--
	if r.streaming {
		r.fetcher.interrupt()
	}
	r.fetcher, r.streaming = nil, false
}

// fetcher returns one with room for a reading. Callers hold mu.
func (c *Consumer) fetcher(address string) *fetcher {
	key := fetcherKey{address: address}
	for {
		f := c.fetchers[key]
		if f == nil {
			f = &fetcher{consumer: c, address: address, client: c.client.log(address, transport.Consume)}
			f.stop = c.spawn(f.run)
			c.fetchers[key] = f
		}
		if f.readings < maxStreamPartitions {
			return f
		}
		key.number++
	}
}

// run fetches until ctx ends.
func (f *fetcher) run(ctx context.Context) {
	c := f.consumer
	for ctx.Err() == nil {
		unresolved, covered, changed := f.work(time.Now())
		switch {
		case len(unresolved) > 0:
			f.resolve(ctx, unresolved)
		case len(covered) > 0:
			f.stream(ctx, covered)
			c.mu.Lock()
			for _, s := range covered {
				if s.reading.fetcher == f {
					s.reading.streaming = false
				}
			}
			c.mu.Unlock()
		default:
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}
}

// session is a reading as a fetcher found it.
type session struct {
	reading *reading
	number  uint64
	// Where to begin; from moves on with what is received.
	from        Position
	start       Start
	asksStart   bool
	until       int64
	leaderEpoch cluster.LeaderEpoch
}

// void reports whether the reading has moved on since. Callers hold the
// consumer's mu.
func (s *session) void() bool { return s.reading.session != s.number }

// work returns what is to be done: partitions whose start or bound the leader
// must be asked for, or else those to stream; and a channel that tells when to
// look again if there are none.
func (f *fetcher) work(now time.Time) (unresolved, covered []*session, changed <-chan struct{}) {
	c := f.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	f.interrupted = false
	for _, r := range c.order {
		if r.fetcher != f || !r.wanted() || now.Before(r.retryAt) {
			continue
		}
		s := &session{
			reading:     r,
			number:      r.session,
			from:        r.ahead,
			start:       r.start,
			asksStart:   r.startPending,
			until:       r.until,
			leaderEpoch: r.route.epoch,
		}
		if r.pending() {
			unresolved = append(unresolved, s)
		} else {
			covered = append(covered, s)
		}
	}
	if len(unresolved) == 0 {
		for _, s := range covered {
			s.reading.streaming = true
		}
	}
	return unresolved, covered, c.changed
}

// resolve asks the leader for starts and bounds.
func (f *fetcher) resolve(ctx context.Context, sessions []*session) {
	request := &storagev1.ListOffsetsRequest{}
	type question struct {
		*session
		bound bool
	}
	var questions []question
	ask := func(s *session, start Start, bound bool) {
		tp := s.reading.partition
		request.Partitions = append(request.Partitions, &storagev1.PartitionPosition{
			Topic: tp.Topic, Partition: tp.Partition, Position: start.proto(),
		})
		questions = append(questions, question{s, bound})
	}
	for _, s := range sessions {
		if s.asksStart {
			ask(s, s.start, false)
		}
		if s.until == boundAtEnd {
			ask(s, Latest(), true)
		}
	}
	response, err := call(ctx, f.address, f.client.ListOffsets, request)
	if ctx.Err() != nil {
		return
	}
	c := f.consumer
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.broadcast()
	if err == nil && len(response.GetPartitions()) != len(questions) {
		err = newError(errorsv1.Reason_REASON_INTERNAL, "%s answers %d of %d positions", f.address, len(response.GetPartitions()), len(questions))
	}
	var owed []*tenure
	for i, q := range questions {
		r := q.reading
		switch {
		case q.void():
		case err != nil:
			c.stumble(r, err, now)
		case response.Partitions[i].GetFailure() != nil:
			c.setBack(r, r.ahead.Offset, response.Partitions[i].GetFailure(), now)
		case q.bound:
			r.until = response.Partitions[i].GetOffset()
			r.pause.reset()
		default:
			found := Position{Offset: response.Partitions[i].GetOffset(), LeaderEpoch: -1}
			if before := response.Partitions[i].PrecedingEpoch; before != nil {
				found.LeaderEpoch = *before
			}
			r.moveTo(found)
			r.startPending = false
			if o := r.tenure; o != nil {
				if o.finished.Offset < 0 {
					// That the member begins here is committed even if it never reads
					// anything: without an offset nobody can say how far behind it is.
					o.finished = found
				}
				told := o.told
				o.told = false
				if q.start.byPolicy && c.config.reset == ResetLatest && !told {
					o.owed = found
					owed = append(owed, o)
					continue
				}
			}
			r.pause.reset()
		}
	}
	if len(owed) > 0 {
		c.committer.commitStarts(owed)
	}
}

// stream reads until it is interrupted or the stream breaks.
func (f *fetcher) stream(ctx context.Context, covered []*session) {
	c := f.consumer
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	f.hangUp = cancel
	interrupted := f.interrupted
	c.mu.Unlock()
	if interrupted {
		return
	}
	request := &storagev1.ConsumeRequest{
		Form:             storagev1.RecordForm_RECORD_FORM_BATCHES,
		MaxResponseBytes: int32(min(maxResponseBytes, c.config.bufferBytes/2)),
	}
	sessions := make(map[TopicPartition]*session, len(covered))
	for _, s := range covered {
		tp := s.reading.partition
		sessions[tp] = s
		start := &storagev1.PartitionStart{
			Topic:       tp.Topic,
			Partition:   tp.Partition,
			Start:       From(s.from).proto(),
			LeaderEpoch: new(int32(s.leaderEpoch)),
			TopicId:     s.reading.id[:],
		}
		if s.from.LeaderEpoch >= 0 {
			start.LastReadEpoch = new(s.from.LeaderEpoch)
		}
		request.Partitions = append(request.Partitions, start)
	}
	stream, err := f.client.Consume(ctx, request)
	for err == nil && c.room(ctx, f) {
		var response *storagev1.ConsumeResponse
		if response, err = stream.Receive(); err == nil {
			s := sessions[TopicPartition{Topic: response.GetTopic(), Partition: response.GetPartition()}]
			if s != nil {
				c.take(s, response)
			}
		}
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	err = callError(ctx, f.address, err)
	c.client.config.Logger.Debug("stream of records ended", "address", f.address, "error", err)
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range covered {
		if !s.void() {
			c.stumble(s.reading, err, now)
		}
	}
	c.broadcast()
}

// room waits until less than the bound is buffered, and reports false if the
// stream is to end.
func (c *Consumer) room(ctx context.Context, f *fetcher) bool {
	for {
		c.mu.Lock()
		full, interrupted, changed := c.buffered >= c.config.bufferBytes, f.interrupted, c.changed
		c.mu.Unlock()
		if interrupted || ctx.Err() != nil {
			return false
		}
		if !full {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// take opens a response and buffers it.
func (c *Consumer) take(s *session, response *storagev1.ConsumeResponse) {
	r := s.reading
	var chunks []chunk
	var size int64
	var fault *Error
	skipTo := int64(-1)
	until := s.until
	if until < 0 {
		until = math.MaxInt64
	}
	for i, batch := range response.GetBatches() {
		next, err := openBatch(r.partition, batch, s.from.Offset, until)
		if err != nil {
			fault = newError(errorsv1.Reason_REASON_CORRUPT_BATCH, "a record batch does not decode: %v", err)
			fault.cause = err
			skipTo = behind(response, i, s.from.Offset)
			break
		}
		s.from = next.next
		if next.count > 0 {
			chunks = append(chunks, next)
			size += next.size
		}
	}
	if fault == nil {
		s.from.Offset = min(max(s.from.Offset, response.GetNextOffset()), until)
	}

	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.void() {
		return
	}
	r.highWatermark = response.GetHighWatermark()
	if response.GetFailure() == nil {
		r.pause.reset()
	}
	r.received = r.received || r.ahead != s.from
	r.chunks = append(r.chunks, chunks...)
	r.moveTo(s.from)
	c.buffered += size
	if fault != nil {
		c.fail(r, skipTo, fault)
	}
	if failure := response.GetFailure(); failure != nil {
		c.setBack(r, response.GetNextOffset(), failure, now)
	}
	if r.fetched() {
		r.fetcher.interrupt()
	}
	c.broadcast()
}

// behind returns the offset behind the batch of that number in a response, which
// is not to be trusted: what is said of its neighbours tells.
func behind(response *storagev1.ConsumeResponse, number int, from int64) int64 {
	if batches := response.GetBatches(); number+1 < len(batches) {
		if h, err := recordbatch.ParseHeader(batches[number+1]); err == nil {
			return max(h.BaseOffset, from+1)
		}
	}
	return max(response.GetNextOffset(), from+1)
}
