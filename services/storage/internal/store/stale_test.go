package store

import "testing"

// An append whose caller went on as if a truncation had come about is refused,
// and takes nothing of the log with it.
func TestRefusedAppendDeletesNothing(t *testing.T) {
	s := open(t, testConfig(t))
	l := s.Log(partition(1))
	want := fill(t, l, SetSynced, 0, 6, 2000)[:5]
	if _, err := l.Truncate(t.Context(), 20, State{LogEnd: 20, HighWatermark: 20, Epochs: epochZero}); err != nil {
		t.Fatal(err)
	}
	// Truncate leaves that behind where its context ends before its turn comes, and
	// the commit goroutine refuses it then.
	l.mu.Lock()
	l.next = 8
	l.mu.Unlock()
	b := makeBatch(8, 4, 2000, 0, 1000, 2)
	wantError(t, appendSync(t, l, Append{Set: SetSynced, Batches: []Batch{b}, State: State{LogEnd: 12, Epochs: epochZero}}), ErrInvalidAppend)
	if err := sameBatches(readAll(t, l, 0, 20, 1<<20), want); err != nil {
		t.Error(err)
	}
}
