package offsets

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	logv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/log/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// ErrUnknownKind is the error of a record whose key is of a kind that this version
// does not know, because a newer one has written it.
var ErrUnknownKind = errors.New("record of an unknown kind")

// kind is the field of RecordKey that is set.
type kind = protowire.Number

const (
	kindFence  kind = 1
	kindGroup  kind = 2
	kindMember kind = 3
	kindOffset kind = 4
)

// recordKey is the key of a record; what its kind has no use for is empty.
type recordKey struct {
	kind      kind
	group     groups.GroupID
	member    groups.MemberID
	partition groups.Partition
}

// encode returns the one encoding of the key. proto.Marshal does not promise to give
// equal messages equal bytes, which is what compaction goes by.
func (k recordKey) encode() []byte {
	var message []byte
	if k.kind != kindFence {
		message = protowire.AppendTag(message, 1, protowire.BytesType)
		message = protowire.AppendString(message, string(k.group))
	}
	switch k.kind {
	case kindMember:
		message = protowire.AppendTag(message, 2, protowire.BytesType)
		message = protowire.AppendString(message, string(k.member))
	case kindOffset:
		message = protowire.AppendTag(message, 2, protowire.BytesType)
		message = protowire.AppendBytes(message, k.partition.Topic[:])
		if k.partition.Index != 0 {
			message = protowire.AppendTag(message, 3, protowire.VarintType)
			message = protowire.AppendVarint(message, uint64(k.partition.Index))
		}
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, k.kind, protowire.BytesType), message)
}

// check says what no key has.
func (k recordKey) check() error {
	switch {
	case k.kind == kindFence:
		return nil
	case k.group == "" || !utf8.ValidString(string(k.group)):
		return fmt.Errorf("group is %q, must be UTF-8 and not empty", k.group)
	case k.kind == kindMember && (k.member == "" || !utf8.ValidString(string(k.member))):
		return fmt.Errorf("member is %q, must be UTF-8 and not empty", k.member)
	case k.kind == kindOffset && k.partition.Index < 0:
		return fmt.Errorf("partition is %d, must be 0 to %d", k.partition.Index, math.MaxInt32)
	}
	return nil
}

// decodeKey reads a key. One with more in it than this version would write is of
// another kind: it may stand for something else beside the key without.
func decodeKey(encoded []byte) (recordKey, error) {
	var message logv1.RecordKey
	if err := proto.Unmarshal(encoded, &message); err != nil {
		return recordKey{}, fmt.Errorf("key: %w", err)
	}
	var k recordKey
	switch key := message.GetKey().(type) {
	case *logv1.RecordKey_Fence:
		k.kind = kindFence
	case *logv1.RecordKey_Group:
		k.kind, k.group = kindGroup, groups.GroupID(key.Group.GetGroup())
	case *logv1.RecordKey_Member:
		k.kind, k.group, k.member = kindMember, groups.GroupID(key.Member.GetGroup()), groups.MemberID(key.Member.GetMemberId())
	case *logv1.RecordKey_Offset:
		id, err := topicID(key.Offset.GetTopicId())
		if err != nil {
			return recordKey{}, fmt.Errorf("key: %w", err)
		}
		k.kind, k.group = kindOffset, groups.GroupID(key.Offset.GetGroup())
		k.partition = groups.Partition{Topic: id, Index: key.Offset.GetPartition()}
	default:
		return recordKey{}, ErrUnknownKind
	}
	if err := k.check(); err != nil {
		return recordKey{}, fmt.Errorf("key: %w", err)
	}
	if !bytes.Equal(encoded, k.encode()) {
		return recordKey{}, ErrUnknownKind
	}
	return k, nil
}

func topicID(b []byte) (id cluster.TopicID, err error) {
	if len(b) != len(id) {
		return id, fmt.Errorf("topic id has %d bytes, must have %d", len(b), len(id))
	}
	return cluster.TopicID(b), nil
}
