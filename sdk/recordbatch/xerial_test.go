package recordbatch

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/s2"
)

func FuzzXerial(f *testing.F) {
	text := bytes.Repeat([]byte("a line of a log\r\n"), 20)
	f.Add(appendXerial(nil, text))
	f.Add(append(appendXerial(nil, text), appendXerial(nil, text)[xerialHeaderSize:]...))
	f.Add(appendXerial(nil, nil))
	f.Add(s2.EncodeSnappy(nil, text))
	f.Add([]byte{})
	f.Add([]byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x7f\xff\xff\xff"))
	f.Add([]byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		prefix := []byte("prefix")
		opened, err := appendOpened(prefix, Snappy, b, limit)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("error %v", err)
			}
		} else {
			if !bytes.HasPrefix(opened, prefix) || len(opened)-len(prefix) > limit || len(opened)-len(prefix) > snappyMaxRatio*len(b) {
				t.Fatalf("%d bytes of %d", len(opened), len(b))
			}
			if size, err := snappySize(b); err != nil || size != len(opened)-len(prefix) {
				t.Fatalf("snappySize says %d and %v, it is %d", size, err, len(opened)-len(prefix))
			}
		}
		// Anything goes through the framing and back.
		framed := appendXerial(prefix, b)[len(prefix):]
		again, err := appendOpened(nil, Snappy, framed, len(b)+1)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%d bytes became %d: %v", len(b), len(again), err)
		}
	})
}

// TestRawSnappyNeverLooksFramed proves what telling the forms apart rests on.
func TestRawSnappyNeverLooksFramed(t *testing.T) {
	b := append(xerialMagic[:], make([]byte, 1<<16)...)
	if _, err := s2.Decode(nil, b); err == nil {
		t.Fatal("the magic is the beginning of a block")
	}
	// The size that the magic would claim, made up of any other tags: the third
	// byte alone makes it invalid.
	if tag := xerialMagic[2] & 3; tag == 0 {
		t.Error("the third byte of the magic is a literal's tag")
	}
}
