package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestReadOffsets(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "[]",
		"orders,0,1500\norders,1,0\n":            "[orders-0 1500 orders-1 0]",
		"a.b_c-D,2147483647,9223372036854775807": "[a.b_c-D-2147483647 9223372036854775807]",
		"a,0,1\r\n\r\n\"b\",0,2\r\n":             "[a-0 1 b-0 2]",
	} {
		offsets, err := readOffsets(strings.NewReader(text))
		var got []string
		for _, o := range offsets {
			got = append(got, fmt.Sprint(o.TopicPartition, o.offset))
		}
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: got %v, %v; want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"orders,0":                    `line 1: has 2 fields and must have 3, such as orders,0,1500`,
		"a,0,1\nbilling,orders,0,5\n": `line 2: has 4 fields and must have 3, such as orders,0,1500`,
		"topic,partition,offset\n":    `line 1: partition "partition" is not a whole number from 0 up`,
		",0,1":                        `line 1: "" cannot be the name of a topic`,
		"my topic,0,1":                `line 1: "my topic" cannot be the name of a topic`,
		"a, 0,1":                      `line 1: partition " 0" is not a whole number from 0 up`,
		"a,-1,1":                      `line 1: partition "-1" is not a whole number from 0 up`,
		"a,2147483648,1":              `line 1: partition "2147483648" is not a whole number from 0 up`,
		"a,0,-1":                      `line 1: offset "-1" is not a whole number from 0 up`,
		"a,0,1.5":                     `line 1: offset "1.5" is not a whole number from 0 up`,
		"a,0,9223372036854775808":     `line 1: offset "9223372036854775808" is not a whole number from 0 up`,
		"a,0,1\n\na,0,2\n":            `line 3: partition 0 of topic "a" stands in line 1 already`,
		"a,0,1\na\"b,0,2\n":           `line 2: bare " in non-quoted-field`,
		"a,0,1\n\"b,0,2\n":            `line 2: extraneous or missing " in quoted-field`,
	} {
		if offsets, err := readOffsets(strings.NewReader(text)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, %v; want %s", text, offsets, err, want)
		}
	}
	var many strings.Builder
	for i := range maxFileOffsets + 1 {
		fmt.Fprintf(&many, "a,%d,1\n", i)
	}
	if _, err := readOffsets(strings.NewReader(many.String())); err == nil || err.Error() != "line 10001: more than 10000 partitions; split the file" {
		t.Errorf("too many lines: %v", err)
	}
}

// FuzzReadOffsets: what is read is written so that it is read again, and nothing that
// could not be an offset of a partition gets through.
func FuzzReadOffsets(f *testing.F) {
	for _, text := range []string{"", "orders,0,1500\n", "a,0,1\r\n\"b\",2,3", "a,0", "\"a\n,0,1", "a,0,1\na,0,1", "\ufeffa,1,1"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		offsets, err := readOffsets(bytes.NewReader(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") {
				t.Errorf("the error names no line: %v", err)
			}
			return
		}
		for _, o := range offsets {
			if o.Topic == "" || o.Partition < 0 || o.offset < 0 {
				t.Errorf("read %+v", o)
			}
		}
		var written bytes.Buffer
		if err := writeOffsets(&written, offsets); err != nil {
			t.Fatal(err)
		}
		again, err := readOffsets(&written)
		if err != nil || !slices.Equal(again, offsets) {
			t.Errorf("read %v, then %v, %v", offsets, again, err)
		}
	})
}

func TestExport(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "offsets.csv")
	if err := os.WriteFile(name, []byte("what was there before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	given, err := createExport(name)
	if err != nil {
		t.Fatal(err)
	}
	given.discard()
	if text, err := os.ReadFile(name); err != nil || string(text) != "what was there before\n" {
		t.Errorf("after an export that was given up: %q, %v", text, err)
	}
	offsets, err := readOffsets(strings.NewReader("a,0,1\nb,7,2\n"))
	if err != nil {
		t.Fatal(err)
	}
	given, err = createExport(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := given.keep(offsets); err != nil {
		t.Fatal(err)
	}
	given.discard()
	if text, err := os.ReadFile(name); err != nil || string(text) != "a,0,1\nb,7,2\n" {
		t.Errorf("exported %q, %v", text, err)
	}
	if read, err := readOffsetsFile(name); err != nil || !slices.Equal(read, offsets) {
		t.Errorf("read %v, %v", read, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left over: %v", left)
	}
}
