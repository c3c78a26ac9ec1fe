package coordinator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// refusedJoin returns why a Join ended.
func refusedJoin(t *testing.T, n *coordinatorNode, req *coordinatorv1.JoinRequest) error {
	t.Helper()
	s := n.join(t, req)
	synctest.Wait()
	res, err := s.latest()
	if res != nil {
		t.Fatalf("admitted: %v", res)
	}
	return err
}

func TestBadJoins(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		long := strings.Repeat("x", 256)
		for name, test := range map[string]struct {
			change func(*coordinatorv1.JoinRequest)
			want   errorsv1.Reason
			says   string
		}{
			"no group":             {func(r *coordinatorv1.JoinRequest) { r.Group = "" }, errorsv1.Reason_REASON_INVALID_GROUP_ID, "1 to 255 bytes"},
			"long group":           {func(r *coordinatorv1.JoinRequest) { r.Group = long }, errorsv1.Reason_REASON_INVALID_GROUP_ID, "256 bytes"},
			"group is not text":    {func(r *coordinatorv1.JoinRequest) { r.Group = "\xff" }, errorsv1.Reason_REASON_INVALID_GROUP_ID, "UTF-8"},
			"long member":          {func(r *coordinatorv1.JoinRequest) { r.MemberId = long }, errorsv1.Reason_REASON_INVALID_REQUEST, "member_id"},
			"long instance":        {func(r *coordinatorv1.JoinRequest) { r.InstanceId = long }, errorsv1.Reason_REASON_INVALID_REQUEST, "instance_id"},
			"long client":          {func(r *coordinatorv1.JoinRequest) { r.ClientId = long }, errorsv1.Reason_REASON_INVALID_REQUEST, "client_id"},
			"no subscription":      {func(r *coordinatorv1.JoinRequest) { r.Subscription = nil }, errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, "empty"},
			"senseless topic":      {func(r *coordinatorv1.JoinRequest) { r.Subscription.Topics = []string{"a b"} }, errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, `"a b"`},
			"too many topics":      {func(r *coordinatorv1.JoinRequest) { r.Subscription.Topics = slices.Repeat([]string{"t"}, 1001) }, errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, "1001 topics"},
			"bad pattern":          {func(r *coordinatorv1.JoinRequest) { r.Subscription.TopicPattern = "or(ders" }, errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, "RE2"},
			"long pattern":         {func(r *coordinatorv1.JoinRequest) { r.Subscription.TopicPattern = strings.Repeat("x", 1025) }, errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, "1025 bytes"},
			"unknown assignor":     {func(r *coordinatorv1.JoinRequest) { r.Assignor = "best" }, errorsv1.Reason_REASON_INVALID_REQUEST, `"sticky"`},
			"short session":        {func(r *coordinatorv1.JoinRequest) { r.SessionTimeoutMs = 999 }, errorsv1.Reason_REASON_INVALID_REQUEST, "1000 to 1800000"},
			"long session":         {func(r *coordinatorv1.JoinRequest) { r.SessionTimeoutMs = 1_800_001 }, errorsv1.Reason_REASON_INVALID_REQUEST, "1000 to 1800000"},
			"negative session":     {func(r *coordinatorv1.JoinRequest) { r.SessionTimeoutMs = -1 }, errorsv1.Reason_REASON_INVALID_REQUEST, "session_timeout_ms"},
			"long rebalance":       {func(r *coordinatorv1.JoinRequest) { r.RebalanceTimeoutMs = 86_400_001 }, errorsv1.Reason_REASON_INVALID_REQUEST, "rebalance_timeout_ms"},
			"negative epoch":       {func(r *coordinatorv1.JoinRequest) { r.MemberEpoch = -1 }, errorsv1.Reason_REASON_INVALID_REQUEST, "member_epoch"},
			"epoch without member": {func(r *coordinatorv1.JoinRequest) { r.MemberId, r.MemberEpoch = "", 1 }, errorsv1.Reason_REASON_INVALID_REQUEST, "member_id is empty"},
			"epoch of nobody":      {func(r *coordinatorv1.JoinRequest) { r.MemberEpoch = 3 }, errorsv1.Reason_REASON_UNKNOWN_MEMBER, ""},
		} {
			req := orders("g", "m")
			test.change(req)
			if err := refusedJoin(t, n, req); reason(err) != test.want || !strings.Contains(fmt.Sprint(err), test.says) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A topic that does not exist is waited for, and that is said.
func TestUnknownTopicIsWaitedFor(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		req := orders("g", "m")
		req.Subscription.Topics = []string{"later"}
		s := n.join(t, req)
		synctest.Wait()
		if a, err := s.latest(); a == nil || count(a) != 0 || !slices.Equal(a.GetMissingTopics(), []string{"later"}) {
			t.Fatalf("%v, %v", a, err)
		}
		m.addTopic("later", 8, 3)
		synctest.Wait()
		if a, err := s.latest(); count(a) != 3 || len(a.GetMissingTopics()) != 0 {
			t.Errorf("%v, %v", a, err)
		}
	})
}

func TestLimits(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir(), func(c *Config) {
			c.MaxGroupMembers, c.Streams = 10, 11
			c.MinSessionTimeout, c.MaxSessionTimeout = 5*time.Second, 10*time.Second
		})
		for i := range 10 {
			n.join(t, orders("g", fmt.Sprint("m", i)))
		}
		synctest.Wait()
		if err := refusedJoin(t, n, orders("g", "one too many")); reason(err) != errorsv1.Reason_REASON_GROUP_FULL {
			t.Errorf("the eleventh member: %v", err)
		}
		last := n.join(t, orders("other", "m"))
		synctest.Wait()
		if a, err := last.latest(); a.GetSessionTimeoutMs() != 10_000 {
			t.Errorf("the default session is %v, %v", a, err)
		}
		if err := refusedJoin(t, n, orders("third", "m")); reason(err) != errorsv1.Reason_REASON_THROTTLED {
			t.Errorf("one stream too many: %v", err)
		}
		last.cancel()
		synctest.Wait()
		short := orders("third", "m")
		short.SessionTimeoutMs = 4000
		if err := refusedJoin(t, n, short); !strings.Contains(fmt.Sprint(err), "5000 to 10000") {
			t.Errorf("a session below the limit: %v", err)
		}
	})
}

func TestBadCommits(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		m.setEnd(0, 500)
		call := func(member string, epoch int64, offsets ...*coordinatorv1.OffsetCommit) (*coordinatorv1.CommitOffsetsResponse, error) {
			return n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "g", MemberId: member, MemberEpoch: epoch, Offsets: offsets})
		}
		for name, want := range map[string]struct {
			err    error
			reason errorsv1.Reason
		}{
			"none":       {second(call("", 0)), errorsv1.Reason_REASON_INVALID_REQUEST},
			"twice":      {second(call("", 0, commit(0, 1), commit(0, 2))), errorsv1.Reason_REASON_INVALID_REQUEST},
			"too many":   {second(call("", 0, slices.Repeat([]*coordinatorv1.OffsetCommit{commit(0, 1)}, 10_001)...)), errorsv1.Reason_REASON_INVALID_REQUEST},
			"epoch only": {second(call("", 4, commit(0, 1))), errorsv1.Reason_REASON_INVALID_REQUEST},
			"number only": {second(n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{
				Group: "g", CommitSequence: 1, Offsets: []*coordinatorv1.OffsetCommit{commit(0, 1)},
			})), errorsv1.Reason_REASON_INVALID_REQUEST},
			"unknown member": {second(call("nobody", 4, commit(0, 1))), errorsv1.Reason_REASON_UNKNOWN_MEMBER},
		} {
			if reason(want.err) != want.reason {
				t.Errorf("%s: %v", name, want.err)
			}
		}
		for name, test := range map[string]struct {
			offset *coordinatorv1.OffsetCommit
			want   errorsv1.Reason
		}{
			"unknown topic":     {&coordinatorv1.OffsetCommit{Topic: "nowhere"}, errorsv1.Reason_REASON_TOPIC_NOT_FOUND},
			"another topic":     {&coordinatorv1.OffsetCommit{Topic: "orders", TopicId: topicID(77), Offset: 100}, errorsv1.Reason_REASON_TOPIC_NOT_FOUND},
			"unknown partition": {commit(4, 1), errorsv1.Reason_REASON_PARTITION_NOT_FOUND},
			"no partition":      {commit(-1, 1), errorsv1.Reason_REASON_PARTITION_NOT_FOUND},
			"negative":          {commit(0, -1), errorsv1.Reason_REASON_INVALID_REQUEST},
			"beyond the end":    {commit(0, 501), errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE},
			"before the start":  {commit(0, 99), errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE},
			"long metadata":     {&coordinatorv1.OffsetCommit{Topic: "orders", Offset: 100, Metadata: strings.Repeat("x", 4097)}, errorsv1.Reason_REASON_METADATA_TOO_LARGE},
			"negative epoch":    {&coordinatorv1.OffsetCommit{Topic: "orders", Offset: 100, LeaderEpoch: proto.Int32(-1)}, errorsv1.Reason_REASON_INVALID_REQUEST},
		} {
			good := commit(1, 0)
			res, err := call("", 0, test.offset, good)
			if err != nil || len(res.GetResults()) != 2 {
				t.Fatalf("%s: %v, %v", name, res, err)
			}
			if got := res.GetResults()[0].GetFailure().GetReason(); got != test.want {
				t.Errorf("%s: %v", name, res)
			}
			if res.GetResults()[1].GetFailure() != nil {
				t.Errorf("%s fails others: %v", name, res)
			}
		}
		res, err := call("", 0, &coordinatorv1.OffsetCommit{Topic: "orders", Offset: 500, TopicId: topicID(1), LeaderEpoch: proto.Int32(3), Metadata: strings.Repeat("x", 4096)})
		if err != nil || res.GetResults()[0].GetFailure() != nil {
			t.Errorf("a good one: %v, %v", res, err)
		}

		s := n.join(t, orders("g", "m"))
		synctest.Wait()
		if err := beat(t, n, "g", s); err != nil {
			t.Fatal(err)
		}
		a, _ := s.latest()
		if _, err := call("", 0, commit(0, 100)); reason(err) != errorsv1.Reason_REASON_GROUP_NOT_EMPTY || !strings.Contains(err.Error(), "m") {
			t.Errorf("a commit by nobody in a group with members: %v", err)
		}
		if _, err := n.groups.Heartbeat(t.Context(), &coordinatorv1.HeartbeatRequest{Group: "g", MemberId: "m", MemberEpoch: a.GetMemberEpoch() + 1}); reason(err) != errorsv1.Reason_REASON_MEMBER_FENCED {
			t.Errorf("an epoch that was never given: %v", err)
		}
		if _, err := n.groups.DeleteGroup(t.Context(), &coordinatorv1.DeleteGroupRequest{Group: "g"}); reason(err) != errorsv1.Reason_REASON_GROUP_NOT_EMPTY {
			t.Errorf("a group with members is deleted: %v", err)
		}
	})
}

// A member cannot commit what nobody can have read. Asking costs nothing where the answer
// is known, and nobody is refused for what the coordinator has yet to hear.
func TestCommitBeyondTheEnd(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		m.setEnd(0, 500)
		s := n.join(t, orders("g", "m"))
		synctest.Wait()
		if err := beat(t, n, "g", s); err != nil {
			t.Fatal(err)
		}
		a, _ := s.latest()
		call := func(member string, offsets ...*coordinatorv1.OffsetCommit) (*coordinatorv1.CommitOffsetsResponse, error) {
			return n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "g", MemberId: member, MemberEpoch: a.GetMemberEpoch(), Offsets: offsets})
		}
		// listed returns how often leaders were asked.
		listed := func() int {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.listed
		}
		check := func(what string, want errorsv1.Reason, asked int, offset *coordinatorv1.OffsetCommit) {
			t.Helper()
			before := listed()
			res, err := call("m", offset, commit(1, 0))
			if err != nil || len(res.GetResults()) != 2 || res.GetResults()[1].GetFailure() != nil {
				t.Fatalf("%s: %v, %v", what, res, err)
			}
			failure := res.GetResults()[0].GetFailure()
			if failure.GetReason() != want || want != 0 && !strings.Contains(failure.GetMessage(), fmt.Sprint("which is ", m.ends["orders/0"])) {
				t.Errorf("%s: %v", what, failure)
			}
			if got := listed() - before; got != asked {
				t.Errorf("%s: leaders are asked %d times, want %d", what, got, asked)
			}
		}
		const beyond = errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE
		check("one too many", beyond, 2, commit(0, 501))
		check("the end", 0, 0, commit(0, 500))
		check("below what is known", 0, 0, commit(0, 10))
		m.setEnd(0, 510)
		check("a fresh append", 0, 1, commit(0, 510))
		go func() {
			time.Sleep(100 * time.Millisecond)
			m.setEnd(0, 520)
		}()
		check("an append that the leader is late to tell of", 0, 2, commit(0, 520))
		newer := commit(0, 900)
		newer.LeaderEpoch = proto.Int32(4)
		check("a leader that is not known here", 0, 0, newer)
		m.elect(0, 300)
		synctest.Wait()
		check("what an unclean election has cut off", beyond, 2, commit(0, 520))
		check("what it has not", 0, 0, commit(0, 300))
		m.mu.Lock()
		m.leaderless = true
		m.mu.Unlock()
		check("no leader can say", 0, 1, commit(0, 400))
		if _, err := call("nobody", commit(0, 400)); reason(err) != errorsv1.Reason_REASON_UNKNOWN_MEMBER {
			t.Errorf("a member that is none: %v", err)
		}
		m.mu.Lock()
		m.leaderless = false
		m.mu.Unlock()
		if _, err := call("nobody", commit(0, 400)); reason(err) != errorsv1.Reason_REASON_UNKNOWN_MEMBER {
			t.Errorf("a member that is none, beyond the end: %v", err)
		}
	})
}

func second[A any](_ A, err error) error { return err }

// A member that stops its heartbeats loses its place although its stream stands.
func TestSilentMemberIsRemoved(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		silent := n.join(t, orders("g", "silent"))
		synctest.Wait()
		if err := beat(t, n, "g", silent); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, err := silent.latest(); reason(err) != errorsv1.Reason_REASON_UNKNOWN_MEMBER {
			t.Errorf("its stream ended with %v", err)
		}
	})
}

// Two processes with one instance id: the older one is told.
func TestStaticMemberIsFenced(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		req := orders("g", "old")
		req.InstanceId = "static"
		old := n.join(t, req)
		synctest.Wait()
		if err := beat(t, n, "g", old); err != nil {
			t.Fatal(err)
		}
		req = orders("g", "new")
		req.InstanceId = "static"
		young := n.join(t, req)
		synctest.Wait()
		if _, err := old.latest(); reason(err) != errorsv1.Reason_REASON_INSTANCE_FENCED {
			t.Errorf("the older one ended with %v", err)
		}
		// The older one may be reading until its session has ended.
		if a, err := young.latest(); count(a)+int(a.GetAwaitedCount()) != 4 {
			t.Errorf("the younger one has %v, %v", a, err)
		}
	})
}

func TestResetOffsets(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		m.setEnd(0, 500) // Its first offset is 100.
		create := false
		reset := func(execute bool, resets ...*coordinatorv1.OffsetReset) (*coordinatorv1.ResetOffsetsResponse, error) {
			return n.offsets.ResetOffsets(t.Context(), &coordinatorv1.ResetOffsetsRequest{Group: "g", Resets: resets, Execute: execute, Create: create})
		}
		set := &coordinatorv1.TopicPartitionSet{Topic: "orders", Partitions: []int32{0}}
		at := func(p *logv1.StartPosition) *coordinatorv1.OffsetReset {
			return &coordinatorv1.OffsetReset{Partitions: set, Target: &coordinatorv1.OffsetReset_Position{Position: p}}
		}
		offset := func(o int64) *coordinatorv1.OffsetReset {
			return at(&logv1.StartPosition{Position: &logv1.StartPosition_Offset{Offset: o}})
		}
		shift := func(by int64) *coordinatorv1.OffsetReset {
			return &coordinatorv1.OffsetReset{Partitions: set, Target: &coordinatorv1.OffsetReset_ShiftBy{ShiftBy: by}}
		}
		for _, execute := range []bool{false, true} {
			if _, err := reset(execute, offset(300)); reason(err) != errorsv1.Reason_REASON_GROUP_NOT_FOUND || !strings.Contains(err.Error(), `"g"`) {
				t.Errorf("a group that does not exist: %v", err)
			}
		}
		create = true
		if res, err := reset(false, shift(1)); err != nil || res.GetOffsets()[0].GetFailure().GetReason() != errorsv1.Reason_REASON_INVALID_REQUEST || res.GetOffsets()[0].GetNewOffset() != -1 {
			t.Errorf("a shift from nowhere: %v, %v", res, err)
		}
		if _, err := reset(true, offset(300)); err != nil {
			t.Fatal(err)
		}
		create = false
		for name, test := range map[string]struct {
			reset     *coordinatorv1.OffsetReset
			to, clamp int64 // clamp is -1 where nothing is.
		}{
			"earliest":           {at(&logv1.StartPosition{Position: &logv1.StartPosition_Earliest{Earliest: &logv1.Earliest{}}}), 100, -1},
			"latest":             {at(&logv1.StartPosition{Position: &logv1.StartPosition_Latest{Latest: &logv1.Latest{}}}), 500, -1},
			"unset":              {at(nil), 500, -1},
			"offset":             {offset(200), 200, -1},
			"offset too low":     {offset(20), 100, 20},
			"offset too high":    {offset(2000), 500, 2000},
			"forward":            {shift(2), 302, -1},
			"back":               {shift(-2), 298, -1},
			"forward to the end": {shift(201), 500, 501},
			"far forward":        {shift(1<<63 - 1), 500, 1<<63 - 1},
			"far back":           {shift(-1000), 100, -700},
			"time":               {at(&logv1.StartPosition{Position: &logv1.StartPosition_Time{Time: timestamppb.New(time.UnixMilli(333))}}), 333, -1},
			"long ago":           {&coordinatorv1.OffsetReset{Partitions: set, Target: &coordinatorv1.OffsetReset_ByDuration{ByDuration: durationpb.New(time.Hour)}}, 500, -1},
		} {
			res, err := reset(false, test.reset)
			if err != nil || len(res.GetOffsets()) != 1 || res.GetExecuted() {
				t.Fatalf("%s: %v, %v", name, res, err)
			}
			p := res.GetOffsets()[0]
			if p.GetOldOffset() != 300 || p.GetNewOffset() != test.to || p.GetLag() != 500-test.to || p.GetLogStartOffset() != 100 || p.GetLogEndOffset() != 500 {
				t.Errorf("%s: %v", name, p)
			}
			if clamped := p.ClampedFrom != nil; clamped != (test.clamp != -1) || clamped && p.GetClampedFrom() != test.clamp {
				t.Errorf("%s: clamped from %v", name, p)
			}
		}
		for name, test := range map[string]struct {
			resets []*coordinatorv1.OffsetReset
			want   errorsv1.Reason
		}{
			"nothing":         {nil, errorsv1.Reason_REASON_INVALID_REQUEST},
			"unknown topic":   {[]*coordinatorv1.OffsetReset{{Partitions: &coordinatorv1.TopicPartitionSet{Topic: "nowhere"}, Target: shift(1).Target}}, errorsv1.Reason_REASON_TOPIC_NOT_FOUND},
			"twice":           {[]*coordinatorv1.OffsetReset{shift(1), shift(2)}, errorsv1.Reason_REASON_INVALID_REQUEST},
			"no target":       {[]*coordinatorv1.OffsetReset{{Partitions: set}}, errorsv1.Reason_REASON_INVALID_REQUEST},
			"negative offset": {[]*coordinatorv1.OffsetReset{offset(-1)}, errorsv1.Reason_REASON_INVALID_REQUEST},
		} {
			if _, err := reset(true, test.resets...); reason(err) != test.want {
				t.Errorf("%s: %v", name, err)
			}
		}
		// Nothing is moved if one partition is not.
		res, err := reset(true, offset(400), &coordinatorv1.OffsetReset{Partitions: &coordinatorv1.TopicPartitionSet{Topic: "orders", Partitions: []int32{9}}, Target: shift(1).Target})
		if err != nil || res.GetExecuted() || res.GetOffsets()[1].GetFailure().GetReason() != errorsv1.Reason_REASON_PARTITION_NOT_FOUND {
			t.Errorf("%v, %v", res, err)
		}
		found, err := n.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: "g", Partitions: []*coordinatorv1.TopicPartitionSet{set}})
		if err != nil || len(found.GetOffsets()) != 1 || found.GetOffsets()[0].GetOffset() != 300 {
			t.Errorf("%v, %v", found, err)
		}
		n.join(t, orders("g", "the member"))
		synctest.Wait()
		for _, execute := range []bool{false, true} {
			if _, err := reset(execute, offset(200)); reason(err) != errorsv1.Reason_REASON_GROUP_NOT_EMPTY || !strings.Contains(err.Error(), "the member") {
				t.Errorf("a group with members: %v", err)
			}
		}
	})
}

func TestDeleteOffsets(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		for p := range int32(2) {
			if _, err := n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "g", Offsets: []*coordinatorv1.OffsetCommit{commit(p, 0)}}); err != nil {
				t.Fatal(err)
			}
		}
		forget := func(group, topic string, partitions ...int32) (*coordinatorv1.DeleteOffsetsResponse, error) {
			return n.offsets.DeleteOffsets(t.Context(), &coordinatorv1.DeleteOffsetsRequest{Group: group, Partitions: []*coordinatorv1.TopicPartitionSet{{Topic: topic, Partitions: partitions}}})
		}
		if _, err := n.offsets.DeleteOffsets(t.Context(), &coordinatorv1.DeleteOffsetsRequest{Group: "g"}); reason(err) != errorsv1.Reason_REASON_INVALID_REQUEST {
			t.Errorf("nothing: %v", err)
		}
		if _, err := forget("g", "nowhere"); reason(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND {
			t.Errorf("an unknown topic: %v", err)
		}
		if _, err := forget("unknown", "orders"); reason(err) != errorsv1.Reason_REASON_GROUP_NOT_FOUND {
			t.Errorf("an unknown group: %v", err)
		}
		if res, err := forget("g", "orders", 1); err != nil || len(res.GetDeleted()) != 1 || res.GetDeleted()[0].GetPartition() != 1 {
			t.Errorf("one partition: %v, %v", res, err)
		}
		if res, err := forget("g", "orders"); err != nil || len(res.GetDeleted()) != 1 || res.GetDeleted()[0].GetPartition() != 0 {
			t.Errorf("the rest: %v, %v", res, err)
		}
	})
}

// Nothing is answered while the metadata service has not spoken, and the offsets
// topic is asked for once.
func TestOffsetsTopicIsAskedForOnce(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		resume := n.pause()
		answers := make(chan error, 20)
		for i := range cap(answers) {
			go func() {
				_, err := n.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: fmt.Sprint(i)})
				answers <- err
			}()
		}
		synctest.Wait()
		resume()
		for range cap(answers) {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		if m.prepared != 1 {
			t.Errorf("asked %d times", m.prepared)
		}
		// And those who wait for it in vain hear why.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.groups.ListGroups(ctx, &coordinatorv1.ListGroupsRequest{States: []coordinatorv1.GroupState{9}}); reason(err) != errorsv1.Reason_REASON_INVALID_REQUEST {
			t.Errorf("an unknown state: %v", err)
		}
		e, _ := rpcerr.Parse(second(n.groups.DescribeGroup(ctx, &coordinatorv1.DescribeGroupRequest{Group: "nobody"})))
		if e == nil || e.Reason != errorsv1.Reason_REASON_GROUP_NOT_FOUND {
			t.Errorf("an unknown group: %v", e)
		}
	})
}
