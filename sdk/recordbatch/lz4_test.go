package recordbatch

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// FuzzLZ4 holds our reader of frames against the library's.
func FuzzLZ4(f *testing.F) {
	text := bytes.Repeat([]byte("a line of a log\r\n"), 20)
	for _, options := range [][]lz4.Option{
		nil,
		{lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false)},
		{lz4.BlockChecksumOption(true), lz4.SizeOption(uint64(len(text)))},
	} {
		var b bytes.Buffer
		w := lz4.NewWriter(&b)
		if err := w.Apply(options...); err != nil {
			f.Fatal(err)
		}
		if err := writeAll(w, text); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
		f.Add(bytes.Repeat(b.Bytes(), 2))
		f.Add(b.Bytes()[:b.Len()-6])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		prefix := []byte("prefix")
		opened, err := appendOpened(prefix, LZ4, b, limit)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if !bytes.HasPrefix(opened, prefix) || len(opened)-len(prefix) > limit || len(opened)-len(prefix) > lz4Most(len(b)) {
			t.Fatalf("%d bytes of %d", len(opened), len(b))
		}
		// The library also judges the checksums, and refuses more.
		want, err := io.ReadAll(lz4.NewReader(bytes.NewReader(b)))
		if err == nil && !bytes.Equal(want, opened[len(prefix):]) {
			t.Fatalf("%d bytes became %d, the library reads %d others", len(b), len(opened)-len(prefix), len(want))
		}
	})
}
