package runnel

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// newGroupCluster has nodes 4 and 5 as coordinators, of every other partition of the
// offsets topic each. group returns a name that belongs to a partition.
func newGroupCluster() (c *fakeCluster, four, five *fakeAdministration, group func(partition int32) string) {
	c = newFakeCluster(2)
	c.createTopic(cluster.OffsetsTopic, 4)
	coordinators := c.addAdministrations(2)
	c.coordinate(true, 4, 5, 4, 5)
	return c, coordinators[0], coordinators[1], func(partition int32) string {
		for i := 0; ; i++ {
			if name := fmt.Sprint("g", i); cluster.PartitionForKey([]byte(name), 4) == partition {
				return name
			}
		}
	}
}

// wantRequest compares the last of n requests with what a request is in text.
func wantRequest(t *testing.T, a *fakeAdministration, n int, text string, empty proto.Message) {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), empty); err != nil {
		t.Fatal(err)
	}
	got, count := a.last()
	if count != n || !proto.Equal(got, empty) {
		t.Errorf("%d requests, the last is %v; want %d, the last %v", count, got, n, empty)
	}
}

func TestGroupsAreAskedOfTheirCoordinators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, four, five, group := newGroupCluster()
		admin := c.client(t).Admin()
		for partition, answered := range map[int32]*fakeAdministration{0: four, 1: five} {
			if err := admin.DeleteGroup(t.Context(), group(partition)); err != nil {
				t.Error(err)
			}
			wantRequest(t, answered, 1, fmt.Sprintf("group: %q", group(partition)), &coordinatorv1.DeleteGroupRequest{})
		}
		// Another coordinator has taken over, and nobody has said so but the former one.
		c.coordinate(false, 5)
		if err := admin.DeleteGroup(t.Context(), group(0)); err != nil {
			t.Error(err)
		}
		wantRequest(t, five, 2, fmt.Sprintf("group: %q", group(0)), &coordinatorv1.DeleteGroupRequest{})
	})
}

// TestCoordinatorIsWaitedFor: what passes is waited for as long as the context allows,
// and what does not is told at once.
func TestCoordinatorIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, four, _, group := newGroupCluster()
		admin := c.client(t).Admin()
		began := time.Now()
		for _, f := range []errorsv1.Reason{errorsv1.Reason_REASON_GROUP_NOT_EMPTY, errorsv1.Reason_REASON_GROUP_NOT_FOUND, errorsv1.Reason_REASON_INTERNAL} {
			c.change(func() { four.failures = []*errorsv1.Failure{failureOf(f)} })
			if err := admin.DeleteGroup(t.Context(), group(0)); ReasonOf(err) != f {
				t.Errorf("deleted although %v: %v", f, err)
			}
		}
		if _, n := four.last(); n > 0 || time.Since(began) > 0 {
			t.Errorf("repeated after %v", time.Since(began))
		}
		c.change(func() {
			for range 3 {
				four.failures = append(four.failures, failureOf(errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE))
			}
		})
		if err := admin.DeleteGroup(t.Context(), group(0)); err != nil {
			t.Error(err)
		}
		go func() {
			sleepFor(t, 3*time.Second)
			c.coordinate(true, 4)
		}()
		c.coordinate(true, 0)
		if err := admin.DeleteGroup(t.Context(), group(0)); err != nil {
			t.Error(err)
		}
		c.coordinate(true, 0)
		began = time.Now()
		if err := admin.DeleteGroup(t.Context(), group(0)); ReasonOf(err) != errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE || !strings.Contains(err.Error(), group(0)) ||
			time.Since(began) < callTimeout || time.Since(began) > callTimeout+lastPause {
			t.Errorf("without a coordinator: %v after %v", err, time.Since(began))
		}
	})
}

// TestFirstGroup: before there is an offsets topic, asking a coordinator about a group
// is what makes it.
func TestFirstGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeCluster(1)
		admin := c.client(t).Admin()
		if groups, err := admin.ListGroups(t.Context()); err != nil || len(groups) > 0 {
			t.Errorf("groups: %v, %v", groups, err)
		}
		if err := admin.DeleteGroup(t.Context(), "g"); ReasonOf(err) != errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE || !strings.Contains(err.Error(), "runnel coordinator") {
			t.Errorf("without a coordinator: %v", err)
		}
		a := c.addAdministrations(1)[0]
		if err := admin.DeleteGroup(t.Context(), "g"); err != nil {
			t.Error(err)
		}
		wantRequest(t, a, 1, `group: "g"`, &coordinatorv1.DeleteGroupRequest{})
	})
}

func TestListGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, four, five, _ := newGroupCluster()
		four.groups = []*coordinatorv1.GroupSummary{
			{Group: "a", State: coordinatorv1.GroupState_GROUP_STATE_EMPTY, CoordinatorId: 4},
			{Group: "c", State: coordinatorv1.GroupState_GROUP_STATE_STABLE, MemberCount: 3, CoordinatorId: 4},
		}
		five.groups = []*coordinatorv1.GroupSummary{{Group: "b", State: coordinatorv1.GroupState_GROUP_STATE_RECONCILING, MemberCount: 1, CoordinatorId: 5}}
		admin := c.client(t).Admin()
		list := func(states ...GroupState) (texts []string, err error) {
			groups, err := admin.ListGroups(t.Context(), states...)
			for _, g := range groups {
				texts = append(texts, fmt.Sprint(g))
			}
			return texts, err
		}
		all, err := list()
		if err != nil {
			t.Error(err)
		}
		want(t, all, "{a empty 0 4}", "{b reconciling 1 5}", "{c stable 3 4}")
		some, err := list(GroupStable, GroupReconciling)
		if err != nil {
			t.Error(err)
		}
		want(t, some, "{b reconciling 1 5}", "{c stable 3 4}")

		c.change(func() { five.loading = 3 })
		if all, err := list(); err != nil || len(all) != 3 || five.loading != 0 {
			t.Errorf("while partitions are loaded: %v, %v", all, err)
		}
		five.node.setDown(true)
		rest, err := list()
		if err == nil {
			t.Error("a coordinator that does not answer is not missed")
		}
		want(t, rest, "{a empty 0 4}", "{c stable 3 4}")
		five.node.setDown(false)

		c.coordinate(true, 0)
		if all, err := list(); len(all) != 3 || ReasonOf(err) != errorsv1.Reason_REASON_COORDINATOR_NOT_AVAILABLE || !strings.Contains(err.Error(), "1 partitions of __consumer_offsets") {
			t.Errorf("with a partition that nobody coordinates: %v, %v", all, err)
		}
	})
}

// TestListGroupsThatMove: a list is made again if groups have moved under it.
func TestListGroupsThatMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, four, five, _ := newGroupCluster()
		admin := c.client(t).Admin()
		if _, err := admin.ListGroups(t.Context()); err != nil {
			t.Fatal(err)
		}
		four.groups = []*coordinatorv1.GroupSummary{{Group: "a", State: coordinatorv1.GroupState_GROUP_STATE_EMPTY, CoordinatorId: 4}}
		four.onList = func() {
			// Five has answered or will; it knew nothing of the group either way.
			four.onList = nil
			four.groups, five.groups = nil, four.groups
			c.topics[cluster.OffsetsTopic].partitions[0].coordinator = 5
			c.changedLocked()
		}
		five.groups = nil
		groups, err := admin.ListGroups(t.Context())
		if err != nil || len(groups) != 1 {
			t.Errorf("groups: %v, %v", groups, err)
		}
		if _, n := four.last(); n != 3 {
			t.Errorf("%d lists", n)
		}
	})
}

func TestDescribeGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, four, _, group := newGroupCluster()
		at := time.UnixMilli(1234).UTC()
		sets := func(topic string, partitions ...int32) []*coordinatorv1.TopicPartitions {
			return []*coordinatorv1.TopicPartitions{{Topic: topic, Partitions: partitions}}
		}
		four.describe = &coordinatorv1.DescribeGroupResponse{
			Group: group(0), State: coordinatorv1.GroupState_GROUP_STATE_RECONCILING, GroupEpoch: 7, Assignor: "sticky", CoordinatorId: 4, CoordinatorAddress: "coordinator-4:1",
			Members: []*coordinatorv1.GroupMember{{
				MemberId: "m", InstanceId: "i", ClientId: "c", ClientHost: "h", MemberEpoch: 6, Subscription: &coordinatorv1.Subscription{Topics: []string{"t"}, TopicPattern: "u.*"},
				Partitions: sets("t", 0, 2), Revoking: sets("t", 2), Awaited: sets("u", 1), Assignor: "range", IdleMs: 1500, Fenced: true,
			}},
			Partitions: []*coordinatorv1.GroupPartition{
				{Topic: "t", Partition: 0, CommittedOffset: proto.Int64(5), LogEndOffset: proto.Int64(9), Lag: proto.Int64(4), MemberId: "m", Metadata: "x", CommittedAt: timestamppb.New(at)},
				{Topic: "t", Partition: 1, Failure: failureOf(errorsv1.Reason_REASON_NO_LEADER)},
			},
		}
		d, err := c.client(t).Admin().DescribeGroup(t.Context(), group(0))
		if err != nil || d.ID != group(0) || d.State != GroupReconciling || d.Epoch != 7 || d.Assignor != "sticky" || d.Coordinator != 4 || d.CoordinatorAddress != "coordinator-4:1" || len(d.Members) != 1 || len(d.Partitions) != 2 {
			t.Fatalf("description: %+v, %v", d, err)
		}
		if got, want := fmt.Sprint(d.Members[0]), "{m i c h 6 [t] u.* [t-0 t-2] [t-2] [u-1] range 1.5s true}"; got != want {
			t.Errorf("member is %s, want %s", got, want)
		}
		if got, want := fmt.Sprint(d.Partitions[0]), fmt.Sprint(GroupPartition{TopicPartition{"t", 0}, 5, 9, 4, "m", "x", at, nil}); got != want {
			t.Errorf("partition is %s, want %s", got, want)
		}
		if p := d.Partitions[1]; p.Committed != -1 || p.End != -1 || p.Lag != -1 || !p.CommittedAt.IsZero() || ReasonOf(p.Err) != errorsv1.Reason_REASON_NO_LEADER {
			t.Errorf("partition is %+v", p)
		}
	})
}

func TestOffsetsOfAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, four, _, group := newGroupCluster()
		admin := c.client(t).Admin()
		four.commit = &coordinatorv1.CommitOffsetsResponse{Results: []*coordinatorv1.OffsetCommitResult{
			{Topic: "t", Partition: 1}, {Topic: "t", Partition: 9, Failure: failureOf(errorsv1.Reason_REASON_PARTITION_NOT_FOUND)},
		}}
		outcomes, err := admin.CommitOffsets(t.Context(), group(0),
			GroupOffset{TopicPartition: TopicPartition{"t", 1}, Position: Position{Offset: 5, LeaderEpoch: 2}, Metadata: "m"},
			GroupOffset{TopicPartition: TopicPartition{"t", 9}, Position: Position{Offset: 0, LeaderEpoch: -1}})
		if err != nil || len(outcomes) != 2 || outcomes[0] != (CommitOutcome{TopicPartition: TopicPartition{"t", 1}}) || ReasonOf(outcomes[1].Err) != errorsv1.Reason_REASON_PARTITION_NOT_FOUND {
			t.Errorf("committed: %v, %v", outcomes, err)
		}
		wantRequest(t, four, 1, fmt.Sprintf(`group: %q
			offsets { topic: "t" partition: 1 offset: 5 leader_epoch: 2 metadata: "m" }
			offsets { topic: "t" partition: 9 }`, group(0)), &coordinatorv1.CommitOffsetsRequest{})
		if _, err := admin.CommitOffsets(t.Context(), group(0)); ReasonOf(err) != errorsv1.Reason_REASON_INTERNAL {
			t.Errorf("an answer that does not fit is taken: %v", err)
		}

		at := time.UnixMilli(99).UTC()
		committed := []*coordinatorv1.CommittedOffset{
			{Topic: "t", Partition: 1, Offset: 5, LeaderEpoch: proto.Int32(2), Metadata: "m", CommittedAt: timestamppb.New(at)},
			{Topic: "u", Partition: 0, Offset: 7},
		}
		wanted := fmt.Sprint([]GroupOffset{
			{TopicPartition: TopicPartition{"t", 1}, Position: Position{5, 2}, Metadata: "m", CommittedAt: at},
			{TopicPartition: TopicPartition{"u", 0}, Position: Position{7, -1}},
		})
		four.fetch = &coordinatorv1.FetchOffsetsResponse{Offsets: committed}
		if offsets, err := admin.ListCommitted(t.Context(), group(0), TopicPartition{"u", 0}, TopicPartition{"t", 2}, TopicPartition{"t", 1}); err != nil || fmt.Sprint(offsets) != wanted {
			t.Errorf("fetched: %v, %v", offsets, err)
		}
		wantRequest(t, four, 3, fmt.Sprintf(`group: %q partitions { topic: "t" partitions: [2, 1] } partitions { topic: "u" partitions: 0 }`, group(0)), &coordinatorv1.FetchOffsetsRequest{})

		four.forget = &coordinatorv1.DeleteOffsetsResponse{Deleted: committed}
		if offsets, err := admin.DeleteOffsets(t.Context(), group(0), map[string][]int32{"u": nil, "t": {1}}); err != nil || fmt.Sprint(offsets) != wanted {
			t.Errorf("deleted: %v, %v", offsets, err)
		}
		wantRequest(t, four, 4, fmt.Sprintf(`group: %q partitions { topic: "t" partitions: 1 } partitions { topic: "u" }`, group(0)), &coordinatorv1.DeleteOffsetsRequest{})
	})
}

func TestResetOffsets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, four, _, group := newGroupCluster()
		admin := c.client(t).Admin()
		four.reset = &coordinatorv1.ResetOffsetsResponse{Offsets: []*coordinatorv1.PlannedOffset{
			{Topic: "t", Partition: 0, OldOffset: proto.Int64(1), NewOffset: 0, ClampedFrom: proto.Int64(-1), LogEndOffset: 9, Lag: 9},
			{Topic: "t", Partition: 1, NewOffset: 4, LogStartOffset: 3, LogEndOffset: 9, Lag: 5},
			{Topic: "t", Partition: 2, NewOffset: 4, Failure: failureOf(errorsv1.Reason_REASON_NO_LEADER)},
		}}
		reset := GroupReset{Group: group(0), Resets: []OffsetReset{
			{Topic: "a", Target: MoveTo(Earliest())},
			{Topic: "b", Partitions: []int32{3, 1}, Target: MoveBy(-2)},
			{Topic: "c", Target: MoveToAge(90 * time.Second)},
			{Topic: "d", Target: MoveTo(Offset(7))},
			{Topic: "e"},
			{Topic: "f", Target: MoveTo(Time(time.UnixMilli(2000)))},
		}}
		plan, err := admin.ResetOffsets(t.Context(), reset)
		if err != nil || plan.Executed || len(plan.Offsets) != 3 {
			t.Fatalf("plan: %+v, %v", plan, err)
		}
		for i, want := range []PlannedOffset{
			{TopicPartition{"t", 0}, 1, 0, true, -1, 0, 9, 9, nil},
			{TopicPartition{"t", 1}, -1, 4, false, 4, 3, 9, 5, nil},
			{TopicPartition{"t", 2}, -1, -1, false, 4, 0, 0, 0, plan.Offsets[2].Err},
		} {
			if plan.Offsets[i] != want {
				t.Errorf("planned %+v, want %+v", plan.Offsets[i], want)
			}
		}
		if ReasonOf(plan.Offsets[2].Err) != errorsv1.Reason_REASON_NO_LEADER {
			t.Error(plan.Offsets[2].Err)
		}
		const sent = `group: %q
			resets { partitions { topic: "a" } position { earliest {} } }
			resets { partitions { topic: "b" partitions: [3, 1] } shift_by: -2 }
			resets { partitions { topic: "c" } by_duration { seconds: 90 } }
			resets { partitions { topic: "d" } position { offset: 7 } }
			resets { partitions { topic: "e" } position { latest {} } }
			resets { partitions { topic: "f" } position { time { seconds: 2 } } }`
		wantRequest(t, four, 1, fmt.Sprintf(sent, group(0)), &coordinatorv1.ResetOffsetsRequest{})

		// A plan may be made twice; what may have been carried out is not repeated, since
		// to move by two records twice is to move by four.
		c.change(func() { four.failures = []*errorsv1.Failure{failureOf(errorsv1.Reason_REASON_INTERNAL)} })
		if _, err := admin.ResetOffsets(t.Context(), reset); err != nil {
			t.Error(err)
		}
		reset.Execute, reset.Create = true, true
		four.reset.Executed = true
		c.change(func() { four.failures = []*errorsv1.Failure{failureOf(errorsv1.Reason_REASON_INTERNAL)} })
		if _, err := admin.ResetOffsets(t.Context(), reset); ReasonOf(err) != errorsv1.Reason_REASON_INTERNAL {
			t.Errorf("executed perhaps twice: %v", err)
		}
		c.change(func() { four.failures = []*errorsv1.Failure{failureOf(errorsv1.Reason_REASON_DRAINING)} })
		if plan, err := admin.ResetOffsets(t.Context(), reset); err != nil || !plan.Executed {
			t.Errorf("executed: %+v, %v", plan, err)
		}
		wantRequest(t, four, 3, fmt.Sprintf(sent, group(0))+" execute: true create: true", &coordinatorv1.ResetOffsetsRequest{})
	})
}
