package cli

import (
	"math/rand/v2"
)

// payloadPoolBytes is larger than any batch, so that no codec finds one
// record's bytes again in another record of its batch.
const payloadPoolBytes = 8 << 20

// payloadRunBytes is the length of the alternating random and fixed runs in a
// payload: long enough for the codecs without entropy coding (snappy, lz4) to
// gain from the fixed ones.
const payloadRunBytes = 32

const payloadFixedRun = "the quick brown fox jumps over. "

// payloads hands out record values of one size, about half compressible. The
// bytes come from a pool that is never written again.
type payloads struct {
	pool []byte
	size int
	next int
}

func newPayloads(size int) *payloads {
	pool := make([]byte, payloadPoolBytes+size)
	source := rand.NewChaCha8([32]byte{'r', 'u', 'n', 'n', 'e', 'l'})
	_, _ = source.Read(pool) // never fails
	for at := payloadRunBytes; at < len(pool); at += 2 * payloadRunBytes {
		copy(pool[at:min(at+payloadRunBytes, len(pool))], payloadFixedRun)
	}
	return &payloads{pool: pool, size: size}
}

// take returns the next value. It must not be changed.
func (p *payloads) take() []byte {
	if p.next >= payloadPoolBytes {
		p.next %= payloadPoolBytes
	}
	value := p.pool[p.next : p.next+p.size : p.next+p.size]
	p.next += p.size
	return value
}
