package recordbatch

import (
	"fmt"
	"iter"
	"math"
)

// Records returns the records of b, one batch that [Verify] accepts, in order.
// Offsets and timestamps are absolute. When a record cannot be read, the last
// pair has the error and no record.
//
// Records does not look at the checksum again, but b may hold anything. What it
// yields agrees with the header: as many records as it counts, offsets
// ascending and within the batch, and no bytes left over. Compaction leaves gaps
// between offsets; in a batch that [VerifyProduced] accepts there is no room for
// any.
//
// Keys and values alias b, or for a compressed batch one buffer that is
// allocated per call and never used again. So they stay valid for as long as b
// is left unchanged, and each of them keeps the whole batch in memory: whoever
// keeps few records for long copies them. Nothing is allocated per record but
// the slice of its headers.
func Records(b []byte, l Limits) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var r reader
		if err := r.open(b, l); err != nil {
			yield(Record{}, err)
			return
		}
		for range r.header.RecordCount {
			record, err := r.next()
			if err != nil {
				yield(Record{}, err)
				return
			}
			if !yield(record, nil) {
				return
			}
		}
		if err := r.end(); err != nil {
			yield(Record{}, err)
		}
	}
}

// Decode returns all that [Records] yields, under the same terms, or the error
// and no records.
func Decode(b []byte, l Limits) ([]Record, error) {
	var r reader
	if err := r.open(b, l); err != nil {
		return nil, err
	}
	records := make([]Record, r.header.RecordCount)
	for i := range records {
		record, err := r.next()
		if err != nil {
			return nil, err
		}
		records[i] = record
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return records, nil
}

// VerifyRecords is [VerifyProduced] that also opens the batch and reads each
// record: it accepts what [Records] yields without an error, and in which
// MaxTimestamp is the greatest timestamp of the records.
func VerifyRecords(b []byte, l Limits) (Header, error) {
	h, err := VerifyProduced(b)
	if err != nil {
		return Header{}, err
	}
	r := reader{header: h, rest: b[HeaderSize:]}
	if h.Codec() != None {
		s := scratchPool.Get().(*scratch)
		defer s.release()
		opened, err := appendOpened(s.buf, h.Codec(), r.rest, l.limit(len(r.rest)))
		if err != nil {
			return Header{}, err
		}
		s.buf = opened
		r.rest = opened
	}
	if err := r.begin(); err != nil {
		return Header{}, err
	}
	greatest := int64(math.MinInt64)
	for range h.RecordCount {
		record, err := r.next()
		if err != nil {
			return Header{}, err
		}
		greatest = max(greatest, record.Timestamp)
	}
	if err := r.end(); err != nil {
		return Header{}, err
	}
	if greatest != h.MaxTimestamp {
		return Header{}, corrupt("maxTimestamp", h.MaxTimestamp, "%d: the greatest of the records", greatest)
	}
	return h, nil
}

// reader reads the records of one batch one after another.
type reader struct {
	header Header
	// rest is what has not been read of the records.
	rest []byte
	// read counts the records read.
	read int32
	// lastDelta is the offset delta of the latest record.
	lastDelta int32
	// headerKeys are the header keys of earlier records by position. Records
	// of a batch tend to have the same headers, and then share the strings.
	headerKeys [8]string
	// headers is memory for the headers of records to come.
	headers []RecordHeader
}

// open reads the header and opens the records.
func (r *reader) open(b []byte, l Limits) error {
	h, err := ParseHeader(b)
	if err != nil {
		return err
	}
	if h.Size() != len(b) {
		return corrupt("batchLength", h.BatchLength, "%d: there are %d bytes", len(b)-lengthOverhead, len(b))
	}
	r.header, r.rest = h, b[HeaderSize:]
	// Some brokers leave the codec of a batch that they have emptied.
	if h.Codec() != None && (h.RecordCount > 0 || len(r.rest) > 0) {
		if r.rest, err = decompress(h.Codec(), r.rest, l); err != nil {
			return err
		}
	}
	return r.begin()
}

// begin checks that there can be as many records as the header counts, so that
// they may be allocated for.
func (r *reader) begin() error {
	r.lastDelta = -1
	if most := len(r.rest) / minRecordSize; int64(r.header.RecordCount) > int64(most) {
		return corrupt("recordCount", r.header.RecordCount, "at most %d: there are %d bytes of records", most, len(r.rest))
	}
	return nil
}

// end checks that nothing follows the last record.
func (r *reader) end() error {
	if len(r.rest) > 0 {
		return corrupt("records", fmt.Sprintf("followed by %d bytes", len(r.rest)), "the last of the batch")
	}
	return nil
}

// next reads the next record.
func (r *reader) next() (record Record, err error) {
	length, n := varint(r.rest)
	if n == 0 || length < minRecordSize-1 || length > int64(len(r.rest)-n) {
		return Record{}, r.fault("length", length, n, "%d to %d: that is what follows", minRecordSize-1, len(r.rest)-n)
	}
	body := r.rest[n : n+int(length)]
	r.rest = r.rest[n+int(length):]
	at := 1 // attributes: none are defined, and readers ignore them

	timestampDelta, n := varlong(body[at:])
	timestamp := r.header.BaseTimestamp + timestampDelta
	// A sum of more than an int64 holds wraps to below -1.
	if n == 0 || timestamp < NoTimestamp {
		return Record{}, r.fault("timestampDelta", timestampDelta, n, "%d or more, and the timestamp an int64", NoTimestamp-r.header.BaseTimestamp)
	}
	at += n

	offsetDelta, n := varint(body[at:])
	if n == 0 || offsetDelta <= int64(r.lastDelta) || offsetDelta > int64(r.header.LastOffsetDelta) {
		return Record{}, r.fault("offsetDelta", offsetDelta, n, "%d to lastOffsetDelta (%d)", int64(r.lastDelta)+1, r.header.LastOffsetDelta)
	}
	at += n

	record.Offset = r.header.BaseOffset + offsetDelta
	record.Timestamp = timestamp
	if r.header.LogAppendTime() {
		record.Timestamp = r.header.MaxTimestamp
	}

	keyLength, n := varint(body[at:])
	at += n
	if n == 0 || keyLength < -1 || keyLength > int64(len(body)-at) {
		return Record{}, r.fault("keyLength", keyLength, n, "-1 to %d: that is what follows", len(body)-at)
	}
	if keyLength >= 0 {
		end := at + int(keyLength)
		record.Key = body[at:end:end]
		at = end
	}

	valueLength, n := varint(body[at:])
	at += n
	if n == 0 || valueLength < -1 || valueLength > int64(len(body)-at) {
		return Record{}, r.fault("valueLength", valueLength, n, "-1 to %d: that is what follows", len(body)-at)
	}
	if valueLength >= 0 {
		end := at + int(valueLength)
		record.Value = body[at:end:end]
		at = end
	}

	headerCount, n := varint(body[at:])
	at += n
	// A header takes at least two bytes.
	if n == 0 || headerCount < 0 || headerCount > int64(len(body)-at)/2 {
		return Record{}, r.fault("headerCount", headerCount, n, "0 to %d: %d bytes follow", (len(body)-at)/2, len(body)-at)
	}
	if headerCount > 0 {
		record.Headers, n, err = r.nextHeaders(body[at:], int(headerCount))
		if err != nil {
			return Record{}, err
		}
		at += n
	}
	if at != len(body) {
		return Record{}, r.fault("length", length, 1, "%d: that is what the fields take", at)
	}
	r.lastDelta = int32(offsetDelta)
	r.read++
	return record, nil
}

// headersAtOnce is for how many headers memory is taken at a time.
const headersAtOnce = 64

// nextHeaders reads count headers from b, which has at least two bytes for
// each, and returns how many bytes they took.
func (r *reader) nextHeaders(b []byte, count int) ([]RecordHeader, int, error) {
	if len(r.headers) < count {
		// As many as the rest of the batch takes if the records are all alike.
		alike := int64(count) * int64(r.header.RecordCount-r.read)
		r.headers = make([]RecordHeader, max(count, int(min(alike, headersAtOnce))))
	}
	headers := r.headers[:count:count]
	r.headers = r.headers[count:]
	at := 0
	for i := range headers {
		keyLength, n := varint(b[at:])
		at += n
		if n == 0 || keyLength < 0 || keyLength > int64(len(b)-at) {
			return nil, 0, r.fault(fmt.Sprintf("headers[%d].keyLength", i), keyLength, n, "0 to %d: that is what follows", len(b)-at)
		}
		headers[i].Key = r.headerKey(i, b[at:at+int(keyLength)])
		at += int(keyLength)

		valueLength, n := varint(b[at:])
		at += n
		if n == 0 || valueLength < -1 || valueLength > int64(len(b)-at) {
			return nil, 0, r.fault(fmt.Sprintf("headers[%d].valueLength", i), valueLength, n, "-1 to %d: that is what follows", len(b)-at)
		}
		if valueLength >= 0 {
			end := at + int(valueLength)
			headers[i].Value = b[at:end:end]
			at = end
		}
	}
	return headers, at, nil
}

// headerKey returns key as a string: that of the header at the same position of
// an earlier record, if it is the same.
func (r *reader) headerKey(position int, key []byte) string {
	known := &r.headerKeys[position%len(r.headerKeys)]
	if *known != string(key) {
		*known = string(key)
	}
	return *known
}

// fault reports a field of the record at hand; width is what its varint took, 0
// when it was none.
func (r *reader) fault(field string, got int64, width int, want string, args ...any) error {
	field = fmt.Sprintf("records[%d].%s", r.read, field)
	if width == 0 {
		return corrupt(field, "cut short or too long", "a varint")
	}
	return corrupt(field, got, want, args...)
}

// varint reads a zigzag number of 32 bits from the beginning of b and returns
// it and the number of bytes that it took; 0 when b is cut short or the number
// has more bits.
func varint(b []byte) (int64, int) {
	// Nearly all are of one byte or two.
	if len(b) > 0 && b[0] < 0x80 {
		return unzigzag(uint64(b[0])), 1
	}
	if len(b) > 1 && b[1] < 0x80 {
		return unzigzag(uint64(b[0]&0x7f) | uint64(b[1])<<7), 2
	}
	return longVarint(b)
}

func longVarint(b []byte) (int64, int) {
	u, n := uvarint(b)
	if u > math.MaxUint32 {
		return 0, 0
	}
	return unzigzag(u), n
}

// varlong is varint for 64 bits.
func varlong(b []byte) (int64, int) {
	u, n := uvarint(b)
	return unzigzag(u), n
}

func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// uvarint is binary.Uvarint with 0 for every failure.
func uvarint(b []byte) (u uint64, n int) {
	for shift := 0; n < len(b) && n < 10; shift += 7 {
		c := b[n]
		n++
		if c < 0x80 {
			if n == 10 && c > 1 {
				return 0, 0
			}
			return u | uint64(c)<<shift, n
		}
		u |= uint64(c&0x7f) << shift
	}
	return 0, 0
}
