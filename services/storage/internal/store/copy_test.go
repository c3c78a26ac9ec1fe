package store

import (
	"errors"
	"testing"
)

// everything is a snapshot of a whole log.
func everything(l *Log) snapshot { return l.snapshot(maxOffset, func(span) bool { return true }) }

func copyAll(t testing.TB, s *Store, l *Log) *copied {
	t.Helper()
	c, err := s.cleaner.copier.copySpans(t.Context(), SetSynced, everything(l), copyRules{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func switchTo(t testing.TB, l *Log, c *copied, want bool) {
	t.Helper()
	switched, err := l.switchSpans(t.Context(), c, nil)
	if err != nil || switched != want {
		t.Fatalf("switched %t, %v, want %t", switched, err, want)
	}
}

// moveAll copies a log and lets it go on with the copies. Nobody else copies it
// meanwhile.
func moveAll(t testing.TB, s *Store, l *Log) {
	t.Helper()
	l.copying.Lock()
	defer l.copying.Unlock()
	switchTo(t, l, copyAll(t, s, l), true)
}

// What is appended after a truncation stands alone in the active volume, though
// that holds batches which no span names any more.
func TestCopiedBatchesDoNotComeBack(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	l := s.Log(partition(1))
	old := fill(t, l, SetSynced, 0, 4, 2000)
	moveAll(t, s, l)
	if err := sameBatches(readAll(t, l, 0, 16, 1<<20), old); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Truncate(t.Context(), 4, State{LogEnd: 4, Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	want := old[:1:1]
	for offset := int64(4); offset < 16; offset += 3 {
		b := makeBatch(offset, 3, 1500, 0, 5000, 99)
		mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: offset + 3, Epochs: epochZero}})
		want = append(want, b)
	}
	for range 3 {
		if err := sameBatches(readAll(t, l, 0, 16, 1<<20), want); err != nil {
			t.Fatal(err)
		}
		moveAll(t, s, l)
		closeUnclean(t, s)
		s = open(t, cfg)
		l = s.Log(partition(1))
	}
}

// A copy does not replace what has changed since it was made.
func TestSwitchRefusesWhatHasChanged(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	fill(t, l, SetSynced, 0, 4, 2000)
	late := copyAll(t, s, l)
	if _, err := l.Truncate(t.Context(), 8, State{LogEnd: 8, Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	want := readAll(t, l, 0, 8, 1<<20)
	for offset := int64(8); offset < 16; offset += 4 {
		b := makeBatch(offset, 4, 2000, 0, 5000, 99)
		mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: offset + 4, Epochs: epochZero}})
		want = append(want, b)
	}
	switchTo(t, l, late, false)
	if err := sameBatches(readAll(t, l, 0, 16, 1<<20), want); err != nil {
		t.Fatal(err)
	}
	early, later := copyAll(t, s, l), copyAll(t, s, l)
	switchTo(t, l, later, true)
	switchTo(t, l, early, false)
	// What is appended meanwhile stays behind the copies, and what is deleted needs
	// none.
	early = copyAll(t, s, l)
	b := makeBatch(16, 4, 2000, 0, 5000, 99)
	mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogStart: 6, LogEnd: 20, Epochs: epochZero}})
	switchTo(t, l, early, true)
	if err := sameBatches(readAll(t, l, 6, 20, 1<<20), append(want[1:], b)); err != nil {
		t.Fatal(err)
	}
	var refs, bytes int64
	s.volumes.mu.Lock()
	for _, v := range s.volumes.byNumber {
		refs += v.space.spans.Load()
		bytes += v.space.live.Load()
	}
	s.volumes.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if refs != int64(len(l.durable.spans)) || bytes != spanBytes(l.durable.spans) {
		t.Errorf("the volumes count %d spans with %d bytes, the log has %d with %d", refs, bytes, len(l.durable.spans), spanBytes(l.durable.spans))
	}
}

// A volume that takes copies has at most one batch at an offset: what was cut off
// and written anew goes to the next one.
func TestCopiesOfWhatWasWrittenAnew(t *testing.T) {
	s := open(t, testConfig(t))
	// It stays open as long as somebody needs it.
	other := s.Log(partition(2))
	fill(t, other, SetSynced, 0, 4, 2000)
	moveAll(t, s, other)
	l := s.Log(partition(1))
	fill(t, l, SetSynced, 0, 4, 2000)
	first := copyAll(t, s, l)
	taken := first.to[0].volume
	switchTo(t, l, first, true)
	if _, err := l.Truncate(t.Context(), 0, State{Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	var want []Batch
	for offset := int64(0); offset < 15; offset += 3 {
		b := makeBatch(offset, 3, 1500, 0, 5000, 99)
		mustAppend(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: offset + 3, Epochs: epochZero}})
		want = append(want, b)
	}
	second := copyAll(t, s, l)
	if second.to[0].volume == taken {
		t.Error("the same volume has taken both")
	}
	switchTo(t, l, second, true)
	if err := sameBatches(readAll(t, l, 0, 15, 1<<20), want); err != nil {
		t.Error(err)
	}
}

// Copies that were lost before they took the place of what was copied never do.
func TestSwitchRefusesCopiesThatAreGone(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	want := fill(t, l, SetSynced, 0, 4, 2000)
	c := copyAll(t, s, l)
	v := c.destinations[0].volume
	s.cleaner.copier.mu.Lock()
	err := s.cleaner.copier.seal(c.destinations[0])
	s.cleaner.copier.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the copies are sealed", func() bool { return s.volumes.sealed(v.number) != nil })
	s.condemnLive(v, damage(v.path, "", errors.New("it is damaged")))
	switchTo(t, l, c, false)
	if err := sameBatches(readAll(t, l, 0, 16, 1<<20), want); err != nil {
		t.Error(err)
	}
}
