package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// topicFacts is what a command needs to know of its topic before it begins.
type topicFacts struct {
	runnel.TopicDescription
	// nodes are those of the cluster where the command tells of them, or nil.
	nodes []runnel.Node
}

// maxMessageBytes bounds the lines that are worth reading. The topic has the
// last word.
func (t *topicFacts) maxMessageBytes() int {
	const unknown = maxBatchBytes
	if n, err := strconv.Atoi(t.setting("max.message.bytes")); err == nil && n > 0 {
		return n
	}
	return unknown
}

// setting returns the value in effect, "" if the cluster does not know it.
func (t *topicFacts) setting(name string) string {
	for _, s := range t.Settings {
		if s.Name == name {
			return s.Value
		}
	}
	return ""
}

// checkPartition returns an error for a partition that the topic does not have.
func (t *topicFacts) checkPartition(partition int64) error {
	if partition < int64(t.Partitions) {
		return nil
	}
	if t.Partitions == 1 {
		return failf("topic %q has no partition %d, only partition 0", t.Name, partition)
	}
	return failf("topic %q has no partition %d, only 0 to %d", t.Name, partition, t.Partitions-1)
}

// describeTopic asks for a topic. While the cluster cannot be reached it asks
// again for a while.
func (p *program) describeTopic(ctx context.Context, client *runnel.Client, name string) (*topicFacts, error) {
	var facts topicFacts
	err := p.persist(ctx, func(ctx context.Context) (err error) {
		facts.TopicDescription, err = client.Admin().DescribeTopic(ctx, name)
		return err
	})
	return &facts, err
}

// obstaclePatience bounds the question what keeps a topic from taking records.
const obstaclePatience = 3 * time.Second

// obstacle says what keeps a topic from taking records, "" if nothing is known
// to.
func obstacle(ctx context.Context, client *runnel.Client, name string) string {
	limited, cancel := context.WithTimeout(ctx, obstaclePatience)
	defer cancel()
	topic, err := client.Admin().DescribeTopic(limited, name)
	if err != nil {
		return waitingFor(err)
	}
	return obstacleIn(topic, nodesNow(limited, client))
}

func obstacleIn(topic runnel.TopicDescription, nodes []runnel.Node) string {
	for _, r := range topic.Replicas {
		switch {
		case r.Leader < 0:
			return fmt.Sprintf("partition %d of topic %q has no leader: %s", r.Partition, topic.Name, leaderless(&r, nodes))
		case r.Err != nil:
			return fmt.Sprintf("partition %d of topic %q: %s", r.Partition, topic.Name, sentence(r.Err))
		}
	}
	return ""
}

// heldUp says why records are not acknowledged, "" if that is not known: failure
// is what the producer met last, or nil, and look asks the cluster.
func heldUp(failure error, look func() string) string {
	switch runnel.ReasonOf(failure) {
	case errorsv1.Reason_REASON_UNSPECIFIED, errorsv1.Reason_REASON_NO_LEADER:
		// Only the cluster knows whether a node is gone, and what to do about it.
		if why := look(); why != "" || failure == nil {
			return why
		}
	}
	return sentence(failure)
}

// openTopic returns a topic, and creates it with the cluster's defaults if
// create is set and it does not exist.
func (p *program) openTopic(ctx context.Context, client *runnel.Client, name string, create bool) (*topicFacts, error) {
	topic, err := p.describeTopic(ctx, client, name)
	switch {
	case runnel.ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_NOT_FOUND:
		return topic, err
	case !create:
		return nil, noTopic(name, "create it with \"runnel topics create %s\", or leave --no-create out", shellWord(name))
	}
	return p.createTopic(ctx, client, runnel.TopicSpec{Name: name})
}

// createTopic creates a topic unless somebody else does so first, and returns
// it.
func (p *program) createTopic(ctx context.Context, client *runnel.Client, spec runnel.TopicSpec) (*topicFacts, error) {
	err := p.persist(ctx, func(ctx context.Context) error {
		_, err := client.Admin().CreateTopic(ctx, spec)
		return err
	})
	// After an unknown outcome the second attempt finds the topic of the first.
	if err != nil && runnel.ReasonOf(err) != errorsv1.Reason_REASON_TOPIC_EXISTS {
		return nil, err
	}
	topic, describeErr := p.describeTopic(ctx, client, spec.Name)
	if describeErr == nil && err == nil {
		p.notef("%s", createdText(topic.Topic, topic.replicationFactor()))
		p.warnCreated(ctx, client, spec, topic)
	}
	return topic, describeErr
}

// noTopic says that a topic does not exist, and the remedy.
func noTopic(name, remedy string, args ...any) error {
	return failf("topic %q does not exist; %s", name, fmt.Sprintf(remedy, args...))
}

// seeTopics is the remedy where an existing topic was meant.
const seeTopics = "\"runnel topics list\" shows those that do"
