package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1/coordinatorv1connect"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

// commitStream is a stream of commits, as its client sees it.
type commitStream struct {
	t      *testing.T
	stream coordinatorv1connect.OffsetServiceCommitOffsetsStreamClientStream
	cancel context.CancelFunc

	mu        sync.Mutex
	responses []*coordinatorv1.CommitOffsetsStreamResponse
	// err is why the stream ended.
	err error
}

// commits opens a stream; what comes is collected.
func (n *coordinatorNode) commits(t *testing.T) *commitStream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := n.offsets.CommitOffsetsStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := &commitStream{t: t, stream: stream, cancel: cancel}
	go func() {
		for {
			res, err := stream.Receive()
			s.mu.Lock()
			if err != nil {
				s.err = err
				s.mu.Unlock()
				return
			}
			s.responses = append(s.responses, res)
			s.mu.Unlock()
		}
	}()
	return s
}

func (s *commitStream) send(id uint64, group string, offsets ...*coordinatorv1.OffsetCommit) {
	s.t.Helper()
	if err := s.stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: id, Commit: &coordinatorv1.CommitOffsetsRequest{Group: group, Offsets: offsets}}); err != nil {
		s.t.Fatal(err)
	}
}

// sendAs sends a commit of a member.
func (s *commitStream) sendAs(member *memberStream, id uint64, group string, offsets ...*coordinatorv1.OffsetCommit) {
	s.t.Helper()
	a, _ := member.latest()
	if err := s.stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: id, Commit: &coordinatorv1.CommitOffsetsRequest{
		Group: group, MemberId: a.GetMemberId(), MemberEpoch: a.GetMemberEpoch(), Offsets: offsets,
	}}); err != nil {
		s.t.Fatal(err)
	}
}

// got returns what has come so far, by request, and why the stream ended.
func (s *commitStream) got() (map[uint64]*coordinatorv1.CommitOffsetsStreamResponse, error) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	got := make(map[uint64]*coordinatorv1.CommitOffsetsStreamResponse)
	for _, res := range s.responses {
		if got[res.GetRequestId()] != nil {
			s.t.Errorf("request %d is answered twice", res.GetRequestId())
		}
		got[res.GetRequestId()] = res
	}
	return got, s.err
}

// failure returns why a request failed as a whole; false if it is not answered.
func failureIn(got map[uint64]*coordinatorv1.CommitOffsetsStreamResponse, id uint64) (errorsv1.Reason, bool) {
	return got[id].GetFailure().GetReason(), got[id] != nil
}

func committed(t *testing.T, n *coordinatorNode, group string, partition int32) int64 {
	t.Helper()
	res, err := n.offsets.FetchOffsets(t.Context(), &coordinatorv1.FetchOffsetsRequest{Group: group})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range res.GetOffsets() {
		if o.GetPartition() == partition {
			return o.GetOffset()
		}
	}
	return -1
}

// A stream answers what a call would have, each request for itself, and goes on.
func TestStreamedCommitsAreCommits(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		m.setEnd(0, 500)
		s := n.commits(t)
		requests := []*coordinatorv1.CommitOffsetsRequest{
			{Group: "a", Offsets: []*coordinatorv1.OffsetCommit{commit(0, 100)}},
			{Group: "a"},
			{Group: "", Offsets: []*coordinatorv1.OffsetCommit{commit(0, 100)}},
			{Group: "b", MemberId: "nobody", MemberEpoch: 4, Offsets: []*coordinatorv1.OffsetCommit{commit(0, 100)}},
			{Group: "a", Offsets: []*coordinatorv1.OffsetCommit{commit(0, 200), commit(9, 1), commit(1, 7)}},
			{Group: "c", Offsets: []*coordinatorv1.OffsetCommit{commit(0, 300)}},
		}
		for i, request := range requests {
			if err := s.stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: uint64(i), Commit: request}); err != nil {
				t.Fatal(err)
			}
		}
		got, _ := s.got()
		for i, request := range requests {
			streamed := got[uint64(i)]
			called, err := n.offsets.CommitOffsets(t.Context(), request)
			if (err == nil) != (streamed.GetFailure() == nil) || err != nil && reason(err) != streamed.GetFailure().GetReason() || !proto.Equal(called, streamed.GetResult()) {
				t.Errorf("request %d: the stream says %v, the call %v, %v", i, streamed, called, err)
			}
		}
		if err := s.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.got(); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v", err)
		}
		if a, c := committed(t, n, "a", 0), committed(t, n, "c", 0); a != 200 || c != 300 {
			t.Errorf("committed are %d and %d", a, c)
		}
	})
}

// A commit that waits for a leader is not overtaken by the next of its group, but by
// those of others.
func TestStreamedCommitsKeepTheOrderOfTheirGroup(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		m.setEnd(0, 500)
		s := n.commits(t)
		s.send(1, "a", commit(0, 100))
		s.send(2, "b", commit(0, 100))
		s.got()
		member := n.join(t, orders("a", "m"))
		synctest.Wait()
		if err := beat(t, n, "a", member); err != nil {
			t.Fatal(err)
		}
		resume := n.pause()
		s.sendAs(member, 3, "a", commit(2, 450)) // Its leader is asked.
		s.sendAs(member, 4, "a", commit(2, 0))
		s.send(5, "")
		got, _ := s.got()
		if len(got) != 3 || got[5].GetFailure() == nil {
			t.Fatalf("answered are %v", got)
		}
		m.mu.Lock()
		m.ends["orders/2"] = 500
		m.mu.Unlock()
		resume()
		if got, err := s.got(); len(got) != 5 || err != nil {
			t.Fatalf("answered are %v, %v", got, err)
		}
		if got := committed(t, n, "a", 2); got != 0 {
			t.Errorf("committed is %d", got)
		}
	})
}

// A commit that is carried out late, over another connection than those that its member has
// sent since, undoes none of them.
func TestLateCommitOverAnotherConnection(t *testing.T) {
	for name, late := range map[string]func(n *coordinatorNode, s *commitStream, request *coordinatorv1.CommitOffsetsRequest) func() errorsv1.Reason{
		"stream": func(_ *coordinatorNode, s *commitStream, request *coordinatorv1.CommitOffsetsRequest) func() errorsv1.Reason {
			if err := s.stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: 1, Commit: request}); err != nil {
				s.t.Fatal(err)
			}
			return func() errorsv1.Reason {
				got, _ := s.got()
				return got[1].GetResult().GetResults()[0].GetFailure().GetReason()
			}
		},
		"call": func(n *coordinatorNode, s *commitStream, request *coordinatorv1.CommitOffsetsRequest) func() errorsv1.Reason {
			done := make(chan *coordinatorv1.CommitOffsetsResponse, 1)
			go func() {
				res, err := n.offsets.CommitOffsets(s.t.Context(), request)
				if err != nil {
					s.t.Error(err)
				}
				done <- res
			}()
			return func() errorsv1.Reason { return (<-done).GetResults()[0].GetFailure().GetReason() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			inMesh(t, func(t *testing.T, m *mesh) {
				n := m.start(2, t.TempDir())
				member := n.join(t, orders("a", "m"))
				synctest.Wait()
				if err := beat(t, n, "a", member); err != nil {
					t.Fatal(err)
				}
				a, _ := member.latest()
				numbered := func(sequence uint64, offsets ...*coordinatorv1.OffsetCommit) *coordinatorv1.CommitOffsetsRequest {
					return &coordinatorv1.CommitOffsetsRequest{
						Group: "a", MemberId: a.GetMemberId(), MemberEpoch: a.GetMemberEpoch(), Offsets: offsets, CommitSequence: sequence,
					}
				}
				first, second := n.commits(t), n.commits(t)
				resume := n.pause()
				outcome := late(n, first, numbered(1, commit(2, 450))) // Its leader is asked.
				synctest.Wait()
				if err := second.stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: 2, Commit: numbered(2, commit(2, 0))}); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				m.mu.Lock()
				m.ends["orders/2"] = 500
				m.mu.Unlock()
				resume()
				if got := outcome(); got != errorsv1.Reason_REASON_STALE_COMMIT {
					t.Errorf("the late commit: %v", got)
				}
				if got := committed(t, n, "a", 2); got != 0 {
					t.Errorf("committed is %d", got)
				}
				res, err := n.offsets.CommitOffsets(t.Context(), numbered(3, commit(2, 450)))
				if err != nil || res.GetResults()[0].GetFailure() != nil {
					t.Errorf("the next commit: %v, %v", res, err)
				}
			})
		})
	}
}

// More than so many commits are not read, and nothing is lost of them.
func TestStreamedCommitsAreBounded(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		s := n.commits(t)
		s.send(0, "g", commit(0, 0))
		s.got()
		resume := n.pause()
		const all = 400
		var sent atomic.Int64
		go func() {
			for i := range all {
				s.send(uint64(1+i), fmt.Sprint("g", i%100), commit(0, 0))
				sent.Add(1)
			}
		}()
		synctest.Wait()
		if got := sent.Load(); got != 257 { // One is in the hand of the receiver.
			t.Errorf("the server takes %d commits", got)
		}
		resume()
		got, err := s.got()
		if len(got) != 1+all || err != nil {
			t.Fatalf("%d are answered, %v", len(got), err)
		}
		for id, res := range got {
			if res.GetFailure() != nil || res.GetResult().GetResults()[0].GetFailure() != nil {
				t.Errorf("request %d: %v", id, res)
			}
		}
	})
}

// Large commits are not read beyond what the memory is meant for, nor are small ones with
// large answers.
func TestStreamedCommitsAreBoundedInBytes(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		// Most are refused: there are not so many partitions.
		large, many := make([]*coordinatorv1.OffsetCommit, 256), make([]*coordinatorv1.OffsetCommit, 1024)
		for i := range large {
			large[i] = commit(int32(i), 0)
			large[i].Metadata = strings.Repeat("x", 4096)
		}
		for i := range many {
			many[i] = commit(int32(i), 0)
		}
		for name, offsets := range map[string][]*coordinatorv1.OffsetCommit{"requests": large, "answers": many} {
			s := n.commits(t)
			s.send(0, "g", commit(0, 0))
			s.got()
			resume := n.pause()
			const all = 30
			var sent atomic.Int64
			go func() {
				for i := range all {
					s.send(uint64(1+i), fmt.Sprint(name, i), offsets...)
					sent.Add(1)
				}
			}()
			synctest.Wait()
			if got := sent.Load(); got == 0 || got > 20 {
				t.Errorf("%s: the server takes %d commits", name, got)
			}
			resume()
			if got, err := s.got(); len(got) != 1+all || err != nil {
				t.Errorf("%s: %d are answered, %v", name, len(got), err)
			}
		}
	})
}

// Who shuts down answers what it has accepted, refuses what comes then, and ends streams
// that stay without an outcome.
func TestStreamOfCommitsDrains(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		patient, hasty, idle := n.commits(t), n.commits(t), n.commits(t)
		patient.send(0, "a", commit(0, 0))
		patient.got()
		resume := n.pause()
		patient.send(1, "a", commit(1, 0))
		hasty.send(1, "b", commit(1, 0))
		synctest.Wait()
		n.Drain()
		if _, err := idle.got(); reason(err) != errorsv1.Reason_REASON_DRAINING {
			t.Errorf("a stream without commits ends with %v", err)
		}
		patient.send(2, "a", commit(2, 0))
		if got, err := patient.got(); len(got) != 2 || got[2].GetFailure().GetReason() != errorsv1.Reason_REASON_DRAINING || err != nil {
			t.Errorf("with a commit under way: %v, %v", got, err)
		}
		hasty.cancel()
		synctest.Wait()
		resume()
		got, err := patient.got()
		if r, answered := failureIn(got, 1); r != 0 || !answered || reason(err) != errorsv1.Reason_REASON_DRAINING {
			t.Errorf("%v, %v", got, err)
		}
		if got := committed(t, n, "a", 2); got != -1 {
			t.Errorf("what was refused is committed: %d", got)
		}
	})
}

func TestStreamOfCommitsDoesNotDrainForever(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		s := n.commits(t)
		s.send(0, "a", commit(0, 0))
		s.got()
		resume := n.pause()
		defer resume()
		s.send(1, "a", commit(1, 0))
		s.send(2, "a", commit(2, 0))
		synctest.Wait()
		n.Drain()
		time.Sleep(4 * time.Second)
		if _, err := s.got(); err != nil {
			t.Errorf("after 4 s: %v", err)
		}
		time.Sleep(2 * time.Second)
		if got, err := s.got(); len(got) != 1 || reason(err) != errorsv1.Reason_REASON_DRAINING {
			t.Errorf("after 6 s: %v, %v", got, err)
		}
	})
}

// Groups that another coordinator has are refused by themselves, and the answer names it.
func TestStreamedCommitOfMovedGroup(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		first := m.start(2, t.TempDir())
		m.start(3, t.TempDir())
		s := first.commits(t)
		for i := range 20 {
			s.send(uint64(i), fmt.Sprint("g", i), commit(0, 0))
		}
		got, err := s.got()
		if len(got) != 20 || err != nil {
			t.Fatalf("%v, %v", got, err)
		}
		mine := 0
		for id, res := range got {
			if res.GetFailure() == nil {
				mine++
				continue
			}
			if d := res.GetFailure().GetNotCoordinator(); d.GetCoordinatorId() != 3 || d.GetCoordinatorAddress() != "coordinator-3:1" || d.GetGroup() != fmt.Sprint("g", id) {
				t.Errorf("%v", res)
			}
		}
		if mine == 0 || mine == 20 {
			t.Fatalf("%d of the groups are here", mine)
		}
		m.fence(2)
		synctest.Wait()
		for i := range 20 {
			s.send(uint64(100+i), fmt.Sprint("g", i), commit(0, 0))
		}
		got, err = s.got()
		for i := range 20 {
			if r, _ := failureIn(got, uint64(100+i)); r != errorsv1.Reason_REASON_NOT_COORDINATOR {
				t.Errorf("after all have moved: %v", got[uint64(100+i)])
			}
		}
		if err != nil {
			t.Errorf("the stream has ended: %v", err)
		}
	})
}

// What waits behind commits that take long counts its time from when it was read, and what
// the stream has no room for is read then.
func TestStreamedCommitsHaveAnEnd(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		s := n.commits(t)
		resume := n.pause() // The offsets topic is not there yet, and cannot be made.
		go func() {
			for id := range uint64(300) {
				s.send(1+id, fmt.Sprint("g", id%100), commit(0, 0))
			}
		}()
		time.Sleep(9 * time.Second)
		if got, err := s.got(); len(got) != 0 || err != nil {
			t.Errorf("after 9 s: %v, %v", got, err)
		}
		time.Sleep(2 * time.Second)
		got, err := s.got()
		if len(got) != 256 || err != nil {
			t.Errorf("after 11 s: %d are answered, %v", len(got), err)
		}
		for id := uint64(1); id <= 256; id++ {
			if got[id].GetFailure() == nil {
				t.Errorf("request %d: %v", id, got[id])
			}
		}
		resume()
		if got, err := s.got(); len(got) != 300 || err != nil || got[300].GetFailure() != nil {
			t.Errorf("in the end: %d are answered, %v, %v", len(got), got[300], err)
		}
		if ok, late := streamed(t, n, "ok"), streamed(t, n, "unavailable"); ok != 44 || late != 256 {
			t.Errorf("counted are %d and %d", ok, late)
		}
	})
}

// streamed counts the commits of streams that were answered with a code.
func streamed(t *testing.T, n *coordinatorNode, code string) uint64 {
	t.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "runnel_coordinator_streamed_commit_seconds" {
			continue
		}
		for _, metric := range f.GetMetric() {
			if metric.GetLabel()[0].GetValue() == code {
				return metric.GetHistogram().GetSampleCount()
			}
		}
	}
	return 0
}

func TestStreamRequestWithoutCommit(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		s := n.commits(t)
		if err := s.stream.Send(&coordinatorv1.CommitOffsetsStreamRequest{RequestId: 7}); err != nil {
			t.Fatal(err)
		}
		if got, err := s.got(); len(got) != 0 || reason(err) != errorsv1.Reason_REASON_INVALID_REQUEST {
			t.Errorf("%v, %v", got, err)
		}
	})
}

// What stands behind a commit when its stream breaks is not carried out later, when its
// client has long committed something else.
func TestBrokenStreamCarriesNothingOut(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.start(2, t.TempDir())
		s := n.commits(t)
		s.send(0, "a", commit(0, 0))
		s.got()
		m.setEnd(1, 500)
		resume := n.pause()
		s.send(1, "a", commit(1, 400)) // Its leader is asked.
		s.send(2, "a", commit(2, 0))
		synctest.Wait()
		s.cancel()
		synctest.Wait()
		resume()
		if _, err := n.offsets.CommitOffsets(t.Context(), &coordinatorv1.CommitOffsetsRequest{Group: "a", Offsets: []*coordinatorv1.OffsetCommit{commit(3, 0)}}); err != nil {
			t.Fatal(err)
		}
		if got := []int64{committed(t, n, "a", 1), committed(t, n, "a", 2), committed(t, n, "a", 3)}; got[0] != -1 || got[1] != -1 || got[2] != 0 {
			t.Errorf("committed are %v", got)
		}
	})
}
