package driver

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
)

const (
	// gatewayPath is where Dispatch's gateway takes events; other paths are
	// answered as by its side-car.
	gatewayPath = "/v1/event/ingest"
	// maxRequests is how many requests of a driver are served at a time; more
	// wait.
	maxRequests = 32
)

// sidecar takes the events that a driver posts.
type sidecar struct {
	// ctx ends when nothing can be stored any more.
	ctx    context.Context //nolint:containedctx // requests outlive their producer, not the run
	host   sources.Host
	status *status
	token  [sha256.Size]byte
	limit  int64
	// open is true for the address that drivers without a token know.
	open  bool
	slots chan struct{}
}

// answer is what a request is told instead of success.
type answer struct {
	status int
	text   string
	retry  time.Duration // of Retry-After, 0 for none
}

// ServeHTTP answers after the events of the request were stored, or says why
// they were not.
func (s *sidecar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	gateway := r.URL.Path == gatewayPath && !s.open
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.status.ready()
		return // somebody asks whether there is somebody
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		s.fail(w, gateway, answer{status: http.StatusMethodNotAllowed, text: "Incorrect method " + r.Method + ", POST must be used"})
		return
	}
	if !s.trusted(r) {
		s.fail(w, gateway, answer{status: http.StatusUnauthorized, text: "token not recognized"})
		return
	}
	s.status.ready()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.ctx.Done():
	}
	body, refused := s.read(w, r)
	var evs []*bus.Event
	if refused == nil {
		evs, refused = s.events(r, body)
	}
	if refused != nil {
		s.status.refuse(refused.text, body)
		s.fail(w, gateway, *refused)
		return
	}
	if refused := s.store(evs); refused != nil {
		s.fail(w, gateway, *refused)
		return
	}
	if !gateway {
		w.WriteHeader(http.StatusCreated)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, binary := r.Header["Ce-Specversion"]; binary || len(body) == 0 {
		body = []byte("{}")
	}
	_, _ = w.Write(body)
}

func (s *sidecar) fail(w http.ResponseWriter, gateway bool, a answer) {
	h := w.Header()
	if a.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(a.retry.Seconds()))))
	}
	switch a.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusRequestEntityTooLarge:
		h.Set("Connection", "close")
	}
	if gateway {
		h.Set("Content-Type", "application/json")
		w.WriteHeader(a.status)
		_ = json.NewEncoder(w).Encode(struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}{a.status, a.text}) // the driver may be gone
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.text+"\n")
}

// trusted reports whether a request is one of the driver.
func (s *sidecar) trusted(r *http.Request) bool {
	given := r.URL.Query().Get("authToken")
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, tok, _ := strings.Cut(h, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return false
		}
		given = strings.TrimSpace(tok)
	}
	if given == "" {
		return s.open && local(r)
	}
	sum := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(sum[:], s.token[:]) == 1
}

// local reports whether a request is for this machine by name and not from a
// page in a browser, which everybody in the world can write.
func local(r *http.Request) bool {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(host)
	if !strings.EqualFold(host, "localhost") && (ip == nil || !ip.IsLoopback()) {
		return false
	}
	for _, name := range []string{"Origin", "Referer", "Sec-Fetch-Site"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	return true
}

func (s *sidecar) read(w http.ResponseWriter, r *http.Request) ([]byte, *answer) {
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, &answer{status: http.StatusUnsupportedMediaType, text: "content encoding " + quote(e) + " is not supported"}
	}
	tooLarge := &answer{status: http.StatusRequestEntityTooLarge, text: fmt.Sprintf("the body is larger than %d bytes; raise maxMessage", s.limit)}
	switch n := r.ContentLength; {
	case n > s.limit:
		return nil, tooLarge
	case n >= 0:
		body := make([]byte, n)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, &answer{status: http.StatusBadRequest, text: "Error parsing input: the body ended before its end"}
		}
		return body, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.limit))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, tooLarge
	}
	if err != nil {
		return nil, &answer{status: http.StatusBadRequest, text: "Error parsing input: the body ended before its end"}
	}
	return body, nil
}

// events makes the events of a request; all of them are valid, or none is taken.
func (s *sidecar) events(r *http.Request, body []byte) ([]*bus.Event, *answer) {
	var evs []*bus.Event
	ev, is, err := (*bus.Event)(nil), false, error(nil)
	if !strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "application/cloudevents") {
		ev, is, err = binary(r.Header, body)
	}
	if is {
		evs = []*bus.Event{ev}
	} else if err == nil {
		evs, err = parse(body)
	}
	if err != nil {
		return nil, &answer{status: http.StatusBadRequest, text: err.Error()}
	}
	return evs, nil
}

// store stores the events of a request in order, many at a time.
func (s *sidecar) store(evs []*bus.Event) *answer {
	if len(evs) == 1 {
		if err := s.host.Emit(s.ctx, evs[0]); err != nil {
			return s.notStored(evs[0], err)
		}
		s.status.stored(evs[0])
		return nil
	}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		which *bus.Event
		why   error
	)
	failed := func() error {
		mu.Lock()
		defer mu.Unlock()
		return why
	}
	for i, ev := range evs {
		wg.Add(1)
		done := func(err error) {
			if err != nil {
				mu.Lock()
				if why == nil {
					which, why = ev, err
				}
				mu.Unlock()
			}
			wg.Done()
		}
		err := s.host.EmitAsync(s.ctx, ev, done)
		// Over the rate limit, the whole request is refused or none of it:
		// repeated from its beginning, it would never come to its end.
		for limit, ok := errors.AsType[*sources.LimitError](err); ok && i > 0; limit, ok = errors.AsType[*sources.LimitError](err) {
			select {
			case <-s.ctx.Done():
				err = s.ctx.Err()
			case <-time.After(max(limit.RetryAfter, time.Millisecond)):
				err = s.host.EmitAsync(s.ctx, ev, done)
			}
		}
		if err != nil {
			done(err)
		}
		if failed() != nil {
			break // what follows is stored after this one, not before
		}
	}
	wg.Wait()
	if why != nil {
		return s.notStored(which, why)
	}
	s.status.stored(evs[len(evs)-1])
	return nil
}

// notStored is the answer to a failed Emit. All but a too large event may be
// sent again: what was stored of a batch is recognised by its ids.
func (s *sidecar) notStored(ev *bus.Event, err error) *answer {
	text := "Error publishing event with ID " + shorten(ev.ID) + ": "
	if limit, ok := errors.AsType[*sources.LimitError](err); ok {
		return &answer{http.StatusTooManyRequests, text + "the rate limit is reached", limit.RetryAfter}
	}
	switch {
	case errors.Is(err, bus.ErrTooLarge):
		s.status.refuse("an event is larger than the bus takes", []byte(ev.ID))
		return &answer{status: http.StatusRequestEntityTooLarge, text: text + "it is larger than the bus takes"}
	case errors.Is(err, bus.ErrFull):
		return &answer{http.StatusServiceUnavailable, text + "the event log is full, try again later", 5 * time.Second}
	}
	return &answer{http.StatusServiceUnavailable, text + "the bus did not take it, try again", time.Second}
}
