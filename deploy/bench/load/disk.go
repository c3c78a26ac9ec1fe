package main

import (
	"context"
	"os"
	"time"
)

const (
	// diskRing is the size of the file that is written over and over.
	diskRing = 1 << 30
	// diskWrite is the most that one write takes.
	diskWrite = 4 << 20
)

// write is the simplest writer that there can be, for comparison: whatever of the
// targets' records is due goes to one file, of which no block is new, with a sync
// after each write. What it waits for is the disk and nothing else.
func write(ctx context.Context, s settings, m *meter) error {
	file, err := os.OpenFile(s.disk, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(s.disk)
	defer file.Close()
	buffer := make([]byte, diskWrite)
	for offset := int64(0); offset < diskRing; offset += diskWrite {
		if _, err := file.WriteAt(buffer, offset); err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return err
	}
	err = m.measure(ctx, func(ctx context.Context) error { return writeDue(ctx, s, m, file, buffer) })
	m.summary()
	return err
}

// writeDue writes what is due until ctx ends.
func writeDue(ctx context.Context, s settings, m *meter, file *os.File, buffer []byte) error {
	rate := 0.0
	for _, t := range s.targets {
		rate += t.rate
	}
	interval := float64(s.recordSize) / rate * float64(time.Second)
	start, tick := time.Now(), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	most := int64(diskWrite / s.recordSize)
	for sent, offset := int64(0), int64(0); ; {
		n := min(int64(float64(time.Since(start))/interval)-sent, most)
		if n <= 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			continue
		}
		bytes := n * int64(s.recordSize)
		m.sent(int(bytes))
		if offset+bytes > diskRing {
			offset = 0
		}
		if _, err := file.WriteAt(buffer[:bytes], offset); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		offset += bytes
		for i := range n {
			m.acked(start.Add(time.Duration(float64(sent+i)*interval)), s.recordSize, nil)
		}
		sent += n
		if ctx.Err() != nil {
			return nil
		}
	}
}
