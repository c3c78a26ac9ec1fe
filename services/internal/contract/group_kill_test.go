package contract

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	sdk "github.com/runnel-mesh/runnel/sdk/runnel"
)

const (
	groupTopic      = "payments"
	groupPartitions = 6
	groupID         = "ledger"
	// shortSession is that of the member that dies: the others wait for it.
	shortSession = 6 * time.Second
	// longSession outlasts the failover of a coordinator, after which a member that was
	// not heard meanwhile still has what it had.
	longSession = 25 * time.Second
	// quick and slow are how long members take to give partitions up. They differ, so
	// that the group goes on while one still has what another is to get.
	quick, slow = 50 * time.Millisecond, time.Second
)

// TestGroupKills kills a member, the coordinator of its group, which it has paused
// before, and the storage leader of the group's offsets, under load: three members that process at least once. Nothing that
// was acknowledged is left out, nothing is repeated but what was not committed, no
// partition has two owners, and no committed offset goes back.
func TestGroupKills(t *testing.T) {
	t.Parallel()
	k := newGroupKilling(t, startMesh(t, 2, 3, 2))
	k.join("first", shortSession, quick)
	k.join("second", longSession, quick)
	k.join("third", longSession, slow)
	k.settled(3)
	k.step("warm-up", unpaused, func() {})

	k.step("a member", shortSession+failover, func() { k.killMember("first") })
	k.join("fourth", longSession, quick)
	k.settled(3)

	paused := k.coordinator()
	k.keepingTenures("the coordinator of the group, paused", func() { paused.signal(t, syscall.SIGSTOP) })
	// What it still believes is no longer so: its group is another's.
	paused.signal(t, syscall.SIGCONT)
	k.step("the same, awake again", unpaused, func() {})
	k.wholeAgain()
	coordinator := k.coordinator()
	k.keepingTenures("the coordinator of the group", func() { coordinator.process().kill() })
	k.comesBack(coordinator)
	leader := k.offsetsLeader()
	k.keepingTenures("the leader of the group's offsets", func() { leader.process().kill() })
	k.comesBack(leader)
	k.settled(3)
	k.finish()
}

// groupKilling is a group under load.
type groupKilling struct {
	t        *testing.T
	cluster  *mesh
	client   *sdk.Client
	producer *sdk.Producer
	// histories are those of the partitions.
	histories [groupPartitions]*shared
	members   []*memberProcess
	// stopSending and stopWatching end the senders and the watcher of offsets, which
	// sending and watching wait for.
	stopSending, stopWatching context.CancelFunc
	sending, watching         sync.WaitGroup
}

func newGroupKilling(t *testing.T, cluster *mesh) *groupKilling {
	t.Helper()
	client, err := sdk.NewClient(cluster.bootstrap()...)
	if err != nil {
		t.Fatal(err)
	}
	k := &groupKilling{t: t, cluster: cluster, client: client}
	spec := sdk.TopicSpec{Name: groupTopic, Partitions: groupPartitions, ReplicationFactor: 3, Config: map[string]string{"min.insync.replicas": "2"}}
	if _, err := client.Admin().CreateTopic(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if k.producer, err = client.NewProducer(); err != nil {
		t.Fatal(err)
	}
	var sending, watching context.Context
	sending, k.stopSending = context.WithCancel(context.Background())
	watching, k.stopWatching = context.WithCancel(context.Background())
	for p := range k.histories {
		h := &shared{}
		k.histories[p] = h
		k.sending.Go(func() { send(sending, t, k.producer, groupTopic, int32(p), &h.history) })
	}
	k.watching.Go(func() { k.watch(watching) })
	t.Cleanup(func() {
		k.stopSending()
		k.stopWatching()
		k.producer.Abort()
		_ = client.Close()
		k.sending.Wait()
		k.watching.Wait()
	})
	return k
}

// watch asks for the committed offsets until ctx ends.
func (k *groupKilling) watch(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		_ = k.look(ctx) // It is asked again.
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// look notes the committed offsets, unless they cannot be asked for.
func (k *groupKilling) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	asked := time.Now()
	offsets, err := k.client.Admin().ListCommitted(ctx, groupID)
	told := time.Now()
	if err != nil {
		return err
	}
	seen := make([]int64, groupPartitions)
	for _, o := range offsets {
		seen[o.Partition] = o.Offset
	}
	// A partition without an offset has gone back to none if it had one.
	for p, offset := range seen {
		k.histories[p].commit(committed{offset, asked, told, "the watcher"})
	}
	return nil
}

// join starts a member.
func (k *groupKilling) join(name string, session, handOver time.Duration) {
	k.t.Helper()
	k.members = append(k.members, startMember(k.t, memberOrder{
		Name: name, Group: groupID, Topic: groupTopic, Bootstrap: k.cluster.bootstrap(), SessionTimeout: session, HandOver: handOver,
	}, groupPartitions, k.take))
}

// take notes what a member says.
func (k *groupKilling) take(m *memberProcess, e memberEvent) {
	at := time.Unix(0, e.At)
	for _, p := range e.Partitions {
		switch e.Kind {
		case memberAssigned:
			m.tenures[p] = k.histories[p].assign(m.name, at)
		case memberRevoked, memberLost:
			k.histories[p].end(m.tenures[p], e.Kind, at)
		}
	}
	if e.Kind == memberProcessed {
		if wrong := k.histories[e.Partition].process(m.tenures[e.Partition], e.Offset, e.Values, at); wrong != "" {
			k.t.Errorf("partition %d: %s", e.Partition, wrong)
		}
	}
	for p, offset := range e.Committed {
		k.histories[p].commit(committed{offset, time.Unix(0, e.Asked), at, m.name})
	}
}

// settled waits until the group has so many members, which share all partitions evenly.
func (k *groupKilling) settled(members int) {
	k.t.Helper()
	until(k.t, "the group is settled", time.Minute, func(ctx context.Context) string {
		d, err := k.client.Admin().DescribeGroup(ctx, groupID)
		if err != nil {
			return err.Error()
		}
		uneven := func(m sdk.GroupMember) bool { return len(m.Assigned) != groupPartitions/members }
		if d.State != sdk.GroupStable || len(d.Members) != members || slices.ContainsFunc(d.Members, uneven) {
			return fmt.Sprintf("%+v", d)
		}
		for p, h := range k.histories {
			if _, ok := h.held(); !ok {
				return fmt.Sprintf("nobody says to have partition %d", p)
			}
		}
		return ""
	})
}

// step does something, waits until in each partition a record that was sent after that
// began is processed and its offset committed, and logs how long that took at most.
func (k *groupKilling) step(name string, bound time.Duration, act func()) {
	k.t.Helper()
	began := time.Now()
	act()
	var processed, commits time.Duration
	until(k.t, "records sent after "+name+" are processed and committed in each partition", 2*time.Minute, func(context.Context) string {
		processed, commits = 0, 0
		for p, h := range k.histories {
			at, told, wanting := h.beyond(began)
			if wanting != "" {
				return fmt.Sprintf("partition %d: %s", p, wanting)
			}
			processed, commits = max(processed, at.Sub(began)), max(commits, told.Sub(began))
		}
		return ""
	})
	longest := time.Duration(0)
	for _, h := range k.histories {
		longest = max(longest, h.idle(began, time.Now()))
	}
	k.t.Logf("%-37s processing in every partition after %6.2f s, commits after %6.2f s, longest pause of a partition %6.2f s",
		name, processed.Seconds(), commits.Seconds(), longest.Seconds())
	if longest > bound {
		k.t.Errorf("%s: a partition paused for %v, at most %v is due", name, longest, bound)
	}
}

// keepingTenures is step with something that no member is to notice but by a pause: it
// keeps what it has, unless its session ended before the group could be reached again.
func (k *groupKilling) keepingTenures(name string, act func()) {
	k.t.Helper()
	before := make([]*tenure, groupPartitions)
	for p, h := range k.histories {
		before[p], _ = h.held()
	}
	began := time.Now()
	k.step(name, longSession+failover, act)
	// A member may have been heard last a heartbeat's interval before.
	if took := time.Since(began); took > longSession*2/3 {
		k.t.Logf("sessions may have ended in %v", took)
		return
	}
	for p, h := range k.histories {
		if now, _ := h.held(); now == nil || now != before[p] {
			k.t.Errorf("%s: partition %d changed hands: before %s, then %s", name, p, before[p].whose(), now.whose())
		}
	}
}

// killMember kills a member that has partitions.
func (k *groupKilling) killMember(name string) {
	k.t.Helper()
	i := slices.IndexFunc(k.members, func(m *memberProcess) bool { return m.name == name })
	m := k.members[i]
	k.members = slices.Delete(k.members, i, i+1)
	m.kill()
	ended := time.Now()
	had := 0
	for p, o := range m.tenures {
		if o != nil && o.ended == "" {
			had++
		}
		k.histories[p].end(o, "killed", ended)
	}
	if had == 0 {
		k.t.Errorf("member %s has no partition to lose", name)
	}
}

// coordinator returns the process that looks after the group.
func (k *groupKilling) coordinator() *node {
	k.t.Helper()
	d, err := k.client.Admin().DescribeGroup(k.t.Context(), groupID)
	if err != nil {
		k.t.Fatal(err)
	}
	return k.cluster.node(k.t, d.Coordinator)
}

// offsetsLeader returns the process that leads the partition of the group's offsets.
func (k *groupKilling) offsetsLeader() *node {
	k.t.Helper()
	topic, err := k.client.Admin().DescribeTopic(k.t.Context(), cluster.OffsetsTopic)
	if err != nil {
		k.t.Fatal(err)
	}
	return k.cluster.node(k.t, topic.Replicas[cluster.PartitionForKey([]byte(groupID), len(topic.Replicas))].Leader)
}

// comesBack starts a node, and waits until all is as before.
func (k *groupKilling) comesBack(n *node) {
	k.t.Helper()
	if err := n.start(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
	k.wholeAgain()
}

func (k *groupKilling) wholeAgain() {
	k.t.Helper()
	whole(k.t, k.client, groupTopic)
	whole(k.t, k.client, cluster.OffsetsTopic)
}

// finish ends the load, lets the members process the rest and leave, and checks the
// histories.
func (k *groupKilling) finish() {
	k.t.Helper()
	k.stopSending()
	k.sending.Wait()
	flushing, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	if err := k.producer.Flush(flushing); err != nil {
		k.t.Errorf("records that wait are not delivered: %v", err)
	}
	until(k.t, "the group has processed all", time.Minute, func(context.Context) string {
		for p, h := range k.histories {
			if left := h.unprocessed(); left > 0 {
				return fmt.Sprintf("%d records of partition %d are left", left, p)
			}
		}
		return ""
	})
	for _, m := range k.members {
		if err := m.leave.Close(); err != nil {
			k.t.Error(err)
		}
	}
	for _, m := range k.members {
		select {
		case <-m.done:
		case <-time.After(30 * time.Second):
			k.t.Fatalf("member %s does not leave", m.name)
		}
		if code := m.command.ProcessState.ExitCode(); code != 0 {
			k.t.Errorf("member %s ends with code %d", m.name, code)
		}
	}
	k.stopWatching()
	k.watching.Wait()
	if err := k.look(k.t.Context()); err != nil {
		k.t.Errorf("committed offsets at the end: %v", err)
	}
	sent, again := 0, 0
	for p, h := range k.histories {
		anomalies, repeats := h.checkShared()
		if c, end := h.commits[len(h.commits)-1], int64(len(h.first)); c.offset != end {
			anomalies = append(anomalies, fmt.Sprintf("uncommitted: all have left, and %d of %d is committed", c.offset, end))
		}
		for _, a := range anomalies[:min(len(anomalies), 10)] {
			k.t.Errorf("partition %d: %s", p, a)
		}
		if n := len(anomalies); n > 10 {
			k.t.Errorf("partition %d: %d anomalies in all", p, n)
		}
		sent, again = sent+len(h.sendings), again+repeats
		for _, o := range h.tenures {
			k.t.Logf("partition %d: %-7s had it for %6.2f s from offset %d on, %d records, %s", p, o.member, o.to.Sub(o.from).Seconds(), o.begin, len(o.values), o.ended)
		}
	}
	if !k.t.Failed() {
		k.t.Logf("%d records were sent, each was processed, %d of them again, and no partition had two owners", sent, again)
	}
}
