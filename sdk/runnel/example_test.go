package runnel_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// A producer that waits for each record.
func ExampleProducer_SendSync() {
	client, err := runnel.NewClient(bootstrap()) // "127.0.0.1:7070" for `runnel up`
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "greetings"}); err != nil {
		log.Fatal(err)
	}

	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	for _, greeting := range []string{"hello", "world"} {
		ack, err := producer.SendSync(ctx, runnel.Record{Topic: "greetings", Value: []byte(greeting)})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s went to partition %d, offset %d\n", greeting, ack.Partition, ack.Offset)
	}
	// Output:
	// hello went to partition 0, offset 0
	// world went to partition 0, offset 1
}

// The smallest producer: records without a key, and nobody told where they went.
func ExampleProducer() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "numbers", Partitions: 3}); err != nil {
		log.Fatal(err)
	}

	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	for n := range 10 {
		if err := producer.Send(ctx, runnel.Record{Topic: "numbers", Value: fmt.Append(nil, n)}, nil); err != nil {
			log.Fatal(err)
		}
	}
	// Close delivers what is still waiting, and reports what could not be.
	if err := producer.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("10 records are written")
	// Output: 10 records are written
}

// A producer that hears what became of each record.
func ExampleProducer_Send() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "measurements"}); err != nil {
		log.Fatal(err)
	}

	producer, err := client.NewProducer(runnel.WithCompression(runnel.Zstd))
	if err != nil {
		log.Fatal(err)
	}
	for n := range 3 {
		record := runnel.Record{Topic: "measurements", Value: fmt.Appendf(nil, "%d degrees", 20+n)}
		err := producer.Send(ctx, record, func(ack runnel.Ack, err error) {
			if err != nil {
				fmt.Println("lost:", err)
				return
			}
			fmt.Printf("measurement %d is at offset %d of partition %d\n", n, ack.Offset, ack.Partition)
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := producer.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// measurement 0 is at offset 0 of partition 0
	// measurement 1 is at offset 1 of partition 0
	// measurement 2 is at offset 2 of partition 0
}

// A producer with keys: records of one key go to one partition, and so keep
// their order.
func ExampleProducer_keys() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "orders", Partitions: 3}); err != nil {
		log.Fatal(err)
	}

	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	for n := range 6 {
		customer := fmt.Sprintf("customer-%d", n%2)
		record := runnel.Record{Topic: "orders", Key: []byte(customer), Value: fmt.Append(nil, n)}
		ack, err := producer.SendSync(ctx, record)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("order %d of %s is in partition %d\n", n, customer, ack.Partition)
	}
	// Output:
	// order 0 of customer-0 is in partition 1
	// order 1 of customer-1 is in partition 0
	// order 2 of customer-0 is in partition 1
	// order 3 of customer-1 is in partition 0
	// order 4 of customer-0 is in partition 1
	// order 5 of customer-1 is in partition 0
}

// A consumer that reads a topic from its beginning and stops at its end.
// Without UntilEnd it would go on with what comes.
func ExampleConsumer() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	write(ctx, client, "letters", "a", "b", "c")

	consumer, err := client.NewConsumer()
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	if err := consumer.Assign(ctx, runnel.AtAll("letters", runnel.Earliest()).UntilEnd()); err != nil {
		log.Fatal(err)
	}
	for {
		records, err := consumer.Poll(ctx)
		if errors.Is(err, runnel.ErrEnd) {
			break
		} else if err != nil {
			log.Fatal(err)
		}
		for record := range records.All() {
			fmt.Printf("%d: %s\n", record.Offset, record.Value)
		}
	}
	// Output:
	// 0: a
	// 1: b
	// 2: c
}

// Seek goes back, or on.
func ExampleConsumer_Seek() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	write(ctx, client, "pages", "one", "two", "three")

	consumer, err := client.NewConsumer()
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	partition := runnel.TopicPartition{Topic: "pages", Partition: 0}
	if err := consumer.Assign(ctx, runnel.At("pages", 0, runnel.Latest())); err != nil {
		log.Fatal(err)
	}
	if err := consumer.Seek(partition, runnel.Offset(1)); err != nil {
		log.Fatal(err)
	}
	for position := (runnel.Position{}); position.Offset < 3; position, err = consumer.Position(partition) {
		records, err := consumer.Poll(ctx)
		if err != nil {
			log.Fatal(err)
		}
		for record := range records.All() {
			fmt.Println(string(record.Value))
		}
	}
	// Output:
	// two
	// three
}

// What a cluster looks like.
func ExampleAdmin() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	write(ctx, client, "events", "x", "y")

	topic, err := client.Admin().DescribeTopic(ctx, "events")
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range topic.Replicas {
		fmt.Printf("partition %d holds offsets %d to %d\n", p.Partition, p.Earliest, p.Latest)
	}
	_, err = client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "no spaces"})
	fmt.Println(runnel.ReasonOf(err))
	// Output:
	// partition 0 holds offsets 0 to 2
	// REASON_INVALID_TOPIC_NAME
}

// create makes a topic.
func create(ctx context.Context, client *runnel.Client, topic string, partitions int32) {
	if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: topic, Partitions: partitions}); err != nil {
		log.Fatal(err)
	}
}

// write creates a topic of one partition with these values.
func write(ctx context.Context, client *runnel.Client, topic string, values ...string) {
	create(ctx, client, topic, 1)
	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	for _, value := range values {
		if err := producer.Send(ctx, runnel.Record{Topic: topic, Value: []byte(value)}, nil); err != nil {
			log.Fatal(err)
		}
	}
	if err := producer.Close(); err != nil {
		log.Fatal(err)
	}
}
