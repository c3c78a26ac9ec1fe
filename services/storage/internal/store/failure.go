package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// failures counts the partitions that have failed.
type failures struct {
	gauge prometheus.Gauge
	tell  func(int)

	mu    sync.Mutex
	count int
}

// add counts partitions, of which n have failed, or -n fail no more. The hook is
// called in the same order.
func (f *failures) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count += n
	f.gauge.Set(float64(f.count))
	f.tell(f.count)
}

// Failed returns an [*ErrFailed] if something of the log was lost: it takes no
// more batches, until the log start is moved behind what was lost, and not even
// then where nobody knows how far it went. What is left can be read. The error is
// an [*ErrCorrupt] where the log cannot be used at all, see [Log.Err].
func (l *Log) Failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault != nil {
		return l.fault
	}
	return l.failedLocked()
}

func (l *Log) failedLocked() error {
	f := l.durable.failed
	if f == nil {
		return nil
	}
	return &ErrFailed{Partition: l.id, Reason: f.reason, Volume: f.volume, LostTo: f.lostTo, LogEndUnknown: f.logEndUnknown, LogStart: l.durable.LogStart, LogEnd: l.durable.LogEnd}
}

// Fail records that batches of the log may have been lost, nobody knows how many:
// of a log that the store does not know though it should, since [Store.Unsettled].
// The volumes that are to blame are added to the reason.
func (l *Log) Fail(reason string) {
	f := failure{reason: reason, logEndUnknown: true}
	lost := l.store.volumes.unsettled()
	for _, c := range lost {
		f.reason += fmt.Sprintf("; volume %d: %s", c.number, c.reason)
	}
	if len(lost) == 1 {
		f.volume = lost[0].number
	}
	l.store.failLog(l, f)
}

// replacement stands for bytes in a reason that are not UTF-8.
const replacement = "\uFFFD"

// addFailureLocked adds a loss to those that are known. It reports whether it was
// not known yet.
func (l *Log) addFailureLocked(f failure) bool {
	// It may quote what is damaged, and no state record takes anything but text.
	f.reason = strings.ToValidUTF8(f.reason, replacement)
	if old := l.durable.failed; old != nil {
		if old.lostTo >= f.lostTo && (old.logEndUnknown || !f.logEndUnknown) {
			return false
		}
		f.reason, f.volume = old.reason, cmp.Or(old.volume, f.volume)
		f.lostTo = max(f.lostTo, old.lostTo)
		f.logEndUnknown = f.logEndUnknown || old.logEndUnknown
	}
	l.durable.failed = &f
	l.rewrite = true
	return true
}

// healLocked ends a failure whose losses all lie before the log start, and that of
// a deleted partition, of which nobody misses anything.
func (l *Log) healLocked() {
	f := l.durable.failed
	if f != nil && (l.durable.Deleted || !f.logEndUnknown && l.durable.LogStart >= f.lostTo) {
		l.durable.failed = nil
		l.rewrite = true
		l.store.failures.add(-1)
	}
}

// forgiveLocked ends a failure whatever was lost: nothing is left of the log that
// could miss it.
func (l *Log) forgiveLocked() {
	if l.durable.failed != nil {
		l.durable.failed = nil
		l.rewrite = true
		l.store.failures.add(-1)
	}
}

// AcceptLoss ends a failure for good by letting go of what is known to be lost and of
// all before it; where the log ends for certain no more is. The log goes on where it ends
// as far as the store knows, so that offsets may be given again which it has lost:
// whoever leads it next has to do so in another leader epoch than before. It is for the
// time before the log has a replica, and no failure is nothing to accept. The error is
// [Log.Err]'s, of ctx, or the store's.
func (l *Log) AcceptLoss(ctx context.Context) error {
	return l.changeSync(ctx, change{apply: func(w *writer, l *Log) (bool, error) {
		f := l.durable.failed
		if l.fault != nil || f == nil {
			return false, nil
		}
		state := l.durable.State
		state.LogStart = min(max(state.LogStart, f.lostTo), state.LogEnd)
		state.HighWatermark = max(state.HighWatermark, state.LogStart)
		state.Epochs = rules.Epochs(state.Epochs).TruncateStart(state.LogStart).TruncateEnd(state.LogEnd)
		w.uses = append(w.uses, l.setStateLocked(state)...)
		l.forgiveLocked()
		l.start, l.rewrite = state.LogStart, true
		return true, nil
	}})
}

// failLog adds a loss to what is known of a log, and records it.
func (s *Store) failLog(l *Log, f failure) {
	l.mu.Lock()
	first := l.durable.failed == nil
	added := l.fault == nil && !l.durable.Deleted && l.addFailureLocked(f)
	l.mu.Unlock()
	if !added {
		return
	}
	if first {
		s.noteFailed(l, f)
	}
	s.rewriteState(l)
}

// noteFailed tells of a partition that has failed.
func (s *Store) noteFailed(l *Log, f failure) {
	s.failures.add(1)
	s.cfg.Logger.Error("a partition has failed: it takes no more records, what is left is served",
		"partition", l.id, "reason", f.reason, "volume", f.volume, "log_end_unknown", f.logEndUnknown)
}

// rewriteState writes the state record of a log anew, to the set in which the
// last one lies. It does not wait; what is settled then is, see [scrubber].
func (s *Store) rewriteState(l *Log) {
	s.scrub.unrecorded.Add(1)
	l.change(change{apply: func(_ *writer, l *Log) (bool, error) {
		l.rewrite = true
		return true, nil
	}}, func(err error) {
		if err != nil && !errors.Is(err, ErrClosed) {
			s.cfg.Logger.Error("the state of a partition cannot be recorded", "partition", l.id, "error", err)
		}
		if err == nil {
			s.scrub.unrecorded.Add(-1)
			s.scrub.poke()
		}
	})
}

// lossOf returns what a log has lost with the volumes that are gone; false if
// nothing.
func (s *Store) lossOf(l *Log) (failure, bool) {
	var f failure
	lost := false
	for _, sp := range l.durable.spans {
		c, present := s.volumes.find(sp.volume)
		if present {
			continue
		}
		lost = true
		f.volume, f.lostTo = sp.volume, sp.end
		f.reason = fmt.Sprintf("volume %d, with its offsets %d to %d, is lost: %s", sp.volume, sp.first, sp.end-1, c.reason)
	}
	return f, lost
}

// find returns whether a volume is there, and what is known of it if it is not. One
// that is missing without a trace is lost like one that was set aside.
func (r *volumes) find(number uint64) (*condemnedVolume, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byNumber[number] != nil {
		return nil, true
	}
	c := r.condemned[number]
	if c == nil {
		c = &condemnedVolume{number: number, path: filepath.Join(r.path, fmt.Sprint(number)), reason: "it is missing", settled: true}
		r.condemned[number] = c
	}
	return c, false
}

// newestMayBeLost says whether a newer state record of a log may have been in a
// volume that was set aside, and names it: one that was written after the volume
// which holds the newest there is, or in the set that the log has moved to.
func newestMayBeLost(lost []*condemnedVolume, home Set, stateVolume uint64, moved bool) *condemnedVolume {
	for _, c := range lost {
		if c.settled || c.copies {
			continue
		}
		if (c.set == home || c.set == setUnknown) && c.number > stateVolume || c.set != home && moved {
			return c
		}
	}
	return nil
}

// findLosses looks for the partitions that have lost something with a volume that
// was set aside, and are not known to.
func (s *Store) findLosses() (failing []*Log) {
	lost := s.volumes.condemnedVolumes()
	for _, l := range s.logs {
		if l.fault != nil || l.durable.Deleted {
			continue
		}
		before := l.durable.failed
		if f, ok := s.lossOf(l); ok {
			l.addFailureLocked(f)
		}
		if c := newestMayBeLost(lost, l.homeLocked(), l.stateVolume, l.durable.moved); c != nil {
			l.addFailureLocked(failure{
				volume: c.number, logEndUnknown: true,
				reason: fmt.Sprintf("volume %d, which may have held its last records, was found damaged and set aside: %s", c.number, c.reason),
			})
		}
		switch {
		case l.durable.failed == nil:
		case before == nil:
			s.noteFailed(l, *l.durable.failed)
		default:
			s.failures.add(1)
		}
		if l.durable.failed != before {
			failing = append(failing, l)
		}
	}
	return failing
}

// Damaged says that the store may lack what was acknowledged: a partition has failed,
// or a volume was set aside that partitions may have been in which nobody knows of.
func (s *Store) Damaged() bool {
	s.failures.mu.Lock()
	failed := s.failures.count > 0
	s.failures.mu.Unlock()
	return failed || s.Unsettled()
}

// Unsettled says that a volume was set aside, and that partitions which have lost
// all that the store knew of them may still be unknown: the caller compares
// [Store.Partitions] with what there should be, calls [Log.Fail] for what is
// missing, and then [Store.SettleLosses].
func (s *Store) Unsettled() bool {
	return len(s.volumes.unsettled()) > 0
}

// SettleLosses says that all partitions are known which should be. Once their failures
// are durable the next start asks no more.
func (s *Store) SettleLosses() {
	for _, c := range s.volumes.condemnedVolumes() {
		c.known.Store(true)
	}
	s.scrub.poke()
}
