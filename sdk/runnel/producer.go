package runnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// Producer sends records. It is safe for concurrent use; one producer for a
// whole program is best, since batches then fill soonest.
//
// Records that one goroutine sends to one partition are written in that order,
// over failures and repetitions too. By default each is written exactly once per
// Send that succeeds, whatever fails on the way; see [WithIdempotence].
type Producer struct {
	client *Client
	config producerConfig
	memory memory
	// attempts numbers requests.
	attempts atomic.Uint64
	// sealed counts the batches that are closed to records and not settled.
	sealed     atomic.Int64
	deliveries *deliveries
	// closing is closed, under mu, when no more records are taken.
	closing chan struct{}
	// shutdown runs once: the first of Close and Abort.
	shutdown sync.Once

	// topics is copied on write, under mu.
	topics atomic.Pointer[map[string]*producerTopic]
	// fault is why the producer as a whole is of no more use; nil while it is.
	fault atomic.Pointer[error]
	// tasks are the goroutines that the producer owns.
	tasks sync.WaitGroup

	// identifying serialises requests for an identity and guards the latest.
	identifying sync.Mutex
	identity    *identity

	// mu comes before the locks of queues.
	mu sync.Mutex
	// started says that the goroutines run: they do from the first Send on;
	// stopped that they have been told to end. Guarded by mu.
	started, stopped bool
	// spawn starts a goroutine and returns what ends it, stop ends them all.
	// Guarded by mu.
	spawn func(func(context.Context)) context.CancelFunc
	stop  context.CancelFunc
	// senders by address. Guarded by mu.
	senders map[string]*sender

	loss loss
}

// loss is what happened to records that nobody is told about one by one.
type loss struct {
	mu sync.Mutex
	// records counts those without callback that failed, err is the first of
	// their errors. Guarded by mu.
	records int
	err     error
}

// producerTopic is a topic that the producer sends to. Deleted and created again
// under the same name it is another one.
type producerTopic struct {
	name string
	id   cluster.TopicID
	// queues has one per partition, and only ever grows.
	queues atomic.Pointer[[]*partitionQueue]
	// image is the one that the entry is in line with.
	image  atomic.Pointer[cluster.Image]
	spread spread
	// maxBatch is the size in bytes at which batches of the topic are full.
	maxBatch atomic.Int64
}

func (t *producerTopic) batchBytes() int { return int(t.maxBatch.Load()) }

// NewProducer returns a producer. It does no I/O: that starts with the first
// Send. The error names all settings that make no sense.
func (c *Client) NewProducer(options ...ProducerOption) (*Producer, error) {
	config, err := newProducerConfig(options)
	if err != nil {
		return nil, err
	}
	p := &Producer{
		client:     c,
		config:     config,
		memory:     memory{limit: config.bufferBytes},
		deliveries: newDeliveries(),
		closing:    make(chan struct{}),
		senders:    make(map[string]*sender),
	}
	p.topics.Store(&map[string]*producerTopic{})
	if err := c.join(p); err != nil {
		return nil, err
	}
	return p, nil
}

// Send takes a record to be written, and calls done, unless it is nil, once the
// outcome is known. Key, value and headers are copied: they are the caller's
// again when Send returns.
//
// Send waits for the first word from the cluster about a topic, and while the
// memory for records is full (see [WithBufferBytes]). An error says that the
// record was not taken: the cause of ctx when that ended first, [ErrClosed], or
// an [*Error], such as for a record of more than 16 MiB. Then done is not called;
// else it is called exactly once.
//
// All callbacks of a producer run one after another in a goroutine of their own,
// those of one partition in the order of their records. They may call Send, but
// not wait for records themselves: no SendSync, Flush, or Close.
func (p *Producer) Send(ctx context.Context, r Record, done func(Ack, error)) error {
	now := time.Now()
	ms := now.UnixMilli()
	if !r.Timestamp.IsZero() {
		ms = r.Timestamp.UnixMilli()
	}
	size := recordbatch.MaxRecordSize(r.Key, r.Value, r.Headers)
	if size > maxBatchBytes-recordbatch.HeaderSize {
		return newError(errorsv1.Reason_REASON_RECORD_TOO_LARGE, "record of %d bytes is over the limit of %d", size, maxBatchBytes)
	}
	if int64(size+recordbatch.HeaderSize+callbackSize) > p.config.bufferBytes {
		return newError(errorsv1.Reason_REASON_RECORD_TOO_LARGE,
			"record of %d bytes does not fit into the producer's buffer of %d bytes: raise WithBufferBytes", size, p.config.bufferBytes)
	}
	var credit int64
	for {
		t := (*p.topics.Load())[r.Topic]
		if t == nil {
			var err error
			if t, err = p.open(ctx, r.Topic); err != nil {
				p.memory.release(credit)
				return err
			}
		} else if t.image.Load() != p.client.view.image() {
			// Whoever knows that a topic was created again must not write to the old one
			// because the supervisor has not come around yet.
			p.update(t, now)
		}
		q, sticky, err := p.choose(t, &r)
		if err != nil {
			p.memory.release(credit)
			return err
		}
		missing, err := q.add(&r, ms, size, now, done, credit)
		switch {
		case err != nil:
			if errors.Is(err, errReplaced) {
				p.mu.Lock()
				p.forget(t)
				p.mu.Unlock()
				continue
			}
			p.memory.release(credit)
			return err
		case missing > 0:
			p.unclog()
			if err := p.memory.acquire(ctx, p.closing, missing); err != nil {
				p.memory.release(credit)
				return err
			}
			credit += missing
			now = time.Now()
		default:
			if sticky {
				t.spread.sent(int64(size), t.maxBatch.Load(), *t.queues.Load())
			}
			return nil
		}
	}
}

// SendSync sends a record and waits for its outcome. When ctx ends first the
// record may still be written. One call after another makes batches of one
// record; concurrent calls share batches.
func (p *Producer) SendSync(ctx context.Context, r Record) (Ack, error) {
	type result struct {
		ack Ack
		err error
	}
	results := make(chan result, 1)
	err := p.Send(ctx, r, func(ack Ack, err error) { results <- result{ack, err} })
	if err != nil {
		return Ack{Topic: r.Topic, Partition: r.Partition.partition(), Offset: -1}, err
	}
	select {
	case r := <-results:
		return r.ack, r.err
	case <-ctx.Done():
		return Ack{Topic: r.Topic, Partition: r.Partition.partition(), Offset: -1}, context.Cause(ctx)
	}
}

// Flush sends what is waiting without further delay and returns once every
// record for which Send returned before has its outcome, and its callback has
// run. The error tells of records that were sent without a callback and failed
// since the last Flush; or it is the cause of ctx, if that ended first.
func (p *Producer) Flush(ctx context.Context) error {
	var settled []<-chan struct{}
	now := time.Now()
	for _, q := range p.queues() {
		if s := q.flush(now); s != nil {
			settled = append(settled, s)
		}
	}
	for _, s := range settled {
		select {
		case <-s:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	p.mu.Lock()
	started := p.started
	p.mu.Unlock()
	if started {
		barrier := make(chan struct{})
		p.deliveries.push(delivery{barrier: barrier})
		select {
		case <-barrier:
		case <-p.deliveries.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return p.loss.take()
}

// HeldUp returns why records that a topic has not acknowledged have to wait: the
// latest failure after which they are sent again, such as a refusal for a full
// disk, or that their partition has no leader. It returns nil when nothing waits
// or nothing is known to be in the way. The error is that of the partition whose
// records have waited longest.
func (p *Producer) HeldUp(topic string) error {
	t := (*p.topics.Load())[topic]
	if t == nil {
		return nil
	}
	var why error
	var longest time.Time
	for _, q := range *t.queues.Load() {
		if since, err := q.heldUp(); err != nil && (why == nil || since.Before(longest)) {
			why, longest = err, since
		}
	}
	return why
}

// Close takes no more records, delivers those at hand as Flush does, which takes
// at most the delivery timeout, and ends. The error tells of records that were
// sent without a callback and failed. Closing again does nothing.
func (p *Producer) Close() error { return p.close(nil) }

// Abort takes no more records and ends at once. Records without an outcome fail
// with [ErrClosed]; those that were sent already may be written nevertheless,
// and their errors say so.
func (p *Producer) Abort() {
	// What was lost without a callback was given up by the caller.
	_ = p.close(fmt.Errorf("producer is %w", ErrClosed))
}

func (p *Producer) close(abort error) (err error) {
	p.shutdown.Do(func() {
		p.mu.Lock()
		close(p.closing)
		p.mu.Unlock()
		for _, q := range p.queues() {
			if abort != nil {
				q.refuse(abort)
			} else {
				q.shut(fmt.Errorf("producer is %w", ErrClosed))
			}
		}
		// Every record ends by its delivery timeout.
		err = p.Flush(context.Background())
		p.mu.Lock()
		started, stop := p.started, p.stop
		p.stopped = true
		p.mu.Unlock()
		if started {
			stop()
			p.tasks.Wait()
			p.client.view.release()
		}
		p.client.leave(p)
	})
	return err
}

// errReplaced says that a queue's topic is gone. Its name may stand for another.
var errReplaced = errors.New("topic is gone")

// open returns the topic of that name to send to, asking the cluster about it.
func (p *Producer) open(ctx context.Context, name string) (*producerTopic, error) {
	if fault := p.fault.Load(); fault != nil {
		return nil, *fault
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	topic, err := p.client.view.topic(ctx, name)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isClosing() {
		return nil, fmt.Errorf("producer is %w", ErrClosed)
	}
	t := p.register(topic)
	p.adopt(p.client.view.image(), t, time.Now())
	return t, nil
}

// update brings an entry in line with the latest image.
func (p *Producer) update(t *producerTopic, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if image := p.client.view.image(); t.image.Load() != image {
		p.adopt(image, t, now)
	}
}

func (p *Producer) isClosing() bool {
	select {
	case <-p.closing:
		return true
	default:
		return false
	}
}

// register returns the entry of a topic, making one if there is none. Callers
// hold mu.
func (p *Producer) register(topic *cluster.Topic) *producerTopic {
	old := *p.topics.Load()
	if t := old[topic.Name]; t != nil {
		// If it is a topic of another id, its queues say so.
		return t
	}
	t := &producerTopic{name: topic.Name, id: topic.ID}
	t.resize(p, topic)
	t.spread.current.Store(rand.Uint32N(uint32(len(topic.Partitions))))
	topics := maps.Clone(old)
	topics[topic.Name] = t
	p.topics.Store(&topics)
	return t
}

// resize brings the entry in line with its topic. Callers hold the producer's
// mu.
func (t *producerTopic) resize(p *Producer, topic *cluster.Topic) {
	t.maxBatch.Store(int64(min(p.config.batchBytes, maxMessageBytes(topic))))
	var queues []*partitionQueue
	if current := t.queues.Load(); current != nil {
		queues = *current
	}
	if len(queues) == len(topic.Partitions) {
		return
	}
	grown := make([]*partitionQueue, len(topic.Partitions))
	copy(grown, queues)
	for i := len(queues); i < len(grown); i++ {
		grown[i] = newPartitionQueue(p, t, int32(i))
		if p.isClosing() {
			grown[i].shut(fmt.Errorf("producer is %w", ErrClosed))
		}
	}
	t.queues.Store(&grown)
}

// maxMessageBytes returns the topic's limit on a batch.
func maxMessageBytes(topic *cluster.Topic) int {
	n, err := strconv.Atoi(topic.Config["max.message.bytes"])
	if err != nil || n < 1 {
		return defaultMaxMessageBytes
	}
	return n
}

// forget drops a topic that is gone, so that its name is looked up again.
// Callers hold mu.
func (p *Producer) forget(t *producerTopic) {
	old := *p.topics.Load()
	if old[t.name] != t {
		return
	}
	topics := maps.Clone(old)
	delete(topics, t.name)
	p.topics.Store(&topics)
}

// start makes the producer's goroutines run.
func (p *Producer) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isClosing() {
		return fmt.Errorf("producer is %w", ErrClosed)
	}
	if p.started {
		return nil
	}
	p.started = true
	p.client.view.retain()
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	p.spawn = func(task func(context.Context)) context.CancelFunc {
		taskCtx, cancelTask := context.WithCancel(ctx)
		p.tasks.Go(func() {
			defer cancelTask()
			task(taskCtx)
		})
		return cancelTask
	}
	p.spawn(p.deliveries.run)
	p.spawn(p.supervise)
	return nil
}

// choose returns the queue for a record, and whether the sticky partition was
// chosen.
func (p *Producer) choose(t *producerTopic, r *Record) (q *partitionQueue, sticky bool, err error) {
	queues := *t.queues.Load()
	n := len(queues)
	var chosen int
	switch partitioner := &p.config.partitioner; {
	case r.Partition != AnyPartition:
		chosen = int(r.Partition.partition())
	case partitioner.custom != nil:
		chosen = partitioner.custom(t.name, r.Key, n)
	case r.Key != nil:
		chosen = int(PartitionForKey(r.Key, n))
	case partitioner.roundRobin:
		chosen = int(t.spread.current.Add(1) % uint32(n))
	default:
		chosen, sticky = int(t.spread.current.Load()), true
	}
	if chosen < 0 || chosen >= n {
		return nil, false, newError(errorsv1.Reason_REASON_PARTITION_NOT_FOUND,
			"topic %q has no partition %d: it has %d, from 0", t.name, chosen, n)
	}
	return queues[chosen], sticky, nil
}

// queues returns those of all topics.
func (p *Producer) queues() []*partitionQueue {
	var all []*partitionQueue
	for _, t := range *p.topics.Load() {
		all = append(all, *t.queues.Load()...)
	}
	return all
}

// unclog seals the open batches when all memory is in batches that only wait for
// more records: none would come any more.
func (p *Producer) unclog() {
	if p.sealed.Load() > 0 {
		return
	}
	now := time.Now()
	for _, q := range p.queues() {
		q.sealOpen(now)
	}
}

// add notes that records without a callback failed.
func (l *loss) add(records int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records += records
	if l.err == nil {
		l.err = err
	}
}

// take returns an error about what has been noted since the last call.
func (l *loss) take() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.records == 0 {
		return nil
	}
	err := fmt.Errorf("%d records that were sent without a callback failed, the first of them: %w", l.records, l.err)
	l.records, l.err = 0, nil
	return err
}

// identify returns an identity other than renounced, from the storage node at
// hand if the producer has none.
func (p *Producer) identify(ctx context.Context, client storagev1connect.LogServiceClient, address string, renounced *identity) (*identity, error) {
	p.identifying.Lock()
	defer p.identifying.Unlock()
	if p.identity != nil && p.identity != renounced {
		return p.identity, nil
	}
	response, err := call(ctx, address, client.InitProducer, &storagev1.InitProducerRequest{})
	if err != nil {
		return nil, err
	}
	p.identity = &identity{id: response.GetProducerId(), epoch: int16(response.GetProducerEpoch())}
	return p.identity, nil
}

// sender returns the sender to an address, starting one if there is none; nil
// for no address or once the producer is closed. Callers hold mu until a queue
// follows it, so that it is not retired meanwhile.
func (p *Producer) sender(address string) *sender {
	if address == "" || p.stopped {
		return nil
	}
	if s := p.senders[address]; s != nil {
		return s
	}
	s := newSender(p, address)
	s.stop = p.spawn(s.run)
	p.senders[address] = s
	return s
}

// supervise keeps queues routed to their leaders and their records to their
// time, until ctx ends.
func (p *Producer) supervise(ctx context.Context) {
	ticker := time.NewTicker(p.config.tick())
	defer ticker.Stop()
	_, changed := p.client.view.next()
	p.reconcile()
	for {
		select {
		case <-changed:
			_, changed = p.client.view.next()
			p.reconcile()
		case now := <-ticker.C:
			p.expire(now)
		case <-ctx.Done():
			return
		}
	}
}

// tick is how often timeouts are looked after.
func (c *producerConfig) tick() time.Duration {
	return max(min(c.deliveryTimeout/8, c.requestTimeout/8, 250*time.Millisecond), time.Millisecond)
}

// expire fails what has waited for too long.
func (p *Producer) expire(now time.Time) {
	for _, q := range p.queues() {
		if stuck := q.expire(now); stuck != nil {
			stuck.cancel(newError(errorsv1.Reason_REASON_TIMED_OUT, "no answer within %v", p.config.answerTimeout()))
		}
	}
	if p.memory.queued.Load() > 0 {
		p.unclog()
	}
}

// answerTimeout is how long an answer may take: the server's own time, and some
// for the way.
func (c *producerConfig) answerTimeout() time.Duration {
	return c.requestTimeout + min(c.requestTimeout, 5*time.Second)
}

// reconcile brings all topics and senders in line with the cluster.
func (p *Producer) reconcile() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	// Read under mu, as everywhere: nobody is taken back to an older image, in which
	// a new topic does not exist.
	image := p.client.view.image()
	if image == nil {
		return
	}
	inUse := make(map[string]bool)
	for _, t := range *p.topics.Load() {
		p.adopt(image, t, now)
		for _, q := range *t.queues.Load() {
			inUse[q.address()] = true
		}
	}
	for _, node := range image.Nodes() {
		inUse[node.Address] = true
	}
	for address, s := range p.senders {
		if !inUse[address] {
			s.stop()
			delete(p.senders, address)
		}
	}
}

// adopt brings one topic in line with the cluster. A topic that is gone fails
// what waits for it: under its name there may be another by now, which was not
// meant. Callers hold mu.
func (p *Producer) adopt(image *cluster.Image, t *producerTopic, now time.Time) {
	t.image.Store(image)
	topic, ok := image.TopicByID(t.id)
	if !ok {
		gone := newError(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q (%s) was deleted", t.name, t.id).withOutcome(fatal)
		gone.cause = errReplaced
		for _, q := range *t.queues.Load() {
			q.refuse(gone)
		}
		p.forget(t)
		return
	}
	t.resize(p, topic)
	for i, q := range (*t.queues.Load())[:len(topic.Partitions)] {
		r, _ := leader(image, &topic.Partitions[i])
		q.follow(p.sender(r.address), r.epoch, now)
	}
}

// redirect routes a partition as a node says that does not lead it.
func (p *Producer) redirect(topic string, partition int32, to *errorsv1.NotLeader, now time.Time) {
	t := (*p.topics.Load())[topic]
	if t == nil {
		return
	}
	if queues := *t.queues.Load(); partition >= 0 && int(partition) < len(queues) {
		p.mu.Lock()
		defer p.mu.Unlock()
		queues[partition].follow(p.sender(to.GetLeaderAddress()), cluster.LeaderEpoch(to.GetLeaderEpoch()), now)
	}
}

// fail makes the producer refuse everything from now on.
func (p *Producer) fail(fault error) {
	p.fault.CompareAndSwap(nil, &fault)
	for _, q := range p.queues() {
		q.refuse(fault)
	}
}
