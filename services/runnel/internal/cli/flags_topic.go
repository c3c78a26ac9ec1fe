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

// checkTopics refuses a topic that is named twice.
func checkTopics(topics []topicPartitions) error {
	seen := make(map[string]bool)
	for _, t := range topics {
		if seen[t.topic] {
			return usagef("--topic names %s twice: name it once, as in --topic %s:0,3", t.topic, t.topic)
		}
		seen[t.topic] = true
	}
	return nil
}
