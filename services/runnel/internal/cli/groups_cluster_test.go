package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// running is a command that goes on until it is interrupted.
type running struct {
	interrupt context.CancelFunc
	done      chan int

	mu      sync.Mutex
	changed chan struct{}
	// out is what it has written, to the standard output and the standard error.
	out [2]bytes.Buffer
}

// stream is one of the outputs of a running command.
type stream struct {
	r *running
	i int
}

func (s stream) Write(b []byte) (int, error) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	close(s.r.changed)
	s.r.changed = make(chan struct{})
	return s.r.out[s.i].Write(b)
}

// start runs a command against the shared cluster until the test or it itself ends.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	address := clusterAddress(t)
	ctx, interrupt := context.WithCancel(context.Background())
	r := &running{interrupt: interrupt, done: make(chan int, 1), changed: make(chan struct{})}
	go func() {
		r.done <- Run(ctx, Environment{Args: args, Stdin: strings.NewReader(""), Stdout: stream{r, 0}, Stderr: stream{r, 1}, Getenv: func(string) string { return address }})
	}()
	t.Cleanup(func() { r.stop() })
	return r
}

// stop interrupts the command and returns its exit code.
func (r *running) stop() int {
	r.interrupt()
	code := <-r.done
	r.done <- code
	return code
}

// text returns what the command has written so far.
func (r *running) text(i int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out[i].String()
}

// awaitPatience bounds how long something may take that should happen at once.
const awaitPatience = 30 * time.Second

// await waits until the standard output (0) or the standard error (1) has a text.
func (r *running) await(t *testing.T, i int, want string) {
	t.Helper()
	late := time.After(awaitPatience)
	for {
		r.mu.Lock()
		text, changed := r.out[i].String(), r.changed
		r.mu.Unlock()
		if regexp.MustCompile(want).MatchString(text) {
			return
		}
		select {
		case <-changed:
		case <-late:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("waiting for %s; printed %q and %q", want, r.out[0].String(), r.out[1].String())
		}
	}
}

func describeJSON(t *testing.T, group string) groupDetails {
	t.Helper()
	var d groupDetails
	if err := json.Unmarshal([]byte(succeed(t, "", "groups", "describe", group, "-o", "json").stdout), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func sortedLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

// TestGroupGoesOn: a group reads each record once, over restarts, and says why it does
// not begin anew.
func TestGroupGoesOn(t *testing.T) {
	topic, group := topicName(t), topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	for partition := range 2 {
		succeed(t, fmt.Sprintf("a%d\nb%[1]d\nc%[1]d\n", partition), "produce", topic, "--partition", fmt.Sprint(partition))
	}
	consume := []string{"consume", topic, "--group", group, "--from-beginning", "--exit-at-end"}
	got := succeed(t, "", consume...)
	if sortedLines(got.stdout) != "a0 a1 b0 b1 c0 c1" || got.stderr != fmt.Sprintf("assigned by group %q: %s:0,1\n", group, topic) {
		t.Errorf("at first: %q and %q", got.stdout, got.stderr)
	}
	got = succeed(t, "", consume...)
	if got.stdout != "" || !strings.Contains(got.stderr, "--from-beginning has no effect: group \""+group+"\" has read topic \""+topic+"\" before") {
		t.Errorf("again: %q and %q", got.stdout, got.stderr)
	}
	succeed(t, "d0\n", "produce", topic, "--partition", "0")
	if got := succeed(t, "", "consume", topic, "--group", group, "--exit-at-end", "--delivery", "at-most-once"); got.stdout != "d0\n" {
		t.Errorf("what came since: %q", got.stdout)
	}
	for _, delivery := range []string{deliveryAtLeastOnce, deliveryAtMostOnce} {
		succeed(t, "e0\nf0\ng0\n", "produce", topic, "--partition", "0")
		if got := succeed(t, "", "consume", topic, "--group", group, "--max-records", "2", "--delivery", delivery); got.stdout != "e0\nf0\n" {
			t.Errorf("%s, of three records two: %q", delivery, got.stdout)
		}
		if got := succeed(t, "", "consume", topic, "--group", group, "--timeout", "3s", "--max-records", "1", "--delivery", delivery); got.stdout != "g0\n" {
			t.Errorf("%s, the third: %q", delivery, got.stdout)
		}
	}
}

// TestGroupsOfMembers: partitions move between members, which say so, and the group
// cannot be changed behind their backs.
func TestGroupsOfMembers(t *testing.T) {
	topic, group := topicName(t), topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	all := regexp.QuoteMeta(topic + ":0,1")
	one := regexp.QuoteMeta(topic) + ":[01]"
	// An offset that must not be deleted.
	succeed(t, "", "groups", "reset-offsets", group, "--topic", topic, "--to-earliest", "--create", "--execute")
	first := start(t, "consume", topic, "--group", group)
	first.await(t, 1, "assigned by group .*: "+all)
	second := start(t, "consume", topic, "--group", group)
	first.await(t, 1, "given up for other members of group .*: "+one+"\n")
	second.await(t, 1, "assigned by group .*: "+one+"\n")
	third := start(t, "consume", topic, "--group", group)
	third.await(t, 1, `idle: group "`+group+`" has more members \(3\) than partitions \(2\); this one reads when another leaves`)

	for partition := range 2 {
		succeed(t, fmt.Sprintf("r%d\n", partition), "produce", topic, "--partition", fmt.Sprint(partition))
	}
	first.await(t, 0, `^r[01]\n$`)
	second.await(t, 0, `^r[01]\n$`)

	d := describeJSON(t, group)
	idle := 0
	for _, m := range d.Members {
		if len(m.Assigned) == 0 {
			idle++
		}
	}
	if len(d.Members) != 3 || idle != 1 || len(d.Partitions) != 2 || d.Partitions[0].Member == nil || *d.Partitions[1].LogEndOffset != 1 || *d.Partitions[1].Host == "" {
		t.Errorf("described as %+v", d)
	}
	table := succeed(t, "", "groups", "describe", group).stdout
	for _, line := range []string{
		`Group: +` + group, `State: +(stable|reconciling)`, `Members: +3 \(1 idle: fewer partitions than members\)`, `Assignor: +sticky`,
		`TOPIC +PARTITION +CURRENT-OFFSET +LOG-END-OFFSET +LAG +MEMBER +HOST +CLIENT-ID`,
		topic + ` +0 +\S+ +1 +\S+ +` + *d.Partitions[0].Member + ` .*`, `- +- +- +- +- +\S+ .*`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(table) {
			t.Errorf("no line %s in\n%s", line, table)
		}
	}
	if members := succeed(t, "", "groups", "describe", group, "--members").stdout; !regexp.MustCompile(`(?m)^` + d.Members[0].Member + ` .*` + topic).MatchString(members) {
		t.Errorf("members are\n%s", members)
	}
	if list := succeed(t, "", "groups", "list").stdout; !regexp.MustCompile(`(?m)^` + group + ` +\w+ +3 +\d+$`).MatchString(list) {
		t.Errorf("the list is\n%s", list)
	}
	if list := succeed(t, "", "groups", "list", "--state", "empty").stdout; strings.Contains(list, group) {
		t.Errorf("the list of empty groups is\n%s", list)
	}

	for _, args := range [][]string{
		{"groups", "reset-offsets", group, "--topic", topic, "--to-earliest"},
		{"groups", "reset-offsets", group, "--topic", topic, "--to-earliest", "--execute"},
		{"groups", "delete", group},
	} {
		got := runnelCommand(t, "", args...)
		if got.code != exitFailure || got.stdout != "" || !strings.Contains(got.stderr, d.Members[0].Member) {
			t.Errorf("%v: exit code %d, %q, %q", args, got.code, got.stdout, got.stderr)
		}
	}
	if got := runnelCommand(t, "", "groups", "delete-offsets", group, "--topic", topic); got.code != exitFailure || got.stdout != "" || !strings.Contains(got.stderr, topic) {
		t.Errorf("delete-offsets: exit code %d, %q, %q", got.code, got.stdout, got.stderr)
	}

	// Who leaves has committed, and what it had goes to the idle one.
	if code := first.stop(); code != exitSuccess {
		t.Errorf("the first ends with %d", code)
	}
	third.await(t, 1, "assigned by group .*: "+one+"\n")
	for _, r := range []*running{second, third} {
		if code := r.stop(); code != exitSuccess {
			t.Errorf("another ends with %d", code)
		}
	}
	d = describeJSON(t, group)
	if d.State != "empty" || d.Lag == nil || *d.Lag != 0 || *d.Partitions[0].CurrentOffset != 1 || d.Partitions[0].Member != nil {
		t.Errorf("afterwards described as %+v", d)
	}
	if third.mu.Lock(); third.out[0].Len() > 0 {
		t.Errorf("read twice: %q", third.out[0].String())
	}
	third.mu.Unlock()
}

func TestResetOffsets(t *testing.T) {
	topic, group := topicName(t), topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	succeed(t, strings.Repeat("x\n", 10), "produce", topic, "--partition", "0")
	succeed(t, strings.Repeat("x\n", 4), "produce", topic, "--partition", "1")
	succeed(t, "", "topics", "delete-records", topic, "--before", "0:3")
	succeed(t, "", "consume", topic, "--group", group, "--from-beginning", "--exit-at-end")
	const head = "TOPIC PARTITION OLD-OFFSET NEW-OFFSET LAG NOTE "
	const plan = "nothing was moved: this is the plan, and --execute carries it out while the group has no members\n"
	moved := fmt.Sprintf("moved: group %q goes on at the new offsets\n", group)
	file := filepath.Join(t.TempDir(), "offsets.csv")
	saved := fmt.Sprintf("%s,0,7\n%[1]s,1,4\n", topic)
	for _, test := range []struct{ args, want, says string }{
		{"--topic " + topic + " --to-earliest", topic + " 0 10 3 7 - " + topic + " 1 4 0 4 -", plan},
		// It was the plan only.
		{"--topic " + topic + ":0 --shift-by -3 --execute", topic + " 0 10 7 3 -", moved},
		{"--all-topics --shift-by 0 --export " + file, topic + " 0 7 7 3 unchanged " + topic + " 1 4 4 0 unchanged", plan},
		{"--all-topics --shift-by -2", topic + " 0 7 5 5 - " + topic + " 1 4 2 2 -", plan},
		{"--all-topics --shift-by 2", topic + " 0 7 9 1 - " + topic + " 1 4 4 0 clamped: 6 lies beyond the end of the log", plan},
		{"--all-topics --shift-by -100 --execute", topic + " 0 7 3 7 clamped: -93 lies before the first record of the log " + topic + " 1 4 0 4 clamped: -96 lies before the first record of the log", moved},
		{"--topic " + topic + " --to-offset 2", topic + " 0 3 3 7 clamped: 2 lies before the first record of the log " + topic + " 1 0 2 2 -", plan},
		{"--topic " + topic + " --to-offset 99 --execute", topic + " 0 3 10 0 clamped: 99 lies beyond the end of the log " + topic + " 1 0 4 0 clamped: 99 lies beyond the end of the log", moved},
		{"--topic " + topic + ":1 --to-datetime 2001-01-01T00:00:00Z", topic + " 1 4 0 4 -", plan},
		{"--topic " + topic + ":1 --to-datetime 2201-01-01T00:00:00Z", topic + " 1 4 4 0 no record is as young: the end of the log", plan},
		{"--topic " + topic + ":1 --by-duration 1h", topic + " 1 4 0 4 -", plan},
		{"--from-file " + file + " --execute", topic + " 0 10 7 3 - " + topic + " 1 4 4 0 unchanged", moved},
		{"--topic " + topic + ":0 --to-latest --execute", topic + " 0 7 10 0 -", moved},
	} {
		got := succeed(t, "", append([]string{"groups", "reset-offsets", group}, strings.Fields(test.args)...)...)
		if squeeze(got.stdout) != head+test.want || got.stderr != test.says {
			t.Errorf("%s: %q and %q, want %q", test.args, squeeze(got.stdout), got.stderr, head+test.want)
		}
		if text, _ := os.ReadFile(file); strings.Contains(test.args, "--export") && string(text) != saved {
			t.Errorf("exported %q, want %q", text, saved)
		}
	}
	if d := describeJSON(t, group); *d.Partitions[0].CurrentOffset != 10 || *d.Partitions[1].CurrentOffset != 4 {
		t.Errorf("in the end %+v", d.Partitions)
	}

	// A group that is not there yet begins with a reset, if that was meant.
	made := group + "-made"
	succeed(t, "", "groups", "reset-offsets", made, "--topic", topic+":1", "--to-offset", "3", "--create")
	succeed(t, "", "groups", "reset-offsets", made, "--topic", topic+":1", "--to-offset", "3", "--create", "--execute")
	if got := succeed(t, "", "consume", topic, "--group", made, "--exit-at-end"); got.stdout != "x\n" {
		t.Errorf("the group that was made reads %q", got.stdout)
	}
	if got := succeed(t, "", "groups", "delete-offsets", made, "--topic", topic+":1"); squeeze(got.stdout) != "TOPIC PARTITION OFFSET "+topic+" 1 4" {
		t.Errorf("deleted %q", got.stdout)
	}
	if got := succeed(t, "", "groups", "delete", made); got.stdout != fmt.Sprintf("deleted group %q\n", made) {
		t.Errorf("deleted %q", got.stdout)
	}
	if complete := succeed(t, "", "__complete", "groups", "describe", group[:len(group)-1]); complete.stdout != group+"\n:4\n" {
		t.Errorf("the shell is offered %q", complete.stdout)
	}
	if decoded := succeed(t, "", "consume", "__consumer_offsets", "--from-beginning", "--exit-at-end", "--decode").stdout; !strings.Contains(decoded, `{"kind":"offset","group":"`+group+`","topic":"`+topic+`"`) ||
		!strings.Contains(decoded, `{"kind":"fence",`) || !strings.Contains(decoded, `{"kind":"group","deleted":true,"group":"`+made+`"}`) {
		t.Errorf("the offsets topic is\n%s", decoded)
	}
}

func TestGroupRefusals(t *testing.T) {
	topic, group := topicName(t), topicName(t)
	succeed(t, "", "topics", "create", topic, "--partitions", "2")
	long := strings.Repeat("g", 256)
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.csv")
	if err := os.WriteFile(bad, []byte(topic+",0,1\n"+topic+",0,2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	noGroup := `group "` + group + `" does not exist; "runnel groups list" shows those that do`
	for _, test := range []struct {
		args []string
		want string // a regular expression
	}{
		{[]string{"groups", "describe", group}, noGroup},
		{[]string{"groups", "delete", group}, noGroup},
		{[]string{"groups", "delete-offsets", group, "--topic", topic}, noGroup},
		{[]string{"groups", "reset-offsets", group, "--all-topics", "--to-latest"}, noGroup + `, and --create makes a new one`},
		{[]string{"groups", "reset-offsets", group, "--all-topics", "--to-latest", "--create"}, `group "` + group + `" does not exist, so that --all-topics finds no offsets; name the topics with --topic`},
		{[]string{"groups", "reset-offsets", group, "--topic", topic, "--to-latest"}, noGroup + `, and --create makes a new one`},
		{[]string{"groups", "reset-offsets", group, "--topic", topic, "--to-latest", "--execute"}, noGroup + `, and --create makes a new one`},
		{[]string{"groups", "reset-offsets", group, "--from-file", bad}, regexp.QuoteMeta(bad) + `: line 2: partition 0 of topic "` + topic + `" stands in line 1 already`},
		{[]string{"groups", "reset-offsets", group, "--from-file", filepath.Join(dir, "none")}, `cannot read the offsets: open .*: no such file or directory`},
		{[]string{"groups", "reset-offsets", group, "--topic", topic, "--to-latest", "--export", filepath.Join(dir, "none", "f")}, `cannot export the offsets to .*none/f: no such file or directory`},
		{[]string{"groups", "describe", long}, `.*255 bytes.*`},
		{[]string{"consume", topic, "--group", long}, `.*255.*`},
	} {
		t.Run(strings.Join(test.args[:2], " "), func(t *testing.T) {
			got := runnelCommand(t, "", test.args...)
			if got.code == exitSuccess || got.stdout != "" || !regexp.MustCompile(`^runnel: `+test.want+`\n$`).MatchString(got.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr is %swant %s", got.code, got.stdout, got.stderr, test.want)
			}
		})
	}
	for target, want := range map[string]string{topic + "-no": "does not exist", topic + ":7": "no partition 7"} {
		got := runnelCommand(t, "", "groups", "reset-offsets", group, "--topic", target, "--to-latest", "--create", "--execute")
		if got.code != exitFailure || !strings.Contains(got.stdout+got.stderr, want) {
			t.Errorf("reset of %s: exit code %d, %q, %q", target, got.code, got.stdout, got.stderr)
		}
	}
}

// TestUnknownTopicIsWaitedFor: a member says that its topic does not exist, and reads it
// once it does.
func TestUnknownTopicIsWaitedFor(t *testing.T) {
	topic := topicName(t)
	member := start(t, "consume", topic, "--group", topic, "--from-beginning")
	member.await(t, 1, `topic "`+topic+`" does not exist; waiting until somebody creates it, as with "runnel topics create `+topic+`"`)
	succeed(t, "hello\n", "produce", topic)
	member.await(t, 1, "assigned by group .*: "+topic+":0\n")
	member.await(t, 0, "hello\n")
	if code := member.stop(); code != exitSuccess {
		t.Errorf("ends with %d", code)
	}
	absent := topic + "-absent"
	missing := start(t, "consume", absent, "--group", absent, "--exit-at-end")
	missing.await(t, 1, `runnel: topic "`+absent+`" does not exist.*runnel topics create `+absent)
	if code := <-missing.done; code != exitFailure {
		t.Errorf("without a topic to come to the end of: %d", code)
	}
	missing.done <- exitFailure
}

// TestStaticMemberTwice: the older of two processes with one static id is told, and
// ends; then the newer has its partitions.
func TestStaticMemberTwice(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic)
	args := []string{"consume", topic, "--group", topic, "--instance-id", "one"}
	older := start(t, args...)
	older.await(t, 1, "assigned by group")
	newer := start(t, args...)
	if code := <-older.done; code != exitFailure {
		t.Errorf("the older ends with %d", code)
	}
	older.done <- exitFailure
	older.await(t, 1, `runnel: another process has joined group .* as instance "one" and has the partitions now; give each process an --instance-id of its own\n$`)
	if text := older.text(1); strings.Contains(text, "level=") {
		t.Errorf("the older says %s", text)
	}
	newer.await(t, 1, "assigned by group")
	if code := newer.stop(); code != exitSuccess {
		t.Errorf("the newer ends with %d", code)
	}
}
