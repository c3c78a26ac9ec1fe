package controller

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
)

// TestISRIsWrittenOnlyForWhoIsThere proposes to add a node to an ISR by a catalog that
// does not show yet what has become of the node: its lease is gone (KIP-841), or
// another process of it has registered (KIP-903). The rules cannot know, the
// transaction does.
func TestISRIsWrittenOnlyForWhoIsThere(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*isrFixture){
		"nothing has changed":    func(*isrFixture) {},
		"its lease is gone":      func(f *isrFixture) { f.do(clientv3.OpDelete(f.layout.Live(2))) },
		"it has registered anew": func(f *isrFixture) { f.do(f.register(2)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newISRFixture(t)
			f.show()
			change(f)
			results := make([]PartitionResult, 1)
			_, err := f.controller.alter(t.Context(), 1, f.epochs[1], []PartitionProposal{{
				Topic: f.topic, Partition: 0,
				ISRProposal: rules.ISRProposal{Leader: 1, LeaderEpoch: 3, PartitionEpoch: 4, ISR: []rules.ISRMember{{Node: 1, Epoch: -1}, {Node: 2, Epoch: f.epochs[2]}}},
			}}, results)
			if !results[0].Accepted {
				t.Fatal("the rules refuse it")
			}
			if legal := name == "nothing has changed"; legal != (err == nil) || !legal && !errors.Is(err, election.ErrConflict) {
				t.Errorf("written: %v", err)
			}
		})
	}
}

// isrFixture is a controller in its term, with a partition that node 1 leads alone and
// a catalog that stands still.
type isrFixture struct {
	t          *testing.T
	layout     catalog.Layout
	client     *clientv3.Client
	shown      *catalog.Catalog
	controller *Controller
	topic      cluster.TopicID
	epochs     map[cluster.NodeID]cluster.NodeEpoch
}

func newISRFixture(t *testing.T) *isrFixture {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	f := &isrFixture{t: t, layout: catalog.NewLayout(etcd.Prefix()), client: etcd.Client(t, etcd.Endpoint()), topic: cluster.TopicID{7}, epochs: map[cluster.NodeID]cluster.NodeEpoch{}}
	f.shown = catalog.New(catalog.Options{
		Client: f.client, Layout: f.layout, View: clusterview.New(logger, nil), Logger: logger, RelistInterval: time.Hour, RequestTimeout: 5 * time.Second,
	})
	f.controller = New(Options{Client: f.client, Layout: f.layout, Catalog: f.shown, Logger: logger, RequestTimeout: 5 * time.Second})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	terms := make(chan *election.Term)
	running.Go(func() {
		candidate := election.NewCandidate(election.Options{Client: f.client, Prefix: f.layout.Election(), Node: 9, TTL: 10 * time.Second, Logger: logger, RequestTimeout: 5 * time.Second})
		if err := candidate.Run(ctx, func(ctx context.Context, term *election.Term) error {
			terms <- term
			<-ctx.Done()
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	f.controller.term = <-terms
	for _, id := range []cluster.NodeID{1, 2} {
		f.epochs[id] = cluster.NodeEpoch(f.do(f.register(id)))
		f.do(catalog.Put(f.layout.Status(id), &catalogv1.NodeStatusRecord{}))
		lease, err := f.client.Grant(t.Context(), 60)
		if err != nil {
			t.Fatal(err)
		}
		f.do(clientv3.OpPut(f.layout.Live(id), "", clientv3.WithLease(lease.ID)))
	}
	f.do(catalog.Put(f.layout.Topic(f.topic), &catalogv1.TopicRecord{Name: "orders", PartitionCount: 1, State: catalogv1.TopicState_TOPIC_STATE_READY}))
	f.do(f.layout.PutPartition(f.topic, catalog.Partition{PartitionState: rules.PartitionState{
		Partition: cluster.Partition{Leader: 1, LastLeader: cluster.NoNode, LeaderEpoch: 3, PartitionEpoch: 4, Replicas: []cluster.NodeID{1, 2}, ISR: []cluster.NodeID{1}},
		Epochs:    []cluster.NodeEpoch{f.epochs[1], f.epochs[2]},
	}}))
	return f
}

func (f *isrFixture) register(id cluster.NodeID) clientv3.Op {
	return catalog.Put(f.layout.Node(id), &catalogv1.NodeRecord{Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, Address: "127.0.0.1:1", DirectoryId: make([]byte, 16)})
}

// do writes, and returns the revision.
func (f *isrFixture) do(op clientv3.Op) int64 {
	f.t.Helper()
	response, err := f.client.Txn(f.t.Context()).Then(op).Commit()
	if err != nil {
		f.t.Fatal(err)
	}
	return response.Header.GetRevision()
}

// show runs the catalog until it shows what was written.
func (f *isrFixture) show() {
	f.t.Helper()
	written := f.do(f.layout.Mark())
	ctx, cancel := context.WithCancel(f.t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.shown.Run(ctx); err != nil {
			f.t.Error(err)
		}
	})
	f.controller.written = written
	if err := f.controller.catchUp(ctx); err != nil {
		f.t.Error(err)
	}
	cancel()
	running.Wait()
}
