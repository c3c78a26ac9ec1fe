package cli

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUp pastes what `up` prints.
func TestUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by up")
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out, in := io.Pipe()
	var stderr bytes.Buffer
	done := make(chan int)
	go func() {
		defer in.Close()
		done <- Run(ctx, Environment{
			Program: "./bin/runnel", Args: []string{"up", "--listen", "127.0.0.1:0", "--data-dir", dir}, Stdout: in, Stderr: &stderr,
			Getenv: func(string) string { return "" },
		})
	}()
	var printed strings.Builder
	for b := make([]byte, 4096); !strings.Contains(printed.String(), "Ctrl-C"); {
		n, err := out.Read(b)
		printed.Write(b[:n])
		if err != nil {
			t.Fatalf("up ended with code %d: %s", <-done, stderr.String())
		}
	}
	match := regexp.MustCompile(`(?s)^Runnel is up\.\n\n  data     ` + regexp.QuoteMeta(dir) + `\n  address  (127\.0\.0\.1:\d+)\n\nTry in another terminal:\n\n` +
		`  echo "hello world" \| (.*?) produce greetings\n` +
		`  (.*?) consume greetings --from-beginning --exit-at-end\n  (.*?) topics describe greetings\n\nCtrl-C stops it; the data stays\.\n$`).FindStringSubmatch(printed.String())
	if match == nil {
		t.Fatalf("up says\n%s", printed.String())
	}
	address := match[1]
	for _, self := range match[2:] {
		if want := "--bootstrap " + address; !strings.HasSuffix(self, want) {
			t.Errorf("%s does not end in %s", self, want)
		}
	}
	variables := map[string]string{bootstrapEnvVar: address}
	if got := runWith(t, strings.NewReader("hello world\n"), variables, "produce", "greetings"); got.code != exitSuccess {
		t.Errorf("produce: %s", got.stderr)
	}
	if got := runWith(t, nil, variables, "consume", "greetings", "--from-beginning", "--exit-at-end"); got.stdout != "hello world\n" {
		t.Errorf("consume: %q, %s", got.stdout, got.stderr)
	}

	for _, test := range []struct {
		name string
		args []string
		want []string
	}{
		{"port taken", []string{"--listen", address, "--data-dir", t.TempDir()}, []string{address, "--listen"}},
		{"directory taken", []string{"--listen", "127.0.0.1:0", "--data-dir", dir}, []string{dir, "--data-dir"}},
		{"directory cannot be made", []string{"--listen", "127.0.0.1:0", "--data-dir", "/proc/runnel"}, []string{"/proc/runnel", "--data-dir"}},
	} {
		got := runWith(t, nil, nil, append([]string{"up"}, test.args...)...)
		if got.code != exitFailure || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, stdout %q, stderr %s", test.name, got.code, got.stdout, got.stderr)
		}
		for _, word := range test.want {
			if !strings.Contains(got.stderr, word) {
				t.Errorf("%s: stderr does not say %q: %s", test.name, word, got.stderr)
			}
		}
	}

	interrupt()
	if code := <-done; code != exitSuccess || stderr.String() != "stopping; once more ends it at once\n" {
		t.Errorf("exit code %d, stderr %s", code, stderr.String())
	}
}
