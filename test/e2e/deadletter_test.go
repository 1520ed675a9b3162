package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sensor-engine/engine/test/load"
)

// deadLetterSpec calls a sink, and another path of it for what has failed.
const deadLetterSpec = `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec:
  webhook:
    orders: {path: /orders, id: {header: X-Id}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: shop}
spec:
  dependencies:
    - {name: order, source: shop, event: orders}
  triggers:
    - name: ship
      http: {url: "http://%[1]s/ship/${ order.data.id }"}
      retry: {attempts: 2, backoff: 50ms}
      deadLetter:
        http: {url: "http://%[1]s/told/${ order.data.id }"}
        input: {why: "${ triggers.ship.error }", attempts: "${ triggers.ship.attempts }"}
        retry: {attempts: 20, backoff: 20ms, max: 100ms}
`

// TestDeadLetterSurvivesKills: an engine that is killed again and again calls
// what a deadLetter says for each call that fails for good, under one key, and
// for no other.
func TestDeadLetterSurvivesKills(t *testing.T) {
	const orders = 60
	var mu sync.Mutex
	keys := map[string]map[string]bool{} // idempotency keys by path
	bodies := map[string]string{}
	sink, err := load.Listen(func(r load.Request) (int, string) {
		mu.Lock()
		defer mu.Unlock()
		path := r.Path()
		told := strings.HasPrefix(path, "/told/")
		if told && rand.IntN(3) == 0 {
			return http.StatusServiceUnavailable, ""
		}
		if keys[path] == nil {
			keys[path] = map[string]bool{}
		}
		keys[path][r.Header("Idempotency-Key")] = true
		bodies[path] = string(r.Body())
		switch {
		case told:
			return http.StatusOK, ""
		case strings.HasPrefix(path, "/ship/refused"):
			return http.StatusUnprocessableEntity, ""
		case strings.HasPrefix(path, "/ship/down"):
			return http.StatusInternalServerError, ""
		}
		return http.StatusOK, "{}"
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	count := func(prefix string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for path := range keys {
			if strings.HasPrefix(path, prefix) {
				n++
			}
		}
		return n
	}
	called := func() int { return count("/") }

	e := newEngine(t, map[string]string{"shop.yaml": fmt.Sprintf(deadLetterSpec, sink.Addr())})
	e.start()
	kinds := []string{"fine", "refused", "down"}
	for i := range orders {
		id := fmt.Sprint(kinds[i%3], i)
		if s := e.post("/orders", fmt.Sprintf(`{"id": %q}`, id), "X-Id", id); s != http.StatusAccepted {
			t.Fatalf("order %s: status %d", id, s)
		}
		if i%12 == 11 { // in the middle of what the last ones began
			before := called()
			eventually(t, arriveTimeout, "something is called", func() error {
				if n := called(); n <= before && n < i {
					return fmt.Errorf("%d calls", n)
				}
				return nil
			})
			e.kill()
			e.start()
		}
	}
	const want = orders / 3 * 2
	eventually(t, arriveTimeout, "all that failed is told", func() error {
		if n := count("/told/"); n < want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
	letters, stderr, code := e.verb("dlq", "list", "--limit", "1000", "-o", "json")
	if code != 0 {
		t.Fatal(stderr)
	}
	e.stop()
	mu.Lock()
	defer mu.Unlock()
	for i := range orders {
		id := fmt.Sprint(kinds[i%3], i)
		if n := len(keys["/ship/"+id]); n != 1 {
			t.Errorf("%s is called with %d keys", id, n)
		}
		of, why := keys["/told/"+id], bodies["/told/"+id]
		if i%3 == 0 {
			if len(of) != 0 {
				t.Errorf("%s is told, %s", id, why)
			}
			continue
		}
		attempts := map[string]string{"refused": `"attempts":1`, "down": `"attempts":2`}[kinds[i%3]]
		if len(of) != 1 || !strings.Contains(why, attempts) {
			t.Errorf("%s is told with %d keys, %s", id, len(of), why)
		}
		for key := range keys["/ship/"+id] {
			if !of[key+".deadLetter"] {
				t.Errorf("%s has key %s, and is told with %v", id, key, of)
			}
			if !strings.Contains(letters, key) {
				t.Errorf("%s is no dead letter", id)
			}
		}
	}
	if strings.Contains(letters, `"trigger":"ship.deadLetter"`) {
		t.Error("what a deadLetter calls became a dead letter")
	}
}
