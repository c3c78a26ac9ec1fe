package store

import (
	"bytes"
	"testing"
)

// FuzzScanLog: whatever a log file holds, the scan ends within it, and finds no
// entry behind the first that is damaged but as such.
func FuzzScanLog(f *testing.F) {
	header := make([]byte, valueLogHeader)
	f.Add(header, true)
	f.Add(append(bytes.Clone(header), 0x40, 0, 29, 3, 0, 1, 2, 3), true)
	f.Add(append(bytes.Clone(header), 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1), false)
	f.Fuzz(func(t *testing.T, raw []byte, transactions bool) {
		last := int64(0)
		s, err := scanLog(bytes.NewReader(raw), int64(len(raw)), transactions, func(e logEntry) {
			if e.end <= last || e.end > int64(len(raw)) {
				t.Errorf("an entry ends at %d after %d, of %d", e.end, last, len(raw))
			}
			last = e.end
		})
		if err != nil {
			return
		}
		if s.end < valueLogHeader || s.end > int64(len(raw)) || s.end < last {
			t.Errorf("the end of %d bytes is %d, the last entry's %d", len(raw), s.end, last)
		}
	})
}

func FuzzParseFloor(f *testing.F) {
	f.Add(make([]byte, floorBytes))
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, ok := parseFloor(raw)
		if !ok {
			return
		}
		var again [floorBytes]byte
		if v.encode(&again); !bytes.Equal(again[:], raw) {
			t.Errorf("%x is read as %+v", raw, v)
		}
	})
}
