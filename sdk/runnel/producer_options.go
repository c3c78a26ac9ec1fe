package runnel

import (
	"errors"
	"fmt"
	"time"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// Acks says when a record counts as written.
type Acks int8

const (
	// AcksAll waits until every in-sync replica holds the record, and at least
	// min.insync.replicas of them do: it survives the loss of its leader.
	AcksAll Acks = iota
	// AcksLeader waits for the leader alone: the record is lost if the leader is
	// lost before its followers have it.
	AcksLeader
	// AcksNone waits for nothing: the record counts as written once it is on its
	// way, its offset stays unknown, and it may be lost without notice.
	AcksNone
)

// ParseAcks returns the acks of a name: none, leader or all.
func ParseAcks(name string) (Acks, error) {
	for a := AcksAll; a <= AcksNone; a++ {
		if a.String() == name {
			return a, nil
		}
	}
	return AcksAll, fmt.Errorf("acks %q is not none, leader or all", name)
}

// String returns the name that [ParseAcks] takes.
func (a Acks) String() string {
	switch a {
	case AcksAll:
		return "all"
	case AcksLeader:
		return "leader"
	case AcksNone:
		return "none"
	}
	return fmt.Sprintf("acks(%d)", int8(a))
}

func (a Acks) proto() logv1.Acks {
	switch a {
	case AcksLeader:
		return logv1.Acks_ACKS_LEADER
	case AcksNone:
		return logv1.Acks_ACKS_NONE
	}
	return logv1.Acks_ACKS_ALL
}

// Compression is how batches are compressed. The client does it; servers keep
// and send what they got.
type Compression = recordbatch.Codec

// The ways to compress a batch.
const (
	NoCompression Compression = recordbatch.None
	Gzip          Compression = recordbatch.Gzip
	Snappy        Compression = recordbatch.Snappy
	LZ4           Compression = recordbatch.LZ4
	Zstd          Compression = recordbatch.Zstd
)

// ParseCompression returns the compression of a name: none, gzip, snappy, lz4 or
// zstd.
func ParseCompression(name string) (Compression, error) { return recordbatch.ParseCodec(name) }

const (
	defaultBatchBytes      = 256 << 10
	defaultBufferBytes     = 64 << 20
	defaultRequestTimeout  = 30 * time.Second
	defaultDeliveryTimeout = 2 * time.Minute
	// patience is the most that a batch waits for company under the default
	// policy while an earlier one is under way.
	patience = 5 * time.Millisecond
	// patienceUnacked is the same for AcksNone, where nothing ever comes back
	// that would say what is under way.
	patienceUnacked = time.Millisecond

	// maxBatchBytes is the most that max.message.bytes of a topic can be, and stays
	// below what a message may be on the wire (32 MiB).
	maxBatchBytes = 16 << 20
	// maxInFlight is how many batches of a partition a server remembers per
	// producer: with more under way it could no longer tell a repeated one.
	maxInFlight = 5
	// maxRequestTimeout is what servers accept.
	maxRequestTimeout = 5 * time.Minute
	// defaultMaxMessageBytes is max.message.bytes of a topic that does not set it.
	defaultMaxMessageBytes = 1 << 20
)

type producerConfig struct {
	acks        Acks
	compression Compression
	batchBytes  int
	bufferBytes int64
	linger      time.Duration
	// adaptive sends a batch at once while nothing of its partition is under way;
	// linger then bounds how long it waits otherwise.
	adaptive        bool
	requestTimeout  time.Duration
	deliveryTimeout time.Duration
	partitioner     Partitioner
	// idempotence is what was asked for; nil means whatever suits the acks.
	idempotence *bool
}

// ProducerOption changes a setting of a producer.
type ProducerOption func(*producerConfig)

// WithAcks sets when a record counts as written; default [AcksAll].
func WithAcks(a Acks) ProducerOption { return func(c *producerConfig) { c.acks = a } }

// WithCompression sets how batches are compressed; default [NoCompression]. A
// batch that would not become smaller is sent as it is.
func WithCompression(compression Compression) ProducerOption {
	return func(c *producerConfig) { c.compression = compression }
}

// WithBatchBytes sets the size, before compression, at which a batch is full:
// 1 byte to 16 MiB, default 256 KiB. A larger record has a batch to itself, and
// a topic with a smaller max.message.bytes gets smaller batches. Larger batches
// raise throughput until about 256 KiB; memory for one is taken per partition
// that is written to.
func WithBatchBytes(n int) ProducerOption { return func(c *producerConfig) { c.batchBytes = n } }

// WithLinger makes every batch that is not full wait so long for more records,
// as Kafka's linger.ms does; 0 sends at once, as long as fewer than five batches
// of the partition are under way. At most the delivery timeout.
//
// By default there is no fixed time. A batch is sent at once if nothing of its
// partition is under way, else when the last answer arrives, and in any case
// after 5 ms: a slow stream of records is not delayed, a fast one makes full
// batches by itself. With [AcksNone], where no answers come, the default is a
// fixed 1 ms.
func WithLinger(d time.Duration) ProducerOption {
	return func(c *producerConfig) { c.linger, c.adaptive = d, false }
}

// WithBufferBytes bounds the memory for records that are not acknowledged:
// default 64 MiB. Send waits while it is full. What is counted is records as
// encoded before compression, and their callbacks.
func WithBufferBytes(n int64) ProducerOption {
	return func(c *producerConfig) { c.bufferBytes = n }
}

// WithRequestTimeout bounds how long a server may take to acknowledge a batch:
// 1 ms to 5 min, default 30 s. A batch is then sent again.
func WithRequestTimeout(d time.Duration) ProducerOption {
	return func(c *producerConfig) { c.requestTimeout = d }
}

// WithDeliveryTimeout bounds the time from the first record of a batch to its
// acknowledgement, all repetitions included: default 2 min. Then its records
// fail. When it is not known whether they were written, batches behind them that
// were sent over a connection that broke may fail in doubt too, at once, since
// sending them again might write them twice.
func WithDeliveryTimeout(d time.Duration) ProducerOption {
	return func(c *producerConfig) { c.deliveryTimeout = d }
}

// WithPartitioner sets what chooses the partition of records that name none;
// default [Sticky].
func WithPartitioner(partitioner Partitioner) ProducerOption {
	return func(c *producerConfig) { c.partitioner = partitioner }
}

// WithIdempotence says whether servers shall recognise batches that are sent
// again; default true, but for [AcksNone], where nothing is.
//
// Without it a record whose outcome is unknown, because the connection broke or
// the server ran out of time, fails with an error that says so, since sending it
// again might write it twice; and only one batch of a partition is under way at
// a time, since order could not be kept otherwise.
func WithIdempotence(on bool) ProducerOption {
	return func(c *producerConfig) { c.idempotence = &on }
}

func newProducerConfig(options []ProducerOption) (producerConfig, error) {
	c := producerConfig{
		batchBytes:      defaultBatchBytes,
		bufferBytes:     defaultBufferBytes,
		linger:          patience,
		adaptive:        true,
		requestTimeout:  defaultRequestTimeout,
		deliveryTimeout: defaultDeliveryTimeout,
	}
	for _, option := range options {
		option(&c)
	}
	if c.acks == AcksNone && c.adaptive {
		c.linger, c.adaptive = patienceUnacked, false
	}
	return c, c.validate()
}

// validate returns all faults at once.
func (c *producerConfig) validate() error {
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.acks >= AcksAll && c.acks <= AcksNone, "acks %v is not none, leader or all", c.acks)
	check(c.compression >= NoCompression && c.compression <= Zstd, "compression %v is not none, gzip, snappy, lz4 or zstd", c.compression)
	check(c.batchBytes >= 1 && c.batchBytes <= maxBatchBytes, "batch size of %d bytes is not between 1 and %d", c.batchBytes, maxBatchBytes)
	check(c.bufferBytes >= 1, "buffer of %d bytes holds no record", c.bufferBytes)
	check(c.requestTimeout >= time.Millisecond && c.requestTimeout <= maxRequestTimeout, "request timeout of %v is not between 1ms and %v", c.requestTimeout, maxRequestTimeout)
	check(c.deliveryTimeout > 0, "delivery timeout of %v is not above 0", c.deliveryTimeout)
	check(c.linger >= 0 && c.linger <= max(c.deliveryTimeout, patience), "linger of %v is not between 0 and the delivery timeout (%v)", c.linger, c.deliveryTimeout)
	check(c.acks != AcksNone || c.idempotence == nil || !*c.idempotence, "idempotence needs acknowledgements: choose acks leader or all")
	return errors.Join(faults...)
}

// idempotent reports whether batches carry an identity.
func (c *producerConfig) idempotent() bool {
	if c.idempotence != nil {
		return *c.idempotence
	}
	return c.acks != AcksNone
}

// window is how many batches of a partition may be under way.
func (c *producerConfig) window() int {
	if c.idempotent() {
		return maxInFlight
	}
	return 1
}
