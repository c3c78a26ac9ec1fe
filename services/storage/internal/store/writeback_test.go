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
		{"nothing is waiting", writeback{}, writeback{file: one, offset: 20, bytes: 8}, writeback{file: one, offset: 20, bytes: 8}},
		{"what follows is added", writeback{file: one, offset: 20, bytes: 8}, writeback{file: one, offset: 28, bytes: 4}, writeback{file: one, offset: 20, bytes: 12}},
		{"another file takes its place", writeback{file: one, offset: 20, bytes: 8}, writeback{file: other, offset: 28, bytes: 4}, writeback{file: other, offset: 28, bytes: 4}},
		{"a gap", writeback{file: one, offset: 20, bytes: 8}, writeback{file: one, offset: 40, bytes: 4}, writeback{file: one, offset: 40, bytes: 4}},
		{"what is to be fetched stays", writeback{file: one, warmFrom: 8, warmTo: 16}, writeback{file: one, offset: 28, bytes: 4}, writeback{file: one, offset: 28, bytes: 4, warmFrom: 8, warmTo: 16}},
		{"more is to be fetched", writeback{file: one, offset: 20, bytes: 8, warmFrom: 8, warmTo: 16}, writeback{file: one, warmFrom: 16, warmTo: 24}, writeback{file: one, offset: 20, bytes: 8, warmFrom: 8, warmTo: 24}},
		{"the writer was faster", writeback{file: one, warmFrom: 8, warmTo: 16}, writeback{file: one, warmFrom: 40, warmTo: 48}, writeback{file: one, warmFrom: 40, warmTo: 48}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.held.with(test.next); got != test.want {
				t.Fatalf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
