package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/dgraph-io/badger/v4/y"
)

// TestMachineErrorsCondemnNothing pins how Badger says what the system told it.
func TestMachineErrorsCondemnNothing(t *testing.T) {
	for _, errno := range machineErrors {
		cause := &os.PathError{Op: "open", Path: "/data/000001.vlog", Err: errno}
		for how, err := range map[string]error{
			"plain":    cause,
			"wrapped":  y.Wrapf(y.Wrap(cause, "while opening a file"), "during db.vlog.open"),
			"combined": y.CombineErrors(errors.New("close"), cause),
		} {
			if err := damage("/data/volumes/synced-000001", "", err); IsDamagedVolume(err) {
				t.Errorf("%s, %s: %v", errno, how, err)
			}
		}
		if err := DamagedVolume("/data/volumes/synced-000001", fmt.Sprintf("panic: %v", cause)); IsDamagedVolume(err) {
			t.Error(err)
		}
	}
	if err := damage("/data/volumes/synced-000001", "", fmt.Errorf("%w: make room", ErrDiskFull)); IsDamagedVolume(err) {
		t.Error(err)
	}
	for _, err := range []error{errors.New("bad magic"), os.ErrNotExist} {
		if err := damage("/data/volumes/synced-000001", "", err); !IsDamagedVolume(err) {
			t.Errorf("%v is no damage", err)
		}
	}
}

// TestSecondLook: a partition fails only if what could not be read cannot be read
// again.
func TestSecondLook(t *testing.T) {
	cfg := testConfig(t)
	var log lockedBuffer
	cfg.Logger = log.logger()
	s := open(t, cfg)
	l := s.Log(partition(1))
	one(t, l, SetSynced, 0, 1, 100)
	fault := &ErrCorrupt{Partition: l.ID(), Volume: 1, Offset: 0, Next: 1, Reason: "a batch cannot be read"}
	var again error
	follow := func() {
		s.scrub.follow(context.Background(), suspect{log: l, fault: fault, again: func(context.Context) error { return again }})
	}
	for _, again = range []error{nil, os.ErrDeadlineExceeded} {
		if follow(); l.Failed() != nil {
			t.Fatalf("the second look says %v, and the partition has failed: %v", again, l.Failed())
		}
	}
	again = fmt.Errorf("read: %w", fault)
	if follow(); l.Failed() == nil {
		t.Fatal("the partition has not failed")
	}
}
