package server

import (
	"context"
	"sync"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

const (
	// allocateWithin bounds one request for a block.
	allocateWithin = 5 * time.Second
	// allocateAfter is the pause after a request that failed.
	allocateAfter = 100 * time.Millisecond
)

// Allocate asks the metadata service for a block of producer ids.
type Allocate func(context.Context) (*peerv1.AllocateProducerIdsResponse, error)

// ProducerIDs hands out producer ids from blocks, and fetches the next block
// before the last one is used up. What is left of a block when the process ends
// is never used.
type ProducerIDs struct {
	// wanted has a token when a block is to be fetched.
	wanted chan struct{}

	mu sync.Mutex
	// next and end are what is left of the block in use, then those of the block
	// after it.
	next, end           int64
	spareNext, spareEnd int64
	// fetched is closed and replaced after each request to the metadata service;
	// err is the outcome of the last.
	fetched chan struct{}
	err     error
	// running says that Run is there to fetch.
	running bool
}

// NewProducerIDs returns one without a block; [ProducerIDs.Run] fetches them.
func NewProducerIDs() *ProducerIDs {
	return &ProducerIDs{wanted: make(chan struct{}, 1), fetched: make(chan struct{})}
}

// Run fetches blocks as they are needed until ctx ends.
func (p *ProducerIDs) Run(ctx context.Context, allocate Allocate) error {
	p.setRunning(true)
	defer p.setRunning(false)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wanted:
		}
		if !p.short() {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, allocateWithin)
		block, err := allocate(attempt)
		cancel()
		p.mu.Lock()
		if p.err = err; err == nil {
			p.addLocked(block.GetFirstProducerId(), int64(block.GetCount()))
		}
		close(p.fetched)
		p.fetched = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(allocateAfter):
			}
		}
	}
}

func (p *ProducerIDs) setRunning(running bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = running
	close(p.fetched)
	p.fetched = make(chan struct{})
}

// short says that a block is missing.
func (p *ProducerIDs) short() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next == p.end || p.spareNext == p.spareEnd
}

func (p *ProducerIDs) addLocked(first, count int64) {
	switch {
	case p.next == p.end:
		p.next, p.end = first, first+count
	case p.spareNext == p.spareEnd:
		p.spareNext, p.spareEnd = first, first+count
	}
}

// take returns the next id, or the channel that tells of the next block.
func (p *ProducerIDs) take() (id int64, fetched <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running {
		return 0, nil, rpcerr.New(errorsv1.Reason_REASON_METADATA_UNAVAILABLE, "this node is starting or stopping and has no producer ids to give; try again")
	}
	if p.next == p.end {
		p.next, p.end, p.spareNext, p.spareEnd = p.spareNext, p.spareEnd, 0, 0
	}
	if p.spareNext == p.spareEnd {
		select {
		case p.wanted <- struct{}{}:
		default:
		}
	}
	if p.next == p.end {
		return 0, p.fetched, nil
	}
	p.next++
	return p.next - 1, nil, nil
}

// Next returns an id that was never returned before. It waits for the metadata
// service if there is no block at hand; the errors are those of the service and
// of ctx.
func (p *ProducerIDs) Next(ctx context.Context) (int64, error) {
	for {
		id, fetched, err := p.take()
		if err != nil {
			return 0, err
		}
		if fetched == nil {
			return id, nil
		}
		select {
		case <-fetched:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		p.mu.Lock()
		err = p.err
		p.mu.Unlock()
		if err != nil {
			return 0, err
		}
	}
}

// InitProducer returns a producer identity.
func (s *Server) InitProducer(ctx context.Context, _ *storagev1.InitProducerRequest) (*storagev1.InitProducerResponse, error) {
	id, err := s.ids.Next(ctx)
	if err != nil {
		return nil, err
	}
	return &storagev1.InitProducerResponse{ProducerId: id}, nil
}
