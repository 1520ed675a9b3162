package secrets

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
)

// mask is what stands in place of a secret.
const mask = "***"

const (
	// minValue is the shortest value that is masked, in bytes: shorter ones
	// would be found everywhere and be told by their gaps.
	minValue = 4
	// minPart is the shortest encoded core, line or cut-off beginning of a
	// value that is masked.
	minPart = 12
)

// Masker replaces known secret values, and their base64, hex, URL, JSON and
// Go-quoted forms, by three stars. It is safe for concurrent use. Looking at
// text without secrets costs about one step per byte and no allocation. A zero
// Masker knows no values.
type Masker struct {
	mu    sync.Mutex
	known map[string]struct{}
	table atomic.Pointer[table]
}

// table finds patterns; it is not changed after it was made.
type table struct {
	// pairs has a bit for the first two bytes of every pattern.
	pairs    [1 << 16 / 64]uint64
	patterns map[uint16][]string // by first two bytes, longest first
}

func pair(a, b byte) uint16 { return uint16(a)<<8 | uint16(b) }

// Add makes values known from now on. Known ones and those shorter than four
// bytes are ignored.
func (m *Masker) Add(values ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := false
	for _, v := range values {
		if _, ok := m.known[v]; ok || len(v) < minValue {
			continue
		}
		if m.known == nil {
			m.known = map[string]struct{}{}
		}
		m.known[v] = struct{}{}
		changed = true
	}
	if !changed {
		return
	}
	t := &table{patterns: map[uint16][]string{}}
	for v := range m.known {
		for _, p := range forms(v) {
			k := pair(p[0], p[1])
			t.pairs[k>>6] |= 1 << (k & 63)
			t.patterns[k] = append(t.patterns[k], p)
		}
	}
	for k, ps := range t.patterns {
		slices.SortFunc(ps, func(a, b string) int { return len(b) - len(a) })
		t.patterns[k] = slices.Compact(ps)
	}
	m.table.Store(t)
}

// forms returns the ways a value may appear in text.
func forms(v string) []string {
	out := []string{v, url.QueryEscape(v), url.PathEscape(v), strings.Trim(strconv.Quote(v), `"`)}
	if b, err := json.Marshal(v); err == nil {
		out = append(out, string(b[1:len(b)-1]))
	}
	var plain strings.Builder
	e := json.NewEncoder(&plain)
	e.SetEscapeHTML(false)
	if e.Encode(v) == nil {
		out = append(out, strings.Trim(strings.TrimSpace(plain.String()), `"`))
	}
	parts := []string{hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		// In base64 the value looks different at each of three offsets, and its
		// first and last characters mix with what surrounds it.
		for offset := range 3 {
			s := enc.EncodeToString(append(make([]byte, offset), v...))
			from := [...]int{0, 2, 3}[offset]
			to := len(s)
			if (offset+len(v))%3 != 0 {
				to--
			}
			if from < to {
				parts = append(parts, s[from:to])
			}
		}
	}
	// Keys and certificates are printed line by line.
	if strings.ContainsRune(v, '\n') {
		for line := range strings.Lines(v) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "-----") {
				parts = append(parts, line)
			}
		}
	}
	for _, p := range parts {
		if len(p) >= minPart {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// find returns the place and length of the first secret at or after from; n is
// 0 when there is none. A beginning of a secret that the end of s cuts off
// counts too.
func (t *table) find(s string, from int) (at, n int) {
	for i := from; i+1 < len(s); i++ {
		k := pair(s[i], s[i+1])
		if t.pairs[k>>6]&(1<<(k&63)) == 0 {
			continue
		}
		rest := s[i:]
		for _, p := range t.patterns[k] {
			if strings.HasPrefix(rest, p) {
				return i, len(p)
			}
			if len(rest) >= minPart && strings.HasPrefix(p, rest) {
				return i, len(rest)
			}
		}
	}
	return 0, 0
}

// MaskString returns s with every known value replaced; s itself when there is
// none.
func (m *Masker) MaskString(s string) string {
	t := m.table.Load()
	if t == nil {
		return s
	}
	at, n := t.find(s, 0)
	if n == 0 {
		return s
	}
	var b strings.Builder
	from := 0
	for n > 0 {
		b.WriteString(s[from:at])
		b.WriteString(mask)
		from = at + n
		at, n = t.find(s, from)
	}
	b.WriteString(s[from:])
	return b.String()
}

// Mask is [Masker.MaskString] for bytes: it returns b itself, unchanged, when
// it holds no known value, otherwise a new slice.
func (m *Masker) Mask(b []byte) []byte {
	if m.table.Load() == nil || len(b) == 0 {
		return b
	}
	s := unsafe.String(&b[0], len(b)) // read only, and not kept
	if r := m.MaskString(s); unsafe.StringData(r) != &b[0] {
		return []byte(r)
	}
	return b
}

// MaskError returns err with a masked text; err itself when there is nothing
// to mask. The result still wraps err for errors.Is and errors.As.
func (m *Masker) MaskError(err error) error {
	if err == nil {
		return nil
	}
	s := err.Error()
	r := m.MaskString(s)
	if r == s {
		return err
	}
	return &maskedError{r, err}
}

type maskedError struct {
	text string
	err  error
}

func (e *maskedError) Error() string { return e.text }
func (e *maskedError) Unwrap() error { return e.err }

// Writer returns a writer that masks what it passes on to w. Every Write is
// looked at by itself, so it suits writers of whole lines such as slog's
// handlers.
func (m *Masker) Writer(w io.Writer) io.Writer { return &writer{m, w} }

type writer struct {
	m *Masker
	w io.Writer
}

func (w *writer) Write(p []byte) (int, error) {
	masked := w.m.Mask(p)
	if n, err := w.w.Write(masked); err != nil {
		return min(n, len(p)), err
	}
	return len(p), nil
}
