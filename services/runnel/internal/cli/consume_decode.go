package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/runnel"
	"github.com/runnel-mesh/runnel/services/coordinator"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// decodedRecord is a record of the offsets topic as --decode prints it. What it means
// depends on its kind; the help of consume names them.
type decodedRecord struct {
	Kind string `json:"kind"`
	// Deleted says that the record removes what its kind and names stand for.
	Deleted     bool   `json:"deleted,omitempty"`
	Group       string `json:"group,omitempty"`
	Member      string `json:"member,omitempty"`
	Instance    string `json:"instance_id,omitempty"`
	ClientID    string `json:"client_id,omitempty"`
	ClientHost  string `json:"client_host,omitempty"`
	Epoch       int64  `json:"epoch,omitempty"`
	TargetEpoch int64  `json:"target_epoch,omitempty"`
	// Coordinator is the node that has taken the partition over, Meaning says so.
	Coordinator      int32               `json:"coordinator,omitempty"`
	CoordinatorEpoch int64               `json:"coordinator_epoch,omitempty"`
	Meaning          string              `json:"meaning,omitempty"`
	Assignor         string              `json:"assignor,omitempty"`
	EmptyMS          int64               `json:"empty_ms,omitempty"`
	Topics           []string            `json:"topics,omitempty"`
	Pattern          string              `json:"topic_pattern,omitempty"`
	SessionMS        int64               `json:"session_timeout_ms,omitempty"`
	Target           []decodedTarget     `json:"target,omitempty"`
	Assigned         []decodedPartitions `json:"assigned,omitempty"`
	Revoking         []decodedPartitions `json:"revoking,omitempty"`
	Away             bool                `json:"away,omitempty"`
	Topic            string              `json:"topic,omitempty"`
	TopicID          string              `json:"topic_id,omitempty"`
	Partition        *int32              `json:"partition,omitempty"`
	Offset           *int64              `json:"offset,omitempty"`
	LeaderEpoch      *int32              `json:"leader_epoch,omitempty"`
	Metadata         string              `json:"metadata,omitempty"`
	CommittedAt      string              `json:"committed_at,omitempty"`
	SinceEpoch       int64               `json:"since_epoch,omitempty"`
	CommitSequence   uint64              `json:"commit_sequence,omitempty"`
	Error            string              `json:"error,omitempty"`
}

type decodedTarget struct {
	Member     string              `json:"member"`
	Partitions []decodedPartitions `json:"partitions"`
}

// decodedPartitions is partitions of one topic, which the log knows by its id.
type decodedPartitions struct {
	TopicID    string  `json:"topic_id"`
	Partitions []int32 `json:"partitions"`
}

// The kinds of records in the offsets topic.
const (
	kindFence   = "fence"
	kindGroup   = "group"
	kindMember  = "member"
	kindOffset  = "offset"
	kindUnknown = "unknown"
)

// decode says what a record of the offsets topic means.
func decode(key, value []byte) decodedRecord {
	record, err := coordinator.DecodeRecord(key, value)
	if err != nil {
		return decodedRecord{Kind: kindUnknown, Error: err.Error()}
	}
	switch r := record.(type) {
	case *groups.FenceRecord:
		return decodedRecord{
			Kind: kindFence, Coordinator: int32(r.Node), CoordinatorEpoch: int64(r.Epoch),
			Meaning: fmt.Sprintf("node %d coordinates the groups of this partition from here on", r.Node),
		}
	case *groups.GroupRecord:
		d := decodedRecord{
			Kind: kindGroup, Group: string(r.Group), Epoch: int64(r.Epoch), TargetEpoch: int64(r.TargetEpoch),
			Assignor: string(r.Assignor), EmptyMS: r.Empty.Milliseconds(),
		}
		for _, member := range slices.Sorted(maps.Keys(r.Target)) {
			d.Target = append(d.Target, decodedTarget{Member: string(member), Partitions: byTopicID(slices.Values(r.Target[member]))})
		}
		return d
	case *groups.MemberRecord:
		return decodedRecord{
			Kind: kindMember, Group: string(r.Group), Member: string(r.Member), Instance: r.Instance, ClientID: r.ClientID, ClientHost: r.ClientHost,
			Epoch: int64(r.Epoch), Assignor: string(r.Assignor), Topics: r.Subscription.Topics, Pattern: r.Subscription.Pattern,
			SessionMS: r.SessionTimeout.Milliseconds(), Assigned: byTopicID(owned(r.Assigned)), Revoking: byTopicID(owned(r.Revoking)), Away: r.Away,
		}
	case *groups.OffsetRecord:
		return decodedRecord{
			Kind: kindOffset, Group: string(r.Group), Topic: r.TopicName, TopicID: r.Topic.String(), Partition: &r.Index, Offset: &r.Offset,
			LeaderEpoch: known(r.LeaderEpoch), Metadata: r.Metadata, CommittedAt: r.Committed.UTC().Format(time.RFC3339Nano),
			SinceEpoch: int64(r.Since), CommitSequence: uint64(r.Sequence),
		}
	case *groups.Tombstone:
		d := decodedRecord{Kind: kindGroup, Deleted: true, Group: string(r.Group), Member: string(r.Member)}
		switch {
		case r.Offset != nil:
			d.Kind, d.TopicID, d.Partition = kindOffset, r.Offset.Topic.String(), &r.Offset.Index
		case r.Member != "":
			d.Kind = kindMember
		}
		return d
	}
	return decodedRecord{Kind: kindUnknown}
}

// owned yields partitions without the epochs since when they are owned.
func owned(partitions []groups.Owned) func(yield func(groups.Partition) bool) {
	return func(yield func(groups.Partition) bool) {
		for _, o := range partitions {
			if !yield(o.Partition) {
				return
			}
		}
	}
}

// byTopicID gathers partitions, which are in order, by their topics.
func byTopicID(partitions func(yield func(groups.Partition) bool)) []decodedPartitions {
	var all []decodedPartitions
	var last cluster.TopicID
	for p := range partitions {
		if len(all) == 0 || p.Topic != last {
			all = append(all, decodedPartitions{TopicID: p.Topic.String()})
			last = p.Topic
		}
		set := &all[len(all)-1]
		set.Partitions = append(set.Partitions, p.Index)
	}
	return all
}

// decodedText prints what records mean in place of their values.
type decodedText struct{ records recordWriter }

func (d decodedText) write(r *runnel.ConsumedRecord) error {
	var value bytes.Buffer
	encoder := json.NewEncoder(&value)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(decode(r.Key, r.Value)); err != nil {
		return err
	}
	shown := *r
	shown.Key, shown.Value = nil, bytes.TrimSuffix(value.Bytes(), []byte("\n"))
	return d.records.write(&shown)
}

// decodedLine is a record of the offsets topic as `consume --decode -o json` prints it.
type decodedLine struct {
	Topic       string        `json:"topic"`
	Partition   int32         `json:"partition"`
	Offset      int64         `json:"offset"`
	TimestampMS int64         `json:"timestamp_ms"`
	Record      decodedRecord `json:"record"`
}

// decodedLines prints one object per line.
type decodedLines struct{ encoder *json.Encoder }

func newDecodedLines(out io.Writer) decodedLines {
	return decodedLines{newJSONRecords(out).encoder}
}

func (d decodedLines) write(r *runnel.ConsumedRecord) error {
	return d.encoder.Encode(decodedLine{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, TimestampMS: r.Timestamp.UnixMilli(), Record: decode(r.Key, r.Value)})
}
