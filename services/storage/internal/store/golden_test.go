package store

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	diskv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/disk/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
)

// The bytes of these tests are those of services/storage/FORMAT.md. Where they
// fail, data that is out there can no longer be read.

// documented fails unless the page shows the bytes.
func documented(t *testing.T, hexadecimal string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "FORMAT.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(strings.Fields(string(page)), ""), hexadecimal) {
		t.Errorf("FORMAT.md does not show %s", hexadecimal)
	}
}

var goldenPartition = PartitionID{
	Topic: cluster.TopicID{0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f},
	Index: 258,
}

func TestGoldenKeys(t *testing.T) {
	const partition = "101112131415161718191a1b1c1d1e1f" + "00000102"
	for _, c := range []struct {
		key    []byte
		kind   kind
		offset int64
		want   string
	}{
		{appendPartitionKey(nil, kindState, goldenPartition), kindState, 0, "01" + partition},
		{appendPartitionKey(nil, kindProgress, goldenPartition), kindProgress, 0, "02" + partition},
		{appendOffsetKey(nil, kindProducer, goldenPartition, 4711), kindProducer, 4711, "03" + partition + "0000000000001267"},
		{appendOffsetKey(nil, kindTime, goldenPartition, 1<<40), kindTime, 1 << 40, "04" + partition + "0000010000000000"},
		{appendOffsetKey(nil, kindBatch, goldenPartition, 255), kindBatch, 255, "05" + partition + "00000000000000ff"},
	} {
		if got := hex.EncodeToString(c.key); got != c.want {
			t.Errorf("kind %d: key is %s, want %s", c.kind, got, c.want)
		}
		documented(t, c.want)
		k, id, offset, err := parseKey(c.key)
		if err != nil || k != c.kind || id != goldenPartition || offset != c.offset {
			t.Errorf("kind %d: parsed as %d, %v, %d, %v", c.kind, k, id, offset, err)
		}
	}
}

func TestGoldenRecords(t *testing.T) {
	d := durable{
		State: State{
			LogStart: 5, LogEnd: 300, HighWatermark: 290, CoordinatorEpoch: 2,
			Epochs: []EpochStart{{Epoch: 0, StartOffset: 0}, {Epoch: 3, StartOffset: 200}},
		},
		generation:  9,
		spans:       []span{{volume: 1, first: 0, end: 150, maxTimestamp: 1000, bytes: 4096}, {volume: 2, first: 150, end: 300, maxTimestamp: 2000, bytes: 8192}},
		truncations: []truncation{{generation: 4, offset: 120}},
	}
	var progress diskv1.PartitionProgress
	d.progress(&progress, 7)
	later := durable{
		State:       State{LogStart: 150, LogEnd: 300, HighWatermark: 290, Deleted: true},
		generation:  10,
		spans:       []span{{volume: 2, first: 150, end: 300, maxTimestamp: 2000, bytes: 8192, sparse: true}},
		compactedTo: 290,

		tombstonesUntil: 2_000_000_000_000,
		deletedAt:       1_700_000_000_000,
		failed:          &failure{reason: "volume 1 is gone", volume: 1, logEndUnknown: true},
	}
	producer := Producer{ID: 4711, Epoch: 1, LastTimestamp: 2000, Batches: []ProducerBatch{{BaseSequence: 10, LastSequence: 19, BaseOffset: 280, AppendTime: -1}}}

	for _, c := range []struct {
		name, want string
		value      func() []byte
	}{
		{"state", "6a1f975f" +
			"0809" + "1005" + "18ac02" + "20a202" + "2a00" + "2a05080310c801" +
			"320b0801189601" + "20e807" + "288020" + "320e0802109601" + "18ac0220d00f288040" + "3802" + "4a0408041078",
			func() []byte {
				_, v := appendMessage(nil, appendPartitionKey(nil, kindState, goldenPartition), d.message())
				return v
			}},
		{"state of version 2", "c38da7d3" + "080a" + "109601" + "18ac02" + "20a202" +
			"3210" + "0802" + "109601" + "18ac02" + "20d00f" + "288040" + "3001" +
			"4001" + "50a202" + "5880d095ffbc31" +
			"6216" + "0a10" + hex.EncodeToString([]byte("volume 1 is gone")) + "1001" + "1801" + "7080c0a8ca9a3a",
			func() []byte {
				_, v := appendMessage(nil, appendPartitionKey(nil, kindState, goldenPartition), later.message())
				return v
			}},
		{"progress", "c880b19c" + "0809" + "1007" + "1805" + "20ac02" + "28a202" + "3002" + "38d00f" + "408040",
			func() []byte {
				_, v := appendMessage(nil, appendPartitionKey(nil, kindProgress, goldenPartition), &progress)
				return v
			}},
		{"producer", "6f64eac5" + "0809" + "1001" + "1a12080a1013189802" + "20ffffffffffffffffff01" + "20d00f",
			func() []byte {
				_, v := appendMessage(nil, appendOffsetKey(nil, kindProducer, goldenPartition, producer.ID), producerMessage(&producer, 9))
				return v
			}},
		{"removed producer", "02ac59e4" + "0809" + "2801",
			func() []byte {
				_, v := appendMessage(nil, appendOffsetKey(nil, kindProducer, goldenPartition, producer.ID), &diskv1.ProducerState{Generation: 9, Removed: true})
				return v
			}},
		{"time", "648b4e12" + "00000000000007d0",
			func() []byte {
				_, v := appendTimestamp(nil, appendOffsetKey(nil, kindTime, goldenPartition, 150), 2000)
				return v
			}},
	} {
		if got := hex.EncodeToString(c.value()); got != c.want {
			t.Errorf("%s: value is\n%s, want\n%s", c.name, got, c.want)
		}
	}

	var m diskv1.PartitionState
	var value []byte
	key := appendPartitionKey(nil, kindState, goldenPartition)
	for _, d := range []durable{later, d} {
		_, value = appendMessage(nil, key, d.message())
		m.Reset()
		if err := parseMessage(key, value, &m); err != nil {
			t.Fatal(err)
		}
		if got := *parseState(&m); !reflect.DeepEqual(got, d) {
			t.Errorf("the state record is read as %+v, want %+v", got, d)
		}
		documented(t, hex.EncodeToString(value))
	}
	for i := range len(key) + len(value) {
		k, v := bytes.Clone(key), bytes.Clone(value)
		if i < len(k) {
			k[i] ^= 0x10
		} else {
			v[i-len(k)] ^= 0x10
		}
		if err := parseMessage(k, v, &m); err == nil {
			t.Errorf("a flipped bit in byte %d is not noticed", i)
		}
	}
}

func TestGoldenFiles(t *testing.T) {
	dir := t.TempDir()
	d, err := openDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.setIdentity(Identity{ClusterID: [16]byte{0xc1}, NodeID: 3, DirectoryID: [16]byte{0xd1}}); err != nil {
		t.Fatal(err)
	}
	if err := d.writeClean(12, "8c3f", []uint64{1, 2}); err != nil {
		t.Fatal(err)
	}
	v := &volume{number: 2, set: SetReplicated, path: dir, created: time.UnixMilli(1_700_000_000_000)}
	if err := v.describe(time.Time{}, 0); err != nil {
		t.Fatal(err)
	}
	golden(t, dir, volumeFile,
		`{`,
		`  "formatVersion": 2,`,
		`  "volume": "2",`,
		`  "set": "replicated",`,
		`  "createdMs": "1700000000000"`,
		`}`)
	if err := v.describe(time.UnixMilli(1_700_000_360_000), 123456); err != nil {
		t.Fatal(err)
	}
	golden(t, dir, volumeFile,
		`{`,
		`  "formatVersion": 2,`,
		`  "volume": "2",`,
		`  "set": "replicated",`,
		`  "createdMs": "1700000000000",`,
		`  "sealedMs": "1700000360000",`,
		`  "bytes": "123456"`,
		`}`)
	copies := &volume{number: 3, set: SetSyncedCompacted, copies: true, path: dir, created: time.UnixMilli(1_700_000_000_000)}
	if err := copies.describe(time.Time{}, 0); err != nil {
		t.Fatal(err)
	}
	golden(t, dir, volumeFile,
		`{`,
		`  "formatVersion": 2,`,
		`  "volume": "3",`,
		`  "set": "synced-compacted",`,
		`  "createdMs": "1700000000000",`,
		`  "copies": true`,
		`}`)
	golden(t, dir, datadir.IdentityFile,
		`{`,
		`  "formatVersion": 1,`,
		`  "clusterId": "c1000000-0000-0000-0000-000000000000",`,
		`  "nodeId": 3,`,
		`  "directoryId": "d1000000-0000-0000-0000-000000000000",`,
		`  "crc32c": 565258306`,
		`}`)
	golden(t, dir, cleanFile,
		`{`,
		`  "nodeEpoch": "12",`,
		`  "directoryId": "d1000000-0000-0000-0000-000000000000",`,
		`  "bootId": "8c3f",`,
		`  "volumes": [`,
		`    "1",`,
		`    "2"`,
		`  ]`,
		`}`)
	r := newVolumes(d.Path(volumesFolder), &Config{}, nil, nil)
	r.byNumber[2] = &volume{number: 2, set: SetReplicated, listed: true}
	r.byNumber[3] = &volume{number: 3, set: SetSyncedCompacted, copies: true, listed: true}
	r.byNumber[8] = &volume{number: 8, set: SetSynced}
	r.condemned[4] = &condemnedVolume{number: 4, set: SetSynced}
	r.condemned[5] = &condemnedVolume{number: 5, set: SetSynced, settled: true}
	r.next = 9
	if err := r.list(); err != nil {
		t.Fatal(err)
	}
	golden(t, dir, listFile,
		`{`,
		`  "volumes": [`,
		`    {`,
		`      "volume": "2",`,
		`      "set": "replicated"`,
		`    },`,
		`    {`,
		`      "volume": "3",`,
		`      "set": "synced-compacted",`,
		`      "copies": true`,
		`    },`,
		`    {`,
		`      "volume": "4",`,
		`      "set": "synced"`,
		`    }`,
		`  ],`,
		`  "lastVolume": "8"`,
		`}`)
	if got := volumeName(SetSynced, 42); got != "synced-000042" {
		t.Errorf("a volume is called %s", got)
	}
}

func golden(t *testing.T, dir, name string, lines ...string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(lines, "\n") + "\n"; string(raw) != want {
		t.Errorf("%s is\n%s, want\n%s", name, raw, want)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(appendPartitionKey(nil, kindState, goldenPartition))
	f.Add(appendOffsetKey(nil, kindBatch, goldenPartition, 1))
	f.Add([]byte{5})
	f.Fuzz(func(t *testing.T, key []byte) {
		k, id, offset, err := parseKey(key)
		if err != nil {
			return
		}
		again := appendPartitionKey(nil, k, id)
		if k != kindState && k != kindProgress && k != kindMark {
			again = appendOffsetKey(nil, k, id, offset)
		}
		if !bytes.Equal(again, key) {
			t.Errorf("%x is read as %d %v %d, which is %x", key, k, id, offset, again)
		}
	})
}

func FuzzParseRecords(f *testing.F) {
	key := appendPartitionKey(nil, kindState, goldenPartition)
	for _, body := range [][]byte{nil, {0x08, 0x09}, {0x32, 0x02, 0x08, 0x01}} {
		value := append(make([]byte, sumBytes), body...)
		seal(key, value)
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, sealed := range []bool{false, true} {
			if sealed && len(value) >= sumBytes {
				value = bytes.Clone(value)
				seal(key, value)
			}
			var state diskv1.PartitionState
			if parseMessage(key, value, &state) == nil {
				d := parseState(&state)
				var progress diskv1.PartitionProgress
				if parseMessage(key, value, &progress) == nil {
					d.advance(&progress)
				}
				_ = d.check()
			}
			var producer diskv1.ProducerState
			if parseMessage(key, value, &producer) == nil {
				parseProducer(1, &producer, 10)
			}
			_, _ = parseTimestamp(key, value)
		}
	})
}
