package offsets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// lister is a leader that takes a while to say where its partitions end, which is at 100.
type lister struct {
	storagev1connect.UnimplementedLogServiceHandler
	mu    sync.Mutex
	sizes []int
	delay time.Duration
	// topic is the id of the topic that it leads.
	topic []byte
}

func (l *lister) ListOffsets(ctx context.Context, req *storagev1.ListOffsetsRequest) (*storagev1.ListOffsetsResponse, error) {
	select {
	case <-time.After(l.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes = append(l.sizes, len(req.GetPartitions()))
	res := &storagev1.ListOffsetsResponse{}
	for _, asked := range req.GetPartitions() {
		answer := &storagev1.PartitionOffset{Offset: 100}
		if !bytes.Equal(asked.GetTopicId(), l.topic) {
			answer = &storagev1.PartitionOffset{Offset: -1, Failure: &errorsv1.Failure{Reason: errorsv1.Reason_REASON_TOPIC_NOT_FOUND, Message: "another topic has the name"}}
		}
		res.Partitions = append(res.Partitions, answer)
	}
	return res, nil
}

// Commits that come while a leader is being asked go together, each partition once; and a
// leader that does not answer holds nobody up for long.
func TestEndsAreAskedForTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lister{delay: 10 * time.Millisecond}
		server := rpc.NewServer(rpc.ServerOptions{})
		storagev1connect.RegisterLogServiceHandler(server, l)
		topic := &metadatav1.Topic{TopicId: make([]byte, 16), Name: "t", PartitionCount: 4}
		topic.TopicId[0] = 1
		l.topic = topic.TopicId
		for i := range int32(4) {
			topic.Partitions = append(topic.Partitions, &metadatav1.Partition{Partition: i, LeaderId: 1, LeaderEpoch: 3, Replicas: []int32{1}, Isr: []int32{1}, LastLeaderId: -1})
		}
		image, err := cluster.FromSnapshot(&metadatav1.ClusterSnapshot{
			ClusterId: make([]byte, 16), Version: 1, Topics: []*metadatav1.Topic{topic},
			Nodes: []*metadatav1.Node{{NodeId: 1, Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, Address: "a:1", PeerAddress: "a:2", NodeEpoch: 1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		view := clusterview.New(nil, nil)
		view.Publish(image, nil)
		dial := func(string) connect.Transport { return rpc.InProcess(server) }
		leaders := NewLeaders(view, dial, dial, nil, nil)
		var asking sync.WaitGroup
		ask := func(want LogEnd, partition int32, offset int64) {
			asking.Go(func() {
				got := leaders.BeyondEnd(t.Context(), []rules.CommitOffset{{Partition: rules.Partition{Topic: cluster.TopicID(topic.TopicId), Index: partition}, Offset: offset, LeaderEpoch: -1}})
				if len(got) != 1 || got[0].Beyond != want.Beyond || got[0].Beyond && got[0].End != want.End || (got[0].Err == nil) != (want.Err == nil) {
					t.Errorf("offset %d of partition %d: %+v, want %+v", offset, partition, got, want)
				}
			})
			synctest.Wait()
		}
		within := LogEnd{}
		ask(within, 0, 100)
		for i := range 20 {
			ask(within, int32(i%4), 90+int64(i%11))
		}
		asking.Wait()
		if fmt.Sprint(l.sizes) != "[1 4]" {
			t.Errorf("requests for the ends of %v partitions", l.sizes)
		}
		for i := range 20 {
			ask(within, int32(i%4), 100)
		}
		ask(LogEnd{Beyond: true, End: 100}, 0, 101)
		asking.Wait()
		if fmt.Sprint(l.sizes) != "[1 4 1 1]" {
			t.Errorf("requests for the ends of %v partitions", l.sizes)
		}
		// The topic was deleted, and another was created under its name, which the
		// coordinator has yet to hear of.
		l.topic = make([]byte, 16)
		ask(LogEnd{Err: errors.New("another topic")}, 0, 101)
		asking.Wait()
		l.delay = time.Minute
		begun := time.Now()
		for range 3 {
			ask(LogEnd{Err: context.DeadlineExceeded}, 1, 101)
		}
		asking.Wait()
		if took := time.Since(begun); took > 2*endsWithin {
			t.Errorf("a leader that does not answer holds commits up for %v", took)
		}
	})
}
