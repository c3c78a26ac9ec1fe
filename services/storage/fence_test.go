package storage

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagepeerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	storagepeerv1connect "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1/peerv1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

// coordinator writes the partition of a replica set.
type coordinator struct {
	*replicaSet
	epoch int64
	// end is where it believes that the log ends.
	end int64
}

func (c *coordinator) at(node int32) storagepeerv1connect.FencedAppendServiceClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	return storagepeerv1connect.NewFencedAppendServiceClient(connect.NewClient(c.peers[peerAddress(node)]))
}

func (c *coordinator) partition() cluster.Partition {
	return c.controller.view.Image().Topics()[0].Partitions[0]
}

func (c *coordinator) topic() []byte {
	id := c.controller.view.Image().Topics()[0].ID
	return id[:]
}

// write appends a batch at a node, within a time; expected is -1 for the fence.
func (c *coordinator) write(node int32, leaderEpoch cluster.LeaderEpoch, expected int64, within time.Duration) (*storagepeerv1.FencedAppendResponse, error) {
	c.t.Helper()
	var b recordbatch.Builder
	if err := b.Append([]byte("key"), []byte("value"), nil, 1000); err != nil {
		c.t.Fatal(err)
	}
	batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), within)
	defer cancel()
	return c.at(node).FencedAppend(ctx, &storagepeerv1.FencedAppendRequest{
		TopicId: c.topic(), LeaderEpoch: int32(leaderEpoch), CoordinatorEpoch: c.epoch, ExpectedOffset: expected, Batch: batch,
	})
}

// append appends at whoever leads, and goes on from there. What is refused while leaders
// change is tried again.
func (c *coordinator) append(expected int64) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		c.leader()
		p := c.partition()
		res, err := c.write(int32(p.Leader), p.LeaderEpoch, expected, 10*time.Second)
		if err == nil {
			c.end = res.GetBaseOffset() + 1
			if res.GetHighWatermark() < c.end || cluster.LeaderEpoch(res.GetLeaderEpoch()) != p.LeaderEpoch {
				c.t.Fatalf("acknowledged with %v", res)
			}
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("coordinator %d, at %d: %v", c.epoch, expected, err)
		}
	}
}

// check asks a node whether the claim holds.
func (c *coordinator) check(node int32) error {
	c.t.Helper()
	res, err := c.at(node).CheckFence(c.t.Context(), &storagepeerv1.CheckFenceRequest{Fences: []*storagepeerv1.Fence{
		{TopicId: c.topic(), CoordinatorEpoch: c.epoch, ExpectedOffset: c.end},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	if f := res.GetResults()[0].GetFailure(); f != nil {
		return rpcerr.FromFailure(f)
	}
	return nil
}

// startCoordinated returns three nodes that are in sync, and two coordinators of their
// partition.
func startCoordinated(t *testing.T) (r *replicaSet, before, after *coordinator) {
	t.Helper()
	r = newReplicaSetOf(t, "__consumer_offsets", 1, 2, 3)
	for id := range r.dirs {
		r.start(id)
	}
	r.inSync(3)
	return r, &coordinator{replicaSet: r, epoch: 4}, &coordinator{replicaSet: r, epoch: 5}
}

// A coordinator that was superseded writes nothing and is confirmed by nobody: not by
// the next leaders of its partition, not after all of them were started again, and not
// by a leader that was cut off and does not know that anything has happened.
func TestZombieCoordinator(t *testing.T) {
	t.Parallel()
	const fenced = errorsv1.Reason_REASON_COORDINATOR_FENCED
	r, before, after := startCoordinated(t)
	before.append(-1)
	before.append(before.end)
	if err := before.check(r.leader()); err != nil {
		t.Fatalf("the only coordinator: %v", err)
	}
	zombie := r.inSync(3).Leader
	leaderEpoch := before.partition().LeaderEpoch
	r.isolate(int32(zombie), true, true)
	r.controller.setLive(int32(zombie), false)
	r.controller.await(t, func(p cluster.Partition) bool { return p.Leader != cluster.NoNode && p.Leader != zombie })
	after.append(-1)
	if after.end != before.end+1 {
		t.Errorf("the next fence is at %d, want %d", after.end-1, before.end)
	}
	wantReason(t, "the old claim at a leader that was cut off", before.check(int32(zombie)), errorsv1.Reason_REASON_TIMED_OUT)
	_, err := before.write(int32(zombie), leaderEpoch, before.end, time.Second)
	wantReason(t, "an append there", err, errorsv1.Reason_REASON_TIMED_OUT)
	refused := func(what string) {
		t.Helper()
		r.leader()
		p := before.partition()
		for _, expected := range []int64{-1, before.end, after.end} {
			_, err := before.write(int32(p.Leader), p.LeaderEpoch, expected, 10*time.Second)
			wantReason(t, what, err, fenced)
		}
		wantReason(t, what, before.check(int32(p.Leader)), fenced)
	}
	refused("at the next leader")
	after.append(after.end)
	if err := after.check(r.leader()); err != nil {
		t.Errorf("the present coordinator: %v", err)
	}

	r.isolate(int32(zombie), false, true)
	r.controller.setLive(int32(zombie), true)
	r.inSync(3)
	for id := range r.dirs {
		r.stop(id)
		r.start(id)
		r.inSync(3)
	}
	refused("when all were started again")
	for id := range r.dirs {
		if r.leader() == id {
			continue
		}
		for other := range r.dirs {
			r.controller.setLive(other, other == id)
		}
		r.controller.await(t, func(p cluster.Partition) bool { return int32(p.Leader) == id })
		for other := range r.dirs {
			r.controller.setLive(other, true)
		}
		r.inSync(3)
		refused("at each of them")
	}
	after.append(after.end)
}

// An append that is not acknowledged has an unknown outcome: the fence anew tells. Below
// min.insync.replicas nothing is appended, and no claim is confirmed.
func TestFencedAppendWithTooFewReplicas(t *testing.T) {
	t.Parallel()
	r, c, _ := startCoordinated(t)
	c.append(-1)
	leads := r.inSync(3).Leader
	for id := range r.dirs {
		if id != int32(leads) {
			r.isolate(id, true, false)
		}
	}
	_, err := c.write(int32(leads), c.partition().LeaderEpoch, c.end, time.Second)
	wantReason(t, "with silent followers", err, errorsv1.Reason_REASON_TIMED_OUT)
	_, err = c.write(int32(leads), c.partition().LeaderEpoch, c.end, time.Second)
	wantReason(t, "the same again", err, errorsv1.Reason_REASON_COORDINATOR_FENCED)
	for id := range r.dirs {
		if id != int32(leads) {
			r.controller.setLive(id, false)
		}
	}
	r.inSync(1)
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err = c.write(int32(leads), c.partition().LeaderEpoch, c.end+1, time.Second)
		if rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_TIMED_OUT || time.Now().After(deadline) {
			break
		}
		c.end++ // It was appended: the leader has not learned of its ISR yet.
	}
	wantReason(t, "below min.insync.replicas", err, errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	c.end++
	wantReason(t, "a claim", c.check(int32(leads)), errorsv1.Reason_REASON_NOT_ENOUGH_REPLICAS)
	for id := range r.dirs {
		r.isolate(id, false, false)
		r.controller.setLive(id, true)
	}
	r.inSync(3)
	end := c.end
	c.append(-1)
	if c.end != end+1 {
		t.Errorf("the log ends at %d, want %d: what was not refused is in it", c.end, end+1)
	}
	if err := c.check(r.leader()); err != nil {
		t.Error(err)
	}
}

// Clients do not reach the service.
func TestFencedAppendsAreNotPublic(t *testing.T) {
	t.Parallel()
	r := newReplicaSet(t, 1)
	r.start(1)
	_, err := storagepeerv1connect.NewFencedAppendServiceClient(connect.NewClient(r.nodes[1].public)).CheckFence(t.Context(), &storagepeerv1.CheckFenceRequest{})
	if connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("got %v", err)
	}
}
