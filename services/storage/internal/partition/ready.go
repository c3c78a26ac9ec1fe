package partition

import "sync"

// Ready collects which of the partitions of a stream have news. A partition
// tells it once after [Partition.Await], so that a stream that is busy sending is
// told nothing more, and its channel gets one signal for any number of news.
type Ready struct {
	c chan struct{}

	mu    sync.Mutex
	slots []int
}

// NewReady returns an empty Ready.
func NewReady() *Ready { return &Ready{c: make(chan struct{}, 1)} }

// C has a signal when there may be something to take. It is never closed.
func (r *Ready) C() <-chan struct{} { return r.c }

// Take appends the slots with news to slots, each once per Await.
func (r *Ready) Take(slots []int) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	slots = append(slots, r.slots...)
	r.slots = r.slots[:0]
	return slots
}

func (r *Ready) mark(slot int) {
	r.mu.Lock()
	r.slots = append(r.slots, slot)
	r.mu.Unlock()
	select {
	case r.c <- struct{}{}:
	default:
	}
}

// armedReader is a stream, of a reader or to a follower, that waits for news of a
// partition.
type armedReader struct {
	ready *Ready
	slot  int
}

// news are the readers and the followers that wait for news of a partition. A nil
// one has none.
type news struct {
	readers, followers []armedReader
	// deletions is a list of those that wait for the low watermark.
	deletions *Deletion
	// checks is a list of those that wait to be confirmed.
	checks *FenceCheck
}

// waiting says that somebody does.
func (n *news) waiting() bool {
	return n != nil && (len(n.readers)+len(n.followers) > 0 || n.deletions != nil || n.checks != nil)
}

func (n *news) wakeFollowers() {
	if n != nil {
		n.followers = wake(n.followers)
	}
}

// wakeLocked tells everybody who waits.
func (p *Partition) wakeLocked() {
	p.news.wakeFollowers()
	if n := p.news; n != nil {
		n.readers = wake(n.readers)
	}
}

// newsLocked returns the list of those who wait, to add to.
func (p *Partition) newsLocked() *news {
	if p.news == nil {
		p.news = &news{}
	}
	return p.news
}

// wake tells those who wait, and returns the list without them.
func wake(armed []armedReader) []armedReader {
	for i, a := range armed {
		a.ready.mark(a.slot)
		armed[i] = armedReader{}
	}
	return armed[:0]
}
