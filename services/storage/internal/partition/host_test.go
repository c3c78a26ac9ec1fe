package partition

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/runnel-mesh/runnel/sdk/cluster"
)

func rulesEpoch(epoch int32) cluster.LeaderEpoch { return cluster.LeaderEpoch(epoch) }

func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100, newMetrics(nil))
		acquire := func(ctx context.Context, n int64) int64 {
			got, err := b.Acquire(ctx, n)
			if err != nil {
				t.Error(err)
			}
			return got
		}
		if got := acquire(t.Context(), 60); got != 60 {
			t.Errorf("charged %d", got)
		}
		// More than all counts as all; those who come later wait their turn.
		order := make(chan string, 2)
		go func() {
			got := acquire(t.Context(), 1000)
			order <- "large"
			b.Release(got)
		}()
		synctest.Wait()
		go func() { b.Release(acquire(t.Context(), 10)); order <- "small" }()
		synctest.Wait()
		if len(order) != 0 {
			t.Fatal("granted beyond the budget, or out of turn")
		}
		b.Release(60)
		synctest.Wait()
		if first := <-order; first != "large" {
			t.Errorf("%s came first", first)
		}
		<-order

		acquire(t.Context(), 100)
		gone, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Acquire(gone, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting beyond its context: %v", err)
		}
		// Who gives up makes room for those behind.
		b.Release(50)
		impatient, leave := context.WithCancel(t.Context())
		go func() { _, _ = b.Acquire(impatient, 80) }()
		synctest.Wait()
		go func() { b.Release(acquire(t.Context(), 10)); order <- "behind" }()
		synctest.Wait()
		if len(order) != 0 {
			t.Fatal("granted out of turn")
		}
		leave()
		<-order
		b.Release(50)
		if b.used != 0 || b.waiting.len() != 0 {
			t.Errorf("%d bytes used and %d waiting in the end", b.used, b.waiting.len())
		}
	})
}

// Every append gives back what it was charged, whatever becomes of it.
func TestBudgetIsGivenBack(t *testing.T) {
	t.Parallel()
	log := &memoryLog{hold: true}
	host, p := open(t, log)
	send := func(batch []byte) {
		t.Helper()
		charged, err := host.Budget().Acquire(t.Context(), int64(len(batch)))
		if err != nil {
			t.Fatal(err)
		}
		a := request(batch, none)
		a.Charged = charged
		_ = p.Append(a, newOutcome())
	}
	send(idempotent(t, 1, 0, 0, "a"))
	if host.budget.used == 0 {
		t.Fatal("nothing is charged")
	}
	send(idempotent(t, 1, 0, 0, "a")) // duplicate
	send([]byte("rubbish"))           // refused
	send(idempotent(t, 1, 0, 9, "a")) // out of order
	log.commit(1, nil)
	if host.budget.used != 0 {
		t.Errorf("%d bytes are still charged", host.budget.used)
	}
	send(plain(t, "b"))
	log.commit(1, errors.New("disk"))
	if host.budget.used != 0 {
		t.Errorf("%d bytes are still charged after the store failed", host.budget.used)
	}
}

func TestFIFO(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var f fifo[int]
		var model []int
		for i := range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch op := rapid.IntRange(0, 6).Draw(t, "op"); {
			case op == 0 && len(model) > 0:
				if got := f.popBack(); got != model[len(model)-1] {
					t.Fatalf("popped %d from the back", got)
				}
				model = model[:len(model)-1]
			case op <= 2 && len(model) > 0:
				if got := f.pop(); got != model[0] {
					t.Fatalf("popped %d", got)
				}
				model = model[1:]
			case op == 3:
				odd := func(v int) bool { return v%2 == 1 }
				f.removeFunc(func(v *int) bool { return odd(*v) })
				var kept []int
				for _, v := range model {
					if !odd(v) {
						kept = append(kept, v)
					}
				}
				model = kept
			default:
				f.push(i)
				model = append(model, i)
			}
			if f.len() != len(model) {
				t.Fatalf("length %d, want %d", f.len(), len(model))
			}
			for i, want := range model {
				if got := *f.at(i); got != want {
					t.Fatalf("item %d is %d, want %d", i, got, want)
				}
			}
			if len(model) > 0 && (*f.front() != model[0] || *f.back() != model[len(model)-1]) {
				t.Fatal("front or back differ")
			}
		}
	})
}
