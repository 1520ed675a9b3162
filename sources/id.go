package sources

import (
	"encoding/base32"
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// ids is base32 whose digits sort like the bits they stand for.
var ids = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID returns a unique event id: 48 bits of Unix milliseconds and 80 random
// bits as 26 characters that sort by time. It takes no lock.
func NewID() string {
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], uint64(time.Now().UnixMilli())<<16|rand.Uint64()>>48)
	binary.BigEndian.PutUint64(raw[8:], rand.Uint64())
	var text [26]byte
	ids.Encode(text[:], raw[:])
	return string(text[:])
}
