package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// compactTime is when the tests compact.
var compactTime = time.UnixMilli(1_700_000_000_000)

// pair is a record by its key and value; - stands for a null.
type pair struct{ key, value string }

// appendPairs appends a batch of records at the end of a log.
func appendPairs(t testing.TB, l *Log, change func([]byte), pairs ...pair) Batch {
	t.Helper()
	null := func(s string) []byte {
		if s == "-" {
			return nil
		}
		return []byte(s)
	}
	var b recordbatch.Builder
	for _, p := range pairs {
		if err := b.Append(null(p.key), null(p.value), nil, compactTime.UnixMilli()-1000); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	offset := l.next
	l.mu.Unlock()
	recordbatch.Assign(raw, offset, 0)
	if change != nil {
		change(raw)
		binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], castagnoli))
	}
	batch := Batch{Bytes: raw, BaseOffset: offset, LastOffset: offset + int64(len(pairs)) - 1, MaxTimestamp: compactTime.UnixMilli() - 1000}
	end := batch.LastOffset + 1
	mustAppend(t, l, Append{Set: SetSyncedCompacted, Batches: []Batch{batch}, State: State{LogEnd: end, HighWatermark: end, Epochs: epochZero}})
	return batch
}

// compactAll compacts as far as the log goes.
func compactAll(t testing.TB, l *Log, now time.Time, change ...func(*CompactOptions)) Compacted {
	t.Helper()
	o := CompactOptions{Set: SetSyncedCompacted, Below: l.next, Now: now, DeleteRetention: time.Hour, MapBytes: 1 << 20}
	for _, c := range change {
		c(&o)
	}
	done, err := l.Compact(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// leftOf returns what can be read of a log, each record as offset:key=value, and
// the number of batches.
func leftOf(t testing.TB, l *Log) (records []string, batches int) {
	t.Helper()
	for offset := int64(0); offset < l.next; {
		got, err := l.Read(context.Background(), offset, l.next, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			break
		}
		for _, b := range got {
			batches++
			offset = b.LastOffset + 1
			for r, err := range recordbatch.Records(b.Bytes, recordbatch.Limits{}) {
				if err != nil {
					records = append(records, fmt.Sprintf("%d:damaged", b.BaseOffset))
					break
				}
				value := string(r.Value)
				if r.Value == nil {
					value = "-"
				}
				records = append(records, fmt.Sprintf("%d:%s=%s", r.Offset, r.Key, value))
			}
		}
	}
	return records, batches
}

func wantLeft(t testing.TB, l *Log, batches int, want ...string) {
	t.Helper()
	if got, n := leftOf(t, l); !slices.Equal(got, want) || n != batches {
		t.Fatalf("left are %q in %d batches, want %q in %d", got, n, want, batches)
	}
}

// TestCompactTombstones: a tombstone stays until its time has come, counted from
// the run that removed what came before it, and goes in the first run after; also
// if nothing has been appended, and over a restart.
func TestCompactTombstones(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	appendPairs(t, l, nil, pair{"a", "1"}, pair{"b", "1"})
	appendPairs(t, l, nil, pair{"a", "-"}, pair{"b", "2"})
	appendPairs(t, l, nil, pair{"c", "1"})
	compactAll(t, l, compactTime)
	wantLeft(t, l, 2, "2:a=-", "3:b=2", "4:c=1")
	if d := l.Dirt(l.next, compactTime, 0); d.Dirty != 0 || !d.TombstonesUntil.Equal(compactTime.Add(time.Hour)) {
		t.Errorf("dirt %+v", d)
	}
	compactAll(t, l, compactTime.Add(time.Hour-time.Millisecond))
	wantLeft(t, l, 2, "2:a=-", "3:b=2", "4:c=1")
	// A later run does not put it off.
	appendPairs(t, l, nil, pair{"d", "-"})
	compactAll(t, l, compactTime.Add(30*time.Minute))
	wantLeft(t, l, 3, "2:a=-", "3:b=2", "4:c=1", "5:d=-")
	closeStore(t, s)
	s = open(t, cfg)
	l = s.Log(partition(1))
	if d := l.Dirt(l.next, compactTime, 0); !d.TombstonesUntil.Equal(compactTime.Add(90 * time.Minute)) {
		t.Errorf("dirt %+v", d)
	}
	appendPairs(t, l, nil, pair{"e", "1"})
	compactAll(t, l, compactTime.Add(time.Hour))
	wantLeft(t, l, 4, "3:b=2", "4:c=1", "5:d=-", "6:e=1")
	// The last batch stays without records, and tells where the log goes on.
	appendPairs(t, l, nil, pair{"f", "-"})
	compactAll(t, l, compactTime.Add(90*time.Minute))
	compactAll(t, l, compactTime.Add(150*time.Minute))
	wantLeft(t, l, 4, "3:b=2", "4:c=1", "6:e=1")
	if d := l.Dirt(l.next, compactTime, 0); !d.TombstonesUntil.IsZero() {
		t.Errorf("dirt %+v", d)
	}
	batches, err := l.Read(context.Background(), l.next-1, l.next, 1)
	if err != nil || len(batches) != 1 || batches[0].LastOffset != l.next-1 || len(batches[0].Bytes) != recordbatch.HeaderSize {
		t.Fatalf("the last batch is %+v, %v", batches, err)
	}
	// Once it is not the last any more it goes.
	appendPairs(t, l, nil, pair{"g", "1"})
	compactAll(t, l, compactTime.Add(150*time.Minute))
	wantLeft(t, l, 4, "3:b=2", "4:c=1", "6:e=1", "8:g=1")
}

// TestCompactLag: what is too young stays, and all that follows it.
func TestCompactLag(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	appendPairs(t, l, nil, pair{"a", "1"})
	appendPairs(t, l, nil, pair{"a", "2"})
	young := func(b []byte) { binary.BigEndian.PutUint64(b[35:], uint64(compactTime.UnixMilli()-10)) }
	appendPairs(t, l, young, pair{"a", "3"})
	appendPairs(t, l, nil, pair{"a", "4"})
	lag := func(d time.Duration) func(*CompactOptions) { return func(o *CompactOptions) { o.MinLag = d } }
	if done := compactAll(t, l, compactTime, lag(time.Minute)); done.Progress {
		t.Errorf("compacted what is younger than a minute: %+v", done)
	}
	compactAll(t, l, compactTime, lag(time.Second))
	wantLeft(t, l, 3, "1:a=2", "2:a=3", "3:a=4")
	compactAll(t, l, compactTime, lag(10*time.Millisecond))
	wantLeft(t, l, 1, "3:a=4")
}

// TestCompactKeepsWhatItCannotRead: control batches, and batches that cannot be
// opened or only with more memory than allowed, stay as they are. Records without
// a key, which came before the topic was compacted, go.
func TestCompactKeepsWhatItCannotRead(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	appendPairs(t, l, nil, pair{"a", "1"}, pair{"-", "1"})
	appendPairs(t, l, func(b []byte) { b[22] |= 0x20 }, pair{"a", "2"}, pair{"a", "3"})
	appendPairs(t, l, nil, pair{"a", "4"})
	damaged := appendPairs(t, l, func(b []byte) { b[recordbatch.HeaderSize] = 0x7f }, pair{"a", "5"}, pair{"b", "5"})
	appendPairs(t, l, nil, pair{"b", "6"})
	done := compactAll(t, l, compactTime)
	wantLeft(t, l, 4, "2:a=2", "3:a=3", "4:a=4", "5:damaged", "7:b=6")
	if done.Records != 2 {
		t.Errorf("%+v", done)
	}
	got, err := l.Read(context.Background(), 5, 7, 1)
	if err != nil || sameBatches(got, []Batch{damaged}) != nil {
		t.Errorf("the damaged batch is now %+v, %v", got, err)
	}
}

// TestCompactManyKeys: with more keys than the map holds several runs do what one
// does with a larger map.
func TestCompactManyKeys(t *testing.T) {
	const keys, rounds = 24, 2
	for _, slots := range []int64{5, 20, 1000} {
		s := open(t, testConfig(t))
		l := s.Log(partition(1))
		var want []string
		for round := range rounds {
			for i := 0; i < keys; i += 12 {
				var pairs []pair
				for j := range 12 {
					pairs = append(pairs, pair{fmt.Sprint("k", (i+j)*7%keys), fmt.Sprint(round)})
					if round == rounds-1 {
						want = append(want, fmt.Sprintf("%d:k%d=%d", round*keys+i+j, (i+j)*7%keys, round))
					}
				}
				appendPairs(t, l, nil, pairs...)
			}
		}
		runs := 0
		for full := true; full; runs++ {
			done := compactAll(t, l, compactTime, func(o *CompactOptions) { o.MapBytes = slots * keySlotBytes })
			full = done.MapFull
			if runs > rounds*keys {
				t.Fatalf("%d runs with %d slots do not suffice", runs, slots)
			}
		}
		if slots == 1000 && runs != 1 || slots < keys && runs < 2 {
			t.Errorf("%d runs with %d slots", runs, slots)
		}
		wantLeft(t, l, keys/12, want...)
		closeStore(t, s)
	}
}

// TestCompactedSpans: compaction makes spans one as far as the rules allow, and a
// truncation may leave one without a batch, which cleaning and compaction stand.
func TestCompactedSpans(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	for i := range 20 {
		appendPairs(t, l, nil, pair{fmt.Sprint("k", i), fmt.Sprintf("%0100d", i)})
	}
	before := l.durable.spans[0].bytes
	compactAll(t, l, compactTime, func(o *CompactOptions) { o.SpanBytes = before / 4 })
	if n := len(l.durable.spans); n != 4 && n != 5 {
		t.Errorf("%d spans: %+v", n, l.durable.spans)
	}
	appendPairs(t, l, nil, pair{"x", "1"})
	compactAll(t, l, compactTime)
	if n := len(l.durable.spans); n != 1 {
		t.Errorf("%d spans: %+v", n, l.durable.spans)
	}
	// All but the last record of one key, and a cut into the gap before it.
	for range 20 {
		appendPairs(t, l, nil, pair{"x", "2"})
	}
	for i := range 20 {
		appendPairs(t, l, nil, pair{fmt.Sprint("k", i), "-"})
	}
	compactAll(t, l, compactTime)
	compactAll(t, l, compactTime.Add(2*time.Hour))
	end, err := l.Truncate(context.Background(), 30, State{LogEnd: 30, HighWatermark: 30, Epochs: epochZero})
	if err != nil || end != 30 {
		t.Fatal(end, err)
	}
	wantLeft(t, l, 0)
	for range 2 {
		compactAll(t, l, compactTime.Add(4*time.Hour))
		appendPairs(t, l, nil, pair{"y", "1"})
	}
	compactAll(t, l, compactTime.Add(4*time.Hour))
	wantLeft(t, l, 1, "31:y=1")
	closeUnclean(t, s)
	s = open(t, cfg)
	wantLeft(t, s.Log(partition(1)), 1, "31:y=1")
}

// TestCompactBesideAppendsAndReads: readers see the newest record of each key at
// all times, in ascending order of offsets, and appends go on.
func TestCompactBesideAppendsAndReads(t *testing.T) {
	cfg := testConfig(t)
	cfg.VolumeBytes = 256 << 10
	s := open(t, cfg)
	l := s.Log(partition(1))
	const keys, rounds = 20, 150
	for i := range keys {
		appendPairs(t, l, nil, pair{fmt.Sprint("k", i), "0"})
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		defer close(stop)
		for n := range rounds {
			var pairs []pair
			for i := range keys {
				if (i+n)%3 > 0 {
					pairs = append(pairs, pair{fmt.Sprint("k", i), fmt.Sprintf("%0200d", n+1)})
				}
			}
			appendPairs(t, l, nil, pairs...)
		}
	})
	end := func() int64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.readable
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := l.Compact(context.Background(), CompactOptions{Set: SetSyncedCompacted, Below: end(), Now: compactTime, MapBytes: 1 << 20}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				seen := make(map[string]bool)
				last := int64(-1)
				// Up to the end as it moves on: the newest of a key may have come since.
				for offset := int64(0); offset < end(); {
					batches, err := l.Read(context.Background(), offset, end(), 4000)
					if err != nil {
						t.Error(err)
						return
					}
					if len(batches) == 0 {
						break
					}
					for _, b := range batches {
						for r, err := range recordbatch.Records(b.Bytes, recordbatch.Limits{}) {
							if err != nil || r.Offset <= last {
								t.Errorf("record %d after %d, %v", r.Offset, last, err)
								return
							}
							last = r.Offset
							seen[string(r.Key)] = true
						}
						offset = b.LastOffset + 1
					}
				}
				if len(seen) != keys {
					t.Errorf("%d keys are there, want %d", len(seen), keys)
					return
				}
			}
		})
	}
	wg.Wait()
	compactAll(t, l, compactTime)
	if got, _ := leftOf(t, l); len(got) != keys {
		t.Errorf("%d records are left, want %d", len(got), keys)
	}
}

// A truncation that overtakes a compaction in the active volume takes away what is
// being copied: that is no damage.
func TestCompactionIsOvertaken(t *testing.T) {
	s := open(t, testConfig(t))
	for i, overtake := range []func(l *Log){
		func(l *Log) {
			if _, err := l.Truncate(t.Context(), 10, State{LogEnd: 10, Epochs: epochZero}); err != nil {
				t.Fatal(err)
			}
		},
		func(*Log) {},
	} {
		l := s.Log(partition(i + 1))
		fill(t, l, SetReplicatedCompacted, 0, 40, 100)
		c := compaction{log: l, options: CompactOptions{Set: SetReplicatedCompacted, Below: 40, Now: time.Now(), MapBytes: 1 << 20}}
		if due, err := c.begin(); !due || err != nil {
			t.Fatal(due, err)
		}
		if err := c.mapKeys(t.Context()); err != nil {
			t.Fatal(err)
		}
		from := l.snapshot(c.end, func(span) bool { return true })
		overtake(l)
		switched, again, err := c.attempt(t.Context(), from)
		if overtaken := i == 0; err != nil || switched == overtaken || again == overtaken {
			t.Errorf("overtaken: %t; switched: %t, again: %t, %v", overtaken, switched, again, err)
		}
		if err := l.Failed(); err != nil {
			t.Error(err)
		}
	}
}

// TestDamagedTableHidesNothing: of a sparse span nothing is passed over because a block
// of a table is damaged, neither by a reader nor by a copy.
func TestDamagedTableHidesNothing(t *testing.T) {
	for name, use := range map[string]func(*Log) error{
		"read": func(l *Log) error {
			_, err := l.Read(t.Context(), 0, l.next, 64<<20)
			return err
		},
		"compact": func(l *Log) error {
			_, err := l.Compact(t.Context(), CompactOptions{Set: SetSyncedCompacted, Below: l.next, Now: compactTime.Add(2 * time.Hour), DeleteRetention: time.Hour, MapBytes: 1 << 20})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.VolumeBytes = 64 << 10
			s := open(t, cfg)
			l := s.Log(partition(1))
			for i := range 1000 {
				appendPairs(t, l, nil, pair{fmt.Sprint("k", i), fmt.Sprintf("%0200d", i)})
			}
			compactAll(t, l, compactTime)
			// A later start lists the files of the volume, and has all tables.
			closeStore(t, s)
			s = open(t, cfg)
			l = s.Log(partition(1))
			first := l.durable.spans[0]
			v := s.volumes.sealed(first.volume)
			if v == nil || !first.sparse {
				t.Fatalf("the first span is %+v, in volume %+v", first, v)
			}
			appendPairs(t, l, nil, pair{"k0", "new"})
			// Whoever opens the volume compares its tables; the damage comes later.
			if _, err := l.Read(t.Context(), 0, 1, 1); err != nil {
				t.Fatal(err)
			}
			v.tables.last = time.Time{}
			tables, err := filepath.Glob(filepath.Join(v.path, "*.sst"))
			if err != nil || len(tables) == 0 {
				t.Fatal(tables, err)
			}
			for _, table := range tables {
				raw, err := os.ReadFile(table)
				if err != nil {
					t.Fatal(err)
				}
				raw[len(raw)/3] ^= 0x10
				// In place, as the file is mapped.
				f, err := os.OpenFile(table, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				_, err = f.WriteAt(raw, 0)
				if err := errors.Join(err, f.Close()); err != nil {
					t.Fatal(err)
				}
			}
			var corrupt *ErrCorrupt
			if err := use(l); !errors.As(err, &corrupt) {
				t.Fatalf("got %v, want that the log is damaged", err)
			}
			eventually(t, "the volume was set aside", func() bool { return l.Failed() != nil })
		})
	}
}
