package outbound

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// IdleTimeout is how long a connection waits for its next use.
const IdleTimeout = 90 * time.Second

// Dialer returns what dials the connections of functions.
func Dialer() net.Dialer { return net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second} }

// Transport returns a transport for calls over HTTP that keeps up to maxIdle
// connections to one host. It obeys the proxy of the environment; answers stay
// as they come, so that a small one is not unpacked to a large one. cfg may be
// nil.
func Transport(dial func(ctx context.Context, network, addr string) (net.Conn, error), cfg *tls.Config, maxIdle int) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial,
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     IdleTimeout,
		DisableCompression:  true,
	}
}
