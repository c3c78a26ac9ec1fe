package runnel_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
	"github.com/runnel-mesh/runnel/services/allinone"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if err := warmCodecs(); err != nil {
		return fail(err)
	}
	code := m.Run()
	if shared.stop != nil {
		if err := shared.stop(); err != nil {
			return fail(err)
		}
	}
	if err := os.RemoveAll(shared.dir); err != nil {
		return fail(err)
	}
	if err := goleak.Find(); err != nil && code == 0 {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// shared is a whole cluster in this process, for those tests that want one.
var shared struct {
	once    sync.Once
	dir     string
	address string
	stop    func() error
}

// bootstrap returns the address of the real cluster, which it starts at its
// first call.
func bootstrap() string {
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "runnel-sdk-")
		if err != nil {
			panic(err)
		}
		shared.dir = dir
		config := allinone.DefaultConfig()
		config.DataDir, config.Listen = dir, "127.0.0.1:0"
		cluster, stop, err := allinone.Start(context.Background(), config)
		if err != nil {
			panic(err)
		}
		shared.address, shared.stop = cluster.Address(), stop
	})
	return shared.address
}

// warmCodecs makes the codecs build their shared state, which has channels, here
// and not in the synctest bubble of the test that comes first: the others could
// not use it then.
func warmCodecs() error {
	for codec := recordbatch.None; codec <= recordbatch.Zstd; codec++ {
		var b recordbatch.Builder
		if err := b.Append(nil, make([]byte, 1000), nil, 0); err != nil {
			return err
		}
		batch, err := b.Build(recordbatch.WithoutProducer(codec))
		if err != nil {
			return err
		}
		if _, err := recordbatch.Decode(batch, recordbatch.Limits{}); err != nil {
			return err
		}
	}
	return nil
}
