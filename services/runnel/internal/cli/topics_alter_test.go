package cli

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestAlterTopic(t *testing.T) {
	topic := topicName(t)
	succeed(t, "", "topics", "create", topic, "--config", "max.message.bytes=1000", "--config", "durability=replicated")
	long := strings.Repeat("x", 1500) + "\n"
	if got := runnelCommand(t, long, "produce", topic); got.code != exitFailure {
		t.Fatalf("a record over the limit: exit code %d", got.code)
	}
	succeed(t, "first\n", "produce", topic)

	got := succeed(t, "", "topics", "alter", topic, "--config", "max.message.bytes=5000", "--config", "retention.ms=-1", "--unset", "durability")
	if want := fmt.Sprintf("altered topic %q, which now has max.message.bytes=5000 retention.ms=-1\n", topic); got.stdout != want || got.stderr != "" {
		t.Errorf("says %q and %q, want %q", got.stdout, got.stderr, want)
	}
	described := succeed(t, "", "topics", "describe", topic).stdout
	for _, line := range []string{`durability +synced +default`, `max.message.bytes +5000 +topic`, `retention.ms +-1 +topic`} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(described) {
			t.Errorf("no line %s in\n%s", line, described)
		}
	}
	// The leader follows a moment later.
	eventually(t, func() bool { return runnelCommand(t, long, "produce", topic).code == exitSuccess })

	// A record without a key is refused once the topic is compacted.
	succeed(t, "", "topics", "alter", topic, "--config", "cleanup.policy=compact,delete")
	eventually(t, func() bool { return runnelCommand(t, "late\n", "produce", topic).code == exitFailure })
	succeed(t, "k:kept\n", "produce", topic, "--key-separator", ":")

	var object topicObject
	if err := json.Unmarshal([]byte(succeed(t, "", "topics", "alter", topic, "--unset", "cleanup.policy", "--unset", "max.message.bytes", "--unset", "retention.ms", "-o", "json").stdout), &object); err != nil {
		t.Fatal(err)
	}
	if object.Name != topic || object.ID == "" || object.PartitionCount != 1 || len(object.Config) != 0 {
		t.Errorf("the object is %+v", object)
	}
	if got := succeed(t, "", "topics", "alter", topic, "--unset", "retention.ms"); got.stdout != fmt.Sprintf("altered topic %q, which now has the defaults of all settings\n", topic) {
		t.Errorf("says %q", got.stdout)
	}
	// The log is one, whatever its settings were.
	values := succeed(t, "", "consume", topic, "--from-beginning", "--exit-at-end").stdout
	if !strings.HasPrefix(values, "first\n"+long) || !strings.HasSuffix(values, "kept\n") {
		t.Errorf("the topic holds %.200q ... %d bytes", values, len(values))
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for tick := time.Tick(20 * time.Millisecond); !condition(); {
		select {
		case <-tick:
		case <-deadline:
			t.Fatal("never so")
		}
	}
}
