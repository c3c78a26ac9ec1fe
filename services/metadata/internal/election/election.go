// Package election decides which metadata node is controller, and makes sure that
// no other one writes.
//
// The election is etcd's: the candidate whose leased key is oldest has won. But a
// Campaign that returns nil proves nothing, since the lease may have run out
// meanwhile, and a process that was paused never notices. So a [Term] is not a
// belief but a comparison: every write of a controller is a transaction that holds
// only while the candidate's key is the very one that won, and the first such
// write opens the term. Leases only detect.
package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

const (
	minRetryDelay = 50 * time.Millisecond
	maxRetryDelay = 3 * time.Second
	// resignTimeout bounds what a candidate that is told to stop still does in etcd.
	resignTimeout = 2 * time.Second
)

var (
	// ErrSuperseded says that the term is over: its key is gone, and another node
	// may be controller. Nothing was written.
	ErrSuperseded = errors.New("another metadata node may have become controller")
	// ErrConflict says that something which the transaction compared has changed.
	// Nothing was written.
	ErrConflict = errors.New("the state of the cluster changed meanwhile")
)

// Options is what a [Candidate] works with.
type Options struct {
	Client *clientv3.Client
	// Prefix of the election keys, without a slash at its end.
	Prefix string
	Node   cluster.NodeID
	// TTL of the lease, whole seconds.
	TTL    time.Duration
	Logger *slog.Logger
	// RequestTimeout bounds each request to etcd.
	RequestTimeout time.Duration
}

// Candidate is a node that wants to be controller.
type Candidate struct {
	o Options
}

// NewCandidate returns a candidate that does nothing until [Candidate.Run].
func NewCandidate(o Options) *Candidate { return &Candidate{o: o} }

// Term is the time for which a candidate is controller.
type Term struct {
	client   *clientv3.Client
	key      string
	revision int64
	timeout  time.Duration
}

// Run campaigns until ctx is done; it returns nil then. Whenever the candidate has
// won it calls lead, whose context ends with the lease, and afterwards campaigns
// anew. Lead opens the term with its first [Term.Commit], and may end it with
// [Term.Resign].
func (c *Candidate) Run(ctx context.Context, lead func(context.Context, *Term) error) error {
	delay := minRetryDelay
	for failing := false; ctx.Err() == nil; {
		led, err := c.campaign(ctx, lead)
		if ctx.Err() != nil {
			break
		}
		if led {
			delay, failing = minRetryDelay, false
		}
		if err != nil && !failing {
			// Once per outage.
			c.o.Logger.Warn("the campaign for controller failed; trying again", "error", err)
			failing = true
		}
		timer := time.NewTimer(delay/2 + rand.N(delay/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		delay = min(2*delay, maxRetryDelay)
	}
	return nil
}

// campaign runs one session. It reports whether the candidate won.
func (c *Candidate) campaign(ctx context.Context, lead func(context.Context, *Term) error) (led bool, err error) {
	// Campaign cleans up with its client's context when it is cancelled, and so
	// does closing a session: both get a little longer than ctx, but not for ever.
	cleanup, cancelCleanup := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelCleanup()
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(resignTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancelCleanup()
		case <-cleanup.Done():
		}
	})
	defer stop()
	client := clientv3.NewCtxClient(cleanup)
	client.KV, client.Lease, client.Watcher = c.o.Client.KV, c.o.Client.Lease, c.o.Client.Watcher

	lease, err := c.grant(ctx)
	if err != nil {
		return false, err
	}
	session, err := concurrency.NewSession(client, concurrency.WithLease(lease), concurrency.WithTTL(int(c.o.TTL/time.Second)))
	if err != nil {
		return false, fmt.Errorf("keep lease alive: %w", err)
	}
	defer func() {
		// Until it is revoked, or runs out, nobody else can win.
		if closeErr := session.Close(); closeErr != nil && err == nil && ctx.Err() == nil {
			err = fmt.Errorf("revoke lease: %w", closeErr)
		}
	}()
	if err := c.removePredecessors(ctx, session.Lease()); err != nil {
		return false, err
	}
	value, err := proto.Marshal(&catalogv1.CandidateRecord{NodeId: int32(c.o.Node)})
	if err != nil {
		return false, fmt.Errorf("marshal candidate: %w", err)
	}
	// The session's end ends the campaign and the term.
	term, cancelTerm := context.WithCancel(ctx)
	defer cancelTerm()
	defer context.AfterFunc(session.Ctx(), cancelTerm)()
	election := concurrency.NewElection(session, c.o.Prefix)
	if err := election.Campaign(term, string(value)); err != nil {
		return false, fmt.Errorf("campaign: %w", err)
	}
	return true, lead(term, &Term{client: c.o.Client, key: election.Key(), revision: election.Rev(), timeout: c.o.RequestTimeout})
}

func (c *Candidate) grant(ctx context.Context) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
	defer cancel()
	response, err := c.o.Client.Grant(ctx, int64(c.o.TTL/time.Second))
	if err != nil {
		return 0, fmt.Errorf("grant lease: %w", err)
	}
	return response.ID, nil
}

// removePredecessors revokes the leases of this node's earlier candidacies, so
// that a process that was killed does not block its successor for a whole TTL.
//
// That is safe whether or not the predecessor is dead. Revoking removes its
// election key, and each of its writes, one that is under way included, holds only
// while that key exists: from now on they fail. The node id leads to no other
// node's key, because ids are unique and the lock on the data directory keeps the
// directory, where the id stands, to one process.
func (c *Candidate) removePredecessors(ctx context.Context, own clientv3.LeaseID) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.RequestTimeout)
	defer cancel()
	response, err := c.o.Client.Get(ctx, c.o.Prefix+"/", clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("look for predecessors: %w", err)
	}
	for _, kv := range response.Kvs {
		record := &catalogv1.CandidateRecord{}
		if err := proto.Unmarshal(kv.Value, record); err != nil || cluster.NodeID(record.GetNodeId()) != c.o.Node || clientv3.LeaseID(kv.Lease) == own {
			continue
		}
		if _, err := c.o.Client.Revoke(ctx, clientv3.LeaseID(kv.Lease)); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return fmt.Errorf("remove predecessor: %w", err)
		}
		c.o.Logger.Info("removed the candidacy of an earlier process of this node", "key", strings.TrimPrefix(string(kv.Key), c.o.Prefix+"/"))
	}
	return nil
}

// Commit writes ops if the term holds and all comparisons do. It returns
// [ErrSuperseded] if the term is over and [ErrConflict] if a comparison failed; in
// both cases nothing was written. After any other error it is unknown whether it
// was, except that it was not if the term had been over.
func (t *Term) Commit(ctx context.Context, comparisons []clientv3.Cmp, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	fenced := make([]clientv3.Cmp, 0, len(comparisons)+1)
	fenced = append(fenced, clientv3.Compare(clientv3.CreateRevision(t.key), "=", t.revision))
	fenced = append(fenced, comparisons...)
	response, err := t.client.Txn(ctx).If(fenced...).Then(ops...).Else(clientv3.OpGet(t.key, clientv3.WithKeysOnly())).Commit()
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	if response.Succeeded {
		return response, nil
	}
	if kvs := response.Responses[0].GetResponseRange().GetKvs(); len(kvs) == 1 && kvs[0].CreateRevision == t.revision {
		return nil, ErrConflict
	}
	return nil, ErrSuperseded
}

// Resign ends the term, if it holds, together with a last write.
func (t *Term) Resign(ctx context.Context, ops ...clientv3.Op) error {
	_, err := t.Commit(ctx, nil, append(ops, clientv3.OpDelete(t.key))...)
	if errors.Is(err, ErrSuperseded) {
		return nil
	}
	return err
}

// MaxComparisons and MaxOps are how many comparisons and operations one
// [Term.Commit] takes. etcd allows 128 of each by default; one comparison is the
// term's own.
const (
	MaxComparisons = 127
	MaxOps         = 128
)
