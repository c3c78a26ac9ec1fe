package metadata

import (
	"fmt"
	"testing"
	"time"

	metadatav1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/v1"
	"github.com/runnel-mesh/runnel/services/metadata/internal/etcdtest"
)

// BenchmarkCreateTopic creates topics one after the other, with an etcd that syncs
// every write.
func BenchmarkCreateTopic(b *testing.B) {
	for _, partitions := range []int32{1, 100, 1000, 10_000} {
		b.Run(fmt.Sprint("partitions=", partitions), func(b *testing.B) {
			n := benchmark(b)
			count := 0
			for b.Loop() {
				n.create(&metadatav1.CreateTopicRequest{Name: fmt.Sprint("topic", count), Partitions: partitions})
				count++
			}
		})
	}
}

// BenchmarkThousandTopics creates 1,000 topics of one partition per iteration.
func BenchmarkThousandTopics(b *testing.B) {
	n := benchmark(b)
	count := 0
	for b.Loop() {
		for range 1000 {
			n.create(&metadatav1.CreateTopicRequest{Name: fmt.Sprint("topic", count)})
			count++
		}
	}
}

// BenchmarkRegister restarts a storage node that leads 1,000 partitions.
func BenchmarkRegister(b *testing.B) {
	n := benchmark(b)
	node := n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "topic", Partitions: 1000})
	for b.Loop() {
		node.register(false)
	}
}

// BenchmarkRestart measures the time until a metadata node is ready that follows a
// killed one, over 10,000 partitions.
func BenchmarkRestart(b *testing.B) {
	server := etcdtest.NewDurable(b)
	m := newMesh(b, server)
	n := m.start().ready()
	n.storage().register(false)
	n.create(&metadatav1.CreateTopicRequest{Name: "topic", Partitions: 10_000})
	n.stop()
	for b.Loop() {
		b.StopTimer()
		link := server.Link(b)
		killed := m.start(in(n.dir), through(link.Endpoint())).ready()
		link.Cut()
		killed.stop()
		b.StartTimer()
		again := m.start(in(n.dir)).ready()
		b.StopTimer()
		again.stop()
		b.StartTimer()
	}
}

func benchmark(b *testing.B) *member {
	n := newMesh(b, etcdtest.NewDurable(b)).start(configured(func(c *Config) {
		c.MaxPartitions = 1 << 30
		c.LeaseTTL = 5 * time.Minute
	})).ready()
	n.storage().register(false)
	return n
}
