package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/test/load"
)

// canarySpec uses one secret wherever a secret can be used, in functions that
// succeed, fail for good, cannot connect and tell the secret back.
const canarySpec = `apiVersion: engine/v1
kind: Secret
metadata: {name: vault}
spec:
  env: {canary: TEST_CANARY, target: TEST_TARGET}
---
apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec:
  webhook:
    open: {path: /open, request: always}
    bearer: {path: /bearer, auth: {bearer: {name: vault, key: canary}}, request: always}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: leaks}
spec:
  dependencies: [{name: ev, source: shop, event: "*", when: "request.path != ''"}]
  triggers:
    - name: good
      http:
        url: http://%[1]s/good
        headers: {Authorization: {secret: {name: vault, key: canary}, prefix: "Bearer "}, X-Key: {secret: {name: vault, key: canary}}}
    - name: refused
      retry: {attempts: 2, backoff: 10ms}
      http:
        url: http://%[1]s/refused
        headers: {Authorization: {secret: {name: vault, key: canary}, prefix: "Bearer "}}
    - name: broken
      retry: {attempts: 2, backoff: 10ms}
      http:
        url: http://%[2]s/broken
        headers: {Authorization: {secret: {name: vault, key: canary}}}
    - name: hidden-url
      retry: {attempts: 2, backoff: 10ms}
      http: {url: {secret: {name: vault, key: target}}}
    - name: command
      exec:
        command: [sh, -c, 'echo "out $CANARY"; echo "err $CANARY" >&2; exit 3']
        env: {CANARY: {secret: {name: vault, key: canary}}}
      retry: {attempts: 2, backoff: 10ms}
`

// TestCanary plants a secret value and looks for it in everything the engine
// writes and says.
func TestCanary(t *testing.T) {
	const canary = "canary/7f3a+secret value"
	var good, refused, leaked atomic.Int32
	sink, err := load.Listen(func(r load.Request) (int, string) {
		if !strings.Contains(r.Header("Authorization"), canary) {
			leaked.Add(1) // counted as missing below
		}
		// The callee tells it back, as careless ones do.
		if r.Path() == "/good" {
			good.Add(1)
			return http.StatusOK, `{"youSent":"` + r.Header("Authorization") + `"}`
		}
		refused.Add(1)
		return http.StatusForbidden, "bad token " + r.Header("Authorization")
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	closed := freeAddrs(t, 1)[0]
	e := newEngine(t, map[string]string{"leaks.yaml": fmt.Sprintf(canarySpec, sink.Addr(), closed)})
	e.env = []string{"TEST_CANARY=" + canary, "TEST_TARGET=http://" + closed + "/?token=" + url.QueryEscape(canary)}
	e.start()
	if s := e.post("/open", `{"a":1}`); s != http.StatusAccepted {
		t.Fatalf("status %d", s)
	}
	if s := e.post("/bearer", `{"a":2}`, "Authorization", "Bearer "+canary); s != http.StatusAccepted {
		t.Fatalf("status %d with the right token", s)
	}
	if s := e.post("/bearer", `{"a":3}`, "Authorization", "Bearer x"+canary); s != http.StatusUnauthorized {
		t.Errorf("status %d with a wrong token, want 401", s)
	}
	// Two events; of five triggers four fail and end in the dead letters.
	eventually(t, arriveTimeout, "the calls have succeeded or failed for good", func() error {
		out, stderr, code := e.verb("dlq", "list", "-o", "json")
		if code != 0 {
			return fmt.Errorf("dlq list: exit code %d: %s", code, stderr)
		}
		if n := strings.Count(out, `"trigger"`); n < 8 || good.Load() < 2 {
			return fmt.Errorf("%d dead letters, %d good calls", n, good.Load())
		}
		return nil
	})
	if refused.Load() < 2 || leaked.Load() > 0 {
		t.Errorf("the functions did not get the secret: %d calls without it", leaked.Load())
	}

	// Everything said on the command line, in the API and in metrics.
	said := map[string]string{}
	for _, args := range [][]string{
		{"get"},
		{"get", "-o", "json"},
		{"get", "-o", "yaml"},
		{"describe", "secret", "vault"},
		{"describe", "sensor", "leaks"},
		{"describe", "eventsource", "shop"},
		{"events", "-o", "json"},
		{"runs"},
		{"runs", "-o", "json"},
		{"dlq", "list"},
		{"dlq", "list", "-o", "json"},
	} {
		stdout, stderr, code := e.verb(args...)
		if code != 0 {
			t.Errorf("engine %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
		}
		said["engine "+strings.Join(args, " ")] = stdout + stderr
	}
	ids := letterIDs(said["engine dlq list -o json"])
	if len(ids) == 0 {
		t.Error("no ids in the list of dead letters")
	}
	for _, id := range ids {
		stdout, stderr, code := e.verb("dlq", "show", id, "-o", "json")
		if code != 0 {
			t.Errorf("engine dlq show %s: exit code %d: %s", id, code, stderr)
		}
		said["engine dlq show "+id] = stdout + stderr
	}
	for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
		_, body, err := get("http://" + e.api + path)
		if err != nil {
			t.Fatal(err)
		}
		said[path] = body
	}
	// The history is written in blocks; after the stop all of it is on disk.
	e.stop()
	said["the log"] = e.log()
	err = filepath.WalkDir(e.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			said[strings.TrimPrefix(path, e.data)] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	forms := [][]byte{
		[]byte(canary), []byte(url.QueryEscape(canary)), []byte(url.PathEscape(canary)),
		[]byte(base64.StdEncoding.EncodeToString([]byte(canary))),
	}
	for where, text := range said {
		for _, form := range forms {
			if at := bytes.Index([]byte(text), form); at >= 0 {
				t.Errorf("%s has the secret: …%q…", where, text[max(0, at-120):min(len(text), at+len(form)+20)])
			}
		}
	}
	// The search would find it: what is no secret is there.
	for where, want := range map[string]string{"engine runs -o json": "leaks", "/metrics": "engine_", "the log": "leaks", "engine dlq list -o json": "refused"} {
		if !strings.Contains(said[where], want) {
			t.Errorf("%s does not even have %q:\n%s", where, want, tail(said[where], 5))
		}
	}
}
