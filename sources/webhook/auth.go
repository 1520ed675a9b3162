package webhook

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // producers of old signatures still use it
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// secretLife is how long a resolved secret is used before it is asked for
// again, so that a rotated one takes effect without a restart.
const secretLife = 10 * time.Second

// authenticator checks who sent a request: by its headers before the body is
// read, or by a signature over the body.
type authenticator struct {
	cfg      *Auth
	ref      specs.SecretRef
	host     sources.Host
	secret   atomic.Pointer[secret]
	until    atomic.Int64 // Unix nanoseconds
	renewing atomic.Bool

	// challenge is the WWW-Authenticate header of a refusal.
	challenge string
	// Of hmac: canonical header names, the text around {timestamp} and {body}
	// and which of the two comes first.
	header, timeHeader    string
	before, between, tail string
	bodyFirst             bool
	tolerance             time.Duration
}

// secret is a resolved secret with what is derived from it.
type secret struct {
	value string
	sum   [sha256.Size]byte
	macs  sync.Pool // of hash.Hash
}

func newAuthenticator(a *Auth, h sources.Host) (*authenticator, error) {
	if a == nil {
		return nil, nil
	}
	au := &authenticator{cfg: a, host: h}
	switch {
	case a.Bearer != nil:
		au.ref, au.challenge = *a.Bearer, "Bearer"
	case a.Basic != nil:
		au.ref, au.challenge = a.Basic.Password, `Basic realm="engine", charset="UTF-8"`
	case a.HMAC != nil:
		au.ref, au.challenge = a.HMAC.Secret, "Signature"
		au.header = textproto.CanonicalMIMEHeaderKey(a.HMAC.Header)
		if t := a.HMAC.Timestamp; t != nil {
			au.timeHeader = textproto.CanonicalMIMEHeaderKey(t.Header)
			if au.tolerance = t.Tolerance.D(); au.tolerance == 0 {
				au.tolerance = defaultTolerance.D()
			}
			f := t.Format
			if f == "" {
				f = defaultFormat
			}
			first, second := "{timestamp}", "{body}"
			if au.bodyFirst = strings.Index(f, second) < strings.Index(f, first); au.bodyFirst {
				first, second = second, first
			}
			var rest string
			au.before, rest, _ = strings.Cut(f, first)
			au.between, au.tail, _ = strings.Cut(rest, second)
		}
	}
	s, err := au.resolve()
	if err != nil {
		return nil, err
	}
	au.store(s)
	return au, nil
}

// resolve asks the host for the secret.
func (a *authenticator) resolve() (*secret, error) {
	v, err := a.host.Secret(a.ref)
	if err == nil && v == "" {
		// An empty token would let everybody in.
		err = fmt.Errorf("its value is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s, key %s, for the authentication of a webhook: %w", a.ref.Name, a.ref.Key, err)
	}
	s := &secret{value: v, sum: sha256.Sum256([]byte(v))}
	if h := a.cfg.HMAC; h != nil {
		s.macs.New = func() any { return hmac.New(hashOf(h.Algorithm), []byte(v)) }
	}
	return s, nil
}

func (a *authenticator) store(s *secret) {
	a.secret.Store(s)
	a.until.Store(time.Now().Add(secretLife).UnixNano())
}

// current returns the secret, renewed when it is old. A secret that cannot be
// read for the moment stays in force as it was.
func (a *authenticator) current() *secret {
	s := a.secret.Load()
	if time.Now().UnixNano() < a.until.Load() || !a.renewing.CompareAndSwap(false, true) {
		return s
	}
	defer a.renewing.Store(false)
	n, err := a.resolve()
	if err != nil {
		a.host.Logger().Warn("secret not renewed, the last value stays in use", "error", err)
		n = s
	}
	if n.value == s.value {
		n = s // and its pool
	}
	a.store(n)
	return n
}

func hashOf(algorithm string) func() hash.Hash {
	switch algorithm {
	case "sha1":
		return sha1.New
	case "sha512":
		return sha512.New
	}
	return sha256.New
}

// checkHeader checks what can be checked before the body is read.
func (a *authenticator) checkHeader(r *http.Request) bool {
	switch {
	case a.cfg.Bearer != nil:
		scheme, tok, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		sum := sha256.Sum256([]byte(strings.TrimSpace(tok)))
		return subtle.ConstantTimeCompare(sum[:], a.current().sum[:]) == 1 && strings.EqualFold(scheme, "Bearer")
	case a.cfg.Basic != nil:
		user, pass, ok := r.BasicAuth()
		want, got := sha256.Sum256([]byte(a.cfg.Basic.Username)), sha256.Sum256([]byte(user))
		sum := sha256.Sum256([]byte(pass))
		return subtle.ConstantTimeCompare(want[:], got[:])&subtle.ConstantTimeCompare(sum[:], a.current().sum[:]) == 1 && ok
	}
	return len(r.Header[a.header]) > 0
}

// checkBody checks a signature over the raw body.
func (a *authenticator) checkBody(r *http.Request, body []byte) bool {
	h := a.cfg.HMAC
	if h == nil {
		return true
	}
	var stamp string
	if t := h.Timestamp; t != nil {
		var at time.Time
		var ok bool
		for part := range values(r.Header[a.timeHeader], t.Prefix) {
			if at, ok = parseTime(part); ok {
				stamp = part
				break
			}
		}
		if d := time.Since(at); !ok || d > a.tolerance || d < -a.tolerance {
			return false
		}
	}
	s := a.current()
	mac := s.macs.Get().(hash.Hash)
	defer s.macs.Put(mac)
	mac.Reset()
	if h.Timestamp == nil {
		mac.Write(body)
	} else {
		first, second := []byte(stamp), body
		if a.bodyFirst {
			first, second = second, first
		}
		mac.Write([]byte(a.before))
		mac.Write(first)
		mac.Write([]byte(a.between))
		mac.Write(second)
		mac.Write([]byte(a.tail))
	}
	var sum, given [sha512.Size]byte
	want := mac.Sum(sum[:0])
	ok := 0
	for part := range values(r.Header[a.header], h.Prefix) {
		got, decoded := decodeSignature(given[:], part, h.Encoding)
		if decoded {
			ok |= subtle.ConstantTimeCompare(want, got)
		}
	}
	return ok == 1
}

// decodeSignature decodes s into dst; it does not fit when it is longer.
func decodeSignature(dst []byte, s, encoding string) ([]byte, bool) {
	if len(s) > 2*len(dst) {
		return nil, false
	}
	if encoding != "base64" {
		if n, err := hex.Decode(dst, []byte(s)); err == nil {
			return dst[:n], true
		}
		return nil, false
	}
	s = strings.TrimRight(s, "=")
	enc := base64.RawStdEncoding
	if strings.ContainsAny(s, "-_") {
		enc = base64.RawURLEncoding
	}
	if enc.DecodedLen(len(s)) > len(dst) {
		return nil, false
	}
	n, err := enc.Decode(dst, []byte(s))
	return dst[:n], err == nil
}

// values yields the values of a header without their prefix. Only with a
// prefix can there be several in one line.
func values(lines []string, prefix string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, line := range lines {
			if prefix == "" {
				if !yield(strings.TrimSpace(line)) {
					return
				}
				continue
			}
			parts := strings.FieldsFuncSeq(line, func(r rune) bool {
				return (r == ' ' || r == ',') && !strings.ContainsRune(prefix, r)
			})
			for part := range parts {
				if v, ok := strings.CutPrefix(part, prefix); ok && !yield(v) {
					return
				}
			}
		}
	}
}

func parseTime(s string) (time.Time, bool) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if n > 1e11 { // in seconds that were the year 5138
			return time.UnixMilli(n), true
		}
		return time.Unix(n, 0), true
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	return t, err == nil
}
