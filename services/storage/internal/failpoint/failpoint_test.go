//go:build failpoints

package failpoint

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := parse("seal/before-describe=kill@2,a/b=kill,append/before-commit=sleep(5ms)@3")
	want := map[string]action{"seal/before-describe": {at: 2}, "a/b": {at: 1}, "append/before-commit": {at: 3, delay: 5 * time.Millisecond}}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, value := range []string{"a", "a=", "=kill", "a=kill@", "a=kill@0", "a=kill@x", "a=exit", "a=sleep(5ms", "a=sleep(x)", "a=sleep(-1s)", "a=kill,"} {
		if got, err := parse(value); err == nil {
			t.Errorf("%q is read as %+v", value, got)
		}
	}
}

// TestReleaseHasNone builds the binary as it is released and looks for traces of
// the steps in it, which the binary of this test has.
func TestReleaseHasNone(t *testing.T) {
	t.Parallel()
	release := filepath.Join(t.TempDir(), "runnel")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", release, "github.com/runnel-mesh/runnel/services/runnel")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	Hit("seal/before-describe")
	for path, want := range map[string]bool{release: false, os.Args[0]: true} {
		binary, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, trace := range []string{Variable, "seal/before-describe"} {
			if got := bytes.Contains(binary, []byte(trace)); got != want {
				t.Errorf("%s has %q: %t", filepath.Base(path), trace, got)
			}
		}
	}
}
