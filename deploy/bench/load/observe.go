package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// observation is what the server shows of itself at one moment.
type observation struct {
	// counters are the samples of its metrics that only grow, and buckets those of
	// histograms, by name and labels.
	counters, buckets map[string]float64
	// live and disk are in bytes; 0 where they are not known.
	live, disk int64
	// files counts the files of the volumes by their kind.
	files map[string]int
}

func observe(s settings) observation {
	o := observation{counters: make(map[string]float64), buckets: make(map[string]float64), files: make(map[string]int)}
	if s.metrics != "" {
		o.scrape(s.metrics)
	}
	if s.data != "" {
		o.walk(s.data)
	}
	return o
}

// scrape reads the metrics of the storage service. A server that does not answer
// shows nothing.
func (o *observation) scrape(url string) {
	client := http.Client{Timeout: 900 * time.Millisecond}
	response, err := client.Get(url)
	if err != nil {
		return
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || !strings.HasPrefix(line, "runnel_storage_") {
			continue
		}
		name := strings.TrimPrefix(line[:at], "runnel_storage_")
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			continue
		}
		family, _, _ := strings.Cut(name, "{")
		switch {
		case strings.Contains(family, "live") && strings.HasSuffix(family, "_bytes"):
			o.live += int64(value)
		case strings.HasSuffix(family, "_seconds_bucket"):
			o.buckets[name] = value
		case strings.HasSuffix(family, "_total"):
			o.counters[name] = value
		}
	}
}

// walk measures the files below a directory by the blocks that they occupy.
func (o *observation) walk(dir string) {
	// Files come and go meanwhile.
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			o.disk += stat.Blocks * 512
		}
		if kind := filepath.Ext(e.Name()); kind == ".vlog" || kind == ".sst" || kind == ".mem" {
			o.files[kind]++
		}
		return nil
	})
}

// busy are counters that grow with every append and say nothing about a pause.
var busy = []string{"append_", "consume", "tail_cache", "read_bytes", "commit_"}

// since says what has happened since an earlier moment.
func (o observation) since(before observation) []string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(o.files)) {
		if n := o.files[kind] - before.files[kind]; n > 0 {
			out = append(out, fmt.Sprintf("%d new %s", n, kind))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.counters)) {
		grown := o.counters[name] - before.counters[name]
		if grown > 0 && !slices.ContainsFunc(busy, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			out = append(out, fmt.Sprintf("%s +%.4g", name, grown))
		}
	}
	out = append(out, o.slowest(before)...)
	return out
}

// slowest names the highest bucket of each histogram that something fell into.
func (o observation) slowest(before observation) []string {
	type bounds struct{ over, upTo float64 }
	grown := make(map[string]map[float64]float64)
	for name, value := range o.buckets {
		family, labels, _ := strings.Cut(name, "_bucket{")
		i := strings.Index(labels, `le="`)
		if i < 0 {
			continue
		}
		text, _, _ := strings.Cut(labels[i+len(`le="`):], `"`)
		limit, err := strconv.ParseFloat(text, 64)
		if err != nil {
			continue
		}
		key := family + " " + strings.Trim(labels[:i], ",")
		if grown[key] == nil {
			grown[key] = make(map[float64]float64)
		}
		grown[key][limit] = value - before.buckets[name]
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(grown)) {
		var worst bounds
		below, last := 0.0, 0.0
		for _, limit := range slices.Sorted(maps.Keys(grown[key])) {
			if n := grown[key][limit]; n > last {
				worst, last = bounds{over: below, upTo: limit}, n
			}
			below = limit
		}
		if worst.upTo > 0.02 {
			out = append(out, fmt.Sprintf("%s: %.3g to %.3g s", strings.TrimSpace(key), worst.over, worst.upTo))
		}
	}
	return out
}

// processorTime returns what a process has used; 0 where it is not known.
func processorTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name of the program, in parentheses, may hold blanks.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	// Linux counts in hundredths of a second, whatever its own clock does.
	return time.Duration(user+system) * 10 * time.Millisecond
}
