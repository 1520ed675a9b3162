package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/ingress"
	"github.com/sensor-engine/engine/specs"
)

const (
	// maxAttribute bounds each attribute a spec sets, and maxAttributes all of
	// one event together with its request as they travel: JetStream takes at
	// most 64 KiB of headers.
	maxAttribute  = 4 << 10
	maxAttributes = 60 << 10
)

// source is one webhook.
type source struct {
	cfg      *Config
	route    sources.Route
	params   []string // names of the path parameters
	attrs    attributes
	head     bool     // HEAD is one of the methods
	keys     []string // of the Secret with API keys
	bodies   *ingress.Bodies
	inFlight atomic.Int64
}

func newSource(c *Config, env sources.Env) (*source, error) {
	segs, err := sources.ParsePath(c.Path)
	if err != nil {
		return nil, err
	}
	attrs, ds := compileAttributes(c, fieldName)
	if err := ds.Err(); err != nil {
		return nil, err
	}
	s := &source{cfg: c, route: c.route(), attrs: attrs, bodies: ingress.NewBodies(int64(c.MaxBody))}
	if c.Auth != nil && c.Auth.APIKeys != nil && env.Resource != nil {
		s.keys = ingress.Keys(env.Resource(specs.Ref{Kind: specs.KindSecret, Name: c.Auth.APIKeys.Secret}))
	}
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
	auth, err := ingress.NewAuth(s.cfg.Auth, s.keys, h)
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
	auth *ingress.Auth
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
		h.fail(w, &ingress.Refusal{Status: http.StatusTooManyRequests, Text: "too many requests at the same time", Retry: "1"})
		return
	}
	var body ingress.Body
	defer body.Release()
	if _, ref := h.bodies.Receive(r, h.auth, &body); ref != nil {
		if ref.Status == http.StatusRequestEntityTooLarge && r.Close {
			ingress.Half(w, r)
		}
		h.fail(w, ref)
		return
	}
	one, batch, ref := h.events(r, body.Data)
	if ref != nil {
		h.fail(w, ref)
		return
	}
	if one != nil {
		if err := h.host.Emit(r.Context(), one); err != nil {
			h.fail(w, notStored(err))
			return
		}
		h.accept(w, ingress.AppendString(append(make([]byte, 0, 64), `{"id":`...), one.ID))
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
		answer = ingress.AppendString(answer, ev.ID)
	}
	h.accept(w, append(answer, ']'))
}

// accept answers 202 with the object in answer, which lacks its closing brace.
func (h *handler) accept(w http.ResponseWriter, answer []byte) {
	w.Header()["Content-Type"] = []string{"application/json"}
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(append(answer, '}', '\n')) // the producer may be gone
}

func (h *handler) fail(w http.ResponseWriter, ref *ingress.Refusal) {
	hdr := w.Header()
	hdr["Content-Type"] = []string{"application/json"}
	ref.Headers(hdr, h.auth)
	w.WriteHeader(ref.Status)
	_, _ = w.Write(append(ingress.AppendString([]byte(`{"error":`), ref.Text), '}', '\n'))
}

// notStored is the answer to a failed Emit. All but a too large event may be
// sent again: what was stored of a batch is recognised by its ids.
func notStored(err error) *ingress.Refusal {
	if limit, ok := errors.AsType[*sources.LimitError](err); ok {
		seconds := (limit.RetryAfter + time.Second - 1) / time.Second
		return &ingress.Refusal{Status: http.StatusTooManyRequests, Text: "the rate limit of this event is reached", Retry: strconv.Itoa(int(max(seconds, 1)))}
	}
	switch {
	case errors.Is(err, bus.ErrTooLarge):
		return ingress.Refuse(http.StatusRequestEntityTooLarge, "the event is larger than the bus allows")
	case errors.Is(err, bus.ErrFull):
		return &ingress.Refusal{Status: http.StatusServiceUnavailable, Text: "the event log is full, try again later", Retry: "5"}
	}
	return &ingress.Refusal{Status: http.StatusServiceUnavailable, Text: "the event could not be stored, try again", Retry: "1"}
}

// events makes the events of a request: one, or those of a batch.
func (h *handler) events(r *http.Request, body []byte) (*bus.Event, []*bus.Event, *ingress.Refusal) {
	contentType := ""
	if v := r.Header["Content-Type"]; len(v) > 0 {
		contentType = v[0]
	}
	if !utf8.ValidString(contentType) {
		return nil, nil, ingress.Refuse(http.StatusBadRequest, "the content type is not valid")
	}
	mt := mediaType(contentType)
	var request []byte
	if h.cfg.Request == "always" || h.host.RequestWanted() {
		request = ingress.AppendRequest(make([]byte, 0, 512), r, h.params, h.auth)
	}
	switch {
	case strings.HasPrefix(mt, "multipart/"):
		return nil, nil, ingress.Refuse(http.StatusUnsupportedMediaType, "multipart bodies are not supported")
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
		return nil, nil, ingress.Refuse(http.StatusBadRequest, "the body is not the JSON its content type %s claims", strconv.Quote(contentType))
	}
	if !cloud {
		if ref := h.set(ev, r); ref != nil {
			return nil, nil, ref
		}
	}
	return ev, nil, tooLong(ev)
}

// form replaces a form by a JSON object whose values are strings, or lists of
// strings for fields that occur more than once. A body that is JSON all the
// same is taken as such: it is what `curl -d` sends without a content type.
func form(ev *bus.Event) *ingress.Refusal {
	if c := ev.Data[0]; (c == '{' || c == '[') && bus.ValidJSON(ev.Data) {
		ev.DataContentType = "application/json"
		return nil
	}
	fields, err := url.ParseQuery(string(ev.Data))
	if err != nil {
		return ingress.Refuse(http.StatusBadRequest, "the body is not a form")
	}
	object, ok := ingress.Fields(fields)
	if !ok {
		return ingress.Refuse(http.StatusBadRequest, "the form is not UTF-8")
	}
	if ev.Data, err = json.Marshal(object); err != nil {
		return ingress.Refuse(http.StatusBadRequest, "the body is not a form")
	}
	ev.DataContentType = "application/json"
	return nil
}

// tooLong refuses attributes that would not fit into the headers of a record.
func tooLong(ev *bus.Event) *ingress.Refusal {
	n := escapedLen(ev.ID) + escapedLen(ev.Source) + escapedLen(ev.Type) + escapedLen(ev.Subject) +
		escapedLen(ev.DataContentType) + escapedLen(ev.DataSchema)
	for k, v := range ev.Extensions {
		n += len(k) + 8 + escapedLen(v)
	}
	switch {
	case n > maxAttributes:
		return ingress.Refuse(http.StatusBadRequest, "the attributes of the event are longer than %d bytes", maxAttributes)
	case n+len(ev.Request) > maxAttributes:
		return ingress.Refuse(http.StatusRequestHeaderFieldsTooLarge, "path, query and headers are longer than %d bytes", maxAttributes)
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
