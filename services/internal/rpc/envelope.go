package rpc

import "net/http"

const (
	envelopePrefixBytes = 5
	// maxJoinedBytes is the largest message that is copied to stand behind its
	// prefix; beyond, the copy costs more than a second frame.
	maxJoinedBytes = 16 << 10
)

// envelopeWriter makes the prefix and the message of each small response of a
// stream one write, hence one HTTP/2 frame and one system call, where the RPC library
// writes them one after the other: it holds a write of the size of a prefix back until
// the next one.
type envelopeWriter struct {
	http.ResponseWriter

	prefix [envelopePrefixBytes]byte
	held   bool
	buf    []byte
}

// Write implements io.Writer.
func (w *envelopeWriter) Write(p []byte) (int, error) {
	if !w.held {
		if len(p) == envelopePrefixBytes {
			copy(w.prefix[:], p)
			w.held = true
			return len(p), nil
		}
		return w.ResponseWriter.Write(p)
	}
	if len(p) > maxJoinedBytes {
		if err := w.release(); err != nil {
			return 0, err
		}
		return w.ResponseWriter.Write(p)
	}
	w.held = false
	w.buf = append(append(w.buf[:0], w.prefix[:]...), p...)
	n, err := w.ResponseWriter.Write(w.buf)
	return max(0, n-envelopePrefixBytes), err
}

// Flush implements http.Flusher.
func (w *envelopeWriter) Flush() {
	_ = w.release() // An error comes back with the next write.
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (w *envelopeWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// release writes a prefix that nothing has followed.
func (w *envelopeWriter) release() error {
	if !w.held {
		return nil
	}
	w.held = false
	_, err := w.ResponseWriter.Write(w.prefix[:])
	return err
}
