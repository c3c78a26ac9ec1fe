package store

import (
	"encoding/binary"
	"fmt"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// TestKeyMap compares the map with one of Go's, also once it is full.
func TestKeyMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bytes := rapid.Int64Range(0, 40*keySlotBytes).Draw(t, "bytes")
		keys := rapid.Int64Range(0, 50).Draw(t, "keys")
		m := newKeyMap(bytes, keys)
		if int64(len(m.slots))*keySlotBytes > max(bytes, 2*keySlotBytes) {
			t.Fatalf("%d slots in %d bytes", len(m.slots), bytes)
		}
		model := make(map[string]int64)
		for offset := range int64(rapid.IntRange(0, 100).Draw(t, "records")) {
			key := rapid.StringMatching("[a-g]{0,2}").Draw(t, "key")
			_, known := model[key]
			if m.put([]byte(key), offset) {
				model[key] = offset
			} else if known || len(model) < m.limit {
				t.Fatalf("full with %d keys of %d, known is %v", len(model), m.limit, known)
			}
		}
		if len(model) > m.limit || m.used != len(model) {
			t.Fatalf("%d keys, %d used, limit %d", len(model), m.used, m.limit)
		}
		for a := byte('a'); a <= 'h'; a++ {
			for _, key := range []string{"", string(a), "a" + string(a), string(a) + "c"} {
				want, known := model[key]
				if !known {
					want = -1
				}
				if got := m.newest([]byte(key)); got != want {
					t.Fatalf("%q has %d, want %d", key, got, want)
				}
			}
		}
	})
}

// TestKeyMapHoldsWhatItSays: the bound that is stated, and room for all keys of
// the largest batch that can be opened.
func TestKeyMapHoldsWhatItSays(t *testing.T) {
	if size := unsafe.Sizeof(keySlot{}); size != keySlotBytes {
		t.Errorf("a slot has %d bytes", size)
	}
	m := newKeyMap(64<<20, 1<<40)
	if m.limit != 2_376_771 || len(m.slots)*keySlotBytes > 64<<20 {
		t.Errorf("%d keys in %d slots", m.limit, len(m.slots))
	}
	for _, keys := range []int64{1, 2, 10, 1000} {
		m := newKeyMap(64<<20, keys)
		for i := range keys {
			if !m.put(binary.AppendVarint(nil, i), i) {
				t.Fatalf("a map for %d keys is full with %d", keys, i)
			}
		}
		if int64(len(m.slots)) > 2*keys+4 {
			t.Errorf("%d slots for %d keys", len(m.slots), keys)
		}
	}
	if a, b := newKeyMap(1000, 10), newKeyMap(1000, 10); fmt.Sprint(a.hash([]byte("k"))) == fmt.Sprint(b.hash([]byte("k"))) {
		t.Error("two maps have the same seed")
	}
}

func BenchmarkKeyMap(b *testing.B) {
	m := newKeyMap(64<<20, 1_000_000)
	key := make([]byte, 16)
	for i := range b.N {
		binary.LittleEndian.PutUint64(key, uint64(i)%1_000_000)
		m.put(key, int64(i))
	}
}
