package contract

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestUpStopsOnInterrupt(t *testing.T) {
	cluster := startUp(t)
	runnel(t, cluster.address, strings.NewReader("kept\n"), "produce", "words").mustSucceed(t)
	took, code := cluster.process().interrupt(t)
	if code != 0 {
		t.Errorf("exit code %d after an interrupt", code)
	}
	t.Logf("stopped in %v", took)
	if err := cluster.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := runnel(t, cluster.address, nil, "consume", "words", "--from-beginning", "--exit-at-end").mustSucceed(t)
	if read.stdout != "kept\n" {
		t.Errorf("after a clean restart the topic holds %q", read.stdout)
	}
}

// TestUpStopsDespiteStreams: open streams must not hold the process back.
func TestUpStopsDespiteStreams(t *testing.T) {
	cluster := startUp(t)
	runnel(t, cluster.address, nil, "topics", "create", "followed").mustSucceed(t)
	follower := start(t, cluster.program, "--bootstrap", cluster.address, "consume", "followed", "--from-beginning")
	runnel(t, cluster.address, strings.NewReader("seen\n"), "produce", "followed").mustSucceed(t)
	for tick := time.Tick(20 * time.Millisecond); !strings.Contains(follower.output(), "seen"); {
		<-tick
	}
	took, code := cluster.process().interrupt(t)
	if code != 0 || took > 10*time.Second {
		t.Errorf("stopped with code %d after %v beside a consumer that follows", code, took)
	}
	// The consumer finds the cluster again.
	if err := cluster.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	runnel(t, cluster.address, strings.NewReader("again\n"), "produce", "followed").mustSucceed(t)
	deadline := time.After(30 * time.Second)
	for tick := time.Tick(20 * time.Millisecond); !strings.Contains(follower.output(), "again"); {
		select {
		case <-tick:
		case <-deadline:
			t.Fatalf("the consumer did not go on after the restart: %s", follower.output())
		}
	}
	if n := strings.Count(follower.output(), "seen"); n != 1 {
		t.Errorf("the consumer printed the first record %d times", n)
	}
}

func TestUpSaysWhatIsWrong(t *testing.T) {
	cluster := startUp(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tryUp := func(dir, address string) result {
		return run(t, ctx, nil, cluster.program, "up", "--data-dir", dir, "--listen", address)
	}
	check := func(t *testing.T, r result, words ...string) {
		t.Helper()
		if r.code != 1 {
			t.Errorf("exit code %d", r.code)
		}
		for _, word := range words {
			if !strings.Contains(r.stderr, word) {
				t.Errorf("stderr does not say %q: %s", word, r.stderr)
			}
		}
		if n := strings.Count(strings.TrimSpace(r.stderr), "\n"); n > 3 {
			t.Errorf("the reason is buried in %d lines:\n%s", n+1, r.stderr)
		}
	}

	t.Run("port taken", func(t *testing.T) {
		check(t, tryUp(t.TempDir(), cluster.address), cluster.address, "--listen")
	})
	t.Run("directory taken", func(t *testing.T) {
		check(t, tryUp(cluster.dir, freeAddress(t)), cluster.dir, "--data-dir")
	})
	t.Run("directory is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		check(t, tryUp(file, freeAddress(t)), file)
	})
	t.Run("directory not writable", func(t *testing.T) {
		if os.Getuid() == 0 {
			// Root writes everywhere but here.
			check(t, tryUp("/proc/runnel", freeAddress(t)), "/proc/runnel")
			return
		}
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		check(t, tryUp(dir, freeAddress(t)), dir)
	})
	t.Run("newer format", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "storage"), 0o700); err != nil {
			t.Fatal(err)
		}
		identity := `{"formatVersion":1000,"directoryId":"7f1c9d5e-1f6b-4c39-8a36-5a3f6f6f8f10"}`
		if err := os.WriteFile(filepath.Join(dir, "storage", "node.json"), []byte(identity), 0o600); err != nil {
			t.Fatal(err)
		}
		check(t, tryUp(dir, freeAddress(t)), "1000", dir)
	})
	t.Run("another node's directory", func(t *testing.T) {
		// The storage of one cluster under the etcd and metadata of another.
		other := startUp(t)
		other.process().interrupt(t)
		mixed := startUp(t)
		mixed.process().interrupt(t)
		if err := os.RemoveAll(filepath.Join(mixed.dir, "storage")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(other.dir, "storage"), filepath.Join(mixed.dir, "storage")); err != nil {
			t.Fatal(err)
		}
		check(t, tryUp(mixed.dir, freeAddress(t)), "cluster")
	})
}

// TestSecondInterruptExitsAtOnce: a process that ends in good order exits with 0,
// one that is interrupted while it stops with 130.
func TestSecondInterruptExitsAtOnce(t *testing.T) {
	p := startUp(t).process()
	// Two of the same signal at once would be merged into one.
	for _, signal := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if err := p.command.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		t.Fatal("two signals do not end the process")
	}
	if code := p.command.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130: the second signal was not heeded", code)
	}
}

// TestHostileConnections: whatever comes in on the port, the others are served.
func TestHostileConnections(t *testing.T) {
	cluster := startUp(t)
	runnel(t, cluster.address, strings.NewReader("before\n"), "produce", "calm").mustSucceed(t)
	garbage := []string{
		"\x00\x01\x02\x03\xff\xfe\xfd" + strings.Repeat("\xaa", 4096),
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /runnel.storage.v1.LogService/Produce HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+proto\r\nContent-Length: 5\r\n\r\n\x00\xff\xff\xff\xff",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\xff", 64),
		"POST /runnel.storage.v1.LogService/Append HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{\"append\":",
		strings.Repeat("A", 1<<20),
	}
	for i, bytes := range garbage {
		connection, err := net.Dial("tcp", cluster.address)
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		if _, err := connection.Write([]byte(bytes)); err != nil {
			t.Logf("garbage %d was cut off: %v", i, err)
		}
	}
	got := runnel(t, cluster.address, nil, "consume", "calm", "--from-beginning", "--exit-at-end").mustSucceed(t)
	if got.stdout != "before\n" {
		t.Errorf("read %q beside hostile connections", got.stdout)
	}
}

func TestBadArguments(t *testing.T) {
	cluster := startUp(t)
	runnel(t, cluster.address, nil, "topics", "create", "good").mustSucceed(t)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"topics", "create", "good"}, 1, "good"},
		{[]string{"topics", "create", "bad name"}, 1, "underscore and hyphen"},
		{[]string{"topics", "create", "."}, 1, "."},
		{[]string{"topics", "create", ".."}, 1, ".."},
		{[]string{"topics", "create", strings.Repeat("x", 250)}, 1, "249"},
		{[]string{"topics", "create", "__internal"}, 1, "__"},
		{[]string{"topics", "create", "many", "--partitions", "10001"}, 1, "10000"},
		{[]string{"topics", "create", "few", "--partitions", "-1"}, 0, "partitions"},
		{[]string{"topics", "create", "wide", "--replication-factor", "2"}, 1, "replication factor"},
		{[]string{"topics", "create", "odd", "--config", "retention.msec=1"}, 1, "retention.msec"},
		{[]string{"topics", "create", "odd", "--config", "retention.ms=-7"}, 1, "retention.ms"},
		{[]string{"topics", "create", "odd", "--config", "compression.type=gzip"}, 1, "producer"},
		{[]string{"topics", "create", "odd", "--config", "nonsense"}, 2, "key=value"},
		{[]string{"topics", "delete", "missing"}, 1, "missing"},
		{[]string{"topics", "describe", "missing"}, 1, "missing"},
		{[]string{"topics", "alter", "good"}, 2, "--unset"},
		{[]string{"topics", "alter", "good", "--config", "nonsense"}, 2, "key=value"},
		{[]string{"topics", "alter", "good", "--config", "retention.ms=soon"}, 1, "-1 for no limit"},
		{[]string{"topics", "alter", "good", "--unset", "retention.msec"}, 1, "retention.msec"},
		{[]string{"topics", "alter", "missing", "--unset", "retention.ms"}, 1, "missing"},
		{[]string{"topics", "delete-records", "good"}, 2, "--before"},
		{[]string{"topics", "delete-records", "good", "--before", "end"}, 2, "P:OFFSET"},
		{[]string{"topics", "delete-records", "good", "--before", "0:end", "--before", "0:0"}, 2, "partition 0"},
		{[]string{"topics", "delete-records", "missing", "--before", "0:end"}, 1, "missing"},
		{[]string{"topics", "delete-records", "good", "--before", "9:end"}, 1, "only partition 0"},
		{[]string{"topics", "delete-records", "good", "--before", "0:99"}, 1, "0:end"},
		{[]string{"topics", "delete-records", "__offsets", "--before", "0:end"}, 1, "__offsets"},
		{[]string{"consume", "missing", "--exit-at-end"}, 1, "missing"},
		{[]string{"consume", "good", "--partition", "9", "--exit-at-end"}, 1, "9"},
		{[]string{"consume", "good", "--offset", "0:99", "--exit-at-end"}, 1, "99"},
		{[]string{"consume", "good", "--offset", "x", "--exit-at-end"}, 2, "--offset"},
		{[]string{"consume", "good", "--from-time", "yesterday"}, 2, "RFC"},
		{[]string{"consume", "good", "--from-beginning", "--offset", "0:0"}, 2, "--"},
		{[]string{"produce", "missing", "--no-create"}, 1, "missing"},
		{[]string{"produce", "__consumer_offsets"}, 1, "__"},
		{[]string{"produce", "good", "--acks", "some"}, 2, "acks"},
		{[]string{"produce", "good", "--compression", "rar"}, 2, "compression"},
		{[]string{"produce", "good", "--partition", "5"}, 1, "5"},
		{[]string{"produce", "good", "--property", "colour=red"}, 2, "colour"},
		{[]string{"storage", "inspect"}, 2, "DIR"},
		{[]string{"storage", "inspect", filepath.Join(cluster.dir, "nowhere")}, 1, "nowhere"},
		{[]string{"storage", "inspect", cluster.dir}, 1, "in use"},
		{[]string{"storage", "verify", cluster.dir}, 1, "in use"},
		{[]string{"storage", "verify", "--partitions", cluster.dir}, 2, "--partitions"},
		{[]string{"frobnicate"}, 2, "frobnicate"},
		{[]string{"topics", "create"}, 2, "NAME"},
		{[]string{"-o", "xml", "topics", "list"}, 2, "xml"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			got := runnel(t, cluster.address, strings.NewReader("line\n"), c.args...)
			if c.code != 0 && got.code != c.code || got.code == 0 {
				t.Errorf("exit code %d, want %d", got.code, c.code)
			}
			if !strings.Contains(got.stderr, c.says) {
				t.Errorf("stderr does not say %q: %s", c.says, got.stderr)
			}
			if strings.Contains(got.stderr, "rpc error") || strings.Contains(got.stderr, "invalid_argument:") {
				t.Errorf("stderr shows its plumbing: %s", got.stderr)
			}
		})
	}
	big := strings.Repeat("x", 2<<20)
	tooLarge := runnel(t, cluster.address, strings.NewReader("small\n"+big+"\nsmall\n"), "produce", "good")
	if tooLarge.code != 1 || !strings.Contains(tooLarge.stderr, "max.message.bytes") {
		t.Errorf("a record over the limit ends with code %d: %s", tooLarge.code, tail(tooLarge.stderr, 500))
	}
	nobody := runnel(t, freeAddress(t), nil, "topics", "list")
	if nobody.code != 1 || !strings.Contains(nobody.stderr, "start one of these nodes") {
		t.Errorf("without a server: code %d: %s", nobody.code, nobody.stderr)
	}
	if got := runnel(t, cluster.address, nil, "consume", "good", "--from-beginning", "--exit-at-end").mustSucceed(t); strings.Count(got.stdout, "\n") != 2 || !strings.Contains(got.stdout, "small") {
		t.Errorf("after all that the topic holds %s", fmt.Sprintf("%.200q", got.stdout))
	}
}
