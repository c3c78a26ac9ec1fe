package contract

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inspection is what the test needs of "storage inspect -o json".
type inspection struct {
	Clean   bool
	Volumes []struct {
		Name, State string
		LiveBytes   int64 `json:"live_bytes"`
	}
	Partitions []struct {
		TopicID  string `json:"topic_id"`
		LogStart int64  `json:"log_start"`
		LogEnd   int64  `json:"log_end"`
		State    string
	}
	Damage []struct{ File, Reason string }
}

// TestDamagedDataDirectory looks into the data directory of a stopped node as an
// operator does: when it is sound, when a bit has flipped, and when the node has
// set the damage aside.
func TestDamagedDataDirectory(t *testing.T) {
	cluster := startUp(t)
	offline := func(args ...string) result { return runnel(t, cluster.address, nil, args...) }
	runnel(t, cluster.address, nil, "topics", "create", "hurt").mustSucceed(t)
	runnel(t, cluster.address, strings.NewReader(strings.Repeat(strings.Repeat("x", 99)+"\n", 1000)), "produce", "hurt").mustSucceed(t)
	runnel(t, cluster.address, nil, "topics", "delete-records", "hurt", "--before", "0:10").mustSucceed(t)
	for name, code := range map[string]int{"inspect": 1, "verify": 1} {
		if got := offline("storage", name, cluster.dir); got.code != code || !strings.Contains(got.stderr, "in use") {
			t.Errorf("%s while the node runs: code %d: %s", name, got.code, got.stderr)
		}
	}
	if _, code := cluster.process().interrupt(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}

	inspect := func() inspection {
		t.Helper()
		var in inspection
		if err := json.Unmarshal([]byte(offline("storage", "inspect", cluster.dir, "-o", "json").mustSucceed(t).stdout), &in); err != nil {
			t.Fatal(err)
		}
		return in
	}
	in := inspect()
	if !in.Clean || len(in.Volumes) != 1 || in.Volumes[0].LiveBytes < 90_000 || len(in.Damage) != 0 ||
		len(in.Partitions) != 1 || in.Partitions[0].LogStart != 10 || in.Partitions[0].LogEnd != 1000 || in.Partitions[0].State != "ok" {
		t.Errorf("the directory holds %+v", in)
	}
	if got := offline("storage", "verify", cluster.dir).mustSucceed(t); !strings.Contains(got.stdout, "no damage was found") {
		t.Errorf("verify says %s", got.stdout)
	}
	flipInLargest(t, filepath.Join(cluster.dir, "storage", "volumes", in.Volumes[0].Name))
	got := offline("storage", "verify", cluster.dir)
	if got.code != 1 || !strings.Contains(got.stdout, "DAMAGE\n") || !strings.Contains(got.stdout, in.Volumes[0].Name) || got.stderr == "" {
		t.Errorf("verify on a damaged directory: code %d\n%s\n%s", got.code, got.stdout, got.stderr)
	}

	// The node starts all the same, serves the rest, and says what is wrong.
	if err := cluster.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	runnel(t, cluster.address, strings.NewReader("works\n"), "produce", "well").mustSucceed(t)
	if rest := runnel(t, cluster.address, nil, "consume", "well", "--from-beginning", "--exit-at-end").mustSucceed(t); rest.stdout != "works\n" {
		t.Errorf("the other topic holds %q", rest.stdout)
	}
	read := runnel(t, cluster.address, nil, "consume", "hurt", "--from-beginning", "--timeout", "3s")
	if read.code == 0 || read.stderr == "" {
		t.Errorf("a damaged topic is read with code %d: %s", read.code, read.stderr)
	}
	var described struct {
		Partitions []struct{ Status, Error string }
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if err := json.Unmarshal([]byte(runnel(t, cluster.address, nil, "topics", "describe", "hurt", "-o", "json").mustSucceed(t).stdout), &described); err != nil {
			t.Fatal(err)
		}
		if p := described.Partitions[0]; p.Status == "failed" && p.Error != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the damaged partition is described as %+v", described)
		}
	}
	refused := runnel(t, cluster.address, strings.NewReader("no\n"), "produce", "hurt")
	if refused.code != 1 {
		t.Errorf("a failed partition takes records: %s", refused.stderr)
	}
	if list := runnel(t, cluster.address, nil, "topics", "list").mustSucceed(t); !strings.Contains(list.stdout, "hurt") {
		t.Errorf("the list is %s", list.stdout)
	}
}

// flipInLargest flips a bit in the midst of what the largest file of a folder
// holds.
func flipInLargest(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var largest string
	var content []byte
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		// What was reserved and not written yet is zero.
		if held := len(strings.TrimRight(string(raw), "\x00")); held > len(content) {
			largest, content = filepath.Join(dir, e.Name()), raw[:held]
		}
	}
	file, err := os.OpenFile(largest, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	at := len(content) / 2
	if _, err := file.WriteAt([]byte{content[at] ^ 0x10}, int64(at)); err != nil {
		t.Fatal(err)
	}
	t.Logf("flipped a bit of %s at %d of %d", largest, at, len(content))
}
