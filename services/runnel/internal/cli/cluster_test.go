package cli

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/runnel-mesh/runnel/services/allinone"
)

// shared is the cluster of all tests that do not need one of their own. It is
// started by the first of them.
var shared struct {
	sync.Mutex
	address string
	dir     string
	stop    func() error
	err     error
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(checkedVolume); dir != "" {
		os.Exit(checkInChild(dir))
	}
	code := m.Run()
	if shared.stop != nil {
		if err := shared.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the cluster:", err)
			code = 1
		}
		os.RemoveAll(shared.dir)
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// clusterAddress returns the address of a real cluster in this process.
func clusterAddress(t *testing.T) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.stop == nil && shared.err == nil {
		shared.err = startShared()
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.address
}

func startShared() error {
	dir, err := os.MkdirTemp("", "runnel-cli-")
	if err != nil {
		return err
	}
	config := allinone.DefaultConfig()
	config.DataDir, config.Listen = dir, "127.0.0.1:0"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cluster, stop, err := allinone.Start(ctx, config)
	if err != nil {
		return err
	}
	shared.address, shared.dir, shared.stop = cluster.Address(), dir, stop
	return nil
}

// runnelCommand runs a client command against the shared cluster.
func runnelCommand(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	return runWith(t, strings.NewReader(stdin), map[string]string{bootstrapEnvVar: clusterAddress(t)}, args...)
}

// succeed runs a command that must succeed and returns its output.
func succeed(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	got := runnelCommand(t, stdin, args...)
	if got.code != exitSuccess {
		t.Fatalf("%s: exit code %d: %s", strings.Join(args, " "), got.code, got.stderr)
	}
	return got
}

// topicName returns a name that no other test uses.
func topicName(t *testing.T) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("/ #:", r) {
			return '-'
		}
		return r
	}, t.Name())
}

func readBack(t *testing.T, topic string, flags ...string) string {
	t.Helper()
	return succeed(t, "", append([]string{"consume", topic, "--from-beginning", "--exit-at-end"}, flags...)...).stdout
}

// withoutTimes replaces what differs from run to run.
func withoutTimes(s string) string {
	s = regexp.MustCompile(`\d+\.\d{3} seconds`).ReplaceAllString(s, "S seconds")
	s = regexp.MustCompile(` \(\d+ records/s, [\d.]+ MB/s\)`).ReplaceAllString(s, "")
	return s
}
