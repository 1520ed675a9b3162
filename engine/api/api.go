// Package api owns the HTTP interface of a running engine: the API under
// /api/v1, health, readiness and metrics, and who may ask. It reads and steers
// the engine through its exported methods and keeps no state of its own. It
// must not know concrete sources, functions or buses.
package api

import (
	"crypto/sha256"
	_ "embed"
	"log/slog"
	"net/http"
	"time"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/specs"
)

// Options configures the API.
type Options struct {
	// Addr is the address it is served on, "host:port".
	Addr string
	// Hosts are further host names under which it may be asked.
	Hosts []string
	// Token is what clients must present as Authorization: Bearer; "" for
	// nothing, which only a loopback address may have.
	Token string
	// Types are what specs can use, for the schema.
	Types specs.Types
	// Logger gets what goes wrong inside; nil is slog.Default.
	Logger *slog.Logger
	// Done ends the streams of those who follow; nil never does.
	Done <-chan struct{}
}

// Document is the OpenAPI description of the API.
//
//go:embed openapi.yaml
var Document []byte

// server answers for one engine.
type server struct {
	o         Options
	e         *engine.Engine
	log       *slog.Logger
	guard     guard
	followers chan struct{} // one entry per stream, as many as may be
	shadows   chan struct{} // one entry for each who evaluates the log again
}

// maxFollowers bounds the streams at the same time.
const maxFollowers = 64

// New returns the handler of an engine's API. It is safe for concurrent use,
// also before the engine runs.
func New(e *engine.Engine, o Options) http.Handler {
	s := &server{o: o, e: e, log: o.Logger, guard: newGuard(o), followers: make(chan struct{}, maxFollowers), shadows: make(chan struct{}, maxShadows)}
	if s.log == nil {
		s.log = slog.Default()
	}
	return s.wrap(s.routes())
}

// Starting is the handler to serve before there is an engine: alive, not ready.
func Starting() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { alive(w) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		reply(w, http.StatusServiceUnavailable, readiness{Reasons: []string{"the engine is starting"}, Error: "the engine is starting"})
	})
	return mux
}

// route is one operation. The table is what openapi.yaml describes; a test
// compares the two.
type route struct {
	method, path string
	handle       func(http.ResponseWriter, *http.Request) error
	// open routes need no token.
	open bool
}

func (s *server) table() []route {
	return []route{
		{"GET", "/healthz", s.healthz, true},
		{"GET", "/readyz", s.readyz, true},
		{"GET", "/metrics", s.metrics(), false},
		{"GET", "/api/v1/status", s.status, false},
		{"GET", "/api/v1/resources", s.resources, false},
		{"GET", "/api/v1/resources/{kind}/{name}", s.resource, false},
		{"GET", "/api/v1/sensors/{name}/pending", s.pending, false},
		{"POST", "/api/v1/sensors/{name}/pause", s.pause, false},
		{"POST", "/api/v1/sensors/{name}/resume", s.resume, false},
		{"GET", "/api/v1/events", s.events, false},
		{"POST", "/api/v1/events", s.emit, false},
		{"GET", "/api/v1/explain", s.explain, false},
		{"POST", "/api/v1/replay", s.replay, false},
		{"GET", "/api/v1/runs", s.runs, false},
		{"POST", "/api/v1/runs", s.exec, false},
		{"GET", "/api/v1/runs/{id}", s.run, false},
		{"GET", "/api/v1/dlq", s.letters, false},
		{"DELETE", "/api/v1/dlq", s.dropAll, false},
		{"POST", "/api/v1/dlq/redrive", s.redriveAll, false},
		{"GET", "/api/v1/dlq/{id}", s.letter, false},
		{"DELETE", "/api/v1/dlq/{id}", s.drop, false},
		{"POST", "/api/v1/dlq/{id}/redrive", s.redrive, false},
		{"POST", "/api/v1/reload", s.reload, false},
		{"GET", "/api/v1/schema", s.schema, false},
		{"GET", "/api/v1/openapi.yaml", s.openapi, false},
	}
}

func (s *server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	for _, r := range s.table() {
		mux.HandleFunc(r.method+" "+r.path, func(w http.ResponseWriter, req *http.Request) {
			if !r.open && !s.guard.known(req) {
				w.Header().Set("WWW-Authenticate", `Bearer realm="engine"`)
				fail(w, &statusError{http.StatusUnauthorized, "a token is needed: Authorization: Bearer <token>"})
				return
			}
			if err := r.handle(w, req); err != nil {
				s.fail(w, req, err)
			}
		})
	}
	return mux
}

// wrap puts around the routes what holds for every request.
func (s *server) wrap(mux *http.ServeMux) http.Handler {
	cross := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
					panic(p)
				}
				s.log.Error("API request panicked", "path", r.URL.Path, "panic", p)
				fail(w, &statusError{http.StatusInternalServerError, "internal error; the log has more"})
			}
		}()
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTimeout))
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if err := s.guard.check(r); err != nil {
			fail(w, err)
			return
		}
		if err := cross.Check(r); err != nil {
			fail(w, &statusError{http.StatusForbidden, "a page of another origin may not do this"})
			return
		}
		if handler, pattern := mux.Handler(r); pattern == "" {
			unrouted(w, r, handler)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// answerTimeout bounds how long an answer may take, its reader included.
const answerTimeout = time.Minute

// unrouted answers as the mux would, but in JSON.
func unrouted(w http.ResponseWriter, r *http.Request, h http.Handler) {
	rec := &discard{header: http.Header{}, status: http.StatusOK}
	h.ServeHTTP(rec, r)
	if allow := rec.header.Get("Allow"); allow != "" {
		w.Header().Set("Allow", allow)
	}
	if loc := rec.header.Get("Location"); loc != "" {
		w.Header().Set("Location", loc)
	}
	text := "there is nothing at " + r.URL.Path
	if rec.status == http.StatusMethodNotAllowed {
		text = r.Method + " is not possible here"
	}
	fail(w, &statusError{rec.status, text})
}

// discard keeps the status and headers of an answer.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

func hash(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }
