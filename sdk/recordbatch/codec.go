package recordbatch

import "fmt"

// Codec is how the records of a batch are compressed. The numbers are those of
// the attributes field.
type Codec int8

// The codecs of the format.
const (
	None Codec = iota
	Gzip
	Snappy
	LZ4
	Zstd
)

var codecNames = [...]string{None: "none", Gzip: "gzip", Snappy: "snappy", LZ4: "lz4", Zstd: "zstd"}

// ParseCodec returns the codec of a name as Kafka's compression.type spells it:
// none, gzip, snappy, lz4 or zstd.
func ParseCodec(name string) (Codec, error) {
	for c, n := range codecNames {
		if n == name {
			return Codec(c), nil
		}
	}
	return None, newError(ErrUnsupported, "codec", fmt.Sprintf("%q", name), "none, gzip, snappy, lz4 or zstd")
}

// String returns the name that [ParseCodec] takes.
func (c Codec) String() string {
	if !c.known() {
		return fmt.Sprintf("codec(%d)", int8(c))
	}
	return codecNames[c]
}

func (c Codec) known() bool { return c >= 0 && int(c) < len(codecNames) }
