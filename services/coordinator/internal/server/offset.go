package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	coordinatorv1 "github.com/runnel-mesh/runnel/gen/runnel/coordinator/v1"
	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// commitWithin is how long a commit may take. The contract names it.
const commitWithin = 30 * time.Second

// CommitOffsets implements coordinatorv1connect.OffsetServiceHandler.
func (s *Server) CommitOffsets(ctx context.Context, req *coordinatorv1.CommitOffsetsRequest) (*coordinatorv1.CommitOffsetsResponse, error) {
	return s.commit(ctx, req, time.Now().Add(commitWithin))
}

// commit carries out a commit, and gives it up at a time.
func (s *Server) commit(ctx context.Context, req *coordinatorv1.CommitOffsetsRequest, until time.Time) (*coordinatorv1.CommitOffsetsResponse, error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	if n := len(req.GetOffsets()); n == 0 || n > maxCommits {
		return nil, invalid("offsets has %d entries, must have 1 to %d", n, maxCommits)
	}
	if err := checkName("member_id", req.GetMemberId()); err != nil {
		return nil, err
	}
	if req.GetMemberId() == "" && req.GetMemberEpoch() != 0 {
		return nil, invalid("member_epoch is %d but member_id is empty: name the member that commits, or send no epoch", req.GetMemberEpoch())
	}
	if req.GetMemberId() == "" && req.GetCommitSequence() != 0 {
		return nil, invalid("commit_sequence is %d but member_id is empty: name the member whose commits are numbered, or send no number", req.GetCommitSequence())
	}
	index, err := s.find(ctx, req.GetGroup())
	if err != nil {
		return nil, err
	}
	image := s.view.Image()
	res := &coordinatorv1.CommitOffsetsResponse{Results: make([]*coordinatorv1.OffsetCommitResult, len(req.GetOffsets()))}
	commit := &rules.Commit{
		Group: rules.GroupID(req.GetGroup()), Member: rules.MemberID(req.GetMemberId()), Epoch: rules.Epoch(req.GetMemberEpoch()),
		Sequence: rules.CommitSequence(req.GetCommitSequence()),
	}
	// at says which result belongs to which offset of the commit.
	var at []int
	seen := make(map[rules.Partition]bool, len(req.GetOffsets()))
	for i, in := range req.GetOffsets() {
		res.Results[i] = &coordinatorv1.OffsetCommitResult{Topic: in.GetTopic(), Partition: in.GetPartition()}
		offset, err := checkCommit(image, in)
		if err != nil {
			res.Results[i].Failure = rpcerr.AsFailure(err)
			continue
		}
		if seen[offset.Partition] {
			return nil, invalid("offsets names partition %d of topic %q twice; name each once", in.GetPartition(), in.GetTopic())
		}
		seen[offset.Partition] = true
		commit.Offsets, at = append(commit.Offsets, offset), append(at, i)
	}
	if req.GetMemberId() == "" {
		// By hand, mistakes are likely, and nothing is in a hurry.
		commit.Offsets, at = s.withinLog(ctx, commit.Offsets, at, res)
	} else {
		commit.Offsets, at = s.withinEnd(ctx, commit.Offsets, at, res)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if len(commit.Offsets) == 0 && req.GetMemberId() == "" {
		return res, nil
	}
	// A member is told if it is none any more, whatever it wanted to commit.
	value, err := s.host.Do(ctx, index, commit)
	if err != nil {
		return nil, s.translate(req.GetGroup(), err)
	}
	answer, _ := value.(rules.CommitAnswer)
	for i, refusal := range answer.Refusals {
		if refusal != nil && i < len(at) {
			res.Results[at[i]].Failure = refused(refusal).Failure()
		}
	}
	return res, nil
}

// checkCommit reads an offset to record.
func checkCommit(image *cluster.Image, in *coordinatorv1.OffsetCommit) (rules.CommitOffset, error) {
	topic, err := topicNamed(image, in.GetTopic())
	if err != nil {
		return rules.CommitOffset{}, err
	}
	if id := in.GetTopicId(); len(id) > 0 && string(id) != string(topic.ID[:]) {
		return rules.CommitOffset{}, rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q was deleted and created again since this offset was read; commit offsets of the new topic", topic.Name)
	}
	if err := checkPartition(topic, in.GetPartition()); err != nil {
		return rules.CommitOffset{}, err
	}
	switch {
	case in.GetOffset() < 0:
		return rules.CommitOffset{}, invalid("offset of partition %d of topic %q is %d, must be 0 or more: that of the next record to read", in.GetPartition(), topic.Name, in.GetOffset())
	case in.LeaderEpoch != nil && in.GetLeaderEpoch() < 0:
		return rules.CommitOffset{}, invalid("leader_epoch of partition %d of topic %q is %d, must be 0 or more, or unset where it is not known", in.GetPartition(), topic.Name, in.GetLeaderEpoch())
	case len(in.GetMetadata()) > maxMetadataBytes:
		return rules.CommitOffset{}, rpcerr.New(errorsv1.Reason_REASON_METADATA_TOO_LARGE, "metadata of partition %d of topic %q has %d bytes, must have at most %d; keep it elsewhere, and commit where", in.GetPartition(), topic.Name, len(in.GetMetadata()), maxMetadataBytes)
	}
	epoch := int32(-1)
	if in.LeaderEpoch != nil {
		epoch = in.GetLeaderEpoch()
	}
	return rules.CommitOffset{
		Partition: rules.Partition{Topic: topic.ID, Index: in.GetPartition()}, TopicName: topic.Name,
		Offset: in.GetOffset(), LeaderEpoch: epoch, Metadata: in.GetMetadata(),
	}, nil
}

// withinLog returns the offsets that lie in their partitions, and refuses the others.
func (s *Server) withinLog(ctx context.Context, in []rules.CommitOffset, at []int, res *coordinatorv1.CommitOffsetsResponse) (out []rules.CommitOffset, outAt []int) {
	ends := s.leaders.Ends(ctx, len(in), func(i int) (string, int32) { return in[i].TopicName, in[i].Index })
	for i, offset := range in {
		err := ends[i].Err
		if err == nil && (offset.Offset < ends[i].Start || offset.Offset > ends[i].End) {
			err = rpcerr.New(errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE,
				"offset %d is not in partition %d of topic %q, which has %d to %d for readers; commit one of these", offset.Offset, offset.Index, offset.TopicName, ends[i].Start, ends[i].End).
				WithDetail(&errorsv1.OffsetOutOfRange{Topic: offset.TopicName, Partition: offset.Index, Offset: offset.Offset, EarliestOffset: ends[i].Start, LatestOffset: ends[i].End})
		}
		if err != nil {
			res.Results[at[i]].Failure = rpcerr.AsFailure(err)
			continue
		}
		out, outAt = append(out, offset), append(outAt, at[i])
	}
	return out, outAt
}

// withinEnd returns the offsets that do not lie beyond the ends of their partitions, and
// refuses the others. A member has read what it commits, as a rule. So one whose leader is
// away is recorded: refused, it would be read again, or not be read at most once, whenever
// a leader goes; recorded, what is wrong about it is found when somebody reads there. One
// that lies before the first record is recorded, too: records may go while they are in hand.
func (s *Server) withinEnd(ctx context.Context, in []rules.CommitOffset, at []int, res *coordinatorv1.CommitOffsetsResponse) (out []rules.CommitOffset, outAt []int) {
	ends := s.leaders.BeyondEnd(ctx, in)
	for i, offset := range in {
		if ends[i].Err != nil {
			s.unchecked.Inc()
		}
		if ends[i].Beyond {
			res.Results[at[i]].Failure = rpcerr.New(errorsv1.Reason_REASON_OFFSET_OUT_OF_RANGE,
				"offset %d lies beyond the end of partition %d of topic %q, which is %d for readers; commit the offset behind the last record that was read, or if records were lost since, seek to the committed offset", offset.Offset, offset.Index, offset.TopicName, ends[i].End).
				WithDetail(&errorsv1.OffsetOutOfRange{Topic: offset.TopicName, Partition: offset.Index, Offset: offset.Offset, LatestOffset: ends[i].End}).Failure()
			continue
		}
		out, outAt = append(out, offset), append(outAt, at[i])
	}
	return out, outAt
}

// FetchOffsets implements coordinatorv1connect.OffsetServiceHandler.
func (s *Server) FetchOffsets(ctx context.Context, req *coordinatorv1.FetchOffsetsRequest) (*coordinatorv1.FetchOffsetsResponse, error) {
	wanted, err := readSets(req.GetPartitions())
	if err != nil {
		return nil, err
	}
	fetch := &rules.Fetch{Group: rules.GroupID(req.GetGroup())}
	if image := s.view.Image(); wanted != nil && image != nil && !wanted.whole() {
		fetch.Partitions = wanted.resolve(image)
	}
	found, err := ask[[]*rules.OffsetRecord](ctx, s, req.GetGroup(), fetch)
	if err != nil {
		return nil, err
	}
	res := &coordinatorv1.FetchOffsetsResponse{}
	for _, o := range found {
		if wanted.has(o) {
			res.Offsets = append(res.Offsets, committedOffset(o))
		}
	}
	return res, nil
}

// DeleteOffsets implements coordinatorv1connect.OffsetServiceHandler.
func (s *Server) DeleteOffsets(ctx context.Context, req *coordinatorv1.DeleteOffsetsRequest) (*coordinatorv1.DeleteOffsetsResponse, error) {
	if len(req.GetPartitions()) == 0 {
		return nil, invalid("partitions is empty; name at least one topic whose offsets are to be forgotten")
	}
	wanted, err := readSets(req.GetPartitions())
	if err != nil {
		return nil, err
	}
	// By name, so that offsets of topics that were deleted are found as well.
	found, err := ask[[]*rules.OffsetRecord](ctx, s, req.GetGroup(), &rules.Fetch{Group: rules.GroupID(req.GetGroup())})
	if err != nil {
		return nil, err
	}
	forget := &rules.DeleteOffsets{Group: rules.GroupID(req.GetGroup())}
	known := make(map[string]bool)
	for _, o := range found {
		if wanted.has(o) {
			forget.Partitions = append(forget.Partitions, o.Partition)
			known[o.TopicName] = true
		}
	}
	image := s.view.Image()
	for name, indexes := range wanted {
		topic, err := topicNamed(image, name)
		switch {
		case err == nil:
			for index := range indexes {
				if err := checkPartition(topic, index); err != nil {
					return nil, err
				}
			}
		case !known[name]:
			return nil, err
		}
	}
	deleted, err := ask[[]*rules.OffsetRecord](ctx, s, req.GetGroup(), forget)
	if err != nil {
		return nil, err
	}
	res := &coordinatorv1.DeleteOffsetsResponse{}
	for _, o := range deleted {
		res.Deleted = append(res.Deleted, committedOffset(o))
	}
	return res, nil
}

// committedOffset is an offset as clients are told of it.
func committedOffset(o *rules.OffsetRecord) *coordinatorv1.CommittedOffset {
	out := &coordinatorv1.CommittedOffset{
		Topic: o.TopicName, TopicId: o.Topic[:], Partition: o.Index, Offset: o.Offset, Metadata: o.Metadata,
		CommittedAt: timestamppb.New(o.Committed),
	}
	if o.LeaderEpoch >= 0 {
		out.LeaderEpoch = proto.Int32(o.LeaderEpoch)
	}
	return out
}

// partitionSets are partitions by the names of topics; nil stands for all of a topic,
// and nil sets for all of all.
type partitionSets map[string]map[int32]bool

// readSets reads the partitions that a request names.
func readSets(in []*coordinatorv1.TopicPartitionSet) (partitionSets, error) {
	if len(in) == 0 {
		return nil, nil
	}
	sets, count := make(partitionSets, len(in)), 0
	for _, set := range in {
		name := set.GetTopic()
		if name == "" {
			return nil, invalid("a set of partitions has no topic; name it")
		}
		if _, again := sets[name]; again {
			return nil, invalid("topic %q is named twice; name it once, with all its partitions", name)
		}
		if count += 1 + len(set.GetPartitions()); count > maxAsked {
			return nil, invalid("the request names more than %d partitions; name fewer, or whole topics", maxAsked)
		}
		sets[name] = nil
		if len(set.GetPartitions()) > 0 {
			sets[name] = make(map[int32]bool, len(set.GetPartitions()))
		}
		for _, index := range set.GetPartitions() {
			if index < 0 {
				return nil, invalid("topic %q has partition %d, must be 0 or more", name, index)
			}
			sets[name][index] = true
		}
	}
	return sets, nil
}

// whole reports whether a topic is meant with all its partitions: which these are, the
// offsets tell.
func (p partitionSets) whole() bool {
	for _, set := range p {
		if set == nil {
			return true
		}
	}
	return false
}

// resolve returns the partitions of topics that there are; it is not nil.
func (p partitionSets) resolve(image *cluster.Image) []rules.Partition {
	out := []rules.Partition{}
	for name, set := range p {
		if topic, ok := image.Topic(name); ok {
			for index := range set {
				out = append(out, rules.Partition{Topic: topic.ID, Index: index})
			}
		}
	}
	return out
}

// has reports whether an offset is one of them.
func (p partitionSets) has(o *rules.OffsetRecord) bool {
	if p == nil {
		return true
	}
	set, named := p[o.TopicName]
	return named && (set == nil || set[o.Index])
}

// topicNamed returns the topic of that name.
func topicNamed(image *cluster.Image, name string) (*cluster.Topic, error) {
	if image != nil {
		if topic, ok := image.Topic(name); ok {
			return topic, nil
		}
	}
	return nil, rpcerr.New(errorsv1.Reason_REASON_TOPIC_NOT_FOUND, "topic %q does not exist; create it, or check the name", name)
}

func checkPartition(topic *cluster.Topic, index int32) error {
	if index < 0 || int(index) >= len(topic.Partitions) {
		return rpcerr.New(errorsv1.Reason_REASON_PARTITION_NOT_FOUND, "topic %q has no partition %d, it has 0 to %d", topic.Name, index, len(topic.Partitions)-1)
	}
	return nil
}
