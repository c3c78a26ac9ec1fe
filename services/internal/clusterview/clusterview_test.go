package clusterview

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	ours   = [16]byte{1}
	theirs = [16]byte{2}
)

func snapshotOf(clusterID [16]byte, version int64, topics ...string) *metadatav1.ClusterSnapshot {
	s := &metadatav1.ClusterSnapshot{ClusterId: clusterID[:], Version: version, ControllerId: 1}
	s.Nodes = []*metadatav1.Node{{NodeId: 1, Role: metadatav1.NodeRole_NODE_ROLE_STORAGE, NodeEpoch: 4, Since: timestamppb.New(time.Unix(1, 0))}}
	for _, name := range topics {
		s.Topics = append(s.Topics, topicOf(name))
	}
	return s
}

func topicOf(name string) *metadatav1.Topic {
	var id [16]byte
	copy(id[:], name)
	return &metadatav1.Topic{TopicId: id[:], Name: name, PartitionCount: 1, Partitions: []*metadatav1.Partition{{LeaderId: 1, Replicas: []int32{1}, Isr: []int32{1}, LastLeaderId: -1}}}
}

func imageOf(t testing.TB, s *metadatav1.ClusterSnapshot) *cluster.Image {
	t.Helper()
	image, err := cluster.FromSnapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// publishDelta takes a view from its version to the next by adding a topic.
func publishDelta(t testing.TB, v *View, version int64, topic string) {
	t.Helper()
	delta := &metadatav1.ClusterDelta{PreviousVersion: v.Image().Version, Version: version, Topics: []*metadatav1.Topic{topicOf(topic)}}
	image, err := v.Image().Apply(delta)
	if err != nil {
		t.Fatal(err)
	}
	v.Publish(image, delta)
}

func serve(v *View) (metadatav1connect.ClusterServiceClient, *rpc.Drain) {
	server, drain := rpc.NewServer(rpc.ServerOptions{}), rpc.NewDrain()
	Register(server, v, drain)
	return clientOf(server), drain
}

func clientOf(server *connect.Server) metadatav1connect.ClusterServiceClient {
	return metadatav1connect.NewClusterServiceClient(connect.NewClient(rpc.InProcess(server)))
}

func open(t testing.TB, ctx context.Context, client metadatav1connect.ClusterServiceClient, known int64) metadatav1connect.ClusterServiceWatchClusterClientStream {
	t.Helper()
	stream, err := client.WatchCluster(ctx, &metadatav1.WatchClusterRequest{KnownVersion: known})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	return stream
}

func receive(t testing.TB, stream metadatav1connect.ClusterServiceWatchClusterClientStream) *metadatav1.WatchClusterResponse {
	t.Helper()
	response, err := stream.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func wantReason(t testing.TB, err error, want errorsv1.Reason) {
	t.Helper()
	if failure, ok := rpcerr.Parse(err); !ok || failure.Reason != want {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func TestWatchSendsASnapshotThenDeltas(t *testing.T) {
	t.Parallel()
	v := New(nil, nil)
	v.Publish(imageOf(t, snapshotOf(ours, 5, "a")), nil)
	client, _ := serve(v)
	stream := open(t, t.Context(), client, 0)
	if first := receive(t, stream).GetSnapshot(); first.GetVersion() != 5 || len(first.GetTopics()) != 1 {
		t.Fatalf("first is %v", first)
	}
	publishDelta(t, v, 8, "b")
	delta := receive(t, stream).GetDelta()
	if delta.GetPreviousVersion() != 5 || delta.GetVersion() != 8 || len(delta.GetTopics()) != 1 || delta.GetTopics()[0].GetName() != "b" {
		t.Fatalf("then %v", delta)
	}
	v.Publish(imageOf(t, snapshotOf(ours, 9, "c")), nil)
	if again := receive(t, stream).GetSnapshot(); again.GetVersion() != 9 {
		t.Fatalf("a publication without a delta sends %v", again)
	}
}

func TestWatchHonoursTheKnownVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := New(nil, nil)
		v.Publish(imageOf(t, snapshotOf(ours, 5, "a")), nil)
		client, _ := serve(v)
		if first := receive(t, open(t, t.Context(), client, 5)).GetSnapshot(); first.GetVersion() != 5 {
			t.Fatalf("a watcher with the newest version gets %v first", first)
		}
		stream := open(t, t.Context(), client, 7)
		var got atomic.Pointer[metadatav1.WatchClusterResponse]
		done := make(chan struct{})
		go func() {
			defer close(done)
			if response, err := stream.Receive(); err == nil {
				got.Store(response)
			}
		}()
		publishDelta(t, v, 6, "b")
		synctest.Wait()
		if early := got.Load(); early != nil {
			t.Fatalf("a watcher with version 7 was sent %v", early)
		}
		publishDelta(t, v, 7, "c")
		<-done
		if first := got.Load().GetSnapshot(); first.GetVersion() != 7 || len(first.GetTopics()) != 3 {
			t.Fatalf("it was then sent %v", got.Load())
		}
		_, err := open(t, t.Context(), client, -1).Receive()
		wantReason(t, err, errorsv1.Reason_REASON_INVALID_REQUEST)
	})
}

func TestWatchersLeaveOnDrain(t *testing.T) {
	t.Parallel()
	v := New(nil, nil)
	v.Publish(imageOf(t, snapshotOf(ours, 5)), nil)
	client, drain := serve(v)
	served, waiting := open(t, t.Context(), client, 0), open(t, t.Context(), client, 99)
	receive(t, served)
	drain.Begin()
	for _, stream := range []metadatav1connect.ClusterServiceWatchClusterClientStream{served, waiting} {
		_, err := stream.Receive()
		wantReason(t, err, errorsv1.Reason_REASON_DRAINING)
	}
}

func TestSlowWatcherIsCutAndComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := New(nil, nil)
		v.Publish(imageOf(t, snapshotOf(ours, 1)), nil)
		client, _ := serve(v)
		slow, quick := open(t, t.Context(), client, 0), open(t, t.Context(), client, 0)
		receive(t, slow)
		receive(t, quick)
		for i := range maxQueuedUpdates + 2 {
			publishDelta(t, v, int64(i+2), fmt.Sprint("topic", i))
			if delta := receive(t, quick).GetDelta(); delta.GetVersion() != int64(i+2) {
				t.Fatalf("the quick watcher is sent %v", delta)
			}
			synctest.Wait()
		}
		known := int64(1)
		for {
			response, err := slow.Receive()
			if err != nil {
				wantReason(t, err, errorsv1.Reason_REASON_THROTTLED)
				break
			}
			if response.GetDelta().GetPreviousVersion() != known {
				t.Fatalf("after version %d the slow watcher is sent %v", known, response)
			}
			known = response.GetDelta().GetVersion()
		}
		if known == v.Image().Version {
			t.Fatal("the slow watcher missed nothing")
		}
		if again := receive(t, open(t, t.Context(), client, known)).GetSnapshot(); again.GetVersion() != v.Image().Version {
			t.Fatalf("coming back it is sent version %d", again.GetVersion())
		}
		if n := v.cut.Load(); n != 1 {
			t.Errorf("%d watchers were counted as cut", n)
		}
	})
}

// Watchers that come together share one snapshot, and nobody keeps it after them.
func TestSnapshotIsSharedAndForgotten(t *testing.T) {
	t.Parallel()
	v := New(nil, nil)
	v.Publish(imageOf(t, snapshotOf(ours, 5, "a")), nil)
	one, _, _ := v.watch(0)
	other, _, _ := v.watch(0)
	if one.queue[0] != other.queue[0] {
		t.Error("two watchers have a snapshot each")
	}
	for _, w := range []*watcher{one, other} {
		v.take(w)
		v.unwatch(w)
	}
	runtime.GC()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.snapshot.Value() != nil {
		t.Error("the snapshot is kept though nobody watches")
	}
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	w := &watcher{wake: make(chan struct{}, 1)}
	w.push(&metadatav1.WatchClusterResponse{}, 2*maxQueuedBytes)
	if w.overflown {
		t.Fatal("one large update overflows an empty queue")
	}
	w.push(&metadatav1.WatchClusterResponse{}, 1)
	if !w.overflown || w.queue != nil {
		t.Fatalf("the queue holds %d bytes", w.bytes)
	}
}

func TestPublishNeverGoesBack(t *testing.T) {
	t.Parallel()
	v := New(nil, nil)
	v.Publish(imageOf(t, snapshotOf(ours, 5)), nil)
	v.Publish(imageOf(t, snapshotOf(ours, 4)), nil)
	if got := v.Image().Version; got != 5 {
		t.Fatalf("version went back to %d", got)
	}
}

func TestSubscription(t *testing.T) {
	t.Parallel()
	v := New(nil, nil)
	early := v.Subscribe()
	defer early.Close()
	select {
	case <-early.C:
		t.Fatal("a token without an image")
	default:
	}
	v.Publish(imageOf(t, snapshotOf(ours, 1)), nil)
	publishDelta(t, v, 2, "a")
	<-early.C
	if early.Image().Version != 2 {
		t.Fatalf("image has version %d", early.Image().Version)
	}
	select {
	case <-early.C:
		t.Fatal("tokens are not coalesced")
	default:
	}
	late := v.Subscribe()
	<-late.C
	late.Close()
	publishDelta(t, v, 3, "b")
	select {
	case <-late.C:
		t.Fatal("a token after Close")
	default:
	}
}

func TestWaitVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := New(nil, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.WaitVersion(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("without an image: %v", err)
		}
		got := make(chan *cluster.Image)
		go func() {
			image, _ := v.WaitVersion(t.Context(), 2)
			got <- image
		}()
		v.Publish(imageOf(t, snapshotOf(ours, 1)), nil)
		synctest.Wait()
		publishDelta(t, v, 3, "a")
		if image := <-got; image.Version != 3 {
			t.Fatalf("got version %d", image.Version)
		}
	})
}

func TestGetCluster(t *testing.T) {
	t.Parallel()
	v := New(nil, nil)
	client, _ := serve(v)
	_, err := client.GetCluster(t.Context(), &metadatav1.GetClusterRequest{})
	wantReason(t, err, errorsv1.Reason_REASON_METADATA_UNAVAILABLE)
	v.Publish(imageOf(t, snapshotOf(ours, 5, "a", "b", "c")), nil)
	for _, test := range []struct {
		req  *metadatav1.GetClusterRequest
		want []string
	}{
		{&metadatav1.GetClusterRequest{}, []string{"a", "b", "c"}},
		{&metadatav1.GetClusterRequest{Topics: []string{"c", "unknown", "a", "c"}}, []string{"a", "c"}},
		{&metadatav1.GetClusterRequest{ExcludeTopics: true}, nil},
		{&metadatav1.GetClusterRequest{ExcludeTopics: true, Topics: []string{"a"}}, nil},
	} {
		response, err := client.GetCluster(t.Context(), test.req)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, topic := range response.GetCluster().GetTopics() {
			names = append(names, topic.GetName())
		}
		if fmt.Sprint(names) != fmt.Sprint(test.want) || response.GetCluster().GetVersion() != 5 || len(response.GetCluster().GetNodes()) != 1 {
			t.Errorf("%v is answered with %v", test.req, response.GetCluster())
		}
	}
}

// script is a ClusterService that plays one list of updates for each call, and
// then lets the stream stand.
type script struct {
	metadatav1connect.UnimplementedClusterServiceHandler
	calls chan call
}

type call struct {
	updates []*metadatav1.WatchClusterResponse
	end     error
}

func (s *script) WatchCluster(ctx context.Context, _ *metadatav1.WatchClusterRequest, stream metadatav1connect.ClusterServiceWatchClusterServerStream) error {
	select {
	case c := <-s.calls:
		for _, update := range c.updates {
			if err := stream.Send(update); err != nil {
				return err
			}
		}
		if c.end != nil {
			return c.end
		}
	default:
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestFollow(t *testing.T) {
	t.Parallel()
	snapshot := func(id [16]byte, version int64) *metadatav1.WatchClusterResponse {
		return &metadatav1.WatchClusterResponse{Update: &metadatav1.WatchClusterResponse_Snapshot{Snapshot: snapshotOf(id, version)}}
	}
	delta := func(previous, version int64) *metadatav1.WatchClusterResponse {
		return &metadatav1.WatchClusterResponse{Update: &metadatav1.WatchClusterResponse_Delta{Delta: &metadatav1.ClusterDelta{PreviousVersion: previous, Version: version}}}
	}
	updates := func(u ...*metadatav1.WatchClusterResponse) call { return call{updates: u} }
	broken := rpcerr.New(errorsv1.Reason_REASON_DRAINING, "draining")
	for _, test := range []struct {
		name  string
		calls []call
		want  int64
	}{
		{"deltas", []call{updates(snapshot(ours, 3), delta(3, 5), delta(5, 6))}, 6},
		{"broken streams", []call{{end: broken}, {updates: updates(snapshot(ours, 3)).updates, end: io.ErrUnexpectedEOF}, updates(snapshot(ours, 3), delta(3, 4))}, 4},
		{"lower version", []call{{updates: updates(snapshot(ours, 9)).updates, end: broken}, updates(snapshot(ours, 8), delta(8, 20))}, 9},
		{"lower version on an open stream", []call{updates(snapshot(ours, 9), snapshot(ours, 8), delta(8, 20))}, 9},
		{"other cluster", []call{{updates: updates(snapshot(ours, 3)).updates, end: broken}, updates(snapshot(theirs, 50)), updates(snapshot(ours, 4))}, 4},
		{"gap", []call{updates(snapshot(ours, 3), delta(4, 5)), updates(snapshot(ours, 5), delta(5, 6))}, 6},
		{"delta that stands", []call{updates(snapshot(ours, 3), delta(3, 3)), updates(snapshot(ours, 4))}, 4},
		{"no snapshot first", []call{updates(delta(0, 5)), updates(snapshot(ours, 4))}, 4},
		{"unknown kind of update", []call{updates(snapshot(ours, 3), &metadatav1.WatchClusterResponse{}), updates(snapshot(ours, 4))}, 4},
		{"malformed snapshot", []call{updates(&metadatav1.WatchClusterResponse{Update: &metadatav1.WatchClusterResponse_Snapshot{Snapshot: &metadatav1.ClusterSnapshot{ClusterId: []byte{1}}}}), updates(snapshot(ours, 4))}, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				upstream := &script{calls: make(chan call, len(test.calls))}
				for _, c := range test.calls {
					upstream.calls <- c
				}
				server := rpc.NewServer(rpc.ServerOptions{})
				metadatav1connect.RegisterClusterServiceHandler(server, upstream)
				v := New(nil, nil)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- v.Follow(ctx, clientOf(server)) }()
				// Longer than all delays together.
				time.Sleep(time.Minute)
				synctest.Wait()
				if image := v.Image(); image == nil || image.Version != test.want || image.ClusterID != ours {
					t.Errorf("followed to %+v, want version %d", image, test.want)
				}
				if n := len(upstream.calls); n != 0 {
					t.Errorf("%d of %d streams were never opened", n, len(test.calls))
				}
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Follow returned %v", err)
				}
			})
		})
	}
}

func TestFollowPassesDeltasOn(t *testing.T) {
	t.Parallel()
	source, sink := New(nil, nil), New(nil, nil)
	source.Publish(imageOf(t, snapshotOf(ours, 1)), nil)
	upstream, _ := serve(source)
	downstream, _ := serve(sink)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- sink.Follow(ctx, upstream) }()
	stream := open(t, t.Context(), downstream, 0)
	receive(t, stream)
	publishDelta(t, source, 2, "a")
	if delta := receive(t, stream).GetDelta(); delta.GetVersion() != 2 || len(delta.GetTopics()) != 1 {
		t.Errorf("passed on %v", delta)
	}
	cancel()
	<-done
}

// TestViewsOfOneProcessShareTopics: a topic that a view has followed is the one that the
// process has already, after a snapshot and after deltas.
func TestViewsOfOneProcessShareTopics(t *testing.T) {
	t.Parallel()
	images := new(Images)
	source, sink := New(nil, images), New(nil, images)
	source.Publish(imageOf(t, snapshotOf(ours, 1, "a")), nil)
	upstream, _ := serve(source)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- sink.Follow(ctx, upstream) }()
	for i, topics := range [][]string{{"a"}, {"a", "b"}, {"a", "b", "c"}} {
		version := int64(i + 1)
		if version > 1 {
			publishDelta(t, source, version, topics[i])
		}
		image, err := sink.WaitVersion(ctx, version)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range topics {
			want, _ := source.Image().Topic(name)
			if got, _ := image.Topic(name); got != want {
				t.Errorf("version %d has a topic %s of its own", version, name)
			}
		}
	}
	cancel()
	<-done
}

// TestFollowBacksOff counts how often a node is asked that refuses at once.
func TestFollowBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		server := connect.NewServer(func(connect.ServerFunc) connect.ServerFunc {
			return func(context.Context, connect.Spec, connect.ServerStream) error {
				calls.Add(1)
				return rpcerr.Connect(rpcerr.New(errorsv1.Reason_REASON_DRAINING, "draining"))
			}
		})
		metadatav1connect.RegisterClusterServiceHandler(server, metadatav1connect.UnimplementedClusterServiceHandler{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := New(nil, nil).Follow(ctx, clientOf(server)); err != nil {
			t.Fatal(err)
		}
		if n, least, most := calls.Load(), int64(time.Hour/maxReconnectDelay), 2*int64(time.Hour/maxReconnectDelay)+20; n < least || n > most {
			t.Errorf("asked %d times in an hour, want %d to %d", n, least, most)
		}
	})
}

func TestRegisterOncePerServer(t *testing.T) {
	t.Parallel()
	server := rpc.NewServer(rpc.ServerOptions{})
	Register(server, New(nil, nil), rpc.NewDrain())
	Register(server, New(nil, nil), rpc.NewDrain())
}
