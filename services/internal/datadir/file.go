package datadir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// TemporarySuffix ends the name of a file that is to replace another one. A
// process that died has left it; it means nothing.
const TemporarySuffix = ".tmp"

// Replace gives a file new content, or creates it. After a crash at any moment the
// file is there as it was or with the new content, whole; once Replace has
// returned nil, with the new one. Calls for the same path must not overlap.
func Replace(path string, content []byte) error {
	temporary := path + TemporarySuffix
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", temporary, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return Sync(filepath.Dir(path))
}

// Sync makes durable which names a directory has: what was created, renamed or
// removed in it.
func Sync(directory string) error {
	file, err := os.Open(directory)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", directory, err)
	}
	return nil
}

// ReadMessage reads a file that [WriteMessage] has written, into an empty message.
// Fields that it does not know are passed over. The error is an fs.ErrNotExist if
// there is no such file, and a [Damaged] one if it does not hold the message.
func ReadMessage(path string, m proto.Message) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := decode(raw, m); err != nil {
		return Damaged(path, err)
	}
	return nil
}

func decode(raw []byte, m proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m); err != nil {
		return fmt.Errorf("it cannot be read: %w", err)
	}
	return nil
}

// WriteMessage replaces a file, see [Replace], by a message in protobuf's JSON
// form, indented by two spaces. Equal messages make equal files.
func WriteMessage(path string, m proto.Message) error {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	// protojson varies its spaces on purpose.
	var text bytes.Buffer
	if err := json.Indent(&text, raw, "", "  "); err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	text.WriteByte('\n')
	return Replace(path, text.Bytes())
}
