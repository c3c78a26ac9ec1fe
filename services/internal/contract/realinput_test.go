package contract

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestRealInput sends real log files through the command line while the server
// is killed again and again, and reads them back: every byte is there once, and
// the records of a key are in the order of the file.
func TestRealInput(t *testing.T) {
	cluster := startUp(t)
	files := realInput(t)

	type sent struct {
		topic  string
		lines  []string
		keyed  bool
		single bool
	}
	var all []sent
	stopCrashes := crashRepeatedly(t, cluster, 700*time.Millisecond)
	defer stopCrashes()

	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name]
		for _, partitions := range []int{1, 3} {
			for _, keyed := range []bool{false, true} {
				for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
					topic := fmt.Sprintf("%s-%d-%t-%s", name, partitions, keyed, codec)
					args := []string{"produce", topic, "--compression", codec, "--no-create"}
					if keyed {
						args = append(args, "--key-separator", " ")
					}
					created := runnel(t, cluster.address, nil, "topics", "create", topic, "--partitions", fmt.Sprint(partitions))
					if created.code != 0 && !strings.Contains(created.stderr, "exist") {
						// The crash may have come between the creation and its answer.
						created = runnel(t, cluster.address, nil, "topics", "create", topic, "--partitions", fmt.Sprint(partitions))
						if created.code != 0 && !strings.Contains(created.stderr, "exist") {
							t.Fatalf("creating %s: %s", topic, created.stderr)
						}
					}
					runnel(t, cluster.address, bytes.NewReader(data), args...).mustSucceed(t)
					all = append(all, sent{topic: topic, lines: lines(data), keyed: keyed, single: partitions == 1})
				}
			}
		}
	}
	stopCrashes()
	if err := cluster.crash(t.Context()); err != nil {
		t.Fatal(err)
	}

	for _, s := range all {
		if s.single && !s.keyed {
			got := runnel(t, cluster.address, nil, "consume", s.topic, "--from-beginning", "--exit-at-end").mustSucceed(t)
			if want := strings.Join(s.lines, "\n") + "\n"; got.stdout != want {
				t.Errorf("%s: read back %d bytes, sent %d; first difference at byte %d", s.topic, len(got.stdout), len(want), firstDifference(got.stdout, want))
			}
			continue
		}
		got := runnel(t, cluster.address, nil, "consume", s.topic, "--from-beginning", "--exit-at-end", "-o", "json").mustSucceed(t)
		compareByKey(t, s.topic, got.stdout, s.lines, s.keyed)
	}
}

// crashRepeatedly kills the cluster's process again and again until the returned
// function is called, which says how often that was and fails the test if the
// process did not come back.
func crashRepeatedly(t *testing.T, cluster *up, pause time.Duration) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	crashes, done := 0, make(chan error, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-time.After(pause):
			}
			// Not ctx: a restart that has begun is seen through.
			if err := cluster.crash(context.WithoutCancel(ctx)); err != nil {
				done <- err
				return
			}
			crashes++
		}
	}()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("after %d crashes: %v", crashes, err)
		}
		t.Logf("the process was killed %d times", crashes)
	})
}

// consumed is an object of `runnel consume -o json`.
type consumed struct {
	Partition     int     `json:"partition"`
	Offset        int64   `json:"offset"`
	Key           *string `json:"key"`
	KeyEncoding   string  `json:"key_encoding"`
	Value         *string `json:"value"`
	ValueEncoding string  `json:"value_encoding"`
}

func compareByKey(t *testing.T, topic, output string, sent []string, keyed bool) {
	t.Helper()
	want := make(map[string][]string)
	for _, line := range sent {
		key, value, found := strings.Cut(line, " ")
		if !keyed || !found {
			key, value = "", line
		}
		want[key] = append(want[key], value)
	}
	got := make(map[string][]string)
	partitionOf := make(map[string]int)
	next := make(map[int]int64)
	decoder := json.NewDecoder(strings.NewReader(output))
	for decoder.More() {
		var c consumed
		if err := decoder.Decode(&c); err != nil {
			t.Fatalf("%s: reading the output: %v", topic, err)
		}
		key, value := text(t, c.Key, c.KeyEncoding), text(t, c.Value, c.ValueEncoding)
		if c.Offset != next[c.Partition] {
			t.Fatalf("%s: partition %d goes on at offset %d instead of %d", topic, c.Partition, c.Offset, next[c.Partition])
		}
		next[c.Partition]++
		if c.Key != nil {
			if p, seen := partitionOf[key]; seen && p != c.Partition {
				t.Errorf("%s: key %q is in partitions %d and %d", topic, key, p, c.Partition)
			}
			partitionOf[key] = c.Partition
		}
		got[key] = append(got[key], value)
	}
	for key := range want {
		if key == "" {
			// Records without a key spread over the partitions: their order holds in
			// each partition only.
			slices.Sort(want[key])
			slices.Sort(got[key])
		}
		if !slices.Equal(got[key], want[key]) {
			t.Errorf("%s: key %q: read back %d records, sent %d, or in another order", topic, key, len(got[key]), len(want[key]))
		}
		delete(got, key)
	}
	for key, values := range got {
		t.Errorf("%s: %d records of key %q were never sent", topic, len(values), key)
	}
}

func text(t *testing.T, s *string, encoding string) string {
	t.Helper()
	if s == nil {
		return ""
	}
	if encoding == "base64" {
		raw, err := base64.StdEncoding.DecodeString(*s)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	return *s
}

func firstDifference(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// realInput returns the sample logs that lie beside the repository. Without
// them it makes a sample of its own out of the project's sources, in the same
// shape: CRLF line ends and no line feed at the end.
func realInput(t *testing.T) map[string][]byte {
	t.Helper()
	root := filepath.Join("..", "..", "..")
	files := make(map[string][]byte)
	samples, _ := filepath.Glob(filepath.Join(root, "..", "shared", "data", "*.log"))
	for _, path := range samples {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(path), ".log")] = data
	}
	if len(files) > 0 {
		return files
	}
	t.Log("no sample logs beside the repository: using the project's own sources with CRLF line ends")
	var sample []byte
	err := filepath.WalkDir(filepath.Join(root, "proto"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		sample = append(sample, data...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	files["sources"] = bytes.TrimSuffix(bytes.ReplaceAll(sample, []byte("\n"), []byte("\r\n")), []byte("\n"))
	return files
}
