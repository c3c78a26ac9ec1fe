package store

import "testing"

// drive lets a reader pass over values that lie a stride apart, and returns what
// the disk was asked for.
func drive(t *testing.T, s *sequentialReader, start uintptr, values, size, stride int) (asked int64, calls int) {
	t.Helper()
	var upTo uintptr
	for i := range values {
		address := start + uintptr(i*stride)
		end := address + uintptr(size)
		from, ask := s.advance(address, size)
		if ask == 0 {
			continue
		}
		if from < end || from < upTo || from+uintptr(ask) > end+readaheadWindow {
			t.Fatalf("value %d ends at %d: asked for %d to %d, before that up to %d", i, end, from, from+uintptr(ask), upTo)
		}
		upTo = from + uintptr(ask)
		asked += int64(ask)
		calls++
	}
	return asked, calls
}

func TestReadaheadRunsAheadOfSequentialReaders(t *testing.T) {
	const base, size = 1 << 30, 256 << 10
	tests := []struct {
		name           string
		values, stride int
		min, max       int64
	}{
		{name: "a single batch", values: 1, stride: size},
		{name: "alone", values: 400, stride: size + 34, min: 100 << 20, max: 400*size + readaheadWindow + 1<<20},
		{name: "one of four", values: 400, stride: 4 * (size + 34), min: 400 << 20, max: 4*400*(size+34) + readaheadWindow},
		{name: "one of ten", values: 400, stride: 10 * (size + 34)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var s sequentialReader
			asked, calls := drive(t, &s, base, test.values, size, test.stride)
			if asked < test.min || asked > test.max {
				t.Fatalf("asked for %d bytes, want %d to %d", asked, test.min, test.max)
			}
			if most := int(asked/readaheadStep) + 1; calls > most {
				t.Fatalf("asked for %d bytes in %d calls, want at most %d", asked, calls, most)
			}
		})
	}
}

func TestReadaheadGoesOnInTheNextFile(t *testing.T) {
	const size = 256 << 10
	var s sequentialReader
	drive(t, &s, 1<<32, 100, size, size+34)
	// The next file is mapped below.
	from, ask := s.advance(1<<30, size)
	if want := uintptr(1<<30 + size); from != want || ask != readaheadWindow {
		t.Fatalf("asked for %d bytes at %d, want %d at %d", ask, from, readaheadWindow, want)
	}
}

func TestReadersAreFoundAgainByTheirPosition(t *testing.T) {
	var r readahead
	r.keep(sequentialReader{id: partition(1), own: 1}, 10)
	r.keep(sequentialReader{id: partition(1), own: 2}, 20)
	r.keep(sequentialReader{id: partition(2), own: 3}, 10)
	for _, want := range []struct {
		partition int
		offset    int64
		own       int64
	}{{1, 20, 2}, {2, 10, 3}, {1, 10, 1}, {1, 10, 0}, {3, 10, 0}} {
		if got := r.resume(partition(want.partition), want.offset); got.own != want.own || got.id != partition(want.partition) {
			t.Fatalf("partition %d at %d: got %+v, want %d", want.partition, want.offset, got, want.own)
		}
	}
	r.keep(sequentialReader{id: partition(1), own: 1}, 10)
	for i := range readaheadReaders {
		r.keep(sequentialReader{id: partition(2), own: 9}, int64(100+i))
	}
	if got := r.resume(partition(1), 10); got.own != 0 {
		t.Fatal("the reader that came first is still remembered")
	}
}
