package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/runnel-mesh/runnel/services/storage"
)

func TestVolumeVerdict(t *testing.T) {
	died := errors.New("exit status 2")
	for name, test := range map[string]struct {
		stdout, stderr string
		err            error
		damaged        bool
		says           string
	}{
		"sound":        {stdout: "sound\n"},
		"damaged":      {stdout: "damaged: volume synced-000001: MANIFEST: bad\n", damaged: true, says: "MANIFEST: bad"},
		"panic":        {stderr: "some line\npanic: runtime error: nil\n\ngoroutine 1\n", err: died, damaged: true, says: "runtime error: nil"},
		"fault":        {stderr: "unexpected fault address 0x7f\nfatal error: fault\n", err: died, damaged: true, says: "fault address"},
		"no memory":    {stderr: "fatal error: failed to reserve page summary memory\n\nruntime stack:\n", err: died, says: "page summary"},
		"no threads":   {stderr: "runtime: failed to create new OS thread (have 5 already; errno=11)\nfatal error: newosproc\n", err: died, says: "newosproc"},
		"out of it":    {stderr: "runtime: out of memory: cannot allocate 4194304-byte block\nfatal error: out of memory\n", err: died, says: "out of memory"},
		"no mapping":   {stderr: "panic: while mmapping 000001.vlog: cannot allocate memory\n", err: died, says: "cannot allocate"},
		"signal":       {stderr: "fatal error: unexpected signal during runtime execution\n[signal SIGBUS: bus error]\n", err: died, damaged: true, says: "unexpected signal"},
		"killed":       {err: errors.New("signal: killed"), says: "signal: killed"},
		"other":        {stderr: "runnel: no space left on device\n", err: died, says: "no space left"},
		"says nothing": {says: "said nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			err := volumeVerdict("/data/volumes/synced-000001", test.stdout, test.stderr, test.err)
			if storage.IsDamagedVolume(err) != test.damaged || (err == nil) != (test.says == "") {
				t.Fatalf("the verdict is %v", err)
			}
			if err != nil && (!strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "synced-000001")) {
				t.Errorf("%q does not say %q and which volume", err, test.says)
			}
		})
	}
}
