package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// parsedConsume returns the options that a command line of consume gives.
func parsedConsume(t *testing.T, args string) *consumeOptions {
	t.Helper()
	o, command := newConsumeCommand(newProgram(Environment{}))
	if err := command.ParseFlags(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAssignments(t *testing.T) {
	topic := &topicFacts{TopicDescription: runnel.TopicDescription{
		Topic: runnel.Topic{Name: "t", Partitions: 3},
		Replicas: []runnel.PartitionDescription{
			{Partition: 0, Earliest: 10, Latest: 20},
			{Partition: 1, Earliest: 0, Latest: 0},
			{Partition: 2, Earliest: -1, Latest: -1, Err: runnel.ErrClosed},
		},
	}}
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	at := func(partition int32, start runnel.Start) runnel.Assignment { return runnel.At("t", partition, start) }
	tests := []struct {
		args string
		want []runnel.Assignment
		err  string
	}{
		{"", []runnel.Assignment{at(0, runnel.Latest()), at(1, runnel.Latest()), at(2, runnel.Latest())}, ""},
		{"--from-beginning", []runnel.Assignment{at(0, runnel.Earliest()), at(1, runnel.Earliest()), at(2, runnel.Earliest())}, ""},
		{"--from-beginning --partition 2 --partition 0 --partition 2", []runnel.Assignment{at(0, runnel.Earliest()), at(2, runnel.Earliest())}, ""},
		{"--partition 1 --exit-at-end", []runnel.Assignment{at(1, runnel.Latest()).UntilEnd()}, ""},
		{"--partition 1 --from-time 2026-11-23T13:00:00+01:00", []runnel.Assignment{at(1, runnel.Time(noon))}, ""},
		{"--offset 0:15", []runnel.Assignment{at(0, runnel.Offset(15)), at(1, runnel.Latest()), at(2, runnel.Latest())}, ""},
		{"--offset 0:20 --offset 1:0 --partition 0 --partition 1 --exit-at-end",
			[]runnel.Assignment{at(0, runnel.Offset(20)).UntilEnd(), at(1, runnel.Offset(0)).UntilEnd()}, ""},
		{"--offset 2:7 --partition 2", []runnel.Assignment{at(2, runnel.Offset(7))}, ""},

		{"--partition 3", nil, `topic "t" has no partition 3, only 0 to 2`},
		{"--offset 4:0", nil, `topic "t" has no partition 4, only 0 to 2`},
		{"--offset 0:9", nil, `partition 0 of topic "t" does not hold offset 9: it begins at 10 and its end is 20`},
		{"--offset 0:21", nil, `partition 0 of topic "t" does not hold offset 21: it begins at 10 and its end is 20`},
		{"--offset 1:1", nil, `partition 1 of topic "t" does not hold offset 1: it begins at 0 and its end is 0`},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			o := parsedConsume(t, test.args)
			if err := o.check(); err != nil {
				t.Fatal(err)
			}
			got, err := o.assignments(topic)
			message := ""
			if err != nil {
				message = err.Error()
			}
			if message != test.err {
				t.Errorf("got the error %q, want %q", message, test.err)
			}
			same := func(a, b runnel.Assignment) bool { return a == b }
			if o.fromTime.text != "" {
				// Equal times may lie in different zones.
				same = func(a, b runnel.Assignment) bool { return true }
				if !o.fromTime.value.Equal(noon) {
					t.Errorf("the time is %v", o.fromTime.value)
				}
			}
			if !slices.EqualFunc(got, test.want, same) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// TestUnreadable: who has waited in vain hears which of the partitions that were
// asked for is in the way.
func TestUnreadable(t *testing.T) {
	topic := runnel.TopicDescription{Topic: runnel.Topic{Name: "t"}, Replicas: []runnel.PartitionDescription{
		{Leader: 1, Err: &runnel.Error{Reason: errorsv1.Reason_REASON_CORRUPT_LOG, Message: "damaged"}},
		{Partition: 1, Leader: 1},
		{Partition: 2, Leader: -1, Eligible: []int32{4}},
	}}
	for _, test := range []struct{ flags, want string }{
		{"", `cannot be read after 30s: partition 2 of topic "t" has no leader: start node 4 (ELR): that one holds all that was acknowledged, and leads at once`},
		{"--partition 0 --partition 1", "the cluster does not answer in time; try again, or look for the reason in the logs of its nodes"},
	} {
		given := topic
		given.Replicas = slices.Clone(topic.Replicas)
		if err := parsedConsume(t, test.flags).unreadable(given, nil, context.DeadlineExceeded); sentence(err) != test.want || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q: %v", test.flags, err)
		}
	}
}
