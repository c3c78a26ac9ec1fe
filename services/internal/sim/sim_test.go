package sim

import (
	"flag"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 1, "the first seed that is run")
	seedsFlag = flag.Int("sim.seeds", 0, "how many seeds are run; 0 stands for 200, and 40 with -short")
	traceFlag = flag.Bool("sim.trace", false, "print the trace of each seed")
)

// TestSeeds runs seeds and stops at the first that violates an invariant.
func TestSeeds(t *testing.T) {
	seeds := *seedsFlag
	if seeds == 0 {
		seeds = 200
		if testing.Short() {
			seeds = 40
		}
	}
	var total Counts
	steps := 0
	began := time.Now()
	for i := range seeds {
		r := Run(*seedFlag+uint64(i), Options{Trace: *traceFlag})
		if *traceFlag {
			t.Logf("trace of seed %d, hash %x:\n%s", r.Seed, r.Hash, r.Trace)
		}
		if r.Violation != nil {
			t.Fatalf("%s\nreplay it with: go tool task sim SEED=%d", r.Report, r.Seed)
		}
		total.add(r.Counts)
		steps += r.Steps
	}
	t.Logf("%d seeds from %d on, %d steps, %s each: %+v", seeds, *seedFlag, steps, (time.Since(began) / time.Duration(seeds)).Round(time.Microsecond), total)
	if seeds < 40 {
		return
	}
	for what, n := range map[string]int{
		"acknowledgements": total.Acked, "batches read": total.Consumed, "elections": total.Elections, "ISR changes": total.ISRChanges,
		"truncations": total.Truncations, "restarts of a log": total.Restarts, "crashes": total.Crashes, "machine crashes": total.MachineCrashes,
		"clean stops": total.CleanStops, "duplicates": total.Duplicates, "fences": total.Fences, "terms": total.Terms, "mass losses of leases": total.MassLosses,
		"unclean elections": total.Unclean, "deletions": total.Deletions, "truncations told to consumers": total.Truncated,
		"leaderships of preferred replicas": total.Preferred, "changes of min.insync.replicas": total.Altered, "added replicas": total.Grown, "controllers that were superseded": total.Superseded,
		"losses while a process runs": total.Damages, "withdrawals": total.Withdrawals, "replicas that begin anew": total.BegunAnew,
		"coordinators that begin": total.Coordinators, "crashes of coordinators": total.CoordinatorCrashes, "loads": total.Loads, "claims that do not hold": total.FencedOff,
		"appends with an unknown outcome": total.Doubtful, "assignments": total.Assignments, "partitions given up": total.Revoked, "crashes of members": total.MemberCrashes,
		"lost memberships": total.Lost, "instances that another process has": total.InstancesFenced, "commits": total.Committed, "refused commits": total.CommitsRefused,
		"topics that groups read and that are deleted": total.TopicsDeleted, "offsets that are set": total.Resets, "deleted offsets": total.OffsetsDeleted,
		"offsets of deleted topics that go": total.OffsetsPurged, "deleted groups": total.GroupsDeleted,
		"runs of compaction": total.Compactions, "records that compaction removes": total.Compacted, "tombstones that compaction removes": total.TombstonesGone,
		"reads of an offset while it is written": total.Overlaps, "reads of an offset that an earlier coordinator has recorded": total.AcrossFailovers,
	} {
		if n == 0 {
			t.Errorf("no seed had any %s: the simulation has lost its object", what)
		}
	}
}

// TestReplay runs seeds twice: the traces have to be the same.
func TestReplay(t *testing.T) {
	for seed := range uint64(5) {
		a, b := Run(seed, Options{}), Run(seed, Options{Trace: true})
		if a.Hash != b.Hash || a.Steps != b.Steps || a.Counts != b.Counts {
			t.Errorf("seed %d: %x after %d steps, then %x after %d", seed, a.Hash, a.Steps, b.Hash, b.Steps)
		}
		if other := Run(seed+100, Options{}); other.Hash == a.Hash {
			t.Errorf("seeds %d and %d have the same trace", seed, seed+100)
		}
	}
}
