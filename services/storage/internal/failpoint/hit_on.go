//go:build failpoints

package failpoint

import (
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Variable is the environment variable that arms steps.
const Variable = "RUNNEL_FAILPOINTS"

// action is what happens at a step.
type action struct {
	// at is the number of the hit at which it happens first, from 1.
	at int
	// delay makes that hit and all later ones wait; 0 kills the process.
	delay time.Duration
}

var (
	mu    sync.Mutex
	hits  = make(map[string]int)
	armed = mustParse(os.Getenv(Variable))
)

func mustParse(value string) map[string]action {
	actions, err := parse(value)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", Variable, err))
	}
	return actions
}

// parse reads what the variable holds.
func parse(value string) (map[string]action, error) {
	actions := make(map[string]action)
	if value == "" {
		return actions, nil
	}
	for _, item := range strings.Split(value, ",") {
		name, what, ok := strings.Cut(item, "=")
		what, at, counted := strings.Cut(what, "@")
		a := action{at: 1}
		var err error
		if counted {
			a.at, err = strconv.Atoi(at)
		}
		if duration, sleep := strings.CutPrefix(what, "sleep("); sleep && err == nil {
			duration, closed := strings.CutSuffix(duration, ")")
			a.delay, err = time.ParseDuration(duration)
			ok = ok && closed && a.delay > 0
		} else {
			ok = ok && what == "kill"
		}
		if !ok || err != nil || name == "" || a.at < 1 {
			return nil, fmt.Errorf("%q is not <step>=kill, <step>=kill@<hit> or <step>=sleep(<duration>)@<hit>", item)
		}
		actions[name] = a
	}
	return actions, nil
}

// Hit says that the process has reached a step, whose name is <what>/<step>, such
// as "seal/before-describe".
func Hit(name string) {
	mu.Lock()
	hits[name]++
	n := hits[name]
	a, ok := armed[name]
	mu.Unlock()
	switch {
	case !ok || n < a.at:
	case a.delay > 0:
		time.Sleep(a.delay)
	case n == a.at:
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		// The signal may take a moment, and nothing may happen meanwhile.
		select {}
	}
}

// Hits returns how often each step was reached.
func Hits() map[string]int {
	mu.Lock()
	defer mu.Unlock()
	return maps.Clone(hits)
}
