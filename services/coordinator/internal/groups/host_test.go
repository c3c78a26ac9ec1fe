package groups

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// memoryLog keeps records as they are. Nobody else writes to it.
type memoryLog struct {
	records []rules.Record
	// takes is how long the answer to an append or a check is on its way.
	takes time.Duration
	// fails is what comes of appends instead.
	fails error
}

func (l *memoryLog) Append(_ context.Context, _ rules.Partition, a *rules.Append) (rules.Outcome, int64, error) {
	if l.fails != nil {
		return rules.Doubtful, 0, l.fails
	}
	l.records = append(l.records, a.Records...)
	end := int64(len(l.records))
	time.Sleep(l.takes)
	return rules.Done, end, nil
}

func (l *memoryLog) Check(context.Context, rules.Partition, *rules.Check) (rules.Outcome, error) {
	time.Sleep(l.takes)
	return rules.Done, nil
}

func (l *memoryLog) Load(_ context.Context, _ rules.Partition, end int64, deliver func([]rules.Record)) (rules.Outcome, error) {
	deliver(l.records[:end])
	return rules.Done, nil
}

func config() rules.Config {
	return rules.Config{
		MembersPerGroup: 10, Groups: 10, OffsetsPerGroup: 10, Queue: 10, Commits: 10, RoundBytes: 1 << 20,
		HeartbeatInterval: 5 * time.Second, Confidence: 5 * time.Second, CheckInterval: 3 * time.Second,
	}
}

// coordinate runs a host that coordinates the one partition of the offsets topic.
func coordinate(t *testing.T, log Log) *Host {
	t.Helper()
	return coordinateLogging(t, log, slog.DiscardHandler)
}

func coordinateLogging(t *testing.T, log Log, lines slog.Handler) *Host {
	t.Helper()
	view := clusterview.New(nil, nil)
	image, err := cluster.FromSnapshot(&metadatav1.ClusterSnapshot{
		ClusterId: make([]byte, 16), Version: 5,
		Topics: []*metadatav1.Topic{
			{TopicId: append(make([]byte, 15), 9), Name: cluster.OffsetsTopic, PartitionCount: 1, Partitions: []*metadatav1.Partition{{CoordinatorId: 2, CoordinatorEpoch: 1}}},
			{TopicId: append(make([]byte, 15), 1), Name: "orders", PartitionCount: 2},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	view.Publish(image, nil)
	h := NewHost(config(), log, view, slog.New(lines), nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx, 2, 5) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	if err := h.WaitApplied(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	return h
}

func join(member string) *rules.Join {
	return &rules.Join{
		Group: "g", Member: rules.MemberID(member), Subscription: rules.Subscription{Topics: []string{"orders"}}, Assignor: rules.Sticky,
		SessionTimeout: 45 * time.Second, RebalanceTimeout: time.Minute,
	}
}

// A process that stood still between a question to the leader and its answer says
// nothing of what it knew then: another may have the groups by now.
func TestNothingIsSaidAfterAStandstill(t *testing.T) {
	for _, test := range []struct {
		name  string
		still time.Duration
		want  errorsv1.Reason
	}{
		{"a moment", 4 * time.Second, errorsv1.Reason_REASON_UNSPECIFIED},
		{"too long", 6 * time.Second, errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &memoryLog{}
				h := coordinate(t, log)
				if _, err := h.Do(t.Context(), 0, &rules.List{}); err != nil {
					t.Fatal(err)
				}
				log.takes = test.still
				if _, err := h.Do(t.Context(), 0, &rules.List{}); rpcReason(err) != test.want {
					t.Errorf("a read: %v", err)
				}
				time.Sleep(time.Minute)
				s, err := h.Join(t.Context(), 0, join("m"))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				<-s.C()
				if a, err := s.Take(); rpcReason(err) != test.want || (a == nil) != (err != nil) {
					t.Errorf("an assignment: %v, %v", a, err)
				}
			})
		})
	}
}

// So it is if it stood still with the answer in hand.
func TestAssignmentThatLay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := coordinate(t, &memoryLog{})
		s, err := h.Join(t.Context(), 0, join("m"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		<-s.C()
		time.Sleep(6 * time.Second)
		if a, err := s.Take(); rpcReason(err) != errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE {
			t.Errorf("%v, %v", a, err)
		}
	})
}

// Who reads slowly gets the newest assignment and none of those before it.
func TestSlowReaderGetsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := coordinate(t, &memoryLog{})
		slow, err := h.Join(t.Context(), 0, join("a"))
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		synctest.Wait()
		other, err := h.Join(t.Context(), 0, join("b"))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		synctest.Wait()
		<-slow.C()
		a, err := slow.Take()
		if err != nil || len(a.Partitions) != 1 || a.Epoch < 2 {
			t.Fatalf("%+v, %v", a, err)
		}
		if again, err := slow.Take(); again != nil || err != nil {
			t.Errorf("%+v, %v: it had been taken", again, err)
		}
	})
}

// A commit that its caller has given up before the shard took it is not carried out: it
// may come behind a newer one.
func TestGivenUpIsNotCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := coordinate(t, &memoryLog{})
		orders := rules.Partition{Topic: cluster.TopicID{15: 1}}
		at := func(offset int64) *rules.Commit {
			return &rules.Commit{Group: "g", Offsets: []rules.CommitOffset{{Partition: orders, TopicName: "orders", Offset: offset, LeaderEpoch: -1}}}
		}
		if _, err := h.Do(t.Context(), 0, at(200)); err != nil {
			t.Fatal(err)
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		for range 50 { // Whether it comes as far as the shard is a matter of chance.
			if _, err := h.Do(over, 0, at(100)); err == nil {
				t.Fatal("it was answered")
			}
			synctest.Wait()
		}
		found, err := h.Do(t.Context(), 0, &rules.Fetch{Group: "g"})
		if err != nil {
			t.Fatal(err)
		}
		if records, _ := found.([]*rules.OffsetRecord); len(records) != 1 || records[0].Offset != 200 {
			t.Errorf("committed is an older offset: %+v", *records[0])
		}
	})
}

// When the host ends, nobody waits on.
func TestEndRefusesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		view := clusterview.New(nil, nil)
		h := NewHost(config(), &memoryLog{}, view, slog.New(slog.DiscardHandler), nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.Run(ctx, 2, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Do(t.Context(), 0, &rules.List{}); rpcReason(err) != errorsv1.Reason_REASON_DRAINING {
			t.Errorf("%v", err)
		}
	})
}

func rpcReason(err error) errorsv1.Reason {
	if refusal, ok := err.(*rules.Refusal); ok { //nolint:errorlint // As it was returned.
		return refusal.Reason
	}
	return rpcerr.ReasonOf(err)
}

// A partition that cannot be written is tried again many times a second, and says so now
// and then.
func TestFailuresAreLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		coordinateLogging(t, &memoryLog{fails: errors.New("the partition has failed")}, slog.NewTextHandler(&lines, nil))
		time.Sleep(150 * time.Second)
		synctest.Wait()
		if got := strings.Count(lines.String(), "the partition has failed"); got != 3 {
			t.Errorf("in 150 s there are %d lines", got)
		}
	})
}
