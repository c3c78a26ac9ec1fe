package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// readLines returns all lines that the reader hands out, with "!" for one that
// was too long, and the error at which it stopped.
func readLines(r *lineReader) (lines []string, err error) {
	for expected := int64(1); ; expected++ {
		line, number, err := r.next()
		var tooLong *lineTooLongError
		switch {
		case err == nil:
			lines = append(lines, string(line))
		case errors.As(err, &tooLong):
			lines = append(lines, fmt.Sprintf("!%d", tooLong.bytes))
		case errors.Is(err, io.EOF):
			return lines, nil
		default:
			return lines, err
		}
		if number != expected {
			return lines, fmt.Errorf("line %d has the number %d", expected, number)
		}
	}
}

var readers = map[string]func(io.Reader) io.Reader{
	"whole":         func(r io.Reader) io.Reader { return r },
	"one byte":      iotest.OneByteReader,
	"half":          iotest.HalfReader,
	"data with end": iotest.DataErrReader,
}

func TestLines(t *testing.T) {
	const limit = 150 << 10
	long := strings.Repeat("x", lineBlockBytes+1000)
	tests := []struct {
		name, input string
		want        []string
	}{
		{"nothing", "", nil},
		{"one line", "a\n", []string{"a"}},
		{"no line feed at the end", "a\nb", []string{"a", "b"}},
		{"empty line", "\n", []string{""}},
		{"empty lines", "\n\na\n\n", []string{"", "", "a", ""}},
		{"carriage returns are data", "a\r\nb\r\r\n\r", []string{"a\r", "b\r\r", "\r"}},
		{"NUL and bytes that are not UTF-8", "\x00\xff\n\x80\x00", []string{"\x00\xff", "\x80\x00"}},
		{"other line separators are data", "a\u2028b\u0085c\vd\f\n", []string{"a\u2028b\u0085c\vd\f"}},
		{"longer than a block", long + "\n" + long + "y", []string{long, long + "y"}},
		{"as long as a block", long[:lineBlockBytes] + "\nb\n", []string{long[:lineBlockBytes], "b"}},
		{"as long as allowed", strings.Repeat("z", limit) + "\nb", []string{strings.Repeat("z", limit), "b"}},
		{"too long", "a\n" + strings.Repeat("z", limit+1) + "\nb", []string{"a", fmt.Sprintf("!%d", limit+1), "b"}},
		{"much too long", strings.Repeat("z", 5*limit) + "\nb\n", []string{fmt.Sprintf("!%d", 5*limit), "b"}},
		{"too long at the end", "a\n" + strings.Repeat("z", 2*limit), []string{"a", fmt.Sprintf("!%d", 2*limit)}},
	}
	for _, test := range tests {
		for how, wrap := range readers {
			if how == "one byte" && len(test.input) > 2*limit {
				continue // takes seconds, and the others come to the same places
			}
			t.Run(test.name+"/"+how, func(t *testing.T) {
				got, err := readLines(newLineReader(wrap(strings.NewReader(test.input)), limit))
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("got %d lines %.100q, want %d lines %.100q", len(got), got, len(test.want), test.want)
				}
			})
		}
	}
}

func TestLinesMayBeKept(t *testing.T) {
	var input bytes.Buffer
	var want []string
	for i := range 100_000 {
		want = append(want, fmt.Sprintf("line %d", i))
		fmt.Fprintln(&input, want[i])
	}
	reader := newLineReader(&input, 1<<20)
	var kept [][]byte
	for {
		line, _, err := reader.next()
		if err != nil {
			break
		}
		kept = append(kept, line)
		_ = append(line, "must not reach the next line"...)
	}
	for i, line := range kept {
		if string(line) != want[i] {
			t.Fatalf("line %d has become %q", i+1, line)
		}
	}
	if len(kept) != len(want) {
		t.Errorf("got %d lines, want %d", len(kept), len(want))
	}
}

func TestLinesOfABrokenSource(t *testing.T) {
	broken := errors.New("the cable is cut")
	source := io.MultiReader(strings.NewReader("a\nb\nnot a who"), iotest.ErrReader(broken))
	got, err := readLines(newLineReader(source, 100))
	if !errors.Is(err, broken) {
		t.Errorf("got the error %v, want %v", err, broken)
	}
	if want := []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q: a part of a line is not a record", got, want)
	}
}

type idleReader struct{}

func (idleReader) Read([]byte) (int, error) { return 0, nil }

func TestLinesOfASourceWithoutProgress(t *testing.T) {
	if _, _, err := newLineReader(idleReader{}, 100).next(); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v, want %v", err, io.ErrNoProgress)
	}
}

func TestLinesAreReadyWithoutReading(t *testing.T) {
	source, sink := io.Pipe()
	reader := newLineReader(source, 100)
	go func() {
		_, _ = io.WriteString(sink, "a\nb\nc")
	}()
	defer source.Close()
	if reader.ready() {
		t.Error("ready before anything was read")
	}
	var got []string
	for {
		line, _, err := reader.next()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(line))
		if !reader.ready() {
			break
		}
	}
	if want := []string{"a", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q without a second read, want %q", got, want)
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\r\nb\n\nc"), 2)
	f.Add([]byte("\n"), 0)
	f.Fuzz(func(t *testing.T, input []byte, limit int) {
		limit = min(max(limit, 0), 1<<20)
		want := strings.Split(string(input), "\n")
		if want[len(want)-1] == "" {
			want = want[:len(want)-1]
		}
		for i, line := range want {
			if len(line) > limit {
				want[i] = fmt.Sprintf("!%d", len(line))
			}
		}
		for how, wrap := range readers {
			got, err := readLines(newLineReader(wrap(bytes.NewReader(input)), limit))
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: got %q and %v, want %q", how, got, err, want)
			}
		}
	})
}

func BenchmarkLines(b *testing.B) {
	input := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 1_000_000)
	b.SetBytes(int64(len(input)))
	for b.Loop() {
		reader := newLineReader(bytes.NewReader(input), 1<<20)
		for {
			if _, _, err := reader.next(); err != nil {
				break
			}
		}
	}
}
