package transport

import (
	"bytes"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	storagepeerv1 "github.com/runnel-mesh/runnel/gen/runnel/storage/peer/v1"
	storagev1 "github.com/runnel-mesh/runnel/gen/runnel/storage/v1"
)

// Field numbers of the protos.
const (
	fieldBatch      = 15 // Of every message that carries batches.
	fieldAppend     = 1  // AppendRequest.append
	fieldPartitions = 1  // ReplicateResponse.partitions
)

var errMalformed = errors.New("malformed protobuf message")

// merge is a decoder that adds an encoded message to one that may hold fields
// already, as the protobuf specification has it: singular fields are replaced,
// messages merged, lists continued.
type merge func(data []byte) error

// aliasing returns the decoder of a message that has large bytes fields, and nil
// for all others.
func aliasing(msg any) merge {
	switch m := msg.(type) {
	case *storagev1.ProduceRequest:
		return produceRequest(m)
	case *storagev1.AppendRequest:
		return appendRequest(m)
	case *storagev1.ConsumeResponse:
		return batches(m, &m.Batches)
	case *storagepeerv1.ReplicateResponse:
		return replicateResponse(m)
	case *storagepeerv1.FencedAppendRequest:
		return batch(m, &m.Batch)
	}
	return nil
}

func produceRequest(m *storagev1.ProduceRequest) merge { return batch(m, &m.Batch) }

func appendRequest(m *storagev1.AppendRequest) merge {
	return func(data []byte) error {
		rest, err := split(data, fieldAppend, func(encoded []byte) error {
			if m.Append == nil {
				m.Append = &storagev1.ProduceRequest{}
			}
			return produceRequest(m.Append)(encoded)
		})
		if err != nil {
			return err
		}
		return mergeCopy(rest, m)
	}
}

func replicateResponse(m *storagepeerv1.ReplicateResponse) merge {
	return func(data []byte) error {
		rest, err := split(data, fieldPartitions, func(encoded []byte) error {
			partition := &storagepeerv1.ReplicaData{}
			m.Partitions = append(m.Partitions, partition)
			return batches(partition, &partition.Batches)(encoded)
		})
		if err != nil {
			return err
		}
		return mergeCopy(rest, m)
	}
}

// batch decodes a message whose field 15 is bytes. A server keeps the bytes and
// counts their length, so a small value of a large message is copied: a sender
// must not make it hold on to more than it counts.
func batch(m proto.Message, field *[]byte) merge {
	return func(data []byte) error {
		defer func() {
			if len(*field) < len(data)/2 {
				*field = bytes.Clone(*field)
			}
		}()
		rest, err := split(data, fieldBatch, func(value []byte) error {
			// A field without presence has no empty form other than nil.
			*field = nil
			if len(value) > 0 {
				*field = value
			}
			return nil
		})
		if err != nil {
			return err
		}
		return mergeCopy(rest, m)
	}
}

// batches decodes a message whose field 15 is repeated bytes.
func batches(m proto.Message, field *[][]byte) merge {
	return func(data []byte) error {
		rest, err := split(data, fieldBatch, func(value []byte) error {
			*field = append(*field, value)
			return nil
		})
		if err != nil {
			return err
		}
		return mergeCopy(rest, m)
	}
}

// mergeCopy leaves the remaining fields to the protobuf runtime.
func mergeCopy(data []byte, m proto.Message) error {
	if len(data) == 0 {
		return nil
	}
	return proto.UnmarshalOptions{Merge: true}.Unmarshal(data, m)
}

// split hands the values of a length-delimited field to each, in their order, and
// returns all other fields. Values have no spare capacity, so that appending to
// one cannot reach into its neighbour. The rest is a part of data where it can be.
func split(data []byte, field protowire.Number, each func(value []byte) error) (rest []byte, err error) {
	var pieces []byte // The rest so far, once it does not lie in one piece.
	start := 0        // Where the current piece of the rest begins.
	split := false
	for at := 0; at < len(data); {
		number, kind, tagLen := protowire.ConsumeTag(data[at:])
		if tagLen < 0 {
			return nil, errMalformed
		}
		if number != field || kind != protowire.BytesType {
			n := protowire.ConsumeFieldValue(number, kind, data[at+tagLen:])
			if n < 0 {
				return nil, errMalformed
			}
			at += tagLen + n
			continue
		}
		value, n := protowire.ConsumeBytes(data[at+tagLen:])
		if n < 0 {
			return nil, errMalformed
		}
		if start == 0 && !split {
			pieces = data[:at:at]
		} else {
			pieces = append(pieces, data[start:at]...)
		}
		split = true
		at += tagLen + n
		start = at
		if err := each(value[:len(value):len(value)]); err != nil {
			return nil, err
		}
	}
	if !split {
		return data, nil
	}
	return append(pieces, data[start:]...), nil
}
