package cli

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"testing"
)

// outcome is what a command left.
type outcome struct {
	stdout, stderr string
	code           int
}

// runWith runs a command line as a person would, without a process.
func runWith(t *testing.T, stdin io.Reader, variables map[string]string, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := Run(t.Context(), Environment{
		Program: "runnel", Args: args, Stdin: stdin, Stdout: &stdout, Stderr: &stderr,
		Getenv: func(name string) string { return variables[name] },
	})
	return outcome{stdout.String(), stderr.String(), code}
}

func TestWrongUsage(t *testing.T) {
	tests := []struct {
		args string // separated by spaces; "_" stands for an empty argument
		want string
	}{
		{"frobnicate", `"runnel" has no command "frobnicate"; see "runnel --help"`},
		{"topic list", `"runnel" has no command "topic", did you mean topics?; see "runnel --help"`},
		{"topics", `"runnel topics" needs a command: alter, create, delete, delete-records, describe or list; see "runnel topics --help"`},
		{"topics lst", `"runnel topics" has no command "lst", did you mean list?; see "runnel topics --help"`},
		{"help topics frobnicate", `"runnel topics" has no command "frobnicate"; see "runnel --help"`},
		{"completion tcsh", `"runnel completion" has no command "tcsh", did you mean bash, fish or zsh?; see "runnel completion --help"`},
		{"completion bash now", `"runnel completion bash" takes no argument, but got "now"; see "runnel completion bash --help"`},

		{"topics list --sorted", `"runnel topics list" has no flag --sorted; see "runnel topics list --help"`},
		{"topics list -z", `"runnel topics list" has no flag -z; see "runnel topics list --help"`},
		{"produce t --partition", `--partition needs a value; see "runnel produce --help"`},
		{"topics create", `"runnel topics create" needs a NAME; see "runnel topics create --help"`},
		{"topics create _", `the NAME is empty; see "runnel topics create --help"`},
		{"topics create my topic", `"runnel topics create" takes only a NAME, but also got "topic" (put quotes around a value with spaces); see "runnel topics create --help"`},
		{"topics list t", `"runnel topics list" takes no argument, but got "t"; see "runnel topics list --help"`},
		{"produce", `"runnel produce" needs a TOPIC; see "runnel produce --help"`},
		{"consume", `"runnel consume" needs a TOPIC; see "runnel consume --help"`},

		{"-o xml topics list", `bad value "xml" for -o, --output: must be table or json; see "runnel topics list --help"`},
		{"topics list --bootstrap here", `bad value "here" for --bootstrap: must look like host:port, such as 127.0.0.1:7070 or [::1]:7070; see "runnel topics list --help"`},
		{"topics list --bootstrap a:1,b:99999", `bad value "a:1,b:99999" for --bootstrap: must end in a port from 1 to 65535; see "runnel topics list --help"`},

		{"up --min-free 0", `bad value "0" for --min-free: must be a number of bytes from 1 up, such as 500MiB or 2GiB; see "runnel up --help"`},
		{"up --min-free 9223372036854775807GiB", `bad value "9223372036854775807GiB" for --min-free: must be a number of bytes from 1 up, such as 500MiB or 2GiB; see "runnel up --help"`},
		{"up --accept-loss orders:x", `bad value "orders:x" for --accept-loss: must look like TOPIC or TOPIC:P,P with numbers from 0, such as orders or orders:0,3; see "runnel up --help"`},
		{"storage --metadata 127.0.0.1:7071 --accept-loss orders --accept-loss orders:1", `--accept-loss names orders twice: name it once, as in --accept-loss orders:0,3; see "runnel storage --help"`},
		{"storage --min-free 2GB", `bad value "2GB" for --min-free: must be a number of bytes from 1 up, such as 500MiB or 2GiB; see "runnel storage --help"`},

		{"topics create t --partitions 0", `bad value "0" for --partitions: must be a whole number from 1 up; see "runnel topics create --help"`},
		{"topics create t --partitions -1", `bad value "-1" for --partitions: must be a whole number from 1 up; see "runnel topics create --help"`},
		{"topics create t --partitions three", `bad value "three" for --partitions: must be a whole number from 1 up; see "runnel topics create --help"`},
		{"topics create t --replication-factor 0", `bad value "0" for --replication-factor: must be a whole number from 1 up; see "runnel topics create --help"`},
		{"topics create t --config retention.ms", `bad value "retention.ms" for --config: must look like key=value; see "runnel topics create --help"`},
		{"topics create t --config a=1 --config a=2", `--config gives a twice; see "runnel topics create --help"`},

		{"topics alter t", `give a setting to change, such as --config retention.ms=86400000 or --unset retention.ms; see "runnel topics alter --help"`},
		{"topics alter --unset a", `"runnel topics alter" needs a NAME; see "runnel topics alter --help"`},
		{"topics alter t --config retention.ms", `bad value "retention.ms" for --config: must look like key=value; see "runnel topics alter --help"`},
		{"topics alter t --config a=1 --config a=2", `--config gives a twice; see "runnel topics alter --help"`},
		{"topics alter t --config a=1 --unset a", `--config and --unset contradict each other about a: give only one of them; see "runnel topics alter --help"`},
		{"topics alter t --unset _", `bad value "" for --unset: must be the name of a setting, such as retention.ms; see "runnel topics alter --help"`},

		{"topics delete-records t", `--before is needed, such as --before 0:1500 or --before 0:end; see "runnel topics delete-records --help"`},
		{"topics delete-records --before 0:1", `"runnel topics delete-records" needs a NAME; see "runnel topics delete-records --help"`},
		{"topics delete-records t --before 5", `bad value "5" for --before: must look like P:OFFSET, two numbers from 0, or like P:end, such as 0:1500 or 0:end; see "runnel topics delete-records --help"`},
		{"topics delete-records t --before -1:end", `bad value "-1:end" for --before: must look like P:OFFSET, two numbers from 0, or like P:end, such as 0:1500 or 0:end; see "runnel topics delete-records --help"`},
		{"topics delete-records t --before 0:-1", `bad value "0:-1" for --before: must look like P:OFFSET, two numbers from 0, or like P:end, such as 0:1500 or 0:end; see "runnel topics delete-records --help"`},
		{"topics delete-records t --before 0:1 --before 0:end", `--before gives two offsets for partition 0; see "runnel topics delete-records --help"`},

		{"topics describe", `"runnel topics describe" needs a NAME; see "runnel topics describe --help"`},
		{"topics describe --unhealthy a b", `"runnel topics describe" takes only a NAME, but also got "b" (put quotes around a value with spaces); see "runnel topics describe --help"`},

		{"partitions", `"runnel partitions" needs a command: elect-leader; see "runnel partitions --help"`},
		{"partitions elect-leader", `give either --preferred or --unclean; see "runnel partitions elect-leader --help"`},
		{"partitions elect-leader --preferred --unclean", `give either --preferred or --unclean; see "runnel partitions elect-leader --help"`},
		{"partitions elect-leader --preferred --yes", `--yes is for --unclean only: --preferred loses nothing; see "runnel partitions elect-leader --help"`},
		{"partitions elect-leader --preferred t", `"runnel partitions elect-leader" takes no argument, but got "t"; see "runnel partitions elect-leader --help"`},
		{"partitions elect-leader --preferred --topic t:a", `bad value "t:a" for --topic: must look like TOPIC or TOPIC:P,P with numbers from 0, such as orders or orders:0,3; see "runnel partitions elect-leader --help"`},
		{"partitions elect-leader --preferred --topic :1", `bad value ":1" for --topic: must look like TOPIC or TOPIC:P,P with numbers from 0, such as orders or orders:0,3; see "runnel partitions elect-leader --help"`},
		{"partitions elect-leader --preferred --topic t:1,1", `bad value "t:1,1" for --topic: names partition 1 twice; see "runnel partitions elect-leader --help"`},
		{"partitions elect-leader --preferred --topic t:1 --topic t:2", `--topic names t twice: name it once, as in --topic t:0,3; see "runnel partitions elect-leader --help"`},
		{"metadata --etcd-endpoints a:1 --balance-interval 30", `bad value "30" for --balance-interval: must be a number with a unit, such as 500ms, 10s or 1m30s; see "runnel metadata --help"`},

		{"produce t --acks some", `bad value "some" for --acks: must be none, leader or all; see "runnel produce --help"`},
		{"produce t --compression rar", `bad value "rar" for --compression: must be none, gzip, snappy, lz4 or zstd; see "runnel produce --help"`},
		{"produce t --partition -1", `bad value "-1" for --partition: must be a whole number from 0 up; see "runnel produce --help"`},
		{"produce t --partition 99999999999", `bad value "99999999999" for --partition: must be a whole number from 0 up; see "runnel produce --help"`},
		{"produce t --header =v", `bad value "=v" for --header: must look like key=value; see "runnel produce --help"`},
		{"produce t --key-separator _", `--key-separator is empty; see "runnel produce --help"`},
		{"produce t --property colour=red", `bad value "colour=red" for --property: the properties are linger.ms, batch.bytes, buffer.bytes, request.timeout.ms, delivery.timeout.ms, partitioner, idempotence; see "runnel produce --help"`},
		{"produce t --property linger.ms", `bad value "linger.ms" for --property: must look like key=value; see "runnel produce --help"`},
		{"produce t --property linger.ms=5s", `bad value "linger.ms=5s" for --property: linger.ms must be a whole number from 0 to 60000; see "runnel produce --help"`},
		{"produce t --property partitioner=random", `bad value "partitioner=random" for --property: partitioner must be sticky or roundrobin; see "runnel produce --help"`},
		{"produce t --property idempotence=perhaps", `bad value "idempotence=perhaps" for --property: idempotence must be true or false; see "runnel produce --help"`},
		{"produce t --acks none --property idempotence=true", `idempotence needs acknowledgements: choose acks leader or all; see "runnel produce --help"`},

		{"consume t --offset 5", `bad value "5" for --offset: must look like P:OFFSET, two numbers from 0, such as 0:1500; see "runnel consume --help"`},
		{"consume t --offset 0:-5", `bad value "0:-5" for --offset: must look like P:OFFSET, two numbers from 0, such as 0:1500; see "runnel consume --help"`},
		{"consume t --offset 0:1 --offset 0:2", `--offset gives two offsets for partition 0; see "runnel consume --help"`},
		{"consume t --offset 0:1 --partition 1", `--offset is about partition 0, which is not among those of --partition; see "runnel consume --help"`},
		{"consume t --from-beginning --offset 0:1", `--from-beginning and --offset contradict each other: give only one of them; see "runnel consume --help"`},
		{"consume t --from-time 2026-11-23T08:00:00Z --offset 0:1", `--offset and --from-time contradict each other: give only one of them; see "runnel consume --help"`},
		{"consume t --from-time yesterday", `bad value "yesterday" for --from-time: must be a time as in RFC 3339, such as 2026-11-23T08:00:00Z or 2026-11-23T09:00:00+01:00; see "runnel consume --help"`},
		{"consume t --from-beginning=perhaps", `bad value "perhaps" for --from-beginning: must be true or false; see "runnel consume --help"`},
		{"consume t --timeout 5", `bad value "5" for --timeout: must be a number with a unit, such as 500ms, 10s or 1m30s; see "runnel consume --help"`},
		{"consume t --timeout -5s", `bad value "-5s" for --timeout: must be from 1ms to 8760h0m0s; see "runnel consume --help"`},
		{"consume t --max-records 0", `bad value "0" for --max-records: must be a whole number from 1 up; see "runnel consume --help"`},

		{"consume t --group _", `bad value "" for --group: must not be empty; see "runnel consume --help"`},
		{"consume t --delivery at-most-once", `--delivery is for members of a group: give --group, too; see "runnel consume --help"`},
		{"consume t --instance-id i --assignor range", `--instance-id is for members of a group: give --group, too; see "runnel consume --help"`},
		{"consume t --group g --assignor fair", `bad value "fair" for --assignor: must be range, roundrobin or sticky; see "runnel consume --help"`},
		{"consume t --group g --delivery exactly-once", `bad value "exactly-once" for --delivery: must be at-least-once or at-most-once; see "runnel consume --help"`},
		{"consume t --group g --partition 1", `--partition and --group contradict each other: a group decides what its members read; "runnel groups reset-offsets" moves it; see "runnel consume --help"`},
		{"consume t --group g --offset 1:1", `--offset and --group contradict each other: a group decides what its members read; "runnel groups reset-offsets" moves it; see "runnel consume --help"`},
		{"consume t --group g --from-time 2026-11-23T08:00:00Z", `--from-time and --group contradict each other: a group decides what its members read; "runnel groups reset-offsets" moves it; see "runnel consume --help"`},
		{"consume t --decode", `--decode is for the topic __consumer_offsets only; see "runnel consume --help"`},
		{"groups", `"runnel groups" needs a command: delete, delete-offsets, describe, list or reset-offsets; see "runnel groups --help"`},
		{"groups list --state dead", `bad value "dead" for --state: must be empty, reconciling or stable; see "runnel groups list --help"`},
		{"groups list g", `"runnel groups list" takes no argument, but got "g"; see "runnel groups list --help"`},
		{"groups describe", `"runnel groups describe" needs a GROUP; see "runnel groups describe --help"`},
		{"groups describe _", `the GROUP is empty; see "runnel groups describe --help"`},
		{"groups delete a b", `"runnel groups delete" takes only a GROUP, but also got "b" (put quotes around a value with spaces); see "runnel groups delete --help"`},
		{"groups delete-offsets g", `--topic is needed, such as --topic orders or --topic orders:0,3; see "runnel groups delete-offsets --help"`},
		{"groups delete-offsets g --topic t:x", `bad value "t:x" for --topic: must look like TOPIC or TOPIC:P,P with numbers from 0, such as orders or orders:0,3; see "runnel groups delete-offsets --help"`},
		{"groups reset-offsets --to-latest --topic t", `"runnel groups reset-offsets" needs a GROUP; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t", `say where to move the offsets: --to-earliest, --to-latest, --to-offset, --shift-by, --to-datetime, --by-duration or --from-file; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t --to-latest --shift-by -2", `--to-latest and --shift-by contradict each other: give only one of them; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --to-latest", `say what to move: --topic, such as --topic orders or --topic orders:0,3, or --all-topics; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --to-latest --topic t --all-topics", `--topic and --all-topics contradict each other: give only one of them; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --to-latest --topic t:1 --topic t:2", `--topic names t twice: name it once, as in --topic t:0,3; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --from-file f --topic t", `--from-file says itself which partitions to move: leave --topic and --all-topics out; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t --to-offset -1", `bad value "-1" for --to-offset: must be a whole number from 0 up; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t --shift-by back", `bad value "back" for --shift-by: must be a whole number, such as 10, or -10 to go back; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t --shift-by -9223372036854775809", `bad value "-9223372036854775809" for --shift-by: must be a whole number, such as 10, or -10 to go back; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t --to-datetime 2026-11-23", `bad value "2026-11-23" for --to-datetime: must be a time as in RFC 3339, such as 2026-11-23T08:00:00Z or 2026-11-23T09:00:00+01:00; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t --by-duration P1D", `bad value "P1D" for --by-duration: must be a number with a unit, such as 500ms, 10s or 1m30s; see "runnel groups reset-offsets --help"`},
		{"groups reset-offsets g --topic t --by-duration -1h", `bad value "-1h" for --by-duration: must be from 1ms to 876000h0m0s; see "runnel groups reset-offsets --help"`},

		{"bench", `"runnel bench" needs a command: consume, latency or produce; see "runnel bench --help"`},
		{"bench produce t", `"runnel bench produce" takes no argument, but got "t"; see "runnel bench produce --help"`},
		{"bench produce --rate 0", `bad value "0" for --rate: must be a number from 0.001 to 1000000000; see "runnel bench produce --help"`},
		{"bench produce --rate NaN", `bad value "NaN" for --rate: must be a number from 0.001 to 1000000000; see "runnel bench produce --help"`},
		{"bench latency --record-size 15", `--record-size must be at least 16 for this benchmark: the records carry a number; see "runnel bench latency --help"`},

		{"up here", `"runnel up" takes no argument, but got "here"; see "runnel up --help"`},
		{"up --listen 7070", `bad value "7070" for --listen: must look like host:port, such as 127.0.0.1:7070, or :7070 for all addresses of the machine; see "runnel up --help"`},
		{"up --log-level loud", `bad value "loud" for --log-level: must be debug, info, warn or error; see "runnel up --help"`},
		{"metadata", `--etcd-endpoints is needed, such as --etcd-endpoints 127.0.0.1:2379; see "runnel metadata --help"`},
		{"storage", `--metadata is needed, such as --metadata 127.0.0.1:7071; see "runnel storage --help"`},
		{"coordinator", `--metadata is needed, such as --metadata 127.0.0.1:7071; see "runnel coordinator --help"`},
		{"coordinator --metadata m:1 --max-group-members 0", `bad value "0" for --max-group-members: must be a whole number from 1 to 100000; see "runnel coordinator --help"`},
		{"coordinator --metadata m:1 --min-session-timeout 10s --max-session-timeout 5s", `--max-session-timeout 5s is less than --min-session-timeout 10s; see "runnel coordinator --help"`},
		{"storage inspec", `"runnel storage" has no command "inspec", did you mean inspect?; see "runnel storage --help"`},
		{"storage inspect", `"runnel storage inspect" needs a DIR; see "runnel storage inspect --help"`},
		{"storage inspect a b", `"runnel storage inspect" takes only a DIR, but also got "b" (put quotes around a value with spaces); see "runnel storage inspect --help"`},
		{"storage verify", `"runnel storage verify" needs a DIR; see "runnel storage verify --help"`},
		{"storage verify --partitions a", `"runnel storage verify" has no flag --partitions; see "runnel storage verify --help"`},
		{"storage --metadata m:1 --node-id 0", `bad value "0" for --node-id: must be a whole number from 1 up; see "runnel storage --help"`},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			args := strings.Fields(test.args)
			for i, arg := range args {
				if arg == "_" {
					args[i] = ""
				}
			}
			got := runWith(t, strings.NewReader(""), nil, args...)
			if want := "runnel: " + test.want + "\n"; got.stderr != want {
				t.Errorf("stderr is  %swant       %s", got.stderr, want)
			}
			if got.code != exitUsage || got.stdout != "" {
				t.Errorf("exit code %d, stdout %q", got.code, got.stdout)
			}
		})
	}
}

func TestBadBootstrapVariable(t *testing.T) {
	variables := map[string]string{bootstrapEnvVar: "here"}
	got := runWith(t, nil, variables, "topics", "list")
	want := "runnel: bad value \"here\" in the environment variable RUNNEL_BOOTSTRAP: must look like host:port, such as 127.0.0.1:7070 or [::1]:7070; see \"runnel topics list --help\"\n"
	if got.stderr != want || got.code != exitUsage {
		t.Errorf("exit code %d, stderr %s", got.code, got.stderr)
	}
	if got := runWith(t, nil, variables, "topics", "--help"); got.code != exitSuccess {
		t.Errorf("--help is refused: %s", got.stderr)
	}
}

func TestBootstrapVariableIsTheDefault(t *testing.T) {
	got := runWith(t, nil, map[string]string{bootstrapEnvVar: "log-1:7070,log-2:7070"}, "--help")
	if !strings.Contains(got.stdout, "(default log-1:7070,log-2:7070)") {
		t.Errorf("--help says\n%s", got.stdout)
	}
}

// TestHelp looks at the help of every command: it has examples, fits a
// terminal as far as it is prose, and goes to the standard output.
func TestHelp(t *testing.T) {
	commands := [][]string{
		nil,
		{"partitions"}, {"partitions", "elect-leader"},
		{"topics"}, {"topics", "create"}, {"topics", "list"}, {"topics", "describe"}, {"topics", "delete"}, {"topics", "delete-records"}, {"topics", "alter"},
		{"groups"}, {"groups", "list"}, {"groups", "describe"}, {"groups", "reset-offsets"}, {"groups", "delete-offsets"}, {"groups", "delete"},
		{"produce"}, {"consume"}, {"cluster"}, {"cluster", "describe"},
		{"bench"}, {"bench", "produce"}, {"bench", "consume"}, {"bench", "latency"},
		{"up"}, {"metadata"}, {"coordinator"}, {"storage"}, {"storage", "inspect"}, {"storage", "verify"}, {"version"},
	}
	for _, path := range commands {
		t.Run(strings.Join(path, " "), func(t *testing.T) {
			got := runWith(t, nil, nil, append(path, "--help")...)
			if got.code != exitSuccess || got.stderr != "" {
				t.Errorf("exit code %d, stderr %s", got.code, got.stderr)
			}
			if stray := regexp.MustCompile(`\([A-Z]+\)`).FindString(got.stdout); stray != "" {
				t.Errorf("the name of a value is left over in a text: %s", stray)
			}
			prose, rest, found := strings.Cut(got.stdout, "Usage:\n  runnel")
			if !found || !strings.Contains(rest, "Examples:\n  ") {
				t.Errorf("there is no usage or no example:\n%s", got.stdout)
			}
			for line := range strings.SplitSeq(prose, "\n") {
				if len(line) > 100 {
					t.Errorf("a line of %d characters: %s", len(line), line)
				}
			}
			if byHelp := runWith(t, nil, nil, append([]string{"help"}, path...)...); byHelp.stdout != got.stdout {
				t.Errorf("\"runnel help\" says something else:\n%s", byHelp.stdout)
			}
		})
	}
	if got := runWith(t, nil, nil); got.code != exitSuccess || !strings.Contains(got.stdout, "runnel up") {
		t.Errorf("without a command: exit code %d\n%s", got.code, got.stdout)
	}
}

func TestVersion(t *testing.T) {
	byFlag := runWith(t, nil, nil, "--version")
	byCommand := runWith(t, nil, nil, "version")
	if byCommand != byFlag || byCommand.code != exitSuccess || !strings.HasPrefix(byCommand.stdout, "runnel ") {
		t.Errorf("the command says %+v, the flag %+v", byCommand, byFlag)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := runWith(t, nil, nil, "completion", shell); got.code != exitSuccess || !strings.Contains(got.stdout, "runnel") {
			t.Errorf("%s: exit code %d, %s", shell, got.code, got.stderr)
		}
	}
	tests := map[string]string{
		"produce t --acks ": "none\nleader\nall\n:4\n",
		"topics create t --config ": "cleanup.policy=\ncompression.type=\ndelete.retention.ms=\ndurability=\nmax.message.bytes=\nmessage.timestamp.type=\n" +
			"min.cleanable.dirty.ratio=\nmin.compaction.lag.ms=\nmin.insync.replicas=\nretention.bytes=\nretention.ms=\n:6\n",
		"produce t --property ": "linger.ms=\nbatch.bytes=\nbuffer.bytes=\nrequest.timeout.ms=\ndelivery.timeout.ms=\npartitioner=\nidempotence=\n:6\n",
		"consume t --delivery ": "at-least-once\nat-most-once\n:4\n",
		"groups list --state ":  "empty\nreconciling\nstable\n:4\n",
		"-o ":                   "table\njson\n:4\n",
		"topics create ":        ":4\n",
	}
	for args, want := range tests {
		words := strings.Split(args, " ")
		got := runWith(t, nil, nil, append([]string{"__complete"}, words...)...)
		if got.stdout != want {
			t.Errorf("%s: got %q, want %q", args, got.stdout, want)
		}
	}
}
