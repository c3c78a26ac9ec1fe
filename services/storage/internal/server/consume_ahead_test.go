package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/partition"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// diskLog is a log with one record per batch, none of them in memory, that returns
// one batch per read.
type diskLog struct {
	partition.Log
	t   *testing.T
	end int64

	mu    sync.Mutex
	reads []int64
	// hangs is the offset at which a read hangs until its context ends; 0 for none.
	hangs int64
}

func (l *diskLog) Loaded() (store.State, store.PackedProducers) {
	return store.State{LogEnd: l.end, HighWatermark: l.end}, ""
}
func (l *diskLog) Err() error                              { return nil }
func (l *diskLog) Failed() error                           { return nil }
func (l *diskLog) Append(_ store.Append, done func(error)) { done(nil) }

func (l *diskLog) Read(ctx context.Context, offset, _ int64, _ int) ([]store.Batch, error) {
	l.mu.Lock()
	l.reads = append(l.reads, offset)
	hangs := l.hangs > 0 && offset == l.hangs
	l.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return []store.Batch{{BaseOffset: offset, LastOffset: offset, Bytes: batch(l.t, "a")}}, nil
}

func (l *diskLog) readsOf(offset int64) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, read := range l.reads {
		if read == offset {
			n++
		}
	}
	return n
}

// sink takes the responses; sending is called before.
type sink struct {
	sending   func(*storagev1.ConsumeResponse) error
	responses []*storagev1.ConsumeResponse
}

func (s *sink) Send(res *storagev1.ConsumeResponse) error {
	if s.sending != nil {
		if err := s.sending(res); err != nil {
			return err
		}
	}
	s.responses = append(s.responses, res)
	return nil
}

// aheadStream returns a stream over logs of which the first one has a turn. The test
// does not end before its goroutines have.
func aheadStream(t *testing.T, out *sink, logs ...*diskLog) *consumeStream {
	t.Helper()
	config, err := rules.ParseTopicConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	host := partition.NewHost(partition.DefaultConfig(), func(cluster.NodeID) string { return "" }, nil)
	host.SetSelf(self)
	topic := partition.NewTopic(cluster.TopicID{1}, "orders", config)
	c := &consumeStream{
		server:   New(DefaultConfig(), host, nil, nil, rpc.NewDrain(), slog.New(slog.DiscardHandler), nil),
		req:      &storagev1.ConsumeRequest{Form: storagev1.RecordForm_RECORD_FORM_BATCHES},
		stream:   out,
		maxBytes: 1,
		ready:    partition.NewReady(),
		queue:    []int{0},
		live:     len(logs),
	}
	for i, log := range logs {
		log.t = t
		p := partition.New(host, topic, int32(i), log)
		lead(t, p, 0)
		c.req.Partitions = append(c.req.Partitions, from("orders", int32(i), offset(0)))
		c.readers = append(c.readers, reader{partition: p, end: log.end})
	}
	t.Cleanup(func() { _ = c.server.Wait(context.Background()) })
	return c
}

func lead(t *testing.T, p *partition.Partition, epoch cluster.LeaderEpoch) {
	t.Helper()
	if err := p.Apply(cluster.Partition{
		Leader: self, LeaderEpoch: epoch, PartitionEpoch: cluster.PartitionEpoch(epoch),
		Replicas: []cluster.NodeID{self}, ISR: []cluster.NodeID{self}, LastLeader: cluster.NoNode,
	}); err != nil {
		t.Fatal(err)
	}
}

// What was read ahead is sent, once and in order, and read only once.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		logs := []*diskLog{{end: 4}, {end: 3}}
		out := &sink{sending: func(res *storagev1.ConsumeResponse) error {
			// What comes next, the other partition's turn, is read while this is sent.
			synctest.Wait()
			next, due := logs[1-res.GetPartition()], res.GetNextOffset()-1+int64(res.GetPartition())
			if due < next.end && next.readsOf(due) != 1 {
				t.Errorf("offset %d of partition %d is not read ahead", due, 1-res.GetPartition())
			}
			return nil
		}}
		c := aheadStream(t, out, logs...)
		c.queue = []int{0, 1}
		if err := c.serve(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := make([]int64, len(logs))
		for _, res := range out.responses {
			if next[res.GetPartition()]++; res.GetNextOffset() != next[res.GetPartition()] || res.GetFailure() != nil {
				t.Errorf("response %v", res)
			}
		}
		for i, log := range logs {
			if next[i] != log.end || int64(len(log.reads)) != log.end {
				t.Errorf("partition %d was sent up to %d of %d with reads at %d", i, next[i], log.end, log.reads)
			}
		}
	})
}

// A stream that ends while the disk hangs leaves no read behind.
func TestReadAheadIsCalledOff(t *testing.T) {
	t.Parallel()
	broken := errors.New("the client is gone")
	for name, end := range map[string]func(c *consumeStream, cancel context.CancelFunc) (sent, served error){
		"the call is canceled": func(_ *consumeStream, cancel context.CancelFunc) (error, error) {
			cancel()
			return nil, context.Canceled
		},
		"the client goes": func(*consumeStream, context.CancelFunc) (error, error) { return broken, broken },
		"the node drains": func(c *consumeStream, _ context.CancelFunc) (error, error) {
			c.server.drain.Begin()
			return nil, c.server.drain.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				log := &diskLog{end: 9, hangs: 1}
				out := &sink{}
				c := aheadStream(t, out, log)
				var want error
				out.sending = func(*storagev1.ConsumeResponse) (sent error) {
					synctest.Wait()
					if log.readsOf(1) != 1 {
						t.Error("nothing is read ahead")
					}
					sent, want = end(c, cancel)
					return sent
				}
				if err := c.serve(ctx); err == nil || err.Error() != want.Error() {
					t.Errorf("the stream ends with %v, want %v", err, want)
				}
				if err := c.server.Wait(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A partition that ends while a response is sent is not served from what was read
// before, and the others are read ahead as ever.
func TestReadAheadOfWhatIsGone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end    func(t *testing.T, p *partition.Partition)
		reason errorsv1.Reason
	}{
		"another leadership": {func(t *testing.T, p *partition.Partition) { lead(t, p, 1) }, errorsv1.Reason_REASON_FENCED_LEADER_EPOCH},
		"deleted records": {func(t *testing.T, p *partition.Partition) {
			if _, err := p.DeleteRecords(t.Context(), 5, rules.NoEpoch); err != nil {
				t.Error(err)
			}
		}, errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				out := &sink{}
				logs := []*diskLog{{end: 9}, {end: 9}}
				s := aheadStream(t, out, logs...)
				s.queue = []int{0, 1}
				p := s.readers[1].partition
				out.sending = func(res *storagev1.ConsumeResponse) error {
					if len(out.responses) == 0 {
						synctest.Wait()
						if logs[1].readsOf(0) != 1 {
							t.Error("nothing is read ahead")
						}
						c.end(t, p)
					}
					return nil
				}
				if err := s.serve(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantFailure(t, out.responses[1].GetFailure(), c.reason)
				if len(out.responses) != 10 || len(logs[0].reads) != 9 {
					t.Errorf("%d responses, %d reads of the other partition", len(out.responses), len(logs[0].reads))
				}
			})
		})
	}
}

// A partition that has nothing more for now keeps nobody from reading ahead.
func TestReadAheadOfIdlePartition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		logs := []*diskLog{{end: 1}, {end: 9}}
		s := aheadStream(t, &sink{}, logs...)
		s.readers[0].end = following
		defer func() {
			cancel()
			_ = s.server.Wait(context.Background())
			s.close()
		}()
		s.queue = nil
		if again, err := s.turn(ctx, 0); again || err != nil {
			t.Fatalf("the partition wants another turn: %v, %v", again, err)
		}
		for range 3 {
			if again, err := s.turn(ctx, 1); !again || err != nil {
				t.Fatalf("the partition wants no other turn: %v, %v", again, err)
			}
			if a := s.ahead; a == nil || a.slot != 1 || a.fetch.Offset != s.readers[1].position {
				t.Fatalf("read ahead is %+v", a)
			}
		}
	})
}
