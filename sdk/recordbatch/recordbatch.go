// Package recordbatch reads and writes record batches in Apache Kafka's format
// v2 (magic 2): the one unit in which records travel, are stored and are
// replicated. A batch is a header of [HeaderSize] bytes and the records,
// compressed as a whole or not at all.
//
// The package has three layers, and each caller uses the lowest that does:
//
//   - [ParseHeader], [Verify] and [VerifyProduced] judge a batch without opening
//     it. Servers live here: they patch a batch with [Assign] and
//     [SetAppendTime] and pass its bytes on.
//   - [Records], [Decode] and [VerifyRecords] open a batch, within [Limits].
//   - [Builder] makes one, and [Filter] makes one without some of its records.
//
// All bytes given to the reading functions are taken to come from a stranger:
// no input makes them panic, and nothing is allocated on the word of a length
// or count that the bytes at hand cannot bear out.
//
// Functions may be called concurrently. A [Builder] belongs to one goroutine at
// a time.
package recordbatch

// Record is one entry of a batch.
type Record struct {
	// Offset in the partition: the batch's base offset plus the record's delta.
	Offset int64
	// Timestamp in milliseconds since the Unix epoch, or [NoTimestamp]: the
	// producer's, or the time of the append in a batch with
	// [Header.LogAppendTime].
	Timestamp int64
	// Key and Value tell null (nil) from empty. In decoded records they alias
	// memory shared by the whole batch; see [Records].
	Key, Value []byte
	// Headers in the producer's order; nil when there are none.
	Headers []RecordHeader
}

// RecordHeader is an application-defined annotation of a record.
type RecordHeader struct {
	// Key is UTF-8 in what [Builder] writes. Other producers are not held to
	// it: decoded keys have whatever bytes the batch has.
	Key string
	// Value tells null (nil) from empty.
	Value []byte
}

// NoTimestamp is the timestamp of a record that has none.
const NoTimestamp int64 = -1

// HeaderSize is the number of bytes before the records of a batch.
const HeaderSize = 61

// Where the fields of the header lie. The checksum covers everything from the
// attributes on, and so neither the fields that a leader assigns nor batch
// length and magic.
const (
	baseOffsetAt      = 0
	batchLengthAt     = 8
	leaderEpochAt     = 12
	magicAt           = 16
	crcAt             = 17
	attributesAt      = 21
	lastOffsetDeltaAt = 23
	baseTimestampAt   = 27
	maxTimestampAt    = 35
	producerIDAt      = 43
	producerEpochAt   = 51
	baseSequenceAt    = 53
	recordCountAt     = 57
)

const (
	// lengthOverhead is what batchLength does not count: itself and the base
	// offset.
	lengthOverhead = 12
	// minRecordSize is a record without key, value and headers: seven fields of
	// one byte each.
	minRecordSize = 7

	magic = 2
)
