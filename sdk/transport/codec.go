package transport

import (
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"
)

// Codec returns the codec "proto": plain protobuf in the wire format, as any
// other implementation reads and writes it.
//
// It differs from the RPC library's own in how it receives. A message is read
// once into fresh memory of its exact size, and the large bytes fields of the
// messages that carry record batches (ProduceRequest.batch, ConsumeResponse.
// batches and their kin) point into that memory instead of being copied a second
// time. The message owns that memory: nobody else reads or writes it, it may be
// kept and handed on, and it is freed as a whole once none of the fields is
// referenced any more. Keeping a small batch of a large response keeps the
// response.
//
// The codec may be used concurrently.
func Codec() connect.Codec { return codec{binary: connectproto.NewBinaryCodec()} }

type codec struct{ binary *connectproto.BinaryCodec }

// Name implements connect.Codec.
func (codec) Name() string { return connect.CodecNameProto }

// IsBinary implements connect.StableCodec.
func (codec) IsBinary() bool { return true }

// MarshalWrite implements connect.Codec. The library's codec encodes into the
// transport's own buffer: the one copy that an enveloped message needs.
func (c codec) MarshalWrite(ctx context.Context, dst io.Writer, msg any) error {
	return c.binary.MarshalWrite(ctx, dst, msg)
}

// MarshalWriteStable implements connect.StableCodec.
func (c codec) MarshalWriteStable(ctx context.Context, dst io.Writer, msg any) error {
	return c.binary.MarshalWriteStable(ctx, dst, msg)
}

// UnmarshalRead implements connect.Codec.
func (c codec) UnmarshalRead(ctx context.Context, src io.Reader, msg any) error {
	decode := aliasing(msg)
	if decode == nil {
		return c.binary.UnmarshalRead(ctx, src, msg)
	}
	data, err := readAll(src)
	if err != nil {
		return err
	}
	proto.Reset(msg.(proto.Message))
	if err := decode(data); err != nil {
		return fmt.Errorf("decode %T: %w", msg, err)
	}
	return nil
}

// readAll reads src into fresh memory.
func readAll(src io.Reader) ([]byte, error) {
	if buffered, ok := src.(interface {
		Len() int
		Bytes() []byte
	}); ok {
		// The form in which the compiler leaves out clearing the memory first.
		whole := buffered.Bytes()
		data := make([]byte, len(whole))
		copy(data, whole)
		return data, nil
	}
	return io.ReadAll(src)
}
