package transport

import (
	"encoding/binary"
	"io"
)

// envelopePrefixBytes is the length of what stands before each message of a
// stream: a byte of flags and the length of the message, big-endian.
const envelopePrefixBytes = 5

// envelopeBody is a streaming request's body that returns the prefix of a
// message together with the message. The RPC library writes the two one after
// the other into a pipe, and the HTTP/2 client sends each read from the body as a
// frame of its own, with a system call of its own.
//
// It waits for nothing that is not being written at that moment: a prefix is
// always followed by its message. It has one reader, like any body.
type envelopeBody struct {
	body io.ReadCloser

	prefix    [envelopePrefixBytes]byte
	prefixLen int
	remaining uint32 // Bytes of the current message that have not been read yet.
}

// Read implements io.Reader.
func (b *envelopeBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.track(p[:n])
	for err == nil && n < len(p) && b.withinPrefix() {
		var m int
		m, err = b.body.Read(p[n:])
		b.track(p[n : n+m])
		n += m
		if m == 0 {
			break
		}
	}
	return n, err
}

// Close implements io.Closer. It may be called concurrently with Read.
func (b *envelopeBody) Close() error { return b.body.Close() }

// withinPrefix reports whether the bytes read so far end in a prefix whose
// message has not begun.
func (b *envelopeBody) withinPrefix() bool {
	switch {
	case b.prefixLen == 0:
		return false
	case b.prefixLen < envelopePrefixBytes:
		return true
	default:
		return b.remaining > 0 && b.remaining == binary.BigEndian.Uint32(b.prefix[1:])
	}
}

// track follows the framing over the bytes that were read.
func (b *envelopeBody) track(p []byte) {
	for len(p) > 0 {
		if b.remaining > 0 {
			skip := min(int(b.remaining), len(p))
			b.remaining -= uint32(skip)
			p = p[skip:]
			if b.remaining == 0 {
				b.prefixLen = 0
			}
			continue
		}
		if b.prefixLen == envelopePrefixBytes {
			b.prefixLen = 0 // The message before was empty.
		}
		n := copy(b.prefix[b.prefixLen:], p)
		b.prefixLen += n
		p = p[n:]
		if b.prefixLen == envelopePrefixBytes {
			b.remaining = binary.BigEndian.Uint32(b.prefix[1:])
		}
	}
}
