package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// The longest waits and largest buffers that make sense; beyond them is a slip
// of the finger.
const (
	maxLinger          = time.Minute
	maxRequestTimeout  = 5 * time.Minute
	maxDeliveryTimeout = 24 * time.Hour
	maxBatchBytes      = 16 << 20
	maxBufferBytes     = 16 << 30
)

// producerSetting is a tuning knob of the producer that --property turns.
type producerSetting struct {
	name, form, purpose string
	parse               func(string) (runnel.ProducerOption, error)
}

var producerSettings = []producerSetting{
	{"linger.ms", "MS", "wait so long for more records before a batch is sent",
		integerSetting(0, maxLinger.Milliseconds(), func(n int64) runnel.ProducerOption {
			return runnel.WithLinger(time.Duration(n) * time.Millisecond)
		})},
	{"batch.bytes", "BYTES", "send a batch when it has so many bytes",
		integerSetting(1, maxBatchBytes, func(n int64) runnel.ProducerOption { return runnel.WithBatchBytes(int(n)) })},
	{"buffer.bytes", "BYTES", "bound on the memory for records without acknowledgement",
		integerSetting(1, maxBufferBytes, func(n int64) runnel.ProducerOption { return runnel.WithBufferBytes(n) })},
	{"request.timeout.ms", "MS", "how long one attempt to send a batch may take",
		integerSetting(1, maxRequestTimeout.Milliseconds(), func(n int64) runnel.ProducerOption {
			return runnel.WithRequestTimeout(time.Duration(n) * time.Millisecond)
		})},
	{"delivery.timeout.ms", "MS", "give up a record after so long, with all attempts (default: 120000)",
		integerSetting(1, maxDeliveryTimeout.Milliseconds(), func(n int64) runnel.ProducerOption {
			return runnel.WithDeliveryTimeout(time.Duration(n) * time.Millisecond)
		})},
	{"partitioner", "sticky|roundrobin", "how records without a key are spread",
		func(text string) (runnel.ProducerOption, error) {
			if _, err := oneOf("sticky", "roundrobin")(text); err != nil {
				return nil, err
			}
			if text == "roundrobin" {
				return runnel.WithPartitioner(runnel.RoundRobin()), nil
			}
			return runnel.WithPartitioner(runnel.Sticky()), nil
		}},
	{"idempotence", "true|false", "whether a batch that is sent again can appear twice",
		func(text string) (runnel.ProducerOption, error) {
			on, err := strconv.ParseBool(text)
			if err != nil {
				return nil, fmt.Errorf("must be true or false")
			}
			return runnel.WithIdempotence(on), nil
		}},
}

func integerSetting(low, high int64, option func(int64) runnel.ProducerOption) func(string) (runnel.ProducerOption, error) {
	parse := integerBetween(low, high)
	return func(text string) (runnel.ProducerOption, error) {
		n, err := parse(text)
		if err != nil {
			return nil, err
		}
		return option(n), nil
	}
}

// parseProperty reads a --property k=v.
func parseProperty(text string) (runnel.ProducerOption, error) {
	p, err := parsePair(text)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(producerSettings, func(s producerSetting) bool { return s.name == p.key })
	if i < 0 {
		return nil, fmt.Errorf("the properties are %s", strings.Join(propertyNames(), ", "))
	}
	option, err := producerSettings[i].parse(p.value)
	if err != nil {
		return nil, fmt.Errorf("%s %w", p.key, err)
	}
	return option, nil
}

func propertyNames() []string {
	var names []string
	for _, s := range producerSettings {
		names = append(names, s.name)
	}
	return names
}

// propertyHelp lists the properties for the help text.
func propertyHelp() string {
	var help strings.Builder
	t := newTable()
	for _, s := range producerSettings {
		t.row("  "+s.name+"="+s.form, s.purpose)
	}
	_ = t.writeTo(&help) // a strings.Builder does not fail
	return strings.TrimSuffix(help.String(), "\n")
}
