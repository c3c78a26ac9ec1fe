package runnel_test

import (
	"context"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// A consumer in a group: it shares the topic with the others of its group, and goes on
// where the group has stopped.
func ExampleConsumer_Run() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	write(ctx, client, "invoices", "a", "b", "c")

	consumer, err := client.NewConsumer(runnel.WithGroup("billing"), runnel.WithReset(runnel.ResetEarliest))
	if err != nil {
		log.Fatal(err)
	}
	if err := consumer.Subscribe(ctx, "invoices"); err != nil {
		log.Fatal(err)
	}
	err = consumer.Run(ctx, func(_ context.Context, record runnel.ConsumedRecord) error {
		fmt.Printf("%s\n", record.Value)
		if string(record.Value) == "c" {
			cancel() // A service would go on.
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := consumer.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// a
	// b
	// c
}

// A program that commits by hand, each record as soon as it has done with it.
func ExampleConsumer_Commit() {
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	write(ctx, client, "payments", "a", "b")

	consumer, err := client.NewConsumer(runnel.WithGroup("bank"), runnel.WithReset(runnel.ResetEarliest), runnel.WithAutoCommit(0))
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	if err := consumer.Subscribe(ctx, "payments"); err != nil {
		log.Fatal(err)
	}
	for done := 0; done < 2; {
		records, err := consumer.Poll(ctx)
		if err != nil {
			log.Fatal(err)
		}
		for record := range records.All() {
			if err := consumer.Commit(ctx, runnel.After(record)); err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s is paid, the group is at offset %d\n", record.Value, record.Offset+1)
			done++
		}
	}
	// Output:
	// a is paid, the group is at offset 1
	// b is paid, the group is at offset 2
}

// Consumers that come one after the other, and share the partitions out anew.
func ExampleRebalance() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	client, err := runnel.NewClient(bootstrap())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	create(ctx, client, "shared", 4)
	var polls sync.WaitGroup
	for _, name := range []string{"first", "second"} {
		settled := make(chan int, 1)
		consumer, err := client.NewConsumer(runnel.WithGroup("team"), runnel.WithReset(runnel.ResetEarliest), runnel.WithRebalance(runnel.Rebalance{
			Assigned: func(_ context.Context, partitions []runnel.TopicPartition) {
				if len(partitions) > 0 {
					settled <- len(partitions)
				}
			},
			Revoked: func(_ context.Context, partitions []runnel.TopicPartition) {
				if ctx.Err() == nil { // Closing gives up all.
					fmt.Println(name, "gives up", len(partitions))
				}
			},
		}))
		if err == nil {
			err = consumer.Subscribe(ctx, "shared")
		}
		if err != nil {
			log.Fatal(err)
		}
		polls.Go(func() { _ = consumer.Run(ctx, func(context.Context, runnel.ConsumedRecord) error { return nil }) })
		fmt.Println(name, "gets", <-settled)
	}
	cancel()
	polls.Wait()
	// Output:
	// first gets 4
	// first gives up 2
	// second gets 2
}
