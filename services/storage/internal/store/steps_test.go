package store

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// steps returns the names of all steps at which the store can be killed, as the
// source has them: a step that somebody adds is tested without being listed.
func steps(t testing.TB) []string {
	t.Helper()
	var names []string
	for _, step := range stepsIn(t, ".") {
		names = append(names, step.name)
	}
	slices.Sort(names)
	return names
}

type step struct{ name, position string }

// stepsIn returns the steps in the source of a folder and of those below it.
func stepsIn(t testing.TB, folder string) []step {
	t.Helper()
	var found []step
	files := token.NewFileSet()
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			called, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || called.Sel.Name != "Hit" {
				return true
			}
			if in, ok := called.X.(*ast.Ident); !ok || in.Name != "failpoint" {
				return true
			}
			position := files.Position(call.Pos()).String()
			literal, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the name of a step must be a literal, or no test finds it", position)
				return true
			}
			name, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Errorf("%s: %v", position, err)
			}
			found = append(found, step{name, position})
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestSteps checks that each step has one name and one place, in this package,
// where the test that kills at each of them looks for it.
func TestSteps(t *testing.T) {
	here := steps(t)
	all := stepsIn(t, filepath.Join("..", "..", "..", ".."))
	form := regexp.MustCompile(`^[a-z]+/[a-z]+(-[a-z]+)*$`)
	places := make(map[string]string)
	for _, step := range all {
		if !form.MatchString(step.name) {
			t.Errorf("%s: %q is no name of the form <what>/<step>", step.position, step.name)
		}
		if other, ok := places[step.name]; ok {
			t.Errorf("%s: %q is the name of the step at %s too", step.position, step.name, other)
		}
		places[step.name] = step.position
		if !slices.Contains(here, step.name) {
			t.Errorf("%s: %q lies outside the package whose steps are tested", step.position, step.name)
		}
	}
	if len(here) < 20 {
		t.Errorf("only %d steps were found: %v", len(here), here)
	}
}
