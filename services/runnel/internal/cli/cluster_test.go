package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/runnel-mesh/runnel/services/allinone"
)

// shared is the cluster of all tests that do not need one of their own. It is
// started by the first of them.
var shared struct {
	sync.Mutex
	address string
	dir     string
	stop    func() error
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.stop != nil {
		if err := shared.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the cluster:", err)
			code = 1
		}
		os.RemoveAll(shared.dir)
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// clusterAddress returns the address of a real cluster in this process.
func clusterAddress(t *testing.T) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.stop == nil && shared.err == nil {
		shared.err = startShared()
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.address
}

func startShared() error {
	dir, err := os.MkdirTemp("", "runnel-cli-")
	if err != nil {
		return err
	}
	config := allinone.DefaultConfig()
	config.DataDir, config.Listen = dir, "127.0.0.1:0"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cluster, stop, err := allinone.Start(ctx, config)
	if err != nil {
		return err
	}
	shared.address, shared.dir, shared.stop = cluster.Address(), dir, stop
	return nil
}

// runnelCommand runs a client command against the shared cluster.
func runnelCommand(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	return runWith(t, strings.NewReader(stdin), map[string]string{bootstrapEnvVar: clusterAddress(t)}, args...)
}

// succeed runs a command that must succeed and returns its output.
func succeed(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	got := runnelCommand(t, stdin, args...)
	if got.code != exitSuccess {
		t.Fatalf("%s: exit code %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	return got
}

// topicName returns a name that no other test uses.
func topicName(t *testing.T) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("/ #:", r) {
			return '-'
		}
		return r
	}, t.Name())
}

func readBack(t *testing.T, topic string, flags ...string) string {
	t.Helper()
	return succeed(t, "", append([]string{"consume", topic, "--from-beginning", "--exit-at-end"}, flags...)...).stdout
}

// withoutTimes replaces what differs from run to run.
func withoutTimes(s string) string {
	s = regexp.MustCompile(`\d+\.\d{3} seconds`).ReplaceAllString(s, "S seconds")
	s = regexp.MustCompile(` \(\d+ records/s, [\d.]+ MB/s\)`).ReplaceAllString(s, "")
	return s
}

func TestRoundTripIsByteExact(t *testing.T) {
	long := strings.Repeat("0123456789abcde\r", 1<<16)[:1<<20-200]
	inputs := []struct{ name, input, want string }{
		{"nothing", "", ""},
		{"one line", "a\n", "a\n"},
		{"no line feed at the end", "a\nb", "a\nb\n"},
		{"CRLF", "a\r\nb\r\n", "a\r\nb\r\n"},
		{"carriage return at the end", "a\r", "a\r\n"},
		{"empty lines", "\n\na\n\n", "\n\na\n\n"},
		{"NUL and invalid UTF-8", "\x00\n\xff\xfe\n\x80", "\x00\n\xff\xfe\n\x80\n"},
		{"a line of 1 MiB", "a\n" + long + "\nb\n", "a\n" + long + "\nb\n"},
	}
	for i, input := range inputs {
		t.Run(input.name, func(t *testing.T) {
			// Every way to send sees some of the inputs.
			codec := []string{"none", "gzip", "snappy", "lz4", "zstd"}[i%5]
			acks := []string{"all", "leader", "all"}[i%3]
			got := succeed(t, input.input, "produce", topicName(t), "--compression", codec, "--acks", acks)
			want := fmt.Sprintf("%s, %s, S seconds, 0 failures\n",
				plural(int64(strings.Count(input.want, "\n")), "record"), plural(int64(len(input.want)-strings.Count(input.want, "\n")), "byte"))
			created := fmt.Sprintf("created topic %q with 1 partition\n", topicName(t))
			if got := withoutTimes(got.stderr); got != created+want {
				t.Errorf("stderr is %swant     %s", got, created+want)
			}
			if got.stdout != "" {
				t.Errorf("stdout is %q", got.stdout)
			}
			if read := readBack(t, topicName(t)); read != input.want {
				t.Errorf("read back %d bytes %.80q, want %d", len(read), read, len(input.want))
			}
		})
	}
}

func TestProduceWithoutAcknowledgement(t *testing.T) {
	succeed(t, "", "topics", "create", topicName(t))
	got := succeed(t, "a\nb\n", "produce", topicName(t), "--acks", "none")
	if got := withoutTimes(got.stderr); got != "2 records, 2 bytes, S seconds, 0 failures\n" {
		t.Errorf("stderr is %s", got)
	}
	read := succeed(t, "", "consume", topicName(t), "--from-beginning", "--max-records", "2", "--timeout", "30s")
	if read.stdout != "a\nb\n" {
		t.Errorf("read back %q", read.stdout)
	}
}

func TestProduceKeysAndHeaders(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic)
	succeed(t, "ann::book::2\nno separator\n::empty key\nempty value::\n\n", "produce", topic,
		"--key-separator", "::", "--header", "source=cli", "--header", "empty=", "--header", "source=again=1")
	want := strings.Join([]string{
		"Offset:0|source:cli,empty:,source:again=1|ann|book::2",
		"Offset:1|source:cli,empty:,source:again=1|null|no separator",
		"Offset:2|source:cli,empty:,source:again=1||empty key",
		"Offset:3|source:cli,empty:,source:again=1|empty value|",
		"Offset:4|source:cli,empty:,source:again=1|null|",
	}, "\n") + "\n"
	if got := readBack(t, topic, "--print-offset", "--print-headers", "--print-key", "--key-separator", "|"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := readBack(t, topic, "--print-key", "--key-separator", "::"); got != "ann::book::2\nnull::no separator\n::empty key\nempty value::\nnull::\n" {
		t.Errorf("got\n%s", got)
	}
}

func TestProduceToOnePartition(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "3")
	succeed(t, "a\nb\nc\n", "produce", topic, "--partition", "2")
	if got := readBack(t, topic, "--print-partition"); got != "Partition:2\ta\nPartition:2\tb\nPartition:2\tc\n" {
		t.Errorf("got %q", got)
	}
	succeed(t, "d\ne\nf\n", "produce", topic, "--property", "partitioner=roundrobin", "--property", "linger.ms=5", "--property", "idempotence=false",
		"--property", "batch.bytes=1000", "--property", "buffer.bytes=100000", "--property", "request.timeout.ms=5000")
	for _, partition := range []string{"0", "1"} {
		if got := readBack(t, topic, "--partition", partition); strings.Count(got, "\n") != 1 {
			t.Errorf("partition %s got %q from the round robin", partition, got)
		}
	}
}

func TestProduceLeavesOutWhatIsTooLong(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--config", "max.message.bytes=1000")
	input := "small\n" + strings.Repeat("x", 1001) + "\nsmall too\n" + strings.Repeat("y", 999) + "\nlast"
	got := runnelCommand(t, input, "produce", topic)
	lines := strings.Split(withoutTimes(got.stderr), "\n")
	if got.code != exitFailure || len(lines) != 4 || lines[3] != "" {
		t.Fatalf("exit code %d, stderr\n%s", got.code, got.stderr)
	}
	if want := "runnel: line 2 was not sent: the line has 1001 bytes, but a record may have 1000 (max.message.bytes of the topic)"; lines[0] != want {
		t.Errorf("got  %s\nwant %s", lines[0], want)
	}
	if !strings.HasPrefix(lines[1], "runnel: line 4 was not sent: ") || !strings.Contains(lines[1], "max.message.bytes") {
		t.Errorf("got %s", lines[1])
	}
	if want := "3 records, 18 bytes, S seconds, 2 failures"; lines[2] != want {
		t.Errorf("got  %s\nwant %s", lines[2], want)
	}
	if read := readBack(t, topic); read != "small\nsmall too\nlast\n" {
		t.Errorf("read back %q", read)
	}
}

func TestProduceOfABrokenInput(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic)
	source, sink := io.Pipe()
	go func() {
		_, _ = io.WriteString(sink, "a\nb\nnot a who")
		sink.CloseWithError(syscall.EIO)
	}()
	got := runWith(t, source, map[string]string{bootstrapEnvVar: clusterAddress(t)}, "produce", topic, "-o", "json")
	var counted summary
	first, rest, _ := strings.Cut(got.stderr, "\n")
	if err := json.Unmarshal([]byte(first), &counted); err != nil || counted.Records != 2 || counted.Bytes != 2 || counted.Failures != 0 {
		t.Errorf("counted %s", first)
	}
	if rest != "runnel: cannot read the standard input: input/output error\n" || got.code != exitFailure {
		t.Errorf("exit code %d, stderr %s", got.code, rest)
	}
	if read := readBack(t, topic); read != "a\nb\n" {
		t.Errorf("read back %q: a part of a line is not a record", read)
	}
}

func TestProduceIsInterrupted(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic)
	ctx, interrupt := context.WithCancel(t.Context())
	source, sink := io.Pipe()
	defer source.Close()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		done <- Run(ctx, Environment{
			Args: []string{"produce", topic, "--bootstrap", clusterAddress(t)}, Stdin: source, Stdout: io.Discard, Stderr: &stderr,
			Getenv: func(string) string { return "" },
		})
	}()
	_, _ = io.WriteString(sink, "a\nb\nnot a who")
	succeed(t, "", "consume", topic, "--from-beginning", "--max-records", "2", "--timeout", "30s")
	interrupt()
	if code := <-done; code != exitFailure {
		t.Errorf("exit code %d: a part of the input passes for the whole", code)
	}
	want := "2 records, 2 bytes, S seconds, 0 failures\n" +
		"runnel: interrupted before the end of the input: the records counted above were sent, the rest was not\n"
	if got := withoutTimes(stderr.String()); got != want {
		t.Errorf("stderr is %s", got)
	}
}

func TestProduceStopsWhenTheTopicIsDeleted(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic)
	source, sink := io.Pipe()
	defer source.Close()
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(sink, "before\n")
		succeed(t, "", "consume", topic, "--from-beginning", "--max-records", "1", "--timeout", "30s")
		succeed(t, "", "topics", "delete", topic)
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(sink, "after %d\n", i); err != nil {
				return
			}
		}
	}()
	got := runWith(t, source, map[string]string{bootstrapEnvVar: clusterAddress(t)}, "produce", topic)
	source.Close()
	<-written
	if got.code != exitFailure || !strings.Contains(got.stderr, "was not sent and reading stops here: ") || strings.Count(got.stderr, "\n") != 2 {
		t.Errorf("exit code %d, stderr\n%s", got.code, got.stderr)
	}
}

func TestConsumePositions(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	for partition := range 2 {
		var input strings.Builder
		for i := range 5 {
			fmt.Fprintf(&input, "%d-%d\n", partition, i)
		}
		succeed(t, input.String(), "produce", topic, "--partition", fmt.Sprint(partition))
	}
	tests := []struct {
		flags string
		want  []string
	}{
		{"--exit-at-end", nil},
		{"--timeout 50ms", nil},
		{"--from-beginning --partition 1 --exit-at-end", []string{"1-0", "1-1", "1-2", "1-3", "1-4"}},
		{"--from-beginning --partition 1 --max-records 2", []string{"1-0", "1-1"}},
		{"--from-beginning --partition 1 --max-records 99 --exit-at-end", []string{"1-0", "1-1", "1-2", "1-3", "1-4"}},
		{"--from-beginning --partition 1 --timeout 200ms", []string{"1-0", "1-1", "1-2", "1-3", "1-4"}},
		{"--offset 0:3 --exit-at-end", []string{"0-3", "0-4"}},
		{"--offset 0:4 --offset 1:5 --exit-at-end", []string{"0-4"}},
		{"--offset 1:2 --partition 1 --exit-at-end", []string{"1-2", "1-3", "1-4"}},
		{"--from-time 2001-01-01T00:00:00Z --partition 0 --exit-at-end", []string{"0-0", "0-1", "0-2", "0-3", "0-4"}},
		{"--from-time 2201-01-01T00:00:00Z --exit-at-end", nil},
	}
	for _, test := range tests {
		t.Run(test.flags, func(t *testing.T) {
			got := succeed(t, "", append([]string{"consume", topic}, strings.Fields(test.flags)...)...)
			want := strings.Join(test.want, "\n")
			if want != "" {
				want += "\n"
			}
			if got.stdout != want || got.stderr != "" {
				t.Errorf("got %q and %q, want %q", got.stdout, got.stderr, want)
			}
		})
	}
}

// TestConsumeFollows: what comes in is printed at once, not when a buffer is
// full, and an interrupt is a good end.
func TestConsumeFollows(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic)
	succeed(t, "old\n", "produce", topic)
	ctx, interrupt := context.WithCancel(t.Context())
	out, in := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		defer in.Close()
		done <- Run(ctx, Environment{
			Args: []string{"consume", topic, "--bootstrap", clusterAddress(t), "--offset", "0:1"}, Stdout: in, Stderr: &stderr,
			Getenv: func(string) string { return "" },
		})
	}()
	for _, line := range []string{"new\n", "newer\n"} {
		succeed(t, line, "produce", topic)
		got := make([]byte, len(line))
		if _, err := io.ReadFull(out, got); err != nil || string(got) != line {
			t.Fatalf("read %q, want %q (%v)", got, line, err)
		}
	}
	interrupt()
	if code := <-done; code != exitSuccess || stderr.Len() > 0 {
		t.Errorf("exit code %d, stderr %s", code, stderr.String())
	}
}

// endOfPipe is an output whose reader is gone after so many bytes.
type endOfPipe struct {
	left int
	err  error
}

func (w *endOfPipe) Write(b []byte) (int, error) {
	if len(b) > w.left {
		return 0, &os.PathError{Op: "write", Path: "|1", Err: w.err}
	}
	w.left -= len(b)
	return len(b), nil
}

func TestOutputIsClosed(t *testing.T) {
	topic := topicName(t)
	succeed(t, strings.Repeat("line\n", 1000), "produce", topic)
	for _, args := range [][]string{
		{"consume", topic, "--from-beginning"},
		{"consume", topic, "--from-beginning", "-o", "json"},
		{"topics", "describe", topic},
		{"topics", "list", "-o", "json"},
		{"cluster", "describe"},
	} {
		for _, test := range []struct {
			err    error
			code   int
			stderr string
		}{
			{syscall.EPIPE, exitSuccess, ""},
			{syscall.ENOSPC, exitFailure, "runnel: cannot write to the standard output: write |1: no space left on device\n"},
		} {
			var stderr bytes.Buffer
			code := Run(t.Context(), Environment{
				Args: args, Stdout: &endOfPipe{left: 10, err: test.err}, Stderr: &stderr,
				Getenv: func(string) string { return clusterAddress(t) },
			})
			if code != test.code || stderr.String() != test.stderr {
				t.Errorf("%s: exit code %d, stderr %s", strings.Join(args, " "), code, stderr.String())
			}
		}
	}
}

func TestTopics(t *testing.T) {
	topic := topicName(t)
	got := succeed(t, "", "topics", "create", topic, "--partitions", "2", "--replication-factor", "1", "--config", "retention.ms=1000", "--config", "durability=replicated")
	if got.stdout != fmt.Sprintf("created topic %q with 2 partitions\n", topic) || got.stderr != "" {
		t.Errorf("create says %q and %q", got.stdout, got.stderr)
	}
	var listed []topicObject
	if err := json.Unmarshal([]byte(succeed(t, "", "topics", "list", "-o", "json").stdout), &listed); err != nil {
		t.Fatal(err)
	}
	var created topicObject
	for _, o := range listed {
		if o.Name == topic {
			created = o
		}
	}
	if created.PartitionCount != 2 || created.ID == "" || fmt.Sprint(created.Config) != "map[durability:replicated retention.ms:1000]" {
		t.Errorf("the list has %+v", created)
	}
	if list := succeed(t, "", "topics", "list").stdout; !regexp.MustCompile(`(?m)^NAME +PARTITIONS +ID +CONFIG$`).MatchString(list) ||
		!regexp.MustCompile(`(?m)^`+topic+` +2 +`+created.ID+` +durability=replicated retention.ms=1000$`).MatchString(list) {
		t.Errorf("the list is\n%s", list)
	}

	succeed(t, "a\nb\n", "produce", topic, "--partition", "1")
	described := succeed(t, "", "topics", "describe", topic).stdout
	for _, line := range []string{
		`Name: +` + topic, `Id: +` + created.ID, `Partitions: +2`, `Replication factor: +1`, ``,
		`PARTITION +LEADER +LEADER EPOCH +REPLICAS +ISR +EARLIEST +LATEST`,
		`0 +\d+ +\d+ +\d+ +\d+ +0 +0`, `1 +\d+ +\d+ +\d+ +\d+ +0 +2`,
		`CONFIG +VALUE +SET BY`, `cleanup.policy +delete +default`, `retention.ms +1000 +topic`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(described) {
			t.Errorf("no line %s in\n%s", line, described)
		}
	}
	var details topicDetails
	if err := json.Unmarshal([]byte(succeed(t, "", "topics", "describe", topic, "-o", "json").stdout), &details); err != nil {
		t.Fatal(err)
	}
	if details.ID != created.ID || details.ReplicationFactor != 1 || len(details.Partitions) != 2 || *details.Partitions[1].Latest != 2 || len(details.Settings) < 7 {
		t.Errorf("described as %+v", details)
	}

	complete := succeed(t, "", "__complete", "produce", topic[:len(topic)-1])
	if complete.stdout != topic+"\n:4\n" {
		t.Errorf("the shell is offered %q", complete.stdout)
	}

	if got := succeed(t, "", "topics", "delete", topic, "-o", "json"); got.stdout != "{\n  \"deleted\": \""+topic+"\"\n}\n" {
		t.Errorf("delete says %q", got.stdout)
	}
	succeed(t, "", "topics", "create", topic)
	if got := succeed(t, "", "topics", "delete", topic); got.stdout != fmt.Sprintf("deleted topic %q\n", topic) {
		t.Errorf("delete says %q", got.stdout)
	}
}

func TestClusterDescribe(t *testing.T) {
	text := succeed(t, "", "cluster", "describe").stdout
	for _, line := range []string{
		`Cluster: +[0-9a-f-]{36}`, `Controller: +\d+`, `NODE +ROLE +ADDRESS +EPOCH +STATE +SINCE`,
		`\d+ +metadata +` + clusterAddress(t) + ` +\d+ +live +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`,
		`\d+ +storage +` + clusterAddress(t) + ` +\d+ +live +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(text) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	var described clusterObject
	if err := json.Unmarshal([]byte(succeed(t, "", "cluster", "describe", "-o", "json").stdout), &described); err != nil {
		t.Fatal(err)
	}
	if len(described.Nodes) != 2 || described.Controller == nil || described.Nodes[0].State != "live" {
		t.Errorf("described as %+v", described)
	}
}

func TestRefusals(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	tests := []struct {
		args []string
		want string // a regular expression
	}{
		{[]string{"topics", "create", topic}, `topic "` + topic + `" exists already.*`},
		{[]string{"topics", "create", "bad name"}, `topic name "bad name" .*`},
		{[]string{"topics", "create", ".."}, `.*"\.\.".*`},
		{[]string{"topics", "create", "__mine"}, `topic name "__mine" .*`},
		{[]string{"topics", "create", "many", "--partitions", "10001"}, `.*10001 partitions.*10000`},
		{[]string{"topics", "create", "wide", "--replication-factor", "2"}, `replication factor 2 .*`},
		{[]string{"topics", "create", "odd", "--config", "retention.msec=1"}, `.*"retention.msec" is unknown.*retention.ms.*`},
		{[]string{"topics", "create", "odd", "--config", "retention.ms=-7"}, `.*retention.ms cannot be "-7".*`},
		{[]string{"topics", "delete", "missing"}, `topic "missing" does not exist; "runnel topics list" shows those that do`},
		{[]string{"topics", "describe", "missing"}, `topic "missing" does not exist; "runnel topics list" shows those that do`},
		{[]string{"consume", "missing"}, `topic "missing" does not exist; create it with "runnel topics create missing", or by sending a record with "runnel produce missing"`},
		{[]string{"consume", topic, "--partition", "2"}, `topic "` + topic + `" has no partition 2, only 0 to 1`},
		{[]string{"consume", topic, "--offset", "1:1", "--exit-at-end"}, `partition 1 of topic "` + topic + `" does not hold offset 1: it begins at 0 and ends before 0`},
		{[]string{"produce", "missing", "--no-create"}, `topic "missing" does not exist; create it with "runnel topics create missing", or leave --no-create out`},
		{[]string{"produce", "bad name"}, `topic name "bad name" .*`},
		{[]string{"produce", topic, "--partition", "7"}, `topic "` + topic + `" has no partition 7, only 0 to 1`},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			got := runnelCommand(t, "a line\n", test.args...)
			if got.code != exitFailure || got.stdout != "" {
				t.Errorf("exit code %d, stdout %q", got.code, got.stdout)
			}
			if !regexp.MustCompile(`^runnel: ` + test.want + `\n$`).MatchString(got.stderr) {
				t.Errorf("stderr is %swant      %s", got.stderr, test.want)
			}
		})
	}
}

// TestNobodyAnswers: the person hears after a while that the command waits, and
// in the end why it gives up.
func TestNobodyAnswers(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := nobody.Addr().String()
	nobody.Close()
	for _, args := range [][]string{
		{"topics", "list"}, {"topics", "create", "t"}, {"topics", "delete", "t"}, {"produce", "t"}, {"consume", "t"},
		{"cluster", "describe"}, {"bench", "produce"}, {"bench", "consume"}, {"bench", "latency"},
	} {
		var stderr bytes.Buffer
		p := newProgram(Environment{
			Args: args, Stdin: strings.NewReader("a\n"), Stdout: io.Discard, Stderr: &stderr,
			Getenv: func(string) string { return address },
		})
		p.patience = 0
		code := p.run(t.Context())
		want := `^runnel: no cluster answers \(` + address + `: .*connection refused\); start one with "runnel up", ` +
			`or give the address of one with --bootstrap or RUNNEL_BOOTSTRAP\n$`
		if code != exitFailure || !regexp.MustCompile(want).MatchString(stderr.String()) {
			t.Errorf("%s: exit code %d, stderr %s", strings.Join(args, " "), code, stderr.String())
		}
	}
}

// TestWaitsForTheCluster: a command that comes too early succeeds once the
// cluster is there.
func TestWaitsForTheCluster(t *testing.T) {
	early, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := allinone.DefaultConfig()
	config.DataDir, config.Listen = t.TempDir(), early.Addr().String()
	early.Close()
	result := make(chan outcome)
	go func() {
		result <- runWith(t, strings.NewReader("a\n"), map[string]string{bootstrapEnvVar: config.Listen}, "produce", "t")
	}()
	_, stop, err := allinone.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	if got := <-result; got.code != exitSuccess || !strings.Contains(withoutTimes(got.stderr), "1 record, 1 byte, S seconds, 0 failures\n") {
		t.Errorf("exit code %d, stderr %s", got.code, got.stderr)
	}
}

func TestBenchmarks(t *testing.T) {
	topic := topicName(t)
	common := []string{"--topic", topic, "--records", "500", "--record-size", "64", "--partitions", "2", "--acks", "leader", "--compression", "lz4", "--linger", "1ms", "--batch-bytes", "4096"}
	for _, test := range []struct {
		args      []string
		records   int64
		latencies bool
	}{
		{[]string{"consume"}, 500, false},
		{[]string{"produce"}, 500, true},
		{[]string{"produce", "--rate", "5000"}, 500, true},
		{[]string{"consume", "--records", "1200"}, 1200, false},
		{[]string{"consume", "--records", "99999"}, 1500, false},
		{[]string{"latency", "--records", "50"}, 50, true},
		{[]string{"latency", "--rate", "5000"}, 500, true},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			args := append([]string{"bench", test.args[0]}, append(common, test.args[1:]...)...)
			got := succeed(t, "", append(args, "-o", "json")...)
			var report benchReport
			if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
				t.Fatal(err)
			}
			if report.Benchmark != test.args[0] || report.Topic != topic || report.Records != test.records || report.Failed != 0 ||
				report.Bytes != 64*test.records || report.Seconds <= 0 || report.RecordsPerSecond <= 0 {
				t.Errorf("reported %+v", report)
			}
			if l := report.LatencyMS; (l != nil) != test.latencies || l != nil && !(0 < l.P50 && l.P50 <= l.P99 && l.P99 <= l.P999 && l.P999 <= l.Max) {
				t.Errorf("latencies are %+v", l)
			}
		})
	}
	if got := succeed(t, "", "bench", "produce", "--topic", topic, "--records", "10"); !regexp.MustCompile(
		`^RECORDS +FAILED +SECONDS +RECORDS/S +MB/S +AVG MS +P50 MS +P95 MS +P99 MS +P99.9 MS +MAX MS\n10 +0 +[\d.]+ +\d+ +[\d.]+( +[\d.]+){6}\n$`).MatchString(got.stdout) {
		t.Errorf("the table is\n%s", got.stdout)
	}
}

// TestUp pastes what `up` prints.
func TestUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by up")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out, in := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		defer in.Close()
		done <- Run(ctx, Environment{
			Program: "./bin/runnel", Args: []string{"up", "--listen", "127.0.0.1:0", "--data-dir", dir}, Stdout: in, Stderr: &stderr,
			Getenv: func(string) string { return "" },
		})
	}()
	var printed strings.Builder
	for b := make([]byte, 4096); !strings.Contains(printed.String(), "Ctrl-C"); {
		n, err := out.Read(b)
		printed.Write(b[:n])
		if err != nil {
			t.Fatalf("up ended with code %d: %s", <-done, stderr.String())
		}
	}
	match := regexp.MustCompile(`(?s)^Runnel is up\.\n\n  data     ` + regexp.QuoteMeta(dir) + `\n  address  (127\.0\.0\.1:\d+)\n\nTry in another terminal:\n\n` +
		`  echo "hello world" \| (.*?) produce greetings\n` +
		`  (.*?) consume greetings --from-beginning --exit-at-end\n  (.*?) topics describe greetings\n\nCtrl-C stops it; the data stays\.\n$`).FindStringSubmatch(printed.String())
	if match == nil {
		t.Fatalf("up says\n%s", printed.String())
	}
	address := match[1]
	for _, self := range match[2:] {
		if want := "--bootstrap " + address; !strings.HasSuffix(self, want) {
			t.Errorf("%s does not end in %s", self, want)
		}
	}
	variables := map[string]string{bootstrapEnvVar: address}
	if got := runWith(t, strings.NewReader("hello world\n"), variables, "produce", "greetings"); got.code != exitSuccess {
		t.Errorf("produce: %s", got.stderr)
	}
	if got := runWith(t, nil, variables, "consume", "greetings", "--from-beginning", "--exit-at-end"); got.stdout != "hello world\n" {
		t.Errorf("consume: %q, %s", got.stdout, got.stderr)
	}

	for _, test := range []struct {
		name string
		args []string
		want []string
	}{
		{"port taken", []string{"--listen", address, "--data-dir", t.TempDir()}, []string{address, "--listen"}},
		{"directory taken", []string{"--listen", "127.0.0.1:0", "--data-dir", dir}, []string{dir, "--data-dir"}},
		{"directory cannot be made", []string{"--listen", "127.0.0.1:0", "--data-dir", "/proc/runnel"}, []string{"/proc/runnel", "--data-dir"}},
	} {
		got := runWith(t, nil, nil, append([]string{"up"}, test.args...)...)
		if got.code != exitFailure || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, stdout %q, stderr %s", test.name, got.code, got.stdout, got.stderr)
		}
		for _, word := range test.want {
			if !strings.Contains(got.stderr, word) {
				t.Errorf("%s: stderr does not say %q: %s", test.name, word, got.stderr)
			}
		}
	}

	interrupt()
	if code := <-done; code != exitSuccess || stderr.String() != "stopping; once more ends it at once\n" {
		t.Errorf("exit code %d, stderr %s", code, stderr.String())
	}
}
