// Package etcdtest runs a real etcd for tests.
//
// One server serves all tests of a package; [Server.Prefix] keeps them apart. A
// test that stops etcd or compacts it starts a server of its own.
package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Server is an etcd of one member on unix sockets.
type Server struct {
	dir      string
	durable  bool
	etcd     *embed.Etcd
	prefixes atomic.Int64
}

// Main runs the tests of a package with a server for all of them, which is passed
// to set first. It is the body of a TestMain: os.Exit(etcdtest.Main(m, ...)).
func Main(m *testing.M, set func(*Server), after func() error) int {
	dir, err := os.MkdirTemp("", "etcdtest")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	s := &Server{dir: dir}
	if err := s.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	set(s)
	code := m.Run()
	s.Stop()
	if err := after(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// New starts a server for one test.
func New(t testing.TB) *Server {
	t.Helper()
	return start(t, false)
}

// NewDurable starts a server for one benchmark that syncs what it writes, as real
// ones do.
func NewDurable(t testing.TB) *Server {
	t.Helper()
	return start(t, true)
}

func start(t testing.TB, durable bool) *Server {
	t.Helper()
	// Not t.TempDir: its path may be too long for a socket.
	dir, err := os.MkdirTemp("", "etcdtest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{dir: dir, durable: durable}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Start starts the server, or starts it again after [Server.Stop] with what it
// had.
func (s *Server) Start() error {
	config := embed.NewConfig()
	config.Dir = filepath.Join(s.dir, "data")
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	config.ListenClientUrls, config.AdvertiseClientUrls = s.urls("client"), s.urls("client")
	config.ListenPeerUrls, config.AdvertisePeerUrls = s.urls("peer"), s.urls("peer")
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// Tests lose no power.
	config.UnsafeNoFsync = !s.durable
	config.TickMs, config.ElectionMs = 20, 200
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		return fmt.Errorf("start etcd: %w", err)
	case <-time.After(30 * time.Second):
		etcd.Close()
		return errors.New("start etcd: it is not ready after 30 s")
	}
	s.etcd = etcd
	return nil
}

// Stop stops the server. What it holds stays until the test ends.
func (s *Server) Stop() {
	if s.etcd != nil {
		s.etcd.Close()
		s.etcd = nil
	}
}

func (s *Server) urls(name string) []url.URL {
	return []url.URL{{Scheme: "unix", Host: "", Path: filepath.Join(s.dir, name)}}
}

// Endpoint is the address of the server for clients.
func (s *Server) Endpoint() string { return "unix://" + s.socket() }

func (s *Server) socket() string { return filepath.Join(s.dir, "client") }

// Prefix returns a prefix that no other test uses.
func (s *Server) Prefix() string { return fmt.Sprintf("test%d/", s.prefixes.Add(1)) }

// Client returns a client of the server, or of another endpoint such as a
// [Link]'s, that is closed when the test ends.
func (s *Server) Client(t testing.TB, endpoint string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            []string{endpoint},
		DialTimeout:          2 * time.Second,
		DialKeepAliveTime:    time.Second,
		DialKeepAliveTimeout: time.Second,
		Logger:               zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// Link is a connection to a server that can be cut.
type Link struct {
	listener net.Listener
	wait     sync.WaitGroup

	mu     sync.Mutex
	socket string
	cut    bool
	conns  map[net.Conn]struct{}
}

// Link returns a link that closes when the test ends.
func (s *Server) Link(t testing.TB) *Link {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(s.dir, fmt.Sprintf("link%d", s.prefixes.Add(1))))
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{listener: listener, socket: s.socket(), conns: make(map[net.Conn]struct{})}
	l.wait.Go(l.accept)
	t.Cleanup(func() {
		listener.Close()
		l.Cut()
		l.wait.Wait()
	})
	return l
}

// Endpoint is the address of the link for clients.
func (l *Link) Endpoint() string { return "unix://" + l.listener.Addr().String() }

// Cut breaks all connections; new ones break at once.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for conn := range l.conns {
		conn.Close()
	}
}

// Mend lets new connections through again.
func (l *Link) Mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

// Redirect lets new connections go to another server.
func (l *Link) Redirect(s *Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.socket = s.socket()
}

func (l *Link) accept() {
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wait.Go(func() { l.carry(conn) })
	}
}

func (l *Link) carry(conn net.Conn) {
	defer conn.Close()
	l.mu.Lock()
	socket := l.socket
	l.mu.Unlock()
	upstream, err := (&net.Dialer{}).DialContext(context.Background(), "unix", socket)
	if err != nil {
		return
	}
	defer upstream.Close()
	l.mu.Lock()
	if l.cut {
		l.mu.Unlock()
		return
	}
	l.conns[conn], l.conns[upstream] = struct{}{}, struct{}{}
	l.mu.Unlock()
	var wait sync.WaitGroup
	pipe := func(to, from net.Conn) {
		io.Copy(to, from)
		to.Close()
		from.Close()
	}
	wait.Go(func() { pipe(upstream, conn) })
	wait.Go(func() { pipe(conn, upstream) })
	wait.Wait()
	l.mu.Lock()
	delete(l.conns, conn)
	delete(l.conns, upstream)
	l.mu.Unlock()
}
