package ingress

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	// smallBody is what a request may hold without asking, largeBodies what
	// all larger ones of a route may hold together.
	smallBody = 64 << 10
	// firstBuffer is for a body of unknown length.
	firstBuffer = 4 << 10
	largeBodies = 128 << 20
)

// Refusal is why a request is not served.
type Refusal struct {
	// Status is the HTTP status of the answer.
	Status int
	// Text says why, for the client.
	Text string
	// Retry is the Retry-After in seconds, "" for none.
	Retry string
}

// Refuse formats a Refusal.
func Refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Text: fmt.Sprintf(format, args...)}
}

// Headers sets the headers that belong to a refusal; auth may be nil.
func (ref *Refusal) Headers(hdr http.Header, auth *Auth) {
	switch {
	case ref.Status == http.StatusUnauthorized && auth != nil:
		hdr.Set("WWW-Authenticate", auth.Challenge())
	case ref.Status == http.StatusUnsupportedMediaType:
		hdr.Set("Accept-Encoding", "gzip, identity")
	case ref.Status == http.StatusRequestEntityTooLarge:
		// Without it, the server reads on before it answers.
		hdr.Set("Connection", "close")
	case ref.Retry != "":
		hdr.Set("Retry-After", ref.Retry)
	}
}

// Half makes the server close only its side of a connection that ends anyway,
// and wait: a reset would swallow the answer to a body that is not read.
// Reaching the limit of a body is what tells it so.
func Half(w http.ResponseWriter, r *http.Request) {
	if http.NewResponseController(w).SetReadDeadline(time.Now().Add(100*time.Millisecond)) == nil {
		_, _ = http.MaxBytesReader(w, r.Body, 0).Read(make([]byte, 1))
	}
}

// Bodies reads the bodies of the requests of one route, and bounds what they
// hold together. It is safe for concurrent use.
type Bodies struct {
	// Limit is what bodies over 64 KiB may hold together, in bytes. Set it
	// before use.
	Limit int64

	max       int // of one body, also after decompression
	held      atomic.Int64
	inflaters sync.Pool // of *gzip.Reader
}

// NewBodies returns what reads bodies of at most size bytes.
func NewBodies(size int64) *Bodies {
	return &Bodies{max: int(size), Limit: max(largeBodies, 4*size)}
}

// Held is how many bytes large bodies hold now.
func (b *Bodies) Held() int64 { return b.held.Load() }

// Body is the body of one request, and its share of what all large bodies of
// the route may hold together. Release gives it back.
type Body struct {
	// Data is the body, decompressed.
	Data []byte
	of   *Bodies
	paid int64
}

// Release gives the body's share back. It may be called twice.
func (b *Body) Release() {
	if b.paid > 0 {
		b.of.held.Add(-b.paid)
		b.paid = 0
	}
}

// Receive checks who sent a request and reads its body into b, which the
// caller releases, also after a refusal. auth may be nil. client is that of
// [Auth.Header].
func (b *Bodies) Receive(r *http.Request, auth *Auth, body *Body) (client string, ref *Refusal) {
	body.of = b
	if auth != nil {
		var ok bool
		if client, ok = auth.Header(r); !ok {
			return "", Refuse(http.StatusUnauthorized, "authentication is missing or wrong")
		}
	}
	compressed := false
	if enc := r.Header["Content-Encoding"]; len(enc) > 0 {
		switch e := strings.ToLower(strings.Join(enc, ",")); e {
		case "identity", "":
		case "gzip", "x-gzip":
			compressed = true
		default:
			return "", Refuse(http.StatusUnsupportedMediaType, "content encoding %q is not supported, send gzip or none", e)
		}
	}
	switch n := r.ContentLength; {
	case n > int64(b.max):
		return "", b.tooLarge()
	case n >= 0 && n <= smallBody: // exactly sized, the usual case
		if n > 0 {
			body.Data = make([]byte, n)
			if _, err := io.ReadFull(r.Body, body.Data); err != nil {
				return "", badRead(err)
			}
		}
	case n > 0:
		if ref := body.read(r.Body, int(n), body.first(int(n)), 4); ref != nil {
			return "", ref
		}
	default:
		if ref := body.read(r.Body, b.max, firstBuffer, 2); ref != nil {
			return "", ref
		}
	}
	if auth != nil && !auth.Body(r, body.Data) {
		return "", Refuse(http.StatusUnauthorized, "the signature is wrong or too old")
	}
	if !compressed || len(body.Data) == 0 {
		return client, nil
	}
	return client, body.inflate()
}

func (b *Bodies) tooLarge() *Refusal {
	return Refuse(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", b.max)
}

func badRead(err error) *Refusal {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Refuse(http.StatusRequestTimeout, "the body did not arrive in time")
	}
	return Refuse(http.StatusBadRequest, "the body ended before its end")
}

// pay accounts for a buffer of n bytes.
func (b *Body) pay(n int) bool {
	if n <= smallBody {
		return true
	}
	if b.of.held.Add(int64(n)) > b.of.Limit {
		b.of.held.Add(-int64(n))
		return false
	}
	b.paid += int64(n)
	return true
}

func busy() *Refusal {
	return &Refusal{http.StatusTooManyRequests, "too many large requests at the same time", "1"}
}

// first is the first buffer of a body of n bytes: all of it while most of what
// large bodies may hold is free.
func (b *Body) first(n int) int {
	if b.of.held.Load()+int64(n) <= b.of.Limit/4 {
		return n + 1
	}
	return smallBody
}

// read reads r to its end into a buffer that begins with first bytes and grows
// by factor with what arrives, so that a producer holds only a small multiple
// of what it sent; more than limit is refused.
func (b *Body) read(r io.Reader, limit, first, factor int) *Refusal {
	first = min(limit+1, first)
	if !b.pay(first) {
		return busy()
	}
	buf := make([]byte, 0, first)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		if buf = buf[:len(buf)+n]; len(buf) > limit {
			return b.of.tooLarge()
		}
		if err != nil {
			b.Data = buf
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
				return busy()
			}
			buf = append(make([]byte, 0, size), buf...)
		}
	}
}

// inflate replaces the body by its decompressed form.
func (b *Body) inflate() *Refusal {
	src := bytes.NewReader(b.Data)
	var err error
	z, _ := b.of.inflaters.Get().(*gzip.Reader)
	if z == nil {
		z, err = gzip.NewReader(src)
	} else {
		err = z.Reset(src)
	}
	if err != nil {
		return Refuse(http.StatusBadRequest, "the body is not gzip")
	}
	defer b.of.inflaters.Put(z)
	b.Data = nil
	ref := b.read(z, b.of.max, firstBuffer, 2)
	if ref != nil && ref.Status == http.StatusBadRequest {
		ref.Text = "the body is not gzip"
	}
	return ref
}

// Fields makes an object of form fields or query parameters, whose values are
// strings, or lists of strings for those that occur more than once. It reports
// false for what is not UTF-8.
func Fields(values url.Values) (map[string]any, bool) {
	object := make(map[string]any, len(values))
	for k, vs := range values {
		ok := utf8.ValidString(k)
		list := make([]any, len(vs))
		for i, v := range vs {
			ok = ok && utf8.ValidString(v)
			list[i] = v
		}
		switch {
		case !ok:
			return nil, false
		case len(vs) == 1:
			object[k] = vs[0]
		default:
			object[k] = list
		}
	}
	return object, true
}
