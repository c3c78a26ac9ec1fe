package rules

import (
	"testing"
	"time"
)

func TestCompactionDue(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, test := range []struct {
		name    string
		ratio   string
		facts   CompactionFacts
		urgency float64
		due     bool
	}{
		{"nothing new", "0", CompactionFacts{Bytes: 100 * mib, SinceLast: time.Hour}, 0, false},
		{"below the ratio", "0.5", CompactionFacts{Bytes: 100 * mib, Dirty: 49 * mib, SinceLast: time.Hour}, 0.49, false},
		{"at the ratio", "0.5", CompactionFacts{Bytes: 100 * mib, Dirty: 50 * mib}, 0.5, true},
		{"any ratio", "0", CompactionFacts{Bytes: 1000 * mib, Dirty: mib}, 0.001, true},
		{"all of it", "1", CompactionFacts{Bytes: mib, Dirty: mib}, 1, true},
		{"too little to hurry", "0.5", CompactionFacts{Bytes: 100, Dirty: 100}, 1, false},
		{"little, for long", "0.5", CompactionFacts{Bytes: 100, Dirty: 100, SinceLast: time.Hour}, 1, true},
		{"unfinished", "0.5", CompactionFacts{Bytes: 100, Dirty: 1, Unfinished: true}, 1.01, true},
		{"unfinished, but nothing is left", "0.5", CompactionFacts{Bytes: 100, Unfinished: true}, 0, false},
		{"expired tombstones", "0.5", CompactionFacts{Bytes: 100, TombstonesExpired: true}, 0, true},
	} {
		config, err := ParseTopicConfig(map[string]string{CleanupPolicy: CleanupCompact, MinCleanableDirtyRatio: test.ratio})
		if err != nil {
			t.Fatal(err)
		}
		if urgency, due := config.CompactionDue(test.facts); urgency != test.urgency || due != test.due {
			t.Errorf("%s: %v, %v, want %v, %v", test.name, urgency, due, test.urgency, test.due)
		}
	}
}
