package outbound

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// IdleTimeout is how long a connection waits for its next use.
const IdleTimeout = 90 * time.Second

// Dialer returns what dials the connections of functions.
func Dialer() net.Dialer { return net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second} }

// HTTP is the connections over HTTP of functions with the same settings. It is
// safe for concurrent use.
type HTTP struct {
	TLS *TLS
	// Dir is what files of TLS are relative to, Secret resolves its secrets.
	Dir    string
	Secret func(specs.SecretRef) (string, error)
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	// MaxIdle is how many connections to one host wait for their next use.
	MaxIdle int

	mu        sync.Mutex
	transport *http.Transport // nil until it is needed
}

// Transport returns the transport. It obeys the proxy of the environment; answers
// stay as they come, so that a small one is not unpacked to a large one. It fails
// while files or secrets of TLS cannot be read.
func (h *HTTP) Transport() (*http.Transport, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.transport != nil {
		return h.transport, nil
	}
	cfg, err := h.TLS.Config(h.Dir, h.Secret)
	if err != nil {
		return nil, err
	}
	h.transport = &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         h.Dial,
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: h.MaxIdle,
		IdleConnTimeout:     IdleTimeout,
		DisableCompression:  true,
	}
	return h.transport, nil
}

// CloseIdle closes the connections that are idle; others are closed when their
// call has ended.
func (h *HTTP) CloseIdle() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.transport != nil {
		h.transport.CloseIdleConnections()
	}
}
