package storage

import (
	"context"

	"github.com/runnel-mesh/runnel/services/storage/internal/store"
)

// CheckVolume verifies the volume in a folder that was not closed in good order,
// and repairs what a crash leaves. Damage is an error of [DamagedVolume]; any
// other is about the process or the machine. Over damage that nobody foresaw it
// may panic.
func CheckVolume(ctx context.Context, dir string) error {
	return store.CheckVolume(ctx, dir, store.CheckOptions{BootID: bootID()})
}

// DamagedVolume is the error which says that the volume in a folder is damaged,
// unless the reason is about the process or the machine, such as too many open
// files.
func DamagedVolume(dir, reason string) error { return store.DamagedVolume(dir, reason) }

// IsDamagedVolume says whether an error is one of [DamagedVolume].
func IsDamagedVolume(err error) bool { return store.IsDamagedVolume(err) }
