package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// invocation is how this process was started, as far as it tells how a person
// can start the program again.
type invocation struct {
	argv0      string
	executable string
	// packagePath is the import path of the program.
	packagePath string
	// packageDir is where, relative to the working directory, the program's
	// sources lie; "" if they do not.
	packageDir string
	// onPath is the file that the shell finds under argv0, "" if none.
	onPath string
}

// findInvocation looks around. What cannot be found out stays empty.
func findInvocation(argv0 string) invocation {
	i := invocation{argv0: argv0}
	if path, err := os.Executable(); err == nil {
		i.executable = path
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		i.packagePath = info.Path
		if dir, found := strings.CutPrefix(info.Path, info.Main.Path+"/"); found {
			if _, err := os.Stat(filepath.Join(dir, "main.go")); err == nil {
				i.packageDir = dir
			}
		}
	}
	if path, err := exec.LookPath(filepath.Base(argv0)); err == nil {
		i.onPath = path
	}
	return i
}

// command returns what starts the program again when pasted into a shell.
func (i invocation) command() string {
	if i.byGoRun() {
		if i.packageDir != "" {
			return "go run ./" + filepath.ToSlash(i.packageDir)
		}
		return "go run " + i.packagePath
	}
	if !strings.ContainsRune(i.argv0, filepath.Separator) && i.onPath != "" {
		return shellWord(i.argv0)
	}
	if i.argv0 != "" && strings.ContainsRune(i.argv0, filepath.Separator) {
		return shellWord(i.argv0)
	}
	return shellWord(i.executable)
}

// byGoRun reports whether `go run` built this program: it leaves the program in
// a folder of the build ($TMPDIR/go-build123/b001/exe) or of the build cache
// (go-build/ab/abcd-d).
func (i invocation) byGoRun() bool {
	if i.packagePath == "" {
		return false
	}
	for part := range strings.SplitSeq(filepath.ToSlash(filepath.Dir(i.executable)), "/") {
		if strings.HasPrefix(part, "go-build") {
			return true
		}
	}
	return false
}

// shellWord quotes a word if a shell would otherwise take it apart.
func shellWord(word string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,=+@%"
	if word != "" && strings.Trim(word, plain) == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
