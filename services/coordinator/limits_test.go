package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// A process with an instance id that dies again and again leaves members behind that count
// until they are gone, at the next coordinator, too.
func TestSupersededMembersCount(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		dir := t.TempDir()
		few := func(c *Config) { c.MaxGroupMembers = 3 }
		n := m.start(2, dir, few)
		static := func(member string) *coordinatorv1.JoinRequest {
			req := orders("g", member)
			req.InstanceId = "static"
			return req
		}
		for _, req := range []*coordinatorv1.JoinRequest{orders("g", "a"), orders("g", "b"), static("first"), static("second")} {
			s := n.join(t, req)
			synctest.Wait()
			if a, err := s.latest(); a == nil {
				t.Fatalf("%s: %v", req.GetMemberId(), err)
			}
		}
		full := func() {
			t.Helper()
			if err := refusedJoin(t, n, static("third")); reason(err) != errorsv1.Reason_REASON_GROUP_FULL || !strings.Contains(err.Error(), "1 of them superseded") {
				t.Errorf("one too many beside a superseded member: %v", err)
			}
		}
		full()
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		n = m.start(2, dir, few)
		full()
		if _, err := n.groups.Leave(t.Context(), &coordinatorv1.LeaveRequest{Group: "g", MemberId: "first"}); err != nil {
			t.Fatal(err)
		}
		s := n.join(t, static("third"))
		synctest.Wait()
		if a, err := s.latest(); a == nil || a.GetMemberCount() != 3 {
			t.Errorf("once the superseded member is gone: %v, %v", a, err)
		}
	})
}

// A group whose last offset is deleted stays for a minute, so that whoever has deleted it
// still finds the group, and no longer.
func TestBareGroupStaysForAMinute(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		dir := t.TempDir()
		n := m.start(2, dir)
		there := func(want bool) {
			t.Helper()
			listed, err := n.groups.ListGroups(t.Context(), &coordinatorv1.ListGroupsRequest{})
			if err != nil || slices.ContainsFunc(listed.GetGroups(), func(g *coordinatorv1.GroupSummary) bool { return g.GetGroup() == "g" }) != want {
				t.Errorf("listed: %v, %v", listed, err)
			}
			described, err := n.groups.DescribeGroup(t.Context(), &coordinatorv1.DescribeGroupRequest{Group: "g"})
			if want && (err != nil || described.GetState() != coordinatorv1.GroupState_GROUP_STATE_EMPTY) || !want && reason(err) != errorsv1.Reason_REASON_GROUP_NOT_FOUND {
				t.Errorf("described: %v, %v", described, err)
			}
		}
		if _, err := n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "g", Offsets: []*coordinatorv1.OffsetCommit{commit(0, 0)}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		there(true)
		if _, err := n.offsets.DeleteOffsets(t.Context(), &coordinatorv1.DeleteOffsetsRequest{Group: "g", Partitions: []*coordinatorv1.TopicPartitionSet{{Topic: "orders"}}}); err != nil {
			t.Fatal(err)
		}
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		n = m.start(2, dir)
		time.Sleep(59 * time.Second)
		there(true)
		time.Sleep(2 * time.Second)
		there(false)
	})
}

// Offsets that take more room than a batch should have are deleted in several batches, and
// answered as one.
func TestManyOffsetsAreDeleted(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		const partitions, atOnce = 30_000, 10_000
		n := m.start(2, t.TempDir())
		m.addTopic("wide", 8, partitions)
		for first := int32(0); first < partitions; first += atOnce {
			req := &coordinatorv1.CommitOffsetsRequest{Group: "g"}
			for i := range int32(atOnce) {
				req.Offsets = append(req.Offsets, &coordinatorv1.OffsetCommit{Topic: "wide", Partition: first + i})
			}
			if _, err := n.offsets.CommitOffsets(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		before := m.appends
		deleted, err := n.offsets.DeleteOffsets(t.Context(), &coordinatorv1.DeleteOffsetsRequest{Group: "g", Partitions: []*coordinatorv1.TopicPartitionSet{{Topic: "wide"}}})
		if err != nil || len(deleted.GetDeleted()) != partitions {
			t.Fatalf("%d deleted, %v", len(deleted.GetDeleted()), err)
		}
		for i, o := range deleted.GetDeleted() {
			if o.GetPartition() != int32(i) {
				t.Fatalf("partition %d comes at place %d", o.GetPartition(), i)
			}
		}
		if appends := m.appends - before; appends < 2 {
			t.Errorf("deleted with %d appends: make it more", appends)
		}
		left, err := n.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "g"})
		if err != nil || len(left.GetOffsets()) != 0 {
			t.Errorf("%d are left, %v", len(left.GetOffsets()), err)
		}
	})
}

// What people are shown as it is has no control characters: no name, and metadata none but
// those of text in lines.
func TestControlCharacters(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		ctx := t.Context()
		for _, bad := range []string{"\x00", "a\x1b[2Jb", "a\nb", "a\tb", "a\x7f", "a\u0085b"} {
			for what, err := range map[string]error{
				"DescribeGroup": second(n.groups.DescribeGroup(ctx, &coordinatorv1.DescribeGroupRequest{Group: bad})),
				"DeleteGroup":   second(n.groups.DeleteGroup(ctx, &coordinatorv1.DeleteGroupRequest{Group: bad})),
				"Heartbeat":     second(n.groups.Heartbeat(ctx, &coordinatorv1.HeartbeatRequest{Group: bad, MemberId: "m", MemberEpoch: 1})),
				"Leave":         second(n.groups.Leave(ctx, &coordinatorv1.LeaveRequest{Group: bad, MemberId: "m"})),
				"Join":          refusedJoin(t, n, orders(bad, "m")),
				"CommitOffsets": second(n.offsets.CommitOffsets(ctx, &coordinatorv1.CommitOffsetsRequest{Group: bad, Offsets: []*coordinatorv1.OffsetCommit{commit(0, 0)}})),
				"FetchOffsets":  second(n.offsets.FetchOffsets(ctx, &coordinatorv1.FetchOffsetsRequest{Group: bad})),
				"DeleteOffsets": second(n.offsets.DeleteOffsets(ctx, &coordinatorv1.DeleteOffsetsRequest{Group: bad, Partitions: []*coordinatorv1.TopicPartitionSet{{Topic: "orders"}}})),
				"ResetOffsets":  second(n.offsets.ResetOffsets(ctx, &coordinatorv1.ResetOffsetsRequest{Group: bad, Create: true, Resets: []*coordinatorv1.OffsetReset{{Partitions: &coordinatorv1.TopicPartitionSet{Topic: "orders"}}}})),
			} {
				if reason(err) != errorsv1.Reason_REASON_INVALID_GROUP_ID || !strings.Contains(fmt.Sprint(err), "control characters") || strings.Contains(fmt.Sprint(err), bad) {
					t.Errorf("%s in group %q: %v", what, bad, err)
				}
			}
			names := orders("g", "m")
			for what, name := range map[string]*string{"member": &names.MemberId, "instance": &names.InstanceId, "client": &names.ClientId} {
				*name = bad
				if err := refusedJoin(t, n, names); reason(err) != errorsv1.Reason_REASON_INVALID_REQUEST || strings.Contains(fmt.Sprint(err), bad) {
					t.Errorf("%s %q: %v", what, bad, err)
				}
				*name = "fine"
			}
			for what, err := range map[string]error{
				"Heartbeat": second(n.groups.Heartbeat(ctx, &coordinatorv1.HeartbeatRequest{Group: "g", MemberId: bad, MemberEpoch: 1})),
				"Leave":     second(n.groups.Leave(ctx, &coordinatorv1.LeaveRequest{Group: "g", MemberId: bad})),
				"Commit":    second(n.offsets.CommitOffsets(ctx, &coordinatorv1.CommitOffsetsRequest{Group: "g", MemberId: bad, Offsets: []*coordinatorv1.OffsetCommit{commit(0, 0)}})),
			} {
				if reason(err) != errorsv1.Reason_REASON_INVALID_REQUEST || strings.Contains(fmt.Sprint(err), bad) {
					t.Errorf("%s of member %q: %v", what, bad, err)
				}
			}
		}
		if listed, err := n.groups.ListGroups(ctx, &coordinatorv1.ListGroupsRequest{}); err != nil || len(listed.GetGroups()) != 0 {
			t.Errorf("refused requests have left %v, %v", listed, err)
		}
		for metadata, want := range map[string]errorsv1.Reason{
			"\x00": errorsv1.Reason_REASON_INVALID_REQUEST, "a\x1b[2Jb": errorsv1.Reason_REASON_INVALID_REQUEST, "a\u0085b": errorsv1.Reason_REASON_INVALID_REQUEST,
			"two\tcolumns\r\ntwo lines\n": errorsv1.Reason_REASON_UNSPECIFIED,
		} {
			offset := commit(0, 0)
			offset.Metadata = metadata
			res, err := n.offsets.CommitOffsets(ctx, &coordinatorv1.CommitOffsetsRequest{Group: "g", Offsets: []*coordinatorv1.OffsetCommit{offset}})
			if failure := res.GetResults()[0].GetFailure(); err != nil || failure.GetReason() != want || want != 0 && strings.Contains(failure.GetMessage(), metadata) {
				t.Errorf("metadata %q: %v, %v", metadata, res, err)
			}
		}
	})
}
