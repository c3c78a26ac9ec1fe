// Command load sends records to topics at fixed rates, whatever the cluster makes
// of them, and says second by second how long they took to be acknowledged and
// what the server did meanwhile. The scenarios of deploy/bench/scenarios.sh are
// made of it.
//
// A record counts from when it was due, not from when there was room to send it:
// a pause of the server is seen by all records that were due in it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// target is a topic and how much goes to its partitions in turn.
type target struct {
	topic      string
	partitions int32
	// rate is in bytes per second.
	rate float64
}

type targets []target

func (t *targets) String() string { return "" }

func (t *targets) Set(text string) error {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return errors.New("must be TOPIC:PARTITIONS:MB-PER-SECOND")
	}
	partitions, err := strconv.ParseInt(parts[1], 10, 32)
	if err != nil || partitions < 1 {
		return fmt.Errorf("%q is not a number of partitions", parts[1])
	}
	rate, err := strconv.ParseFloat(parts[2], 64)
	if err != nil || rate <= 0 {
		return fmt.Errorf("%q is not a number of megabytes", parts[2])
	}
	*t = append(*t, target{topic: parts[0], partitions: int32(partitions), rate: rate * 1e6})
	return nil
}

type settings struct {
	bootstrap, acks, metrics, data, csv, disk string
	pid, seconds, recordSize, batchSize       int
	stall, linger                             time.Duration
	targets                                   targets
}

func main() {
	var s settings
	flag.StringVar(&s.bootstrap, "bootstrap", "127.0.0.1:7070", "addresses of the cluster, separated by commas")
	flag.StringVar(&s.acks, "acks", "all", "none, leader or all")
	flag.StringVar(&s.metrics, "metrics", "", "URL of the server's metrics, to say what it did")
	flag.StringVar(&s.data, "data", "", "directory of the server's volumes, to measure what they take")
	flag.StringVar(&s.csv, "csv", "", "file for one line per second")
	flag.StringVar(&s.disk, "disk", "", "write to this file, which must not exist, instead of to a cluster")
	flag.IntVar(&s.pid, "pid", 0, "process of the server, to measure its processor time")
	flag.IntVar(&s.seconds, "seconds", 60, "how long")
	flag.IntVar(&s.recordSize, "record-size", 1024, "bytes of a record's value")
	flag.IntVar(&s.batchSize, "batch-size", 0, "bytes of a batch; 0 for the default")
	flag.DurationVar(&s.linger, "linger", 5*time.Millisecond, "how long a batch waits to become full")
	flag.DurationVar(&s.stall, "stall", 100*time.Millisecond, "acknowledgement times above this are told with what happened meanwhile")
	flag.Var(&s.targets, "target", "TOPIC:PARTITIONS:MB-PER-SECOND; may be repeated")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) error {
	if len(s.targets) == 0 {
		return errors.New("name at least one -target")
	}
	out := io.Discard
	if s.csv != "" {
		file, err := os.Create(s.csv)
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
	}
	m := newMeter(s, out)
	if s.disk != "" {
		return write(ctx, s, m)
	}
	return produce(ctx, s, m)
}

// produce sends the records of all targets to a cluster.
func produce(ctx context.Context, s settings, m *meter) error {
	acks, err := runnel.ParseAcks(s.acks)
	if err != nil {
		return err
	}
	client, err := runnel.NewClient(strings.Split(s.bootstrap, ",")...)
	if err != nil {
		return err
	}
	defer client.Close()
	options := []runnel.ProducerOption{runnel.WithAcks(acks), runnel.WithLinger(s.linger)}
	if acks != runnel.AcksAll {
		options = append(options, runnel.WithIdempotence(false))
	}
	if s.batchSize > 0 {
		options = append(options, runnel.WithBatchBytes(s.batchSize))
	}
	producer, err := client.NewProducer(options...)
	if err != nil {
		return err
	}
	err = m.measure(ctx, func(ctx context.Context) error { return send(ctx, producer, s, m) })
	if closeErr := producer.Close(); err == nil {
		err = closeErr
	}
	m.summary()
	return err
}

// send sends what is due until ctx ends.
func send(ctx context.Context, producer *runnel.Producer, s settings, m *meter) error {
	value := make([]byte, s.recordSize)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	sent := make([]int64, len(s.targets))
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		elapsed := time.Since(start)
		for i, t := range s.targets {
			interval := float64(len(value)) / t.rate * float64(time.Second)
			for due := time.Duration(float64(sent[i]) * interval); due <= elapsed; due = time.Duration(float64(sent[i]) * interval) {
				at := start.Add(due)
				partition := runnel.OnPartition(int32(sent[i] % int64(t.partitions)))
				sent[i]++
				m.sent(len(value))
				err := producer.Send(ctx, runnel.Record{Topic: t.topic, Partition: partition, Value: value}, func(_ runnel.Ack, err error) {
					m.acked(at, len(value), err)
				})
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
