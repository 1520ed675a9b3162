package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Loopback reports whether addr ("host:port") can be reached from this machine
// alone.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && loopbackHost(host)
}

func loopbackHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// guard decides who may ask.
type guard struct {
	token *[sha256.Size]byte // nil: everybody
	// hosts are the names under which the API may be asked; every IP address
	// too when anyIP, because a name that an attacker rebinds is never one.
	hosts map[string]bool
	anyIP bool
}

func newGuard(o Options) guard {
	g := guard{hosts: map[string]bool{}}
	if o.Token != "" {
		sum := hash(o.Token)
		g.token = &sum
	}
	for _, h := range o.Hosts {
		g.hosts[strings.ToLower(h)] = true
	}
	host, _, _ := net.SplitHostPort(o.Addr)
	ip, err := netip.ParseAddr(host)
	g.anyIP = host == "" || err == nil && ip.IsUnspecified()
	if host != "" {
		g.hosts[strings.ToLower(host)] = true
	}
	return g
}

// known reports whether the request has the token, or none is needed.
func (g guard) known(r *http.Request) bool { return g.token == nil || g.hasToken(r) }

func (g guard) hasToken(r *http.Request) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if g.token == nil || !strings.EqualFold(scheme, "bearer") {
		return false
	}
	sum := hash(strings.TrimSpace(token))
	return subtle.ConstantTimeCompare(sum[:], g.token[:]) == 1
}

// check refuses what a web page in somebody's browser may have sent: a host
// name that is not ours (DNS rebinding), or another origin. Who presents the
// token is no such page.
func (g guard) check(r *http.Request) error {
	if !g.host(r.Host) && !g.hasToken(r) {
		return &statusError{http.StatusForbidden, "the API is not known under the host " + r.Host + "; --api-hosts adds one"}
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil
	}
	if u, err := url.Parse(origin); err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
		return &statusError{http.StatusForbidden, "a page of another origin may not ask"}
	}
	return nil
}

// host reports whether the Host header names this API. The port does not
// matter: it differs behind a forwarded port, and rebinding changes names.
func (g guard) host(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if loopbackHost(host) || g.hosts[host] {
		return true
	}
	_, err := netip.ParseAddr(host)
	return g.anyIP && err == nil
}
