package jetstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
)

// external is a real NATS server on a TCP port.
type external struct {
	t    testing.TB
	opts server.Options
	srv  *server.Server
}

func newExternal(t testing.TB, change func(*server.Options)) *external {
	t.Helper()
	e := &external{t: t, opts: server.Options{
		ServerName: "external", Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: bustest.Dir(t),
		NoSigs: true, NoLog: true, MaxPayload: mib, JetStreamMaxStore: 1 << 50, JetStreamMaxMemory: 64 * mib,
	}}
	if change != nil {
		change(&e.opts)
	}
	e.start()
	t.Cleanup(e.stop)
	return e
}

func (e *external) start() {
	e.t.Helper()
	o := e.opts
	s, err := server.NewServer(&o)
	if err != nil {
		e.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		e.t.Fatal("the server did not start")
	}
	e.srv = s
	e.opts.Port = s.Addr().(*net.TCPAddr).Port // the same after a restart
}

func (e *external) stop() {
	if e.srv != nil {
		e.srv.Shutdown()
		e.srv.WaitForShutdown()
		e.srv = nil
	}
}

func (e *external) options() Options {
	return Options{
		URL: fmt.Sprintf("nats://127.0.0.1:%d", e.opts.Port), RedeliverAfter: time.Second,
		CheckInterval: 20 * time.Millisecond, AckTimeout: 10 * time.Second,
	}
}

func TestExternal(t *testing.T) {
	t.Parallel()
	bustest.Run(t, bustest.Config{
		Open: func(t *testing.T) bus.Bus { return mustOpen(t, newExternal(t, nil).options()) },
		Small: func(t *testing.T) bus.Bus {
			o := newExternal(t, nil).options()
			o.Limits.Events, o.Limits.Runs = mib, mib
			return mustOpen(t, o)
		},
		Redeliver: time.Second,
	})
}

// TestPrefix runs two engines on one account.
func TestPrefix(t *testing.T) {
	t.Parallel()
	e := newExternal(t, nil)
	other := e.options()
	other.Prefix = "other"
	mustAppend(t, mustOpen(t, other).Events(), 0)
	n := 0
	bustest.Run(t, bustest.Config{
		Open: func(t *testing.T) bus.Bus {
			o := e.options()
			n++
			o.Prefix = fmt.Sprintf("p%d", n)
			return mustOpen(t, o)
		},
		Redeliver: time.Second,
	})
}

func TestExternalUserPassword(t *testing.T) {
	e := newExternal(t, func(o *server.Options) { o.Username, o.Password = "engine", "s3cret" })
	o := e.options()
	if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), "cannot connect") {
		t.Errorf("without a password: %v", err)
	}
	o.URL = strings.Replace(o.URL, "//", "//engine:wrong@", 1)
	if _, err := Open(context.Background(), o); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong password: %v", err)
	}
	o.URL = strings.Replace(o.URL, "wrong", "s3cret", 1)
	mustAppend(t, mustOpen(t, o).Events(), 0)
}

func TestExternalCredentials(t *testing.T) {
	op, opPub := key(t, nkeys.CreateOperator)
	sys, sysPub := key(t, nkeys.CreateAccount)
	acc, accPub := key(t, nkeys.CreateAccount)
	user, userPub := key(t, nkeys.CreateUser)
	oc := jwt.NewOperatorClaims(opPub)
	oc.SystemAccount = sysPub
	sign(t, oc, op)
	ac := jwt.NewAccountClaims(accPub)
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	res := &server.MemAccResolver{}
	for pub, c := range map[string]string{sysPub: sign(t, jwt.NewAccountClaims(sysPub), op), accPub: sign(t, ac, op)} {
		if err := res.Store(pub, c); err != nil {
			t.Fatal(err)
		}
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(sign(t, jwt.NewUserClaims(userPub), acc), seed)
	if err != nil {
		t.Fatal(err)
	}
	_ = sys
	file := filepath.Join(t.TempDir(), "user.creds")
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	e := newExternal(t, func(o *server.Options) {
		o.TrustedOperators, o.SystemAccount, o.AccountResolver = []*jwt.OperatorClaims{oc}, sysPub, res
	})
	o := e.options()
	if _, err := Open(context.Background(), o); err == nil {
		t.Error("without credentials")
	}
	o.Credentials = file
	mustAppend(t, mustOpen(t, o).Events(), 0)
}

func key(t *testing.T, create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
	t.Helper()
	k, err := create()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return k, pub
}

func sign(t *testing.T, c jwt.Claims, k nkeys.KeyPair) string {
	t.Helper()
	s, err := c.Encode(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExternalTLS(t *testing.T) {
	dir := t.TempDir()
	ca, caKey := certificate(t, nil, nil)
	save := func(name, kind string, der []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	leaf, leafKey := certificate(t, ca, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	files := TLS{CA: save("ca.pem", "CERTIFICATE", ca.Raw), Cert: save("cert.pem", "CERTIFICATE", leaf.Raw), Key: save("key.pem", "PRIVATE KEY", der)}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	e := newExternal(t, func(o *server.Options) {
		o.TLS, o.TLSTimeout = true, 5
		o.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey}},
			ClientCAs:    pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		}
	})
	o := e.options()
	for name, bad := range map[string]TLS{"nothing": {}, "no certificate": {CA: files.CA}, "missing file": {CA: files.CA + "x"}} {
		o.TLS = bad
		if _, err := Open(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	o.TLS = files
	mustAppend(t, mustOpen(t, o).Events(), 0)
}

func certificate(t *testing.T, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "engine test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: parent == nil,
	}
	if parent == nil {
		parent, signer = c, k
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out, k
}

func TestExternalErrors(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	closedPort, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := closedPort.Addr().String()
	_ = closedPort.Close()
	small := newExternal(t, func(o *server.Options) { o.MaxPayload = 64 * kib })
	noJS := newExternal(t, func(o *server.Options) { o.JetStream = false })
	tight := newExternal(t, func(o *server.Options) { o.JetStreamMaxStore = mib })
	foreign := newExternal(t, nil)
	b := mustOpen(t, foreign.options())
	if err := b.js.DeleteStream(ctx, "EVENTS"); err != nil {
		t.Fatal(err)
	}
	// No watch of b may repair it in between: it is closed first.
	_ = b.Close(ctx)
	bb := mustOpen(t, func() Options { o := foreign.options(); o.Prefix = "x"; return o }())
	if _, err := bb.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"engine.events.>"}}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"nobody there", Options{URL: "nats://user:s3cret@" + addr}, "cannot connect to bus nats://" + addr},
		{"no URL", Options{URL: "::"}, "cannot connect to bus (unreadable URL)"},
		{"payload", func() Options { o := small.options(); o.MaxPayload = mib; return o }(), "raise its max_payload"},
		{"no JetStream", noJS.options(), "has no JetStream"},
		{"no room", tight.options(), "raise it (max_file_store)"},
		{"foreign stream", foreign.options(), "was not made by an engine"},
		{"nothing given", Options{}, "neither a store directory nor a URL"},
		{"certificate without key", Options{URL: "x", TLS: TLS{Cert: "c"}}, "go together"},
		{"prefix", Options{Dir: "x", Prefix: "a.b"}, "prefix"},
		{"partitions", Options{Dir: "x", Partitions: 2000}, "partitions"},
		{"replicas", Options{URL: "x", Replicas: 6}, "replicas"},
		{"payload limit", Options{Dir: "x", MaxPayload: 1 << 30}, "payload limit"},
		{"unlimited", Options{Dir: "x", Limits: Limits{Events: -1}}, "needs a limit"},
		{"credentials", Options{Dir: "x", Credentials: "y"}, "need the URL"},
	} {
		_, err := Open(ctx, tc.o)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func mustAppend(t testing.TB, l bus.Log, i int) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bustest.Timeout)
	defer cancel()
	a, err := l.Append(ctx, bus.Record{Subject: bus.EventSubject("s", "e"), Data: fmt.Append(nil, i)})
	if err != nil {
		t.Fatal(err)
	}
	return a.Seq
}

// eventually polls f.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(bustest.Timeout); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// load appends events until stop is called and keeps the ledger of what was
// acknowledged.
type load struct {
	wg     sync.WaitGroup
	cancel context.CancelFunc
	mu     sync.Mutex
	acked  map[string]uint64
	failed int
}

func startLoad(b bus.Bus, workers int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, acked: map[string]uint64{}}
	for w := range workers {
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("%d-%d", w, i)
				a, err := b.Events().Append(context.Background(), bus.Record{Subject: bus.EventSubject("s", "e"), Data: []byte(key)})
				l.mu.Lock()
				if err == nil {
					l.acked[key] = a.Seq
				} else {
					l.failed++
				}
				l.mu.Unlock()
				if err != nil {
					select {
					case <-time.After(5 * time.Millisecond):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	return l
}

func (l *load) counts() (acked, failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked), l.failed
}

func (l *load) stop() { l.cancel(); l.wg.Wait() }

// follow reads the log until it has everything up to last.
func follow(t testing.TB, r bus.Reader, last func() (uint64, bool)) map[uint64]string {
	t.Helper()
	got := map[uint64]string{}
	seen := uint64(0)
	end := time.Now().Add(2 * bustest.Timeout)
	for {
		if n, ok := last(); ok && seen >= n {
			return got
		}
		if time.Now().After(end) {
			t.Errorf("the reader stands at %d", seen)
			return got
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		rs, err := r.Next(ctx, 512)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Next: %v", err)
			return got
		}
		for _, rec := range rs {
			if rec.Seq != seen+1 {
				t.Errorf("seq %d after %d", rec.Seq, seen)
			}
			seen = rec.Seq
			got[rec.Seq] = string(rec.Data)
		}
	}
}

// outage runs load, a reader and a consumer while fault happens a few times,
// and compares the ledger with what arrived.
func outage(t *testing.T, b *Bus, fault func()) {
	t.Helper()
	r, err := b.Events().Read(context.Background(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	l := startLoad(b, 8)
	var mu sync.Mutex
	stopped, last := false, uint64(0)
	var got map[uint64]string
	var wg sync.WaitGroup
	wg.Go(func() {
		got = follow(t, r, func() (uint64, bool) { mu.Lock(); defer mu.Unlock(); return last, stopped })
	})
	// Jobs: each that was acknowledged is delivered at least once.
	ctx, cancel := context.WithCancel(context.Background())
	jobs := map[string]bool{}
	wg.Go(func() {
		err := b.Jobs().Consume(ctx, 0, 100, func(d bus.Delivery) {
			mu.Lock()
			jobs[string(d.Record().Data)] = true
			mu.Unlock()
			_ = d.Done()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Consume: %v", err)
		}
	})
	want := map[string]bool{}
	append100 := func() {
		for i := range 100 {
			key := fmt.Sprintf("%d/%d", len(want), i)
			if _, err := b.Jobs().Append(context.Background(), bus.Record{Subject: bus.JobsPrefix + "0.s.t", Data: []byte(key)}); err == nil {
				want[key] = true
			}
		}
	}
	for range 3 {
		before, _ := l.counts()
		eventually(t, "events to flow", func() bool { n, _ := l.counts(); return n > before+200 })
		append100()
		fault()
		eventually(t, "the bus to be well", func() bool { return b.Health().OK })
		append100()
	}
	before, _ := l.counts()
	eventually(t, "events to flow again", func() bool { n, _ := l.counts(); return n > before+200 })
	l.stop()
	eventually(t, "all jobs", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for k := range want {
			if !jobs[k] {
				return false
			}
		}
		return true
	})
	cancel()
	i, err := b.Events().Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	stopped, last = true, i.Last
	mu.Unlock()
	wg.Wait()
	lost := 0
	for key, seq := range l.acked {
		if got[seq] != key {
			lost++
		}
	}
	n, failed := l.counts()
	t.Logf("%d acknowledged, %d failed, %d stored, %d jobs", n, failed, len(got), len(want))
	if lost > 0 {
		t.Errorf("%d of %d acknowledged events are not in the log", lost, n)
	}
}

func TestExternalRestartUnderLoad(t *testing.T) {
	e := newExternal(t, nil)
	o := e.options()
	var logs logBuffer
	o.Logger = slog.New(slog.NewTextHandler(&logs, nil))
	b := mustOpen(t, o)
	for p := 1; p < b.Jobs().Partitions(); p++ {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = b.Jobs().Consume(ctx, p, 10, func(bus.Delivery) {}) })
		t.Cleanup(wg.Wait)
		t.Cleanup(cancel)
	}
	defer func() {
		if n := strings.Count(logs.String(), "\n"); n > 9 {
			t.Errorf("%d lines of log for three outages:\n%s", n, logs.String())
		}
	}()
	outage(t, b, func() {
		e.stop()
		eventually(t, "health to notice", func() bool { return !b.Health().OK })
		if _, err := b.Events().Append(context.Background(), bus.Record{Subject: bus.EventSubject("s", "down")}); !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("Append while down: %v, want ErrUnavailable", err)
		}
		e.start()
	})
}

// TestEmbeddedRestartUnderLoad exchanges the server under everybody's feet.
func TestEmbeddedRestartUnderLoad(t *testing.T) {
	b := mustOpen(t, options(t))
	outage(t, b, func() {
		b.emb.stop()
		if err := b.emb.start(); err != nil {
			t.Error(err)
		}
	})
}

// TestConnectionLost cuts the connections while the server lives on: what was
// on the way is gone, the consumers are not.
func TestConnectionLost(t *testing.T) {
	b := mustOpen(t, newExternal(t, nil).options())
	outage(t, b, func() {
		if err := errors.Join(b.rc.ForceReconnect(), b.nc.ForceReconnect()); err != nil {
			t.Error(err)
		}
	})
}

// TestStreamDeleted removes what we live on.
func TestStreamDeleted(t *testing.T) {
	ctx := context.Background()
	e := newExternal(t, nil)
	b := mustOpen(t, e.options())
	mustAppend(t, b.Events(), 0)
	r, err := b.Events().Read(ctx, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := r.Next(ctx, 1); err != nil {
		t.Fatal(err)
	}
	was, err := b.Events().Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.js.DeleteStream(ctx, "EVENTS"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Events().Append(ctx, bus.Record{Subject: bus.EventSubject("s", "e")}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("Append to a deleted stream: %v, want ErrUnavailable", err)
	}
	var now bus.LogInfo
	eventually(t, "the stream to be made again", func() bool {
		now, err = b.Events().Info(ctx)
		return err == nil && b.Health().OK
	})
	if now.ID == was.ID || now.ID == "" {
		t.Errorf("the new stream has the id %q of the old one", now.ID)
	}
	rctx, cancel := context.WithTimeout(ctx, bustest.Timeout)
	defer cancel()
	if _, err := r.Next(rctx, 1); !errors.Is(err, bus.ErrReplaced) {
		t.Errorf("Next on a replaced stream: %v, want ErrReplaced", err)
	}
	if seq := mustAppend(t, b.Events(), 1); seq != 1 {
		t.Errorf("seq %d in the new stream", seq)
	}
}

// TestConsumerDeleted removes consumers under a reader and a worker.
func TestConsumerDeleted(t *testing.T) {
	ctx := t.Context()
	b := mustOpen(t, options(t))
	r, err := b.Events().Read(ctx, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	got := make(chan string, 100)
	cctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = b.Jobs().Consume(cctx, 5, 10, func(d bus.Delivery) { got <- string(d.Record().Data); _ = d.Done() })
	})
	defer wg.Wait()
	defer cancel()
	for i := range 3 {
		mustAppend(t, b.Events(), i)
		if rs, err := r.Next(ctx, 10); err != nil || len(rs) != 1 || rs[0].Seq != uint64(i+1) {
			t.Fatalf("round %d: %v, %v", i, rs, err)
		}
		if _, err := b.Jobs().Append(ctx, bus.Record{Subject: bus.JobsPrefix + "5.s.t", Data: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
		if j := <-got; j != fmt.Sprint(i) {
			t.Fatalf("job %s, want %d", j, i)
		}
		eventually(t, "the job to be gone", func() bool { // else it would come again
			info, err := b.Jobs().Info(ctx)
			return err == nil && info.Records == 0
		})
		for _, s := range []string{"EVENTS", "JOBS"} {
			st, err := b.js.Stream(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			for name := range st.ConsumerNames(ctx).Name() {
				if err := st.DeleteConsumer(ctx, name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
