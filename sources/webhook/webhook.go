package webhook

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
)

const (
	// maxAttribute bounds each attribute a spec sets, and maxAttributes all of
	// one event together with its request as they travel: JetStream takes at
	// most 64 KiB of headers.
	maxAttribute  = 4 << 10
	maxAttributes = 60 << 10
	// smallBody is what a request may hold without asking, largeBodies what
	// all larger ones of a webhook may hold together.
	smallBody = 64 << 10
	// firstBuffer is for a body of unknown length.
	firstBuffer = 4 << 10
	largeBodies = 128 << 20
)

// source is one webhook.
type source struct {
	cfg       *Config
	route     sources.Route
	params    []string // names of the path parameters
	attrs     attributes
	head      bool  // HEAD is one of the methods
	bodies    int64 // limit of held
	inFlight  atomic.Int64
	held      atomic.Int64 // bytes of large bodies
	inflaters sync.Pool    // of *gzip.Reader
}

func newSource(c *Config) (*source, error) {
	segs, err := sources.ParsePath(c.Path)
	if err != nil {
		return nil, err
	}
	attrs, ds := compileAttributes(c, func(field string) string { return field })
	if err := ds.Err(); err != nil {
		return nil, err
	}
	s := &source{cfg: c, route: c.route(), attrs: attrs, bodies: max(largeBodies, 4*int64(c.MaxBody))}
	for _, seg := range segs {
		if seg.Wild && seg.Text != "" {
			s.params = append(s.params, seg.Text)
		}
	}
	s.head = slices.Contains(s.route.Methods, http.MethodHead)
	return s, nil
}

// Run serves the webhook until ctx ends. Requests answered 202 are stored.
func (s *source) Run(ctx context.Context, h sources.Host) error {
	auth, err := newAuthenticator(s.cfg.Auth, h)
	if err != nil {
		return err
	}
	remove, err := h.Handle(s.route, &handler{source: s, host: h, auth: auth})
	if err != nil {
		return fmt.Errorf("webhook at %s: %w", s.cfg.Path, err)
	}
	defer remove()
	h.Ready("listening on " + s.cfg.Path)
	<-ctx.Done()
	return nil
}

// handler serves the requests of one run.
type handler struct {
	*source
	host sources.Host
	auth *authenticator
}

// refusal is an answer other than 202.
type refusal struct {
	status int
	text   string
	// retry is the Retry-After in seconds, "" for none.
	retry string
}

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

// ServeHTTP answers after the events of the request were stored, or says why
// they were not.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead && !h.head {
		return // GET's answer without an event: HEAD must be safe
	}
	n := h.inFlight.Add(1)
	defer h.inFlight.Add(-1)
	if n > int64(h.cfg.MaxInFlight) {
		h.fail(w, &refusal{http.StatusTooManyRequests, "too many requests at the same time", "1"})
		return
	}
	body := hold{h: h}
	defer body.release()
	if ref := h.receive(r, &body); ref != nil {
		if ref.status == http.StatusRequestEntityTooLarge && r.Close {
			half(w, r)
		}
		h.fail(w, ref)
		return
	}
	one, batch, ref := h.events(r, body.data)
	if ref != nil {
		h.fail(w, ref)
		return
	}
	if one != nil {
		if err := h.host.Emit(r.Context(), one); err != nil {
			h.fail(w, notStored(err))
			return
		}
		h.accept(w, appendString(append(make([]byte, 0, 64), `{"id":`...), one.ID))
		return
	}
	if len(batch) > 0 {
		if err := h.host.Emit(r.Context(), batch...); err != nil {
			h.fail(w, notStored(err))
			return
		}
	}
	answer := append(make([]byte, 0, 16+32*len(batch)), `{"ids":[`...)
	for i, ev := range batch {
		if i > 0 {
			answer = append(answer, ',')
		}
		answer = appendString(answer, ev.ID)
	}
	h.accept(w, append(answer, ']'))
}

// accept answers 202 with the object in answer, which lacks its closing brace.
func (h *handler) accept(w http.ResponseWriter, answer []byte) {
	w.Header()["Content-Type"] = []string{"application/json"}
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(append(answer, '}', '\n')) // the producer may be gone
}

func (h *handler) fail(w http.ResponseWriter, ref *refusal) {
	hdr := w.Header()
	hdr["Content-Type"] = []string{"application/json"}
	switch {
	case ref.status == http.StatusUnauthorized:
		hdr.Set("WWW-Authenticate", h.auth.challenge)
	case ref.status == http.StatusUnsupportedMediaType:
		hdr.Set("Accept-Encoding", "gzip, identity")
	case ref.status == http.StatusRequestEntityTooLarge:
		// Without it, the server reads on before it answers.
		hdr.Set("Connection", "close")
	case ref.retry != "":
		hdr.Set("Retry-After", ref.retry)
	}
	w.WriteHeader(ref.status)
	_, _ = w.Write(append(appendString([]byte(`{"error":`), ref.text), '}', '\n'))
}

// half makes the server close only its side of a connection that ends anyway,
// and wait: a reset would swallow the answer to a body that is not read.
// Reaching the limit of a body is what tells it so.
func half(w http.ResponseWriter, r *http.Request) {
	if http.NewResponseController(w).SetReadDeadline(time.Now().Add(100*time.Millisecond)) == nil {
		_, _ = http.MaxBytesReader(w, r.Body, 0).Read(make([]byte, 1))
	}
}

// notStored is the answer to a failed Emit. All but a too large event may be
// sent again: what was stored of a batch is recognised by its ids.
func notStored(err error) *refusal {
	if limit, ok := errors.AsType[*sources.LimitError](err); ok {
		seconds := (limit.RetryAfter + time.Second - 1) / time.Second
		return &refusal{http.StatusTooManyRequests, "the rate limit of this event is reached", strconv.Itoa(int(max(seconds, 1)))}
	}
	switch {
	case errors.Is(err, bus.ErrTooLarge):
		return refuse(http.StatusRequestEntityTooLarge, "the event is larger than the bus allows")
	case errors.Is(err, bus.ErrFull):
		return &refusal{http.StatusServiceUnavailable, "the event log is full, try again later", "5"}
	}
	return &refusal{http.StatusServiceUnavailable, "the event could not be stored, try again", "1"}
}

// receive checks the request and reads its body, decompressed, into b.
func (h *handler) receive(r *http.Request, b *hold) *refusal {
	if h.auth != nil && !h.auth.checkHeader(r) {
		return refuse(http.StatusUnauthorized, "authentication is missing or wrong")
	}
	compressed := false
	if enc := r.Header["Content-Encoding"]; len(enc) > 0 {
		switch e := strings.ToLower(strings.Join(enc, ",")); e {
		case "identity", "":
		case "gzip", "x-gzip":
			compressed = true
		default:
			return refuse(http.StatusUnsupportedMediaType, "content encoding %q is not supported, send gzip or none", e)
		}
	}
	limit := int(h.cfg.MaxBody)
	switch n := r.ContentLength; {
	case n > int64(limit):
		return h.tooLarge()
	case n >= 0 && n <= smallBody: // exactly sized, the usual case
		if n > 0 {
			b.data = make([]byte, n)
			if _, err := io.ReadFull(r.Body, b.data); err != nil {
				return badRead(err)
			}
		}
	case n > 0:
		if ref := b.read(r.Body, int(n), b.first(int(n)), 4); ref != nil {
			return ref
		}
	default:
		if ref := b.read(r.Body, limit, firstBuffer, 2); ref != nil {
			return ref
		}
	}
	if h.auth != nil && !h.auth.checkBody(r, b.data) {
		return refuse(http.StatusUnauthorized, "the signature is wrong or too old")
	}
	if !compressed || len(b.data) == 0 {
		return nil
	}
	return h.inflate(b)
}

func (h *handler) tooLarge() *refusal {
	return refuse(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", int64(h.cfg.MaxBody))
}

func badRead(err error) *refusal {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refuse(http.StatusRequestTimeout, "the body did not arrive in time")
	}
	return refuse(http.StatusBadRequest, "the body ended before its end")
}

// inflate replaces the body by its decompressed form.
func (h *handler) inflate(b *hold) *refusal {
	src := bytes.NewReader(b.data)
	var err error
	z, _ := h.inflaters.Get().(*gzip.Reader)
	if z == nil {
		z, err = gzip.NewReader(src)
	} else {
		err = z.Reset(src)
	}
	if err != nil {
		return refuse(http.StatusBadRequest, "the body is not gzip")
	}
	defer h.inflaters.Put(z)
	b.data = nil
	ref := b.read(z, int(h.cfg.MaxBody), firstBuffer, 2)
	if ref != nil && ref.status == http.StatusBadRequest {
		ref.text = "the body is not gzip"
	}
	return ref
}

// events makes the events of a request: one, or those of a batch.
func (h *handler) events(r *http.Request, body []byte) (*bus.Event, []*bus.Event, *refusal) {
	contentType := ""
	if v := r.Header["Content-Type"]; len(v) > 0 {
		contentType = v[0]
	}
	if !utf8.ValidString(contentType) {
		return nil, nil, refuse(http.StatusBadRequest, "the content type is not valid")
	}
	mt := mediaType(contentType)
	var request []byte
	if h.cfg.Request == "always" || h.host.RequestWanted() {
		request = h.request(r)
	}
	switch {
	case strings.HasPrefix(mt, "multipart/"):
		return nil, nil, refuse(http.StatusUnsupportedMediaType, "multipart bodies are not supported")
	case strings.HasPrefix(mt, "application/cloudevents"):
		evs, ref := h.structured(mt, body)
		if ref != nil {
			return nil, nil, ref
		}
		for i, ev := range evs {
			ev.Request = request
			if ref := tooLong(ev); ref != nil {
				return nil, nil, inBatch(ref, mt == batchType, i)
			}
		}
		if mt == batchType {
			return nil, evs, nil
		}
		return evs[0], nil, nil
	}
	ev := &bus.Event{DataContentType: contentType, Data: body, Request: request}
	_, cloud := r.Header["Ce-Specversion"]
	if cloud {
		if ref := binary(ev, r.Header); ref != nil {
			return nil, nil, ref
		}
	} else if mt == "application/x-www-form-urlencoded" && len(body) > 0 {
		if ref := form(ev); ref != nil {
			return nil, nil, ref
		}
	}
	if len(ev.Data) == 0 {
		ev.Data = nil
		if !cloud {
			ev.DataContentType = ""
		}
	} else if contentType != "" && bus.IsJSON(ev.DataContentType) && !bus.ValidJSON(ev.Data) {
		return nil, nil, refuse(http.StatusBadRequest, "the body is not the JSON its content type %s claims", strconv.Quote(contentType))
	}
	if !cloud {
		if ref := h.set(ev, r); ref != nil {
			return nil, nil, ref
		}
	}
	return ev, nil, tooLong(ev)
}

// tooLong refuses attributes that would not fit into the headers of a record.
func tooLong(ev *bus.Event) *refusal {
	n := escapedLen(ev.ID) + escapedLen(ev.Source) + escapedLen(ev.Type) + escapedLen(ev.Subject) +
		escapedLen(ev.DataContentType) + escapedLen(ev.DataSchema)
	for k, v := range ev.Extensions {
		n += len(k) + 8 + escapedLen(v)
	}
	switch {
	case n > maxAttributes:
		return refuse(http.StatusBadRequest, "the attributes of the event are longer than %d bytes", maxAttributes)
	case n+len(ev.Request) > maxAttributes:
		return refuse(http.StatusRequestHeaderFieldsTooLarge, "path, query and headers are longer than %d bytes", maxAttributes)
	}
	return nil
}

// escapedLen is the length of an attribute on the bus, where some bytes
// become three.
func escapedLen(s string) int {
	n := len(s)
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			n += 2
		}
	}
	return n
}

// mediaType is the type without parameters, in lower case.
func mediaType(contentType string) string {
	if contentType == "application/json" {
		return contentType
	}
	mt, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(mt))
}
