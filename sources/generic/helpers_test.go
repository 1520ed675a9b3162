package generic

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/generic/eventing"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

type stream = grpc.ServerStreamingServer[eventing.Event]

// server is a real server of events.
type server struct {
	eventing.UnimplementedEventingServer
	addr  string
	serve func(req *eventing.EventSource, s stream) error
	stop  func()
}

func (s *server) StartEventSource(req *eventing.EventSource, st stream) error {
	return s.serve(req, st)
}

// newServer serves on TCP until the test ends or stop is called; addr "" is a
// free port.
func newServer(t testing.TB, addr string, serve func(*eventing.EventSource, stream) error, opts ...grpc.ServerOption) *server {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	opts = append(opts, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}))
	g := grpc.NewServer(opts...)
	s := &server{addr: l.Addr().String(), serve: serve}
	eventing.RegisterEventingServer(g, s)
	var done sync.WaitGroup
	done.Go(func() { _ = g.Serve(l) })
	s.stop = sync.OnceFunc(func() {
		g.Stop()
		done.Wait()
	})
	t.Cleanup(s.stop)
	return s
}

// cursorOf returns what the client says is stored, as a number.
func cursorOf(s stream) int {
	md, _ := metadata.FromIncomingContext(s.Context())
	n := 0
	if v := md.Get(hdrCursor); len(v) > 0 {
		n, _ = strconv.Atoi(v[0])
	}
	return n
}

// count streams the numbers after the cursor up to n, with ids and cursors,
// then waits.
func count(n int) func(*eventing.EventSource, stream) error {
	return func(_ *eventing.EventSource, s stream) error {
		for i := cursorOf(s) + 1; i <= n; i++ {
			text := strconv.Itoa(i)
			if err := s.Send(&eventing.Event{Payload: []byte(text), Id: text, Cursor: text}); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return nil
	}
}

func config(addr string, change ...func(*Config)) *Config {
	c := Factory().New().(*Config)
	c.URL, c.Insecure = addr, true
	c.Reconnect = specs.Duration(10 * time.Millisecond)
	for _, f := range change {
		f(c)
	}
	return c
}

func make1(t testing.TB, c *Config, env sources.Env) sources.Source {
	t.Helper()
	if env.Source == "" {
		env.Source, env.Event = "test", "event"
	}
	s, err := Factory().Make(c, env)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually waits until ok says so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 60 s: %s", what)
		}
	}
}

// numbers checks that the events are exactly 1…n, in the order of their first
// coming, and returns how many came twice.
func numbers(t testing.TB, h *sourcetest.Host, n int) {
	t.Helper()
	evs := h.Events()
	if len(evs) != n {
		t.Errorf("%d events are stored, want %d", len(evs), n)
	}
	seen := map[string]bool{}
	for _, ev := range evs {
		seen[string(ev.Data)] = true
	}
	for i := 1; i <= n; i++ {
		if !seen[strconv.Itoa(i)] {
			t.Errorf("event %d is lost", i)
		}
	}
}

// run runs a source until it fails by itself and returns why.
func run(t testing.TB, c *Config, env sources.Env, h sources.Host) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := make1(t, c, env).Run(ctx, h)
	if ctx.Err() != nil {
		t.Fatal("Run did not fail within 20 s")
	}
	return err
}

// authority makes certificates, as PEM files in dir.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t testing.TB, dir, name string) *authority {
	a := &authority{t: t, dir: dir}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.key, a.cert = a.issue(name, template)
	return a
}

func (a *authority) issue(name string, c *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	c.SerialNumber = big.NewInt(a.n)
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{
		".pem": {Type: "CERTIFICATE", Bytes: der}, "-key.pem": {Type: "PRIVATE KEY", Bytes: raw},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, parsed
}

// leaf issues a certificate and returns it for a server.
func (a *authority) leaf(name string, change func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	a.issue(name, c)
	pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"-key.pem"))
	if err != nil {
		a.t.Fatal(err)
	}
	return pair
}

// tlsServer is the option of a server with this certificate; clients must have
// one of the authority when it is not nil.
func tlsServer(cert tls.Certificate, clients *authority) grpc.ServerOption {
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if clients != nil {
		c.ClientCAs = x509.NewCertPool()
		c.ClientCAs.AddCert(clients.cert)
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return grpc.Creds(credentials.NewTLS(c))
}
