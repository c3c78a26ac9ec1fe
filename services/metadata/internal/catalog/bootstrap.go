package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/runnel-mesh/runnel/gen/runnel/metadata/catalog/v1"
	"github.com/runnel-mesh/runnel/sdk/cluster"
)

// ErrNoCluster says that etcd holds no cluster although there was one.
var ErrNoCluster = errors.New("etcd holds no cluster")

// JoinCluster returns the id of the cluster under the prefix. If there is none it
// founds one, unless known says that the caller has belonged to one: then it
// returns [ErrNoCluster], since founding another would orphan all data.
func JoinCluster(ctx context.Context, client *clientv3.Client, l Layout, known bool) ([16]byte, error) {
	response, err := client.Get(ctx, l.Cluster())
	if err != nil {
		return [16]byte{}, fmt.Errorf("read cluster id: %w", err)
	}
	if len(response.Kvs) == 0 {
		if known {
			return [16]byte{}, ErrNoCluster
		}
		id := uuid.New()
		record := &catalogv1.ClusterRecord{ClusterId: id[:], Created: timestamppb.Now()}
		// Whoever comes first founds it; the others read what it wrote.
		txn, err := client.Txn(ctx).If(Absent(l.Cluster())).
			Then(Put(l.Cluster(), record)).
			Else(clientv3.OpGet(l.Cluster())).Commit()
		if err != nil {
			return [16]byte{}, fmt.Errorf("found cluster: %w", err)
		}
		if txn.Succeeded {
			return id, nil
		}
		response = (*clientv3.GetResponse)(txn.Responses[0].GetResponseRange())
	}
	record := &catalogv1.ClusterRecord{}
	if err := proto.Unmarshal(response.Kvs[0].Value, record); err != nil || len(record.GetClusterId()) != 16 {
		return [16]byte{}, fmt.Errorf("%w: %s", errRecord, l.Cluster())
	}
	return [16]byte(record.GetClusterId()), nil
}

// AllotNode returns a node id that was never allotted and under which no node is
// registered. It serves metadata nodes, which need one before there can be a
// controller; comparing the counter makes it unique without one. The id is lost
// if it is never used.
func AllotNode(ctx context.Context, client *clientv3.Client, l Layout) (cluster.NodeID, error) {
	for range 100 {
		response, err := client.Get(ctx, l.NodeCounter())
		if err != nil {
			return 0, fmt.Errorf("allot node id: %w", err)
		}
		next, revision := int64(1), int64(0)
		if len(response.Kvs) > 0 {
			record := &catalogv1.CounterRecord{}
			if err := proto.Unmarshal(response.Kvs[0].Value, record); err != nil {
				return 0, fmt.Errorf("%w: %s", errRecord, l.NodeCounter())
			}
			next, revision = max(next, record.GetNext()), response.Kvs[0].ModRevision
		}
		if next > math.MaxInt32 {
			return 0, errors.New("allot node id: all are used")
		}
		id := cluster.NodeID(next)
		txn, err := client.Txn(ctx).
			If(Unchanged(l.NodeCounter(), revision)).
			Then(Put(l.NodeCounter(), &catalogv1.CounterRecord{Next: next + 1}), clientv3.OpGet(l.Node(id), clientv3.WithKeysOnly())).
			Commit()
		if err != nil {
			return 0, fmt.Errorf("allot node id: %w", err)
		}
		// One that an operator chose is passed over.
		if txn.Succeeded && txn.Responses[1].GetResponseRange().GetCount() == 0 {
			return id, nil
		}
	}
	return 0, errors.New("allot node id: other nodes were always faster")
}
