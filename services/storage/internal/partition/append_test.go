package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// Where fields lie in a batch, as the format has it.
const (
	lengthAt        = 8
	magicAt         = 16
	crcAt           = 17
	attributesAt    = 21
	lastDeltaAt     = 23
	maxTimestampAt  = 35
	producerEpochAt = 51
	recordCountAt   = 57
)

// resum makes a changed batch pass its checksum.
func resum(b []byte) []byte {
	binary.BigEndian.PutUint32(b[crcAt:], crc32.Checksum(b[attributesAt:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestBadBatchesAreRefused(t *testing.T) {
	t.Parallel()
	good := func() []byte { return plain(t, "a", "b") }
	future := time.Now().Add(time.Hour + time.Minute).UnixMilli()
	for _, test := range []struct {
		name   string
		batch  []byte
		reason errorsv1.Reason
		says   string
	}{
		{"empty", nil, errorsv1.Reason_REASON_CORRUPT_BATCH, "size is 0 bytes"},
		{"cut short", good()[:60], errorsv1.Reason_REASON_CORRUPT_BATCH, "size is 60 bytes"},
		{"one byte missing", good()[:len(good())-1], errorsv1.Reason_REASON_CORRUPT_BATCH, "batchLength"},
		{"two batches", append(good(), good()...), errorsv1.Reason_REASON_CORRUPT_BATCH, "batchLength"},
		{"magic", change(good(), func(b []byte) { b[magicAt] = 1 }), errorsv1.Reason_REASON_UNSUPPORTED_BATCH, "magic"},
		{"negative length", change(good(), func(b []byte) { b[lengthAt] = 0xff }), errorsv1.Reason_REASON_CORRUPT_BATCH, "batchLength"},
		{"checksum", change(good(), func(b []byte) { b[crcAt]++ }), errorsv1.Reason_REASON_CORRUPT_BATCH, "crc"},
		{"record byte", change(good(), func(b []byte) { b[len(b)-1]++ }), errorsv1.Reason_REASON_CORRUPT_BATCH, "crc"},
		{"codec", resum(change(good(), func(b []byte) { b[attributesAt+1] = 7 })), errorsv1.Reason_REASON_UNSUPPORTED_BATCH, "codec"},
		{"transactional", resum(change(good(), func(b []byte) { b[attributesAt+1] = 0x10 })), errorsv1.Reason_REASON_UNSUPPORTED_BATCH, "transaction"},
		{"control", resum(change(good(), func(b []byte) { b[attributesAt+1] = 0x20 })), errorsv1.Reason_REASON_UNSUPPORTED_BATCH, "control"},
		{"unknown attribute", resum(change(good(), func(b []byte) { b[attributesAt] = 0x80 })), errorsv1.Reason_REASON_UNSUPPORTED_BATCH, "attributes"},
		{"append time", resum(change(good(), func(b []byte) { b[attributesAt+1] = 0x08 })), errorsv1.Reason_REASON_CORRUPT_BATCH, "timestamp type"},
		{"record count", resum(change(good(), func(b []byte) { b[recordCountAt+3] = 1 })), errorsv1.Reason_REASON_CORRUPT_BATCH, "recordCount"},
		{"huge record count", resum(change(good(), func(b []byte) {
			binary.BigEndian.PutUint32(b[recordCountAt:], math.MaxInt32)
			binary.BigEndian.PutUint32(b[lastDeltaAt:], math.MaxInt32-1)
		})), errorsv1.Reason_REASON_CORRUPT_BATCH, "recordCount"},
		{"last offset delta", resum(change(good(), func(b []byte) { b[lastDeltaAt+3] = 5 })), errorsv1.Reason_REASON_CORRUPT_BATCH, "recordCount"},
		{"producer epoch without id", resum(change(good(), func(b []byte) { b[producerEpochAt+1] = 0 })), errorsv1.Reason_REASON_CORRUPT_BATCH, "producerEpoch"},
		{"greatest timestamp below the first", resum(change(good(), func(b []byte) { binary.BigEndian.PutUint64(b[maxTimestampAt:], 5) })), errorsv1.Reason_REASON_CORRUPT_BATCH, "maxTimestamp"},
		{"timestamp in the future", resum(change(good(), func(b []byte) { binary.BigEndian.PutUint64(b[maxTimestampAt:], uint64(future)) })), errorsv1.Reason_REASON_INVALID_TIMESTAMP, "ahead"},
		{"timestamp beyond all years", resum(change(good(), func(b []byte) { binary.BigEndian.PutUint64(b[maxTimestampAt:], math.MaxInt64) })), errorsv1.Reason_REASON_INVALID_TIMESTAMP, "ahead"},
		{"too large", plain(t, strings.Repeat("x", 2000)), errorsv1.Reason_REASON_RECORD_TOO_LARGE, "max.message.bytes=1000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := &memoryLog{}
			_, p := open(t, log, rules.MaxMessageBytes, "1000")
			e := wantReason(t, p.Append(request(test.batch, all), newOutcome()), test.reason)
			if !strings.Contains(e.Message, test.says) || !strings.Contains(e.Message, "partition 3 of topic \"orders\"") {
				t.Errorf("message %q does not name the partition and %q", e.Message, test.says)
			}
			if len(log.appends) != 0 {
				t.Error("something was appended")
			}
			if r := add(t, p, good(), all).result(t); r.BaseOffset != 0 {
				t.Errorf("the next good batch: %+v", r)
			}
		})
	}
}

func change(b []byte, by func([]byte)) []byte {
	by(b)
	return b
}

// Each flip of a bit in the header is either refused or concerns the fields that
// the leader writes anew.
func TestFlippedHeaderBytes(t *testing.T) {
	t.Parallel()
	_, p := open(t, &memoryLog{})
	for at := range recordbatch.HeaderSize {
		for bit := range 8 {
			batch := plain(t, "a", "b")
			batch[at] ^= 1 << bit
			o := newOutcome()
			err := p.Append(request(batch, all), o)
			assigned := at < lengthAt || at >= 12 && at < magicAt
			if err == nil && !assigned {
				t.Errorf("bit %d of byte %d: accepted", bit, at)
			}
			if err == nil {
				if header, err := recordbatch.Verify(batch); err != nil || header.BaseOffset != o.result(t).BaseOffset || header.LeaderEpoch != 0 {
					t.Errorf("bit %d of byte %d is in what was stored: %v", bit, at, err)
				}
			}
		}
	}
}

func TestAppendTimeReplacesTimestamps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &memoryLog{}
		_, p := open(t, log, rules.MessageTimestampType, rules.TimestampLogAppendTime)
		// The producer's clock does not matter.
		batch := resum(change(plain(t, "a"), func(b []byte) { binary.BigEndian.PutUint64(b[maxTimestampAt:], math.MaxInt64) }))
		now := time.Now().UnixMilli()
		r := add(t, p, batch, all).result(t)
		if r.AppendTime != now {
			t.Errorf("append time %d, want %d", r.AppendTime, now)
		}
		records, err := recordbatch.Decode(log.batches[0].Bytes, recordbatch.Limits{})
		if err != nil || records[0].Timestamp != now || log.batches[0].MaxTimestamp != now {
			t.Errorf("stored records %+v, %v", records, err)
		}
		if _, err := recordbatch.Verify(log.batches[0].Bytes); err != nil {
			t.Error(err)
		}
	})
}

func TestCompactedTopicsNeedKeys(t *testing.T) {
	t.Parallel()
	var b recordbatch.Builder
	build := func(codec recordbatch.Codec, value string, keys ...[]byte) []byte {
		for _, key := range keys {
			if err := b.Append(key, []byte(value), nil, 1); err != nil {
				t.Fatal(err)
			}
		}
		batch, err := b.Build(recordbatch.WithoutProducer(codec))
		if err != nil {
			t.Fatal(err)
		}
		return batch
	}
	_, p := open(t, &memoryLog{}, rules.CleanupPolicy, rules.CleanupCompact)
	for _, codec := range []recordbatch.Codec{recordbatch.None, recordbatch.Gzip, recordbatch.Snappy, recordbatch.LZ4, recordbatch.Zstd} {
		add(t, p, build(codec, "v", []byte("k"), []byte{}), all).result(t)
		e := wantReason(t, p.Append(request(build(codec, strings.Repeat("v", 100), []byte("k"), nil), all), newOutcome()), errorsv1.Reason_REASON_KEY_REQUIRED)
		if !strings.Contains(e.Message, "record 1 ") {
			t.Errorf("message %q does not name the record", e.Message)
		}
	}
	// What is refused leaves nothing behind, of its producer neither.
	for range 2 {
		if err := b.Append(nil, []byte("v"), nil, 1); err != nil {
			t.Fatal(err)
		}
		keyless, err := b.Build(recordbatch.Options{ProducerID: 9})
		if err != nil {
			t.Fatal(err)
		}
		wantReason(t, p.Append(request(keyless, all), newOutcome()), errorsv1.Reason_REASON_KEY_REQUIRED)
	}
	if r := add(t, p, idempotent(t, 9, 0, 0, "a"), all).result(t); r.Duplicate || r.BaseOffset != 10 {
		t.Errorf("the first batch that is not refused: %+v", r)
	}
	// A checksum says nothing of the records: here they are opened.
	lies := resum(change(build(recordbatch.None, "value", []byte("k")), func(b []byte) { b[recordbatch.HeaderSize] = 0x7f }))
	wantReason(t, p.Append(request(lies, all), newOutcome()), errorsv1.Reason_REASON_CORRUPT_BATCH)
	bomb := build(recordbatch.Zstd, strings.Repeat("0", DefaultConfig().Decoding.MaxBytes), []byte("k"))
	wantReason(t, p.Append(request(bomb, all), newOutcome()), errorsv1.Reason_REASON_RECORD_TOO_LARGE)
}

func TestSettingsChange(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log, rules.MaxMessageBytes, "1000")
	large := strings.Repeat("x", 2000)
	wantReason(t, p.Append(request(plain(t, large), all), newOutcome()), errorsv1.Reason_REASON_RECORD_TOO_LARGE)
	if got := add(t, p, plain(t, "a"), all); log.last().Set != store.SetSynced || !got.done() {
		t.Errorf("set %q", log.last().Set)
	}
	p.topic.SetConfig(parseConfig(t, rules.Durability, rules.DurabilityReplicated))
	add(t, p, plain(t, large), all).result(t)
	if log.last().Set != store.SetReplicated {
		t.Errorf("set %q after durability=replicated", log.last().Set)
	}
}

func TestForgottenProducersAreRemoved(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	config := DefaultConfig()
	config.ProducersPerPartition = 1
	host, p := open(t, log)
	host.config = config
	add(t, p, idempotent(t, 1, 0, 0, "a"), all).result(t)
	add(t, p, idempotent(t, 2, 0, 0, "b"), all).result(t)
	if got := log.last().RemovedProducers; len(got) != 1 || got[0] != 1 {
		t.Errorf("removed %v, want [1]", got)
	}
}

func BenchmarkAppend(b *testing.B) {
	log := &memoryLog{}
	_, p := open(b, log)
	batch := plain(b, strings.Repeat("x", 64<<10))
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	done := newOutcome()
	for b.Loop() {
		log.appends, log.batches = log.appends[:0], log.batches[:0]
		a := request(batch, all)
		if err := p.Append(a, done); err != nil {
			b.Fatal(err)
		}
		<-done.results
	}
}

func BenchmarkVerify(b *testing.B) {
	batch := plain(b, strings.Repeat("x", 64<<10))
	b.SetBytes(int64(len(batch)))
	for b.Loop() {
		if _, err := recordbatch.VerifyProduced(batch); err != nil {
			b.Fatal(err)
		}
	}
}

// TestFullDiskRefuses: a refused batch takes no offset and no sequence number,
// what is there already is acknowledged again, and state goes on.
func TestFullDiskRefuses(t *testing.T) {
	t.Parallel()
	log := &memoryLog{}
	_, p := open(t, log)
	add(t, p, idempotent(t, 9, 0, 0, "a"), all).result(t)
	log.full = fmt.Errorf("%w: 5 bytes are free on the disk of /data; make room", store.ErrDiskFull)
	e := wantReason(t, p.Append(request(idempotent(t, 9, 0, 1, "b"), all), newOutcome()), errorsv1.Reason_REASON_DISK_FULL)
	if !strings.Contains(e.Error(), "/data") || !strings.Contains(e.Error(), "make room") || !strings.Contains(e.Error(), "nothing was appended") {
		t.Errorf("the error is %q", e)
	}
	if r := add(t, p, idempotent(t, 9, 0, 0, "a"), all).result(t); !r.Duplicate || r.BaseOffset != 0 {
		t.Errorf("repeated on a full disk: %+v", r)
	}
	if _, err := p.DeleteRecords(t.Context(), 1, rules.NoEpoch); err != nil {
		t.Errorf("records cannot be deleted: %v", err)
	}
	log.full = nil
	if r := add(t, p, idempotent(t, 9, 0, 1, "b"), all).result(t); r.Duplicate || r.BaseOffset != 1 {
		t.Errorf("with room again: %+v", r)
	}
}
