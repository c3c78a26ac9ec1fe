package recordbatch

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/pierrec/lz4/v4"
)

// The LZ4 frame format, numbers being little-endian:
//
//	magic (4 bytes) | flags (1) | block size code (1) | [content size (8)] | header checksum (1)
//	then per block: size (4), whose high bit tells a raw one | block | [checksum (4)]
//	then: 0 (4) | [content checksum (4)]
//
// The package reads it itself because blocks then open in place, and because
// the library's reader sets aside the 4 MiB blocks that twenty bytes announce.
// Checksums are passed over: the batch has one.
const (
	lz4Magic      = 0x184D2204
	lz4HeaderSize = 7 // without content size
	lz4Window     = 64 << 10

	lz4VersionMask     = 0xc0
	lz4Version         = 0x40
	lz4BlockChecksum   = 0x10
	lz4HasContentSize  = 0x08
	lz4ContentChecksum = 0x04
	lz4UnknownFlags    = 0x03 // a reserved bit, and the id of a dictionary

	lz4RawBlock = 1 << 31
)

// lz4Most returns the most that a block of size bytes can open to.
func lz4Most(size int) int { return 255*size + 64 }

// lz4Frame is the header of a frame.
type lz4Frame struct {
	flags    byte
	maxBlock int
	// contentSize is what the frame says it opens to; -1 when it does not.
	contentSize int
	// size is how many bytes the header takes.
	size int
}

func parseLZ4Frame(src []byte) (lz4Frame, error) {
	if len(src) < lz4HeaderSize {
		return lz4Frame{}, lz4CutShort()
	}
	if binary.LittleEndian.Uint32(src) != lz4Magic {
		return lz4Frame{}, corrupt("records", fmt.Sprintf("bytes that begin with %x", src[:4]), "an lz4 frame")
	}
	f := lz4Frame{flags: src[4], contentSize: -1, size: lz4HeaderSize}
	if f.flags&lz4VersionMask != lz4Version || f.flags&lz4UnknownFlags != 0 {
		return lz4Frame{}, corrupt("records", fmt.Sprintf("an lz4 frame with flags %#02x", f.flags), "one of version 1 without dictionary")
	}
	code := src[5] >> 4
	if code < 4 || code > 7 {
		return lz4Frame{}, corrupt("records", fmt.Sprintf("an lz4 frame with block size code %d", code), "4 to 7")
	}
	f.maxBlock = 1 << (8 + 2*code)
	if f.flags&lz4HasContentSize != 0 {
		f.size += 8
		if len(src) < f.size {
			return lz4Frame{}, lz4CutShort()
		}
		size := binary.LittleEndian.Uint64(src[6:])
		if most := lz4Most(len(src)); size > uint64(most) {
			return lz4Frame{}, corrupt("records", fmt.Sprintf("%d bytes of lz4 that claim to hold %d", len(src), size), "at most %d", most)
		}
		f.contentSize = int(size)
	}
	return f, nil
}

// appendLZ4 appends the contents of src, one frame or several, to dst.
func appendLZ4(dst, src []byte, limit int) ([]byte, error) {
	start := len(dst)
	for {
		var err error
		if dst, src, err = appendLZ4Frame(dst, src, start, limit); err != nil {
			return nil, err
		}
		if len(src) == 0 {
			return dst, nil
		}
	}
}

// appendLZ4Frame appends the contents of the first frame of src to dst and
// returns what follows the frame. The limit counts from base: earlier frames
// have begun there.
func appendLZ4Frame(dst, src []byte, base, limit int) (opened, rest []byte, err error) {
	f, err := parseLZ4Frame(src)
	if err != nil {
		return nil, nil, err
	}
	src = src[f.size:]
	start := len(dst)
	estimate := min(4*len(src), limit)
	if f.contentSize >= 0 {
		if f.contentSize > limit-(start-base) {
			return nil, nil, tooLarge(limit)
		}
		estimate = f.contentSize
	}
	dst = slices.Grow(dst, estimate)
	for {
		if len(src) < 4 {
			return nil, nil, lz4CutShort()
		}
		header := binary.LittleEndian.Uint32(src)
		src = src[4:]
		if header == 0 {
			break
		}
		size := int(header &^ lz4RawBlock)
		if size > f.maxBlock || size == 0 {
			return nil, nil, corrupt("records", fmt.Sprintf("an lz4 block of %d bytes", size), "1 to %d", f.maxBlock)
		}
		if size > len(src) {
			return nil, nil, lz4CutShort()
		}
		block := src[:size]
		src = src[size:]
		if header&lz4RawBlock != 0 {
			dst = append(dst, block...)
		} else {
			// Room for all that the block can be, so that it fails only when it
			// is damaged, unless that is more than the limit leaves. Its matches
			// may reach back within the frame.
			room := min(f.maxBlock, lz4Most(size))
			if f.contentSize >= 0 {
				room = max(0, min(room, f.contentSize-(len(dst)-start)))
			}
			left := limit - (len(dst) - base)
			dst = slices.Grow(dst, min(room, left))
			n, err := lz4.UncompressBlockWithDict(block, dst[len(dst):len(dst)+min(room, left)], dst[max(start, len(dst)-lz4Window):])
			switch {
			case err != nil && left < room:
				return nil, nil, tooLarge(limit)
			case err != nil:
				return nil, nil, codecError(LZ4, err)
			}
			dst = dst[:len(dst)+n]
		}
		if len(dst)-base > limit {
			return nil, nil, tooLarge(limit)
		}
		if f.flags&lz4BlockChecksum != 0 {
			if len(src) < 4 {
				return nil, nil, lz4CutShort()
			}
			src = src[4:]
		}
	}
	if f.flags&lz4ContentChecksum != 0 {
		if len(src) < 4 {
			return nil, nil, lz4CutShort()
		}
		src = src[4:]
	}
	if f.contentSize >= 0 && f.contentSize != len(dst)-start {
		return nil, nil, corrupt("records", fmt.Sprintf("an lz4 frame that claims to hold %d bytes", f.contentSize), "%d: that is what it holds", len(dst)-start)
	}
	return dst, src, nil
}

func lz4CutShort() error { return corrupt("records", "an lz4 frame cut short", "whole") }
