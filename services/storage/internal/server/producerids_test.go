package server

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
	peerv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/peer/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
	"github.com/runnel-mesh/runnel/services/internal/rpcerr"
)

func TestInitProducerNeverRepeats(t *testing.T) {
	t.Parallel()
	h := start(t)
	var mu sync.Mutex
	seen := map[int64]bool{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 10 {
				res, err := h.client.InitProducer(t.Context(), &storagev1.InitProducerRequest{})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[res.GetProducerId()] {
					t.Errorf("producer id %d was given twice", res.GetProducerId())
				}
				seen[res.GetProducerId()] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	// 200 ids in blocks of 10, and one block ahead.
	if n := h.blocks.Load(); n < 20 || n > 22 {
		t.Errorf("%d blocks were asked for", n)
	}
}

func TestProducerIDsWithoutMetadata(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := NewProducerIDs()
		if _, err := ids.Next(t.Context()); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_METADATA_UNAVAILABLE {
			t.Errorf("before the start: %v", err)
		}
		down := errors.New("down")
		err := down
		first := int64(0)
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			_ = ids.Run(ctx, func(context.Context) (*peerv1.AllocateProducerIdsResponse, error) {
				first += 100
				return &peerv1.AllocateProducerIdsResponse{FirstProducerId: first, Count: 2}, err
			})
		}()
		synctest.Wait()
		if _, got := ids.Next(t.Context()); !errors.Is(got, down) {
			t.Errorf("without metadata: %v", got)
		}
		time.Sleep(time.Second)
		err = nil
		var got []int64
		for range 5 {
			id, err := ids.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, id)
		}
		for i := 1; i < len(got); i++ {
			if got[i] <= got[i-1] {
				t.Errorf("ids %v", got)
			}
		}
		cancel()
		<-stopped
		// What is left of the blocks is lost with the process; nothing waits for more.
		if _, err := ids.Next(t.Context()); rpcerr.ReasonOf(err) != errorsv1.Reason_REASON_METADATA_UNAVAILABLE {
			t.Errorf("after the end: %v", err)
		}
	})
}
