package offsets

import (
	"context"
	"sync"
	"time"

	"github.com/runnel-mesh/runnel/sdk/cluster"
	rules "github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

const (
	// endsWithin bounds what a commit waits for leaders that do not answer.
	endsWithin = time.Second
	// askAgainAfter is what a commit beyond the end waits before it is believed to be
	// that: longer than a new leader, from whom the member may have read, takes to become
	// known here.
	askAgainAfter = 250 * time.Millisecond
	// maxSharedQuestions is how many commits share a request for ends.
	maxSharedQuestions = 1000
	// maxKnownEnds bounds the memory of ends.
	maxKnownEnds = 100_000
)

// knownEnds remembers where logs ended when a leader was asked. Within a leadership that
// end only grows, so that whatever lies below it still does. With the next leadership,
// which may have begun with an unclean election, it counts no longer.
type knownEnds struct {
	mu   sync.Mutex
	ends map[rules.Partition]knownEnd
}

type knownEnd struct {
	epoch cluster.LeaderEpoch
	end   int64
}

// reaches reports whether the log is known to have come to that offset.
func (k *knownEnds) reaches(p rules.Partition, epoch cluster.LeaderEpoch, offset int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	known, ok := k.ends[p]
	return ok && known.epoch == epoch && offset <= known.end
}

func (k *knownEnds) learn(p rules.Partition, epoch cluster.LeaderEpoch, end int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if known, ok := k.ends[p]; ok && known.epoch == epoch && known.end >= end {
		return
	}
	if k.ends == nil || len(k.ends) >= maxKnownEnds {
		// They are learnt again from the next commits.
		k.ends = make(map[rules.Partition]knownEnd)
	}
	k.ends[p] = knownEnd{epoch, end}
}

// LogEnd says how an offset stands to the end of its partition for readers.
type LogEnd struct {
	// Beyond says that the offset lies behind End.
	Beyond bool
	End    int64
	// Err is why that is not known, as in [Resolved].
	Err error
}

// BeyondEnd finds the offsets that lie beyond the ends of their partitions. Of one that
// does not, End is not told. Leaders are asked only about what lies beyond the ends that
// are known, and only after the call: an end that was true before may have been passed
// since. An offset from a leader that is newer than the one that this node knows is not
// judged, and what lies beyond the end is asked for once more after a while, since the
// leader that was asked may have had a successor without knowing. So nobody who has read
// what it commits is told that it is not there, unless leader and coordinator are both cut
// off from the rest.
func (l *Leaders) BeyondEnd(ctx context.Context, offsets []rules.CommitOffset) []LogEnd {
	ctx, cancel := context.WithTimeout(ctx, endsWithin)
	defer cancel()
	out := make([]LogEnd, len(offsets))
	all := make([]int, len(offsets))
	for i := range all {
		all[i] = i
	}
	beyond := l.findEnds(ctx, offsets, all, out)
	if len(beyond) == 0 {
		return out
	}
	again := time.NewTimer(askAgainAfter)
	defer again.Stop()
	select {
	case <-again.C:
		l.findEnds(ctx, offsets, beyond, out)
	case <-ctx.Done():
		for _, i := range beyond {
			out[i] = LogEnd{Err: context.Cause(ctx)}
		}
	}
	return out
}

// findEnds judges the offsets of those indexes, and returns which of them lie beyond the
// end.
func (l *Leaders) findEnds(ctx context.Context, offsets []rules.CommitOffset, indexes []int, out []LogEnd) (beyond []int) {
	questions := make(map[*storageNode]*endQuestion)
	for _, i := range indexes {
		o := &offsets[i]
		out[i] = LogEnd{}
		node, topic, state, err := l.ofID(o.Partition)
		switch {
		case err != nil:
			out[i].Err = err
			continue
		case o.Offset == 0 || o.LeaderEpoch > int32(state.LeaderEpoch) || l.ends.reaches(o.Partition, state.LeaderEpoch, o.Offset):
			continue
		}
		q := questions[node]
		if q == nil {
			q = &endQuestion{}
			questions[node] = q
		}
		q.indexes = append(q.indexes, i)
		q.asked = append(q.asked, askedEnd{partition: o.Partition, topic: topic.Name, epoch: state.LeaderEpoch})
	}
	var asking sync.WaitGroup
	for node, q := range questions {
		asking.Go(func() { q.failed = node.ends.ask(ctx, q, maxSharedQuestions, l.sendEnds) })
	}
	asking.Wait()
	for _, q := range questions {
		for n, i := range q.indexes {
			if q.failed != nil {
				out[i].Err = q.failed
				continue
			}
			end := q.ends[n]
			out[i] = LogEnd{Beyond: end.Err == nil && offsets[i].Offset > end.Offset, End: end.Offset, Err: end.Err}
			if out[i].Beyond {
				beyond = append(beyond, i)
			}
		}
	}
	return beyond
}

// endQuestion is what a commit asks of a leader.
type endQuestion struct {
	// indexes say which offsets of the commit it is about.
	indexes []int
	asked   []askedEnd
	// ends are the answers; they are there once the question is answered without failure.
	ends   []Resolved
	failed error
}

type askedEnd struct {
	partition rules.Partition
	topic     string
	epoch     cluster.LeaderEpoch
}

// sendEnds asks for the ends of all partitions that a batch of questions is about, each
// once.
func (l *Leaders) sendEnds(ctx context.Context, batch []*asker[*endQuestion]) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endsWithin)
	defer cancel()
	at := make(map[rules.Partition]int)
	var asked []askedEnd
	var positions []Position
	for _, a := range batch {
		for _, end := range a.question.asked {
			if _, known := at[end.partition]; !known {
				at[end.partition] = len(asked)
				asked = append(asked, end)
				positions = append(positions, Position{Topic: end.topic, ID: end.partition.Topic[:], Index: end.partition.Index, At: Latest})
			}
		}
	}
	resolved := l.Resolve(ctx, positions)
	for i, r := range resolved {
		if r.Err == nil {
			l.ends.learn(asked[i].partition, asked[i].epoch, r.Offset)
		}
	}
	for _, a := range batch {
		a.question.ends = make([]Resolved, len(a.question.asked))
		for i, end := range a.question.asked {
			a.question.ends[i] = resolved[at[end.partition]]
		}
		a.done <- nil
	}
}
