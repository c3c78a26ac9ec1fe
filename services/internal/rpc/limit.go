package rpc

import (
	"bufio"
	"net"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// readBufferBytes makes one read of what clients send between their batches,
// such as window updates: HTTP/2 reads the header of each frame by itself. Longer
// reads go past the buffer.
const readBufferBytes = 4 << 10

// limitListener closes connections beyond a limit as soon as it has accepted
// them: their clients learn at once, where waiting in the backlog would look
// like a network fault.
type limitListener struct {
	net.Listener
	limit   int64
	open    atomic.Int64
	gauge   prometheus.Gauge
	refused prometheus.Counter
}

func newLimitListener(l net.Listener, limit int, registry *prometheus.Registry) *limitListener {
	address := prometheus.Labels{"address": l.Addr().String()}
	return &limitListener{
		Listener: l,
		limit:    int64(limit),
		gauge: register(registry, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "runnel_rpc_connections",
			Help: "Open client connections.",
		}, []string{"address"})).With(address),
		refused: register(registry, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "runnel_rpc_connections_refused_total",
			Help: "Connections closed at once because the limit was reached.",
		}, []string{"address"})).With(address),
	}
}

// Accept returns the next connection within the limit.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) > l.limit {
			l.open.Add(-1)
			l.refused.Inc()
			_ = conn.Close()
			continue
		}
		l.gauge.Inc()
		return &limitedConn{Conn: conn, reader: bufio.NewReaderSize(conn, readBufferBytes), release: sync.OnceFunc(func() {
			l.open.Add(-1)
			l.gauge.Dec()
		})}, nil
	}
}

type limitedConn struct {
	net.Conn
	reader  *bufio.Reader
	release func()
}

func (c *limitedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}
