package recordbatch_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/runnel-mesh/runnel/sdk/recordbatch"
)

// compressed returns data in the plainest form of the codec.
func compressed(tb testing.TB, codec recordbatch.Codec, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch codec {
	case recordbatch.None:
		return data
	case recordbatch.Gzip:
		w = gzip.NewWriter(&b)
	case recordbatch.Snappy:
		return s2.EncodeSnappy(nil, data)
	case recordbatch.LZ4:
		w = lz4.NewWriter(&b)
	case recordbatch.Zstd:
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			tb.Fatal(err)
		}
		return e.EncodeAll(data, nil)
	}
	write(tb, w, data)
	return b.Bytes()
}

func write(tb testing.TB, w io.WriteCloser, data []byte) {
	tb.Helper()
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
}

// xerial frames data in blocks of a size, as snappy-java does with 32 KiB.
func xerial(data []byte, block int, version uint32, order binary.AppendByteOrder) []byte {
	b := []byte("\x82SNAPPY\x00")
	b = order.AppendUint32(b, version)
	b = order.AppendUint32(b, version)
	for len(data) > 0 {
		n := min(block, len(data))
		encoded := s2.EncodeSnappy(nil, data[:n])
		b = binary.BigEndian.AppendUint32(b, uint32(len(encoded)))
		b = append(b, encoded...)
		data = data[n:]
	}
	return b
}

type form struct {
	name  string
	codec recordbatch.Codec
	bytes []byte
}

// foreignForms returns data in forms that this package does not write, but
// others do or may.
func foreignForms(tb testing.TB, data []byte) []form {
	half := len(data) / 2
	forms := []form{
		{"gzip of two members", recordbatch.Gzip, append(compressed(tb, recordbatch.Gzip, data[:half]), compressed(tb, recordbatch.Gzip, data[half:])...)},
		{"snappy without framing", recordbatch.Snappy, s2.EncodeSnappy(nil, data)},
		{"snappy in blocks of 32 KiB", recordbatch.Snappy, xerial(data, 32<<10, 1, binary.BigEndian)},
		{"snappy in blocks of 100 bytes", recordbatch.Snappy, xerial(data, 100, 1, binary.BigEndian)},
		{"snappy in one block", recordbatch.Snappy, xerial(data, 1<<30, 1, binary.BigEndian)},
		{"snappy with versions in the wrong byte order", recordbatch.Snappy, xerial(data, 32<<10, 1, binary.LittleEndian)},
		{"lz4 of two frames", recordbatch.LZ4, append(compressed(tb, recordbatch.LZ4, data[:half]), compressed(tb, recordbatch.LZ4, data[half:])...)},
		{"zstd of two frames", recordbatch.Zstd, append(compressed(tb, recordbatch.Zstd, data[:half]), compressed(tb, recordbatch.Zstd, data[half:])...)},
		{"zstd of a small and a large frame", recordbatch.Zstd, append(compressed(tb, recordbatch.Zstd, data[:1]), compressed(tb, recordbatch.Zstd, data[1:])...)},
		{"zstd after a skippable frame", recordbatch.Zstd, append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), compressed(tb, recordbatch.Zstd, data)...)},
	}
	var b bytes.Buffer
	g, err := stdgzip.NewWriterLevel(&b, stdgzip.BestCompression)
	if err != nil {
		tb.Fatal(err)
	}
	g.Name, g.Comment = "name", "comment"
	write(tb, g, data)
	forms = append(forms, form{"gzip with a name", recordbatch.Gzip, bytes.Clone(b.Bytes())})

	for _, options := range [][]lz4.Option{
		{lz4.BlockSizeOption(lz4.Block4Mb), lz4.BlockChecksumOption(true), lz4.ChecksumOption(true)},
		{lz4.BlockSizeOption(lz4.Block64Kb), lz4.SizeOption(uint64(len(data)))},
		{lz4.CompressionLevelOption(lz4.Level9)},
	} {
		b.Reset()
		w := lz4.NewWriter(&b)
		if err := w.Apply(options...); err != nil {
			tb.Fatal(err)
		}
		write(tb, w, data)
		forms = append(forms, form{fmt.Sprint("lz4 ", options), recordbatch.LZ4, bytes.Clone(b.Bytes())})
	}

	// Streams do not say what they open to, and have the window that they like.
	for _, window := range []int{1 << 10, 8 << 20, 128 << 20} {
		b.Reset()
		z, err := zstd.NewWriter(&b, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := z.Write(data[:half]); err != nil {
			tb.Fatal(err)
		}
		if err := z.Flush(); err != nil {
			tb.Fatal(err)
		}
		write(tb, z, data[half:])
		forms = append(forms, form{fmt.Sprintf("zstd stream with a window of %d", window), recordbatch.Zstd, bytes.Clone(b.Bytes())})
	}
	return forms
}

func TestForeignFormsAreRead(t *testing.T) {
	for _, n := range []int{1, 10, 5_000} {
		data := plainRecords(n)
		want, err := collect(t, encodeBatch(recordbatch.None, n, data, nil), recordbatch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range foreignForms(t, data) {
			b := encodeBatch(form.codec, n, form.bytes, nil)
			if _, err := recordbatch.VerifyRecords(b, recordbatch.Limits{}); err != nil {
				t.Fatalf("%s, %d records: %v", form.name, n, err)
			}
			// Exactly what it takes is enough.
			got, err := collect(t, b, recordbatch.Limits{MaxBytes: len(data)})
			if err != nil {
				t.Fatalf("%s, %d records: %v", form.name, n, err)
			}
			if len(got) != n || !sameRecord(got[n-1], want[n-1]) || !sameRecord(got[n/2], want[n/2]) {
				t.Fatalf("%s, %d records: read wrong", form.name, n)
			}
			_, err = collect(t, b, recordbatch.Limits{MaxBytes: len(data) - 1})
			wantError(t, err, recordbatch.ErrTooLarge, "records")
			_, err = recordbatch.VerifyRecords(b, recordbatch.Limits{MaxBytes: len(data) - 1})
			wantError(t, err, recordbatch.ErrTooLarge, "records")
		}
	}
}

// TestOthersReadOurForms checks what the readers of other clients rest on.
func TestOthersReadOurForms(t *testing.T) {
	var builder recordbatch.Builder
	values := logLines(2000)
	plain := build(t, &builder, values, recordbatch.WithoutProducer(recordbatch.None))[recordbatch.HeaderSize:]
	payload := func(codec recordbatch.Codec) []byte {
		return build(t, &builder, values, recordbatch.WithoutProducer(codec))[recordbatch.HeaderSize:]
	}

	g, err := stdgzip.NewReader(bytes.NewReader(payload(recordbatch.Gzip)))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(g); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("gzip: %v", err)
	}

	// Snappy: the magic, version 1 twice, then blocks.
	b := payload(recordbatch.Snappy)
	if !bytes.HasPrefix(b, []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")) {
		t.Fatalf("snappy begins with %x", b[:16])
	}
	var got []byte
	for b = b[16:]; len(b) > 0; {
		n := binary.BigEndian.Uint32(b)
		block, err := s2.Decode(nil, b[4:4+n])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, block...)
		b = b[4+n:]
	}
	if !bytes.Equal(got, plain) {
		t.Error("snappy: contents differ")
	}

	// LZ4: what Java's reader insists on is version 1, independent blocks and no
	// reserved bit or dictionary.
	b = payload(recordbatch.LZ4)
	if binary.LittleEndian.Uint32(b) != 0x184D2204 || b[4]&0xe3 != 0x60 || b[5] != 4<<4 {
		t.Errorf("lz4 begins with %x", b[:6])
	}
	if got, err := io.ReadAll(lz4.NewReader(bytes.NewReader(b))); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("lz4: %v", err)
	}

	b = payload(recordbatch.Zstd)
	var header zstd.Header
	if err := header.Decode(b); err != nil || !header.HasFCS || header.FrameContentSize != uint64(len(plain)) || header.DictionaryID != 0 {
		t.Errorf("zstd header %+v: %v", header, err)
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	if got, err := z.DecodeAll(b, nil); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("zstd: %v", err)
	}
}

// TestLinkedLZ4BlocksAreRead reads a frame whose second block copies from the
// first, by hand, since no encoder at hand writes such.
func TestLinkedLZ4BlocksAreRead(t *testing.T) {
	data := deltas(0)
	frame := []byte{0x04, 0x22, 0x4d, 0x18, 0x40, 0x40, 0}
	frame = binary.LittleEndian.AppendUint32(frame, uint32(len(data))|1<<31)
	frame = append(frame, data...)
	// A copy of 8 bytes from len(data) back, then the literals that end a block.
	second := append([]byte{0x04, byte(len(data)), 0, byte((len(data) - 8) << 4)}, data[8:]...)
	frame = binary.LittleEndian.AppendUint32(frame, uint32(len(second)))
	frame = append(frame, second...)
	frame = append(frame, 0, 0, 0, 0)
	// The same record twice has the same offset twice: that it is the second
	// that is at fault shows that the block was read right.
	_, err := collect(t, encodeBatch(recordbatch.LZ4, 2, frame, nil), recordbatch.Limits{})
	wantError(t, err, recordbatch.ErrCorrupt, "records[1].offsetDelta")
}

func TestDamagedCompressionIsRefused(t *testing.T) {
	data := plainRecords(100)
	for _, codec := range codecs()[1:] {
		good := compressed(t, codec, data)
		for name, bad := range map[string][]byte{
			"nothing":    {},
			"one byte":   good[:1],
			"cut short":  good[:len(good)-1],
			"half":       good[:len(good)/2],
			"more after": append(bytes.Clone(good), "garbage"...),
			"noise":      bytes.Repeat([]byte{0xa5, 0x5a, 0x0f}, 50),
			"zeros":      make([]byte, 50),
		} {
			b := encodeBatch(codec, 100, bad, nil)
			if _, err := collect(t, b, recordbatch.Limits{}); !errors.Is(err, recordbatch.ErrCorrupt) {
				t.Errorf("%v, %s: %v", codec, name, err)
			}
			if _, err := recordbatch.VerifyRecords(b, recordbatch.Limits{}); !errors.Is(err, recordbatch.ErrCorrupt) {
				t.Errorf("%v, %s: %v", codec, name, err)
			}
		}
		// The pools must have survived.
		if _, err := collect(t, encodeBatch(codec, 100, good, nil), recordbatch.Limits{}); err != nil {
			t.Errorf("%v after damage: %v", codec, err)
		}
	}
}

// bytesAllocated returns what f allocates: the work that a bomb can cause is
// bounded when the memory is.
func bytesAllocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// zstdStream returns zstd that does not say what it opens to.
func zstdStream(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data[:1]); err != nil {
		t.Fatal(err)
	}
	if err := z.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, z, data[1:])
	return b.Bytes()
}

func TestBombsAreRefusedWithinTheLimits(t *testing.T) {
	const opened, limit = 16 << 20, 1 << 20
	zeros := make([]byte, opened)
	zstdBomb := compressed(t, recordbatch.Zstd, zeros)
	bombs := []form{
		{"gzip", recordbatch.Gzip, compressed(t, recordbatch.Gzip, zeros)},
		{"gzip that lies about its size", recordbatch.Gzip, func() []byte {
			b := compressed(t, recordbatch.Gzip, zeros)
			binary.LittleEndian.PutUint32(b[len(b)-4:], 100)
			return b
		}()},
		{"lz4", recordbatch.LZ4, compressed(t, recordbatch.LZ4, zeros)},
		{"snappy", recordbatch.Snappy, compressed(t, recordbatch.Snappy, zeros)},
		{"snappy in blocks", recordbatch.Snappy, xerial(zeros, 64<<10, 1, binary.BigEndian)},
		{"zstd", recordbatch.Zstd, zstdBomb},
		{"zstd stream", recordbatch.Zstd, zstdStream(t, zeros)},
		{"zstd in many frames", recordbatch.Zstd, bytes.Repeat(compressed(t, recordbatch.Zstd, zeros[:128<<10]), 128)},
	}
	zeros = nil
	for _, bomb := range bombs {
		for _, limits := range []recordbatch.Limits{{MaxBytes: limit}, {MaxRatio: 4}, {MaxBytes: 100}, {MaxBytes: 1}} {
			b := encodeBatch(bomb.codec, 10, bomb.bytes, nil)
			read := func() {
				_, err := recordbatch.Decode(b, limits)
				wantError(t, err, recordbatch.ErrTooLarge, "records")
			}
			read() // the pools fill up
			allowed := uint64(max(limits.MaxBytes, limits.MaxRatio*len(bomb.bytes), 64<<10))
			// Twice for growing, and up to 4 MiB for the state of a decoder.
			if allocated := bytesAllocated(read); allocated > 4*allowed+(5<<20) {
				t.Errorf("%s of %d bytes with %+v: %d bytes allocated", bomb.name, len(bomb.bytes), limits, allocated)
			}
		}
	}
}

func TestClaimsAreNotBelieved(t *testing.T) {
	// Few bytes that claim to hold 60 MB, which the limits would allow.
	const claim = 60 << 20
	snappy := binary.AppendUvarint(nil, claim)
	snappy = append(snappy, 0, 'x')
	zstdFrame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0} // single segment, size of 4 bytes
	zstdFrame = binary.LittleEndian.AppendUint32(zstdFrame, claim)
	zstdFrame = append(zstdFrame, 0x09, 0, 0, 'x') // last raw block of 1 byte
	second := append(compressed(t, recordbatch.Zstd, []byte("first")), zstdFrame...)
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x09, 0, 0, 'x'} // window of 128 MiB
	lz4Frame := binary.LittleEndian.AppendUint64([]byte{0x04, 0x22, 0x4d, 0x18, 0x68, 0x70}, claim)
	lz4Frame = append(lz4Frame, 0, 1, 0, 0, 0x80, 'x', 0, 0, 0, 0)
	// Raw blocks hold more than the frame says, before one that is not raw.
	lz4Short := binary.LittleEndian.AppendUint64([]byte{0x04, 0x22, 0x4d, 0x18, 0x68, 0x70}, 1)
	lz4Short = append(lz4Short, 0, 3, 0, 0, 0x80, 'x', 'x', 'x', 2, 0, 0, 0, 0x10, 'x', 0, 0, 0, 0)
	gzipped := compressed(t, recordbatch.Gzip, []byte("x"))
	binary.LittleEndian.PutUint32(gzipped[len(gzipped)-4:], claim)
	xerialBlock := append([]byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x7f\xff\xff\xff"), snappy...)
	for _, c := range []form{
		{"snappy", recordbatch.Snappy, snappy},
		{"snappy block", recordbatch.Snappy, xerialBlock},
		{"zstd", recordbatch.Zstd, zstdFrame},
		{"second frame of zstd", recordbatch.Zstd, second},
		{"window of zstd", recordbatch.Zstd, window},
		{"lz4", recordbatch.LZ4, lz4Frame},
		{"lz4 beyond its size", recordbatch.LZ4, lz4Short},
		{"gzip", recordbatch.Gzip, gzipped},
	} {
		b := encodeBatch(c.codec, 1, c.bytes, nil)
		read := func() {
			if _, err := recordbatch.Decode(b, recordbatch.Limits{}); !errors.Is(err, recordbatch.ErrCorrupt) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		read()
		if allocated := bytesAllocated(read); allocated > 5<<20 {
			t.Errorf("%s: %d bytes allocated for a batch of %d", c.name, allocated, len(b))
		}
	}
}

func TestRatioLimitSparesSmallBatches(t *testing.T) {
	var builder recordbatch.Builder
	line := []byte(logLine(1))
	for _, codec := range codecs()[1:] {
		// 60 KB of equal records: a ratio far beyond 2, in good faith.
		small := build(t, &builder, bytesRepeat(line, 60_000/len(line)-40), recordbatch.WithoutProducer(codec))
		if _, err := collect(t, small, recordbatch.Limits{MaxRatio: 2}); err != nil {
			t.Errorf("%v: %v", codec, err)
		}
		large := build(t, &builder, bytesRepeat(line, 200_000/len(line)), recordbatch.WithoutProducer(codec))
		_, err := collect(t, large, recordbatch.Limits{MaxRatio: 2})
		wantError(t, err, recordbatch.ErrTooLarge, "records")
		for _, l := range []recordbatch.Limits{{}, {MaxRatio: 100_000}, {MaxBytes: math.MaxInt, MaxRatio: math.MaxInt}, {MaxBytes: -1, MaxRatio: -1}} {
			if _, err := collect(t, large, l); err != nil {
				t.Errorf("%v with %+v: %v", codec, l, err)
			}
		}
	}
	// An uncompressed batch is in memory already.
	plain := build(t, &builder, logLines(1000), recordbatch.WithoutProducer(recordbatch.None))
	if _, err := collect(t, plain, recordbatch.Limits{MaxBytes: 1, MaxRatio: 1}); err != nil {
		t.Error(err)
	}
}

func bytesRepeat(b []byte, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}
