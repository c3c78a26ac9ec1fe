package storage

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

func allInSync(p cluster.Partition) bool {
	return p.Leader != cluster.NoNode && len(p.ISR) == len(p.Replicas)
}

// A node that is told to stop serves on until another leads, and has then nothing
// to wait for.
func TestStopGivesAwayLeadershipFirst(t *testing.T) {
	t.Parallel()
	r := newReplicaSet(t, 1, 2, 3)
	for id := range int32(3) {
		r.start(id + 1)
	}
	leader := r.controller.await(t, allInSync).Leader
	asked, grant := make(chan cluster.NodeID, 10), make(chan struct{})
	r.controller.setLeave(func(_ context.Context, id cluster.NodeID) error {
		asked <- id
		<-grant
		return nil
	})
	r.produce("before")
	r.nodes[int32(leader)].cancel()
	select {
	case id := <-asked:
		if id != leader {
			t.Fatalf("node %d leaves, node %d was told to", id, leader)
		}
	case err := <-r.nodes[int32(leader)].done:
		t.Fatalf("it has stopped, with %v, and has given nothing away", err)
	}
	// Nobody else leads yet, and streams and calls are served.
	r.produce("meanwhile")
	if got := r.read(); !slices.Equal(got, []string{"before", "meanwhile"}) {
		t.Errorf("read %v", got)
	}
	close(grant)
	moved := r.controller.await(t, func(p cluster.Partition) bool { return p.Leader != leader })
	if elected := r.controller.elected(moved.LeaderEpoch); elected.Leader == cluster.NoNode || len(elected.ISR) != 3 {
		t.Errorf("moved to %+v", elected)
	}
	r.produce("moved")
	if err := r.nodes[int32(leader)].ends(); err != nil {
		t.Fatal(err)
	}
	r.produce("after")
	if got := r.read(); !slices.Equal(got, []string{"before", "meanwhile", "moved", "after"}) {
		t.Errorf("read %v", got)
	}
	if stopped := r.controller.await(t, func(p cluster.Partition) bool { return len(p.ISR) == 2 }); stopped.Leader != moved.Leader || stopped.LeaderEpoch != moved.LeaderEpoch {
		t.Errorf("when it had stopped the partition was %+v, before %+v", stopped, moved)
	}
	// Followers have nothing to give away, and ask for nothing.
	r.stop(int32(6 - leader - moved.Leader))
	select {
	case id := <-asked:
		t.Errorf("node %d asked to leave", id)
	default:
	}
}

// What was not possible at first is asked for again; what nobody answers, or nobody
// knows how to do, is given up.
func TestLeaveIsBounded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		grace time.Duration
		// answer is that to the n-th call, from 1.
		answer func(n int) error
		calls  int
		most   time.Duration
	}{
		{"asks again", time.Minute, func(n int) error {
			if n < 3 {
				return rpcerr.New(errorsv1.Reason_REASON_NOT_CONTROLLER, "there is none")
			}
			return nil
		}, 3, 20 * time.Second},
		{"no answer", 500 * time.Millisecond, func(int) error { return errors.New("nobody is there") }, 2, 20 * time.Second},
		{"refused for good", time.Minute, func(int) error {
			return rpcerr.New(errorsv1.Reason_REASON_STALE_NODE_EPOCH, "another process has registered")
		}, 1, 20 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newReplicaSet(t, 1, 2)
			for id := range int32(2) {
				r.start(id+1, func(c *Config) { c.Grace = test.grace })
			}
			leader := r.controller.await(t, allInSync).Leader
			r.produce("x")
			calls := 0
			r.controller.setLeave(func(context.Context, cluster.NodeID) error {
				calls++
				return test.answer(calls)
			})
			began := time.Now()
			r.stop(int32(leader))
			if took := time.Since(began); calls < test.calls || test.calls == 1 && calls > 1 || took > test.most {
				t.Errorf("it took %d calls and %v", calls, took)
			}
			if p := r.controller.await(t, func(p cluster.Partition) bool { return len(p.ISR) == 1 }); p.Leader == leader {
				t.Errorf("it leads on: %+v", p)
			}
		})
	}
}

// Who is alone has nobody to wait for.
func TestAloneNobodyIsAsked(t *testing.T) {
	t.Parallel()
	r := newReplicaSet(t, 1)
	r.start(1)
	r.produce("x")
	r.controller.setLeave(func(context.Context, cluster.NodeID) error {
		t.Error("it asks to leave")
		return nil
	})
	r.stop(1)
}

func TestOthers(t *testing.T) {
	t.Parallel()
	const self = 1
	for _, test := range []struct {
		name  string
		state func(rules.NodeState) rules.NodeState
		isr   []cluster.NodeID
		want  int
	}{
		{"live and in sync", func(n rules.NodeState) rules.NodeState { return n }, []cluster.NodeID{1, 2}, 1},
		{"not in sync", func(n rules.NodeState) rules.NodeState { return n }, []cluster.NodeID{1}, 0},
		{"fenced", func(n rules.NodeState) rules.NodeState { n.Live = false; return n }, []cluster.NodeID{1, 2}, 0},
		{"leaving too", func(n rules.NodeState) rules.NodeState { n.Leaving = true; return n }, []cluster.NodeID{1, 2}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newController(t, "orders", 1, 2)
			for id := int32(1); id <= 2; id++ {
				c.set(id, rules.NodeState{Epoch: 1, Live: true}, nil)
			}
			c.set(2, test.state(c.nodes[2]), nil)
			c.partition.Leader, c.partition.ISR = self, test.isr
			c.publish()
			if got := others(c.view.Image(), self); got != test.want {
				t.Errorf("%d, want %d", got, test.want)
			}
			if got := others(c.view.Image(), 2); got != 0 {
				t.Errorf("a follower gives away %d", got)
			}
		})
	}
	if got := others(nil, self); got != 0 {
		t.Errorf("%d where nothing is known", got)
	}
}
