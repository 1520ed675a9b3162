package http

import (
	"bytes"
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
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// fixed gives every secret and every text with a template the same value.
type fixed struct {
	triggers.Values
	value string
}

func (f fixed) TextOrSecret(t specs.TextOrSecret) (string, error) {
	if v, ok := triggers.Constant(t); ok {
		return v, nil
	}
	return t.Prefix + f.value, nil
}

func secret() specs.TextOrSecret {
	return specs.TextOrSecret{Secret: &specs.SecretRef{Name: "a", Key: "b"}}
}

// Calls up to the concurrency share that many connections, whatever the size
// and the status of the answers.
func TestReuse(t *testing.T) { paths(t, testReuse) }

func testReuse(t *testing.T, newTest maker) {
	const concurrency = 20
	var conns atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Query().Get("id") {
		case "1":
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, "sorry")
		case "2": // no Content-Length
			_, _ = io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "b")
		case "3": // too long, a little
			_, _ = w.Write(make([]byte, triggers.MaxOutput+1000))
		case "4":
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	f := newTest(t, &Config{URL: secret()}, concurrency)
	for range 5 {
		var wg sync.WaitGroup
		for i := range concurrency {
			wg.Go(func() {
				_, err := f.Invoke(t.Context(), &triggers.Call{Key: "k", Event: event(), Values: fixed{value: fmt.Sprintf("%s/?id=%d", srv.URL, i%5)}})
				if (err != nil) != (i%5 == 1) {
					t.Errorf("%d: %v", i%5, err)
				}
			})
		}
		wg.Wait()
	}
	if n := conns.Load(); n > concurrency {
		t.Errorf("%d connections for %d calls at a time", n, concurrency)
	}
}

func TestOutput(t *testing.T) { paths(t, testOutput) }

func testOutput(t *testing.T, newTest maker) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int
		_, _ = fmt.Sscan(r.URL.Query().Get("n"), &n)
		if r.URL.Query().Get("chunked") != "" {
			w.(http.Flusher).Flush()
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		if r.URL.Query().Get("short") != "" {
			n /= 2
		}
		chunk := bytes.Repeat([]byte("x"), 1<<16)
		for n > 0 {
			m, err := w.Write(chunk[:min(n, len(chunk))])
			if err != nil {
				return
			}
			n -= m
		}
	}))
	defer srv.Close()
	for query, want := range map[string]string{
		"n=0": "0 false", "n=5": "5 false", "n=5&chunked=1": "5 false",
		fmt.Sprint("n=", triggers.MaxOutput): "1048576 false", fmt.Sprint("chunked=1&n=", triggers.MaxOutput): "1048576 false",
		fmt.Sprint("n=", triggers.MaxOutput+1): "1048576 true", fmt.Sprint("chunked=1&n=", triggers.MaxOutput+1): "1048576 true",
		"n=50000000":         "1048576 true",
		"n=100000&short=yes": "50000 false unexpected EOF",
	} {
		res, err := newTest(t, &Config{URL: text(srv.URL + "/?" + query)}, 1).Invoke(t.Context(), &triggers.Call{})
		got := fmt.Sprintf("%d %v", len(res.Output), res.Truncated)
		if err != nil {
			got += " " + errors.Unwrap(err).Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	// Compressed answers are kept as they came.
	srv2 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("Accept-Encoding"))
	}))
	defer srv2.Close()
	if res, err := newTest(t, &Config{URL: text(srv2.URL)}, 1).Invoke(t.Context(), &triggers.Call{}); err != nil || len(res.Output) != 0 {
		t.Errorf("asks for %s, %v", res.Output, err)
	}
}

// A server that closes an idle connection just when it is used again is no
// failed attempt.
func TestStaleConnection(t *testing.T) { paths(t, testStaleConnection) }

func testStaleConnection(t *testing.T, newTest maker) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var requests atomic.Int64
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 4096)
				for i := 0; ; i++ {
					if _, err := c.Read(b); err != nil || i == 1 {
						return // the second request on a connection is never answered
					}
					requests.Add(1)
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			}()
		}
	}()
	f := newTest(t, &Config{URL: text("http://" + ln.Addr().String())}, 1)
	for range 4 {
		if _, err := f.Invoke(t.Context(), &triggers.Call{Key: "k", Event: event()}); err != nil {
			t.Fatal(err)
		}
	}
	if requests.Load() != 4 {
		t.Errorf("%d requests answered", requests.Load())
	}
}

// No error shows the user, the password, the query or a URL that is a secret.
func TestErrorsAreSilent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	for _, raw := range []string{
		"http://user:canary@" + closed + "/?token=canary", "http://canary:x@[::1/", "http://h:canary/", "canary://h/", "http://user:%zcanary@h/",
		"http://user:canary@no-such-host.invalid/?canary#canary",
	} {
		for _, u := range []specs.TextOrSecret{text(raw), secret()} {
			f, err := newFunction(&Config{URL: u}, triggers.Env{}, &network{})
			if err == nil {
				_, err = f.Invoke(t.Context(), &triggers.Call{Values: fixed{value: raw}})
			}
			if err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v", raw, err)
			}
		}
	}
	_, err = newTest(t, &Config{URL: secret()}, 1).Invoke(t.Context(), &triggers.Call{Values: fixed{value: "http://" + closed + "/services/canary"}})
	if err == nil || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), closed) {
		t.Errorf("secret path: %v", err)
	}
	_, err = newTest(t, &Config{URL: text("http://" + closed), Headers: map[string]specs.TextOrSecret{"X": secret()}}, 1).
		Invoke(t.Context(), &triggers.Call{Values: fixed{value: "canary\r\nY: z"}})
	if sort(err) != "permanent" || strings.Contains(err.Error(), "canary") {
		t.Errorf("header: %v", err)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) { paths(t, testRedirectsAreNotFollowed) }

func testRedirectsAreNotFollowed(t *testing.T, newTest maker) {
	var other atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			other.Add(1)
		}
		http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	_, err := newTest(t, &Config{URL: text(srv.URL)}, 1).Invoke(t.Context(), &triggers.Call{Event: event()})
	if sort(err) != "permanent" || !strings.Contains(err.Error(), "307 Temporary Redirect") || other.Load() != 0 {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	write := func(name, typ string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write("client.pem", "CERTIFICATE", der)
	write("client.key", "PRIVATE KEY", keyDER)

	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		_, _ = io.WriteString(w, name+" "+r.Proto)
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	write("ca.pem", "CERTIFICATE", srv.Certificate().Raw)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	local := "https://localhost:" + u.Port()

	env := triggers.Env{Dir: dir, Secret: func(ref specs.SecretRef) (string, error) {
		b, err := os.ReadFile(filepath.Join(dir, ref.Key))
		return string(b), err
	}}
	for name, tc := range map[string]struct {
		url  string
		tls  *outbound.TLS
		want string
	}{
		"unknown authority": {srv.URL, nil, "certificate"},
		"ca":                {srv.URL, &outbound.TLS{CA: text("ca.pem")}, "nobody HTTP/2.0"},
		"absolute":          {srv.URL, &outbound.TLS{CA: text(filepath.Join(dir, "ca.pem"))}, "nobody HTTP/2.0"},
		"client":            {srv.URL, &outbound.TLS{CA: text("ca.pem"), Cert: text("client.pem"), Key: text("client.key")}, "client HTTP/2.0"},
		"wrong name":        {local, &outbound.TLS{CA: text("ca.pem")}, "certificate"},
		"server name":       {local, &outbound.TLS{CA: text("ca.pem"), ServerName: "example.com"}, "nobody HTTP/2.0"},
		"secrets": {srv.URL, &outbound.TLS{
			CA:   specs.TextOrSecret{Secret: &specs.SecretRef{Name: "pem", Key: "ca.pem"}},
			Cert: specs.TextOrSecret{Secret: &specs.SecretRef{Name: "pem", Key: "client.pem"}}, Key: specs.TextOrSecret{Secret: &specs.SecretRef{Name: "pem", Key: "client.key"}},
		}, "client HTTP/2.0"},
		"skip verify": {local, &outbound.TLS{InsecureSkipVerify: true}, "nobody HTTP/2.0"},
	} {
		f, err := newFunction(&Config{URL: text(tc.url), TLS: tc.tls}, env, &network{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		res, err := f.Invoke(ctx, &triggers.Call{Event: event()})
		cancel()
		if got := fmt.Sprintf("%s%v", res.Output, err); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		if err != nil && sort(err) != "retry" {
			t.Errorf("%s: %v is not retried", name, err)
		}
		_ = f.Close()
	}
	for want, c := range map[string]*outbound.TLS{
		"tls.ca: absent.pem: no such file": {CA: text("absent.pem")}, "no PEM certificate": {CA: text("client.key")},
		"tls.cert and tls.key": {CA: text("ca.pem"), Cert: text("client.pem"), Key: text("ca.pem")},
	} {
		f, err := newFunction(&Config{URL: text(srv.URL), TLS: c}, env, &network{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Invoke(t.Context(), &triggers.Call{Event: event()}); err == nil || !strings.Contains(err.Error(), want) || sort(err) != "retry" {
			t.Errorf("%v, want %s", err, want)
		}
		_ = f.Close()
	}
}
