package outbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"pgregory.net/rapid"
)

func TestPublic(t *testing.T) {
	for s := range strings.FieldsSeq(`
		1.1.1.1 8.8.8.8 93.184.216.34 172.15.255.255 172.32.0.1 192.167.1.1 100.63.255.255 100.128.0.1 169.253.1.1 223.255.255.255
		2606:4700:4700::1111 2a00:1450:4001:82a::200e 64:ff9b::8.8.8.8 2002:808:808::1 ::ffff:8.8.8.8`) {
		if err := new(Guard).Check(netip.MustParseAddr(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for s := range strings.FieldsSeq(`
		0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255 169.254.169.254 172.16.0.1 172.31.255.255
		192.0.0.1 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
		:: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::7f00:1 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:7f00:1::1 2002:a9fe:a9fe::1
		3fff::1 5f00::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1`) {
		ip := netip.MustParseAddr(s)
		err := new(Guard).Check(ip)
		if _, ok := errors.AsType[*ForbiddenError](err); !ok || !strings.HasPrefix(err.Error(), ip.String()+" is not a public address") {
			t.Errorf("%s: %v", s, err)
		}
	}
	if new(Guard).Check(netip.Addr{}) == nil {
		t.Error("no address is public")
	}
}

// TestPublicIsWhatNetipSays: nothing that the standard library calls special
// is public.
func TestPublicIsWhatNetipSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
		ip := netip.AddrFrom16([16]byte(b))
		if rapid.Bool().Draw(t, "v4") {
			ip = netip.AddrFrom4([4]byte(b[:4]))
		}
		if public(ip.Unmap()) && (ip.IsPrivate() || !ip.IsGlobalUnicast() || ip.IsLoopback()) {
			t.Fatalf("%v is public", ip)
		}
	})
}

func TestExceptions(t *testing.T) {
	g, err := NewGuard([]string{"10.1.2.3/16", "127.0.0.1", "fd00::/8", "hooks.Internal", "*.svc.local"})
	if err != nil {
		t.Fatal(err)
	}
	for s, ok := range map[string]bool{
		"10.1.0.1": true, "10.2.0.1": false, "127.0.0.1": true, "::ffff:127.0.0.1": true, "127.0.0.2": false, "fd12::1": true, "fc00::1": false,
	} {
		if err := g.Check(netip.MustParseAddr(s)); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
	for s, ok := range map[string]bool{
		"hooks.internal": true, "HOOKS.internal.": true, "a.hooks.internal": false, "a.svc.local": true, "a.b.svc.local": true, "svc.local": false, "xsvc.local": false, "": false,
	} {
		if g.Names(s) != ok {
			t.Errorf("%s: %v", s, !ok)
		}
	}
	for _, bad := range []string{"", "*.", "a*b", "http://a", "a:80", "10.0.0.0/99", "a b", "*"} {
		if _, err := NewGuard([]string{bad}); err == nil {
			t.Errorf("%q is an exception", bad)
		}
	}
}

// names is a resolver that knows the addresses of some names.
func names(t *testing.T, known map[string][]string) *net.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) == 0 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Additionals = true, nil
			for _, s := range known[strings.TrimSuffix(q.Name.String(), ".")] {
				if q.Type == dnsmessage.TypeA {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET},
						Body:   &dnsmessage.AResource{A: netip.MustParseAddr(s).As4()},
					})
				}
			}
			if b, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(b, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

// TestDial: what is dialled counts, not how it is written or what it was
// called before.
func TestDial(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	g, err := NewGuard([]string{"allowed.test"})
	if err != nil {
		t.Fatal(err)
	}
	dial := g.Dial(net.Dialer{Timeout: 5 * time.Second, Resolver: names(t, map[string][]string{
		"rebound.test": {"127.0.0.1"}, "both.test": {"10.0.0.1", "127.0.0.1"}, "allowed.test": {"127.0.0.1"},
	})})
	for _, host := range []string{"127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "rebound.test", "both.test", "[::1]", "0.0.0.0"} {
		c, err := dial(t.Context(), "tcp", host+":"+port)
		if _, ok := errors.AsType[*ForbiddenError](err); !ok {
			t.Errorf("%s: %v", host, err)
		}
		if err == nil {
			_ = c.Close()
		}
	}
	// Forms that only some resolvers know must not lead here either.
	for _, host := range []string{"127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "017700000001", "127.0.0.1.", "localhost"} {
		if c, err := dial(t.Context(), "tcp", host+":"+port); err == nil {
			_ = c.Close()
			t.Errorf("%s leads to this machine", host)
		}
	}
	c, err := dial(t.Context(), "tcp", "allowed.test:"+port)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestLookup(t *testing.T) {
	g, err := NewGuard([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	for host, ok := range map[string]bool{"localhost": true, "127.0.0.1": false, "169.254.169.254": false, "1.1.1.1": true, "no-such-host.invalid": true} {
		if err := g.Lookup(t.Context(), host); (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
}
