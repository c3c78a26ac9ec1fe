package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/clusterview"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/metadata/internal/etcdtest"
)

var etcd *etcdtest.Server

func TestMain(m *testing.M) {
	os.Exit(etcdtest.Main(m, func(s *etcdtest.Server) { etcd = s }, func() error { return goleak.Find() }))
}

func TestLayout(t *testing.T) {
	t.Parallel()
	l := NewLayout("runnel")
	topic := cluster.TopicID{0xab, 15: 0xcd}
	for key, want := range map[string]parsedKey{
		l.Cluster():                    {kind: kindCluster},
		l.Controller():                 {kind: kindController},
		l.Touched():                    {kind: kindTouched},
		l.NodeCounter():                {kind: kindNodeCounter},
		l.ProducerCounter():            {kind: kindProducerCounter},
		l.Election() + "/694d8f":       {kind: kindElection},
		l.Node(7):                      {kind: kindNode, node: 7},
		l.Live(1 << 30):                {kind: kindLive, node: 1 << 30},
		l.Status(12):                   {kind: kindStatus, node: 12},
		l.Topic(topic):                 {kind: kindTopic, topic: topic},
		l.Name("a.b-c"):                {kind: kindName, name: "a.b-c"},
		l.Deleted(topic):               {kind: kindDeleted, topic: topic},
		l.Partition(topic, 9999):       {kind: kindPartition, topic: topic, index: 9999},
		"other/cluster":                {},
		"runnel/":                      {},
		"runnel/nodes/":                {},
		"runnel/nodes/0":               {},
		"runnel/nodes/-3":              {},
		"runnel/nodes/007":             {},
		"runnel/nodes/4294967297":      {},
		"runnel/topics/x":              {},
		l.Partition(topic, 3) + "0":    {},
		l.Partition(topic, maxIndex):   {},
		"runnel/partitions/x/00000003": {},
	} {
		if got := l.parse(key); got != want {
			t.Errorf("%s is read as %+v", key, got)
		}
	}
	if l.Partition(topic, 9) > l.Partition(topic, 10) {
		t.Error("partitions are not in order")
	}
}

// world makes the changes that a controller makes, as etcd would tell of them.
type world struct {
	l        Layout
	revision int64
	keys     map[string]*mvccpb.KeyValue
}

func (w *world) put(ops ...clientv3.Op) []*clientv3.Event {
	w.revision++
	var events []*clientv3.Event
	for _, op := range ops {
		kv := &mvccpb.KeyValue{Key: op.KeyBytes(), Value: op.ValueBytes(), ModRevision: w.revision}
		if op.IsDelete() {
			if w.keys[string(op.KeyBytes())] == nil {
				continue
			}
			delete(w.keys, string(op.KeyBytes()))
			events = append(events, &clientv3.Event{Type: mvccpb.Event_DELETE, Kv: kv})
			continue
		}
		if w.l.parse(string(op.KeyBytes())).kind == kindLive {
			kv.Lease = w.revision
		}
		w.keys[string(op.KeyBytes())] = kv
		events = append(events, &clientv3.Event{Type: mvccpb.Event_PUT, Kv: kv})
	}
	return events
}

// listed returns the state that a listing shows.
func (w *world) listed(t interface{ Fatal(...any) }) *State {
	state, c := newState(), newChange()
	state.Revision = w.revision
	for _, key := range slices.Sorted(maps.Keys(w.keys)) {
		if err := state.put(w.l, w.keys[key], c); err != nil {
			t.Fatal(err)
		}
	}
	return state
}

// TestWatchingAndListingAgree applies random changes in random batches, some of
// them twice, and compares the image that results with that of a listing: the same
// content under the same version, at every step.
func TestWatchingAndListingAgree(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &world{l: NewLayout("x/"), keys: map[string]*mvccpb.KeyValue{}}
		view := clusterview.New(nil, nil)
		c := New(Options{Layout: w.l, View: view, Logger: slog.New(slog.DiscardHandler)})
		var pending, done []*clientv3.Event
		tell := func(events []*clientv3.Event) { pending = append(pending, events...) }
		tell(w.put(Put(w.l.Cluster(), &catalogv1.ClusterRecord{ClusterId: append(make([]byte, 15), 1)})))

		node := rapid.Custom(func(t *rapid.T) cluster.NodeID { return cluster.NodeID(rapid.IntRange(1, 3).Draw(t, "node")) })
		topic := rapid.Custom(func(t *rapid.T) cluster.TopicID {
			return cluster.TopicID{byte(rapid.IntRange(1, 4).Draw(t, "topic"))}
		})
		partition := func(index int, epoch int) Partition {
			p := rules.NewPartition(int32(index), []cluster.NodeID{cluster.NodeID(index%2) + 1, 3}, nil)
			p.LeaderEpoch = cluster.LeaderEpoch(epoch)
			return Partition{PartitionState: p}
		}
		deleted := map[cluster.TopicID]bool{}
		registered := map[cluster.NodeID]bool{}
		name := func(id cluster.TopicID) string { return fmt.Sprint("t", id[0]%2) }
		count := func(id cluster.TopicID) int { return int(id[0]) }
		record := func(id cluster.TopicID, s catalogv1.TopicState) *catalogv1.TopicRecord {
			return &catalogv1.TopicRecord{Name: name(id), PartitionCount: int32(count(id)), State: s}
		}
		has := func(key string) bool { return w.keys[key] != nil }
		taken := func(id cluster.TopicID) bool { return deleted[id] || has(w.l.Topic(id)) || has(w.l.Name(name(id))) }
		flush := func() {
			// Whole revisions, as etcd sends them, and perhaps old ones again.
			from := rapid.IntRange(0, len(done)).Draw(t, "delivered again from")
			again := rapid.IntRange(0, min(5, len(done)-from)).Draw(t, "delivered again")
			c.apply(slices.Concat(done[from:from+again], pending))
			done = append(done, pending...)
			pending = nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"register": func(t *rapid.T) {
				id := node.Draw(t, "registers")
				registered[id] = true
				tell(w.put(Put(w.l.Node(id), &catalogv1.NodeRecord{Address: "a"}), Put(w.l.Status(id), &catalogv1.NodeStatusRecord{Since: timestamppb.New(time.Unix(w.revision, 0))}), clientv3.OpPut(w.l.Live(id), "")))
			},
			"lose lease": func(t *rapid.T) { tell(w.put(clientv3.OpDelete(w.l.Live(node.Draw(t, "loses"))))) },
			"fence": func(t *rapid.T) {
				id := node.Draw(t, "fenced")
				if !registered[id] {
					t.Skip("unknown")
				}
				tell(w.put(Put(w.l.Status(id), &catalogv1.NodeStatusRecord{Fenced: true})))
			},
			"term": func(t *rapid.T) {
				tell(w.put(Put(w.l.Controller(), &catalogv1.ControllerRecord{NodeId: int32(node.Draw(t, "controller"))})))
			},
			"count": func(*rapid.T) { tell(w.put(Put(w.l.ProducerCounter(), &catalogv1.CounterRecord{Next: w.revision}))) },
			"create": func(t *rapid.T) {
				id := topic.Draw(t, "created")
				if taken(id) {
					t.Skip("taken")
				}
				ops := []clientv3.Op{w.l.PutName(name(id), id), Put(w.l.Topic(id), record(id, catalogv1.TopicState_TOPIC_STATE_READY))}
				for i := range count(id) {
					ops = append(ops, w.l.PutPartition(id, partition(i, 0)))
				}
				tell(w.put(ops...))
			},
			"begin": func(t *rapid.T) {
				id := topic.Draw(t, "begun")
				if taken(id) {
					t.Skip("taken")
				}
				tell(w.put(w.l.PutName(name(id), id), Put(w.l.Topic(id), record(id, catalogv1.TopicState_TOPIC_STATE_CREATING))))
				for i := range count(id) {
					tell(w.put(w.l.PutPartition(id, partition(i, 0))))
				}
			},
			"finish": func(t *rapid.T) {
				id := topic.Draw(t, "finished")
				if !has(w.l.Topic(id)) {
					t.Skip("not begun")
				}
				tell(w.put(Put(w.l.Topic(id), record(id, catalogv1.TopicState_TOPIC_STATE_READY))))
			},
			"elect": func(t *rapid.T) {
				id := topic.Draw(t, "changed")
				index := rapid.IntRange(0, count(id)-1).Draw(t, "partition")
				if !has(w.l.Partition(id, int32(index))) {
					t.Skip("not there")
				}
				tell(w.put(w.l.PutPartition(id, partition(index, int(w.revision)))))
			},
			"delete": func(t *rapid.T) {
				id := topic.Draw(t, "deleted")
				if !has(w.l.Topic(id)) {
					t.Skip("not there")
				}
				deleted[id] = true
				tell(w.put(Put(w.l.Deleted(id), &catalogv1.DeletedTopicRecord{}), clientv3.OpDelete(w.l.Name(name(id))), clientv3.OpDelete(w.l.Topic(id))))
			},
			"sweep": func(t *rapid.T) {
				id := topic.Draw(t, "swept")
				if has(w.l.Topic(id)) {
					t.Skip("there")
				}
				for i := range count(id) {
					tell(w.put(clientv3.OpDelete(w.l.Partition(id, int32(i)))))
				}
			},
			"forget": func(t *rapid.T) {
				id := topic.Draw(t, "forgotten")
				if !deleted[id] || has(w.l.Partition(id, 0)) {
					t.Skip("not deleted")
				}
				tell(w.put(w.l.Touch(), clientv3.OpDelete(w.l.Deleted(id))))
			},
			"deliver": func(*rapid.T) { flush() },
			"": func(t *rapid.T) {
				if len(pending) > 0 {
					return
				}
				want := w.listed(t)
				image := view.Image()
				if image == nil {
					return
				}
				if image.Version != want.version() {
					t.Fatalf("watching leads to version %d, listing to %d", image.Version, want.version())
				}
				wanted, err := cluster.FromSnapshot(want.snapshot())
				if err != nil {
					t.Fatal(err)
				}
				if !sameImage(image, wanted) {
					t.Fatalf("watching leads to\n%v\nlisting to\n%v", image.Snapshot(), wanted.Snapshot())
				}
				for id := range deleted {
					if _, there := image.TopicByID(id); there || wanted.Deleted(id) && !image.Deleted(id) {
						t.Fatalf("topic %s is not deleted", id)
					}
				}
				c.Read(func(s *State) {
					if len(s.Partitions) != len(want.Partitions) || len(s.Names) != len(want.Names) || s.NodesChanged < want.NodesChanged || s.ProducerCounter != want.ProducerCounter ||
						s.PartitionCount != want.PartitionCount || !maps.Equal(s.Loads, want.Loads) {
						t.Fatalf("watching leads to state %+v, listing to %+v", s, want)
					}
				})
			},
		})
	})
}

func TestUnreadableRecordsChangeNothing(t *testing.T) {
	t.Parallel()
	l := NewLayout("x")
	state := newState()
	for _, key := range []string{l.Cluster(), l.Controller(), l.NodeCounter(), l.ProducerCounter(), l.Node(1), l.Status(1), l.Topic(cluster.TopicID{1}), l.Name("a"), l.Deleted(cluster.TopicID{1}), l.Partition(cluster.TopicID{1}, 0)} {
		if err := state.put(l, &mvccpb.KeyValue{Key: []byte(key), Value: []byte{0xff}, ModRevision: 9}, newChange()); !errors.Is(err, errRecord) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if state.version() != 0 || len(state.Nodes)+len(state.Topics)+len(state.Names)+len(state.Deleted)+len(state.Partitions) != 0 {
		t.Errorf("the state is %+v", state)
	}
}

func FuzzPut(f *testing.F) {
	l := NewLayout("x")
	partition, err := proto.Marshal(partitionRecord(rules.NewPartition(3, []cluster.NodeID{1, 2}, nil)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(l.Partition(cluster.TopicID{1}, 3), partition)
	f.Add(l.Node(1), []byte{})
	f.Add(l.Name("a"), make([]byte, 16))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		state, c := newState(), newChange()
		// Whatever stands there, it makes an image and can be removed.
		if state.put(l, &mvccpb.KeyValue{Key: []byte(key), Value: value, ModRevision: 5}, c) == nil {
			if image, err := cluster.FromSnapshot(state.snapshot()); err == nil {
				state.delta(image, c)
			}
		}
		state.remove(l, key, 6, newChange())
	})
}

// running is a catalog that follows etcd.
type running struct {
	*Catalog
	view *clusterview.View
}

func run(t *testing.T, o Options) *running {
	t.Helper()
	o.View, o.Logger = clusterview.New(nil, nil), slog.New(slog.DiscardHandler)
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 2 * time.Second
	}
	if o.RelistInterval == 0 {
		o.RelistInterval = time.Minute
	}
	c := New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &running{c, o.View}
}

func (r *running) await(t *testing.T, condition func(*cluster.Image) bool) *cluster.Image {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	image, err := r.view.Await(ctx, condition)
	if err != nil {
		t.Fatalf("never so; the image is %v", r.view.Image())
	}
	return image
}

func do(t *testing.T, client *clientv3.Client, ops ...clientv3.Op) int64 {
	t.Helper()
	response, err := client.Txn(t.Context()).Then(ops...).Commit()
	if err != nil {
		t.Fatal(err)
	}
	return response.Header.GetRevision()
}

func TestCatalogListsInPages(t *testing.T) {
	t.Parallel()
	client, l := etcd.Client(t, etcd.Endpoint()), NewLayout(etcd.Prefix())
	if _, err := JoinCluster(t.Context(), client, l, false); err != nil {
		t.Fatal(err)
	}
	const count = 2*pageSize + 17
	id := cluster.TopicID{1}
	ops := []clientv3.Op{Put(l.Topic(id), &catalogv1.TopicRecord{Name: "t", PartitionCount: count, State: catalogv1.TopicState_TOPIC_STATE_READY})}
	for i := range count {
		ops = append(ops, l.PutPartition(id, Partition{PartitionState: rules.NewPartition(int32(i), []cluster.NodeID{1}, nil)}))
	}
	var last int64
	for batch := range slices.Chunk(ops, 100) {
		last = do(t, client, batch...)
	}
	image := run(t, Options{Client: client, Layout: l}).await(t, func(image *cluster.Image) bool { return image.Version >= last })
	if topic, ok := image.Topic("t"); !ok || len(topic.Partitions) != count {
		t.Errorf("listed %v", topic)
	}
}

// TestCatalogDoesNotGoBack leads a catalog to an etcd that knows less, as one that
// was restored from a backup does, and to that of another cluster.
func TestCatalogDoesNotGoBack(t *testing.T) {
	t.Parallel()
	for _, other := range []bool{false, true} {
		t.Run(fmt.Sprintf("other cluster %t", other), func(t *testing.T) {
			t.Parallel()
			first, second := etcdtest.New(t), etcdtest.New(t)
			l := NewLayout("x/")
			link := first.Link(t)
			client := first.Client(t, link.Endpoint())
			id, err := JoinCluster(t.Context(), client, l, false)
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				do(t, client, l.Touch())
			}
			c := run(t, Options{Client: client, Layout: l, RelistInterval: time.Second})
			before := c.await(t, func(image *cluster.Image) bool { return image.Version > 20 })

			raw := second.Client(t, second.Endpoint())
			if other {
				id[0]++
			}
			do(t, raw, Put(l.Cluster(), &catalogv1.ClusterRecord{ClusterId: id[:]}))
			for range 5 {
				do(t, raw, l.Touch())
			}
			if other {
				for range 100 {
					do(t, raw, l.Touch())
				}
			}
			link.Cut()
			link.Redirect(second)
			link.Mend()
			for failures := counter(t, c.failures); counter(t, c.failures) < failures+3; {
				if c.view.Image() != before {
					t.Fatalf("the image went from version %d to %d", before.Version, c.view.Image().Version)
				}
				await(t, 20*time.Millisecond)
			}
		})
	}
}

// TestMissedChangeIsFoundByListing hides a change from the watch.
func TestMissedChangeIsFoundByListing(t *testing.T) {
	t.Parallel()
	client, l := etcd.Client(t, etcd.Endpoint()), NewLayout(etcd.Prefix())
	if _, err := JoinCluster(t.Context(), client, l, false); err != nil {
		t.Fatal(err)
	}
	register := func(address string) int64 {
		return do(t, client, Put(l.Node(1), &catalogv1.NodeRecord{Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, Address: address}), Put(l.Status(1), &catalogv1.NodeStatusRecord{Since: timestamppb.New(time.Unix(1, 0))}))
	}
	revision := register("right")
	c := run(t, Options{Client: client, Layout: l, RelistInterval: time.Second})
	c.await(t, func(image *cluster.Image) bool { return image.Version == revision })
	// As if it had seen something else at that revision.
	c.mu.Lock()
	wrong := c.state.Nodes[1]
	wrong.Record = &catalogv1.NodeRecord{Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, Address: "wrong"}
	c.state.Nodes[1] = wrong
	c.mu.Unlock()
	image, err := cluster.FromSnapshot(func() *metadatav1.ClusterSnapshot {
		s := c.view.Image().Snapshot()
		s.Nodes[0].Address = "wrong"
		return s
	}())
	if err != nil {
		t.Fatal(err)
	}
	c.view.Publish(image, nil)
	c.await(t, func(image *cluster.Image) bool {
		node, _ := image.Node(1)
		return node.Address == "right"
	})
	if counter(t, c.divergences) != 1 {
		t.Errorf("%v divergences were counted", counter(t, c.divergences))
	}
}

func TestJoinCluster(t *testing.T) {
	t.Parallel()
	client, l := etcd.Client(t, etcd.Endpoint()), NewLayout(etcd.Prefix())
	if _, err := JoinCluster(t.Context(), client, l, true); !errors.Is(err, ErrNoCluster) {
		t.Errorf("a node that knew a cluster: %v", err)
	}
	ids := make(chan [16]byte)
	for range 10 {
		go func() {
			id, err := JoinCluster(t.Context(), client, l, false)
			if err != nil {
				t.Error(err)
			}
			ids <- id
		}()
	}
	first := <-ids
	for range 9 {
		if id := <-ids; id != first || id == [16]byte{} {
			t.Errorf("clusters %x and %x were founded", first, id)
		}
	}
	if id, err := JoinCluster(t.Context(), client, l, true); err != nil || id != first {
		t.Errorf("later: %x, %v", id, err)
	}
}

func TestAllotNode(t *testing.T) {
	t.Parallel()
	client, l := etcd.Client(t, etcd.Endpoint()), NewLayout(etcd.Prefix())
	do(t, client, Put(l.Node(3), &catalogv1.NodeRecord{}))
	ids := make(chan cluster.NodeID)
	for range 8 {
		go func() {
			id, err := AllotNode(t.Context(), client, l)
			if err != nil {
				t.Error(err)
			}
			ids <- id
		}()
	}
	var got []cluster.NodeID
	for range 8 {
		got = append(got, <-ids)
	}
	slices.Sort(got)
	if want := []cluster.NodeID{1, 2, 4, 5, 6, 7, 8, 9}; !slices.Equal(got, want) {
		t.Errorf("allotted %v, want %v", got, want)
	}
}

func counter(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// await lets a moment pass.
func await(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
