package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestLiveDamageOfAWrittenVolume flips bytes in every file of a volume that is being
// written, and goes on writing and reading. Nothing wrong is read, and however the process
// ends then, the next one has what was acknowledged or says what has failed.
func TestLiveDamageOfAWrittenVolume(t *testing.T) {
	dir, end := victim(t, "clean")
	logs := slices.Concat(damagedPartitions, []PartitionID{soundPartition})
	places := []int{0, 4, 500, 900, 999}
	if testing.Short() {
		places = []int{4, 500}
	}
	for _, stop := range []string{"closed", "sealed", "killed"} {
		for _, file := range []string{"*.mem", "*.vlog", "*.sst", "MANIFEST", "KEYREGISTRY", "DISCARD", "floor", "volume.json"} {
			t.Run(stop+"/"+strings.TrimPrefix(file, "*."), func(t *testing.T) {
				t.Parallel()
				for _, place := range places {
					copied := filepath.Join(memoryDir(t), "store")
					if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
					cmd := exec.CommandContext(t.Context(), os.Args[0])
					cmd.Env = append(os.Environ(), liveDamage+"="+copied, liveDamageHow+"="+fmt.Sprintf("%s %d %s %d", stop, place, file, end))
					// The process may end over it, once.
					out, err := cmd.CombinedOutput()
					acknowledged := end
					for line := range strings.Lines(string(out)) {
						switch text := strings.TrimSpace(line); {
						case strings.HasPrefix(text, "wrong: "):
							t.Errorf("%s flipped at %d per mille, live: %s", file, place, text)
						default:
							_, _ = fmt.Sscanf(text, "acknowledged %d", &acknowledged)
						}
					}
					if acknowledged == end {
						t.Fatalf("nothing was written: %v\n%s", err, out)
					}
					for start := range 2 {
						if err := verifyVictim(copied, acknowledged, logs...); err != nil {
							t.Errorf("%s flipped at %d per mille, start %d: %v", file, place, start+1, err)
							break
						}
					}
					os.RemoveAll(filepath.Dir(copied))
				}
			})
		}
	}
}

// liveDamage makes the test binary a child that damages the store in that directory as
// liveDamageHow says, while it writes, and prints up to where it has written and what is
// wrong.
const (
	liveDamage    = "RUNNEL_STORE_TEST_LIVE_DAMAGE"
	liveDamageHow = "RUNNEL_STORE_TEST_LIVE_DAMAGE_HOW"
)

func init() {
	children[liveDamage] = func(dir string) {
		if err := damageLive(dir, os.Getenv(liveDamageHow)); err != nil {
			fmt.Println("wrong:", err)
		}
	}
}

// damageLive leaves a process behind in which the store may not be able to close.
func damageLive(dir, how string) error {
	var stop, pattern string
	var place, end int64
	if _, err := fmt.Sscan(how, &stop, &place, &pattern, &end); err != nil {
		return err
	}
	s, err := Open(damageConfig(dir))
	if err != nil {
		return err
	}
	logs := slices.Concat(damagedPartitions, []PartitionID{soundPartition})
	write := func() error {
		for _, id := range logs {
			set := SetSynced
			if id == soundPartition {
				set = SetReplicated
			}
			outcome := make(chan error, 1)
			s.Log(id).Append(Append{
				Set: set, Batches: []Batch{damageBatch(id, end)}, State: State{LogEnd: end + 1, HighWatermark: end + 1, Epochs: epochZero},
			}, func(err error) { outcome <- err })
			if err := <-outcome; err != nil {
				return fmt.Errorf("%v: %w", id, err)
			}
		}
		end++
		fmt.Println("acknowledged", end)
		return nil
	}
	for range 5 {
		if err := write(); err != nil {
			return err
		}
	}
	if err := flipLast(filepath.Join(dir, volumesFolder, "synced-000003"), pattern, place); err != nil {
		return err
	}
	for range 10 {
		var failed *ErrFailed
		if err := write(); err != nil && s.failure() == nil && !errors.As(err, &failed) {
			return err
		} else if err != nil {
			break
		}
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
			if err := readVictim(s, end, damagedPartitions...); err != nil && s.failure() == nil {
				return err
			}
		}
		_ = s.Close(1)
	}
	return nil
}

// flipLast flips a byte of the newest file of a folder that a pattern names and that holds
// something, so many thousandths of what it holds behind its beginning.
func flipLast(folder, pattern string, place int64) error {
	files, err := filepath.Glob(filepath.Join(folder, pattern))
	if err != nil {
		return err
	}
	for _, path := range slices.Backward(files) {
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".mem") || strings.HasSuffix(path, ".vlog") {
			raw = []byte(strings.TrimRight(string(raw), "\x00"))
		}
		if len(raw) > 20 {
			return flipByte(path, int64(len(raw))*place/1000)
		}
	}
	return fmt.Errorf("no %s in %s", pattern, folder)
}
