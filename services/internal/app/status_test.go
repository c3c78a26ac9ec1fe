package app

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

func TestStatus(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	s := NewStatus("storage service")
	says := func(want string) {
		t.Helper()
		if err := s.Ready(ended); err == nil || err.Error() != want {
			t.Errorf("Ready returned %v, want %q", err, want)
		}
	}
	says("storage service is not ready: it has not been started")
	s.SetPhase("it opens the store")
	says("storage service is not ready: it opens the store")
	s.SetReady()
	if err := s.Ready(ended); err != nil {
		t.Errorf("a ready service: %v", err)
	}
	s.SetPhase("it is stopping")
	says("storage service is not ready: it is stopping")
	s.SetStopped(nil)
	says("storage service is not ready: it has stopped")
}

func TestStatusWakesThoseWhoWait(t *testing.T) {
	failure := errors.New("no such disk")
	for name, test := range map[string]struct {
		wake func(*Status)
		want error
	}{
		"ready":   {(*Status).SetReady, nil},
		"stopped": {func(s *Status) { s.SetStopped(failure) }, failure},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := NewStatus("storage service")
				done := make(chan error, 1)
				go func() { done <- s.Ready(context.Background()) }()
				s.SetPhase("it opens the store")
				synctest.Wait()
				select {
				case err := <-done:
					t.Fatalf("Ready returned %v before the service was ready", err)
				default:
				}
				test.wake(s)
				err := <-done
				if !errors.Is(err, test.want) || test.want != nil && !strings.HasPrefix(err.Error(), "storage service has stopped: ") {
					t.Errorf("Ready returned %v", err)
				}
			})
		})
	}
}
