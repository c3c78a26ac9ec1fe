package store

import (
	"testing"
	"unsafe"
)

// A node has a log for every partition that was ever written to, in use or not. 416
// is a size in which the runtime allocates: one byte more costs 64.
func TestLogIsSmall(t *testing.T) {
	t.Parallel()
	if size := unsafe.Sizeof(Log{}); size > 416 {
		t.Errorf("a log takes %d bytes, at most 416 are planned for", size)
	}
}
