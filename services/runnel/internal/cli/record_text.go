package cli

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// recordWriter prints one record. It must be flushed by whoever owns the
// buffer below it.
type recordWriter interface {
	write(r *runnel.ConsumedRecord) error
}

// textRecords prints records as Kafka's console consumer does: the parts that
// were asked for in a fixed order, the value last, then a line feed.
type textRecords struct {
	out       io.Writer
	line      []byte
	separator []byte

	// timestamp is the kind of the topic's timestamps if they are to be printed,
	// else "".
	timestamp                       string
	partition, offset, headers, key bool
}

const (
	nullText      = "null"
	noHeadersText = "NO_HEADERS"
	noTimeText    = "NO_TIMESTAMP"
)

func (t *textRecords) write(r *runnel.ConsumedRecord) error {
	line := t.line[:0]
	if t.timestamp != "" {
		if r.Timestamp.IsZero() {
			line = append(line, noTimeText...)
		} else {
			line = append(append(line, t.timestamp...), ':')
			line = strconv.AppendInt(line, r.Timestamp.UnixMilli(), 10)
		}
		line = append(line, t.separator...)
	}
	if t.partition {
		line = append(line, "Partition:"...)
		line = strconv.AppendInt(line, int64(r.Partition), 10)
		line = append(line, t.separator...)
	}
	if t.offset {
		line = append(line, "Offset:"...)
		line = strconv.AppendInt(line, r.Offset, 10)
		line = append(line, t.separator...)
	}
	if t.headers {
		line = appendHeaders(line, r.Headers)
		line = append(line, t.separator...)
	}
	if t.key {
		line = appendBytes(line, r.Key)
		line = append(line, t.separator...)
	}
	line = append(appendBytes(line, r.Value), '\n')
	t.line = line
	_, err := t.out.Write(line)
	return err
}

func appendHeaders(line []byte, headers []runnel.Header) []byte {
	if len(headers) == 0 {
		return append(line, noHeadersText...)
	}
	for i, h := range headers {
		if i > 0 {
			line = append(line, ',')
		}
		line = append(line, h.Key...)
		line = append(line, ':')
		line = appendBytes(line, h.Value)
	}
	return line
}

func appendBytes(line, value []byte) []byte {
	if value == nil {
		return append(line, nullText...)
	}
	return append(line, value...)
}

// jsonRecord is a record as `consume -o json` prints it; the command's help
// describes it.
type jsonRecord struct {
	Topic         string       `json:"topic"`
	Partition     int32        `json:"partition"`
	Offset        int64        `json:"offset"`
	Timestamp     *string      `json:"timestamp"`
	TimestampMS   *int64       `json:"timestamp_ms"`
	Headers       []jsonHeader `json:"headers"`
	Key           *string      `json:"key"`
	KeyEncoding   string       `json:"key_encoding,omitempty"`
	Value         *string      `json:"value"`
	ValueEncoding string       `json:"value_encoding,omitempty"`
}

type jsonHeader struct {
	Key           string  `json:"key"`
	Value         *string `json:"value"`
	ValueEncoding string  `json:"value_encoding,omitempty"`
}

const encodingBase64 = "base64"

// jsonText returns bytes as a JSON string can hold them, and how they are
// encoded: "" as they are, or base64. Null stays null.
func jsonText(value []byte) (text *string, encoding string) {
	if value == nil {
		return nil, ""
	}
	s := string(value)
	if !utf8.Valid(value) {
		s, encoding = base64.StdEncoding.EncodeToString(value), encodingBase64
	}
	return &s, encoding
}

// jsonTimestamp is RFC 3339 with milliseconds, in UTC.
const jsonTimestamp = "2006-01-02T15:04:05.000Z07:00"

// jsonRecords prints one object per line.
type jsonRecords struct{ encoder *json.Encoder }

func newJSONRecords(out io.Writer) *jsonRecords {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return &jsonRecords{encoder}
}

func (j *jsonRecords) write(r *runnel.ConsumedRecord) error {
	object := jsonRecord{
		Topic:     r.Topic,
		Partition: r.Partition,
		Offset:    r.Offset,
		Headers:   make([]jsonHeader, len(r.Headers)),
	}
	if !r.Timestamp.IsZero() {
		text, ms := r.Timestamp.UTC().Format(jsonTimestamp), r.Timestamp.UnixMilli()
		object.Timestamp, object.TimestampMS = &text, &ms
	}
	object.Key, object.KeyEncoding = jsonText(r.Key)
	object.Value, object.ValueEncoding = jsonText(r.Value)
	for i, h := range r.Headers {
		object.Headers[i].Key = h.Key
		object.Headers[i].Value, object.Headers[i].ValueEncoding = jsonText(h.Value)
	}
	return j.encoder.Encode(&object)
}
