package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func inspectAll(t *testing.T, dir string) *Inspection {
	t.Helper()
	var done, total int64
	in, err := Inspect(t.Context(), dir, InspectOptions{Verify: true, BootID: "boot", Progress: func(d, of int64) {
		if d < done || d > of {
			t.Errorf("%d of %d bytes are read after %d", d, of, done)
		}
		done, total = d, of
	}})
	if err != nil {
		t.Fatal(err)
	}
	if done == 0 || total == 0 {
		t.Error("nobody was told how far it is")
	}
	return in
}

// listing returns all files below a directory with what they hold.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !e.IsDir() {
			raw, err := os.ReadFile(path)
			out[path] = fmt.Sprint(info.ModTime(), len(raw), sum(nil, append([]byte("0000"), raw...)))
			return err
		}
		out[path] = fmt.Sprint(info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestInspect looks into directories that a process has left in either way: all is
// there, and nothing changes.
func TestInspect(t *testing.T) {
	for _, stop := range []string{"clean", "kill"} {
		t.Run(stop, func(t *testing.T) {
			dir, end := victim(t, stop)
			before := listing(t, dir)
			in := inspectAll(t, dir)
			for _, d := range in.Damage {
				t.Error(d)
			}
			if in.Clean != (stop == "clean") || !in.Verified || len(in.Volumes) != 3 || len(in.Partitions) != 3 {
				t.Fatalf("it holds %+v", in)
			}
			var live int64
			for _, p := range in.Partitions {
				if p.LogStart != 0 || p.LogEnd != end || p.HighWatermark != end || len(p.Epochs) != 1 || p.Generation == 0 || p.StateVolume == 0 || p.Failed != "" {
					t.Errorf("%v: %+v", p.ID, p)
				}
				want := 2
				if p.ID == soundPartition {
					want = 1
				}
				if n := len(p.Spans); n != want || p.Spans[0].First != 0 || p.Spans[n-1].End != end || p.Spans[n-1].Bytes == 0 || p.Spans[n-1].MaxTimestamp < 1000+end-1 {
					t.Errorf("%v has the spans %+v", p.ID, p.Spans)
				}
				for _, s := range p.Spans {
					live += s.Bytes
				}
			}
			for _, v := range in.Volumes {
				live -= v.LiveBytes
				if v.LiveBytes == 0 || v.Spans == 0 || v.Spans != v.Partitions || v.Sealed.IsZero() != (v.Number != 1) || v.Unreadable != "" {
					t.Errorf("volume %+v", v)
				}
			}
			if live != 0 {
				t.Errorf("the volumes and the partitions differ by %d live bytes", live)
			}
			if after := listing(t, dir); !maps.Equal(before, after) {
				t.Errorf("it was %v and is %v", before, after)
			}
		})
	}
}

// TestInspectRefuses shows that nobody looks into a directory in use, and that it
// can be called off.
func TestInspectRefuses(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	one(t, s.Log(partition(1)), SetSynced, 0, 1, 2000)
	_, err := Inspect(t.Context(), cfg.Dir, InspectOptions{})
	wantError(t, err, ErrLocked)
	closeStore(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	_, err = Inspect(ctx, cfg.Dir, InspectOptions{Verify: true, Progress: func(int64, int64) { cancel() }})
	wantError(t, err, context.Canceled)
}

// TestVerifyFindsDamage damages every file of directories that a process has left
// in either way: verify names the file, or the offsets, whatever a start would lose
// by it.
func TestVerifyFindsDamage(t *testing.T) {
	for _, stop := range []string{"clean", "kill"} {
		t.Run(stop, func(t *testing.T) {
			dir, _ := victim(t, stop)
			paths, err := filepath.Glob(filepath.Join(dir, volumesFolder, "synced-000003", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range paths {
				relative, _ := filepath.Rel(dir, path)
				name := filepath.Base(path)
				size := contentEnd(t, path)
				if !checksummed(name) && name != volumeFile || size == 0 {
					continue
				}
				all := damages(size)
				for _, kind := range []string{"removed", "half", fmt.Sprintf("flip at %d", size/2)} {
					if name == "KEYREGISTRY" && stop == "kill" && kind != "half" {
						// A start makes it anew, and does not use what is in the midst of it.
						continue
					}
					copied := filepath.Join(memoryDir(t), "store")
					if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
					if err := all[kind](filepath.Join(copied, relative)); err != nil {
						t.Fatal(err)
					}
					in := inspectAll(t, copied)
					named := slices.ContainsFunc(in.Damage, func(d Damage) bool { return strings.Contains(d.String(), filepath.Dir(relative)) })
					if !named {
						t.Errorf("%s: %s: %v", relative, kind, in.Damage)
					}
					os.RemoveAll(copied)
				}
			}
		})
	}
}

// TestVerifyFindsEachBatch flips a bit in each batch of a value log in turn, that
// of a killed process and that of one which stopped in good order.
func TestVerifyFindsEachBatch(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	var batches []Batch
	for n := range int64(5) {
		batches = append(batches, one(t, l, SetSynced, 2*n, 2, 4000))
	}
	dirs := map[string]string{"killed": filepath.Join(memoryDir(t), "store"), "stopped": cfg.Dir}
	if err := os.CopyFS(dirs["killed"], os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	for how, dir := range dirs {
		path := filepath.Join(dir, volumesFolder, "synced-000001", "000001.vlog")
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if in := inspectAll(t, dir); len(in.Damage) != 0 || len(in.Partitions) != 1 || in.Partitions[0].LogEnd != 10 {
			t.Fatalf("%s without damage: %+v", how, in)
		}
		for _, b := range batches {
			at := strings.Index(string(raw), string(b.Bytes))
			if at < 0 {
				t.Fatal("the batch is not in the value log")
			}
			write(t, path, string(raw))
			if err := flipByte(path, int64(at+len(b.Bytes)/2)); err != nil {
				t.Fatal(err)
			}
			in := inspectAll(t, dir)
			if len(in.Damage) == 0 || in.Damage[0].Volume != 1 || !strings.HasSuffix(in.Damage[0].File, "synced-000001/000001.vlog") {
				t.Errorf("%s: batch at %d: %v", how, b.BaseOffset, in.Damage)
			}
		}
	}
}

// TestVerifyNamesRecords writes what is wrong into a volume whose files are sound.
func TestVerifyNamesRecords(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	id := partition(1)
	b := makeBatch(0, 2, 4000, 0, 1000, 1)
	wrongEpoch := makeBatch(2, 2, 400, 0, 1000, 1)
	mustAppend(t, s.Log(id), Append{Set: SetSynced, Batches: []Batch{b, makeBatch(2, 2, 400, 0, 1000, 1), makeBatch(4, 2, 400, 0, 1000, 1)},
		State:     State{LogEnd: 6, HighWatermark: 3, Epochs: epochZero},
		Producers: []Producer{{ID: 9, Batches: []ProducerBatch{{LastSequence: 1}}}}})
	closeStore(t, s)
	if in := inspectAll(t, cfg.Dir); len(in.Damage) != 0 || in.Partitions[0].Producers != 1 || in.Partitions[0].HighWatermark != 3 {
		t.Fatalf("without damage: %+v", in)
	}
	wrongEpoch.Bytes = slices.Clone(wrongEpoch.Bytes)
	wrongEpoch.Bytes[len(wrongEpoch.Bytes)-1] ^= 1
	timeKey := appendOffsetKey(nil, kindTime, id, 2)
	_, early := appendTimestamp(nil, timeKey, 999)
	_, fine := appendTimestamp(nil, timeKey, 1000)
	contradiction := durable{State: State{LogEnd: 6, LogStart: 7}, generation: 99}
	stateKey := appendPartitionKey(nil, kindState, id)
	_, impossible := appendMessage(nil, stateKey, contradiction.message())
	contradiction.LogStart, contradiction.spans = 0, []span{{volume: 5, first: 0, end: 6, bytes: 1}}
	_, elsewhere := appendMessage(nil, stateKey, contradiction.message())
	for name, c := range map[string]struct {
		key, value []byte
		want       string
		offset     int64
	}{
		"fine index":   {key: timeKey, value: fine},
		"index":        {key: timeKey, value: early, want: "its time index says", offset: 2},
		"index seal":   {key: timeKey, value: append([]byte{1}, fine[1:]...), want: "its time index is damaged: checksum is", offset: 2},
		"state":        {key: stateKey, value: []byte("damaged"), want: "its state record is damaged: checksum is"},
		"impossible":   {key: stateKey, value: impossible, want: "its state record contradicts itself: log start 7"},
		"elsewhere":    {key: stateKey, value: elsewhere, want: "the volume with the offsets 0 to 5 is lost: it is missing"},
		"progress":     {key: appendPartitionKey(nil, kindProgress, id), value: []byte("damaged"), want: "its progress record is damaged"},
		"producer":     {key: appendOffsetKey(nil, kindProducer, id, 9), value: []byte("damaged"), want: "the record of producer 9 is damaged"},
		"batch":        {key: appendOffsetKey(nil, kindBatch, id, 3), value: wrongEpoch.Bytes, want: "a batch is damaged", offset: 2},
		"another":      {key: appendOffsetKey(nil, kindBatch, id, 3), value: b.Bytes, want: "the batch that ends at 3 says it ends at 1", offset: 2},
		"epoch":        {key: appendOffsetKey(nil, kindBatch, id, 3), value: makeBatch(2, 2, 400, 1, 1000, 1).Bytes, want: "the batch names leader epoch 1", offset: 2},
		"timestamp":    {key: appendOffsetKey(nil, kindBatch, id, 3), value: makeBatch(2, 2, 400, 0, 1001, 1).Bytes, want: "a batch has the timestamp 1001", offset: 2},
		"no batch":     {key: appendOffsetKey(nil, kindBatch, id, 3), want: "the next batch begins at 4", offset: 2},
		"no last":      {key: appendOffsetKey(nil, kindBatch, id, 5), want: "its span ends at 6, but there is no batch", offset: 4},
		"unknown kind": {key: []byte{0x77, 1}, value: []byte{1}, want: "key has 2 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			if err := os.CopyFS(dir, os.DirFS(cfg.Dir)); err != nil {
				t.Fatal(err)
			}
			putEntry(t, filepath.Join(dir, volumesFolder, "synced-000001"), cfg, c.key, c.value)
			in := inspectAll(t, dir)
			if c.want == "" {
				if len(in.Damage) != 0 {
					t.Error(in.Damage)
				}
				return
			}
			if len(in.Damage) != 1 || !strings.Contains(in.Damage[0].String(), c.want) || in.Damage[0].Offset != c.offset {
				t.Errorf("damage is %v, want %q at %d", in.Damage, c.want, c.offset)
			}
		})
	}
}

// putEntry sets or, with no value, deletes a key in a closed volume, whose files are
// sound afterwards.
func putEntry(t *testing.T, dir string, cfg Config, key, value []byte) {
	t.Helper()
	cfg = cfg.withDefaults()
	db, err := openWritable(dir, true, &cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	txn := db.NewTransactionAt(db.MaxVersion(), true)
	if value == nil {
		err = txn.Delete(key)
	} else {
		err = txn.Set(key, value)
	}
	if err == nil {
		err = txn.CommitAt(db.MaxVersion()+1, nil)
	}
	if err = errors.Join(err, db.Close(), removeChecksums(dir)); err != nil {
		t.Fatal(err)
	}
	list, err := sumFiles(dir, false, nil)
	if err == nil {
		err = writeChecksums(dir, list)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestInspectAfterLosses looks into a directory in which a start has set a volume
// aside.
func TestInspectAfterLosses(t *testing.T) {
	dir, end := victim(t, "clean")
	path := filepath.Join(dir, volumesFolder, "synced-000001", "MANIFEST")
	if err := flipByte(path, 20); err != nil {
		t.Fatal(err)
	}
	in := inspectAll(t, dir)
	lost := func(in *Inspection) (n int) {
		for _, d := range in.Damage {
			if d.Partition != nil && d.Volume == 1 && d.Offset == 0 && strings.Contains(d.Reason, "is lost") {
				n++
			}
		}
		return n
	}
	if lost(in) != 2 || len(in.Damage) != 3 || in.Volumes[0].Unreadable == "" || in.Volumes[0].LiveBytes != 0 {
		t.Errorf("before a start: %v, %+v", in.Damage, in.Volumes)
	}
	s := open(t, damageConfig(dir))
	s.SettleLosses()
	// All sealed volumes are read where they are asked for.
	_, _ = s.Log(damagedPartitions[0]).Read(t.Context(), 0, end, 1)
	eventually(t, "the losses are recorded", func() bool {
		return s.Log(damagedPartitions[0]).Failed() != nil && s.Log(damagedPartitions[1]).Failed() != nil && !s.Unsettled()
	})
	closeStore(t, s)
	in = inspectAll(t, dir)
	if lost(in) != 2 || len(in.Damage) != 2 || in.Volumes[0].Condemned == "" || in.Partitions[0].Failed == "" {
		t.Errorf("after it: %v, %+v", in.Damage, in)
	}
}
