package store

import (
	"github.com/dgraph-io/badger/v4"
	"google.golang.org/protobuf/proto"
)

// entry is one key of a volume with its value. It holds during the call only that
// gets it.
type entry interface {
	Key() []byte
	Value(f func(value []byte) error) error
}

// entries are those of a volume, without what was written over or deleted.
type entries interface {
	// each calls f in the order of the keys for those that begin with a prefix, from
	// one of these keys on, until it returns false. A nil from is the first.
	each(prefix, from []byte, f func(entry) bool) error
}

// stored are the entries of a volume that is open.
type stored struct{ txn *badger.Txn }

func (s stored) each(prefix, from []byte, f func(entry) bool) error {
	it := s.txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		if !f(it.Item()) {
			break
		}
	}
	return nil
}

// eachRecord calls f for the records of a kind.
func eachRecord(in entries, k kind, f func(PartitionID, int64, entry)) error {
	var damaged error
	err := in.each([]byte{byte(k)}, nil, func(e entry) bool {
		var id PartitionID
		var offset int64
		if _, id, offset, damaged = parseKey(e.Key()); damaged != nil {
			return false
		}
		f(id, offset, e)
		return true
	})
	if err == nil {
		err = damaged
	}
	return err
}

func readRecord(e entry, m proto.Message) error {
	return e.Value(func(value []byte) error { return parseMessage(e.Key(), value, m) })
}
