package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSampleConfigs: the flags of the sample cluster are flags of these commands,
// no two processes want the same port, and all know where the others are.
func TestSampleConfigs(t *testing.T) {
	folder := filepath.Join("..", "..", "..", "..", "deploy", "cluster")
	files, err := filepath.Glob(filepath.Join(folder, "*.flags"))
	if err != nil || len(files) != 7 {
		t.Fatalf("%v, %v", files, err)
	}
	users := make(map[string]string)
	var wanted []string
	take := func(file, text, pattern string) {
		for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			if other, taken := users[match[1]]; taken {
				t.Errorf("%s and %s both want %s", file, other, match[1])
			}
			users[match[1]] = file
		}
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var flags []string
		for line := range strings.Lines(string(content)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "--") {
				flags = append(flags, line)
			}
			if _, list, ok := strings.Cut(line, "--metadata="); ok {
				wanted = append(wanted, strings.Split(list, ",")...)
			}
			if _, address, ok := strings.Cut(line, "--etcd-endpoints="); ok {
				wanted = append(wanted, address)
			}
		}
		name, _, _ := strings.Cut(filepath.Base(file), "-")
		if got := runWith(t, nil, nil, append(append([]string{name}, flags...), "--help")...); got.code != exitSuccess {
			t.Errorf("%s: exit code %d: %s", file, got.code, got.stderr)
		}
		take(file, string(content), `(?m)^--(?:peer-)?listen=(.+)$`)
		take(file, string(content), `(?m)^(--node-id=.+)$`)
		take(file, string(content), `(?m)^--data-dir=(.+)$`)
	}
	etcd, err := os.ReadFile(filepath.Join(folder, "etcd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	take("etcd.yaml", string(etcd), `(?m)^listen-(?:client|peer)-urls: http://(.+)$`)
	for _, address := range wanted {
		if users[address] == "" {
			t.Errorf("nobody listens on %s", address)
		}
	}
}
