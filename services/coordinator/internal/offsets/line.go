package offsets

import (
	"context"
	"sync"
)

// line has the questions that wait for a node. One request to the node is under way at
// a time, and takes what came while the one before was: so many questions cost as much
// as a few. Whoever finds the line unattended sends for all, and hands over to the next
// when that is done.
type line[Q any] struct {
	mu      sync.Mutex
	sending bool
	waiting []*asker[Q]
}

// asker is somebody in the line.
type asker[Q any] struct {
	question Q
	// turn says that the asker has to send the next request.
	turn chan struct{}
	// done gets the answer, or why there is none.
	done chan error
}

// ask puts a question in line and returns its answer, or the error of ctx. Who has the
// turn calls send for up to most questions, its own first; it has to answer each of
// them.
func (l *line[Q]) ask(ctx context.Context, question Q, most int, send func(context.Context, []*asker[Q])) error {
	a := &asker[Q]{question: question, turn: make(chan struct{}, 1), done: make(chan error, 1)}
	l.enter(a)
	select {
	case err := <-a.done:
		return err
	case <-a.turn:
	case <-ctx.Done():
		if !l.giveUp(a) {
			return ctx.Err()
		}
		// The turn has come at the same time, and somebody has to take it.
	}
	send(ctx, l.next(most))
	l.pass()
	return <-a.done
}

// enter puts an asker in line, and gives it the turn if nobody has it.
func (l *line[Q]) enter(a *asker[Q]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, a)
	if !l.sending {
		l.sending = true
		a.turn <- struct{}{}
	}
}

// giveUp reports whether the asker has the turn.
func (l *line[Q]) giveUp(a *asker[Q]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-a.turn:
		return true
	default:
	}
	for i, other := range l.waiting {
		if other == a {
			l.waiting = append(l.waiting[:i:i], l.waiting[i+1:]...)
			break
		}
	}
	return false
}

// next returns who shares the next request, that one first who has the turn.
func (l *line[Q]) next(most int) []*asker[Q] {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.waiting), most)
	batch := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	return batch
}

// pass gives the turn to the next in line.
func (l *line[Q]) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.sending, l.waiting = false, nil
		return
	}
	l.waiting[0].turn <- struct{}{}
}
