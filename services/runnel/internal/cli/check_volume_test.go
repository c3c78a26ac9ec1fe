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
