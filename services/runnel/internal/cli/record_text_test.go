package cli

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

var printed = runnel.ConsumedRecord{
	Topic: "orders", Partition: 2, Offset: 41, Timestamp: time.UnixMilli(1700000000123),
	Key: []byte("ann"), Value: []byte("book\r"),
	Headers: []runnel.Header{{Key: "a", Value: []byte("1")}, {Key: "a", Value: nil}, {Key: "b", Value: []byte{}}},
}

func TestTextRecords(t *testing.T) {
	nulls := runnel.ConsumedRecord{Offset: 1}
	tests := []struct {
		name   string
		how    textRecords
		record runnel.ConsumedRecord
		want   string
	}{
		{"the value alone", textRecords{}, printed, "book\r\n"},
		{"everything", textRecords{timestamp: "CreateTime", partition: true, offset: true, headers: true, key: true}, printed,
			"CreateTime:1700000000123\tPartition:2\tOffset:41\ta:1,a:null,b:\tann\tbook\r\n"},
		{"another separator", textRecords{offset: true, key: true, separator: []byte("||")}, printed, "Offset:41||ann||book\r\n"},
		{"the key as produce takes it", textRecords{key: true, separator: []byte(":")}, printed, "ann:book\r\n"},
		{"nulls", textRecords{timestamp: "CreateTime", headers: true, key: true}, nulls, "NO_TIMESTAMP\tNO_HEADERS\tnull\tnull\n"},
		{"empty is not null", textRecords{key: true}, runnel.ConsumedRecord{Key: []byte{}, Value: []byte{}}, "\t\n"},
		{"bytes as they are", textRecords{}, runnel.ConsumedRecord{Value: []byte("\x00\xff\n\x80")}, "\x00\xff\n\x80\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			test.how.out = &out
			if test.how.separator == nil {
				test.how.separator = []byte("\t")
			}
			for range 2 {
				if err := test.how.write(&test.record); err != nil {
					t.Fatal(err)
				}
			}
			if got := out.String(); got != test.want+test.want {
				t.Errorf("got %q, want %q twice", got, test.want)
			}
		})
	}
}

func TestJSONRecords(t *testing.T) {
	tests := []struct {
		name   string
		record runnel.ConsumedRecord
		want   string
	}{
		{"text", printed,
			`{"topic":"orders","partition":2,"offset":41,"timestamp":"2023-11-14T22:13:20.123Z","timestamp_ms":1700000000123,` +
				`"headers":[{"key":"a","value":"1"},{"key":"a","value":null},{"key":"b","value":""}],"key":"ann","value":"book\r"}`},
		{"nulls", runnel.ConsumedRecord{Topic: "t"},
			`{"topic":"t","partition":0,"offset":0,"timestamp":null,"timestamp_ms":null,"headers":[],"key":null,"value":null}`},
		{"not UTF-8", runnel.ConsumedRecord{Topic: "t", Key: []byte("\xff"), Value: []byte("a\x80b"), Headers: []runnel.Header{{Key: "h", Value: []byte("\xfe")}}},
			`{"topic":"t","partition":0,"offset":0,"timestamp":null,"timestamp_ms":null,"headers":[{"key":"h","value":"/g==","value_encoding":"base64"}],` +
				`"key":"/w==","key_encoding":"base64","value":"YYBi","value_encoding":"base64"}`},
		{"no escapes for browsers", runnel.ConsumedRecord{Topic: "t", Value: []byte("<a&b>\x00")},
			`{"topic":"t","partition":0,"offset":0,"timestamp":null,"timestamp_ms":null,"headers":[],"key":null,"value":"<a&b>\u0000"}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := newJSONRecords(&out).write(&test.record); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != test.want+"\n" {
				t.Errorf("got  %swant %s", got, test.want)
			}
		})
	}
}

// FuzzJSONRecords: whatever the bytes, they can be had back from the object.
func FuzzJSONRecords(f *testing.F) {
	f.Add([]byte("key"), []byte("value"))
	f.Add([]byte("\xff"), []byte("\u2028\ufffd\x00"))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		var out strings.Builder
		if err := newJSONRecords(&out).write(&runnel.ConsumedRecord{Key: key, Value: value}); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), "\n") != 1 {
			t.Fatalf("more than a line: %q", out.String())
		}
		var object struct {
			Key           any    `json:"key"`
			KeyEncoding   string `json:"key_encoding"`
			Value         any    `json:"value"`
			ValueEncoding string `json:"value_encoding"`
		}
		if err := json.Unmarshal([]byte(out.String()), &object); err != nil {
			t.Fatal(err)
		}
		for _, part := range []struct {
			text     any
			encoding string
			want     []byte
		}{{object.Key, object.KeyEncoding, key}, {object.Value, object.ValueEncoding, value}} {
			var got []byte
			if text, ok := part.text.(string); ok && part.encoding == encodingBase64 {
				raw, err := json.Marshal(text)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(raw, &got); err != nil {
					t.Fatal(err)
				}
			} else if ok {
				got = []byte(text)
			}
			if !reflect.DeepEqual(got, part.want) {
				t.Errorf("%q came back as %q", part.want, got)
			}
		}
	})
}
