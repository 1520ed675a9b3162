package http

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// network holds the connections of all functions of one [Factory]. Functions
// with the same settings share theirs: ten thousand that call one service need
// no more connections than one that is called as often.
type network = outbound.Shared[*links]

// maxIdle is how many connections to one callee wait for their next use. A
// slow callee takes none from others: there is no limit on those in use.
const maxIdle = 256

// links are the connections of functions with the same settings.
type links struct {
	guard   *outbound.Guard // nil when no event decides whom to call
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	buffers sync.Pool // of *[]byte
	// pool serves plain HTTP, other everything else: TLS, HTTP/2, proxies, large
	// bodies.
	pool  *pool
	other outbound.HTTP
}

// connect returns the connections for a config, and how to give them up.
func connect(n *network, cfg *Config, env triggers.Env) (*links, io.Closer, error) {
	key := cfg.TLS.ID(env.Dir)
	dialer := outbound.Dialer()
	var guard *outbound.Guard
	dial := dialer.DialContext
	if eventChoosesHost(cfg.URL) {
		var err error
		if guard, err = outbound.NewGuard(cfg.Allow); err != nil {
			return nil, nil, err
		}
		key += "\nguarded " + strings.Join(cfg.Allow, " ")
		dial = guard.Dial(dialer)
	}
	l, use := n.Open(key, func() *links {
		l := &links{guard: guard, dial: dial}
		l.other = outbound.HTTP{TLS: cfg.TLS, Dir: env.Dir, Secret: env.Secret, Dial: l.dialOrProxy, MaxIdle: maxIdle}
		l.pool = &pool{dial: dial, maxIdle: maxIdle, idle: map[string][]*conn{}}
		l.buffers.New = func() any { b := make([]byte, 0, 2048); return &b }
		return l
	}, (*links).end)
	return l, use, nil
}

// end closes the connections that are idle; others are closed when released.
func (l *links) end() {
	l.pool.close()
	l.other.CloseIdle()
}

// dialOrProxy dials; the engine's proxy is no address that an event chose.
func (l *links) dialOrProxy(ctx context.Context, network, addr string) (net.Conn, error) {
	if l.guard != nil {
		for _, scheme := range []string{"http", "https"} {
			req, err := http.NewRequest(http.MethodGet, scheme+"://proxied.invalid", nil) //nolint:noctx // never sent
			if err != nil {
				return nil, err
			}
			if proxy, err := http.ProxyFromEnvironment(req); err == nil && proxy != nil && addr == hostPort(proxy.Scheme, proxy.Host) {
				return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
			}
		}
	}
	return l.dial(ctx, network, addr)
}

// hostPort is what is dialled for a host of a URL.
func hostPort(scheme, host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	port := "80"
	if scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port)
}

// behindProxy checks the host of a request that a proxy would make.
func (l *links) behindProxy(req *http.Request) error {
	if l.guard == nil {
		return nil
	}
	proxy, err := http.ProxyFromEnvironment(req)
	if err != nil || proxy == nil {
		return nil //nolint:nilerr // the transport tells
	}
	return l.guard.Lookup(req.Context(), req.URL.Hostname())
}

// eventChoosesHost reports whether an expression decides about the host of a
// URL: one stands before the end of what names it.
func eventChoosesHost(u specs.TextOrSecret) bool {
	if u.Secret != nil {
		return false
	}
	before, _, templated := strings.Cut(strings.ReplaceAll(u.Text.Value, "$${", ""), "${")
	if !templated {
		return false
	}
	_, rest, found := strings.Cut(before, "://")
	return !found || !strings.ContainsAny(rest, "/?#")
}
