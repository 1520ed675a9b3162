package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// ForbiddenError says that a connection would lead into a network that an
// event must not choose to reach.
type ForbiddenError struct{ Address netip.Addr }

// Error names the address.
func (e *ForbiddenError) Error() string {
	return e.Address.String() + " is not a public address, and the event chose it; if that is meant, add it to allow"
}

// Guard refuses connections to addresses that are not public: those of this
// machine, of private networks, link-local ones with the metadata services of
// clouds, and what leads there. The address that is dialled is looked at, so
// neither the form in which it is written nor what its name means at another
// time matters. The zero value allows no exception. It is not changed once it
// is used.
type Guard struct {
	prefixes []netip.Prefix
	hosts    []string
}

// NewGuard returns a guard with exceptions: addresses, networks in CIDR form,
// and names of hosts, with "*." before them for all names below. An error names
// the first that is none of these.
func NewGuard(allow []string) (*Guard, error) {
	g := &Guard{}
	for _, a := range allow {
		if p, err := netip.ParsePrefix(a); err == nil {
			g.prefixes = append(g.prefixes, p.Masked())
			continue
		}
		if ip, err := netip.ParseAddr(a); err == nil {
			g.prefixes = append(g.prefixes, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
			continue
		}
		name := strings.TrimPrefix(a, "*.")
		if name == "" || strings.ContainsAny(name, "*/:@ \t") {
			return nil, fmt.Errorf("%q is no address, network or name of a host", a)
		}
		g.hosts = append(g.hosts, strings.ToLower(strings.TrimSuffix(a, ".")))
	}
	return g, nil
}

// Names reports whether a host is allowed by its name, whatever its address.
func (g *Guard) Names(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return slices.ContainsFunc(g.hosts, func(h string) bool {
		if suffix, below := strings.CutPrefix(h, "*"); below {
			return strings.HasSuffix(host, suffix) && len(host) > len(suffix)
		}
		return host == h
	})
}

// Check returns a [*ForbiddenError] unless connections to ip are allowed.
func (g *Guard) Check(ip netip.Addr) error {
	plain := ip.WithZone("").Unmap()
	if public(plain) || slices.ContainsFunc(g.prefixes, func(p netip.Prefix) bool { return p.Contains(plain) }) {
		return nil
	}
	return &ForbiddenError{ip}
}

// Dial returns a function that dials like d and under the guard.
func (g *Guard) Dial(d net.Dialer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	open := d
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return errors.New("the address cannot be checked")
		}
		return g.Check(to.Addr())
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if host, _, err := net.SplitHostPort(addr); err == nil && g.Names(host) {
			return open.DialContext(ctx, network, addr)
		}
		return d.DialContext(ctx, network, addr)
	}
}

// Lookup checks all addresses of a host, for connections that somebody else
// makes, such as a proxy. A name that cannot be looked up here is left to them.
func (g *Guard) Lookup(ctx context.Context, host string) error {
	if g.Names(host) {
		return nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil //nolint:nilerr // as documented
	}
	for _, ip := range ips {
		if err := g.Check(ip); err != nil {
			return err
		}
	}
	return nil
}

// special are the networks of the registries of special-purpose addresses
// (RFC 6890 and its successors) that are not for everybody to reach.
var special = func() (out []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}()

var (
	global = netip.MustParsePrefix("2000::/3")
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
)

// public reports whether ip is an address of the internet.
func public(ip netip.Addr) bool {
	if ip.Is6() {
		b := ip.As16()
		switch {
		case nat64.Contains(ip):
			return public(netip.AddrFrom4([4]byte(b[12:16])))
		case sixTo4.Contains(ip):
			return public(netip.AddrFrom4([4]byte(b[2:6])))
		case !global.Contains(ip):
			return false
		}
	}
	return ip.IsValid() && !slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(ip) })
}
