package cli

import (
	"path/filepath"
	"runtime"
	"testing"
)

func TestInvocationCommand(t *testing.T) {
	const pkg = "github.com/runnel-mesh/runnel/services/runnel"
	tests := []struct {
		name string
		how  invocation
		want string
	}{
		{"go run from the top of the checkout",
			invocation{argv0: "/tmp/go-build1838/b001/exe/runnel", executable: "/tmp/go-build1838/b001/exe/runnel", packagePath: pkg, packageDir: "services/runnel"},
			"go run ./services/runnel"},
		{"go run out of the build cache",
			invocation{argv0: "/root/.cache/go-build/0a/0a12-d/runnel", executable: "/root/.cache/go-build/0a/0a12-d/runnel", packagePath: pkg, packageDir: "services/runnel"},
			"go run ./services/runnel"},
		{"go run from elsewhere in the module",
			invocation{argv0: "/tmp/go-build1838/b001/exe/runnel", executable: "/tmp/go-build1838/b001/exe/runnel", packagePath: pkg},
			"go run " + pkg},
		{"installed",
			invocation{argv0: "runnel", executable: "/usr/local/bin/runnel", packagePath: pkg, onPath: "/usr/local/bin/runnel"},
			"runnel"},
		{"by a path, though another one is installed",
			invocation{argv0: "./bin/runnel", executable: "/src/bin/runnel", packagePath: pkg, onPath: "/usr/local/bin/runnel"},
			"./bin/runnel"},
		{"by a path with a space",
			invocation{argv0: "./my bin/it's", executable: "/src/my bin/it's"},
			`'./my bin/it'\''s'`},
		{"under a made-up name",
			invocation{argv0: "rnl", executable: "/opt/runnel"},
			"/opt/runnel"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.how.command(); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestDefaultDataDir(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the places are those of Linux")
	}
	tests := []struct {
		name      string
		variables map[string]string
		want      string
	}{
		{"home", map[string]string{"HOME": "/home/ada"}, "/home/ada/.local/share/runnel"},
		{"XDG", map[string]string{"HOME": "/home/ada", "XDG_DATA_HOME": "/data/ada"}, "/data/ada/runnel"},
		{"relative XDG is ignored", map[string]string{"HOME": "/home/ada", "XDG_DATA_HOME": "data"}, "/home/ada/.local/share/runnel"},
		{"nothing", nil, "runnel-data"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := defaultDataDir(func(name string) string { return test.variables[name] })
			if got != filepath.FromSlash(test.want) {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
