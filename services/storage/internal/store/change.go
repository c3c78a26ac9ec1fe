package store

import (
	"context"
)

// A change is what the store itself does to a log: it goes through the queue of
// the log's set like an append, so that one goroutine at a time changes a log,
// and is as durable as that set says.
type change struct {
	// apply changes the log, whose mu is held, in the transaction at hand. It
	// reports whether the log needs a new state record.
	apply func(w *writer, l *Log) (bool, error)
	// cost is what apply itself adds to the transaction.
	cost cost
	// spans is how many spans it may add.
	spans int
}

// change queues a change and returns. done is called once, from a goroutine of
// the store, and must not block. It blocks while the set's queue is full.
func (l *Log) change(c change, done func(error)) {
	o := &operation{kind: changeLog, log: l, change: c.apply, cost: c.cost, done: done}
	l.mu.Lock()
	if l.set == "" {
		l.set = l.homeLocked()
	}
	set := l.set
	l.pending++
	o.measure(len(l.durable.spans) + c.spans)
	l.mu.Unlock()
	l.store.sets[set].push(o)
}

// changeSync queues a change and waits for its outcome. If ctx ends early, it
// may or may not come about.
func (l *Log) changeSync(ctx context.Context, c change) error {
	outcome := make(chan error, 1)
	l.change(c, func(err error) { outcome <- err })
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// homeLocked returns the set in which a log is at home that nobody has appended
// to since the store was opened: that of its newest state record.
func (l *Log) homeLocked() Set {
	if l.home != "" {
		return l.home
	}
	return SetSynced
}

// change applies changes in one transaction, with one state record for each log.
func (w *writer) change(group []*operation) error {
	w.begin(sumOf(group).entries)
	defer w.end()
	for _, o := range group {
		if o.err != nil {
			continue
		}
		if o.log == nil {
			if _, err := o.change(w, nil); err != nil {
				return err
			}
			continue
		}
		o.log.mu.Lock()
		write, err := o.change(w, o.log)
		if err == nil && write {
			w.touch(o.log)
		}
		o.log.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return w.finish(0)
}

// touch makes a log's next state part of the transaction; its mu is held.
func (w *writer) touch(l *Log) {
	if !l.grouped {
		l.grouped = true
		w.touched = append(w.touched, l)
		l.durable.generation++
	}
}
