package cli

import (
	"bytes"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/allinone"
)

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
		{[]string{"topics", "alter", "missing", "--unset", "retention.ms"}, `topic "missing" does not exist; "runnel topics list" shows those that do`},
		{[]string{"topics", "alter", topic, "--config", "retention.msec=1"}, `.*"retention.msec" is unknown.*retention.ms.*`},
		{[]string{"topics", "alter", topic, "--config", "retention.bytes=1", "--config", "retention.ms=-7"}, `.*retention.ms cannot be "-7".*or -1 for no limit`},
		{[]string{"topics", "alter", topic, "--unset", "retention.msec"}, `.*"retention.msec" is unknown and cannot be unset.*retention.ms.*`},
		{[]string{"topics", "alter", "__offsets", "--unset", "retention.ms"}, `topic "__offsets" belongs to the cluster.*`},
		{[]string{"topics", "delete-records", "missing", "--before", "0:end"}, `topic "missing" does not exist; "runnel topics list" shows those that do`},
		{[]string{"topics", "delete-records", topic, "--before", "2:0"}, `topic "` + topic + `" has no partition 2, only 0 to 1`},
		{[]string{"topics", "delete-records", topic, "--before", "0:end", "--before", "1:7"}, `partition 1 of topic "` + topic + `" cannot lose its records before offset 7: its end is 0, and nothing was deleted; give an offset up to that, or 1:end`},
		{[]string{"consume", "missing"}, `topic "missing" does not exist; create it with "runnel topics create missing", or by sending a record with "runnel produce missing"`},
		{[]string{"consume", topic, "--partition", "2"}, `topic "` + topic + `" has no partition 2, only 0 to 1`},
		{[]string{"consume", topic, "--offset", "1:1", "--exit-at-end"}, `partition 1 of topic "` + topic + `" does not hold offset 1: it begins at 0 and its end is 0`},
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
		{"groups", "list"}, {"groups", "describe", "g"}, {"groups", "delete", "g"}, {"groups", "delete-offsets", "g", "--topic", "t"},
		{"groups", "reset-offsets", "g", "--topic", "t", "--to-latest", "--execute"}, {"groups", "reset-offsets", "g", "--all-topics", "--to-latest"},
		{"consume", "t", "--group", "g"},
		{"cluster", "describe"}, {"bench", "produce"}, {"bench", "consume"}, {"bench", "latency"},
	} {
		var stderr bytes.Buffer
		p := newProgram(Environment{
			Args: args, Stdin: strings.NewReader("a\n"), Stdout: io.Discard, Stderr: &stderr,
			Getenv: func(string) string { return address },
		})
		p.patience = 0
		code := p.run(t.Context())
		want := `^runnel: no cluster answers \(` + address + `: .*connection refused\); start one of these nodes, ` +
			`or give other addresses of the cluster with --bootstrap or RUNNEL_BOOTSTRAP: those of its metadata nodes will do, too\n$`
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

// TestUnreachableByDefault: who has not said where the cluster is may not have
// started one.
func TestUnreachableByDefault(t *testing.T) {
	got := unreachable(&runnel.BootstrapError{Attempts: []runnel.BootstrapAttempt{{Address: defaultAddress, Err: io.EOF}}})
	if want := `no cluster answers (` + defaultAddress + `: EOF); start one with "runnel up", or give the address of one with --bootstrap or RUNNEL_BOOTSTRAP`; got != want {
		t.Errorf("says %q, want %q", got, want)
	}
}
