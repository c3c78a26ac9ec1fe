package server

import (
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
)

const (
	maxPlainRecords   = 10_000
	maxHeaderKeyBytes = 32_767
)

var builders = sync.Pool{New: func() any { return new(recordbatch.Builder) }}

// buildBatch makes a batch of plain records, uncompressed and without producer
// identity.
func buildBatch(records []*logv1.Record, topic *partition.Topic, now time.Time) ([]byte, error) {
	if len(records) > maxPlainRecords {
		return nil, invalid("records has %d records, at most %d are allowed; send several requests", len(records), maxPlainRecords)
	}
	limit := topic.Config().MaxMessageBytes
	b := builders.Get().(*recordbatch.Builder)
	defer func() {
		b.Reset()
		builders.Put(b)
	}()
	for i, record := range records {
		key, value, headers, err := recordFields(i, record)
		if err != nil {
			return nil, err
		}
		if size := recordbatch.MaxRecordSize(key, value, headers); size > limit {
			return nil, rpcerr.New(errorsv1.Reason_REASON_RECORD_TOO_LARGE,
				"records[%d] for topic %q takes up to %d bytes, more than max.message.bytes=%d; make it smaller or raise the topic's setting", i, topic.Name, size, limit)
		}
		timestamp := record.GetTimestampMs()
		switch {
		case timestamp == 0:
			timestamp = now.UnixMilli()
		case timestamp < 0:
			return nil, invalid("records[%d].timestamp_ms is %d, must be milliseconds since the Unix epoch, or 0 for now", i, timestamp)
		}
		if err := b.Append(key, value, headers, timestamp); err != nil {
			return nil, invalid("records[%d] cannot be written: a header key is not UTF-8, or a size is beyond the format's limits", i)
		}
		if b.EncodedSize() > limit {
			return nil, rpcerr.New(errorsv1.Reason_REASON_RECORD_TOO_LARGE,
				"records up to records[%d] for topic %q take %d bytes in one batch, more than max.message.bytes=%d; send several requests or raise the topic's setting",
				i, topic.Name, b.EncodedSize(), limit)
		}
	}
	return b.Build(recordbatch.WithoutProducer(recordbatch.None))
}

func recordFields(i int, r *logv1.Record) (key, value []byte, headers []recordbatch.RecordHeader, err error) {
	key, value = r.GetKey(), r.GetValue()
	if r.KeyText != nil {
		if key != nil {
			return nil, nil, nil, invalid("records[%d] has key and key_text; set one of them", i)
		}
		key = []byte(r.GetKeyText())
	}
	if r.ValueText != nil {
		if value != nil {
			return nil, nil, nil, invalid("records[%d] has value and value_text; set one of them", i)
		}
		value = []byte(r.GetValueText())
	}
	if len(r.GetHeaders()) > 0 {
		headers = make([]recordbatch.RecordHeader, len(r.GetHeaders()))
	}
	for j, h := range r.GetHeaders() {
		if n := len(h.GetKey()); n == 0 || n > maxHeaderKeyBytes {
			return nil, nil, nil, invalid("records[%d].headers[%d].key has %d bytes, must have 1 to %d", i, j, n, maxHeaderKeyBytes)
		}
		headers[j] = recordbatch.RecordHeader{Key: h.GetKey(), Value: h.GetValue()}
	}
	return key, value, headers, nil
}

// plainRecord returns a record as it is sent. It shares memory with the batch.
func plainRecord(r recordbatch.Record, asText bool) *logv1.Record {
	out := &logv1.Record{Offset: r.Offset, TimestampMs: r.Timestamp, Key: r.Key, Value: r.Value}
	if asText && r.Key != nil && utf8.Valid(r.Key) {
		text := string(r.Key)
		out.Key, out.KeyText = nil, &text
	}
	if asText && r.Value != nil && utf8.Valid(r.Value) {
		text := string(r.Value)
		out.Value, out.ValueText = nil, &text
	}
	if len(r.Headers) > 0 {
		out.Headers = make([]*logv1.Header, len(r.Headers))
		for i, h := range r.Headers {
			out.Headers[i] = &logv1.Header{Key: validText(h.Key), Value: h.Value}
		}
	}
	return out
}

// validText makes a header key fit for a protobuf string: other producers are
// not held to UTF-8.
func validText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// plainSize is what a record counts towards the size of a response.
func plainSize(r recordbatch.Record) int {
	const overhead = 24
	size := overhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += overhead + len(h.Key) + len(h.Value)
	}
	return size
}
