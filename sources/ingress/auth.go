// Package ingress owns what is the same for every HTTP request from outside,
// whatever it means: who sent it ([Auth]), its body within limits ([Bodies]),
// which of its headers are credentials, and how it is told to others. It must
// not know events, functions or the listener.
package ingress

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // producers of old signatures still use it
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// secretLife is how long a resolved secret is used before it is asked for
// again, so that a rotated one takes effect without a restart.
const secretLife = 10 * time.Second

// Secrets is where an [Auth] finds what it compares with.
type Secrets interface {
	// Secret resolves a reference. The value must not be logged.
	Secret(ref specs.SecretRef) (string, error)
	// Logger gets a secret that could not be read again.
	Logger() *slog.Logger
}

// Auth checks who sent a request: by its headers before the body is read, or
// by a signature over the body. A secret is resolved again every 10 s, so that
// a rotated one takes effect. It is safe for concurrent use.
type Auth struct {
	cfg      *specs.Auth
	refs     []specs.SecretRef // one, or those of the API keys
	from     Secrets
	known    atomic.Pointer[credentials]
	until    atomic.Int64 // Unix nanoseconds
	renewing atomic.Bool

	challenge string
	// Of hmac and apiKeys: canonical header names. Of hmac: the text around
	// {timestamp} and {body} and which of the two comes first.
	header, timeHeader    string
	before, between, tail string
	bodyFirst             bool
	tolerance             time.Duration
}

// credentials are resolved secrets with what is derived from them.
type credentials struct {
	values []string // as refs
	sum    [sha256.Size]byte
	macs   sync.Pool // of hash.Hash
	// clients are the names of API keys by the hash of their value: how long it
	// takes to find one tells nothing of the others.
	clients map[[sha256.Size]byte]string
}

const (
	defaultTolerance = 5 * time.Minute
	defaultFormat    = "{timestamp}.{body}"
)

// NewAuth returns what checks requests as cfg says, or nil when cfg is nil.
// keys are the keys of the Secret that holds API keys. A secret that cannot be
// resolved is an error.
func NewAuth(cfg *specs.Auth, keys []string, from Secrets) (*Auth, error) {
	if cfg == nil {
		return nil, nil
	}
	a := &Auth{cfg: cfg, from: from}
	switch {
	case cfg.Bearer != nil:
		a.refs, a.challenge = []specs.SecretRef{*cfg.Bearer}, "Bearer"
	case cfg.Basic != nil:
		a.refs, a.challenge = []specs.SecretRef{cfg.Basic.Password}, `Basic realm="engine", charset="UTF-8"`
	case cfg.APIKeys != nil:
		a.header = textproto.CanonicalMIMEHeaderKey(cfg.APIKeys.Header)
		a.challenge = "ApiKey header=" + strconv.Quote(cfg.APIKeys.Header)
		for _, key := range keys {
			a.refs = append(a.refs, specs.SecretRef{Name: cfg.APIKeys.Secret, Key: key})
		}
	case cfg.HMAC != nil:
		a.refs, a.challenge = []specs.SecretRef{cfg.HMAC.Secret}, "Signature"
		a.header = textproto.CanonicalMIMEHeaderKey(cfg.HMAC.Header)
		if t := cfg.HMAC.Timestamp; t != nil {
			a.timeHeader = textproto.CanonicalMIMEHeaderKey(t.Header)
			if a.tolerance = t.Tolerance.D(); a.tolerance == 0 {
				a.tolerance = defaultTolerance
			}
			f := t.Format
			if f == "" {
				f = defaultFormat
			}
			first, second := "{timestamp}", "{body}"
			if a.bodyFirst = strings.Index(f, second) < strings.Index(f, first); a.bodyFirst {
				first, second = second, first
			}
			var rest string
			a.before, rest, _ = strings.Cut(f, first)
			a.between, a.tail, _ = strings.Cut(rest, second)
		}
	}
	if len(a.refs) == 0 {
		// Nothing to compare with must not mean that everybody may come in.
		return nil, errors.New("the authentication has no secret")
	}
	c, err := a.resolve()
	if err != nil {
		return nil, err
	}
	a.store(c)
	return a, nil
}

// Keys are the keys of a Secret, sorted; none of another resource.
func Keys(r *specs.Resource) []string {
	if r == nil {
		return nil
	}
	s, ok := r.Spec.(*specs.Secret)
	if !ok {
		return nil
	}
	return slices.Sorted(func(yield func(string) bool) {
		for _, m := range []map[string]string{s.Env, s.Files} {
			for key := range maps.Keys(m) {
				if !yield(key) {
					return
				}
			}
		}
	})
}

// Challenge is the WWW-Authenticate header of a refusal.
func (a *Auth) Challenge() string { return a.challenge }

// resolve asks for the secrets.
func (a *Auth) resolve() (*credentials, error) {
	c := &credentials{values: make([]string, len(a.refs))}
	for i, ref := range a.refs {
		v, err := a.from.Secret(ref)
		if err == nil && v == "" {
			// An empty token would let everybody in.
			err = errors.New("its value is empty")
		}
		if err != nil {
			return nil, fmt.Errorf("secret %s, key %s, for the authentication of requests: %w", ref.Name, ref.Key, err)
		}
		c.values[i] = v
	}
	switch h := a.cfg.HMAC; {
	case a.cfg.APIKeys != nil:
		c.clients = make(map[[sha256.Size]byte]string, len(c.values))
		for i, v := range slices.Backward(c.values) {
			c.clients[sha256.Sum256([]byte(v))] = a.refs[i].Key
		}
	case h != nil:
		c.macs.New = func() any { return hmac.New(hashOf(h.Algorithm), []byte(c.values[0])) }
	default:
		c.sum = sha256.Sum256([]byte(c.values[0]))
	}
	return c, nil
}

func (a *Auth) store(c *credentials) {
	a.known.Store(c)
	a.until.Store(time.Now().Add(secretLife).UnixNano())
}

// current returns the secrets, renewed when they are old. One that cannot be
// read for the moment stays in force as it was.
func (a *Auth) current() *credentials {
	c := a.known.Load()
	if time.Now().UnixNano() < a.until.Load() || !a.renewing.CompareAndSwap(false, true) {
		return c
	}
	defer a.renewing.Store(false)
	n, err := a.resolve()
	if err != nil {
		a.from.Logger().Warn("secret not renewed, the last value stays in use", "error", err)
		n = c
	}
	if slices.Equal(n.values, c.values) {
		n = c // and its pool
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

// Header checks what can be checked before the body is read. client is the
// name of the API key or the user, "" where there is none.
func (a *Auth) Header(r *http.Request) (client string, ok bool) {
	switch {
	case a.cfg.Bearer != nil:
		scheme, tok, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		sum := sha256.Sum256([]byte(strings.TrimSpace(tok)))
		return "", subtle.ConstantTimeCompare(sum[:], a.current().sum[:]) == 1 && strings.EqualFold(scheme, "Bearer")
	case a.cfg.Basic != nil:
		user, pass, given := r.BasicAuth()
		want, got := sha256.Sum256([]byte(a.cfg.Basic.Username)), sha256.Sum256([]byte(user))
		sum := sha256.Sum256([]byte(pass))
		ok = subtle.ConstantTimeCompare(want[:], got[:])&subtle.ConstantTimeCompare(sum[:], a.current().sum[:]) == 1 && given
		return a.cfg.Basic.Username, ok
	case a.cfg.APIKeys != nil:
		given := r.Header[a.header]
		if len(given) != 1 {
			return "", false
		}
		client, ok = a.current().clients[sha256.Sum256([]byte(strings.TrimSpace(given[0])))]
		return client, ok
	}
	return "", len(r.Header[a.header]) > 0
}

// Body checks a signature over the raw body, where there is to be one.
func (a *Auth) Body(r *http.Request, body []byte) bool {
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
	c := a.current()
	mac := c.macs.Get().(hash.Hash)
	defer c.macs.Put(mac)
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
