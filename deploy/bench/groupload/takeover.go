package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// takeover commits offsets of all partitions of a topic in groups that a coordinator
// has, kills its process, and measures how long it takes until the groups' offsets are
// told by another: each group from when the cluster says who has it now.
func takeover(ctx context.Context, b *bed, s settings) error {
	if s.victim == 0 || s.pid == 0 {
		return errors.New("name the -victim and its -pid")
	}
	image, err := b.image(ctx)
	if err != nil {
		return err
	}
	total, err := partitions(image, s.topic)
	if err != nil {
		return err
	}
	groups, err := groupsOf(image, cluster.NodeID(s.victim), s.groups)
	if err != nil {
		return err
	}
	begin := time.Now()
	for i, group := range groups {
		if err := commitAll(ctx, b, i, image, group, s.topic, total); err != nil {
			return err
		}
	}
	line("offsets", "%d", len(groups)*total)
	line("committed_ms", "%.0f", milliseconds(time.Since(begin)))

	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f := newFollower(b)
	if err := f.start(ctx); err != nil {
		return err
	}
	killed := time.Now()
	if err := syscall.Kill(s.pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("killing process %d: %w", s.pid, err)
	}
	results := make([]taken, len(groups))
	var waiting sync.WaitGroup
	for i, group := range groups {
		waiting.Go(func() { results[i] = f.await(ctx, i, group, cluster.NodeID(s.victim), total) })
	}
	waiting.Wait()
	return reportTakeover(killed, results)
}

// groupsOf returns names of groups that a node coordinates.
func groupsOf(image *cluster.Image, node cluster.NodeID, n int) ([]string, error) {
	var groups []string
	for i := 0; len(groups) < n; i++ {
		if i > 1000*n {
			return nil, fmt.Errorf("node %d coordinates too few partitions of %s", node, cluster.OffsetsTopic)
		}
		group := fmt.Sprintf("takeover-%d", i)
		if _, partition, ok := image.GroupPartition(group); ok && partition.Coordinator == node {
			groups = append(groups, group)
		}
	}
	return groups, nil
}

func commitAll(ctx context.Context, b *bed, i int, image *cluster.Image, group, topic string, total int) error {
	address, err := coordinator(image, group)
	if err != nil {
		return err
	}
	request := &coordinatorv1.CommitOffsetsRequest{Group: group}
	for p := range total {
		request.Offsets = append(request.Offsets, &coordinatorv1.OffsetCommit{Topic: topic, Partition: int32(p)})
	}
	response, err := b.offsets(i, address).CommitOffsets(ctx, request)
	if err != nil {
		return err
	}
	for _, result := range response.GetResults() {
		if failure := result.GetFailure(); failure != nil {
			return fmt.Errorf("committing in group %s: %s", group, failure.GetMessage())
		}
	}
	return nil
}

// taken is what has become of one group.
type taken struct {
	// given is when the cluster named another coordinator, served when that had told all
	// offsets.
	given, served time.Time
	err           error
}

func reportTakeover(killed time.Time, results []taken) error {
	given, lastGiven, first := time.Time{}, time.Time{}, time.Time{}
	last := first
	for _, r := range results {
		if r.err != nil {
			return r.err
		}
		if given.IsZero() || r.given.Before(given) {
			given = r.given
		}
		if r.given.After(lastGiven) {
			lastGiven = r.given
		}
		if first.IsZero() || r.served.Before(first) {
			first = r.served
		}
		if r.served.After(last) {
			last = r.served
		}
	}
	line("given_ms", "%.0f", milliseconds(given.Sub(killed)))
	line("all_given_ms", "%.0f", milliseconds(lastGiven.Sub(killed)))
	line("first_served_ms", "%.0f", milliseconds(first.Sub(given)))
	line("all_served_ms", "%.0f", milliseconds(last.Sub(given)))
	return nil
}

// follower keeps an image of the cluster current.
type follower struct {
	bed *bed

	mu    sync.Mutex
	image *cluster.Image
	// changed is closed and replaced with each image.
	changed chan struct{}
}

func newFollower(b *bed) *follower { return &follower{bed: b, changed: make(chan struct{})} }

// start watches in the background until ctx ends, and returns once there is an image.
func (f *follower) start(ctx context.Context) error {
	_, changed := f.latest()
	failed := make(chan error, 1)
	go func() { failed <- f.watch(ctx) }()
	select {
	case <-changed:
		return nil
	case err := <-failed:
		return err
	}
}

func (f *follower) watch(ctx context.Context) error {
	stream, err := f.bed.cluster(f.bed.bootstrap[0]).WatchCluster(ctx, &metadatav1.WatchClusterRequest{})
	if err != nil {
		return err
	}
	var image *cluster.Image
	for {
		update, err := stream.Receive()
		if err != nil {
			return err
		}
		if delta := update.GetDelta(); delta != nil && image != nil {
			image, err = image.Apply(delta)
		} else {
			image, err = cluster.FromSnapshot(update.GetSnapshot())
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.image = image
		close(f.changed)
		f.changed = make(chan struct{})
		f.mu.Unlock()
	}
}

func (f *follower) latest() (*cluster.Image, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.image, f.changed
}

// await waits until a group has another coordinator, and asks that until it has told the
// group's offsets.
func (f *follower) await(ctx context.Context, i int, group string, old cluster.NodeID, total int) taken {
	for {
		image, changed := f.latest()
		if _, partition, ok := image.GroupPartition(group); ok && partition.Coordinator != old && partition.Coordinator != cluster.NoNode {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return taken{err: fmt.Errorf("group %s has got no other coordinator: %w", group, ctx.Err())}
		}
	}
	t := taken{given: time.Now()}
	for {
		image, _ := f.latest()
		address, err := coordinator(image, group)
		if err == nil {
			var response *coordinatorv1.FetchOffsetsResponse
			response, err = f.bed.offsets(i, address).FetchOffsets(ctx, &coordinatorv1.FetchOffsetsRequest{Group: group})
			if err == nil {
				t.served = time.Now()
				if got := len(response.GetOffsets()); got != total {
					t.err = fmt.Errorf("group %s had %d offsets, and has %d", group, total, got)
				}
				return t
			}
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.err = fmt.Errorf("group %s is not served: %w", group, err)
			return t
		}
	}
}
