package allinone

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// TestGroups: members join over HTTP, share out, commit, and find all of it again after
// a restart of the process, with their memberships.
func TestGroups(t *testing.T) {
	t.Parallel()
	config := testConfig(t)
	config.Coordinator.LagInterval = time.Second
	c, stop := startCluster(t, config)
	client := connectTo(t, c.Address())
	if _, err := client.topics.CreateTopic(t.Context(), &metadatav1.CreateTopicRequest{Name: "orders", Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	client.awaitTopic(t, "orders")
	for i := range 10 {
		record := &logv1.Record{Value: fmt.Append(nil, i)}
		if _, err := client.log.Append(t.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Topic: "orders", Acks: logv1.Acks_ACKS_ALL, Records: []*logv1.Record{record}}}); err != nil {
			t.Fatal(err)
		}
	}
	g := groupsAt(t, c.Address())
	first := g.join("a", 0)
	a := g.receive(first)
	if got := partitions(a); got != "0 1 2 3" {
		t.Fatalf("the first member has partitions %s", got)
	}
	second := g.join("b", 0)
	b := g.receive(second)
	a = g.receive(first)
	if partitions(b) != "" || b.GetAwaitedCount() != 2 || len(strings.Fields(partitions(a))) != 2 {
		t.Fatalf("the members have %v and %v", a, b)
	}
	g.heartbeat(a)
	b = g.receive(second)
	g.heartbeat(b)
	if len(strings.Fields(partitions(b))) != 2 {
		t.Fatalf("the second member has %v", b)
	}
	has := a
	if strings.HasPrefix(partitions(b), "0") {
		has = b
	}
	commit := &coordinatorv1.CommitOffsetsRequest{Group: "g", MemberId: has.GetMemberId(), MemberEpoch: has.GetMemberEpoch(), Offsets: []*coordinatorv1.OffsetCommit{{Topic: "orders", Offset: 7, Metadata: "seven"}}}
	if res, err := g.offsets.CommitOffsets(t.Context(), commit); err != nil || res.GetResults()[0].GetFailure() != nil {
		t.Fatalf("%v, %v", res, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	c, _ = startCluster(t, config)
	g = groupsAt(t, c.Address())
	found, err := g.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "g"})
	if err != nil || len(found.GetOffsets()) != 1 || found.GetOffsets()[0].GetOffset() != 7 || found.GetOffsets()[0].GetMetadata() != "seven" {
		t.Fatalf("after the restart: %v, %v", found, err)
	}
	// What members have confirmed is not in the log; they say so again.
	g.heartbeat(a)
	g.heartbeat(b)
	again := g.receive(g.join("a", a.GetMemberEpoch()))
	if partitions(again) != partitions(a) || again.GetMemberEpoch() != a.GetMemberEpoch() {
		t.Errorf("after the restart the first member has %v, before %v", again, a)
	}
	d, err := g.groups.DescribeGroup(t.Context(), &coordinatorv1.DescribeGroupRequest{Group: "g"})
	if err != nil || len(d.GetMembers()) != 2 || d.GetState() != coordinatorv1.GroupState_GROUP_STATE_STABLE || d.GetCoordinatorAddress() != c.Address() {
		t.Fatalf("%v, %v", d, err)
	}
	if p := d.GetPartitions()[0]; p.GetCommittedOffset() != 7 || p.GetLogEndOffset() != 10 || p.GetLag() != 3 || p.GetMemberId() != has.GetMemberId() {
		t.Errorf("partition 0 is described as %v", p)
	}
	awaitMetric(t, c.Address(), `runnel_group_lag{group="g",partition="0",topic="orders"} 3`)

	// What only groups without members may do.
	_, err = g.offsets.ResetOffsets(t.Context(), toEarliest(true))
	if reason := rpcerr.ReasonOf(err); reason != errorsv1.Reason_REASON_GROUP_NOT_EMPTY {
		t.Errorf("a reset of a group with members: %v", err)
	}
	for _, member := range []string{"a", "b"} {
		if _, err := g.groups.Leave(t.Context(), &coordinatorv1.LeaveRequest{Group: "g", MemberId: member}); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := g.offsets.ResetOffsets(t.Context(), toEarliest(true))
	if err != nil || !plan.GetExecuted() || len(plan.GetOffsets()) != 4 || plan.GetOffsets()[0].GetOldOffset() != 7 || plan.GetOffsets()[0].GetLag() != 10 {
		t.Errorf("%v, %v", plan, err)
	}
	list, err := g.groups.ListGroups(t.Context(), &coordinatorv1.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 1 || list.GetGroups()[0].GetGroup() != "g" || list.GetGroups()[0].GetState() != coordinatorv1.GroupState_GROUP_STATE_EMPTY {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := g.groups.DeleteGroup(t.Context(), &coordinatorv1.DeleteGroupRequest{Group: "g"}); err != nil {
		t.Error(err)
	}
	_, err = g.groups.DescribeGroup(t.Context(), &coordinatorv1.DescribeGroupRequest{Group: "g"})
	if reason := rpcerr.ReasonOf(err); reason != errorsv1.Reason_REASON_GROUP_NOT_FOUND {
		t.Errorf("a deleted group: %v", err)
	}
}

func toEarliest(execute bool) *coordinatorv1.ResetOffsetsRequest {
	return &coordinatorv1.ResetOffsetsRequest{Group: "g", Execute: execute, Resets: []*coordinatorv1.OffsetReset{{
		Partitions: &coordinatorv1.TopicPartitionSet{Topic: "orders"},
		Target: &coordinatorv1.OffsetReset_Position{Position: &logv1.StartPosition{
			Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}},
		}},
	}}}
}

// groupClients are those of group "g" of a cluster.
type groupClients struct {
	t       *testing.T
	groups  coordinatorv1connect.GroupServiceClient
	offsets coordinatorv1connect.OffsetServiceClient
}

func groupsAt(t *testing.T, address string) groupClients {
	t.Helper()
	pool := transport.NewPool(transport.Options{})
	t.Cleanup(pool.Close)
	client := connect.NewClient(pool.Transport(address, transport.Control))
	return groupClients{t, coordinatorv1connect.NewGroupServiceClient(client), coordinatorv1connect.NewOffsetServiceClient(client)}
}

func (g groupClients) join(member string, epoch int64) coordinatorv1connect.GroupServiceJoinClientStream {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	g.t.Cleanup(cancel)
	stream, err := g.groups.Join(ctx, &coordinatorv1.JoinRequest{Group: "g", MemberId: member, MemberEpoch: epoch, Subscription: &coordinatorv1.Subscription{Topics: []string{"orders"}}})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = stream.Close() })
	return stream
}

func (g groupClients) receive(stream coordinatorv1connect.GroupServiceJoinClientStream) *coordinatorv1.JoinResponse {
	g.t.Helper()
	res, err := stream.Receive()
	if err != nil {
		g.t.Fatal(err)
	}
	return res
}

// heartbeat confirms an assignment.
func (g groupClients) heartbeat(a *coordinatorv1.JoinResponse) {
	g.t.Helper()
	if _, err := g.groups.Heartbeat(g.t.Context(), &coordinatorv1.HeartbeatRequest{Group: "g", MemberId: a.GetMemberId(), MemberEpoch: a.GetMemberEpoch()}); err != nil {
		g.t.Fatal(err)
	}
}

// partitions returns the numbers of the partitions of an assignment.
func partitions(a *coordinatorv1.JoinResponse) string {
	var out []string
	for _, set := range a.GetPartitions() {
		for _, p := range set.GetPartitions() {
			out = append(out, fmt.Sprint(p))
		}
	}
	return strings.Join(out, " ")
}

// awaitMetric waits until the metrics have a line.
func awaitMetric(t *testing.T, address, line string) {
	t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(20 * time.Second)
	for ticks := time.Tick(100 * time.Millisecond); ; <-ticks {
		res, err := http.Get("http://" + address + "/metrics") //nolint:noctx // Bounded by the deadline.
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(body), line+"\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the metrics have no %s", line)
		}
	}
}
