package rules

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names of the topic settings.
const (
	CleanupPolicy          = "cleanup.policy"
	CompressionType        = "compression.type"
	DeleteRetentionMs      = "delete.retention.ms"
	Durability             = "durability"
	MaxMessageBytes        = "max.message.bytes"
	MessageTimestampType   = "message.timestamp.type"
	MinCleanableDirtyRatio = "min.cleanable.dirty.ratio"
	MinCompactionLagMs     = "min.compaction.lag.ms"
	MinInsyncReplicas      = "min.insync.replicas"
	RetentionBytes         = "retention.bytes"
	RetentionMs            = "retention.ms"
)

// Values of settings that are words.
const (
	CleanupDelete           = "delete"
	CleanupCompact          = "compact"
	CleanupCompactDelete    = "compact,delete"
	DurabilitySynced        = "synced"
	DurabilityReplicated    = "replicated"
	TimestampCreateTime     = "CreateTime"
	TimestampLogAppendTime  = "LogAppendTime"
	CompressionTypeProducer = "producer"
)

const (
	minMaxMessageBytes = 128
	// maxMaxMessageBytes stays below the 32 MiB that a message on the wire may
	// have.
	maxMaxMessageBytes = 16 << 20
	// maxRetentionMs is the longest span that a time.Duration can hold.
	maxRetentionMs = math.MaxInt64 / int64(time.Millisecond)
	// defaultMinInsyncReplicas is in effect at most the number of replicas.
	defaultMinInsyncReplicas = 2
)

// Unlimited as retention.ms or retention.bytes keeps records for ever.
const Unlimited = -1

// TopicConfig is the settings of a topic in effect.
type TopicConfig struct {
	// RetentionMs is how long records are kept, in milliseconds, or Unlimited.
	RetentionMs int64
	// RetentionBytes is how large a partition may grow before its oldest records
	// are removed, or Unlimited.
	RetentionBytes int64
	// MaxMessageBytes bounds a record batch as sent, and each plain record.
	MaxMessageBytes int
	// CleanupPolicy is one of CleanupDelete, CleanupCompact, CleanupCompactDelete.
	CleanupPolicy string
	// MinCompactionLagMs is how old a record must be, in milliseconds, before
	// compaction may remove it.
	MinCompactionLagMs int64
	// DeleteRetentionMs is how long a tombstone, a record without a value, stays
	// after compaction has removed what came before it, in milliseconds.
	DeleteRetentionMs int64
	// MinCleanableDirtyRatio is the share of a partition's bytes, from 0 to 1, that
	// must have come since it was last compacted before it is compacted again.
	MinCleanableDirtyRatio float64
	// TimestampType is TimestampCreateTime or TimestampLogAppendTime.
	TimestampType string
	// MinInsyncReplicas is as set; see [EffectiveMinInsync].
	MinInsyncReplicas int
	// Durability is DurabilitySynced or DurabilityReplicated.
	Durability string
	// CompressionType is CompressionTypeProducer.
	CompressionType string
}

// Compacted reports whether the topic keeps the newest record of each key.
func (c TopicConfig) Compacted() bool { return c.CleanupPolicy != CleanupDelete }

// Deletes reports whether the topic removes records by age and size.
func (c TopicConfig) Deletes() bool { return c.CleanupPolicy != CleanupCompact }

// Synced reports whether acknowledged records are on disk.
func (c TopicConfig) Synced() bool { return c.Durability == DurabilitySynced }

// Traits returns what elections depend on.
func (c TopicConfig) Traits() TopicTraits {
	return TopicTraits{Synced: c.Synced(), MinInsyncReplicas: c.MinInsyncReplicas}
}

// ConfigEntry describes one setting of a topic.
type ConfigEntry struct {
	Name string
	// Value is the one in effect.
	Value string
	// Default says that the topic does not set it.
	Default bool
	// Doc says in one sentence what the setting does and which values are legal.
	Doc string
}

// MaxTopicNameLength is the longest name that a topic may have, in bytes.
const MaxTopicNameLength = 249

// CheckTopicName says why a topic may not be created under a name, in a sentence
// with the legal form; nil if it may.
func CheckTopicName(name string) error {
	switch {
	case name == "":
		return errors.New("a topic needs a name of 1 to 249 characters from a-z, A-Z, 0-9, dot, underscore and hyphen")
	case len(name) > MaxTopicNameLength:
		return fmt.Errorf("a topic name of %d bytes is too long: use 1 to %d characters", len(name), MaxTopicNameLength)
	case name == "." || name == "..":
		return fmt.Errorf("a topic cannot be named %q: use another name", name)
	case strings.HasPrefix(name, "__"):
		return fmt.Errorf("topic name %q is reserved: names that begin with two underscores belong to the cluster", name)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("topic name %q has an illegal character at byte %d: use a-z, A-Z, 0-9, dot, underscore and hyphen", name, i)
		}
	}
	return nil
}

// setting is a topic setting: apply stores a value or returns the legal range.
type setting struct {
	name         string
	defaultValue string
	doc          string
	apply        func(c *TopicConfig, value string) (legal string)
}

// settings is in ascending order of names.
var settings = []setting{
	{
		CleanupPolicy, CleanupDelete,
		"What happens to old records: delete removes them by retention.ms and retention.bytes, compact keeps the newest record of each key, compact,delete does both.",
		func(c *TopicConfig, value string) string {
			if value == "delete,compact" {
				value = CleanupCompactDelete
			}
			return word(&c.CleanupPolicy, value, CleanupDelete, CleanupCompact, CleanupCompactDelete)
		},
	},
	{
		CompressionType, CompressionTypeProducer,
		"Compression of stored records: only producer is offered, which keeps what the producer chose.",
		func(c *TopicConfig, value string) string {
			return word(&c.CompressionType, value, CompressionTypeProducer)
		},
	},
	{
		DeleteRetentionMs, "86400000",
		fmt.Sprintf("Milliseconds for which a record without a value is kept after compaction has removed the earlier records of its key: 0 to %d.", maxRetentionMs),
		func(c *TopicConfig, value string) string {
			return integer(&c.DeleteRetentionMs, value, 0, maxRetentionMs, false)
		},
	},
	{
		Durability, DurabilitySynced,
		"When records count as acknowledged: synced waits until they are on disk, replicated until they are in the page cache of the in-sync replicas.",
		func(c *TopicConfig, value string) string {
			return word(&c.Durability, value, DurabilitySynced, DurabilityReplicated)
		},
	},
	{
		MaxMessageBytes, "1048576",
		fmt.Sprintf("Largest record batch as sent and largest plain record, in bytes: %d to %d.", minMaxMessageBytes, maxMaxMessageBytes),
		func(c *TopicConfig, value string) string {
			var n int64
			legal := integer(&n, value, minMaxMessageBytes, maxMaxMessageBytes, false)
			c.MaxMessageBytes = int(n)
			return legal
		},
	},
	{
		MessageTimestampType, TimestampCreateTime,
		"Which timestamp records carry: CreateTime is the producer's, LogAppendTime the server's.",
		func(c *TopicConfig, value string) string {
			return word(&c.TimestampType, value, TimestampCreateTime, TimestampLogAppendTime)
		},
	},
	{
		MinCleanableDirtyRatio, "0.5",
		"Share of a partition's bytes that must be new since its last compaction before it is compacted again: 0 to 1.",
		func(c *TopicConfig, value string) string {
			return fraction(&c.MinCleanableDirtyRatio, value)
		},
	},
	{
		MinCompactionLagMs, "0",
		fmt.Sprintf("Milliseconds for which a record is safe from compaction after it was written: 0 to %d.", maxRetentionMs),
		func(c *TopicConfig, value string) string {
			return integer(&c.MinCompactionLagMs, value, 0, maxRetentionMs, false)
		},
	},
	{
		MinInsyncReplicas, strconv.Itoa(defaultMinInsyncReplicas),
		fmt.Sprintf("Replicas that must be in sync for acks=all to succeed, in effect at most the replication factor: 1 to %d.", math.MaxInt16),
		func(c *TopicConfig, value string) string {
			var n int64
			legal := integer(&n, value, 1, math.MaxInt16, false)
			c.MinInsyncReplicas = int(n)
			return legal
		},
	},
	{
		RetentionBytes, "-1",
		"Bytes of each partition that are kept before the oldest records are removed: 1 or more, or -1 for no limit.",
		func(c *TopicConfig, value string) string {
			return integer(&c.RetentionBytes, value, 1, math.MaxInt64, true)
		},
	},
	{
		RetentionMs, "604800000",
		fmt.Sprintf("Milliseconds for which records are kept before they are removed: 1 to %d, or -1 for no limit.", maxRetentionMs),
		func(c *TopicConfig, value string) string {
			return integer(&c.RetentionMs, value, 1, maxRetentionMs, true)
		},
	},
}

// ParseTopicConfig returns the settings in effect for a topic that sets those in
// config. The error names every unknown setting and every illegal value together
// with its legal range.
func ParseTopicConfig(config map[string]string) (TopicConfig, error) {
	var c TopicConfig
	var errs []error
	for _, s := range settings {
		if s.apply(&c, s.defaultValue) != "" {
			// Held by TestTopicConfigDefaults.
			errs = append(errs, fmt.Errorf("the default %q of %s is not legal", s.defaultValue, s.name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(config)) {
		i := slices.IndexFunc(settings, func(s setting) bool { return s.name == name })
		if i < 0 {
			errs = append(errs, fmt.Errorf("topic setting %q is unknown: use one of %s", name, strings.Join(settingNames(), ", ")))
			continue
		}
		if legal := settings[i].apply(&c, config[name]); legal != "" {
			errs = append(errs, fmt.Errorf("topic setting %s cannot be %q: use %s", name, config[name], legal))
		}
	}
	if len(errs) > 0 {
		return TopicConfig{}, joined(errs)
	}
	return c, nil
}

// ParseUnderstoodTopicConfig is [ParseTopicConfig] for a node that has to act on
// settings which a newer release may have stored. What it does not understand
// has its default, except that neither retention nor compaction removes anything
// then: their defaults must not delete what a setting of that release means to
// keep. The error says what was not understood.
func ParseUnderstoodTopicConfig(config map[string]string) (TopicConfig, error) {
	parsed, err := ParseTopicConfig(config)
	if err == nil {
		return parsed, nil
	}
	understood := maps.Clone(config)
	maps.DeleteFunc(understood, func(name, value string) bool {
		_, unknown := ParseTopicConfig(map[string]string{name: value})
		return unknown != nil
	})
	parsed, _ = ParseTopicConfig(understood)
	parsed.RetentionMs, parsed.RetentionBytes, parsed.MinCompactionLagMs = Unlimited, Unlimited, maxRetentionMs
	return parsed, err
}

// TopicConfigEntries returns all settings of a topic that sets those in config,
// in ascending order of names. Unknown settings are left out.
func TopicConfigEntries(config map[string]string) []ConfigEntry {
	entries := make([]ConfigEntry, len(settings))
	for i, s := range settings {
		value, own := config[s.name]
		if !own {
			value = s.defaultValue
		}
		entries[i] = ConfigEntry{Name: s.name, Value: value, Default: !own, Doc: s.doc}
	}
	return entries
}

func settingNames() []string {
	names := make([]string, len(settings))
	for i, s := range settings {
		names[i] = s.name
	}
	return names
}

func word(target *string, value string, legal ...string) string {
	if !slices.Contains(legal, value) {
		return strings.Join(legal, " or ")
	}
	*target = value
	return ""
}

func integer(target *int64, value string, least, most int64, unlimited bool) string {
	n, err := strconv.ParseInt(value, 10, 64)
	switch {
	case err == nil && (n >= least && n <= most || unlimited && n == Unlimited):
		*target = n
		return ""
	case unlimited:
		return fmt.Sprintf("a number from %d to %d without a unit, or -1 for no limit", least, most)
	default:
		return fmt.Sprintf("a number from %d to %d without a unit", least, most)
	}
}

func fraction(target *float64, value string) string {
	f, err := strconv.ParseFloat(value, 64)
	if err != nil || !(f >= 0 && f <= 1) {
		return "0 to 1"
	}
	*target = f
	return ""
}

// joined puts errors into one sentence rather than one line each.
func joined(errs []error) error {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}
