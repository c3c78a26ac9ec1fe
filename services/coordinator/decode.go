package coordinator

import (
	"github.com/runnel-mesh/runnel/services/coordinator/internal/offsets"
	"github.com/runnel-mesh/runnel/services/internal/rules/groups"
)

// DecodeRecord says what a record of the topic __consumer_offsets means, for people: the
// value is nil for a record that removes what its key names. An error says why it means
// nothing to this version.
func DecodeRecord(key, value []byte) (groups.Record, error) {
	return offsets.DecodeRecord(key, value)
}
