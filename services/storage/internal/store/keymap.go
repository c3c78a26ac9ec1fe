package store

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

const (
	// keySlotBytes is what a key takes in a [keyMap].
	keySlotBytes = 24
	// keyMapFill is how many of a hundred slots are used at most: beyond, looking
	// for a key takes long.
	keyMapFill = 85
)

// keyMap holds the newest offset of each key, in an amount of memory that does
// not depend on the keys: 16 bytes of a hash stand for one. Two keys with the
// same hash would lose records of one of them, so the hash is one that nobody can
// find such keys for, and its seed differs with each map.
//
// It takes bytes*85/100/24 keys: 64 MiB are enough for 2,376,771.
type keyMap struct {
	slots []keySlot
	// limit is how many slots may be used.
	limit, used int
	// input is the seed and the key that is being hashed.
	input []byte
}

// keySlot is free while next is 0.
type keySlot struct {
	hash [16]byte
	// next is the offset after the key's newest record.
	next int64
}

const keySeedBytes = 16

// newKeyMap returns a map for at most that many different keys, or fewer where
// they take more bytes; at least 1.
func newKeyMap(bytes, keys int64) *keyMap {
	slots := max(bytes/keySlotBytes, 2)
	if keys < slots {
		slots = min(slots, max(keys, 1)*100/keyMapFill+2)
	}
	m := &keyMap{slots: make([]keySlot, slots), limit: int(max(slots*keyMapFill/100, 1)), input: make([]byte, keySeedBytes, 256)}
	// It never fails.
	_, _ = rand.Read(m.input)
	return m
}

// put notes a record, whose offset is above those noted before. It reports false,
// and notes nothing, where the map is full.
func (m *keyMap) put(key []byte, offset int64) bool {
	hash := m.hash(key)
	s := m.find(&hash)
	if s.next == 0 {
		if m.used == m.limit {
			return false
		}
		m.used++
		s.hash = hash
	}
	s.next = offset + 1
	return true
}

// newest returns the offset of the key's newest record; -1 if none was noted.
func (m *keyMap) newest(key []byte) int64 {
	hash := m.hash(key)
	return m.find(&hash).next - 1
}

// find returns the slot of a hash, or the free one where it belongs.
func (m *keyMap) find(hash *[16]byte) *keySlot {
	n := uint64(len(m.slots))
	for i := binary.LittleEndian.Uint64(hash[:]) % n; ; i++ {
		if i == n {
			i = 0
		}
		if s := &m.slots[i]; s.next == 0 || s.hash == *hash {
			return s
		}
	}
}

func (m *keyMap) hash(key []byte) (hash [16]byte) {
	m.input = append(m.input[:keySeedBytes], key...)
	sum := sha256.Sum256(m.input)
	copy(hash[:], sum[:])
	return hash
}
