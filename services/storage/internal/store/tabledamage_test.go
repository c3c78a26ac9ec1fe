package store

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// TestDamagedTableOfAWrittenVolume flips bytes in a table of a volume that is being
// written: in its blocks, in its index, and behind. Nothing wrong is read, and whatever
// becomes of the volume then, closed, sealed or neither, the next start finds it: what is
// there must not get a checksum as it is.
func TestDamagedTableOfAWrittenVolume(t *testing.T) {
	dir, end := victim(t, "clean")
	logs := append(damagedPartitions[:len(damagedPartitions):len(damagedPartitions)], soundPartition)
	tables, err := filepath.Glob(filepath.Join(dir, volumesFolder, "synced-000003", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("there are the tables %v, %v", tables, err)
	}
	name := filepath.Base(tables[0])
	info, err := os.Stat(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	places, step := []int64{}, int64(4)
	if testing.Short() {
		step = 20
	}
	for at := int64(10); at < info.Size(); at += info.Size() / 6 {
		places = append(places, at)
	}
	for at := info.Size() - 1; at > info.Size()-100; at -= step {
		places = append(places, at)
	}
	for _, stop := range []string{"closed", "sealed", "killed"} {
		t.Run(stop, func(t *testing.T) {
			t.Parallel()
			for _, at := range places {
				copied := filepath.Join(memoryDir(t), "store")
				if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				cmd := exec.CommandContext(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), tableDamage+"="+copied, tableDamageHow+"="+fmt.Sprintf("%s %d %s %d", stop, at, name, end))
				if out, err := cmd.CombinedOutput(); err != nil || string(out) != "" {
					t.Errorf("flipped at %d of %d, live: %v, %s", at, info.Size(), err, out)
				}
				for start := range 2 {
					if err := verifyVictim(copied, end, logs...); err != nil {
						t.Errorf("flipped at %d of %d: start %d: %v", at, info.Size(), start+1, err)
						break
					}
				}
				os.RemoveAll(copied)
			}
		})
	}
}

// tableDamage makes the test binary a child that damages a table of the store in that
// directory as tableDamageHow says, and prints what is wrong then.
const (
	tableDamage    = "RUNNEL_STORE_TEST_TABLE_DAMAGE"
	tableDamageHow = "RUNNEL_STORE_TEST_TABLE_DAMAGE_HOW"
)

func init() {
	children[tableDamage] = func(dir string) {
		if err := damageTableLive(dir, os.Getenv(tableDamageHow)); err != nil {
			fmt.Println(err)
		}
	}
}

// damageTableLive leaves a process behind in which the store may not be able to close.
func damageTableLive(dir, how string) error {
	var stop, name string
	var at, end int64
	if _, err := fmt.Sscan(how, &stop, &at, &name, &end); err != nil {
		return err
	}
	s, err := Open(damageConfig(dir))
	if err != nil {
		return err
	}
	// Now it is open for writing.
	outcome := make(chan error, 1)
	s.Log(PartitionID{Topic: cluster.TopicID{0xfe}, Index: 1}).Append(Append{
		Set: SetSynced, Batches: []Batch{makeBatch(0, 1, 100, 0, 1000, 1)}, State: State{LogEnd: 1, Epochs: epochZero},
	}, func(err error) { outcome <- err })
	if err := <-outcome; err != nil {
		return err
	}
	if err := flipByte(filepath.Join(dir, volumesFolder, "synced-000003", name), at); err != nil {
		return err
	}
	if err := readVictim(s, end, damagedPartitions...); err != nil && s.failure() == nil {
		return err
	}
	switch stop {
	case "closed":
		_ = s.Close(1)
	case "sealed":
		if s.sets[SetSynced].roll(context.Background()) == nil {
			for s.failure() == nil && s.volumes.unsealed(3) != nil {
				runtime.Gosched()
			}
		}
		_ = s.Close(1)
	}
	return nil
}
