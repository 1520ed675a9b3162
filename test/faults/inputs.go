package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// tornSpecs writes specs the way no editor should.
func tornSpecs(t *trial) {
	s := t.sink()
	var mu sync.Mutex
	versions := map[string]int{}
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	// The version is part of the path of a third sensor's function.
	text := func(version string) string {
		return spec(s.Addr(), "") + fmt.Sprintf(`---
apiVersion: engine/v1
kind: Sensor
metadata: {name: version}
spec:
  dependencies: [{name: ev, source: load, event: in, when: data.n %% 10 == 0}]
  triggers: [{name: call, http: {url: "http://%s/v/%s", method: POST}}]
`, s.Addr(), version)
	}
	fn := func(path string) {
		if v, ok := strings.CutPrefix(path, "/v/"); ok {
			mu.Lock()
			versions[v]++
			mu.Unlock()
		}
	}
	s.before.Store(&fn)
	e.start()
	l := t.traffic(e, 4, 5*time.Millisecond)
	file := filepath.Join(e.specs, "load.yaml")
	inPlace := func(b []byte) { t.must(os.WriteFile(file, b, 0o644)) }
	for i := range t.n {
		bad := []byte(text(fmt.Sprintf("bad-%d", i)))
		cut := 1 + t.rng.IntN(len(bad)-40)
		switch i % 4 {
		case 0: // half of it, the rest later, twice
			inPlace(bad[:cut])
			t.pause(t.between(0, 500*time.Millisecond))
			inPlace(append(bad[:cut:cut], "\n  [half: {written"...))
		case 1: // valid YAML, no valid expression
			inPlace(bytes.Replace(bad, []byte("data.n % 10 == 0"), []byte("data.n % 10 =="), 1))
		case 2: // a torn block: zeros where the file system lost them
			copy(bad[cut:min(cut+512, len(bad))], make([]byte, 512))
			inPlace(bad)
		case 3: // truncated to nothing, then slowly written
			inPlace(nil)
			t.pause(t.between(0, 300*time.Millisecond))
			inPlace(bad[:cut])
		}
		t.pause(t.between(100*time.Millisecond, 700*time.Millisecond))
		l.reach(20)
		good := fmt.Sprintf("good-%d", i)
		if i%2 == 0 {
			inPlace([]byte(text(good)))
		} else {
			e.write("load.yaml", text(good))
		}
		from := time.Now()
		t.eventually(10*time.Second, good+" is in force", func() error {
			mu.Lock()
			defer mu.Unlock()
			if versions[good] == 0 {
				return fmt.Errorf("it was not called: %v", versions)
			}
			return nil
		})
		t.recovered(from)
	}
	l.end()
	l.settle(s)
	e.stop()
	mu.Lock()
	defer mu.Unlock()
	for v, n := range versions {
		if strings.HasPrefix(v, "bad") {
			t.failf("version %s was called for %d times", v, n)
		}
	}
	if l.refused+l.broken > 0 {
		t.failf("%d requests were refused and %d broken by edits", l.refused, l.broken)
	}
}

// slowClients keeps 500 connections busy with next to nothing.
func slowClients(t *trial) {
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	e.start()
	for range t.n {
		l := t.traffic(e, 2, 10*time.Millisecond)
		l.reach(50)
		var wg sync.WaitGroup
		var cut atomic.Int32
		stop := make(chan struct{})
		const clients = 500
		for i := range clients {
			c, err := net.Dial("tcp", e.in)
			t.must(err)
			head := "POST /in HTTP/1.1\r\nHost: x\r\nX-Slow: "
			if i%2 == 1 {
				head = "POST /in HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n{"
			}
			_, err = io.WriteString(c, head)
			t.must(err)
			wg.Go(func() {
				defer c.Close()
				gone := make(chan struct{})
				go func() { // an answer may come; the end must
					_, _ = io.Copy(io.Discard, c)
					close(gone)
				}()
				tick := time.NewTicker(time.Second)
				defer tick.Stop()
				for {
					select {
					case <-gone:
						cut.Add(1)
						return
					case <-stop:
						return
					case <-tick.C:
						_, _ = io.WriteString(c, "x")
					}
				}
			})
		}
		worst := time.Duration(0)
		from := time.Now()
		for range 20 {
			begin := time.Now()
			n := int(l.next.Add(1) - 1)
			e.accepted("/in", string(event(n)), "X-Id", id(l.run, n))
			worst = max(worst, time.Since(begin))
		}
		if worst > time.Second {
			t.failf("an event of another client took %v", worst)
		}
		l.reach(100)
		if !t.o.short {
			t.eventually(45*time.Second, "every slow client is cut off", func() error {
				if n := int(cut.Load()); n < clients {
					return errCount(n, clients)
				}
				return nil
			})
			t.recovered(from)
		}
		close(stop)
		wg.Wait()
		l.end()
		l.settle(s)
		t.note("the slowest of other requests took %.0f ms", worst.Seconds()*1000)
		s.mu.Lock()
		s.calls = map[string]map[int]*call{"/each": {}, "/pair": {}}
		s.keys = map[string]string{}
		s.mu.Unlock()
		e.stop()
		if t.Failures != nil {
			return
		}
		t.must(os.RemoveAll(e.data))
		e.start()
	}
}

// forgedOrigin asks the API as a web page in somebody's browser would.
func forgedOrigin(t *trial) {
	e := t.engine(map[string]string{"one.yaml": webhookOnly}, build{})
	e.start()
	_, port, _ := net.SplitHostPort(e.api)
	ask := func(method, path, host, origin string) int {
		req, err := http.NewRequestWithContext(t.ctx, method, "http://"+e.api+path, nil)
		t.must(err)
		if host != "" {
			req.Host = host
		}
		if origin != "" {
			req.Header.Set("Origin", origin)
		}
		resp, err := client.Do(req)
		t.must(err)
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusForbidden && bytes.Contains(body, []byte("folded")) {
			t.failf("%s %s with Host %q was refused and answered all the same", method, path, host)
		}
		return resp.StatusCode
	}
	asked := 0
	for _, p := range []struct{ method, path string }{
		{http.MethodGet, "/api/v1/status"},
		{http.MethodGet, "/api/v1/resources"},
		{http.MethodGet, "/api/v1/events"},
		{http.MethodGet, "/api/v1/runs"},
		{http.MethodGet, "/api/v1/dlq"},
		{http.MethodGet, "/metrics"},
		{http.MethodPost, "/api/v1/reload"},
	} {
		for _, c := range []struct{ host, origin string }{
			{"evil.example", ""},
			{"evil.example:" + port, ""},
			{"127.0.0.1.evil.example:" + port, ""},
			{"localhost.evil.example", ""},
			{"evil.example:" + port, "http://evil.example:" + port},
			{"169.254.169.254", ""},
			{"[::ffff:10.0.0.1]", ""},
			{"", "http://evil.example"},
			{"", "https://" + e.api + ".evil.example"},
			{"", "null"},
			{"", "http://localhost:" + port},
			{"", "http://127.0.0.1:1"},
			{"", "file://"},
		} {
			asked++
			if s := ask(p.method, p.path, c.host, c.origin); s != http.StatusForbidden {
				t.failf("%s %s with Host %q and Origin %q: %d, want 403", p.method, p.path, c.host, c.origin, s)
			}
		}
		for _, c := range []struct{ host, origin string }{{"", ""}, {"localhost:" + port, ""}, {"", "http://" + e.api}} {
			if s := ask(p.method, p.path, c.host, c.origin); s != http.StatusOK {
				t.failf("%s %s with Host %q and Origin %q: %d, want 200", p.method, p.path, c.host, c.origin, s)
			}
		}
	}
	e.stop()
	t.note("%d forged requests", asked)
}

// canarySpec uses a secret in functions that succeed, fail for good and tell
// it back, and in the authentication of a webhook.
const canarySpec = `apiVersion: engine/v1
kind: Secret
metadata: {name: vault}
spec: {env: {canary: TEST_CANARY}}
---
apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec:
  webhook:
    in: {path: /in, auth: {bearer: {name: vault, key: canary}}, request: always}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: leaks}
spec:
  dependencies: [{name: ev, source: shop, event: in, when: "request.path != ''"}]
  triggers:
    - name: good
      http:
        url: http://%[1]s/good
        headers: {Authorization: {secret: {name: vault, key: canary}, prefix: "Bearer "}}
    - name: refused
      retry: {attempts: 2, backoff: 10ms}
      http:
        url: http://%[1]s/refused
        headers: {Authorization: {secret: {name: vault, key: canary}, prefix: "Bearer "}}
    - name: command
      exec:
        command: [sh, -c, 'echo "out $CANARY"; echo "err $CANARY" >&2; exit 3']
        env: {CANARY: {secret: {name: vault, key: canary}}}
      retry: {attempts: 2, backoff: 10ms}
`

// secretCanary looks for a secret in everything an engine says and writes.
func secretCanary(t *trial) {
	const canary = "canary/7f3a+secret value"
	var with atomic.Int32
	fn, err := net.Listen("tcp", "127.0.0.1:0")
	t.must(err)
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer "+canary {
			with.Add(1)
		}
		if r.URL.Path == "/refused" {
			w.WriteHeader(http.StatusForbidden)
		}
		fmt.Fprintf(w, `{"you sent":%q}`, r.Header.Get("Authorization"))
	})}
	go func() { _ = srv.Serve(fn) }()
	t.after(func() { _ = srv.Close() })
	e := t.engine(map[string]string{"leaks.yaml": fmt.Sprintf(canarySpec, fn.Addr())}, build{})
	e.env = []string{"TEST_CANARY=" + canary}
	e.start()
	const events = 3
	for range events {
		e.accepted("/in", `{"a":1}`, "Authorization", "Bearer "+canary)
	}
	e.letters(2 * events)
	t.eventually(10*time.Second, "the functions were called with the secret", func() error {
		if n := int(with.Load()); n < 2*events {
			return errCount(n, 2*events)
		}
		return nil
	})
	t.Acked += events
	t.eventually(10*time.Second, "the history is written", func() error {
		_, body, err := get("http://" + e.api + "/api/v1/runs")
		if n := strings.Count(body, `"attempt":`); err == nil && n < 4*events {
			return errCount(n, 4*events)
		}
		return err
	})
	said := map[string]string{}
	for _, path := range []string{
		"/metrics", "/healthz", "/readyz", "/api/v1/status", "/api/v1/resources", "/api/v1/resources/secret/vault", "/api/v1/resources/sensor/leaks",
		"/api/v1/resources/eventsource/shop", "/api/v1/events", "/api/v1/runs", "/api/v1/dlq", "/api/v1/dlq/1", "/api/v1/dlq/2", "/api/v1/dlq/3",
	} {
		status, body, err := get("http://" + e.api + path)
		if err != nil || status != http.StatusOK {
			t.failf("%s: %d %v", path, status, err)
		}
		said[path] = body
	}
	e.stop() // all of the history is on disk
	said["the log"] = e.log()
	total := 0
	t.must(filepath.WalkDir(e.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		said[strings.TrimPrefix(path, e.data)] = string(b)
		return err
	}))
	for where, text := range said {
		total += len(text)
		for _, form := range []string{
			canary, url.QueryEscape(canary), url.PathEscape(canary), base64.StdEncoding.EncodeToString([]byte(canary)),
			strings.ReplaceAll(canary, "/", `\/`), strings.ReplaceAll(canary, "+", `\u002b`),
		} {
			if at := strings.Index(text, form); at >= 0 {
				t.failf("%s has the secret: …%q…", where, text[max(0, at-80):at])
			}
		}
	}
	// The search finds what is no secret.
	for where, want := range map[string]string{"/api/v1/runs": "leaks.good", "/api/v1/dlq": `"refused"`, "/metrics": "engine_", "the log": "leaks"} {
		if !strings.Contains(said[where], want) {
			t.failf("%s does not even have %q", where, want)
		}
	}
	t.note("%d bytes searched", total)
}
