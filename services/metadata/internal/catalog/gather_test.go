package catalog

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func watched(etcd uint64, revisions ...int64) clientv3.WatchResponse {
	r := clientv3.WatchResponse{Header: &etcdserverpb.ResponseHeader{ClusterId: etcd}}
	for _, revision := range revisions {
		r.Events = append(r.Events, &clientv3.Event{Kv: &mvccpb.KeyValue{ModRevision: revision}})
	}
	return r
}

func TestGather(t *testing.T) {
	const etcd = 7
	tests := []struct {
		name    string
		batches []clientv3.WatchResponse
		ended   bool
		want    []int64
		err     error
		failed  bool
	}{
		{name: "one", batches: []clientv3.WatchResponse{watched(etcd, 1, 1, 2)}, want: []int64{1, 1, 2}},
		{name: "several", batches: []clientv3.WatchResponse{watched(etcd, 1), watched(etcd, 2, 2), watched(etcd, 3)}, want: []int64{1, 2, 2, 3}},
		{name: "delivered twice", batches: []clientv3.WatchResponse{watched(etcd, 1, 2), watched(etcd, 3), watched(etcd, 1, 2), watched(etcd, 3, 4)}, want: []int64{1, 2, 3, 4}},
		{name: "another etcd at once", batches: []clientv3.WatchResponse{watched(8, 1)}, err: errOther},
		{name: "another etcd later", batches: []clientv3.WatchResponse{watched(etcd, 1), watched(8, 2)}, want: []int64{1}, err: errOther},
		{name: "the end", batches: []clientv3.WatchResponse{watched(etcd, 1)}, ended: true, want: []int64{1}, failed: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			queue := make(chan clientv3.WatchResponse, len(test.batches))
			for _, b := range test.batches[1:] {
				queue <- b
			}
			if test.ended {
				close(queue)
			}
			events, err := gather(test.batches[0], true, queue, etcd)
			if test.err != nil && !errors.Is(err, test.err) || (err != nil) != (test.failed || test.err != nil) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if len(events) != len(test.want) {
				t.Fatalf("%d events, want %v", len(events), test.want)
			}
			for i, e := range events {
				if e.Kv.ModRevision != test.want[i] {
					t.Fatalf("event %d is of revision %d, want %v", i, e.Kv.ModRevision, test.want)
				}
			}
		})
	}
}
