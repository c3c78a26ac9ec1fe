package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// valueThreshold is the size in bytes from which on a value lies in Badger's
	// value log. All of the store's own records are smaller as a rule, and all
	// batches that matter for throughput larger.
	valueThreshold = 1 << 10
	// valueLogBytes is the size at which Badger begins a new value log file. The
	// switch syncs what is dirty of the old one while appends wait.
	valueLogBytes = 128 << 20
	// memTableBytes bounds the keys that Badger holds in memory, per volume that is
	// written and table; it also bounds a transaction, see transactionLimits. Twice
	// as much made appends no cheaper, but the process 20 MiB larger.
	memTableBytes = 8 << 20
	// maxProducers bounds the producers that one append changes: unlike batches
	// they have to fit into one transaction.
	maxProducers = 4096
)

// Config says where a store lies and how much it may use. Start from
// [DefaultConfig].
type Config struct {
	// Dir is the store's directory. Open creates it where it is missing.
	Dir string
	// VolumeBytes is how many bytes of batches a volume takes before it is
	// sealed; at least 64 KiB. A volume becomes somewhat larger; on a disk of less
	// than 16 times as much it takes a sixteenth of the disk, or 16 MiB.
	VolumeBytes int64
	// VolumeAge is how long after its first append a volume is sealed; at least a
	// second.
	VolumeAge time.Duration
	// MaxOpenSealed bounds the sealed volumes that are open for reading; at least
	// 1. A read of another one waits for a place.
	MaxOpenSealed int
	// GroupBytes bounds the batches that one commit takes together; at least 1.
	// A larger append is committed alone.
	GroupBytes int
	// QueueBytes bounds the batches that wait in each set; at least GroupBytes.
	// Append waits while more would be there.
	QueueBytes int
	// MinFreeBytes is how much of the disk is kept free: while less is, [Log.Admit]
	// refuses. 0 stands for 1 GiB, or an eighth of the disk if that is less.
	// At least 32 MiB are, or a sixteenth of a smaller disk.
	MinFreeBytes int64
	// CleaningRate bounds how fast batches are copied to make room, in bytes per
	// second; at least 1.
	CleaningRate int64
	// Quarantine is how long the batches of a deleted partition stay; at least 0.
	Quarantine time.Duration
	// BootID names the kernel's boot; it is recorded when the store is closed.
	BootID string
	// CheckVolume is how a volume is verified before it is opened after an unclean
	// stop, see [CheckVolume]. That is better done by a process of its own; nil does
	// it in this one. Its error is an [*ErrDamagedVolume], or about the process: then
	// the store does not open.
	CheckVolume func(ctx context.Context, dir string) error
	// ScrubBytes is how many bytes per second of the sealed volumes are read in the
	// background to see whether they are still what was written; 0 for none.
	ScrubBytes int64
	// ScrubEvery is how long after the beginning of a round through all volumes the
	// next one begins; more than 0.
	ScrubEvery time.Duration
	// Logger may be nil.
	Logger *slog.Logger
	// Registerer takes the store's metrics; it may be nil.
	Registerer prometheus.Registerer
	// OnFatal is called once, when the store can no longer be trusted, such as
	// after an error of the disk: the process must stop. All appends fail from
	// then on. It must not block, nor call the store. It may be nil.
	OnFatal func(error)
	// OnStall is called with true when a commit has hung for 2 s, so that another
	// node can lead meanwhile, and with false when it has gone on. After 20 s the
	// store fails. It must not block, nor call the store. It may be nil.
	OnStall func(stalled bool)
	// OnFailed is called with the number of partitions that have failed whenever it
	// changes, in the order of the changes and from [Open] on. It must not block, nor
	// call the store. It may be nil.
	OnFailed func(partitions int)

	// Now tells the time by which deletions are counted; nil stands for time.Now.
	Now func() time.Time

	// Tests use less than the constants of the same names; 0 stands for these.
	valueLogBytes, memTableBytes int64
	// Tests hold commits up.
	stall func(Set)
	// A test shows with it that it would notice a synced set which does not sync.
	withoutSync bool
	// Tests replace what the file system says about its space.
	measureDisk func(dir string) (usage, error)
}

// DefaultConfig returns the defaults; Dir is to be set.
func DefaultConfig() Config {
	return Config{
		VolumeBytes:   1 << 30,
		VolumeAge:     24 * time.Hour,
		MaxOpenSealed: 8,
		GroupBytes:    4 << 20,
		QueueBytes:    64 << 20,
		CleaningRate:  64 << 20,
		Quarantine:    time.Minute,
		ScrubBytes:    8 << 20,
		ScrubEvery:    24 * time.Hour,
	}
}

// Validate returns all faults of the configuration in one error.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, key string, got any, legal string) {
		if !ok {
			faults = append(faults, fmt.Errorf("store: %s is %v, must be %s", key, got, legal))
		}
	}
	check(c.Dir != "", "Dir", `""`, "a directory")
	check(c.VolumeBytes >= 64<<10, "VolumeBytes", c.VolumeBytes, "at least 65536")
	check(c.VolumeAge >= time.Second, "VolumeAge", c.VolumeAge, "at least 1s")
	check(c.MaxOpenSealed >= 1, "MaxOpenSealed", c.MaxOpenSealed, "at least 1")
	check(c.GroupBytes >= 1, "GroupBytes", c.GroupBytes, "at least 1")
	check(c.QueueBytes >= c.GroupBytes, "QueueBytes", c.QueueBytes, fmt.Sprintf("at least GroupBytes (%d)", c.GroupBytes))
	check(c.MinFreeBytes >= 0, "MinFreeBytes", c.MinFreeBytes, "at least 0")
	check(c.CleaningRate >= 1, "CleaningRate", c.CleaningRate, "at least 1")
	check(c.Quarantine >= 0, "Quarantine", c.Quarantine, "at least 0s")
	check(c.ScrubBytes >= 0, "ScrubBytes", c.ScrubBytes, "at least 0")
	check(c.ScrubEvery > 0, "ScrubEvery", c.ScrubEvery, "more than 0s")
	return errors.Join(faults...)
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnFatal == nil {
		c.OnFatal = func(error) {}
	}
	if c.OnStall == nil {
		c.OnStall = func(bool) {}
	}
	if c.OnFailed == nil {
		c.OnFailed = func(int) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.CheckVolume == nil {
		options := CheckOptions{BootID: c.BootID, Logger: &badgerLog{logger: c.Logger, fail: func(error) {}}, valueLogBytes: c.valueLogBytes, memTableBytes: c.memTableBytes}
		c.CheckVolume = func(ctx context.Context, dir string) error { return CheckVolume(ctx, dir, options) }
	}
	if c.valueLogBytes == 0 {
		c.valueLogBytes = valueLogBytes
	}
	if c.memTableBytes == 0 {
		c.memTableBytes = memTableBytes
	}
	return c
}
