package webhook

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
)

// hold is the body of one request, and its share of what all large bodies of
// the webhook may hold together.
type hold struct {
	h    *handler
	data []byte
	paid int64
}

func (b *hold) release() {
	if b.paid > 0 {
		b.h.held.Add(-b.paid)
	}
}

// pay accounts for a buffer of n bytes.
func (b *hold) pay(n int) bool {
	if n <= smallBody {
		return true
	}
	if b.h.held.Add(int64(n)) > b.h.bodies {
		b.h.held.Add(-int64(n))
		return false
	}
	b.paid += int64(n)
	return true
}

func (b *hold) busy() *refusal {
	return &refusal{http.StatusTooManyRequests, "too many large requests at the same time", "1"}
}

// first is the first buffer of a body of n bytes: all of it while most of what
// large bodies may hold is free.
func (b *hold) first(n int) int {
	if b.h.held.Load()+int64(n) <= b.h.bodies/4 {
		return n + 1
	}
	return smallBody
}

// read reads r to its end into a buffer that begins with first bytes and grows
// by factor with what arrives, so that a producer holds only a small multiple
// of what it sent; more than limit is refused.
func (b *hold) read(r io.Reader, limit, first, factor int) *refusal {
	first = min(limit+1, first)
	if !b.pay(first) {
		return b.busy()
	}
	buf := make([]byte, 0, first)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		if buf = buf[:len(buf)+n]; len(buf) > limit {
			return b.h.tooLarge()
		}
		if err != nil {
			b.data = buf
			if errors.Is(err, io.EOF) {
				return nil
			}
			return badRead(err)
		}
		if len(buf) == cap(buf) {
			// One byte more than allowed tells a body that ends there from one
			// that goes on.
			size := min(factor*cap(buf), limit+1)
			if !b.pay(size) {
				return b.busy()
			}
			buf = append(make([]byte, 0, size), buf...)
		}
	}
}

// form replaces a form by a JSON object whose values are strings, or lists of
// strings for fields that occur more than once. A body that is JSON all the
// same is taken as such: it is what `curl -d` sends without a content type.
func form(ev *bus.Event) *refusal {
	if c := ev.Data[0]; (c == '{' || c == '[') && bus.ValidJSON(ev.Data) {
		ev.DataContentType = "application/json"
		return nil
	}
	fields, err := url.ParseQuery(string(ev.Data))
	if err != nil {
		return refuse(http.StatusBadRequest, "the body is not a form")
	}
	object := make(map[string]any, len(fields))
	for k, vs := range fields {
		ok := utf8.ValidString(k)
		for _, v := range vs {
			ok = ok && utf8.ValidString(v)
		}
		if !ok {
			return refuse(http.StatusBadRequest, "the form is not UTF-8")
		}
		if len(vs) == 1 {
			object[k] = vs[0]
		} else {
			object[k] = vs
		}
	}
	if ev.Data, err = json.Marshal(object); err != nil {
		return refuse(http.StatusBadRequest, "the body is not a form")
	}
	ev.DataContentType = "application/json"
	return nil
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // an invalid byte becomes U+FFFD
			i += size
			continue
		}
		i++
	}
	return append(dst, '"')
}
