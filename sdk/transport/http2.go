package transport

import (
	"net/http"
	"time"
)

// MaxMessageBytes is the largest message that clients and servers take: a
// response to a consumer may hold one batch beyond its own limit.
const MaxMessageBytes = 32 << 20

// MaxRequestBytes is the largest request that servers take: a batch of the
// greatest max.message.bytes (16 MiB) and what goes around it. A message that is
// still coming in is in memory before anybody can count it.
const MaxRequestBytes = 17 << 20

const (
	// frameBytes is the largest HTTP/2 frame that is taken. Each frame costs its
	// sender a system call and, on a server, a goroutine: Go's default of 16 KiB
	// makes a batch of 256 KiB cost sixteen. A client keeps a buffer of this size
	// (at most 512 KiB) for every request stream.
	frameBytes = 1 << 20

	// streamBytes is how much of a stream of batches may lie unread at its
	// receiver. Larger windows are slower on one machine, since the data has left
	// the CPU's cache by the time that it is read; smaller ones are slower over a
	// long way (2 MiB make 200 MB/s at a round trip of 10 ms).
	streamBytes = 2 << 20

	// maxConcurrentStreams bounds the streams of one connection, so that a client
	// cannot hold more goroutines than that with a single one.
	maxConcurrentStreams = 2000

	// A peer that is silent for pingAfter is asked for a sign of life and given up
	// pingTimeout later; one that takes no byte for writeTimeout is given up too.
	pingAfter    = 15 * time.Second
	pingTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
)

// ServerHTTP2 returns the HTTP/2 settings of servers that [Pool] connects to.
func ServerHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          maxConcurrentStreams,
		MaxReadFrameSize:              frameBytes,
		MaxReceiveBufferPerConnection: 32 << 20,
		MaxReceiveBufferPerStream:     streamBytes,
		SendPingTimeout:               pingAfter,
		PingTimeout:                   pingTimeout,
		WriteByteTimeout:              writeTimeout,
	}
}

// clientHTTP2 returns the settings of a connection that carries one class of
// traffic.
func clientHTTP2(c Class) *http.HTTP2Config {
	config := &http.HTTP2Config{
		MaxReadFrameSize: frameBytes,
		// Practically without limit: what bounds the memory is the windows of the
		// streams. With a smaller one, streams that nobody reads for a while would
		// use it up and stop all others of the connection.
		MaxReceiveBufferPerConnection: 1 << 30,
		MaxReceiveBufferPerStream:     1 << 20,
		SendPingTimeout:               pingAfter,
		PingTimeout:                   pingTimeout,
		WriteByteTimeout:              writeTimeout,
	}
	switch c {
	case Consume, Replicate:
		config.MaxReceiveBufferPerStream = streamBytes
	case Control, Produce:
	}
	return config
}
