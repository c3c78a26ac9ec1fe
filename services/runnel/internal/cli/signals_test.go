package cli

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestLastWords: a command that a second interrupt ends has its say, until it has
// ended by itself.
func TestLastWords(t *testing.T) {
	words := new(lastWords)
	ctx := context.WithValue(t.Context(), lastWordsKey{}, words)
	said := 0
	undo := beforeExit(ctx, func() { said++ })
	(*words.say.Load())()
	undo()
	if say := words.say.Load(); said != 1 || say != nil {
		t.Errorf("it was said %d times, and is still to be said: %t", said, say != nil)
	}
	beforeExit(t.Context(), func() {})() // without signals
}

// TestAfterInterrupt: after a Ctrl-C the person hears what is waited for, unless it
// has come a moment later.
func TestAfterInterrupt(t *testing.T) {
	for _, test := range []struct {
		open int64
		want []string
	}{
		{0, nil},
		{1, []string{"interrupted, and waiting until 1 record is acknowledged; Ctrl-C again gives up"}},
		{2, []string{"interrupted, and waiting until 2 records are acknowledged; Ctrl-C again gives up"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var said []string
			counts := &tally{complain: func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }}
			for range test.open + 1 {
				counts.take()
			}
			counts.sent(1)
			ctx, interrupt := context.WithCancel(t.Context())
			stop := counts.afterInterrupt(ctx)
			time.Sleep(time.Hour)
			interrupt()
			time.Sleep(2 * firstNotice)
			stop()
			if !slices.Equal(said, test.want) {
				t.Errorf("with %d open it says %q", test.open, said)
			}
		})
	}
}
