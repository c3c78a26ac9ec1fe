package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// complaints collects what a tally says.
type complaints []string

func (c *complaints) add(format string, args ...any) { *c = append(*c, fmt.Sprintf(format, args...)) }

func TestTallyGoesOnAfterABadLine(t *testing.T) {
	var said complaints
	counts := &tally{complain: said.add, giveUp: func() { t.Error("it gives up") }}
	for line := range int64(20) {
		counts.failed(line+1, &lineTooLongError{200, 100})
	}
	counts.sent(7)
	if len(said) != maxReportedFailures+1 || !strings.HasPrefix(said[0], "line 1 was not sent: the line has 200 bytes, but a record may have 100") {
		t.Errorf("it said %q", said)
	}
	if got, want := counts.summary(2*time.Second), (summary{Records: 1, Bytes: 7, Seconds: 2, Failures: 20}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestTallyGivesUpOnce(t *testing.T) {
	var said complaints
	gaveUp := 0
	counts := &tally{complain: said.add, giveUp: func() { gaveUp++ }}
	for line := range int64(5) {
		counts.failed(line+1, &runnel.Error{Message: "the topic is gone"})
	}
	if want := (complaints{"line 1 was not sent and reading stops here: the topic is gone"}); !slices.Equal(said, want) || gaveUp != 1 {
		t.Errorf("it gave up %d times and said %q", gaveUp, said)
	}
}

func TestTallyTellsOfAStandstill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said complaints
		counts := &tally{complain: said.add, giveUp: func() {}}
		stop := counts.watch()
		time.Sleep(3 * stallNotice) // nothing to do is no standstill
		synctest.Wait()
		if len(said) != 0 {
			t.Errorf("idle, it said %q", said)
		}
		counts.take()
		time.Sleep(4 * stallNotice)
		counts.sent(1)
		counts.take()
		time.Sleep(3 * stallNotice)
		counts.failed(2, errors.New("given up"))
		time.Sleep(3 * stallNotice)
		stop()
		want := complaints{
			"nothing has been acknowledged for 5s; still trying", "nothing has been acknowledged for 5s; still trying",
			"line 2 was not sent and reading stops here: given up",
		}
		if !slices.Equal(said, want) {
			t.Errorf("it said %q", said)
		}
	})
}

func TestSummary(t *testing.T) {
	tests := []struct {
		s          summary
		text, json string
	}{
		{summary{}, "0 records, 0 bytes, 0.000 seconds, 0 failures", `{"records":0,"bytes":0,"seconds":0,"failures":0}`},
		{summary{Records: 1, Bytes: 1, Seconds: 0.5, Failures: 1}, "1 record, 1 byte, 0.500 seconds, 1 failure (2 records/s, 0.00 MB/s)", `{"records":1,"bytes":1,"seconds":0.5,"failures":1}`},
		{summary{Records: 3_000_000, Bytes: 300_000_000, Seconds: 3}, "3000000 records, 300000000 bytes, 3.000 seconds, 0 failures (1000000 records/s, 100.00 MB/s)", `{"records":3000000,"bytes":300000000,"seconds":3,"failures":0}`},
	}
	for _, test := range tests {
		if got := test.s.text(); got != test.text {
			t.Errorf("got  %s\nwant %s", got, test.text)
		}
		if got := test.s.json(); got != test.json {
			t.Errorf("got  %s\nwant %s", got, test.json)
		}
	}
}
