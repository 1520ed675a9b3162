package outbound

import (
	"io"
	"testing"
)

func TestShared(t *testing.T) {
	var s Shared[*int]
	made, ended := 0, 0
	open := func(key string) (*int, io.Closer) {
		return s.Open(key, func() *int { made++; return new(made) }, func(*int) { ended++ })
	}
	a, closeA := open("x")
	b, closeB := open("x")
	c, closeC := open("y")
	if a != b || a == c || s.Len() != 2 || made != 2 {
		t.Error(a, b, c, s.Len(), made)
	}
	_ = closeA.Close()
	_ = closeA.Close() // again changes nothing
	if ended != 0 {
		t.Error("ended while it is used")
	}
	_ = closeB.Close()
	_ = closeC.Close()
	if ended != 2 || s.Len() != 0 {
		t.Error(ended, s.Len())
	}
	if d, release := open("x"); d == a || made != 3 {
		t.Error("what was ended is used again")
	} else {
		_ = release.Close()
	}
}
