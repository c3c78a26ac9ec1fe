package metadata

import (
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	etcdDialTimeout = 5 * time.Second
	// etcdKeepAlive is how often an idle connection is tested, and how long an
	// answer may take: a dead endpoint is left before leases run out.
	etcdKeepAlive = 2 * time.Second
)

// DialEtcd returns a client of the etcd cluster with these endpoints, each
// host:port or a URL, for [Deps]. It does not wait for etcd to answer. The caller
// closes the client.
func DialEtcd(endpoints ...string) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		DialTimeout:          etcdDialTimeout,
		DialKeepAliveTime:    etcdKeepAlive,
		DialKeepAliveTimeout: etcdKeepAlive,
		// The service says itself what it waits for.
		Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	return client, nil
}
