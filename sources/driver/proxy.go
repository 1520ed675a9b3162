package driver

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"syscall"
	"time"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// proxy forwards requests from the engine's listener to an exposed driver.
type proxy struct {
	forward   httputil.ReverseProxy
	transport *http.Transport
	// secret returns what a request must know; nil when it need not.
	secret func() (string, error)
}

// newProxy makes a proxy to address for the requests below prefix, which the
// driver does not see. Its idle connections end with close.
func newProxy(address, prefix string, ref *specs.SecretRef, h sources.Host) *proxy {
	p := &proxy{transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}}
	if ref != nil {
		p.secret = func() (string, error) { return h.Secret(*ref) }
	}
	p.forward = httputil.ReverseProxy{
		Transport: p.transport,
		ErrorLog:  slog.NewLogLogger(h.Logger().Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			u := r.Out.URL
			u.Scheme, u.Host = "http", address
			u.Path = "/" + strings.TrimPrefix(u.Path, prefix)
			if u.RawPath != "" {
				u.RawPath = "/" + strings.TrimPrefix(u.RawPath, prefix)
			}
			r.SetXForwarded()
			r.Out.Header.Set("X-Forwarded-Prefix", strings.TrimSuffix(prefix, "/"))
			r.Out.Host = r.In.Host
			if p.secret != nil {
				q := u.Query()
				q.Del("secret")
				u.RawQuery = q.Encode()
				r.Out.Header.Del("Authorization")
			}
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			switch {
			case errors.Is(err, context.Canceled): // nobody waits for an answer
			case errors.Is(err, syscall.ECONNREFUSED):
				w.Header().Set("Retry-After", "1")
				problem(w, http.StatusServiceUnavailable, "the driver does not listen on the port in its variable PORT yet")
			default:
				problem(w, http.StatusBadGateway, "the driver ended the connection without an answer")
			}
		},
	}
	return p
}

func (p *proxy) close() { p.transport.CloseIdleConnections() }

// ServeHTTP forwards a request, or refuses one that does not know the secret.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.secret != nil {
		want, err := p.secret()
		if err != nil {
			problem(w, http.StatusServiceUnavailable, "the shared secret of the driver cannot be read")
			return
		}
		given := r.URL.Query().Get("secret")
		if scheme, tok, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
			given = strings.TrimSpace(tok)
		}
		a, b := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(given))
		if subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			problem(w, http.StatusUnauthorized, "authentication is missing or wrong")
			return
		}
	}
	p.forward.ServeHTTP(w, r)
}

// problem answers as the engine's listener does.
func problem(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(`{"error":"` + text + "\"}\n"))
}
