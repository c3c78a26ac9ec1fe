package runnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/runnel-mesh/runnel/gen/runnel/metadata/v1/metadatav1connect"
	"github.com/runnel-mesh/runnel/gen/runnel/storage/v1/storagev1connect"
	"github.com/runnel-mesh/runnel/sdk/transport"
)

// DefaultBootstrap is where a cluster is looked for when no address is given:
// where `runnel up` listens.
const DefaultBootstrap = "127.0.0.1:7070"

// Config is what a client can be told. The zero value is a client of
// [DefaultBootstrap].
type Config struct {
	// Bootstrap holds addresses (host:port) of nodes of any role. One that
	// answers is enough: the others are found through it.
	Bootstrap []string
	// ClientID is what the program calls itself, at most 255 bytes, for people who look
	// at the members of a group; empty means the name of its executable file.
	ClientID string
	// Logger takes what heals by itself and so reaches nobody as an error, such
	// as lost connections; nil discards it.
	Logger *slog.Logger
	// Transports reaches nodes; nil means HTTP/2 without TLS. Closing the client
	// leaves it open.
	Transports Transports
}

// Transports reaches the nodes of a cluster by their addresses, with a
// connection of its own for each class of traffic. A *[transport.Pool] is one;
// tests and programs with a cluster in their own process bring another.
type Transports interface {
	Transport(address string, class transport.Class) connect.Transport
}

// Client is a way into one cluster. It is safe for concurrent use.
type Client struct {
	config Config
	// pool is the client's own transport, nil if it was given one.
	pool *transport.Pool
	view *view
	// commits are shared by all consumers.
	commits *commitStreams

	mu      sync.Mutex
	closed  bool
	members map[member]struct{}
}

// member is a producer or consumer, which dies with its client.
type member interface{ Close() error }

// NewClient returns a client of the cluster that the addresses (host:port, any
// role) are part of; without any, of [DefaultBootstrap]. It does no I/O: that
// the cluster cannot be reached is found out by the first call that needs it.
func NewClient(bootstrap ...string) (*Client, error) {
	return Config{Bootstrap: bootstrap}.NewClient()
}

// NewClient returns a client with this configuration. See the function of the
// same name.
func (c Config) NewClient() (*Client, error) {
	if len(c.Bootstrap) == 0 {
		c.Bootstrap = []string{DefaultBootstrap}
	}
	var faults []error
	for _, address := range c.Bootstrap {
		if err := checkAddress(address); err != nil {
			faults = append(faults, err)
		}
	}
	if c.ClientID == "" {
		c.ClientID = filepath.Base(os.Args[0])
	}
	if len(c.ClientID) > maxNameBytes {
		faults = append(faults, fmt.Errorf("client id of %d bytes is longer than %d", len(c.ClientID), maxNameBytes))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	client := &Client{members: make(map[member]struct{})}
	if c.Transports == nil {
		client.pool = transport.NewPool(transport.Options{})
		c.Transports = client.pool
	}
	client.config = c
	client.view = newView(c)
	client.commits = newCommitStreams(client)
	return client, nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("bootstrap address %q is not host:port, such as %s", address, DefaultBootstrap)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("bootstrap address %q has no port from 1 to 65535", address)
	}
	return nil
}

// Close closes the client with all its producers and consumers, and waits for
// their goroutines. It delivers what producers still hold, as their Close does,
// which takes up to their delivery timeout if the cluster is gone; close a
// producer with Abort first to give its records up.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	members := make([]member, 0, len(c.members))
	for m := range c.members {
		members = append(members, m)
	}
	c.mu.Unlock()

	errs := make([]error, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		wait.Go(func() { errs[i] = m.Close() })
	}
	wait.Wait()
	c.commits.close()
	c.view.stop()
	if c.pool != nil {
		c.pool.Close()
	}
	return errors.Join(errs...)
}

// join makes m die with the client.
func (c *Client) join(m member) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("client is %w", ErrClosed)
	}
	c.members[m] = struct{}{}
	return nil
}

func (c *Client) leave(m member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.members, m)
}

// log returns the client of the storage node at an address.
func (c *Client) log(address string, class transport.Class) storagev1connect.LogServiceClient {
	return storagev1connect.NewLogServiceClient(connect.NewClient(c.config.Transports.Transport(address, class)))
}

// topics returns the client of the metadata node at an address.
func (c *Client) topics(address string) metadatav1connect.TopicServiceClient {
	return metadatav1connect.NewTopicServiceClient(connect.NewClient(c.config.Transports.Transport(address, transport.Control)))
}

// call runs one unary call under the time that a single node gets for its
// answer, so that a caller without a deadline is not held by one that is stuck.
func call[Request, Response any](ctx context.Context, address string, method func(context.Context, Request) (Response, error), request Request) (Response, error) {
	return within(ctx, callTimeout, address, method, request)
}

// within is call with another time.
func within[Request, Response any](ctx context.Context, timeout time.Duration, address string, method func(context.Context, Request) (Response, error), request Request) (Response, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	response, err := method(limited, request)
	if err != nil {
		return response, callError(ctx, address, err)
	}
	return response, nil
}
