package offsets

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// fakeLog answers Consume, each call by the next of its turns.
type fakeLog struct {
	storagev1connect.UnimplementedLogServiceHandler
	turns []func(req *storagev1.ConsumeRequest, send func(*storagev1.ConsumeResponse) error) error
	calls atomic.Int32
}

func (n *fakeLog) Consume(ctx context.Context, req *storagev1.ConsumeRequest, stream storagev1connect.LogServiceConsumeServerStream) error {
	turn := n.turns[min(int(n.calls.Add(1)), len(n.turns))-1]
	if err := turn(req, stream.Send); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// find is how load comes to the node.
func (n *fakeLog) find() func() (leader, error) {
	server := rpc.NewServer(rpc.ServerOptions{})
	storagev1connect.RegisterLogServiceHandler(server, n)
	client := storagev1connect.NewLogServiceClient(connect.NewClient(rpc.InProcess(server)))
	return func() (leader, error) {
		return leader{log: client, topic: cluster.OffsetsTopic, epoch: cluster.LeaderEpoch(3 + n.calls.Load())}, nil
	}
}

// commits are n records of which each has an offset of its own, the first at base.
func commits(base, n int64) []groups.Record {
	var records []groups.Record
	for offset := base; offset < base+n; offset++ {
		records = append(records, &groups.OffsetRecord{
			Group: "g", Partition: partition(1, int32(offset)), Offset: offset, LeaderEpoch: -1, Committed: time.UnixMilli(0).UTC(),
		})
	}
	return records
}

// batchAt is commits as a batch of leader epoch 2.
func batchAt(t *testing.T, base, n int64) []byte {
	t.Helper()
	batch, err := Encode(commits(base, n), time.UnixMilli(0))
	if err != nil {
		t.Fatal(err)
	}
	recordbatch.Assign(batch, base, 2)
	return batch
}

func response(next int64, batches ...[]byte) *storagev1.ConsumeResponse {
	return &storagev1.ConsumeResponse{Topic: cluster.OffsetsTopic, Partition: 7, NextOffset: next, HighWatermark: next, Batches: batches}
}

// sendAll is a turn that sends responses and then err.
func sendAll(err error, responses ...*storagev1.ConsumeResponse) func(*storagev1.ConsumeRequest, func(*storagev1.ConsumeResponse) error) error {
	return func(_ *storagev1.ConsumeRequest, send func(*storagev1.ConsumeResponse) error) error {
		for _, r := range responses {
			if err := send(r); err != nil {
				return err
			}
		}
		return err
	}
}

// loaded is what came of a load up to end, and how long it took.
func loaded(t *testing.T, n *fakeLog, end int64) (records []groups.Record, unknown int, took time.Duration, err error) {
	begun := time.Now()
	unknown, err = load(t.Context(), groups.Partition{Topic: cluster.TopicID{9}, Index: 7}, end, n.find(), func(piece []groups.Record) {
		records = append(records, piece...)
	})
	return records, unknown, time.Since(begun), err
}

func TestLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &fakeLog{}
		n.turns = append(n.turns, func(req *storagev1.ConsumeRequest, send func(*storagev1.ConsumeResponse) error) error {
			start := req.GetPartitions()[0]
			if _, earliest := start.GetStart().GetPosition().(*logv1.StartPosition_Earliest); !earliest {
				t.Errorf("the load begins at %v, want the start of the log", start.GetStart())
			}
			if start.GetTopic() != cluster.OffsetsTopic || start.GetTopicId()[0] != 9 || start.GetPartition() != 7 || start.GetLeaderEpoch() != 3 || start.LastReadEpoch != nil {
				t.Errorf("the load asks for %v", start)
			}
			if req.GetForm() != storagev1.RecordForm_RECORD_FORM_BATCHES || req.GetStopAtEnd() || req.GetMaxResponseBytes() == 0 {
				t.Errorf("the load asks by %v, want batches, followed, in bounded responses", req)
			}
			// Compaction has left gaps; the last batch goes beyond the end.
			return sendAll(nil, response(5, batchAt(t, 0, 2), batchAt(t, 3, 1)), response(8), response(14, batchAt(t, 8, 4), batchAt(t, 12, 2)))(req, send)
		})
		records, unknown, _, err := loaded(t, n, 10)
		want := append(append(commits(0, 2), commits(3, 1)...), commits(8, 2)...)
		if err != nil || unknown != 0 || !reflect.DeepEqual(records, want) {
			t.Errorf("%d records, %d unknown: %v; want %d", len(records), unknown, err, len(want))
		}
	})
}

// Compaction may leave no batch that ends at the end.
func TestLoadEndsWithoutABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &fakeLog{}
		n.turns = append(n.turns, sendAll(nil, response(2, batchAt(t, 0, 2)), response(5)))
		records, _, took, err := loaded(t, n, 5)
		if err != nil || !reflect.DeepEqual(records, commits(0, 2)) || took > 0 {
			t.Errorf("%d records after %v: %v; want 2 at once", len(records), took, err)
		}
	})
}

func TestLoadGoesOnAtTheNextLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		moved := rpcerr.New(errorsv1.Reason_REASON_NOT_LEADER, "moved")
		n := &fakeLog{}
		n.turns = append(n.turns,
			sendAll(moved),
			sendAll(nil, &storagev1.ConsumeResponse{Failure: moved.Failure()}),
			sendAll(rpcerr.New(errorsv1.Reason_REASON_DRAINING, "draining"), response(4, batchAt(t, 0, 4))),
			sendAll(rpcerr.New(errorsv1.Reason_REASON_NO_LEADER, "election"), response(6, batchAt(t, 4, 2))),
		)
		// The next leader's log is in one batch, of which a part was read.
		n.turns = append(n.turns, func(req *storagev1.ConsumeRequest, send func(*storagev1.ConsumeResponse) error) error {
			start := req.GetPartitions()[0]
			if start.GetStart().GetOffset() != 6 || start.GetLastReadEpoch() != 2 || start.GetLeaderEpoch() != 7 {
				t.Errorf("the load goes on with %v, want offset 6 after epoch 2", start)
			}
			return send(response(8, batchAt(t, 4, 4)))
		})
		records, _, took, err := loaded(t, n, 8)
		if err != nil || !reflect.DeepEqual(records, commits(0, 8)) {
			t.Errorf("%d records: %v; want each of 8 once", len(records), err)
		}
		if took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestLoadLeavesASilentLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &fakeLog{}
		n.turns = append(n.turns, sendAll(nil, response(2, batchAt(t, 0, 2))), sendAll(nil, response(4, batchAt(t, 2, 2))))
		records, _, took, err := loaded(t, n, 4)
		if err != nil || !reflect.DeepEqual(records, commits(0, 4)) {
			t.Errorf("%d records: %v; want 4", len(records), err)
		}
		if took < loadSilence || took > loadSilence+time.Second {
			t.Errorf("it took %v, want little more than %v", took, loadSilence)
		}
	})
}

func TestLoadGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &fakeLog{}
		n.turns = append(n.turns, sendAll(nil, response(2, batchAt(t, 0, 2))), sendAll(rpcerr.New(errorsv1.Reason_REASON_NO_LEADER, "no leader")))
		records, _, took, err := loaded(t, n, 4)
		if err == nil || !strings.Contains(err.Error(), "offset 2 of 4") || rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_NO_LEADER {
			t.Errorf("%d records: %v, want an error that says how far it came and why not further", len(records), err)
		}
		if most := loadSilence + loadPatience + maxLoadPause; took < loadPatience || took > most {
			t.Errorf("it took %v, want %v to %v", took, loadPatience, most)
		}
	})
}

func TestLoadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		n := &fakeLog{}
		n.turns = append(n.turns, sendAll(nil))
		begun := time.Now()
		_, err := load(ctx, groups.Partition{}, 4, n.find(), func([]groups.Record) {})
		if err == nil || time.Since(begun) != time.Second || n.calls.Load() != 1 {
			t.Errorf("%v after %v and %d calls", err, time.Since(begun), n.calls.Load())
		}
	})
}

func TestLoadRefusesWhatItCannotTrust(t *testing.T) {
	t.Parallel()
	flipped := batchAt(t, 0, 2)
	flipped[len(flipped)-1] ^= 1
	unreadable := raw(t, "1203 0a0167", "ff")
	failure := rpcerr.New(errorsv1.Reason_REASON_LOG_TRUNCATED, "truncated").Failure()
	for name, test := range map[string]struct {
		responses []*storagev1.ConsumeResponse
		want      string
	}{
		"a flipped bit":            {[]*storagev1.ConsumeResponse{response(2, flipped)}, "crc"},
		"a record of another form": {[]*storagev1.ConsumeResponse{response(101, unreadable)}, "offset 100"},
		"a batch twice":            {[]*storagev1.ConsumeResponse{response(4, batchAt(t, 0, 2), batchAt(t, 0, 2))}, "offset"},
		"batches that overlap":     {[]*storagev1.ConsumeResponse{response(2, batchAt(t, 0, 2)), response(3, batchAt(t, 1, 2))}, "offset"},
		"a position that falls":    {[]*storagev1.ConsumeResponse{response(2, batchAt(t, 0, 2)), response(1)}, "behind"},
		"a truncated log":          {[]*storagev1.ConsumeResponse{response(2, batchAt(t, 0, 2)), {Failure: failure}}, "truncated"},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := &fakeLog{}
			n.turns = append(n.turns, sendAll(nil, test.responses...))
			_, _, took, err := loaded(t, n, 200)
			if err == nil || !strings.Contains(err.Error(), test.want) || took > 0 || n.calls.Load() != 1 {
				t.Errorf("%s: %v after %v and %d calls, want an error with %q at once", name, err, took, n.calls.Load(), test.want)
			}
		})
	}
}

func TestLoadCountsWhatIsNewer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &fakeLog{}
		n.turns = append(n.turns, sendAll(nil, response(103, raw(t, "2a00", "01", "1203 0a0167", "null", "2a00", "null"))))
		records, unknown, _, err := loaded(t, n, 103)
		if err != nil || unknown != 2 || len(records) != 1 {
			t.Errorf("%d records, %d unknown: %v; want 1 and 2", len(records), unknown, err)
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	const batches, each = 100, 1000
	var sent []*storagev1.ConsumeResponse
	for i := range int64(batches) {
		batch, err := Encode(commits(i*each, each), time.UnixMilli(0))
		if err != nil {
			b.Fatal(err)
		}
		recordbatch.Assign(batch, i*each, 2)
		sent = append(sent, response((i+1)*each, batch))
	}
	for b.Loop() {
		n := &fakeLog{}
		n.turns = append(n.turns, sendAll(nil, sent...))
		got := 0
		if _, err := load(b.Context(), groups.Partition{}, batches*each, n.find(), func(piece []groups.Record) { got += len(piece) }); err != nil || got != batches*each {
			b.Fatal(fmt.Errorf("%d records: %w", got, err))
		}
	}
}
