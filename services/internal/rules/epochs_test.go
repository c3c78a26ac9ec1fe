package rules

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func TestEpochsBegin(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		table  Epochs
		epoch  cluster.LeaderEpoch
		offset int64
		want   Epochs
	}{
		{"first", nil, 0, 0, Epochs{{0, 0}}},
		{"next", Epochs{{0, 0}}, 1, 5, Epochs{{0, 0}, {1, 5}}},
		{"an epoch without records is replaced", Epochs{{0, 0}, {1, 5}}, 2, 5, Epochs{{0, 0}, {2, 5}}},
		{"the same epoch", Epochs{{0, 0}, {1, 5}}, 1, 9, Epochs{{0, 0}, {1, 5}}},
		{"an older epoch", Epochs{{0, 0}, {4, 5}}, 3, 9, Epochs{{0, 0}, {4, 5}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(test.table)
			if got := test.table.Begin(test.epoch, test.offset); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if !slices.Equal(test.table, before) {
				t.Errorf("the shared table changed to %v", test.table)
			}
		})
	}
}

func TestEpochsLookUp(t *testing.T) {
	t.Parallel()
	table := Epochs{{2, 10}, {3, 20}, {6, 30}}
	const logEnd = 40
	for _, test := range []struct {
		name      string
		table     Epochs
		asked     cluster.LeaderEpoch
		wantEpoch cluster.LeaderEpoch
		wantEnd   int64
	}{
		{"KIP-101: a known epoch ends where the next begins", table, 3, 3, 30},
		{"KIP-101: the latest epoch ends with the log", table, 6, 6, 40},
		{"KIP-279: an unknown epoch yields the largest below it", table, 5, 3, 30},
		{"an epoch above all", table, 9, 6, 40},
		{"an epoch below all", table, 1, NoEpoch, 10},
		{"an empty table", nil, 1, NoEpoch, 40},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			epoch, end := test.table.EndOffset(test.asked, logEnd)
			if epoch != test.wantEpoch || end != test.wantEnd {
				t.Errorf("got epoch %d end %d, want epoch %d end %d", epoch, end, test.wantEpoch, test.wantEnd)
			}
		})
	}
	for offset, want := range map[int64]cluster.LeaderEpoch{9: NoEpoch, 10: 2, 19: 2, 20: 3, 29: 3, 30: 6, 99: 6} {
		if got := table.At(offset); got != want {
			t.Errorf("epoch at %d: got %d, want %d", offset, got, want)
		}
	}
}

func TestEpochsTruncate(t *testing.T) {
	t.Parallel()
	table := Epochs{{2, 10}, {3, 20}, {6, 30}}
	for offset, want := range map[int64]Epochs{
		5: {}, 10: {}, 11: {{2, 10}}, 20: {{2, 10}}, 25: {{2, 10}, {3, 20}}, 31: table,
	} {
		if got := table.TruncateEnd(offset); !slices.Equal(got, want) {
			t.Errorf("end %d: got %v, want %v", offset, got, want)
		}
	}
	for offset, want := range map[int64]Epochs{
		0: table, 10: table, 15: {{2, 15}, {3, 20}, {6, 30}}, 20: {{3, 20}, {6, 30}}, 35: {{6, 35}},
	} {
		if got := table.TruncateStart(offset); !slices.Equal(got, want) {
			t.Errorf("start %d: got %v, want %v", offset, got, want)
		}
	}
	if !slices.Equal(table, Epochs{{2, 10}, {3, 20}, {6, 30}}) {
		t.Errorf("the shared table changed to %v", table)
	}
}

func TestEpochsDiverge(t *testing.T) {
	t.Parallel()
	table := Epochs{{1, 10}, {3, 20}, {6, 30}}
	const logEnd = 40
	for _, test := range []struct {
		name   string
		epoch  cluster.LeaderEpoch
		offset int64
		want   bool
	}{
		{"a prefix in the same epoch", 3, 25, false},
		{"exactly the end of an epoch", 3, 30, false},
		{"KIP-320: more of an epoch than the leader has", 3, 31, true},
		{"KIP-279: an epoch that the leader never had", 2, 15, true},
		{"beyond the log's end", 6, 41, true},
		{"an epoch that was deleted, at the log's start", 0, 10, false},
		{"an epoch that was deleted, beyond the log's start", 0, 11, true},
		{"nothing read yet", NoEpoch, 35, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if _, _, got := table.Diverges(test.epoch, test.offset, logEnd); got != test.want {
				t.Errorf("diverges: got %t, want %t", got, test.want)
			}
		})
	}
}

// replicaLog is a model of a log: the epoch of each record.
type replicaLog []cluster.LeaderEpoch

func (l replicaLog) epochs() Epochs {
	var table Epochs
	for offset, epoch := range l {
		table = table.Begin(epoch, int64(offset))
	}
	return table
}

func (l replicaLog) last() cluster.LeaderEpoch {
	if len(l) == 0 {
		return NoEpoch
	}
	return l[len(l)-1]
}

// reconcile runs the exchange of KIP-320 between a follower and a leader until
// the logs no longer diverge, and returns the follower's log and the number of
// rounds.
func reconcile(t interface{ Fatalf(string, ...any) }, follower, leader replicaLog) (replicaLog, int) {
	for rounds := 0; ; rounds++ {
		if rounds > len(follower)+len(leader)+2 {
			t.Fatalf("no agreement after %d rounds", rounds)
		}
		epoch, end, diverges := leader.epochs().Diverges(follower.last(), int64(len(follower)), int64(len(leader)))
		if !diverges {
			return follower, rounds
		}
		cut := follower.epochs().Truncation(epoch, end, int64(len(follower)))
		if cut >= int64(len(follower)) {
			t.Fatalf("a divergence at epoch %d end %d cuts nothing of %v", epoch, end, follower)
		}
		follower = follower[:cut]
	}
}

// The scenarios of the proposals: what the replicas hold, and what the follower
// keeps. A record is its leader epoch; equal epoch and offset means equal record.
func TestTruncationScenarios(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name             string
		follower, leader replicaLog
		want             replicaLog
	}{
		{
			name:     "KIP-101 scenario 1: high watermark truncation followed by immediate leader election",
			follower: replicaLog{0, 0}, leader: replicaLog{0, 0}, want: replicaLog{0, 0},
		},
		{
			name:     "KIP-101 scenario 2: replica divergence on restart after multiple hard failures",
			follower: replicaLog{0, 0}, leader: replicaLog{0, 1}, want: replicaLog{0},
		},
		{
			name:     "KIP-279 fast leader change: the follower holds an epoch that the leader never had",
			follower: replicaLog{0, 0, 1, 1}, leader: replicaLog{0, 0, 2}, want: replicaLog{0, 0},
		},
		{
			name:     "KIP-279 unclean fail-over: the follower's epochs interleave with the leader's",
			follower: replicaLog{0, 0, 0, 2, 2, 4}, leader: replicaLog{0, 0, 1, 3, 3, 5}, want: replicaLog{0, 0},
		},
		{
			name:     "KIP-279: one common epoch that is longer on the follower, below one that is not common",
			follower: replicaLog{0, 0, 0, 0, 3}, leader: replicaLog{0, 0, 4}, want: replicaLog{0, 0},
		},
		{
			name:     "KIP-320: the follower is ahead within the epoch",
			follower: replicaLog{0, 1, 1, 1}, leader: replicaLog{0, 1, 1}, want: replicaLog{0, 1, 1},
		},
		{
			name:     "the follower is only behind",
			follower: replicaLog{0, 1}, leader: replicaLog{0, 1, 1, 2}, want: replicaLog{0, 1},
		},
		{
			name:     "nothing in common",
			follower: replicaLog{1, 1}, leader: replicaLog{2, 2}, want: replicaLog{},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, _ := reconcile(t, test.follower, test.leader)
			if !slices.Equal(got, test.want) {
				t.Errorf("kept %v, want %v", got, test.want)
			}
		})
	}
}

// Logs that grew out of one another by elections and cuts agree after the
// exchange, and no common record is lost.
func TestTruncationProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		// Each epoch has one leader, which appends to its log; the others take a
		// prefix of the leader's log or stay as they are.
		logs := make([]replicaLog, 3)
		for epoch := range cluster.LeaderEpoch(rapid.IntRange(1, 6).Draw(t, "epochs")) {
			leader := rapid.IntRange(0, 2).Draw(t, "leader")
			for range rapid.IntRange(0, 3).Draw(t, "appends") {
				logs[leader] = append(slices.Clone(logs[leader]), epoch)
			}
			for i := range logs {
				if i == leader || !rapid.Bool().Draw(t, "follows") {
					continue
				}
				kept, _ := reconcile(t, logs[i], logs[leader])
				to := rapid.IntRange(len(kept), len(logs[leader])).Draw(t, "fetched")
				logs[i] = slices.Clone(logs[leader][:to])
				if !slices.Equal(logs[i][:len(kept)], kept) {
					t.Fatalf("kept %v, but the leader has %v", kept, logs[leader])
				}
			}
		}
		follower, leader := logs[0], logs[1]
		common := 0
		for common < min(len(follower), len(leader)) && follower[common] == leader[common] {
			common++
		}
		kept, _ := reconcile(t, follower, leader)
		if len(kept) != common {
			t.Fatalf("follower %v, leader %v: kept %d records, %d are common", follower, leader, len(kept), common)
		}
	})
}
