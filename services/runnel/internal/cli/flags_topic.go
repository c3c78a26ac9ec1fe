package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// topicPartitions is the value of --topic: no partitions stand for all.
type topicPartitions struct {
	topic      string
	partitions []int32
}

func parseTopicPartitions(text string) (topicPartitions, error) {
	wrong := fmt.Errorf("must look like TOPIC or TOPIC:P,P with numbers from 0, such as orders or orders:0,3")
	topic, numbers, some := strings.Cut(text, ":")
	if topic == "" {
		return topicPartitions{}, wrong
	}
	t := topicPartitions{topic: topic}
	if !some {
		return t, nil
	}
	seen := make(map[int64]bool)
	for number := range strings.SplitSeq(numbers, ",") {
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 32)
		if err != nil || n < 0 {
			return topicPartitions{}, wrong
		}
		if seen[n] {
			return topicPartitions{}, fmt.Errorf("names partition %d twice", n)
		}
		seen[n] = true
		t.partitions = append(t.partitions, int32(n))
	}
	return t, nil
}

// newTopicsFlag adds the flag that names topics and partitions.
func newTopicsFlag(flags *pflag.FlagSet, usage string) *parsedList[topicPartitions] {
	return newListFlag(flags, "topic", "T[:P,...]", usage, parseTopicPartitions)
}

// checkTopics refuses a topic that is named twice with --topic.
func checkTopics(topics []topicPartitions) error { return checkTopicsOf("topic", topics) }

func checkTopicsOf(flag string, topics []topicPartitions) error {
	seen := make(map[string]bool)
	for _, t := range topics {
		if seen[t.topic] {
			return usagef("--%s names %s twice: name it once, as in --%s %s:0,3", flag, t.topic, flag, t.topic)
		}
		seen[t.topic] = true
	}
	return nil
}

// acceptLossFlag adds the flag that names what goes on though it has lost records.
func acceptLossFlag(flags *pflag.FlagSet) *parsedList[topicPartitions] {
	return newListFlag(flags, "accept-loss", "T[:P,...]",
		"let these partitions go on with what is left of them, if they have failed and no other node leads them; for one start, may be repeated", parseTopicPartitions)
}

// acceptedLosses is what an [acceptLossFlag] names, by topic.
func acceptedLosses(f *parsedList[topicPartitions]) (map[string][]int32, error) {
	if err := checkTopicsOf("accept-loss", f.values); err != nil {
		return nil, err
	}
	losses := make(map[string][]int32)
	for _, t := range f.values {
		losses[t.topic] = t.partitions
	}
	return losses, nil
}
