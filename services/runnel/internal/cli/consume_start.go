package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// partitionOffset is the value of --offset.
type partitionOffset struct {
	partition int64
	offset    int64
}

func parsePartitionOffset(text string) (partitionOffset, error) {
	partition, offset, found := strings.Cut(text, ":")
	p, partitionErr := strconv.ParseInt(partition, 10, 32)
	o, offsetErr := strconv.ParseInt(offset, 10, 64)
	if !found || partitionErr != nil || offsetErr != nil || p < 0 || o < 0 {
		return partitionOffset{}, fmt.Errorf("must look like P:OFFSET, two numbers from 0, such as 0:1500")
	}
	return partitionOffset{p, o}, nil
}

func parseTime(text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("must be a time as in RFC 3339, such as 2026-11-23T08:00:00Z or 2026-11-23T09:00:00+01:00")
	}
	return t, nil
}

// check refuses flags that contradict each other.
func (o *consumeOptions) check() error {
	if err := o.group.check(o); err != nil {
		return err
	}
	var given []string
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"--from-beginning", o.fromBeginning},
		{"--offset", len(o.offsets.values) > 0},
		{"--from-time", o.fromTime.text != ""},
	} {
		if f.set {
			given = append(given, f.name)
		}
	}
	if len(given) > 1 {
		return usagef("%s contradict each other: give only one of them", strings.Join(given, " and "))
	}
	seen := make(map[int64]bool)
	for _, at := range o.offsets.values {
		if seen[at.partition] {
			return usagef("--offset gives two offsets for partition %d", at.partition)
		}
		seen[at.partition] = true
		if len(o.partitions.values) > 0 && !slices.Contains(o.partitions.values, at.partition) {
			return usagef("--offset is about partition %d, which is not among those of --partition", at.partition)
		}
	}
	return nil
}

// waitsAtEnd reports whether nothing is printed before the next record comes.
func (o *consumeOptions) waitsAtEnd() bool {
	return !o.fromBeginning && !o.exitAtEnd && len(o.offsets.values) == 0 && o.fromTime.text == ""
}

// assignments returns what to read: the chosen partitions of the topic, or all
// of them, each with where to begin and, with --exit-at-end, to stop at its end.
func (o *consumeOptions) assignments(topic *topicFacts) ([]runnel.Assignment, error) {
	partitions := slices.Compact(slices.Sorted(slices.Values(o.partitions.values)))
	for _, partition := range partitions {
		if err := topic.checkPartition(partition); err != nil {
			return nil, err
		}
	}
	if len(partitions) == 0 {
		for partition := range int64(topic.Partitions) {
			partitions = append(partitions, partition)
		}
	}
	offsets := make(map[int64]int64)
	for _, at := range o.offsets.values {
		if err := topic.checkPartition(at.partition); err != nil {
			return nil, err
		}
		if err := topic.checkOffset(at); err != nil {
			return nil, err
		}
		offsets[at.partition] = at.offset
	}
	var all []runnel.Assignment
	for _, partition := range partitions {
		start := runnel.Latest()
		offset, given := offsets[partition]
		switch {
		case given:
			start = runnel.Offset(offset)
		case o.fromBeginning:
			start = runnel.Earliest()
		case o.fromTime.text != "":
			start = runnel.Time(o.fromTime.value)
		}
		at := runnel.At(topic.Name, int32(partition), start)
		if o.exitAtEnd {
			at = at.UntilEnd()
		}
		all = append(all, at)
	}
	return all, nil
}

// reads reports whether a partition is among the chosen ones.
func (o *consumeOptions) reads(partition int32) bool {
	return len(o.partitions.values) == 0 || slices.Contains(o.partitions.values, int64(partition))
}

// checkOffset refuses an offset that the partition does not hold. The consumer
// would refuse it only when it came to read there, and one that stops at the
// end of the partition never comes to an offset beyond.
func (t *topicFacts) checkOffset(at partitionOffset) error {
	for _, r := range t.Replicas {
		if int64(r.Partition) != at.partition || r.Err != nil || r.Latest < 0 {
			continue
		}
		if at.offset < r.Earliest || at.offset > r.Latest {
			return failf("partition %d of topic %q does not hold offset %d: it begins at %d and its end is %d",
				at.partition, t.Name, at.offset, r.Earliest, r.Latest)
		}
	}
	return nil
}
