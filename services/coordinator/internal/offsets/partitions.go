package offsets

import (
	"bytes"
	"cmp"
	"fmt"
	"math"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/log/v1"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// partitionSets returns partitions as sets, with epochs or without. It refuses what
// partitionsOf would.
func partitionSets(partitions []groups.Owned, epochs bool) ([]*logv1.PartitionSet, error) {
	var sets []*logv1.PartitionSet
	for i, owned := range partitions {
		if err := follows(partitions[:i], owned.Partition); err != nil {
			return nil, err
		}
		if i == 0 || owned.Topic != partitions[i-1].Topic {
			sets = append(sets, &logv1.PartitionSet{TopicId: bytes.Clone(owned.Topic[:])})
		}
		set := sets[len(sets)-1]
		set.Partitions = append(set.Partitions, owned.Index)
		if epochs {
			set.Epochs = append(set.Epochs, int64(owned.Since))
		}
	}
	return sets, nil
}

// partitionsOf reads sets, with epochs or without. It returns nil for none.
func partitionsOf(sets []*logv1.PartitionSet, epochs bool) ([]groups.Owned, error) {
	var partitions []groups.Owned
	for _, set := range sets {
		id, err := topicID(set.GetTopicId())
		if err != nil {
			return nil, err
		}
		want := 0
		if epochs {
			want = len(set.GetPartitions())
		}
		if got := len(set.GetEpochs()); got != want {
			return nil, fmt.Errorf("topic %s has %d epochs, must have %d", id, got, want)
		}
		for i, index := range set.GetPartitions() {
			owned := groups.Owned{Partition: groups.Partition{Topic: id, Index: index}}
			if epochs {
				owned.Since = groups.Epoch(set.GetEpochs()[i])
			}
			if err := follows(partitions, owned.Partition); err != nil {
				return nil, err
			}
			partitions = append(partitions, owned)
		}
	}
	return partitions, nil
}

// follows says why a partition cannot stand behind others.
func follows(others []groups.Owned, p groups.Partition) error {
	if p.Index < 0 {
		return fmt.Errorf("partition %d of topic %s, must be 0 to %d", p.Index, p.Topic, math.MaxInt32)
	}
	if len(others) == 0 {
		return nil
	}
	last := others[len(others)-1].Partition
	if order := cmp.Or(bytes.Compare(last.Topic[:], p.Topic[:]), cmp.Compare(last.Index, p.Index)); order >= 0 {
		return fmt.Errorf("partition %d of topic %s stands behind %d of %s, must be in ascending order", p.Index, p.Topic, last.Index, last.Topic)
	}
	return nil
}
