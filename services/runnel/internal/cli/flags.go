package cli

import (
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// parsed is a flag whose value a function reads, so that a bad value is refused
// before the command begins, in words of that function.
type parsed[T any] struct {
	value T
	text  string
	kind  string
	parse func(string) (T, error)
}

// newFlag adds a flag to flags. kind stands for the value in the help text;
// text is the default, "" for none, and must be legal.
func newFlag[T any](flags *pflag.FlagSet, name, shorthand, kind, text, usage string, parse func(string) (T, error)) *parsed[T] {
	f := &parsed[T]{kind: kind, parse: parse}
	if text != "" {
		if err := f.Set(text); err != nil {
			panic(fmt.Sprintf("default of --%s: %v", name, err))
		}
	}
	flags.VarP(f, name, shorthand, usage)
	return f
}

func (f *parsed[T]) Set(text string) error {
	value, err := f.parse(text)
	if err != nil {
		return err
	}
	f.value, f.text = value, text
	return nil
}

func (f *parsed[T]) String() string { return f.text }
func (f *parsed[T]) Type() string   { return f.kind }

// textValue is a flag that takes any text.
type textValue struct {
	target *string
	kind   string
}

// textFlag adds a flag that sets target to any text. kind stands for the value
// in the help text.
func textFlag(flags *pflag.FlagSet, target *string, name, kind, value, usage string) {
	*target = value
	flags.Var(textValue{target, kind}, name, usage)
}

func (v textValue) Set(text string) error {
	*v.target = text
	return nil
}

func (v textValue) String() string {
	if v.target == nil {
		return ""
	}
	return *v.target
}

func (v textValue) Type() string { return v.kind }

// parsedList is a flag that may be given repeatedly.
type parsedList[T any] struct {
	values []T
	kind   string
	parse  func(string) (T, error)
}

func newListFlag[T any](flags *pflag.FlagSet, name, kind, usage string, parse func(string) (T, error)) *parsedList[T] {
	f := &parsedList[T]{kind: kind, parse: parse}
	flags.Var(f, name, usage)
	return f
}

func (f *parsedList[T]) Set(text string) error {
	value, err := f.parse(text)
	if err != nil {
		return err
	}
	f.values = append(f.values, value)
	return nil
}

func (f *parsedList[T]) String() string { return "" }
func (f *parsedList[T]) Type() string   { return f.kind }

// oneOf accepts one of a few words and completes them in the shell.
func oneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if !slices.Contains(words, text) {
			return "", fmt.Errorf("must be %s", alternatives(words))
		}
		return text, nil
	}
}

// choiceFlag adds a flag that takes one of a few words, which the shell
// completes.
func choiceFlag(command *cobra.Command, flags *pflag.FlagSet, name, shorthand, text, usage string, words ...string) *parsed[string] {
	f := newFlag(flags, name, shorthand, strings.Join(words, "|"), text, usage, oneOf(words...))
	completeFlagWith(command, name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	return f
}

// integerBetween accepts whole numbers of at least low and at most high.
func integerBetween(low, high int64) func(string) (int64, error) {
	return func(text string) (int64, error) {
		n, err := strconv.ParseInt(text, 10, 64)
		switch {
		case err == nil && n >= low && n <= high:
			return n, nil
		case high >= math.MaxInt32:
			return 0, fmt.Errorf("must be a whole number from %d up", low)
		}
		return 0, fmt.Errorf("must be a whole number from %d to %d", low, high)
	}
}

// decimalBetween accepts decimal numbers of at least low and at most high.
func decimalBetween(low, high float64) func(string) (float64, error) {
	return func(text string) (float64, error) {
		x, err := strconv.ParseFloat(text, 64)
		if err != nil || !(x >= low && x <= high) { // also refuses NaN
			return 0, fmt.Errorf("must be a number from %g to %.0f", low, high)
		}
		return x, nil
	}
}

// durationBetween accepts durations of at least low and at most high.
func durationBetween(low, high time.Duration) func(string) (time.Duration, error) {
	return func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, fmt.Errorf("must be a number with a unit, such as 500ms, 10s or 1m30s")
		}
		if d < low || d > high {
			return 0, fmt.Errorf("must be from %v to %v", low, high)
		}
		return d, nil
	}
}

// parseSize reads a number of bytes, with a unit or without.
func parseSize(text string) (int64, error) {
	number, shift := text, 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if before, ok := strings.CutSuffix(text, unit); ok {
			number, shift = before, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || n < 1 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("must be a number of bytes from 1 up, such as 500MiB or 2GiB")
	}
	return n << shift, nil
}

// minFreeFlag adds the flag that says how much of the disk stays free.
func minFreeFlag(flags *pflag.FlagSet) *parsed[int64] {
	return newFlag(flags, "min-free", "", "SIZE", "", "refuse records while less than this is free on the disk (default: 1GiB, or an eighth of a smaller disk; at least 32MiB, or a sixteenth)", parseSize)
}

// pair is a key=value argument.
type pair struct{ key, value string }

// parsePair splits at the first equals sign; the value may be empty.
func parsePair(text string) (pair, error) {
	key, value, found := strings.Cut(text, "=")
	if !found || key == "" {
		return pair{}, fmt.Errorf("must look like key=value")
	}
	return pair{key, value}, nil
}

// parseAddresses reads a comma-separated list of host:port.
func parseAddresses(text string) ([]string, error) {
	var addresses []string
	for address := range strings.SplitSeq(text, ",") {
		address = strings.TrimSpace(address)
		if err := checkAddress(address); err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("must look like host:port, such as 127.0.0.1:7070 or [::1]:7070")
	}
	return checkPort(port)
}

func checkPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("must end in a port from 1 to 65535")
	}
	return nil
}

// alternatives lists words as English does: "a, b or c".
func alternatives(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
