package replication

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
	"github.com/runnel-mesh/runnel/services/internal/rules"
)

// Records are deleted once every member of the ISR has the log start written, though
// there is nothing else to send; then whoever of them leads next begins there. All is
// silent before and after.
func TestDeletedRecordsStayDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, 1, 1, 2, 3)
		m.fill(1, 0, all, 0, 9)
		m.converged(0, records(0, 0, 9)...)
		before := m.network.messages()
		time.Sleep(time.Minute)
		if after := m.network.messages(); after != before {
			t.Errorf("%d messages while nothing happens", after-before)
		}

		m.log(3, 0).hold(true)
		deleted := make(chan error, 1)
		go func() {
			_, err := m.partition(1, 0).DeleteRecords(t.Context(), 6, 0)
			deleted <- err
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		if b, err := m.partition(1, 0).Bounds(rules.NoEpoch); err != nil || b.LogStart != 6 {
			t.Fatalf("the leader begins at %d, %v", b.LogStart, err)
		}
		select {
		case err := <-deleted:
			t.Fatalf("answered with %v before a follower has it written", err)
		default:
		}
		m.log(3, 0).hold(false)
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		before = m.network.messages()
		time.Sleep(10 * time.Minute)
		if after := m.network.messages(); after != before {
			t.Errorf("%d messages after all is told", after-before)
		}
		for _, id := range []int{2, 3} {
			m.elect(0, nodeID(id))
			time.Sleep(3 * time.Second)
			if b, err := m.partition(nodeID(id), 0).Bounds(rules.NoEpoch); err != nil || b.LogStart != 6 {
				t.Errorf("as leader node %d begins at %d, %v", id, b.LogStart, err)
			}
		}
	})
}

// A deletion that not all have in time has an unknown outcome, and says why; it may be
// repeated. The end of the leadership ends it, too.
func TestDeletionIsOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := start(t, 1, 1, 2)
		m.fill(1, 0, all, 0, 9)
		m.network.setCut(address(1), true)
		remove := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := m.partition(1, 0).DeleteRecords(ctx, 6, 0)
			return err
		}
		if err := remove(); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_TIMED_OUT || !strings.Contains(err.Error(), "repeat") {
			t.Errorf("got %v", err)
		}
		m.network.setCut(address(1), false)
		if err := remove(); err != nil {
			t.Errorf("repeated: %v", err)
		}

		m.network.setCut(address(1), true)
		d, err := m.partition(1, 0).BeginDelete(8, 0)
		if err != nil {
			t.Fatal(err)
		}
		m.elect(0, 2)
		if err := d.Wait(t.Context()); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_NOT_LEADER {
			t.Errorf("after the end of the leadership: %v", err)
		}
		m.network.setCut(address(1), false)
	})
}
