package allinone_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/allinone"
)

// A real cluster in a Go test: with t.TempDir() and t.Context() this is its whole
// set-up.
func ExampleStart() {
	dir, err := os.MkdirTemp("", "runnel")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	config := allinone.DefaultConfig()
	config.DataDir, config.Listen = dir, "127.0.0.1:0"
	cluster, stop, err := allinone.Start(ctx, config)
	if err != nil {
		log.Fatal(err)
	}
	defer stop()

	client, err := runnel.NewClient(cluster.Address())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Admin().CreateTopic(ctx, runnel.TopicSpec{Name: "greetings"}); err != nil {
		log.Fatal(err)
	}
	producer, err := client.NewProducer()
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close()
	ack, err := producer.SendSync(ctx, runnel.Record{Topic: "greetings", Value: []byte("hello")})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ack.Topic, ack.Offset)
	// Output: greetings 0
}
