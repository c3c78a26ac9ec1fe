package contract

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	sdk "github.com/runnel-mesh/runnel/sdk/runnel"
)

// grouped: members share a topic, and the group goes on where it stopped, or where it is
// put.
func grouped(t *testing.T, bootstrap, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := sdk.NewClient(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := client.Admin()
	if _, err := admin.CreateTopic(ctx, sdk.TopicSpec{Name: name, Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	producer, err := client.NewProducer()
	if err != nil {
		t.Fatal(err)
	}
	send := func(values ...string) {
		t.Helper()
		for i, value := range values {
			record := sdk.Record{Topic: name, Partition: sdk.OnPartition(int32(i % 4)), Value: []byte(value)}
			if _, err := producer.SendSync(ctx, record); err != nil {
				t.Fatal(err)
			}
		}
	}
	join := func() *sdk.Consumer {
		t.Helper()
		consumer, err := client.NewConsumer(sdk.WithGroup(name), sdk.WithReset(sdk.ResetEarliest), sdk.WithAutoCommit(0))
		if err == nil {
			err = consumer.Subscribe(ctx, name)
		}
		if err != nil {
			t.Fatal(err)
		}
		return consumer
	}
	// poll lets members take turns, so that each can carry out what the group wants.
	poll := func(members []*sdk.Consumer, got map[string]int) {
		t.Helper()
		for _, m := range members {
			turn, done := context.WithTimeout(ctx, 100*time.Millisecond)
			records, err := m.Poll(turn)
			done()
			if err != nil && turn.Err() == nil {
				t.Fatal(err)
			}
			for r := range records.All() {
				got[string(r.Value)]++
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("group %s through %s: %v; it has read %v", name, bootstrap, context.Cause(ctx), got)
		}
	}
	reads := func(members []*sdk.Consumer, want ...string) {
		t.Helper()
		got := make(map[string]int)
		for len(got) < len(want) {
			poll(members, got)
		}
		for value, times := range got {
			if times != 1 || !slices.Contains(want, value) {
				t.Errorf("the group reads %q %d times, of %q", value, times, want)
			}
		}
	}

	first := join()
	send("a", "b", "c", "d", "e", "f")
	reads([]*sdk.Consumer{first}, "a", "b", "c", "d", "e", "f")
	if err := first.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	members := []*sdk.Consumer{first, join()}
	for len(members[0].Assigned()) != 2 || len(members[1].Assigned()) != 2 {
		got := make(map[string]int)
		if poll(members, got); len(got) > 0 {
			t.Fatalf("what was committed is read again: %v", got)
		}
	}
	send("g", "h", "i", "j")
	reads(members, "g", "h", "i", "j")
	for _, m := range members {
		if err := m.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	d := describe(t, ctx, admin, name, 10, 0)
	owned := make(map[string]int)
	for _, p := range d.Partitions {
		owned[p.Member]++
	}
	if d.State != sdk.GroupStable || len(d.Members) != 2 || !slices.Equal(slices.Collect(maps.Values(owned)), []int{2, 2}) {
		t.Errorf("two members of a group are described as %+v", d)
	}
	for _, p := range members[0].Assigned() {
		// Nobody can have read so far.
		err := members[0].Commit(ctx, sdk.GroupOffset{TopicPartition: p, Position: sdk.Position{Offset: 1000, LeaderEpoch: -1}})
		refused(t, err, errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE, "1000", name)
	}
	reset := sdk.GroupReset{Group: name, Resets: []sdk.OffsetReset{{Topic: name, Target: sdk.MoveBy(-1)}}}
	for _, reset.Execute = range []bool{false, true} {
		_, err := admin.ResetOffsets(ctx, reset)
		refused(t, err, errorsv1.Reason_REASON_GROUP_NOT_EMPTY, d.Members[0].ID, d.Members[1].ID)
	}
	mistyped := reset
	mistyped.Group += "-mistyped"
	for _, mistyped.Execute = range []bool{false, true} {
		_, err := admin.ResetOffsets(ctx, mistyped)
		refused(t, err, errorsv1.Reason_REASON_GROUP_NOT_FOUND, mistyped.Group)
	}
	for _, m := range members {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}

	send("k", "l", "m")
	if d = describe(t, ctx, admin, name, 10, 3); d.State != sdk.GroupEmpty || len(d.Members) != 0 {
		t.Errorf("a group that all have left is described as %+v", d)
	}
	listed, err := admin.ListGroups(ctx, sdk.GroupEmpty)
	if err != nil || !slices.ContainsFunc(listed, func(g sdk.Group) bool { return g.ID == name }) {
		t.Errorf("group %s is not in the list: %+v, %v", name, listed, err)
	}
	again := join()
	reads([]*sdk.Consumer{again}, "k", "l", "m")
	if err := again.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	plan, err := admin.ResetOffsets(ctx, reset)
	if err != nil || !plan.Executed || len(plan.Offsets) != 4 {
		t.Fatalf("reset: %+v, %v", plan, err)
	}
	for _, o := range plan.Offsets {
		if o.New != o.Old-1 || o.Lag != 1 || o.Err != nil {
			t.Errorf("one back of all is planned as %+v", o)
		}
	}
	describe(t, ctx, admin, name, 9, 4)
	again = join()
	reads([]*sdk.Consumer{again}, "j", "k", "l", "m")
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := admin.DeleteGroup(ctx, name); err != nil {
		t.Error(err)
	}
	if _, err := admin.DescribeGroup(ctx, name); err == nil {
		t.Errorf("group %s is deleted and described", name)
	}
}

// refused checks that a request was, for that reason, with words that name the thing.
func refused(t *testing.T, err error, reason errorsv1.Reason, names ...string) {
	t.Helper()
	if sdk.ReasonOf(err) != reason || slices.ContainsFunc(names, func(name string) bool { return !strings.Contains(err.Error(), name) }) {
		t.Errorf("refused with %v, want %v that names %q", err, reason, names)
	}
}

// describe returns what is told of a group that has committed, and has left to read, so
// many records.
func describe(t *testing.T, ctx context.Context, admin *sdk.Admin, group string, committed, lag int64) sdk.GroupDescription {
	t.Helper()
	d, err := admin.DescribeGroup(ctx, group)
	if err != nil {
		t.Fatal(err)
	}
	var gotCommitted, gotLag int64
	for _, p := range d.Partitions {
		gotCommitted, gotLag = gotCommitted+p.Committed, gotLag+p.Lag
	}
	if gotCommitted != committed || gotLag != lag || len(d.Partitions) != 4 {
		t.Errorf("group %s has committed %d and %d left, want %d and %d: %s", group, gotCommitted, gotLag, committed, lag, fmt.Sprintf("%+v", d.Partitions))
	}
	return d
}
