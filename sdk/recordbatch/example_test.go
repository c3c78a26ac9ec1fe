package recordbatch_test

import (
	"errors"
	"fmt"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

func Example() {
	var b recordbatch.Builder
	for i, line := range []string{"first line", "second line\r", ""} {
		if err := b.Append([]byte("host-1"), []byte(line), nil, 1_700_000_000_000+int64(i)); err != nil {
			fmt.Println(err)
			return
		}
	}
	batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.Zstd))
	if err != nil {
		fmt.Println(err)
		return
	}

	// The leader verifies the batch, assigns its place in the log, and never
	// opens it.
	if _, err := recordbatch.VerifyProduced(batch); err != nil {
		fmt.Println(err)
		return
	}
	recordbatch.Assign(batch, 42, 7)

	for record, err := range recordbatch.Records(batch, recordbatch.Limits{}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%d %d %s %q\n", record.Offset, record.Timestamp, record.Key, record.Value)
	}
	// Output:
	// 42 1700000000000 host-1 "first line"
	// 43 1700000000001 host-1 "second line\r"
	// 44 1700000000002 host-1 ""
}

func ExampleError() {
	var b recordbatch.Builder
	if err := b.Append(nil, []byte("value"), nil, recordbatch.NoTimestamp); err != nil {
		fmt.Println(err)
		return
	}
	batch, err := b.Build(recordbatch.WithoutProducer(recordbatch.None))
	if err != nil {
		fmt.Println(err)
		return
	}
	batch[60]++ // the number of records

	_, err = recordbatch.Verify(batch)
	fmt.Println(err)
	var fault *recordbatch.Error
	fmt.Println(errors.Is(err, recordbatch.ErrCorrupt), errors.As(err, &fault), fault.Field)
	// Output:
	// corrupt record batch: recordCount is 2, must be 0 to lastOffsetDelta+1 (1)
	// true true recordCount
}
