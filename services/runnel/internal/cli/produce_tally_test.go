package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// complaints collects what a tally says.
type complaints struct {
	mu    sync.Mutex
	lines []string
}

func (c *complaints) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, fmt.Sprintf(format, args...))
}

func (c *complaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.lines)
}

func TestTallyGoesOnAfterABadLine(t *testing.T) {
	var said complaints
	counts := &tally{complain: said.add, giveUp: func() { t.Error("it gives up") }}
	for line := range int64(20) {
		counts.failed(line+1, &lineTooLongError{200, 100})
	}
	counts.sent(7)
	if lines := said.all(); len(lines) != maxReportedFailures+1 || !strings.HasPrefix(lines[0], "line 1 was not sent: the line has 200 bytes, but a record may have 100") {
		t.Errorf("it said %q", lines)
	}
	if got, want := counts.summary(2*time.Second), (summary{Records: 1, Bytes: 7, Seconds: 2, Failures: 20}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTallyGivesUpOnce(t *testing.T) {
	var said complaints
	gaveUp := 0
	counts := &tally{complain: said.add, giveUp: func() { gaveUp++ }}
	for line := range int64(5) {
		counts.failed(line+1, &runnel.Error{Message: "the topic is gone"})
	}
	if want := []string{"line 1 was not sent and reading stops here: the topic is gone"}; !slices.Equal(said.all(), want) || gaveUp != 1 {
		t.Errorf("it gave up %d times and said %q", gaveUp, said.all())
	}
}

func TestTallyTellsOfAStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said complaints
		counts := &tally{complain: said.add, giveUp: func() {}}
		obstacles := []string{"partition 0 has no leader", ""}
		stop := counts.watch(t.Context(), func(context.Context) string {
			because := obstacles[0]
			obstacles = obstacles[1:]
			return because
		})
		time.Sleep(3*stallNotice + time.Second) // nothing to do is no standstill
		if lines := said.all(); len(lines) != 0 {
			t.Errorf("idle, it said %q", lines)
		}
		counts.take()
		time.Sleep(4 * stallNotice)
		counts.sent(1)
		counts.take()
		time.Sleep(3 * stallNotice)
		counts.failed(2, errors.New("given up"))
		time.Sleep(3 * stallNotice)
		stop()
		want := []string{
			"nothing has been acknowledged for 5s (partition 0 has no leader); still trying", "nothing has been acknowledged for 5s; still trying",
			"line 2 was not sent and reading stops here: given up",
		}
		if lines := said.all(); !slices.Equal(lines, want) {
			t.Errorf("it said %q", lines)
		}
	})
}

func TestObstacle(t *testing.T) {
	topic := runnel.TopicDescription{Topic: runnel.Topic{Name: "orders"}, Replicas: []runnel.PartitionDescription{{Leader: 1}, {Partition: 1, Leader: 2}}}
	if got := obstacleIn(topic, nil); got != "" {
		t.Errorf("nothing is wrong, but it says %q", got)
	}
	topic.Replicas[1].Err = errors.New("no answer in time")
	if got, want := obstacleIn(topic, nil), `partition 1 of topic "orders": no answer in time`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	topic.Replicas[0].Leader, topic.Replicas[0].Eligible = -1, []int32{2}
	if got, want := obstacleIn(topic, nil), `partition 0 of topic "orders" has no leader: start node 2 (ELR): that one holds all that was acknowledged, and leads at once`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestHeldUp(t *testing.T) {
	full := &runnel.Error{Reason: errorsv1.Reason_REASON_DISK_FULL, Message: "the disk is full"}
	replicas := &runnel.Error{Reason: errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS, Message: "1 replica in sync"}
	leaderless := &runnel.Error{Reason: errorsv1.Reason_REASON_NO_LEADER, Message: "the partition has no leader"}
	away := &runnel.Error{Message: "store-2:1: connection refused"}
	tests := []struct {
		failure       error
		seen, want    string
		clusterIsSeen bool
	}{
		{full, "unused", "the disk is full", false},
		{replicas, "unused", "1 replica in sync", false},
		{leaderless, "node 2 is down", "node 2 is down", true},
		{leaderless, "", "the partition has no leader", true},
		{away, "node 2 is down", "node 2 is down", true},
		{away, "", "store-2:1: connection refused", true},
		{nil, "node 2 is down", "node 2 is down", true},
		{nil, "", "", true},
	}
	for _, test := range tests {
		looked := false
		got := heldUp(test.failure, func() string {
			looked = true
			return test.seen
		})
		if got != test.want || looked != test.clusterIsSeen {
			t.Errorf("%v, cluster %q: got %q, want %q; asked the cluster: %v", test.failure, test.seen, got, test.want, looked)
		}
	}
}

func TestSummary(t *testing.T) {
	tests := []struct {
		s          summary
		text, json string
	}{
		{summary{}, "0 records, 0 bytes, 0.000 seconds, 0 failures", `{"records":0,"bytes":0,"seconds":0,"failures":0}`},
		{summary{Records: 1, Bytes: 1, Seconds: 0.5, Failures: 1}, "1 record, 1 byte, 0.500 seconds, 1 failure (2 records/s, 0.00 MB/s)", `{"records":1,"bytes":1,"seconds":0.5,"failures":1}`},
		{summary{Records: 3_000_000, Bytes: 300_000_000, Seconds: 3}, "3000000 records, 300000000 bytes, 3.000 seconds, 0 failures (1000000 records/s, 100.00 MB/s)", `{"records":3000000,"bytes":300000000,"seconds":3,"failures":0}`},
	}
	for _, test := range tests {
		if got := test.s.text(); got != test.text {
			t.Errorf("got  %s\nwant %s", got, test.text)
		}
		if got := test.s.json(); got != test.json {
			t.Errorf("got  %s\nwant %s", got, test.json)
		}
	}
}
