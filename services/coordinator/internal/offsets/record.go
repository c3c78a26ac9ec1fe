package offsets

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/log/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

func encodeRecord(r groups.Record) (key, value []byte, err error) {
	var k recordKey
	var message proto.Message
	switch r := r.(type) {
	case *groups.FenceRecord:
		k.kind = kindFence
		message = &logv1.FenceValue{CoordinatorEpoch: int64(r.Epoch), NodeId: int32(r.Node)}
	case *groups.GroupRecord:
		k.kind, k.group = kindGroup, r.Group
		message, err = groupValue(r)
	case *groups.MemberRecord:
		k.kind, k.group, k.member = kindMember, r.Group, r.Member
		message, err = memberValue(r)
	case *groups.OffsetRecord:
		k.kind, k.group, k.partition = kindOffset, r.Group, r.Partition
		message = offsetValue(r)
	case *groups.Tombstone:
		k.kind, k.group = kindGroup, r.Group
		if r.Offset != nil {
			k.kind, k.partition = kindOffset, *r.Offset
		} else if r.Member != "" {
			k.kind, k.member = kindMember, r.Member
		}
	default:
		return nil, nil, fmt.Errorf("a record cannot be a %T", r)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := k.check(); err != nil {
		return nil, nil, err
	}
	if message != nil {
		if value, err = (proto.MarshalOptions{Deterministic: true}).Marshal(message); err != nil {
			return nil, nil, fmt.Errorf("record of group %q: %w", k.group, err)
		}
		if value == nil {
			// Null is the tombstone.
			value = []byte{}
		}
	}
	return k.encode(), value, nil
}

// DecodeRecord reads a record; a nil value is the null of a tombstone. The error is
// [ErrUnknownKind], or says what no version writes.
func DecodeRecord(key, value []byte) (groups.Record, error) {
	k, err := decodeKey(key)
	if err != nil {
		return nil, err
	}
	if value == nil {
		switch k.kind {
		case kindGroup:
			return &groups.Tombstone{Group: k.group}, nil
		case kindMember:
			return &groups.Tombstone{Group: k.group, Member: k.member}, nil
		case kindOffset:
			return &groups.Tombstone{Group: k.group, Offset: &k.partition}, nil
		}
		return nil, errors.New("a fence cannot be removed")
	}
	switch k.kind {
	case kindGroup:
		return decodeGroup(k, value)
	case kindMember:
		return decodeMember(k, value)
	case kindOffset:
		return decodeOffset(k, value)
	}
	var v logv1.FenceValue
	if err := proto.Unmarshal(value, &v); err != nil {
		return nil, fmt.Errorf("fence: %w", err)
	}
	return &groups.FenceRecord{Epoch: groups.CoordinatorEpoch(v.GetCoordinatorEpoch()), Node: cluster.NodeID(v.GetNodeId())}, nil
}

func groupValue(r *groups.GroupRecord) (*logv1.GroupValue, error) {
	v := &logv1.GroupValue{
		Epoch: int64(r.Epoch), TargetEpoch: int64(r.TargetEpoch), Assignor: string(r.Assignor), EmptyMs: r.Empty.Milliseconds(),
	}
	for _, id := range slices.Sorted(maps.Keys(r.Target)) {
		owned := make([]groups.Owned, len(r.Target[id]))
		for i, p := range r.Target[id] {
			owned[i].Partition = p
		}
		sets, err := partitionSets(owned, false)
		if err != nil {
			return nil, fmt.Errorf("group %q: target of member %q: %w", r.Group, id, err)
		}
		v.Target = append(v.Target, &logv1.TargetAssignment{MemberId: string(id), Partitions: sets})
	}
	for _, s := range r.Seen {
		v.Seen = append(v.Seen, &logv1.SeenTopic{TopicId: bytes.Clone(s.Topic[:]), Partitions: s.Partitions})
	}
	return v, nil
}

func decodeGroup(k recordKey, value []byte) (groups.Record, error) {
	var v logv1.GroupValue
	if err := proto.Unmarshal(value, &v); err != nil {
		return nil, fmt.Errorf("group %q: %w", k.group, err)
	}
	r := &groups.GroupRecord{
		Group: k.group, Epoch: groups.Epoch(v.GetEpoch()), TargetEpoch: groups.Epoch(v.GetTargetEpoch()), Assignor: groups.Assignor(v.GetAssignor()),
	}
	var err error
	if r.Empty, err = milliseconds(v.GetEmptyMs()); err != nil {
		return nil, fmt.Errorf("group %q: empty_ms: %w", k.group, err)
	}
	if len(v.GetTarget()) > 0 {
		r.Target = make(map[groups.MemberID][]groups.Partition, len(v.GetTarget()))
	}
	for _, target := range v.GetTarget() {
		id := groups.MemberID(target.GetMemberId())
		if _, twice := r.Target[id]; twice {
			return nil, fmt.Errorf("group %q: two targets of member %q", k.group, id)
		}
		owned, err := partitionsOf(target.GetPartitions(), false)
		if err != nil {
			return nil, fmt.Errorf("group %q: target of member %q: %w", k.group, id, err)
		}
		var partitions []groups.Partition
		for i := range owned {
			partitions = append(partitions, owned[i].Partition)
		}
		r.Target[id] = partitions
	}
	for _, s := range v.GetSeen() {
		id, err := topicID(s.GetTopicId())
		if err != nil {
			return nil, fmt.Errorf("group %q: seen: %w", k.group, err)
		}
		if n := len(r.Seen); n > 0 && bytes.Compare(r.Seen[n-1].Topic[:], id[:]) >= 0 {
			return nil, fmt.Errorf("group %q: seen: topic %s follows %s", k.group, id, r.Seen[n-1].Topic)
		}
		r.Seen = append(r.Seen, groups.SeenTopic{Topic: id, Partitions: s.GetPartitions()})
	}
	return r, nil
}

func memberValue(r *groups.MemberRecord) (*logv1.MemberValue, error) {
	assigned, err := partitionSets(r.Assigned, true)
	if err != nil {
		return nil, fmt.Errorf("member %q of group %q: assigned: %w", r.Member, r.Group, err)
	}
	revoking, err := partitionSets(r.Revoking, true)
	if err != nil {
		return nil, fmt.Errorf("member %q of group %q: revoking: %w", r.Member, r.Group, err)
	}
	if timeout := max(r.SessionTimeout, r.RebalanceTimeout).Milliseconds(); timeout > math.MaxInt32 {
		return nil, fmt.Errorf("member %q of group %q: a timeout of %d ms, must be at most %d", r.Member, r.Group, timeout, math.MaxInt32)
	}
	return &logv1.MemberValue{
		Epoch: int64(r.Epoch), InstanceId: r.Instance, ClientId: r.ClientID, ClientHost: r.ClientHost,
		Topics: r.Subscription.Topics, TopicPattern: r.Subscription.Pattern, Assignor: string(r.Assignor),
		SessionTimeoutMs: int32(r.SessionTimeout.Milliseconds()), RebalanceTimeoutMs: int32(r.RebalanceTimeout.Milliseconds()),
		Assigned: assigned, Revoking: revoking, Away: r.Away,
	}, nil
}

func decodeMember(k recordKey, value []byte) (groups.Record, error) {
	var v logv1.MemberValue
	if err := proto.Unmarshal(value, &v); err != nil {
		return nil, fmt.Errorf("member %q of group %q: %w", k.member, k.group, err)
	}
	assigned, err := partitionsOf(v.GetAssigned(), true)
	if err != nil {
		return nil, fmt.Errorf("member %q of group %q: assigned: %w", k.member, k.group, err)
	}
	revoking, err := partitionsOf(v.GetRevoking(), true)
	if err != nil {
		return nil, fmt.Errorf("member %q of group %q: revoking: %w", k.member, k.group, err)
	}
	return &groups.MemberRecord{
		Group: k.group, Member: k.member, Epoch: groups.Epoch(v.GetEpoch()),
		Instance: v.GetInstanceId(), ClientID: v.GetClientId(), ClientHost: v.GetClientHost(),
		Subscription:     groups.Subscription{Topics: v.GetTopics(), Pattern: v.GetTopicPattern()},
		Assignor:         groups.Assignor(v.GetAssignor()),
		SessionTimeout:   time.Duration(v.GetSessionTimeoutMs()) * time.Millisecond,
		RebalanceTimeout: time.Duration(v.GetRebalanceTimeoutMs()) * time.Millisecond,
		Assigned:         assigned, Revoking: revoking, Away: v.GetAway(),
	}, nil
}

func offsetValue(r *groups.OffsetRecord) *logv1.OffsetValue {
	v := &logv1.OffsetValue{Offset: r.Offset, Metadata: r.Metadata, CommittedAtMs: r.Committed.UnixMilli(), Topic: r.TopicName,
		SinceEpoch: int64(r.Since), CommitSequence: uint64(r.Sequence)}
	if r.LeaderEpoch >= 0 {
		v.LeaderEpoch = &r.LeaderEpoch
	}
	return v
}

func decodeOffset(k recordKey, value []byte) (groups.Record, error) {
	var v logv1.OffsetValue
	if err := proto.Unmarshal(value, &v); err != nil {
		return nil, fmt.Errorf("offset of group %q: %w", k.group, err)
	}
	r := &groups.OffsetRecord{
		Group: k.group, Partition: k.partition, TopicName: v.GetTopic(),
		Offset: v.GetOffset(), LeaderEpoch: -1, Metadata: v.GetMetadata(), Committed: time.UnixMilli(v.GetCommittedAtMs()).UTC(),
		Since: groups.Epoch(v.GetSinceEpoch()), Sequence: groups.CommitSequence(v.GetCommitSequence()),
	}
	if v.LeaderEpoch != nil {
		r.LeaderEpoch = max(-1, v.GetLeaderEpoch())
	}
	return r, nil
}

// milliseconds keeps what a record says within what a duration can.
func milliseconds(n int64) (time.Duration, error) {
	const most = math.MaxInt64 / int64(time.Millisecond)
	if n < 0 || n > most {
		return 0, fmt.Errorf("%d, must be 0 to %d", n, most)
	}
	return time.Duration(n) * time.Millisecond, nil
}
