package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sensor-engine/engine/test/load"
)

// TestSlowFunction: a function that hangs keeps nothing from the others, and
// gets all of its own calls once it works again.
func TestSlowFunction(t *testing.T) {
	hang := make(chan struct{})
	var mu sync.Mutex
	calls := map[string]map[string]int{"/slow": {}, "/quick": {}}
	sink, err := load.Listen(func(r load.Request) (int, string) {
		if r.Path() == "/slow" {
			<-hang
		}
		mu.Lock()
		defer mu.Unlock()
		calls[r.Path()][string(r.Body())]++
		return http.StatusOK, ""
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	release := sync.OnceFunc(func() { close(hang) })
	defer release()
	e := newEngine(t, map[string]string{"in.yaml": fmt.Sprintf(`apiVersion: engine/v1
kind: EventSource
metadata: {name: load}
spec: {webhook: {in: {path: /in}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: both}
spec:
  dependencies: [{name: ev, source: load, event: in}]
  triggers:
    - {name: slow, concurrency: 2, timeout: 5m, http: {url: "http://%[1]s/slow"}}
    - {name: quick, http: {url: "http://%[1]s/quick"}}
`, sink.Addr())})
	e.start()
	n := scaled(3000)
	c, err := load.Dial(e.in)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range n {
		if status, answer, err := c.Post("/in", "Content-Type: application/json\r\n", fmt.Appendf(nil, `{"n":%d}`, i)); err != nil || status != http.StatusAccepted {
			t.Fatalf("event %d: %d %s %v", i, status, answer, err)
		}
	}
	all := func(path string) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(calls[path]) < n {
				return fmt.Errorf("%d of %d calls of %s", len(calls[path]), n, path)
			}
			return nil
		}
	}
	eventually(t, arriveTimeout, "the quick function got everything", all("/quick"))
	mu.Lock()
	if len(calls["/slow"]) > 0 {
		t.Error("the slow function ended a call while it hung")
	}
	mu.Unlock()
	release()
	eventually(t, arriveTimeout, "the slow function got everything", all("/slow"))
	e.stop()
	for path, bodies := range calls {
		for body, k := range bodies {
			if k != 1 {
				t.Errorf("%s was called %d times with %s", path, k, body)
			}
		}
	}
}

// TestRetryAndRedrive: a call that fails is repeated, then given up on with its
// reason, and succeeds when it is redriven, all with one idempotency key.
func TestRetryAndRedrive(t *testing.T) {
	type call struct{ key, answer string }
	var mu sync.Mutex
	calls := map[string][]call{} // by body
	repaired := false
	sink, err := load.Listen(func(r load.Request) (int, string) {
		mu.Lock()
		defer mu.Unlock()
		body := string(r.Body())
		status := http.StatusOK
		switch {
		case body == `"flaky"` && len(calls[body]) < 2:
			status = http.StatusInternalServerError
		case body == `"poison"` && !repaired:
			status = http.StatusBadGateway
		case body == `"wrong"` && !repaired:
			status = http.StatusUnprocessableEntity // the caller's mistake: no retry
		}
		calls[body] = append(calls[body], call{r.Header("Idempotency-Key"), fmt.Sprint(status)})
		return status, "what the function said"
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	e := newEngine(t, map[string]string{"in.yaml": fmt.Sprintf(`apiVersion: engine/v1
kind: EventSource
metadata: {name: load}
spec: {webhook: {in: {path: /in}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: any}
spec:
  dependencies: [{name: ev, source: load, event: in}]
  triggers:
    - {name: call, retry: {attempts: 3, backoff: 20ms}, http: {url: "http://%s/"}}
`, sink.Addr())})
	e.start()
	for _, body := range []string{`"flaky"`, `"poison"`, `"wrong"`} {
		if s := e.post("/in", body); s != http.StatusAccepted {
			t.Fatalf("status %d", s)
		}
	}
	count := func(body string, n int) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(calls[body]) < n {
				return fmt.Errorf("%d of %d calls with %s", len(calls[body]), n, body)
			}
			return nil
		}
	}
	eventually(t, arriveTimeout, "the flaky call succeeded", count(`"flaky"`, 3))
	eventually(t, arriveTimeout, "the poisonous call was tried", count(`"poison"`, 3))
	var ids []string
	eventually(t, arriveTimeout, "two calls are dead letters", func() error {
		out, stderr, code := e.verb("dlq", "list", "-o", "json")
		ids = letterIDs(out)
		if code != 0 || len(ids) != 2 {
			return fmt.Errorf("exit code %d, %d letters: %s%s", code, len(ids), out, stderr)
		}
		return nil
	})
	mu.Lock()
	repaired = true
	mu.Unlock()
	for _, id := range ids {
		if _, stderr, code := e.verb("dlq", "redrive", id); code != 0 {
			t.Fatalf("redrive %s: exit code %d: %s", id, code, stderr)
		}
	}
	eventually(t, arriveTimeout, "the redriven calls succeeded", count(`"poison"`, 4))
	eventually(t, arriveTimeout, "the redriven calls succeeded", count(`"wrong"`, 2))
	eventually(t, arriveTimeout, "no dead letter is left", func() error {
		out, stderr, code := e.verb("dlq", "list", "-o", "json")
		if n := len(letterIDs(out)); code != 0 || n > 0 {
			return fmt.Errorf("exit code %d, %d letters: %s%s", code, n, out, stderr)
		}
		return nil
	})
	e.stop()
	for body, n := range map[string]int{`"flaky"`: 3, `"poison"`: 4, `"wrong"`: 2} {
		cs := calls[body]
		if len(cs) != n {
			t.Errorf("%s: %d calls, want %d", body, len(cs), n)
		}
		for _, c := range cs {
			if c.key == "" || c.key != cs[0].key {
				t.Errorf("%s: the idempotency key changed: %v", body, cs)
				break
			}
		}
	}
}

// letterIDs returns the ids in the output of `dlq list -o json`, whatever
// stands around them.
func letterIDs(out string) (ids []string) {
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			if id, ok := v["id"]; ok {
				ids = append(ids, fmt.Sprint(id))
				return
			}
			for _, x := range v {
				walk(x)
			}
		}
	}
	for _, v := range jsonValues(out) {
		walk(v)
	}
	return ids
}

// jsonValues returns the JSON values in s, which may be one or one a line.
func jsonValues(s string) (values []any) {
	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber()
	for {
		var v any
		if dec.Decode(&v) != nil {
			return values
		}
		values = append(values, v)
	}
}
