package sim

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var mutantsFlag = flag.Int("sim.mutants", 0, "how many seeds each mutant of mutants/ is given; 0 leaves them out")

// violated is how TestSeeds reports what it has found.
var violated = regexp.MustCompile(`seed (\d+), step \d+, \S+: invariant (\d+) \(`)

// TestMutants breaks the code as each patch in mutants/ says, in a copy of what the
// simulation is built from, and expects the seeds to find it. One that stays green
// shows that the simulation has lost its teeth, and one that does not apply that it
// has to be made anew.
func TestMutants(t *testing.T) {
	if *mutantsFlag == 0 {
		t.Skip("run it with: go tool task mutants")
	}
	root, sources := packages(t)
	patches, err := filepath.Glob("mutants/*.patch")
	if err != nil {
		t.Fatal(err)
	}
	if len(patches) < 8 {
		t.Fatalf("there are %d mutants, and ought to be 8 at least", len(patches))
	}
	for _, patch := range patches {
		name := strings.TrimSuffix(filepath.Base(patch), ".patch")
		text, err := os.ReadFile(patch)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			copyTree(t, root, dir, sources)
			if out, err := run(t, dir, text, "git", "apply", "-"); err != nil {
				t.Fatalf("the patch does not apply: %v\n%s", err, out)
			}
			out, err := run(t, dir, nil, "go", "test", "-count=1", "-vet=off", "-trimpath", "-timeout=30m", "-run=^TestSeeds$", "./services/internal/sim",
				"-sim.seeds="+fmt.Sprint(*mutantsFlag))
			if err == nil {
				t.Fatalf("%d seeds find nothing", *mutantsFlag)
			}
			found := violated.FindStringSubmatch(out)
			if found == nil {
				t.Fatalf("the seeds fail, and no invariant is violated: %v\n%s", err, out)
			}
			t.Logf("seed %s violates invariant %s", found[1], found[2])
		})
	}
}

// packages returns the root of the module, and the directories in it that hold what
// the simulation and its tests are built from.
func packages(t *testing.T) (root string, directories []string) {
	t.Helper()
	out, err := run(t, ".", nil, "go", "list", "-deps", "-test", "-f", "{{with .Module}}{{if .Main}}{{.Dir}}\n{{$.Dir}}{{end}}{{end}}", ".")
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	lines := strings.Fields(out)
	if len(lines) < 2 {
		t.Fatalf("go list says %q", out)
	}
	root = lines[0]
	for i := 1; i < len(lines); i += 2 {
		relative, err := filepath.Rel(root, lines[i])
		if err != nil {
			t.Fatal(err)
		}
		directories = append(directories, relative)
	}
	return root, directories
}

// copyTree copies the files of directories, and what makes them a module.
func copyTree(t *testing.T, from, to string, directories []string) {
	t.Helper()
	names := []string{"go.mod", "go.sum"}
	for _, directory := range directories {
		files, err := filepath.Glob(filepath.Join(from, directory, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			names = append(names, filepath.Join(directory, filepath.Base(file)))
		}
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755), os.WriteFile(filepath.Join(to, name), text, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// run runs a program in a directory. What lies above it is no repository to git.
func run(t *testing.T, dir string, input []byte, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(input)
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	out, err := cmd.CombinedOutput()
	return string(out), err
}
