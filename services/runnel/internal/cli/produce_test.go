package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
)

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
			created := fmt.Sprintf("created topic %q with 1 partition, replication factor 1\n", topicName(t))
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

func TestProduceToACompactedTopic(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--config", "cleanup.policy=compact")
	got := runnelCommand(t, "ann:book\nbob:NULL\nno key\nNULL:NULLs\nNULL\neve:\n", "produce", topic, "--key-separator", ":", "--null-value", "NULL")
	lines := strings.Split(withoutTimes(got.stderr), "\n")
	if got.code != exitFailure || len(lines) != 4 || lines[2] != "4 records, 22 bytes, S seconds, 2 failures" {
		t.Fatalf("exit code %d, stderr\n%s", got.code, got.stderr)
	}
	for i, line := range []int{3, 5} {
		if want := fmt.Sprintf("runnel: line %d was not sent: ", line); !strings.HasPrefix(lines[i], want) || !strings.Contains(lines[i], "has no key") {
			t.Errorf("got %s, want %s...", lines[i], want)
		}
	}
	if read := readBack(t, topic, "--print-key", "--key-separator", "="); read != "ann=book\nbob=null\nNULL=NULLs\neve=\n" {
		t.Errorf("read back\n%s", read)
	}
	read := readBack(t, topic, "-o", "json")
	for i, want := range []string{`"key":"ann","value":"book"`, `"key":"bob","value":null`, `"key":"NULL","value":"NULLs"`, `"key":"eve","value":""`} {
		if records := strings.Split(read, "\n"); len(records) != 5 || !strings.Contains(records[i], want) {
			t.Errorf("record %d lacks %s in\n%s", i, want, read)
		}
	}
}

func TestProduceEmptyValuesAsNull(t *testing.T) {
	topic := topicName(t)
	succeed(t, "ann:\n\nbob:null\n", "produce", topic, "--key-separator", ":", "--null-value", "")
	read := readBack(t, topic, "-o", "json")
	for _, want := range []string{`"key":"ann","value":null`, `"key":null,"value":null`, `"key":"bob","value":"null"`} {
		if !strings.Contains(read, want) {
			t.Errorf("%s is missing in\n%s", want, read)
		}
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
		"--property", "batch.bytes=1000", "--property", "buffer.bytes=100000", "--property", "request.timeout.ms=5000", "--property", "delivery.timeout.ms=60000")
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
	if want := "runnel: line 2 was not sent: the line has 1001 bytes, but a record may have 1000 (max.message.bytes of the topic); " + largerRecords; lines[0] != want {
		t.Errorf("got  %s\nwant %s", lines[0], want)
	}
	if !strings.HasPrefix(lines[1], "runnel: line 4 was not sent: ") || !strings.HasSuffix(lines[1], "; "+largerRecords) {
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
