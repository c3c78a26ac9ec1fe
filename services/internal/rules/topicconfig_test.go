package rules

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestTopicConfigDefaults(t *testing.T) {
	t.Parallel()
	got, err := ParseTopicConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := TopicConfig{
		RetentionMs: 604800000, RetentionBytes: -1, MaxMessageBytes: 1048576, CleanupPolicy: "delete",
		TimestampType: "CreateTime", MinInsyncReplicas: 2, Durability: "synced", CompressionType: "producer",
		MinCompactionLagMs: 0, DeleteRetentionMs: 86400000, MinCleanableDirtyRatio: 0.5,
	}
	if got != want {
		t.Errorf("defaults are %+v, want %+v", got, want)
	}
	if got.Compacted() || got.Traits() != (TopicTraits{Synced: true, MinInsyncReplicas: 2}) {
		t.Errorf("compacted %t, traits %+v", got.Compacted(), got.Traits())
	}
}

func TestTopicConfigValues(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, value string
		// legal is part of the refusal; empty where the value is accepted.
		legal string
	}{
		{RetentionMs, "-1", ""},
		{RetentionMs, "1", ""},
		{RetentionMs, "9223372036854", ""},
		{RetentionMs, "9223372036855", "1 to 9223372036854 without a unit, or -1"},
		{RetentionMs, "0", "1 to 9223372036854 without a unit, or -1"},
		{RetentionMs, "-2", "or -1 for no limit"},
		{RetentionMs, "1h", "a number from 1 to 9223372036854 without a unit, or -1 for no limit"},
		{MaxMessageBytes, "4MB", "a number from 128 to 16777216 without a unit"},
		{RetentionMs, "", "or -1 for no limit"},
		{RetentionBytes, "-1", ""},
		{RetentionBytes, "9223372036854775807", ""},
		{RetentionBytes, "9223372036854775808", "1 to 9223372036854775807"},
		{RetentionBytes, "0", "1 to 9223372036854775807"},
		{MaxMessageBytes, "128", ""},
		{MaxMessageBytes, "16777216", ""},
		{MaxMessageBytes, "16777217", "128 to 16777216"},
		{MaxMessageBytes, "127", "128 to 16777216"},
		{MaxMessageBytes, "-1", "128 to 16777216"},
		{CleanupPolicy, "delete", ""},
		{CleanupPolicy, "compact", ""},
		{CleanupPolicy, "compact,delete", ""},
		{CleanupPolicy, "delete,compact", ""},
		{CleanupPolicy, "Compact", "delete or compact or compact,delete"},
		{CleanupPolicy, "delete,delete", "delete or compact or compact,delete"},
		{MessageTimestampType, "LogAppendTime", ""},
		{MessageTimestampType, "logappendtime", "CreateTime or LogAppendTime"},
		{MinInsyncReplicas, "1", ""},
		{MinInsyncReplicas, "0", "1 to 32767"},
		{MinInsyncReplicas, "32768", "1 to 32767"},
		{Durability, "replicated", ""},
		{Durability, "none", "synced or replicated"},
		{CompressionType, "producer", ""},
		{CompressionType, "zstd", "use producer"},
		{MinCompactionLagMs, "0", ""},
		{MinCompactionLagMs, "9223372036854", ""},
		{MinCompactionLagMs, "-1", "0 to 9223372036854"},
		{DeleteRetentionMs, "0", ""},
		{DeleteRetentionMs, "9223372036855", "0 to 9223372036854"},
		{DeleteRetentionMs, "1h", "0 to 9223372036854"},
		{MinCleanableDirtyRatio, "0", ""},
		{MinCleanableDirtyRatio, "0.01", ""},
		{MinCleanableDirtyRatio, "1", ""},
		{MinCleanableDirtyRatio, "1.01", "0 to 1"},
		{MinCleanableDirtyRatio, "-0.1", "0 to 1"},
		{MinCleanableDirtyRatio, "NaN", "0 to 1"},
		{MinCleanableDirtyRatio, "", "0 to 1"},
		{"retention", "1", "use one of cleanup.policy, compression.type, delete.retention.ms, durability, max.message.bytes, message.timestamp.type, min.cleanable.dirty.ratio, min.compaction.lag.ms, min.insync.replicas, retention.bytes, retention.ms"},
		{"Retention.ms", "1", "is unknown"},
	} {
		_, err := ParseTopicConfig(map[string]string{test.name: test.value})
		switch {
		case test.legal == "" && err != nil:
			t.Errorf("%s=%s is refused: %v", test.name, test.value, err)
		case test.legal != "" && err == nil:
			t.Errorf("%s=%s is accepted", test.name, test.value)
		case err != nil && !(strings.Contains(err.Error(), test.legal) && strings.Contains(err.Error(), test.name)):
			t.Errorf("%s=%s is refused with %q, which does not say %q", test.name, test.value, err, test.legal)
		}
	}
}

func TestTopicConfigReportsAllFaults(t *testing.T) {
	t.Parallel()
	_, err := ParseTopicConfig(map[string]string{RetentionMs: "x", "nonsense": "1", Durability: "synced", MinInsyncReplicas: "0"})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{RetentionMs, "nonsense", MinInsyncReplicas} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

func TestTopicConfigNormalizesCleanupPolicy(t *testing.T) {
	t.Parallel()
	c, err := ParseTopicConfig(map[string]string{CleanupPolicy: "delete,compact"})
	if err != nil || c.CleanupPolicy != CleanupCompactDelete || !c.Compacted() {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestTopicConfigEntries(t *testing.T) {
	t.Parallel()
	entries := TopicConfigEntries(map[string]string{Durability: "replicated"})
	inEffect := map[string]string{}
	for _, e := range entries {
		inEffect[e.Name] = e.Value
		if e.Default != (e.Name != Durability) {
			t.Errorf("%s: default is %t", e.Name, e.Default)
		}
		if e.Doc == "" || !strings.HasSuffix(e.Doc, ".") {
			t.Errorf("%s has no documentation", e.Name)
		}
	}
	if !slices.IsSortedFunc(entries, func(a, b ConfigEntry) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("entries are not in order of names")
	}
	if _, err := ParseTopicConfig(inEffect); err != nil {
		t.Errorf("the entries are not a legal configuration: %v", err)
	}
	if names := slices.Sorted(maps.Keys(inEffect)); !slices.Equal(names, settingNames()) {
		t.Errorf("entries are %v, settings are %v", names, settingNames())
	}
}

func TestCheckTopicName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "A-b_c.9", "...", "_", "a__b", "-", strings.Repeat("x", 249)} {
		if err := CheckTopicName(name); err != nil {
			t.Errorf("%q is refused: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "__", "__consumer_offsets", "a b", "a/b", "a\x00", "\u00e9", "a\xff", "a:b", "a\n", strings.Repeat("x", 250)} {
		if err := CheckTopicName(name); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func FuzzParseTopicConfig(f *testing.F) {
	f.Add(RetentionMs, "604800000")
	f.Add(MaxMessageBytes, "-1")
	f.Add(CleanupPolicy, "compact,delete")
	f.Fuzz(func(t *testing.T, name, value string) {
		c, err := ParseTopicConfig(map[string]string{name: value})
		if err != nil {
			return
		}
		if c.MaxMessageBytes < minMaxMessageBytes || c.MaxMessageBytes > maxMaxMessageBytes || c.MinInsyncReplicas < 1 ||
			c.RetentionMs < -1 || c.RetentionMs == 0 || c.RetentionBytes < -1 || c.RetentionBytes == 0 ||
			c.MinCompactionLagMs < 0 || c.DeleteRetentionMs < 0 || !(c.MinCleanableDirtyRatio >= 0 && c.MinCleanableDirtyRatio <= 1) {
			t.Errorf("%s=%q gives %+v", name, value, c)
		}
	})
}

func TestParseUnderstoodTopicConfig(t *testing.T) {
	t.Parallel()
	understood := map[string]string{MaxMessageBytes: "5000", Durability: "replicated", RetentionMs: "7", CleanupPolicy: "compact"}
	want, err := ParseTopicConfig(understood)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseUnderstoodTopicConfig(understood); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	// Whatever is not understood, what is holds, and nothing is removed.
	want.RetentionMs, want.RetentionBytes, want.MinCompactionLagMs = Unlimited, Unlimited, maxRetentionMs
	for name, value := range map[string]string{"future.setting": "1", RetentionBytes: "half the disk", MinInsyncReplicas: "most"} {
		config := maps.Clone(understood)
		config[name] = value
		got, err := ParseUnderstoodTopicConfig(config)
		if err == nil || !strings.Contains(err.Error(), name) || got != want {
			t.Errorf("%s=%s: got %+v, %v, want %+v", name, value, got, err, want)
		}
		if config[name] != value || len(config) != 5 {
			t.Errorf("the settings of before have become %v", config)
		}
	}
}
