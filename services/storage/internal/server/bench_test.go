package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/log/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/sdk/transport"
	"github.com/runnel-mesh/runnel/services/internal/rpc"
	"github.com/runnel-mesh/runnel/services/internal/rules"
	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// overHTTP serves on a port of the loopback interface.
func overHTTP(b *testing.B) func(*options) {
	return func(o *options) {
		o.front = func(server *connect.Server) connect.Transport {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				done <- rpc.Serve(ctx, rpc.ServeOptions{Listener: listener, Server: server, Grace: time.Second})
			}()
			pool := transport.NewPool(transport.Options{})
			b.Cleanup(func() {
				pool.Close()
				cancel()
				if err := <-done; err != nil {
					b.Error(err)
				}
			})
			return pool.Transport(listener.Addr().String(), transport.Produce)
		}
	}
}

// benchBatch is a batch of records of 1 KiB, a little under size in all.
func benchBatch(b *testing.B, size int) []byte {
	var builder recordbatch.Builder
	for i := range size >> 10 {
		if err := builder.Append(nil, slices.Repeat([]byte{byte('a' + i%26)}, 1000), nil, 1000); err != nil {
			b.Fatal(err)
		}
	}
	batch, err := builder.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		b.Fatal(err)
	}
	return batch
}

// The store alone: what produce is measured against.
func BenchmarkStore(b *testing.B) {
	for _, set := range []store.Set{store.SetReplicated, store.SetSynced} {
		for _, size := range []int{64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("durability=%s/batch=%dKiB", set, size>>10), func(b *testing.B) {
				config := store.DefaultConfig()
				config.Dir = b.TempDir()
				st, err := store.Open(config)
				if err != nil {
					b.Fatal(err)
				}
				batch := benchBatch(b, size)
				records := int64(size >> 10)
				log := st.Log(store.PartitionID{Topic: cluster.TopicID{1}})
				inFlight := make(chan struct{}, 5<<20/size)
				b.SetBytes(int64(len(batch)))
				b.ResetTimer()
				var next int64
				for range b.N {
					inFlight <- struct{}{}
					own := slices.Clone(batch)
					recordbatch.Assign(own, next, 0)
					log.Append(store.Append{
						Set:     set,
						Batches: []store.Batch{{Bytes: own, BaseOffset: next, LastOffset: next + records - 1, MaxTimestamp: 1000}},
						State:   store.State{LogEnd: next + records},
					}, func(err error) {
						if err != nil {
							b.Error(err)
						}
						<-inFlight
					})
					next += records
				}
				for range cap(inFlight) {
					inFlight <- struct{}{}
				}
				b.StopTimer()
				if err := st.Close(1); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// One partition, acks=leader, records of 1 KiB, through one stream over HTTP/2
// with the client in the same process.
func BenchmarkProduce(b *testing.B) {
	for _, durability := range []string{rules.DurabilityReplicated, rules.DurabilitySynced} {
		for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("durability=%s/batch=%dKiB", durability, size>>10), func(b *testing.B) {
				h := start(b, overHTTP(b))
				h.create("orders", 1, rules.Durability, durability, rules.MaxMessageBytes, "2000000")
				batch := benchBatch(b, size)
				stream, err := h.client.Produce(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				inFlight := make(chan struct{}, 5<<20/size)
				done := make(chan error, 1)
				go func() {
					for {
						res, err := stream.Receive()
						if err != nil {
							done <- err
							return
						}
						if res.GetFailure() != nil {
							done <- fmt.Errorf("response %v", res)
							return
						}
						<-inFlight
					}
				}()
				b.SetBytes(int64(len(batch)))
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					select {
					case inFlight <- struct{}{}:
					case err := <-done:
						b.Fatal(err)
					}
					if err := stream.Send(&storagev1.ProduceRequest{RequestId: uint64(i), Topic: "orders", Acks: logv1.Acks_ACKS_LEADER, Batch: batch}); err != nil {
						b.Fatal(err, <-done)
					}
				}
				for range cap(inFlight) {
					inFlight <- struct{}{}
				}
				b.StopTimer()
				_ = stream.CloseSend()
				if err := <-done; !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
			})
		}
	}
}

// A consumer that follows a producer of batches of 64 KiB, over HTTP/2.
func BenchmarkConsumeTail(b *testing.B) {
	h := start(b, overHTTP(b))
	h.create("orders", 1, rules.Durability, rules.DurabilityReplicated)
	batch := benchBatch(b, 64<<10)
	for range 256 {
		if _, err := h.client.Append(b.Context(), &storagev1.AppendRequest{Append: &storagev1.ProduceRequest{Topic: "orders", Batch: batch}}); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		c := h.consume(&storagev1.ConsumeRequest{
			Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, Form: storagev1.RecordForm_RECORD_FORM_BATCHES, StopAtEnd: true,
		})
		for reached := false; !reached; {
			res := c.receive()
			n += len(res.GetBatches())
			reached = res.GetEndReached()
		}
		c.close()
	}
}

// One record of 1 KiB at a time, 10,000 per second: how long until it is
// acknowledged and until a consumer has it.
func BenchmarkLatency(b *testing.B) {
	for _, durability := range []string{rules.DurabilityReplicated, rules.DurabilitySynced} {
		b.Run("durability="+durability, func(b *testing.B) {
			h := start(b, overHTTP(b))
			h.create("orders", 1, rules.Durability, durability)
			batch := benchBatch(b, 1<<10)
			const rate = 10_000
			p := h.produce(context.Background())
			c := h.consume(&storagev1.ConsumeRequest{
				Partitions: []*storagev1.PartitionStart{from("orders", 0, earliest())}, Form: storagev1.RecordForm_RECORD_FORM_BATCHES,
			})
			c.receive()
			n := max(b.N, rate)
			sent := make([]time.Time, n)
			acked, consumed := make([]time.Duration, 0, n), make([]time.Duration, 0, n)
			done := make(chan struct{}, 2)
			go func() {
				for i := range n {
					if res := <-p.responses; res.GetFailure() != nil {
						b.Error(res)
					}
					acked = append(acked, time.Since(sent[i]))
				}
				done <- struct{}{}
			}()
			go func() {
				for len(consumed) < n {
					res, err := c.stream.Receive()
					if err != nil {
						b.Error(err)
						break
					}
					for range res.GetBatches() {
						consumed = append(consumed, time.Since(sent[len(consumed)]))
					}
				}
				done <- struct{}{}
			}()
			begin := time.Now()
			for i := range n {
				due := begin.Add(time.Duration(i) * time.Second / rate)
				if wait := time.Until(due); wait > 0 {
					time.Sleep(wait)
				}
				// Open loop: a late send counts from when it was due.
				sent[i] = due
				p.send(&storagev1.ProduceRequest{Topic: "orders", Batch: batch})
			}
			<-done
			<-done
			for name, d := range map[string][]time.Duration{"ack": acked, "e2e": consumed} {
				slices.Sort(d)
				for _, q := range []float64{0.5, 0.99, 0.999} {
					b.ReportMetric(float64(d[int(q*float64(len(d)-1))].Microseconds())/1000, fmt.Sprintf("ms-%s-p%g", name, q*100))
				}
			}
			if err := p.close(); err != nil {
				b.Error(err)
			}
		})
	}
}
