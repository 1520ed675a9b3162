package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

func text(s string) specs.TextOrSecret {
	return specs.TextOrSecret{Text: specs.Text{Value: s, Path: s}}
}

func event() *bus.Event {
	return &bus.Event{
		ID: "id 1", Source: "/shop", Type: "order", Subject: "größe", DataContentType: "application/json",
		Time: time.Unix(1, 0).UTC(), Data: []byte(`{"id":1234567890123456789}`),
		Extensions: map[string]string{"traceparent": "00-ab-cd-01"},
	}
}

func newTest(t testing.TB, cfg *Config, concurrency int) *function {
	f, err := newFunction(cfg, triggers.Env{Concurrency: concurrency}, &network{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

type maker func(t testing.TB, cfg *Config, concurrency int) *function

// paths runs a test over the pool and over the transport.
func paths(t *testing.T, test func(t *testing.T, newTest maker)) {
	t.Run("pool", func(t *testing.T) { test(t, newTest) })
	t.Run("transport", func(t *testing.T) {
		test(t, func(t testing.TB, cfg *Config, concurrency int) *function {
			f := newTest(t, cfg, concurrency)
			f.maxDirect = -1
			return f
		})
	})
}

func TestRequest(t *testing.T) { paths(t, testRequest) }

func testRequest(t *testing.T, newTest maker) {
	type seen struct {
		method, body string
		header       http.Header
	}
	got := make(chan seen, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, string(b), r.Header}
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "done")
	}))
	defer srv.Close()

	base := map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": "id%201", "Ce-Source": "/shop", "Ce-Type": "order", "Ce-Subject": "gr%C3%B6%C3%9Fe",
		"Ce-Time": "1970-01-01T00:00:01Z", "Ce-Traceparent": "00-ab-cd-01", "Content-Type": "application/json",
		"Idempotency-Key": "k1", "Engine-Attempt": "2", "User-Agent": "sensor-engine",
	}
	with := func(kv ...string) map[string]string {
		m := map[string]string{}
		maps.Copy(m, base)
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	plain := with("Ce-Specversion", "", "Ce-Id", "", "Ce-Source", "", "Ce-Type", "", "Ce-Subject", "", "Ce-Time", "", "Ce-Traceparent", "")
	for name, tc := range map[string]struct {
		cfg    Config
		call   triggers.Call
		body   string
		header map[string]string
	}{
		"data untouched": {
			call: triggers.Call{Event: event()}, body: `{"id":1234567890123456789}`, header: base,
		},
		"input": {
			call: triggers.Call{Event: event(), HasInput: true, Input: map[string]any{"a": int64(1)}}, body: `{"a":1}`, header: plain,
		},
		"null input": {
			call: triggers.Call{Event: event(), HasInput: true}, body: `null`, header: plain,
		},
		"no event": {
			header: map[string]string{"Idempotency-Key": "k1", "Engine-Attempt": "2", "Content-Type": "", "Ce-Id": ""},
		},
		"get": {
			cfg: Config{Method: "GET"}, call: triggers.Call{Event: event()}, header: with("Content-Type", ""),
		},
		"headers win": {
			cfg:  Config{Headers: map[string]specs.TextOrSecret{"content-type": text("a/b"), "user-agent": text("me"), "x-y": text("z")}},
			call: triggers.Call{Event: event()}, body: `{"id":1234567890123456789}`,
			header: with("Content-Type", "a/b", "User-Agent", "me", "X-Y", "z"),
		},
		"content type cannot inject": {
			call: triggers.Call{Event: &bus.Event{ID: "1", Source: "s", Type: "t", DataContentType: "a/b\r\nX: y", Data: []byte("x")}},
			body: "x", header: map[string]string{"Content-Type": "a/b%0D%0AX:%20y", "X": ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.cfg.URL = text(strings.Replace(srv.URL, "http://", "http://u:p@", 1))
			f := newTest(t, &tc.cfg, 1)
			tc.call.Key, tc.call.Attempt = "k1", 2
			res, err := f.Invoke(t.Context(), &tc.call)
			if err != nil {
				t.Fatal(err)
			}
			if string(res.Output) != "done" || res.ContentType != "text/plain" || res.Status != "200 OK" || res.Truncated {
				t.Errorf("result %+v", res)
			}
			r := <-got
			if want := max(tc.cfg.Method, ""); want != "" && r.method != want || want == "" && r.method != "POST" {
				t.Errorf("method %s", r.method)
			}
			if r.body != tc.body {
				t.Errorf("body %q, want %q", r.body, tc.body)
			}
			for k, v := range tc.header {
				if g := r.header.Get(k); g != v {
					t.Errorf("%s: %q, want %q", k, g, v)
				}
			}
			if a := r.header.Get("Authorization"); a != "Basic dTpw" {
				t.Errorf("authorization %q", a)
			}
		})
	}
}

func TestStatus(t *testing.T) { paths(t, testStatus) }

func testStatus(t *testing.T, newTest maker) {
	for code, want := range map[int]string{
		200: "", 201: "", 204: "", 299: "",
		301: "permanent", 304: "permanent", 400: "permanent", 404: "permanent", 410: "permanent", 422: "permanent",
		408: "retry", 425: "retry", 429: "retry", 500: "retry", 501: "retry", 503: "retry",
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }))
		f := newTest(t, &Config{URL: text(srv.URL)}, 1)
		_, err := f.Invoke(t.Context(), &triggers.Call{Key: "k", Attempt: 1, Event: event()})
		if got := sort(err); got != want {
			t.Errorf("%d: %q, want %q (%v)", code, got, want, err)
		}
		srv.Close()
	}
}

func sort(err error) string {
	var p *triggers.PermanentError
	var ra *triggers.RetryAfterError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &p):
		return "permanent"
	case errors.As(err, &ra):
		return "after " + ra.After.String()
	}
	return "retry"
}

func TestRetryAfter(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(503)
	}))
	defer srv.Close()
	_, err := newTest(t, &Config{URL: text(srv.URL)}, 1).Invoke(t.Context(), &triggers.Call{})
	if got := sort(err); got != "after 7s" {
		t.Errorf("%s: %v", got, err)
	}
}

func TestDeadline(t *testing.T) { paths(t, testDeadline) }

func testDeadline(t *testing.T, newTest maker) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			io.WriteString(w, "part")
			w.(http.Flusher).Flush()
		}
		<-release
	}))
	defer srv.Close()
	defer close(release)
	for _, p := range []string{"/", "/body"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := newTest(t, &Config{URL: text(srv.URL + p)}, 1).Invoke(ctx, &triggers.Call{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || sort(err) != "retry" {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func BenchmarkInvoke(b *testing.B) {
	addr := answering(b)
	ev := event()
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	headers := [][2]string{
		{"Ce-Specversion", "1.0"},
		{"Ce-Id", "1"},
		{"Ce-Source", "/shop"},
		{"Ce-Type", "order"},
		{"Ce-Subject", "s"},
		{"Ce-Time", "1970-01-01T00:00:01Z"},
		{"Ce-Traceparent", "00-ab-cd-01"},
		{"Content-Type", "application/json"},
		{"Idempotency-Key", "0123456789abcdef"},
		{"Engine-Attempt", "1"},
		{"User-Agent", "sensor-engine"},
	}
	call := func(maxDirect int) func(b *testing.B) {
		return func(b *testing.B) {
			f := newTest(b, &Config{URL: text("http://" + addr + "/orders")}, 16)
			f.maxDirect = maxDirect
			c := &triggers.Call{Key: "0123456789abcdef", Attempt: 1, Event: ev}
			measure(b, func() {
				if _, err := f.Invoke(ctx, c); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
	// The same request with what net/http offers.
	bare := func(do func(*http.Request) (*http.Response, error)) func(b *testing.B) {
		return func(b *testing.B) {
			measure(b, func() {
				req, err := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/orders", bytes.NewReader(ev.Data))
				if err != nil {
					b.Fatal(err)
				}
				for _, h := range headers {
					req.Header[h[0]] = []string{h[1]}
				}
				resp, err := do(req)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			})
		}
	}
	tr := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}
	defer tr.CloseIdleConnections()
	b.Run("pool", call(defaultDirect))
	b.Run("transport", call(-1))
	b.Run("bare roundtrip", bare(tr.RoundTrip))
	b.Run("bare client", bare((&http.Client{Transport: tr}).Do))
}

// measure reports the processor time of an operation too: the time of the
// clock says little on a machine that does other things.
func measure(b *testing.B, op func()) {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.ReportAllocs()
	begin := cpu()
	for b.Loop() {
		op()
	}
	b.ReportMetric(float64(cpu()-begin)/float64(b.N), "cpu-ns/op")
}

// answering is a server that does next to nothing: it takes each read for one
// whole request.
func answering(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 8192)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n{\"ok\":true}"); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}
