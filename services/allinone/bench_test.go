package allinone_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/allinone"
)

// BenchmarkProduce sends records of one producer to one partition over loopback,
// client and server in this process, so that one CPU profile shows both.
func BenchmarkProduce(b *testing.B) {
	for _, size := range []int{100, 1024} {
		for _, durability := range []string{"replicated", "synced"} {
			b.Run(fmt.Sprintf("size=%d/durability=%s", size, durability), func(b *testing.B) {
				client := benchClient(b, durability)
				producer, err := client.NewProducer(runnel.WithAcks(runnel.AcksLeader))
				if err != nil {
					b.Fatal(err)
				}
				value := make([]byte, size)
				var failed atomic.Int64
				count := func(_ runnel.Ack, err error) {
					if err != nil {
						failed.Add(1)
					}
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					if err := producer.Send(b.Context(), runnel.Record{Topic: "bench", Value: value}, count); err != nil {
						b.Fatal(err)
					}
				}
				if err := producer.Flush(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := producer.Close(); err != nil {
					b.Fatal(err)
				}
				if n := failed.Load(); n > 0 {
					b.Errorf("%d records failed", n)
				}
			})
		}
	}
}

func benchClient(b *testing.B, durability string) *runnel.Client {
	b.Helper()
	config := allinone.DefaultConfig()
	config.DataDir, config.Listen = b.TempDir(), "127.0.0.1:0"
	cluster, stop, err := allinone.Start(context.Background(), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := stop(); err != nil {
			b.Error(err)
		}
	})
	client, err := runnel.NewClient(cluster.Address())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	if _, err := client.Admin().CreateTopic(b.Context(), runnel.TopicSpec{Name: "bench", Config: map[string]string{"durability": durability}}); err != nil {
		b.Fatal(err)
	}
	return client
}
