package coordinator

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

func orders(group, member string) *coordinatorv1.JoinRequest {
	return &coordinatorv1.JoinRequest{Group: group, MemberId: member, ClientId: "test", Subscription: &coordinatorv1.Subscription{Topics: []string{"orders"}}}
}

// count returns how many partitions an assignment has.
func count(res *coordinatorv1.JoinResponse) (n int) {
	for _, set := range res.GetPartitions() {
		n += len(set.GetPartitions())
	}
	return n
}

// beat confirms the newest assignment of a member.
func beat(t *testing.T, n *coordinatorNode, group string, s *memberStream) error {
	t.Helper()
	a, err := s.latest()
	if a == nil {
		t.Fatalf("no assignment, %v", err)
	}
	_, err = n.groups.Heartbeat(t.Context(), &coordinatorv1.HeartbeatRequest{Group: group, MemberId: a.GetMemberId(), MemberEpoch: a.GetMemberEpoch()})
	return err
}

func commit(partition int32, offset int64) *coordinatorv1.OffsetCommit {
	return &coordinatorv1.OffsetCommit{Topic: "orders", Partition: partition, Offset: offset}
}

func inMesh(t *testing.T, test func(t *testing.T, m *mesh)) {
	synctest.Test(t, func(t *testing.T) { test(t, newMesh(t)) })
}

// Members join, are given what others have given up, commit, and find it all again
// after the coordinator has been started anew.
func TestMembersShareOutAndRestartKeepsAll(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		dir := t.TempDir()
		n := m.start(2, dir)
		first := n.join(t, orders("g", "a"))
		synctest.Wait()
		a, err := first.latest()
		if a == nil || count(a) != 4 || a.GetMemberId() != "a" || a.GetMemberCount() != 1 || a.GetPartitionCount() != 4 || a.GetSessionTimeoutMs() != 45_000 || a.GetHeartbeatIntervalMs() != 5000 {
			t.Fatalf("the first member got %v, %v", a, err)
		}
		if m.prepared != 1 {
			t.Errorf("the offsets topic was asked for %d times", m.prepared)
		}
		if err := beat(t, n, "g", first); err != nil {
			t.Fatal(err)
		}
		second := n.join(t, orders("g", ""))
		synctest.Wait()
		b, err := second.latest()
		if b == nil || count(b) != 0 || b.GetAwaitedCount() != 2 || len(b.GetMemberId()) != 36 {
			t.Fatalf("the second member got %v, %v before the first has given anything up", b, err)
		}
		if a, _ := first.latest(); count(a) != 2 {
			t.Fatalf("the first member is to keep %v", a)
		}
		if err := beat(t, n, "g", first); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if b, _ = second.latest(); count(b) != 2 {
			t.Fatalf("the second member got %v", b)
		}
		if err := beat(t, n, "g", second); err != nil {
			t.Fatal(err)
		}
		a, _ = first.latest()
		p := a.GetPartitions()[0].GetPartitions()[0]
		m.setEnd(p, 20)
		res, err := n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "g", MemberId: "a", MemberEpoch: a.GetMemberEpoch(), Offsets: []*coordinatorv1.OffsetCommit{commit(p, 17)}})
		if err != nil || res.GetResults()[0].GetFailure() != nil {
			t.Fatalf("%v, %v", res, err)
		}
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := first.latest(); reason(err) != errorsv1.Reason_REASON_DRAINING {
			t.Errorf("the stream ended with %v", err)
		}

		n = m.start(2, dir)
		found, err := n.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "g"})
		if err != nil || len(found.GetOffsets()) != 1 || found.GetOffsets()[0].GetOffset() != 17 || found.GetOffsets()[0].GetPartition() != p {
			t.Fatalf("%v, %v", found, err)
		}
		again := orders("g", "a")
		again.MemberEpoch = a.GetMemberEpoch()
		first = n.join(t, again)
		synctest.Wait()
		if back, err := first.latest(); back == nil || count(back) != 2 || back.GetMemberEpoch() != a.GetMemberEpoch() {
			t.Fatalf("after the restart the first member has %v, %v", back, err)
		}
		d, err := n.groups.DescribeGroup(t.Context(), &coordinatorv1.DescribeGroupRequest{Group: "g"})
		if err != nil || len(d.GetMembers()) != 2 || d.GetCoordinatorId() != 2 || d.GetCoordinatorAddress() != "coordinator-2:1" || len(d.GetPartitions()) != 4 {
			t.Fatalf("%v, %v", d, err)
		}
	})
}

// A coordinator that dies is followed by another, and members whose session stands
// keep what they have.
func TestFailover(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		nodes := []*coordinatorNode{m.start(2, t.TempDir()), m.start(3, t.TempDir())}
		first := nodes[0].join(t, orders("g", "a"))
		synctest.Wait()
		owner, other := nodes[0], nodes[1]
		if _, err := first.latest(); err != nil {
			// The topic was created by this call; the answer names the right node.
			e, _ := rpcerr.Parse(err)
			detail, _ := e.Detail.(*errorsv1.NotCoordinator)
			if e.Reason != errorsv1.Reason_REASON_NOT_COORDINATOR || detail.GetCoordinatorId() != 3 || detail.GetCoordinatorAddress() != "coordinator-3:1" || detail.GetGroup() != "g" {
				t.Fatalf("%v, %v", err, detail)
			}
			owner, other = nodes[1], nodes[0]
			first = owner.join(t, orders("g", "a"))
			synctest.Wait()
		}
		if err := beat(t, owner, "g", first); err != nil {
			t.Fatal(err)
		}
		before, _ := first.latest()
		_, err := other.groups.Heartbeat(t.Context(), &coordinatorv1.HeartbeatRequest{Group: "g", MemberId: "a", MemberEpoch: 1})
		if reason(err) != errorsv1.Reason_REASON_NOT_COORDINATOR {
			t.Fatalf("the wrong coordinator answers %v", err)
		}

		resume := owner.pause()
		m.fence(owner.id)
		time.Sleep(20 * time.Second) // Less than the session lasts.
		if err := beat(t, other, "g", first); err != nil {
			t.Fatalf("the next coordinator does not know the member: %v", err)
		}
		again := orders("g", "a")
		again.MemberEpoch = before.GetMemberEpoch()
		taken := other.join(t, again)
		synctest.Wait()
		if after, err := taken.latest(); after == nil || count(after) != count(before) || after.GetMemberEpoch() != before.GetMemberEpoch() {
			t.Fatalf("the member has %v after the failover, %v; before %v", after, err, before)
		}

		// The old one wakes, and knows nothing of all this.
		assigned := first.count()
		answers := make(chan error, 3)
		go func() {
			_, err := owner.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "g", MemberId: "a", MemberEpoch: before.GetMemberEpoch(), Offsets: []*coordinatorv1.OffsetCommit{commit(0, 99)}})
			answers <- err
		}()
		go func() {
			_, err := owner.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "g"})
			answers <- err
		}()
		go func() { answers <- beat(t, owner, "g", first) }()
		intruder := owner.join(t, orders("g", "b"))
		synctest.Wait()
		resume()
		for range 3 {
			if err := <-answers; err == nil {
				t.Error("a coordinator that was superseded answers")
			}
		}
		synctest.Wait()
		if first.count() != assigned || intruder.count() != 0 {
			t.Error("a coordinator that was superseded assigns")
		}
		found, err := other.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "g"})
		if err != nil || len(found.GetOffsets()) != 0 {
			t.Errorf("%v, %v: a coordinator that was superseded has committed", found, err)
		}
	})
}

// A coordinator that stops gives its groups away first, and nobody loses anything.
func TestDrainingMovesGroups(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		nodes := map[int32]*coordinatorNode{2: m.start(2, t.TempDir()), 3: m.start(3, t.TempDir())}
		if _, err := nodes[2].offsetsTopic(t); err != nil {
			t.Fatal(err)
		}
		_, p, _ := m.view.Image().GroupPartition("g")
		owner := nodes[int32(p.Coordinator)]
		other := nodes[5-owner.id]
		s := owner.join(t, orders("g", "a"))
		synctest.Wait()
		if err := beat(t, owner, "g", s); err != nil {
			t.Fatal(err)
		}
		before, _ := s.latest()
		if err := owner.stop(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, err := s.latest()
		e, _ := rpcerr.Parse(err)
		if detail, _ := e.Detail.(*errorsv1.NotCoordinator); e.Reason != errorsv1.Reason_REASON_NOT_COORDINATOR || detail.GetCoordinatorId() != other.id {
			t.Fatalf("the stream ended with %v", err)
		}
		if err := beat(t, other, "g", s); err != nil {
			t.Fatal(err)
		}
		again := orders("g", "a")
		again.MemberEpoch = before.GetMemberEpoch()
		s = other.join(t, again)
		synctest.Wait()
		if after, err := s.latest(); !proto.Equal(after, before) {
			t.Errorf("%v, %v; before %v", after, err, before)
		}
	})
}

// offsetsTopic has the node create the offsets topic.
func (n *coordinatorNode) offsetsTopic(t *testing.T) (*cluster.Image, error) {
	_, err := n.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "any"})
	if reason(err) == errorsv1.Reason_REASON_NOT_COORDINATOR {
		err = nil
	}
	synctest.Wait()
	return n.view.Image(), err
}

// An append whose outcome is not known is looked up in the log; one that was refused
// is made again.
func TestAppendsThatFail(t *testing.T) {
	for name, test := range map[string]struct {
		refuse, lose error
		want         errorsv1.Reason
	}{
		"refused":  {refuse: rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS, "too few"), want: errorsv1.Reason_REASON_UNSPECIFIED},
		"doubtful": {lose: rpcerr.New(errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS_AFTER_APPEND, "too few"), want: errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE},
	} {
		t.Run(name, func(t *testing.T) {
			inMesh(t, func(t *testing.T, m *mesh) {
				m.setEnd(0, 50)
				n := m.start(2, t.TempDir())
				request := &coordinatorv1.CommitOffsetsRequest{Group: "g", Offsets: []*coordinatorv1.OffsetCommit{commit(0, 5)}}
				if _, err := n.offsets.CommitOffsets(t.Context(), request); err != nil {
					t.Fatal(err)
				}
				once := func(err error) func() error {
					return func() error {
						now := err
						err = nil
						return now
					}
				}
				synctest.Wait() // Other partitions have appended their fences.
				m.mu.Lock()
				m.refuse, m.lose = once(test.refuse), once(test.lose)
				m.mu.Unlock()
				request.Offsets[0] = commit(0, 6)
				if _, err := n.offsets.CommitOffsets(t.Context(), request); reason(err) != test.want {
					t.Errorf("the commit is answered with %v", err)
				}
				found, err := n.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "g"})
				if err != nil || len(found.GetOffsets()) != 1 || found.GetOffsets()[0].GetOffset() != 6 {
					t.Errorf("%v, %v", found, err)
				}
			})
		})
	}
}

// Partitions without members cost nothing: no appends, no checks, no wake-ups.
func TestIdlePartitionsCostNothing(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.setEnd(0, 50)
		n := m.start(2, t.TempDir(), func(c *Config) { c.LagInterval = 24 * time.Hour })
		if _, err := n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "g", Offsets: []*coordinatorv1.OffsetCommit{commit(0, 5)}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		m.mu.Lock()
		appends, checks := m.appends, m.checks
		m.mu.Unlock()
		time.Sleep(10 * time.Minute)
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.appends > appends+2 || m.checks > checks+2 {
			t.Errorf("%d appends and %d checks in 10 minutes", m.appends-appends, m.checks-checks)
		}
	})
}

func TestConfigNamesAllFaults(t *testing.T) {
	config := DefaultConfig()
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	config.DataDir, config.Listen, config.MaxGroupMembers, config.MinSessionTimeout, config.OffsetsRetention = "", ":7090", 0, time.Millisecond, time.Second
	err := config.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, key := range []string{"DataDir", "Advertise", "MaxGroupMembers", "MinSessionTimeout", "OffsetsRetention"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("%s is missing in: %v", key, err)
		}
	}
}
