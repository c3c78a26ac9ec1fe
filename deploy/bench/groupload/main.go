// Command groupload puts load on the coordinators of consumer groups and prints what
// it has measured, one "name value" per line. The scenarios of deploy/bench/groups.sh
// are made of it; the script says what each of them is.
//
// Members are Join streams and heartbeats of their own rather than consumers of the
// SDK, except in join: what they do between two calls takes no time, so the figures are
// those of the coordinator.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type settings struct {
	bootstrap                             []string
	topic, ready                          string
	groups, members, connections, seconds int
	runs, victim, pid                     int
	rate                                  float64
	warmUp                                time.Duration
	unary                                 bool
}

// scenarios are what can be measured.
var scenarios = map[string]func(ctx context.Context, b *bed, s settings) error{
	"rebalance": rebalance,
	"commits":   commits,
	"join":      join,
	"idle":      idle,
	"takeover":  takeover,
}

func main() {
	var s settings
	bootstrap := flag.String("bootstrap", "127.0.0.1:7070", "addresses of the cluster, separated by commas")
	flag.StringVar(&s.topic, "topic", "", "topic to read, which exists")
	flag.StringVar(&s.ready, "ready", "", "idle: file that is made once all groups have their member")
	flag.IntVar(&s.groups, "groups", 1, "commits, idle, takeover: how many groups")
	flag.IntVar(&s.members, "members", 1, "rebalance: how many members the group has")
	flag.IntVar(&s.connections, "connections", 1, "how many connections the members share")
	flag.IntVar(&s.seconds, "seconds", 60, "commits: how long")
	flag.DurationVar(&s.warmUp, "warm-up", 0, "commits: how long before that nothing is counted")
	flag.Float64Var(&s.rate, "rate", 5000, "commits: how many per second")
	flag.BoolVar(&s.unary, "unary", false, "commits: one call for each, in place of a stream per connection")
	flag.IntVar(&s.runs, "runs", 1, "rebalance, join: how often")
	flag.IntVar(&s.victim, "victim", 0, "takeover: number of the coordinator node whose process is killed")
	flag.IntVar(&s.pid, "pid", 0, "takeover: that process")
	flag.Parse()
	s.bootstrap = strings.Split(*bootstrap, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Arg(0), s); err != nil {
		fmt.Fprintln(os.Stderr, "groupload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, name string, s settings) error {
	scenario := scenarios[name]
	switch {
	case scenario == nil:
		return fmt.Errorf("scenario %q: name one of rebalance, commits, join, idle and takeover after the flags", name)
	case s.topic == "":
		return errors.New("name a -topic")
	case s.groups < 1 || s.members < 1 || s.connections < 1 || s.seconds < 1 || s.runs < 1 || s.rate <= 0:
		return errors.New("sizes must be above 0")
	}
	b := newBed(s)
	defer b.close()
	return scenario(ctx, b, s)
}

// line prints one figure.
func line(name, format string, value any) { fmt.Printf("%s "+format+"\n", name, value) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile returns the duration in milliseconds that a share of the sorted ones does not
// exceed.
func quantile(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return milliseconds(sorted[max(int(math.Ceil(share*float64(len(sorted)))), 1)-1])
}

// quantiles prints the figures of durations, which it sorts.
func quantiles(name string, durations []time.Duration) {
	slices.Sort(durations)
	line(name+"_p50_ms", "%.2f", quantile(durations, 0.5))
	line(name+"_p99_ms", "%.2f", quantile(durations, 0.99))
	line(name+"_max_ms", "%.1f", quantile(durations, 1))
}
