// Package store keeps the batches and the state of all partitions of a storage
// node on one disk. It hides Badger: a batch is one entry in its value log.
//
// Records lie in volumes, see [volumes], of a few sets, see [Set]. A partition's
// [Log] is a list of spans in them. Each set has one goroutine that commits what
// all logs have queued, in groups, each one transaction: see [set] and [writer].
// What stands where on disk is described in services/storage/FORMAT.md.
//
// Locks, in the order in which they are taken: Store.mu, Log.mu, set.mu,
// volumes.mu. None is held during I/O, but for that of node.json.
package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	"github.com/runnel-mesh/runnel/services/internal/datadir"
	"github.com/runnel-mesh/runnel/services/storage/internal/failpoint"
)

// brokenCloseTimeout bounds how long a store that has failed takes to close.
const brokenCloseTimeout = 5 * time.Second

// Store is the storage of one node. Its methods may be called concurrently.
type Store struct {
	cfg       Config
	directory *directory
	volumes   *volumes
	metrics   *metrics
	disk      *disk
	stalls    stalls
	// failures counts the partitions that have failed.
	failures failures
	cleaner  *cleaner
	sets     map[Set]*set
	clean    bool
	// rebooted says that the machine has crashed since volumes were last written.
	rebooted bool

	// recovered has the volumes that are open for writing since Open, because the
	// process before did not close them. It is never changed after it.
	recovered map[uint64]bool

	scrub *scrubber
	// failing are the partitions whose failure Open has found and not recorded.
	failing []*Log

	// watch are the goroutines that look at the disk and for idle volumes; they end when
	// unwatch is closed.
	watch   sync.WaitGroup
	unwatch chan struct{}

	readahead readahead

	// groups numbers the groups of all sets.
	groups atomic.Uint64

	// broken is why the store can no longer be trusted; failed is closed then.
	broken atomic.Pointer[error]
	failed chan struct{}
	// late are the goroutine that closes the store, and completions of appends that
	// come after it.
	late sync.WaitGroup

	// begin guards writing, which says that the clean marker is gone.
	begin   sync.Mutex
	writing bool

	// mu guards logs, closed and the directory's identity.
	mu     sync.Mutex
	logs   map[PartitionID]*Log
	closed bool

	closing  sync.Once
	closeErr error
}

// Open opens the store in a directory, which it creates where it is missing.
// After an unclean stop it first repairs what was being written. It refuses with
// [ErrLocked], [ErrReadOnly] and [ErrNewerFormat]; partitions that are damaged do
// not keep it from opening, see [Log.Err].
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	metrics, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register the store's metrics: %w", err)
	}
	directory, err := openDirectory(cfg.Dir)
	if outOfSpace(err) && os.Remove(filepath.Join(cfg.Dir, ballastFile)) == nil {
		directory, err = openDirectory(cfg.Dir)
	}
	if err != nil {
		metrics.unregister()
		return nil, remedied(err)
	}
	s := &Store{
		cfg:       cfg,
		directory: directory,
		metrics:   metrics,
		sets:      make(map[Set]*set),
		recovered: make(map[uint64]bool),
		logs:      make(map[PartitionID]*Log),
		failed:    make(chan struct{}),
		unwatch:   make(chan struct{}),
		stalls:    stalls{onStall: cfg.OnStall},
		failures:  failures{gauge: metrics.failed, tell: cfg.OnFailed},
	}
	s.disk = watchDisk(directory.Path(), &s.cfg, metrics, s.failed, func(err error) { s.fail(err) })
	s.cfg.VolumeBytes = s.disk.volumeBytes(cfg.VolumeBytes)
	s.volumes = newVolumes(directory.Path(volumesFolder), &s.cfg, &badgerLog{logger: cfg.Logger, fail: func(err error) { s.fail(err) }, beforeTable: s.awaitTable}, metrics)
	s.cleaner = newCleaner(s)
	s.volumes.freed = s.cleaner.poke
	s.scrub = newScrubber(s)
	for _, name := range allSets {
		s.sets[name] = newSet(s, name)
	}
	err = metrics.watch(s.volumes)
	if err == nil {
		err = s.recover()
	}
	if err != nil {
		err = errors.Join(err, s.volumes.close(), directory.Close())
		s.disk.handles.close()
		metrics.unregister()
		return nil, fmt.Errorf("open the store in %s: %w", directory.Path(), remedied(err))
	}
	s.volumes.doubted = s.doubt
	s.watch.Go(func() { s.disk.run(s.unwatch) })
	s.watch.Go(func() { s.volumes.releaseIdle(s.unwatch) })
	s.cleaner.start()
	s.scrub.start()
	for _, l := range s.failing {
		s.rewriteState(l)
	}
	s.failing = nil
	return s, nil
}

// Identity returns whose the directory is.
func (s *Store) Identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.directory.identity
}

// SetIdentity records durably whose the directory is from now on. It refuses
// with [ErrOtherNode] where another cluster or node is recorded.
func (s *Store) SetIdentity(clusterID [16]byte, nodeID cluster.NodeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	identity := s.directory.identity
	if clusterID == ([16]byte{}) || nodeID <= 0 {
		return fmt.Errorf("record the node's identity: cluster %x and node %d name nobody", clusterID, nodeID)
	}
	other := identity.Known() && identity.ClusterID != clusterID
	if other || identity.NodeID != 0 && identity.NodeID != nodeID {
		return fmt.Errorf("%w: %s holds the data of node %d of cluster %v, not of node %d of cluster %v; give the node its own directory",
			ErrOtherNode, s.directory.Path(), identity.NodeID, uuid.UUID(identity.ClusterID), nodeID, uuid.UUID(clusterID))
	}
	if identity.ClusterID == clusterID && identity.NodeID == nodeID {
		return nil
	}
	identity.ClusterID, identity.NodeID = clusterID, nodeID
	return s.directory.setIdentity(identity)
}

// Clean says whether the process before this one stopped in good order, with
// everything on the disk.
func (s *Store) Clean() bool { return s.clean }

// Partitions returns those that have a state record, in no certain order, also
// deleted and damaged ones.
func (s *Store) Partitions() []PartitionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []PartitionID
	for id, l := range s.logs {
		l.mu.Lock()
		if l.known {
			out = append(out, id)
		}
		l.mu.Unlock()
	}
	return out
}

// Log returns the log of a partition, always the same one. A new one is empty
// and costs memory only.
func (s *Store) Log(id PartitionID) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[id]
	if l == nil {
		l = newLog(s, id)
		s.logs[id] = l
	}
	return l
}

// Close commits what is queued, closes all volumes and, if all of that went
// well, records durably that the process stopped in good order. nodeEpoch is
// that of the process; 0 where it has none. Appends fail with [ErrClosed] from
// then on, and so do reads. A second call returns the outcome of the first.
//
// After a fatal error Badger may wait for the disk for ever. Close then gives up
// after a while, and leaves goroutines behind: the process has to stop anyway.
func (s *Store) Close(nodeEpoch int64) error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		outcome := make(chan error, 1)
		s.late.Go(func() { outcome <- s.shutDown(nodeEpoch) })
		var err error
		select {
		case err = <-outcome:
		case <-s.failed:
			select {
			case err = <-outcome:
			case <-time.After(brokenCloseTimeout):
				err = fmt.Errorf("gave up after %v: %w", brokenCloseTimeout, s.failure())
			}
		}
		if err != nil {
			s.closeErr = fmt.Errorf("close the store in %s: %w", s.directory.Path(), err)
		}
	})
	return s.closeErr
}

func (s *Store) shutDown(nodeEpoch int64) error {
	s.cleaner.close()
	for _, name := range allSets {
		s.sets[name].close()
	}
	s.scrub.close()
	close(s.unwatch)
	s.watch.Wait()
	failpoint.Hit("stop/before-volumes")
	// What Badger has in memory goes to tables now, whose space nobody can reserve.
	deadline := time.Now().Add(2 * claimFor)
	err := s.disk.await(s.volumes.written()*s.cfg.memTableBytes, func() bool { return time.Now().After(deadline) })
	if err == nil {
		err = s.volumes.close()
	} else {
		err = fmt.Errorf("nothing is lost, but the next start has to repair the volumes: %w", err)
	}
	if err == nil {
		err = s.failure()
	}
	if err == nil {
		err = datadir.Sync(s.volumes.path)
	}
	failpoint.Hit("stop/before-marker")
	if err == nil {
		err = s.directory.writeClean(nodeEpoch, s.cfg.BootID, s.volumes.numbers())
	}
	failpoint.Hit("stop/after-marker")
	err = errors.Join(err, s.directory.Close())
	s.disk.handles.close()
	s.metrics.unregister()
	return err
}

// awaitTable holds Badger up while there is no room for a table.
func (s *Store) awaitTable() {
	// Where the store has failed the process ends.
	_ = s.disk.awaitWith(s.disk.claim, tableSpace, func() bool { return s.failure() != nil })
}

// beginWriting removes the clean marker before the first volume is written.
func (s *Store) beginWriting() error {
	s.begin.Lock()
	defer s.begin.Unlock()
	if s.writing {
		return nil
	}
	if err := s.directory.removeClean(); err != nil {
		return err
	}
	if s.clean {
		// Else what was left is repaired first.
		if err := s.directory.recordBoot(s.cfg.BootID); err != nil {
			return err
		}
	}
	s.writing = true
	return nil
}

// fail records the first reason why the store can no longer be trusted, tells
// it, and returns it.
func (s *Store) fail(err error) error {
	err = fmt.Errorf("the store in %s has failed: %w", s.directory.Path(), err)
	if s.broken.CompareAndSwap(nil, &err) {
		s.cfg.Logger.Error("the store has failed", "error", err)
		close(s.failed)
		s.cfg.OnFatal(err)
	}
	return s.failure()
}

// failure returns why the store can no longer be trusted, or nil.
func (s *Store) failure() error {
	if err := s.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// activeSet returns the set in which a volume takes appends at present, or will
// take the first one since Open.
func (s *Store) activeSet(volume uint64) (Set, bool) {
	for _, name := range allSets {
		q := s.sets[name]
		q.mu.Lock()
		active := q.active
		q.mu.Unlock()
		if active == 0 {
			if v := s.volumes.latest(name); v != nil {
				active = v.number
			}
		}
		if active == volume {
			return name, true
		}
	}
	return "", false
}

// doubt follows up that a volume could not be read, see [volumes.read].
func (s *Store) doubt(v *volume, written bool, err error) {
	switch {
	case written:
		s.fail(err)
	case s.volumes.sealed(v.number) == v:
		s.scrub.doubt(v)
	}
}

// lowOnSpace says whether cleaning should be as fast as it can be.
func (s *Store) lowOnSpace() bool { return s.disk.low() }
