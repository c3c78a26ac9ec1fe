package contract

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	sdk "github.com/runnel-mesh/runnel/sdk/runnel"
)

const (
	killTopic      = "orders"
	killPartitions = 6
	// leaseTTL is the default of the metadata service. After it, and up to 2 s more, a
	// killed leader is replaced; what is measured is logged, and only a partition that
	// does not come back at all fails the test, however busy the machine is.
	leaseTTL = 6 * time.Second
	failover = 45 * time.Second
	// unpaused is less than a lease, which is what a partition would pause that had
	// lost its leader, or waited for etcd or for a controller.
	unpaused = leaseTTL - time.Second
)

// TestKills kills each kind of process, and then all of them, under load: a producer
// that wants acknowledgements by all and a consumer that follows. A leader is paused, too,
// and wakes up with what it had under way when others lead. Their programs notice nothing
// but a pause, and no acknowledged record is lost, moved or there twice.
func TestKills(t *testing.T) {
	cluster := startMesh(t, 2, 3, 0)
	k := newKilling(t, cluster)
	k.whole()
	k.step("warm-up", unpaused, func() {})

	leader := k.leaderOf(0)
	k.step("the leader of partition 0", failover, func() { leader.process().kill() })
	k.comesBack(leader)
	// It is back in sync and leads nothing yet.
	k.step("the same node as a follower", failover, func() { leader.process().kill() })
	k.comesBack(leader)

	paused := k.leaderOf(1)
	k.step("a leader that is paused", failover, func() { paused.signal(t, syscall.SIGSTOP) })
	// All partitions go on, so that it has lost its lease.
	if again := k.leaderOf(1); again == paused {
		t.Error("a leader that is paused leads on")
	}
	paused.signal(t, syscall.SIGCONT)
	k.step("the same, awake again", unpaused, func() {})
	k.whole()

	controller := k.controller(nil)
	k.step("the controller", unpaused, func() {
		controller.process().kill()
		k.controller(controller)
	})
	k.comesBack(controller)
	k.step("etcd, for longer than a lease", unpaused, func() {
		cluster.etcd.process().kill()
		<-time.After(leaseTTL + time.Second)
	})
	k.comesBack(cluster.etcd)
	k.step("everything", failover, func() {
		cluster.kill()
		cluster.start(t)
	})
	k.whole()
	k.finish()
}

// killing is a cluster under load.
type killing struct {
	t       *testing.T
	cluster *mesh
	client  *sdk.Client
	// histories are those of the partitions.
	histories [killPartitions]*history
	producer  *sdk.Producer
	// stop ends the senders and the consumer, which ended waits for.
	stopSending, stopReading context.CancelFunc
	sending, reading         sync.WaitGroup
}

func newKilling(t *testing.T, cluster *mesh) *killing {
	t.Helper()
	client, err := sdk.NewClient(cluster.bootstrap()...)
	if err != nil {
		t.Fatal(err)
	}
	k := &killing{t: t, cluster: cluster, client: client}
	spec := sdk.TopicSpec{Name: killTopic, Partitions: killPartitions, ReplicationFactor: 3, Config: map[string]string{"min.insync.replicas": "2"}}
	if _, err := client.Admin().CreateTopic(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if k.producer, err = client.NewProducer(); err != nil {
		t.Fatal(err)
	}
	consumer, err := client.NewConsumer()
	if err != nil {
		t.Fatal(err)
	}
	if err := consumer.Assign(t.Context(), sdk.AtAll(killTopic, sdk.Earliest())); err != nil {
		t.Fatal(err)
	}
	var sending, reading context.Context
	sending, k.stopSending = context.WithCancel(context.Background())
	reading, k.stopReading = context.WithCancel(context.Background())
	for p := range k.histories {
		k.histories[p] = &history{}
		k.sending.Go(func() { send(sending, t, k.producer, killTopic, int32(p), k.histories[p]) })
	}
	k.reading.Go(func() { k.follow(reading, consumer) })
	t.Cleanup(func() {
		k.stopSending()
		k.stopReading()
		k.producer.Abort()
		_ = client.Close()
		k.sending.Wait()
		k.reading.Wait()
	})
	return k
}

// send sends a record to a partition of a topic every few milliseconds until ctx ends.
func send(ctx context.Context, t *testing.T, producer *sdk.Producer, topic string, partition int32, h *history) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s := &sending{value: fmt.Sprintf("%d/%d", partition, n), sent: time.Now()}
		h.mu.Lock()
		h.sendings = append(h.sendings, s)
		h.mu.Unlock()
		record := sdk.Record{Topic: topic, Partition: sdk.OnPartition(partition), Value: []byte(s.value)}
		err := producer.Send(context.Background(), record, func(ack sdk.Ack, err error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			s.told = time.Now()
			fault, _ := errors.AsType[*sdk.Error](err)
			switch {
			case err == nil:
				s.outcome, s.offset = acknowledged, ack.Offset
			case fault != nil && !fault.OutcomeUnknown():
				s.outcome = refusedForGood
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("%q: %v", s.value, err)
			}
		})
		if err != nil {
			t.Errorf("%q was not taken: %v", s.value, err)
			return
		}
	}
}

// follow reads what there is until ctx ends.
func (k *killing) follow(ctx context.Context, consumer *sdk.Consumer) {
	for {
		records, err := consumer.Poll(ctx)
		if err != nil {
			if ctx.Err() == nil {
				k.t.Errorf("the consumer was told: %v", err)
			}
			return
		}
		for r := range records.All() {
			h := k.histories[r.Partition]
			h.mu.Lock()
			h.followed = append(h.followed, reading{r.Offset, string(r.Value)})
			h.mu.Unlock()
		}
	}
}

// until waits for a condition, which says what is in its way, "" for nothing.
func until(t *testing.T, what string, within time.Duration, condition func(context.Context) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	why := condition(ctx)
	for tick := time.Tick(50 * time.Millisecond); why != ""; {
		select {
		case <-tick:
			if now := condition(ctx); ctx.Err() == nil {
				why = now
			}
		case <-ctx.Done():
			t.Fatalf("not within %v: %s: %s", within, what, why)
		}
	}
}

// step does something to the cluster, waits until each partition has acknowledged a
// record that was sent after that began, and logs how long that took at most.
func (k *killing) step(name string, bound time.Duration, act func()) {
	k.t.Helper()
	began := time.Now()
	act()
	first := time.Duration(0)
	until(k.t, "records sent after "+name+" are acknowledged in each partition", 2*time.Minute, func(context.Context) string {
		first = 0
		for p, h := range k.histories {
			told, ok := h.firstSentAfter(began)
			if !ok {
				return fmt.Sprintf("partition %d does not; the producer says: %v", p, k.producer.HeldUp(killTopic))
			}
			first = max(first, told.Sub(began))
		}
		return ""
	})
	longest := time.Duration(0)
	for _, h := range k.histories {
		longest = max(longest, h.pause(began, time.Now()))
	}
	k.t.Logf("%-32s first acknowledgement in every partition after %6.2f s, longest pause of a partition %6.2f s", name, first.Seconds(), longest.Seconds())
	if longest > bound {
		k.t.Errorf("%s: a partition paused for %v, at most %v is due", name, longest, bound)
	}
}

// comesBack starts a node, and waits until all is as before.
func (k *killing) comesBack(n *node) {
	k.t.Helper()
	if err := n.start(k.t.Context()); err != nil {
		k.t.Fatal(err)
	}
	k.whole()
}

// whole waits until all nodes are live and all replicas in sync.
func (k *killing) whole() {
	k.t.Helper()
	whole(k.t, k.client, killTopic)
}

// whole waits until all nodes are live and the three replicas of each partition of a
// topic are in sync.
func whole(t *testing.T, client *sdk.Client, topic string) {
	t.Helper()
	until(t, "all nodes are live and all replicas in sync", time.Minute, func(ctx context.Context) string {
		cluster, err := client.Admin().DescribeCluster(ctx)
		if err != nil {
			return err.Error()
		}
		for _, n := range cluster.Nodes {
			if n.Fenced || cluster.Controller < 0 {
				return fmt.Sprintf("%+v", cluster)
			}
		}
		described, err := client.Admin().DescribeTopic(ctx, topic)
		if err != nil {
			return err.Error()
		}
		for _, p := range described.Replicas {
			if p.Leader < 0 || len(p.InSync) < 3 {
				return fmt.Sprintf("%+v", p)
			}
		}
		return ""
	})
}

// leaderOf returns the process that leads a partition.
func (k *killing) leaderOf(partition int) *node {
	k.t.Helper()
	topic, err := k.client.Admin().DescribeTopic(k.t.Context(), killTopic)
	if err != nil {
		k.t.Fatal(err)
	}
	return k.cluster.node(k.t, topic.Replicas[partition].Leader)
}

// controller returns the metadata process that is controller, once that is another
// than the one before.
func (k *killing) controller(before *node) (now *node) {
	k.t.Helper()
	until(k.t, "another metadata node is controller", 30*time.Second, func(ctx context.Context) string {
		cluster, err := k.client.Admin().DescribeCluster(ctx)
		if err != nil || cluster.Controller < 0 {
			return fmt.Sprintf("there is none; %v", err)
		}
		if now = k.cluster.node(k.t, cluster.Controller); now == before {
			return "it is still said to be the one before"
		}
		return ""
	})
	return now
}

// finish ends the load, reads all of the topic once more, and checks the history.
func (k *killing) finish() {
	k.t.Helper()
	k.stopSending()
	k.sending.Wait()
	flushing, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	if err := k.producer.Flush(flushing); err != nil {
		k.t.Errorf("records that wait are not delivered: %v", err)
	}
	k.readAll()
	until(k.t, "the consumer has followed to the end", time.Minute, func(context.Context) string {
		for p, h := range k.histories {
			h.mu.Lock()
			followed := len(h.followed)
			h.mu.Unlock()
			if followed < len(h.final) {
				return fmt.Sprintf("it has %d of %d records of partition %d", followed, len(h.final), p)
			}
		}
		return ""
	})
	k.stopReading()
	k.reading.Wait()
	total := 0
	for p, h := range k.histories {
		total += len(h.sendings)
		anomalies := h.check()
		for _, a := range anomalies[:min(len(anomalies), 10)] {
			k.t.Errorf("partition %d: %s", p, a)
		}
		if n := len(anomalies); n > 10 {
			k.t.Errorf("partition %d: %d anomalies in all", p, n)
		}
	}
	if !k.t.Failed() {
		k.t.Logf("%d records were sent, and each is there once, in order, at its offset", total)
	}
}

// readAll reads the topic to its end with a client of its own.
func (k *killing) readAll() {
	k.t.Helper()
	client, err := sdk.NewClient(k.cluster.bootstrap()...)
	if err != nil {
		k.t.Fatal(err)
	}
	defer client.Close()
	consumer, err := client.NewConsumer()
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	if err := consumer.Assign(ctx, sdk.AtAll(killTopic, sdk.Earliest()).UntilEnd()); err != nil {
		k.t.Fatal(err)
	}
	for {
		records, err := consumer.Poll(ctx)
		if errors.Is(err, sdk.ErrEnd) {
			return
		}
		if err != nil {
			k.t.Fatal(err)
		}
		for r := range records.All() {
			h := k.histories[r.Partition]
			h.final = append(h.final, reading{r.Offset, string(r.Value)})
		}
	}
}
