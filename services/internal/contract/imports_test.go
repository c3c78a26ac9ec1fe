package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/runnel-mesh/runnel"

// goPackage is the part of the output of `go list -json` that the rules need.
type goPackage struct {
	ImportPath  string
	Imports     []string
	TestImports []string
	XTestImport []string `json:"XTestImports"`
}

// rule bans imports. A path matches a pattern when it is equal to it or lies
// below it.
type rule struct {
	// from says whose imports the rule is about.
	from []string
	// except lists packages of from that the rule does not hold for.
	except []string
	// banned lists what they may not import.
	banned []string
	// allowed lists what is exempt from banned.
	allowed []string
	// tests extends the rule to test files.
	tests  bool
	reason string
}

var rules = []rule{
	{
		from: []string{module + "/gen"}, banned: []string{module}, allowed: []string{module + "/gen"}, tests: true,
		reason: "generated code is the bottom of the house: everybody builds on it, so it builds on nobody",
	},
	{
		from: []string{module + "/sdk"}, banned: []string{module + "/services", "github.com/dgraph-io", "go.etcd.io"},
		reason: "who imports the SDK must not compile a server, and the SDK has only the public API to work with",
	},
	{
		from: []string{module + "/services"}, except: []string{module + "/services/metadata", module + "/services/allinone"},
		banned: []string{"go.etcd.io"},
		reason: "cluster state has one owner; other services ask the metadata service",
	},
	{
		from: []string{module}, except: []string{module + "/services/storage/internal/store"},
		banned: []string{"github.com/dgraph-io/badger"}, tests: true,
		reason: "the store hides its engine, so that the engine can be replaced",
	},
	{
		from: []string{module + "/services/metadata"}, banned: []string{module + "/services/storage", module + "/services/coordinator", module + "/services/allinone"}, tests: true,
		reason: "services talk through generated clients only; that is what lets them live in processes of their own",
	},
	{
		from: []string{module + "/services/storage"}, banned: []string{module + "/services/metadata", module + "/services/coordinator", module + "/services/allinone"}, tests: true,
		reason: "services talk through generated clients only; that is what lets them live in processes of their own",
	},
	{
		from: []string{module + "/services/coordinator"}, banned: []string{module + "/services/metadata", module + "/services/storage", module + "/services/allinone"}, tests: true,
		reason: "services talk through generated clients only; that is what lets them live in processes of their own",
	},
	{
		from:   []string{module},
		except: []string{module + "/services/internal/rpc", module + "/sdk/transport"},
		banned: []string{"connectrpc.com/connect/v2/connecthttp"},
		reason: "frame sizes, limits and compression are set in one place for each side",
	},
	{
		from: []string{module + "/services/internal/rules"},
		banned: []string{
			"context", "log", "log/slog", "net", "os", "sync", "io", module + "/services", "connectrpc.com/connect",
		},
		allowed: []string{module + "/services/internal/rules"},
		reason:  "the rules are stepped by the simulation from a seed: no I/O, clock, goroutine, context or logger",
	},
	{
		from:    []string{module + "/services/internal/sim"},
		banned:  []string{"context", "log", "log/slog", "net", "os", "sync", "io", module + "/services", "connectrpc.com/connect"},
		allowed: []string{module + "/services/internal/rules"},
		reason:  "a seed replays exactly: one thread, one source of random numbers, and the time of the event at hand",
	},
	{
		from: []string{module + "/services/runnel"}, banned: []string{module + "/services/metadata/internal", module + "/services/storage/internal", module + "/services/coordinator/internal"}, tests: true,
		reason: "the command line starts services by their faces and talks to them by the SDK",
	},
}

func TestImportRules(t *testing.T) {
	packages := listPackages(t)
	for _, r := range rules {
		checked := 0
		for _, p := range packages {
			if !matches(p.ImportPath, r.from) || matches(p.ImportPath, r.except) {
				continue
			}
			checked++
			imports := p.Imports
			if r.tests {
				imports = slices.Concat(imports, p.TestImports, p.XTestImport)
			}
			for _, imported := range imports {
				if matches(imported, r.banned) && !matches(imported, r.allowed) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imported, r.reason)
				}
			}
		}
		if checked == 0 {
			t.Errorf("rule for %v holds for no package: it has lost its object", r.from)
		}
	}
}

// TestOnlyTheTranslatorBuildsConnectErrors looks at the source, since the
// import alone is needed by all handlers.
func TestOnlyTheTranslatorBuildsConnectErrors(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}`, module+"/services/...").Output()
	if err != nil {
		t.Fatalf("listing files: %v", err)
	}
	grep := exec.CommandContext(t.Context(), "grep", append([]string{"-lE", `connect\.(NewError|Errorf)\(`}, strings.Fields(string(out))...)...)
	found, err := grep.Output()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Fatalf("searching: %v", err)
	}
	for file := range strings.FieldsSeq(string(found)) {
		if !strings.Contains(file, "/services/internal/rpcerr/") {
			t.Errorf("%s builds a connect error: return an *rpcerr.Error, the interceptor translates it", file)
		}
	}
	if len(found) == 0 {
		t.Error("not even rpcerr builds connect errors: the search has lost its object")
	}
}

// TestSDKStaysLight shows what a program that imports the SDK compiles in.
func TestSDKStaysLight(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{with .Module}}{{.Path}}{{end}}{{end}}", module+"/sdk/runnel").Output()
	if err != nil {
		t.Fatalf("listing dependencies: %v", err)
	}
	modules := slices.Compact(slices.Sorted(strings.FieldsSeq(string(out))))
	t.Logf("importing sdk/runnel compiles in %d modules: %s", len(modules), strings.Join(modules, " "))
	want := []string{
		"connectrpc.com/connect/v2",
		"github.com/google/uuid",
		"github.com/klauspost/compress",
		"github.com/pierrec/lz4/v4",
		module,
		"google.golang.org/protobuf",
	}
	for _, m := range modules {
		if !slices.Contains(want, m) {
			t.Errorf("importing sdk/runnel compiles in %s: every user of the SDK pays for it; find a way without, or add it to this list with a reason", m)
		}
	}
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	var packages []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		switch err := decoder.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatalf("reading the list of packages: %v", err)
		}
		packages = append(packages, p)
	}
}

func matches(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return path == pattern || strings.HasPrefix(path, pattern+"/")
	})
}
