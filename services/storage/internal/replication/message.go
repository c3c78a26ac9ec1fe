package replication

import (
	"fmt"

	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// parseID reads the name of a partition.
func parseID(topic []byte, index int32) (ID, error) {
	id, err := cluster.ParseTopicID(topic)
	if err != nil {
		return ID{}, err
	}
	if index < 0 {
		return ID{}, fmt.Errorf("partition is %d, must be 0 or more", index)
	}
	return ID{Topic: id, Index: index}, nil
}

// positionMessage returns a position as the follower sends it.
func positionMessage(id ID, p rules.Position, resend bool) *peerv1.FollowerPosition {
	return &peerv1.FollowerPosition{
		TopicId:          id.Topic[:],
		Partition:        id.Index,
		LeaderEpoch:      int32(p.LeaderEpoch),
		LastFetchedEpoch: int32(p.LastEpoch),
		FetchOffset:      p.LogEnd,
		LogStartOffset:   p.LogStart,
		Resend:           resend,
		Probe:            p.Probe,
	}
}

// readPosition reads a position as the leader receives it.
func readPosition(req *peerv1.ReplicateRequest, m *peerv1.FollowerPosition) (rules.Position, error) {
	if m.GetFetchOffset() < 0 || m.GetLastFetchedEpoch() < int32(rules.NoEpoch) || m.GetLeaderEpoch() < 0 {
		return rules.Position{}, fmt.Errorf("position has offset %d, last epoch %d and leader epoch %d, must be at least 0, -1 and 0",
			m.GetFetchOffset(), m.GetLastFetchedEpoch(), m.GetLeaderEpoch())
	}
	if start := m.GetLogStartOffset(); start < 0 || start > m.GetFetchOffset() {
		return rules.Position{}, fmt.Errorf("position has log start %d, must be 0 to its offset, %d", start, m.GetFetchOffset())
	}
	if m.GetProbe() < 0 {
		return rules.Position{}, fmt.Errorf("position has probe %d, must be at least 0", m.GetProbe())
	}
	return rules.Position{
		Node:        cluster.NodeID(req.GetNodeId()),
		NodeEpoch:   cluster.NodeEpoch(req.GetNodeEpoch()),
		LeaderEpoch: cluster.LeaderEpoch(m.GetLeaderEpoch()),
		LastEpoch:   cluster.LeaderEpoch(m.GetLastFetchedEpoch()),
		LogEnd:      m.GetFetchOffset(),
		LogStart:    m.GetLogStartOffset(),
		Probe:       m.GetProbe(),
	}, nil
}

// epochMessages returns entries of an epoch table as the leader sends them.
func epochMessages(epochs rules.Epochs) []*peerv1.EpochEntry {
	if len(epochs) == 0 {
		return nil
	}
	out := make([]*peerv1.EpochEntry, len(epochs))
	for i, e := range epochs {
		out[i] = &peerv1.EpochEntry{Epoch: int32(e.Epoch), StartOffset: e.StartOffset}
	}
	return out
}

// dataMessage returns what a leader sends.
func dataMessage(id ID, out rules.Replicated, batches [][]byte) *peerv1.ReplicaData {
	m := &peerv1.ReplicaData{
		TopicId:        id.Topic[:],
		Partition:      id.Index,
		LeaderEpoch:    int32(out.LeaderEpoch),
		FollowsOffset:  out.Follows,
		HighWatermark:  out.HighWatermark,
		LogStartOffset: out.LogStart,
		Epochs:         epochMessages(out.Epochs),
		Batches:        batches,

		CoordinatorEpoch: int64(out.CoordinatorEpoch),
		Probe:            out.Probe,
	}
	if out.Diverges {
		m.Divergence = &peerv1.Divergence{Epoch: int32(out.Epoch), EndOffset: out.End}
	}
	if out.Restarts {
		m.RestartOffset = &out.RestartOffset
	}
	return m
}

// readReplicated reads what the leader has sent. What it says of the batches is
// what they say of themselves; whether they are whole is for the partition to find
// out.
func readReplicated(m *peerv1.ReplicaData) (rules.Replicated, error) {
	in := rules.Replicated{
		LeaderEpoch:   cluster.LeaderEpoch(m.GetLeaderEpoch()),
		Follows:       m.GetFollowsOffset(),
		HighWatermark: m.GetHighWatermark(),
		LogStart:      m.GetLogStartOffset(),

		CoordinatorEpoch: cluster.CoordinatorEpoch(m.GetCoordinatorEpoch()),
		Probe:            m.GetProbe(),
	}
	if in.Follows < 0 || in.HighWatermark < 0 || in.LogStart < 0 {
		return in, fmt.Errorf("offsets are %d, %d and %d, must be at least 0", in.Follows, in.HighWatermark, in.LogStart)
	}
	if in.CoordinatorEpoch < 0 || in.Probe < 0 {
		return in, fmt.Errorf("coordinator epoch and probe are %d and %d, must be at least 0", in.CoordinatorEpoch, in.Probe)
	}
	if d := m.GetDivergence(); d != nil {
		in.Diverges, in.Epoch, in.End = true, cluster.LeaderEpoch(d.GetEpoch()), d.GetEndOffset()
	}
	if m.RestartOffset != nil {
		in.Restarts, in.RestartOffset = true, m.GetRestartOffset()
	}
	if in.End < 0 || in.RestartOffset < 0 {
		return in, fmt.Errorf("the logs part at offset %d and %d, must be at least 0", in.End, in.RestartOffset)
	}
	for i, e := range m.GetEpochs() {
		entry := rules.EpochStart{Epoch: cluster.LeaderEpoch(e.GetEpoch()), StartOffset: e.GetStartOffset()}
		if entry.Epoch < 0 || entry.StartOffset < 0 ||
			i > 0 && (entry.Epoch <= in.Epochs[i-1].Epoch || entry.StartOffset <= in.Epochs[i-1].StartOffset) {
			return in, fmt.Errorf("epoch %d at offset %d does not come after the entry before it", entry.Epoch, entry.StartOffset)
		}
		in.Epochs = append(in.Epochs, entry)
	}
	for _, b := range m.GetBatches() {
		header, err := recordbatch.ParseHeader(b)
		if err != nil {
			return in, fmt.Errorf("a batch behind offset %d: %w", in.Follows, err)
		}
		in.Batches = append(in.Batches, rules.BatchBounds{
			BaseOffset: header.BaseOffset, LastOffset: header.LastOffset(), Epoch: cluster.LeaderEpoch(header.LeaderEpoch),
		})
	}
	return in, nil
}
