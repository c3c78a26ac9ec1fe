package controller

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/metadata/internal/catalog"
)

// What the controller does with etcd is tested through the service, in package
// metadata.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
