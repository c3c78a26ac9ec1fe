package recordbatch

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/klauspost/compress/s2"
)

// Kafka's Java clients write Snappy in the framing of the snappy-java library:
//
//	magic (8 bytes) | version (int32) | lowest compatible version (int32)
//	then per block: length (int32) | Snappy block
//
// Others, such as librdkafka and franz-go, write one bare Snappy block. Readers
// that know one form only know the framed one, and so that is what we write; we
// read both. Nothing is ambiguous: a bare block that began like the magic would
// begin with a copy, where there is nothing to copy from yet.
var xerialMagic = [8]byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const (
	xerialHeaderSize = 16
	// xerialBlockSize is how much a block holds: Snappy itself looks no further
	// back. Java's clients write 32 KiB and read any size.
	xerialBlockSize = 64 << 10
	// snappyMaxRatio bounds what a Snappy block can expand to: a copy of 64
	// bytes takes at least 3.
	snappyMaxRatio = 22
)

// appendXerial appends src to dst, compressed and framed.
func appendXerial(dst, src []byte) []byte {
	dst = append(dst, xerialMagic[:]...)
	dst = binary.BigEndian.AppendUint32(dst, 1)
	dst = binary.BigEndian.AppendUint32(dst, 1)
	for len(src) > 0 {
		block := src[:min(len(src), xerialBlockSize)]
		src = src[len(block):]
		at := len(dst)
		dst = slices.Grow(dst, 4+s2.MaxEncodedLen(len(block)))
		encoded := s2.EncodeSnappy(dst[at+4:at+4:cap(dst)], block)
		dst = dst[:at+4+len(encoded)]
		binary.BigEndian.PutUint32(dst[at:], uint32(len(encoded)))
	}
	return dst
}

// isXerial tells the framed form. The two versions are not looked at: there are
// writers that get them wrong, and readers all ignore them.
func isXerial(src []byte) bool {
	return len(src) >= xerialHeaderSize && [8]byte(src[:8]) == xerialMagic
}

// snappySize returns the size that src, in either form, says it opens to. The
// size is possible, though not proven, for what src has.
func snappySize(src []byte) (int, error) {
	size := 0
	err := snappyBlocks(src, func(block []byte) error {
		n, err := s2.DecodedLen(block)
		if err != nil {
			return codecError(Snappy, err)
		}
		if n > snappyMaxRatio*len(block) {
			return corrupt("records", fmt.Sprintf("a snappy block of %d bytes that claims to hold %d", len(block), n),
				"at most %d", snappyMaxRatio*len(block))
		}
		size += n
		return nil
	})
	return size, err
}

// appendSnappy appends the contents of src, in either form, to dst. The caller
// has judged the size by snappySize.
func appendSnappy(dst, src []byte) ([]byte, error) {
	err := snappyBlocks(src, func(block []byte) error {
		n, err := s2.DecodedLen(block)
		if err != nil {
			return codecError(Snappy, err)
		}
		dst = slices.Grow(dst, n)
		out := dst[len(dst) : len(dst)+n]
		if _, err := s2.Decode(out, block); err != nil {
			return codecError(Snappy, err)
		}
		dst = dst[:len(dst)+n]
		return nil
	})
	return dst, err
}

// snappyBlocks calls f for each block.
func snappyBlocks(src []byte, f func(block []byte) error) error {
	if !isXerial(src) {
		return f(src)
	}
	for src = src[xerialHeaderSize:]; len(src) > 0; {
		if len(src) < 4 {
			return corrupt("records", fmt.Sprintf("%d bytes after the last snappy block", len(src)), "0, or a length and a block")
		}
		n := binary.BigEndian.Uint32(src)
		src = src[4:]
		if n == 0 || uint64(n) > uint64(len(src)) {
			return corrupt("records", fmt.Sprintf("a snappy block of %d bytes", n), "1 to %d bytes: that is what follows", len(src))
		}
		if err := f(src[:n]); err != nil {
			return err
		}
		src = src[n:]
	}
	return nil
}
