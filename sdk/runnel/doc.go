// Package runnel is the client of Runnel, a distributed commit log: topics are
// split into partitions, each an ordered log of records that are numbered by
// offsets and replicated over storage nodes.
//
// # A client
//
// A [Client] is a way into one cluster. Any node of any role will do to begin
// with; the client finds the others, follows every change of the cluster and
// goes where the leader of a partition is. Nothing is connected before it is
// needed, and connections that break are made anew.
//
//	client, err := runnel.NewClient("127.0.0.1:7070")
//	...
//	defer client.Close()
//
// # Producing
//
// [Producer.Send] takes a record and returns; a callback tells where the record
// went. Records travel in batches: one that is full, or has waited for long
// enough, goes to the leader of its partition, at most five at a time. While
// the memory for records is full, Send waits.
//
//	producer, err := client.NewProducer()
//	...
//	err = producer.Send(ctx, runnel.Record{Topic: "orders", Key: key, Value: value},
//		func(ack runnel.Ack, err error) { ... })
//	...
//	err = producer.Close()
//
// What a producer promises is chosen by name, and the defaults are the safe ones:
//
//   - [AcksAll] with idempotence, the default: a record whose callback has no error
//     is written exactly once and survives its leader; records of one partition
//     keep their order whatever fails and is sent again.
//   - [AcksLeader] gives a record up if its leader is lost early.
//   - [AcksNone] writes at most once, and tells nobody.
//   - [WithIdempotence] turned off writes at most once as well, but says of which
//     records it does not know.
//
// Records with a key go to the partition that Kafka's clients would choose, those
// without one stick to a partition for a batch; see [Partitioner].
//
// # Consuming
//
// A [Consumer] reads the partitions that it is assigned, from where it is told:
// [Earliest], [Latest], [Offset] or [Time]. [Consumer.Poll] returns what has
// arrived.
//
//	consumer, err := client.NewConsumer()
//	...
//	err = consumer.Assign(ctx, runnel.AtAll("orders", runnel.Earliest()))
//	for {
//		records, err := consumer.Poll(ctx)
//		...
//		for record := range records.All() { ... }
//	}
//
// Records are valid for as long as they are referenced. The checksum of every
// batch is verified. An offset that is not there any more is an error, unless a
// [ResetPolicy] says otherwise: going on elsewhere by itself would lose records
// silently.
//
// # Consumer groups
//
// Consumers of one group share the partitions of topics out among themselves, each
// partition to exactly one of them, and the group remembers how far it has come: its
// committed offsets. A consumer joins with [Consumer.Subscribe].
//
//	consumer, err := client.NewConsumer(runnel.WithGroup("billing"), runnel.WithReset(runnel.ResetEarliest))
//	...
//	err = consumer.Subscribe(ctx, "orders")
//	...
//	err = consumer.Run(ctx, func(ctx context.Context, record runnel.ConsumedRecord) error { ... })
//	...
//	err = consumer.Close()
//
// What happens to a record whose consumer dies is chosen by name:
//
//   - [AtLeastOnce], the default: a record is committed after the program has done
//     with it, which it says by the next [Consumer.Poll]; some may be read twice.
//   - [AtMostOnce]: a record is committed before the program gets it; some may be
//     read by nobody.
//
// With [WithAutoCommit](0) the program commits: [Consumer.Commit] with [After]. The
// callbacks of [Rebalance] tell which partitions come and go. A commit for a partition
// that has gone to another member fails, and the error says so.
//
// # Errors
//
// Failures that the cluster names are an [Error] with a reason and the server's
// own sentence. [ReasonOf] picks the reason out of any error, [IsRetriable] tells
// whether a call had no effect and may be repeated, and [Error.OutcomeUnknown]
// whether it may have had one. Producers and consumers retry by themselves
// whatever can be retried.
//
// # Goroutines
//
// Producers and consumers own a few goroutines, from their first use until Close
// returns. All types are safe for concurrent use, where nothing else is said.
package runnel
