package store

import (
	"os"
	"testing"
)

func TestWritebackLeavesNothingOut(t *testing.T) {
	one, other := new(os.File), new(os.File)
	tests := []struct {
		name             string
		held, next, want writeback
	}{
		{"nothing is waiting", writeback{}, writeback{one, 20, 8}, writeback{one, 20, 8}},
		{"what follows is added", writeback{one, 20, 8}, writeback{one, 28, 4}, writeback{one, 20, 12}},
		{"another file takes its place", writeback{one, 20, 8}, writeback{other, 28, 4}, writeback{other, 28, 4}},
		{"a gap", writeback{one, 20, 8}, writeback{one, 40, 4}, writeback{one, 40, 4}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.held.with(test.next); got != test.want {
				t.Fatalf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
