package controller

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
	"github.com/runnel-mesh/runnel/services/metadata/internal/election"
	"github.com/runnel-mesh/runnel/services/metadata/internal/etcdtest"
)

// What the controller does with etcd is tested through the service, in package
// metadata.

var etcd *etcdtest.Server

func TestMain(m *testing.M) {
	os.Exit(etcdtest.Main(m, func(s *etcdtest.Server) { etcd = s }, func() error { return goleak.Find() }))
}

// TestUnknownOutcomeIsLookedUp has a write of which nothing is known: before the
// controller decides anything else it waits for a catalog that would show it. The
// simulation found a controller that elected a node which it had just fenced.
func TestUnknownOutcomeIsLookedUp(t *testing.T) {
	t.Parallel()
	logger, layout := slog.New(slog.DiscardHandler), catalog.NewLayout(etcd.Prefix())
	client := etcd.Client(t, etcd.Endpoint())
	shown := catalog.New(catalog.Options{
		Client: client, Layout: layout, View: clusterview.New(logger, nil), Logger: logger, RelistInterval: time.Hour, RequestTimeout: 5 * time.Second,
	})
	c := New(Options{Client: client, Layout: layout, Catalog: shown, Logger: logger, RequestTimeout: 5 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	terms := make(chan *election.Term)
	running.Go(func() {
		candidate := election.NewCandidate(election.Options{Client: client, Prefix: layout.Election(), Node: 1, TTL: 10 * time.Second, Logger: logger, RequestTimeout: 5 * time.Second})
		if err := candidate.Run(ctx, func(ctx context.Context, term *election.Term) error {
			terms <- term
			<-ctx.Done()
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	c.term = <-terms
	if err := c.catchUp(ctx); err != nil {
		t.Fatalf("nothing was written: %v", err)
	}
	lost, giveUp := context.WithCancel(ctx)
	giveUp()
	if _, err := c.commit(lost, nil, layout.Mark()); err == nil {
		t.Fatal("the answer has come")
	}
	// It does come through.
	response, err := client.Put(ctx, layout.Prefix()+"late", "")
	if err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if err := c.catchUp(short); err == nil {
		t.Fatal("it goes on with a catalog that shows nothing yet")
	}
	running.Go(func() {
		if err := shown.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := c.catchUp(ctx); err != nil {
		t.Fatal(err)
	}
	shown.Read(func(s *catalog.State) {
		if s.Revision < response.Header.GetRevision() {
			t.Errorf("the catalog is at %d, and the write came through at %d", s.Revision, response.Header.GetRevision())
		}
	})
	if c.uncertain {
		t.Error("it would look again")
	}
}

func lostNodes(ids ...cluster.NodeID) []catalog.Node {
	var nodes []catalog.Node
	for _, id := range ids {
		nodes = append(nodes, catalog.Node{ID: id, Record: &catalogv1.NodeRecord{}, Status: &catalogv1.NodeStatusRecord{}})
	}
	return nodes
}

// TestDue plays moments at which the controller looks for lost leases.
func TestDue(t *testing.T) {
	t.Parallel()
	const settle, grace = time.Second, 10 * time.Second
	type look struct {
		at   time.Duration
		lost []cluster.NodeID
		live int
		due  []cluster.NodeID
		wait time.Duration
	}
	ids := func(ids ...cluster.NodeID) []cluster.NodeID { return ids }
	for _, test := range []struct {
		name  string
		looks []look
	}{
		{"nothing", []look{{0, nil, 3, nil, 0}}},
		{"one of three settles", []look{{0, ids(1), 3, nil, settle}, {settle / 2, ids(1), 3, nil, settle / 2}, {settle, ids(1), 3, ids(1), 0}}},
		{"the only one settles", []look{{0, ids(1), 1, nil, settle}, {settle, ids(1), 1, ids(1), 0}}},
		{"one comes back in time", []look{{0, ids(1), 3, nil, settle}, {settle / 2, nil, 3, nil, 0}, {settle, ids(1), 3, nil, settle}}},
		{"most of three wait", []look{{0, ids(1, 2), 3, nil, grace}, {settle, ids(1, 2), 3, nil, grace - settle}, {grace, ids(1, 2), 3, ids(1, 2), 0}}},
		{"the second falls a moment later", []look{{0, ids(1), 3, nil, settle}, {settle / 2, ids(1, 2), 3, nil, grace - settle/2}, {grace, ids(1, 2), 3, ids(1, 2), 0}}},
		{"one stays away after most came back", []look{{0, ids(1, 2, 3), 3, nil, grace}, {settle, ids(2), 3, nil, grace - settle}, {grace, ids(2), 3, ids(2), 0}}},
		{"one falls while most are away", []look{{0, ids(1, 2), 3, nil, grace}, {grace - settle/2, ids(1, 2, 3), 3, nil, settle / 2}, {grace, ids(1, 2, 3), 3, ids(1, 2), settle / 2}}},
		{"another falls after all came back", []look{{0, ids(1, 2), 3, nil, grace}, {settle, nil, 3, nil, 0}, {2 * settle, ids(3), 3, nil, settle}, {3 * settle, ids(3), 3, ids(3), 0}}},
		{"a minority of many", []look{{0, ids(1, 2), 5, nil, settle}, {settle, ids(1, 2), 5, ids(1, 2), 0}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := New(Options{Settle: settle, Grace: grace, Logger: slog.New(slog.DiscardHandler)})
			start := time.Now()
			for _, l := range test.looks {
				due, wait := c.due(lostNodes(l.lost...), l.live, start.Add(l.at))
				var got []cluster.NodeID
				for _, n := range due {
					got = append(got, n.ID)
				}
				if !slices.Equal(got, l.due) || wait != l.wait {
					t.Errorf("after %v: due %v, wait %v; want %v, %v", l.at, got, wait, l.due, l.wait)
				}
			}
		})
	}
}

// TestDueCountsWhoWasJustFenced lets leases fall one after the other: those that
// were fenced before the pattern showed count with those that follow.
func TestDueCountsWhoWasJustFenced(t *testing.T) {
	t.Parallel()
	c := New(Options{Settle: time.Second, Grace: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)})
	start := time.Now()
	c.fenced = []time.Time{start}
	if due, wait := c.due(lostNodes(2), 2, start.Add(2*time.Second)); len(due) != 0 || wait != 10*time.Second {
		t.Errorf("the second of three: due %v, wait %v", due, wait)
	}
	c = New(Options{Settle: time.Second, Grace: 10 * time.Second, Logger: slog.New(slog.DiscardHandler)})
	c.fenced = []time.Time{start}
	if _, wait := c.due(lostNodes(2), 2, start.Add(11*time.Second)); wait != time.Second {
		t.Errorf("long after the first: wait %v", wait)
	}
}

func TestReplicationFactor(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		asked, live, most, want int
		says                    string
	}{
		{0, 0, 5, 0, "there are 0"},
		{1, 0, 5, 0, "there are 0"},
		{0, 1, 5, 1, ""},
		{0, 2, 5, 2, ""},
		{0, 5, 5, 3, ""},
		{0, 5, 1, 1, ""},
		{1, 5, 1, 1, ""},
		{5, 5, 5, 5, ""},
		{-1, 5, 2, 0, "out of range: use 1 to 2"},
		{6, 5, 9, 0, "above the number of live storage nodes, which is 5: start more of them, or use at most 5"},
		{6, 5, 3, 0, "above the number of live storage nodes, which is 5, and above what the metadata service allows: use at most 3"},
		{4, 5, 3, 0, "above what the metadata service allows: use at most 3"},
	} {
		got, err := replicationFactor(test.asked, test.live, test.most)
		if got != test.want || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%d of %d live nodes, at most %d: %d, %v", test.asked, test.live, test.most, got, err)
		}
	}
}

func TestProducerIDsRunOut(t *testing.T) {
	t.Parallel()
	if next, overflow := addProducerIDs(1<<63-1-1000, 1000); overflow || next != 1<<63-1 {
		t.Errorf("the last block: %d, %t", next, overflow)
	}
	if _, overflow := addProducerIDs(1<<63-1000, 1000); !overflow {
		t.Error("a block beyond the last")
	}
}
