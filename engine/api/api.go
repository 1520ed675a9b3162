// Package api owns the HTTP interface of a running engine: the API under
// /api/v1, health, readiness and metrics, and who may ask. It reads and steers
// the engine through its exported methods and keeps no state of its own. It
// must not know concrete sources, functions or buses.
package api

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/sensor-engine/engine/engine"
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
	// Catalog is what specs can use, for the schema.
	Catalog engine.Catalog
	// Logger gets what goes wrong inside; nil is slog.Default.
	Logger *slog.Logger
	// Done ends the streams of those who follow; nil never does.
	Done <-chan struct{}
}

// Loopback reports whether addr ("host:port") can be reached from this machine
// alone.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// Starting is the handler to serve before there is an engine: alive, not ready.
func Starting() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"status": "ok"})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		writeJSON(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "reasons": []string{"starting"}, "error": "the engine is starting"})
	})
	return mux
}

// New returns the handler of an engine's API.
func New(e *engine.Engine, o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ok, why := e.Ready(r.Context())
		status := http.StatusOK
		if !ok {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, map[string]any{"ready": ok, "reasons": why})
	})
	return mux
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
