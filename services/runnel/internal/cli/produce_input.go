package cli

import (
	"context"
	"errors"
)

// lineBatch is what the reader hands to the sender at once: handing over lines
// one by one would cost more than sending them.
type lineBatch struct {
	lines []numberedLine
	// bytes counts what the lines took of the input.
	bytes int64
	// err ends the input; io.EOF at its regular end.
	err error
}

// numberedLine is a line, or the reason why it cannot be one.
type numberedLine struct {
	text   []byte
	number int64
	err    error
}

const maxBatchLines = 1024

// readBatches reads lines in a goroutine of its own, so that an interrupt does
// not have to wait for the input. It closes the channel after the batch whose
// err is set, or when ctx ends, which the receiver brings about after its last
// receive.
//
// The goroutine ends with the input or with ctx; a read that blocks holds it
// until the process ends, since a read from a terminal or a pipe cannot be
// called off.
func readBatches(ctx context.Context, lines *lineReader) <-chan lineBatch {
	batches := make(chan lineBatch)
	go func() {
		defer close(batches)
		for {
			batch := readBatch(lines)
			select {
			case batches <- batch:
			case <-ctx.Done():
				return
			}
			if batch.err != nil {
				return
			}
		}
	}()
	return batches
}

// readBatch waits for one line and adds those that are there already.
func readBatch(lines *lineReader) lineBatch {
	var batch lineBatch
	for {
		text, number, err := lines.next()
		tooLong, isTooLong := errors.AsType[*lineTooLongError](err)
		switch {
		case isTooLong:
			batch.bytes += tooLong.bytes + 1
		case err != nil:
			batch.err = err
			return batch
		default:
			batch.bytes += int64(len(text)) + 1
		}
		batch.lines = append(batch.lines, numberedLine{text, number, err})
		if len(batch.lines) == maxBatchLines || !lines.ready() {
			return batch
		}
	}
}

// receive returns the next batch. When ctx ends, which must not be the reader's
// context, it returns what the reader has ready as the last batch.
func receive(ctx context.Context, batches <-chan lineBatch) lineBatch {
	select {
	case batch := <-batches:
		return batch
	case <-ctx.Done():
	}
	var last lineBatch
	select {
	case last = <-batches:
	default:
	}
	if last.err == nil {
		last.err = ctx.Err()
	}
	return last
}
