package rules

import (
	"maps"
	"strings"
	"testing"
)

func TestAlterTopicConfig(t *testing.T) {
	t.Parallel()
	type config = map[string]string
	for _, test := range []struct {
		name        string
		config, set config
		unset       []string
		want        config
		// says is part of the refusal; empty where the change is accepted.
		says string
	}{
		{name: "first setting", set: config{RetentionMs: "5"}, want: config{RetentionMs: "5"}},
		{name: "beside another", config: config{Durability: "replicated"}, set: config{RetentionMs: "5"}, want: config{Durability: "replicated", RetentionMs: "5"}},
		{name: "another value", config: config{RetentionMs: "4"}, set: config{RetentionMs: "5"}, want: config{RetentionMs: "5"}},
		{name: "the default as a value of its own", set: config{RetentionMs: "604800000"}, want: config{RetentionMs: "604800000"}},
		{name: "unset", config: config{RetentionMs: "4", Durability: "replicated"}, unset: []string{RetentionMs}, want: config{Durability: "replicated"}},
		{name: "unset what is not set", unset: []string{RetentionMs}, want: config{}},
		{name: "unset twice", config: config{RetentionMs: "4"}, unset: []string{RetentionMs, RetentionMs}, want: config{}},
		{name: "one of each", config: config{RetentionMs: "4"}, set: config{RetentionBytes: "9"}, unset: []string{RetentionMs}, want: config{RetentionBytes: "9"}},
		{name: "unset what is unknown here", config: config{"future": "1"}, unset: []string{"future"}, want: config{}},
		{name: "nothing", config: config{RetentionMs: "4"}, says: "names no setting"},
		{name: "both", set: config{RetentionMs: "5"}, unset: []string{RetentionMs}, says: "retention.ms is both given a value and unset"},
		{name: "unknown", set: config{"retention.msec": "5"}, says: `"retention.msec" is unknown: use one of cleanup.policy`},
		{name: "unset unknown", unset: []string{"retention.msec"}, says: `"retention.msec" is unknown and cannot be unset: use one of cleanup.policy`},
		{name: "senseless", set: config{RetentionMs: "-7"}, says: `retention.ms cannot be "-7": use a number from 1 to`},
		{name: "one of two is senseless", set: config{RetentionMs: "7", RetentionBytes: "x"}, says: "retention.bytes cannot be"},
		{name: "already not understood", config: config{"future": "1"}, set: config{RetentionMs: "5"}, says: `"future" is unknown`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			before := maps.Clone(test.config)
			got, err := AlterTopicConfig(test.config, test.set, test.unset)
			switch {
			case test.says == "" && (err != nil || !maps.Equal(got, test.want)):
				t.Errorf("got %v, %v, want %v", got, err, test.want)
			case test.says != "" && (err == nil || got != nil || !strings.Contains(err.Error(), test.says)):
				t.Errorf("got %v, %v, want %q", got, err, test.says)
			}
			if !maps.Equal(before, test.config) {
				t.Errorf("the settings of before have become %v", test.config)
			}
		})
	}
}
