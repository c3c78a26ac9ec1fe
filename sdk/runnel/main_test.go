package runnel

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func TestMain(m *testing.M) {
	if err := warmCodecs(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
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
