package cli

import (
	"context"
	"fmt"
	"strings"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// unhealthyPartition is a partition that is not well as -o json prints it.
type unhealthyPartition struct {
	Topic string `json:"topic"`
	partitionDetails
}

// topicsUnhealthy shows the partitions that are not well, of one topic or of all
// for "". It fails, silently, if there is one.
func (p *program) topicsUnhealthy(ctx context.Context, client *runnel.Client, name string) error {
	names := []string{name}
	if name == "" {
		var err error
		if names, err = p.topicNames(ctx, client); err != nil {
			return err
		}
	}
	var topics []*topicFacts
	for _, each := range names {
		topic, err := p.describeTopic(ctx, client, each)
		switch {
		case err == nil:
			topics = append(topics, topic)
		case runnel.ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND:
			return err
		case name != "":
			return noTopic(name, seeTopics)
		}
	}
	nodes := nodesNow(ctx, client)
	for _, topic := range topics {
		topic.nodes = nodes
	}
	err := p.printUnhealthy(topics)
	p.warnStale(ctx, client)
	return err
}

func (p *program) topicNames(ctx context.Context, client *runnel.Client) ([]string, error) {
	var names []string
	err := p.persist(ctx, func(ctx context.Context) error {
		topics, err := client.Admin().ListTopics(ctx)
		names = nil
		for _, t := range topics {
			names = append(names, t.Name)
		}
		return err
	})
	return names, err
}

func (p *program) printUnhealthy(topics []*topicFacts) error {
	unhealthy := []unhealthyPartition{}
	total := 0
	t := newTable("TOPIC", "PARTITION", "LEADER", "REPLICAS", "ISR", "ELR", "STATUS", "REASON")
	for _, topic := range topics {
		total += len(topic.Replicas)
		for i, details := range topic.object().Partitions {
			if details.Status == statusOK {
				continue
			}
			unhealthy = append(unhealthy, unhealthyPartition{topic.Name, details})
			r := topic.Replicas[i]
			why := "-"
			if details.Error != nil {
				why = strings.ReplaceAll(*details.Error, "\n", " ")
			}
			t.row(topic.Name, r.Partition, numberOr(r.Leader, "none"), nodeList(r.Replicas), nodeList(r.InSync), nodeList(r.Eligible), details.Status, why)
		}
	}
	if len(unhealthy) == 0 {
		t = newTable()
		t.row(fmt.Sprintf("all is well: %s of %s", plural(int64(total), "partition"), plural(int64(len(topics)), "topic")))
	}
	if err := p.print(unhealthy, t); err != nil {
		return err
	}
	if len(unhealthy) > 0 {
		return errReported
	}
	return nil
}

// health says in a line how many partitions are not well, "" if all are.
func (t *topicFacts) health() string {
	counts := make(map[string]int)
	unhealthy := 0
	for _, r := range t.Replicas {
		if status, _ := t.partitionStatus(r); status != statusOK {
			counts[status]++
			unhealthy++
		}
	}
	if unhealthy == 0 {
		return ""
	}
	var parts []string
	for _, status := range []string{statusNoLeader, statusFailed, statusNoAnswer, statusBelowMinISR, statusUnderReplicated} {
		if counts[status] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[status], status))
		}
	}
	return fmt.Sprintf("%d of %s not well: %s", unhealthy, plural(int64(len(t.Replicas)), "partition"), strings.Join(parts, ", "))
}
