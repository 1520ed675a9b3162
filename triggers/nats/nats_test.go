package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// serve starts a NATS server that ends with the test, or when stop is called.
func serve(t testing.TB, change func(*server.Options)) (addr string, stop func()) {
	t.Helper()
	o := &server.Options{
		ServerName: "test", Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, MaxPayload: 1 << 20,
		JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40,
	}
	if change != nil {
		change(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server does not start")
	}
	stop = sync.OnceFunc(func() { s.Shutdown(); s.WaitForShutdown() })
	t.Cleanup(stop)
	return s.Addr().String(), stop
}

// peer is a client of the test's own.
func peer(t testing.TB, addr string, o ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(addr, o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

var secrets = map[string]string{"a/password": "canary-password", "a/token": "canary-token", "a/header": "canary-header"}

// makeFunction makes a function that is closed when the test ends.
func invoke(t testing.TB, config string, c *triggers.Call, env triggers.Env) (triggers.Result, error) {
	t.Helper()
	f, v := triggertest.Make(t, Factory(), config, secrets, env)
	c.Values = v.Of(c)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return f.Invoke(ctx, c)
}

func TestContract(t *testing.T) {
	const most = 4 << 20
	addr, _ := serve(t, func(o *server.Options) { o.Username, o.Password, o.MaxPayload = "me", "canary-password", most })
	nc := peer(t, addr, nats.UserInfo("me", "canary-password"))
	if _, err := nc.Subscribe("slow", func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Subscribe("fails", func(m *nats.Msg) {
		_ = m.RespondMsg(&nats.Msg{Header: nats.Header{hdrErrorCode: {"404"}, hdrError: {"no such thing"}}})
	}); err != nil {
		t.Fatal(err)
	}
	for subject, answer := range map[string]func(*nats.Msg) []byte{
		"key":    func(m *nats.Msg) []byte { return []byte(m.Header.Get(hdrKey)) },
		"length": func(m *nats.Msg) []byte { return fmt.Append(nil, len(m.Data)) },
		"huge":   func(*nats.Msg) []byte { return make([]byte, most) },
		"text":   func(m *nats.Msg) []byte { return m.Data },
	} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond(answer(m)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	at := func(addr, subject, mode string) string {
		return fmt.Sprintf("url: %s\nsubject: %s\nmode: %s\nauth: {user: me, password: {name: a, key: password}}\nheaders: {X: {secret: {name: a, key: header}}, Y: '${ type }'}", addr, subject, mode)
	}
	config := func(subject, mode string) string { return at(addr, subject, mode) }
	triggertest.Run(t, triggertest.Suite{
		Factory: Factory(), OK: config("orders.${ data.id }", "publish"), Slow: config("slow", "request"),
		Permanent: config("fails", "request"), Retryable: config("nobody", "request"),
		Key: config("key", "request"), Length: config("length", "request"), Most: most - 1<<10, Huge: config("huge", "request"), Text: config("text", "request"),
		Addr: addr, Server: func(addr string) string { return at(addr, "length", "request") },
		Secrets: secrets, Env: triggers.Env{Secret: triggertest.Secrets(secrets)},
	})
}

func TestPublish(t *testing.T) {
	addr, _ := serve(t, nil)
	nc := peer(t, addr)
	sub, err := nc.SubscribeSync("orders.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil { // it must be there before the first message
		t.Fatal(err)
	}
	next := func() *nats.Msg {
		t.Helper()
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	res, err := invoke(t, "url: "+addr+"\nsubject: orders.${ data.id }\nheaders: {CE-Subject: mine, X-Type: '${ type }'}", triggertest.NewCall("k"), triggers.Env{})
	if err != nil || res.Status != "published" {
		t.Fatalf("%+v, %v", res, err)
	}
	m := next()
	if m.Subject != "orders.1234567890123456789" || string(m.Data) != `{"id":1234567890123456789}` {
		t.Errorf("%s %s", m.Subject, m.Data)
	}
	for name, want := range map[string]string{
		"ce-specversion": "1.0", "ce-id": "event-k", "ce-source": "/tests", "ce-type": "test", "ce-time": "2030-01-02T03:04:05.000000006Z", "content-type": "application/json",
		"ce-traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"CE-Subject":     "mine", "ce-subject": "", "X-Type": "test", hdrKey: "k", hdrAttempt: "1", "engine-hops": "",
	} {
		if got := strings.Join(m.Header[name], "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	c := triggertest.NewInputCall(map[string]any{"a": int64(1)})
	if _, err := invoke(t, "url: "+addr+"\nsubject: orders.x", c, triggers.Env{}); err != nil {
		t.Fatal(err)
	}
	if m := next(); string(m.Data) != `{"a":1}` || m.Header.Get("ce-id") != "" || m.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %v", m.Data, m.Header)
	}
}

func TestSubject(t *testing.T) {
	addr, _ := serve(t, nil)
	for value, want := range map[string]string{
		"a b": "has spaces", "a\r\nPUB x 1": "has spaces", "": "is empty", "a..b": "has an empty part", ".a": "has an empty part", "a.": "has an empty part", "*": "has a wildcard", "a.>": "has a wildcard",
		"$JS.API.STREAM.DELETE.ORDERS": "one of the server's own", "_INBOX.x": "one of the server's own", "fine": "", "größe": "",
	} {
		c := triggertest.NewInputCall(value)
		_, err := invoke(t, "url: "+addr+"\nsubject: ${ input }", c, triggers.Env{})
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || triggers.ClassOf(err) != triggers.InputError) {
			t.Errorf("%q: %v, want %s", value, err, want)
		}
	}
}

func TestRequest(t *testing.T) {
	addr, _ := serve(t, nil)
	nc := peer(t, addr)
	if _, err := nc.Subscribe("svc.*", func(m *nats.Msg) {
		r := &nats.Msg{Data: append([]byte("got "), m.Data...), Header: nats.Header{}}
		switch what := strings.TrimPrefix(m.Subject, "svc."); what {
		case "json":
			r.Data = m.Data
		case "typed":
			r.Header["content-type"] = []string{"a/b"}
		case "huge":
			r.Data = make([]byte, 1<<20)
		case "empty":
			r.Data = nil
		case "ok":
		default:
			r.Header[hdrErrorCode], r.Header[hdrError] = []string{what}, []string{"because\nof that"}
		}
		_ = m.RespondMsg(r)
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		"ok":    "text/plain; charset=utf-8 got {\"id\":1234567890123456789}",
		"json":  "application/json {\"id\":1234567890123456789}",
		"typed": "a/b got {\"id\":1234567890123456789}",
		"empty": " ",
		"400":   "InputError permanent: the service answered with error 400 because of that",
		"422":   "InputError permanent",
		"404":   "FunctionError permanent: the service answered with error 404",
		"429":   "FunctionError retry", "500": "FunctionError retry", "weird": "FunctionError retry: the service answered with error weird",
		"nobody.there": "SystemError retry: nobody answers it (no responders)",
	} {
		res, err := invoke(t, "url: "+addr+"\nsubject: svc."+what+"\nmode: request", triggertest.NewCall("k"), triggers.Env{})
		got := res.ContentType + " " + string(res.Output)
		if err != nil {
			got = sort(err) + strings.TrimPrefix(strings.TrimPrefix(err.Error(), string(triggers.ClassOf(err))+": "), addr+": subject svc."+what)
		}
		if got != want && (err == nil || !strings.HasPrefix(got, want)) {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	if res, err := invoke(t, "url: "+addr+"\nsubject: svc.huge\nmode: request", triggertest.NewCall("k"), triggers.Env{}); err != nil || len(res.Output) != triggers.MaxOutput || res.Truncated {
		t.Errorf("%d bytes, %v", len(res.Output), err)
	}
	c := triggertest.NewCall("k")
	c.Event.Data = make([]byte, 2<<20)
	if _, err := invoke(t, "url: "+addr+"\nsubject: svc.ok", c, triggers.Env{}); !triggers.Permanent(err) || !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("too large: %v", err)
	}
}

func sort(err error) string {
	how := "retry"
	if triggers.Permanent(err) {
		how = "permanent"
	}
	return string(triggers.ClassOf(err)) + " " + how
}

func TestJetStream(t *testing.T) {
	addr, _ := serve(t, nil)
	js, err := jetstream.New(peer(t, addr))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, MaxMsgs: 2, Discard: jetstream.DiscardNew})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(key, subject string) (triggers.Result, error) {
		return invoke(t, "url: "+addr+"\njetstream: true\nsubject: "+subject, triggertest.NewCall(key), triggers.Env{})
	}
	for i, want := range []string{`{"duplicate":false,"sequence":1,"stream":"ORDERS"}`, `{"duplicate":true,"sequence":1,"stream":"ORDERS"}`} {
		if res, err := publish("k", "orders.a"); err != nil || string(res.Output) != want {
			t.Errorf("%d: %s, %v", i, res.Output, err)
		}
	}
	if res, err := publish("l", "orders.a"); err != nil || res.Status != "stored" {
		t.Errorf("%+v, %v", res, err)
	}
	if info, err := stream.Info(t.Context()); err != nil || info.State.Msgs != 2 {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := publish("m", "orders.a"); err == nil || sort(err) != "SystemError retry" || !strings.Contains(err.Error(), "maximum messages exceeded") {
		t.Errorf("full: %v", err)
	}
	if _, err := publish("k", "other"); err == nil || sort(err) != "SystemError retry" || !strings.Contains(err.Error(), "no stream takes it") {
		t.Errorf("no stream: %v", err)
	}
}

// TestPermissions: what the server refuses is told, not taken for published.
func TestPermissions(t *testing.T) {
	addr, _ := serve(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "me", Password: "canary-password", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"allowed.>"}},
		}}}
	})
	auth := "\nauth: {user: me, password: {name: a, key: password}}"
	for _, mode := range []string{"", "\nmode: request", "\njetstream: true"} {
		begin := time.Now()
		_, err := invoke(t, "url: "+addr+"\nsubject: secret.plans"+auth+mode, triggertest.NewCall("k"), triggers.Env{})
		if err == nil || !triggers.Permanent(err) || !strings.Contains(err.Error(), "may not publish to it") {
			t.Errorf("%s: %v", mode, err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: took %v", mode, took)
		}
	}
	f, v := triggertest.Make(t, Factory(), "url: "+addr+"\nsubject: ${ input }"+auth, secrets, triggers.Env{})
	for _, subject := range []string{"secret.a", "allowed.a", "secret.a", "allowed.secret.a"} {
		c := triggertest.NewInputCall(subject)
		c.Values = v.Of(c)
		if _, err := f.Invoke(t.Context(), c); (err == nil) != strings.HasPrefix(subject, "allowed") {
			t.Errorf("%s: %v", subject, err)
		}
	}
}

func TestAuth(t *testing.T) {
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	pub, _ := user.PublicKey()
	seed, _ := user.Seed()
	op, acc, creds := operator(t)
	dir := t.TempDir()
	cert := triggertest.Certificate(t, dir)
	known := triggertest.Secrets(map[string]string{
		"a/password": "canary-password", "a/token": "canary-token", "a/seed": string(seed) + "\n", "a/creds": creds, "a/user": "me", "a/wrong": "canary-wrong",
	})
	for name, tc := range map[string]struct {
		server     func(*server.Options)
		good, bad  string
		wrong, url string
	}{
		"password": {
			server: func(o *server.Options) { o.Username, o.Password = "me", "canary-password" },
			good:   "auth: {user: {secret: {name: a, key: user}}, password: {name: a, key: password}}", bad: "auth: {user: me, password: {name: a, key: wrong}}", wrong: "it refuses this client",
		},
		"nothing": {
			server: func(o *server.Options) { o.Username, o.Password = "me", "canary-password" },
			good:   "auth: {user: me, password: {name: a, key: password}}", bad: "", wrong: "it refuses this client",
		},
		"token": {
			server: func(o *server.Options) { o.Authorization = "canary-token" },
			good:   "auth: {token: {name: a, key: token}}", bad: "auth: {token: {name: a, key: wrong}}", wrong: "it refuses this client",
		},
		"nkey": {
			server: func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: pub}} },
			good:   "auth: {nkey: {name: a, key: seed}}", bad: "auth: {nkey: {name: a, key: wrong}}", wrong: "is no seed of an nkey",
		},
		"creds": {
			server: func(o *server.Options) {
				o.TrustedOperators, o.SystemAccount, o.AccountResolver = op, acc.sys, acc.resolver
			},
			good: "auth: {creds: {name: a, key: creds}}", bad: "auth: {creds: {name: a, key: wrong}}", wrong: "cannot connect",
		},
		"absent": {
			server: func(o *server.Options) { o.Authorization = "canary-token" },
			good:   "auth: {token: {name: a, key: token}}", bad: "auth: {token: {name: a, key: absent}}", wrong: "secret a, key absent is not set",
		},
		"tls": {
			server: func(o *server.Options) {
				o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
			},
			good: "tls: {ca: ca.pem}", bad: "tls: {}", wrong: "unknown authority",
		},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := serve(t, tc.server)
			env := triggers.Env{Dir: dir, Secret: known}
			if _, err := invoke(t, "url: "+addr+"\nsubject: a\n"+tc.good, triggertest.NewCall("k"), env); err != nil {
				t.Error(err)
			}
			_, err := invoke(t, "url: "+addr+"\nsubject: a\n"+tc.bad, triggertest.NewCall("k"), env)
			if err == nil || !strings.Contains(err.Error(), tc.wrong) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%v, want %s", err, tc.wrong)
			}
		})
	}
}

type account struct {
	sys      string
	resolver server.AccountResolver
}

// operator makes an operator with an account and the credentials of a user.
func operator(t *testing.T) ([]*jwt.OperatorClaims, account, string) {
	t.Helper()
	pair := func(make func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		k, err := make()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return k, pub
	}
	sign := func(c jwt.Claims, k nkeys.KeyPair) string {
		s, err := c.Encode(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	op, opPub := pair(nkeys.CreateOperator)
	_, sysPub := pair(nkeys.CreateAccount)
	acc, accPub := pair(nkeys.CreateAccount)
	user, userPub := pair(nkeys.CreateUser)
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	oc := jwt.NewOperatorClaims(opPub)
	oc.SystemAccount = sysPub
	if oc, err = jwt.DecodeOperatorClaims(sign(oc, op)); err != nil {
		t.Fatal(err)
	}
	resolver := &server.MemAccResolver{}
	for pub, c := range map[string]jwt.Claims{sysPub: jwt.NewAccountClaims(sysPub), accPub: jwt.NewAccountClaims(accPub)} {
		if err := resolver.Store(pub, sign(c, op)); err != nil {
			t.Fatal(err)
		}
	}
	creds, err := jwt.FormatUserConfig(sign(jwt.NewUserClaims(userPub), acc), seed)
	if err != nil {
		t.Fatal(err)
	}
	return []*jwt.OperatorClaims{oc}, account{sysPub, resolver}, string(creds)
}

// TestConnection: one for all functions with the same settings, and again when
// the server comes back.
func TestConnection(t *testing.T) {
	addr, stop := serve(t, nil)
	configs := make([]string, 20)
	for i := range configs {
		configs[i] = fmt.Sprintf("url: %s\nsubject: a.%d", addr, i)
	}
	fs, call := triggertest.Together(t, Factory(), configs...)
	if err := call(); err != nil {
		t.Fatal(err)
	}
	first := fs[0].(*function).link
	for _, fn := range fs {
		if fn.(*function).link != first {
			t.Fatal("two connections")
		}
	}
	stop()
	if err := call(); err == nil || sort(err) != "SystemError retry" && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	port := 0
	_, _ = fmt.Sscanf(addr[strings.LastIndex(addr, ":")+1:], "%d", &port)
	serve(t, func(o *server.Options) { o.Port = port })
	deadline := time.Now().Add(20 * time.Second)
	for call() != nil {
		if time.Now().After(deadline) {
			t.Fatal("it does not connect again")
		}
	}
}

// TestAway: a server that is not there fails calls fast, one that says nothing
// does not hold them beyond their time.
func TestAway(t *testing.T) {
	addr, stop := serve(t, nil)
	stop()
	if _, err := invoke(t, "url: "+addr+"\nsubject: a", triggertest.NewCall("k"), triggers.Env{}); err == nil || sort(err) != "SystemError retry" || !strings.Contains(err.Error(), "nothing answers there") {
		t.Error(err)
	}
	silent := httptest.NewServer(nil) // speaks only when spoken to
	defer silent.Close()
	f, v := triggertest.Make(t, Factory(), "url: "+strings.TrimPrefix(silent.URL, "http://")+"\nsubject: a", secrets, triggers.Env{})
	c := triggertest.NewCall("k")
	c.Values = v.Of(c)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := f.Invoke(ctx, c); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 3*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

func TestValidate(t *testing.T) {
	triggertest.Validate(t, Factory(), map[string]string{
		"subject: a":                        "missing-key",
		"url: a":                            "missing-key",
		"url: http://a\nsubject: a":         "http:// is no address of a NATS server",
		"url: nats://a,ftp://b\nsubject: a": "ftp:// is no address of a NATS server",
		"url: nats://u:p@a\nsubject: a":     "the address has a user or a token in it",
		"url: a\nsubject: a.*":              "has a wildcard",
		"url: a\nsubject: a\nmode: request\njetstream: true":                            "a request is answered by a service",
		"url: a\nsubject: a\nmode: ask":                                                 "unknown-value",
		"url: a\nsubject: a\nheaders: {'a b': c}":                                       "is no header name",
		"url: a\nsubject: a\nheaders: {A: c, a: d}":                                     "given twice",
		"url: a\nsubject: a\nauth: {}":                                                  "auth has 0 ways",
		"url: a\nsubject: a\nauth: {user: b}":                                           "a user needs a password",
		"url: a\nsubject: a\nauth: {token: {name: a, key: b}, nkey: {name: a, key: b}}": "auth has 2 ways",
		"url: a\nsubject: a\nauth: {user: '${ data.x }', password: {name: a, key: b}}":  "user has no templates",
		"url: a\nsubject: a\ntls: {cert: a}":                                            "needs cert and key",
		"url: 'a:4222, tls://b'\nsubject: ${ data.x }":                                  "",
	})
}

func BenchmarkInvoke(b *testing.B) {
	addr, _ := serve(b, nil)
	nc := peer(b, addr)
	if _, err := nc.Subscribe("svc", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		b.Fatal(err)
	}
	_ = nc.Flush()
	for _, mode := range []string{"publish", "request"} {
		f, v := triggertest.Make(b, Factory(), "url: "+addr+"\nsubject: svc\nmode: "+mode, secrets, triggers.Env{})
		c := triggertest.NewCall("k")
		c.Values = v.Of(c)
		b.Run(mode, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.Invoke(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("bare request", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := nc.Request("svc", []byte(`{"id":1234567890123456789}`), 10*time.Second); err != nil {
				b.Fatal(err)
			}
		}
	})
}
