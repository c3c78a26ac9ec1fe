package cli

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/runnel-mesh/runnel/sdk/runnel"
)

// maxFileOffsets is how many partitions one reset may move.
const maxFileOffsets = 10_000

// fileOffset is a line of an offsets file: topic,partition,offset.
type fileOffset struct {
	runnel.TopicPartition
	offset int64
}

// readOffsets reads an offsets file. Errors name the line, and what is wrong with it.
func readOffsets(in io.Reader) ([]fileOffset, error) {
	lines := csv.NewReader(in)
	lines.FieldsPerRecord = -1
	lines.ReuseRecord = true
	var offsets []fileOffset
	first := make(map[runnel.TopicPartition]int)
	for {
		fields, err := lines.Read()
		if errors.Is(err, io.EOF) {
			return offsets, nil
		}
		if syntax, ok := errors.AsType[*csv.ParseError](err); ok {
			return nil, fmt.Errorf("line %d: %w", syntax.Line, syntax.Err)
		}
		if err != nil {
			return nil, err
		}
		line, _ := lines.FieldPos(0)
		o, err := parseFileOffset(fields)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		if before, twice := first[o.TopicPartition]; twice {
			return nil, fmt.Errorf("line %d: partition %d of topic %q stands in line %d already", line, o.Partition, o.Topic, before)
		}
		if len(offsets) == maxFileOffsets {
			return nil, fmt.Errorf("line %d: more than %d partitions; split the file", line, maxFileOffsets)
		}
		first[o.TopicPartition] = line
		offsets = append(offsets, o)
	}
}

func parseFileOffset(fields []string) (fileOffset, error) {
	if len(fields) != 3 {
		return fileOffset{}, fmt.Errorf("has %s and must have 3, such as orders,0,1500", plural(int64(len(fields)), "field"))
	}
	if topic := fields[0]; topic == "" || strings.ContainsFunc(topic, notInTopicNames) {
		return fileOffset{}, fmt.Errorf("%q cannot be the name of a topic", topic)
	}
	partition, err := strconv.ParseInt(fields[1], 10, 32)
	if err != nil || partition < 0 {
		return fileOffset{}, fmt.Errorf("partition %q is not a whole number from 0 up", fields[1])
	}
	offset, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || offset < 0 {
		return fileOffset{}, fmt.Errorf("offset %q is not a whole number from 0 up", fields[2])
	}
	return fileOffset{runnel.TopicPartition{Topic: fields[0], Partition: int32(partition)}, offset}, nil
}

// notInTopicNames reports whether no topic has a character in its name.
func notInTopicNames(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '_', r == '-':
		return false
	}
	return true
}

// maxFileBytes is more than maxFileOffsets lines can take.
const maxFileBytes = 8 << 20

// readOffsetsFile reads the offsets file of that name, which has at least one line.
func readOffsetsFile(name string) ([]fileOffset, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, failf("cannot read the offsets: %v", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return nil, failf("cannot read the offsets: %v", err)
	}
	if len(text) > maxFileBytes {
		return nil, failf("%s: is larger than %d bytes; split it", name, maxFileBytes)
	}
	offsets, err := readOffsets(bytes.NewReader(text))
	if err != nil {
		return nil, failf("%s: %v", name, err)
	}
	if len(offsets) == 0 {
		return nil, failf("%s: there is no line; write one for each partition, such as orders,0,1500", name)
	}
	return offsets, nil
}

// writeOffsets writes an offsets file, which readOffsets reads.
func writeOffsets(out io.Writer, offsets []fileOffset) error {
	lines := csv.NewWriter(out)
	for _, o := range offsets {
		if err := lines.Write([]string{o.Topic, strconv.FormatInt(int64(o.Partition), 10), strconv.FormatInt(o.offset, 10)}); err != nil {
			return err
		}
	}
	lines.Flush()
	return lines.Error()
}

// exportFile is an offsets file that appears once it is whole.
type exportFile struct {
	name string
	file *os.File
}

// createExport makes sure that the file can be written before anything else is done.
func createExport(name string) (*exportFile, error) {
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		if path, ok := errors.AsType[*os.PathError](err); ok {
			err = path.Err // The path is that of a temporary file.
		}
		return nil, failf("cannot export the offsets to %s: %v", name, err)
	}
	return &exportFile{name, file}, nil
}

// keep writes the offsets and gives the file its name.
func (e *exportFile) keep(offsets []fileOffset) error {
	err := writeOffsets(e.file, offsets)
	if err == nil {
		err = e.file.Chmod(0o644)
	}
	if closeErr := e.file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(e.file.Name(), e.name)
	}
	if err != nil {
		os.Remove(e.file.Name())
		return failf("cannot export the offsets: %v", err)
	}
	return nil
}

// discard removes what was not kept. After keep it does nothing.
func (e *exportFile) discard() {
	if e.file.Close() == nil {
		os.Remove(e.file.Name())
	}
}
