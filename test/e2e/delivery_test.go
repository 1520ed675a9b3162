package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/test/load"
)

// inSpec is a webhook with producer ids, a filter and a function behind HTTP.
// version reaches the function as a header.
func inSpec(sink, version string) string {
	return fmt.Sprintf(`apiVersion: engine/v1
kind: EventSource
metadata: {name: load}
spec:
  webhook:
    in: {path: /in, id: {header: X-Id}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: large}
spec:
  dependencies:
    - {name: ev, source: load, event: in, when: data.total > 100}
  triggers:
    - name: call
      concurrency: 32
      http:
        url: http://%s/
        headers: {X-Version: %q}
`, sink, version)
}

// TestExactlyOnce: while nothing fails, every accepted event reaches the
// function once and only once, also when the engine is started again.
func TestExactlyOnce(t *testing.T) {
	rec := newRecorder(t)
	e := newEngine(t, map[string]string{"in.yaml": inSpec(rec.Addr(), "v1")})
	e.start()
	tr := &traffic{conns: 32, limit: scaled(20_000)}
	tr.start(e)
	ids := tr.wait()
	tr.mustSucceed(t)
	if want := tr.limit - tr.limit/10; len(ids) != want {
		t.Fatalf("%d accepted, want %d", len(ids), want)
	}
	rec.await(t, ids)
	e.stop()
	rec.check(t, tr, true)
	if lines := strings.Count(e.log(), "\n"); lines > 200 {
		t.Errorf("%d lines of log for %d events: events are not logged one by one", lines, tr.limit)
	}

	// Nothing of it is left to be done.
	e.start()
	last := int(tr.next.Add(10)) - 10 // ends in 0, so that it passes
	if status := e.post("/in", fmt.Sprintf(`{"id":%q,"total":150}`, eventID(last)), "X-Id", eventID(last)); status != http.StatusAccepted {
		t.Fatalf("status %d after the restart", status)
	}
	rec.await(t, []string{eventID(last)})
	e.stop()
	rec.check(t, tr, true)
}

// TestProducerRetry: a request repeated with the same producer id is the same
// event.
func TestProducerRetry(t *testing.T) {
	rec := newRecorder(t)
	e := newEngine(t, map[string]string{"in.yaml": inSpec(rec.Addr(), "v1")})
	e.start()
	var answers []string
	for range 3 {
		c, err := load.Dial(e.in)
		if err != nil {
			t.Fatal(err)
		}
		status, answer, err := c.Post("/in", "Content-Type: application/json\r\nX-Id: e0000000\r\n", []byte(`{"id":"e0000000","total":150}`))
		if err != nil || status != http.StatusAccepted {
			t.Fatalf("%d %s %v", status, answer, err)
		}
		answers = append(answers, string(answer))
		_ = c.Close()
	}
	if answers[0] != answers[1] || answers[1] != answers[2] || !strings.Contains(answers[0], `"id"`) {
		t.Errorf("the retries were answered otherwise than the first: %q", answers)
	}
	rec.await(t, []string{eventID(0)})
	e.stop()
	tr := &traffic{}
	tr.next.Store(1)
	rec.check(t, tr, true)
}

// TestKill: the engine is killed at random moments under load. What was
// acknowledged is never lost, and what comes twice says so by its key.
func TestKill(t *testing.T) {
	rec := newRecorder(t)
	e := newEngine(t, map[string]string{"in.yaml": inSpec(rec.Addr(), "v1")})
	e.start()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	tr := &traffic{conns: 32, limit: scaled(20_000), retry: true}
	kills := max(scaled(10), 3)
	tr.start(e)
	for i := range kills {
		// Some moment in the i-th part of the load, the way there left to chance.
		at := int64((float64(i) + rng.Float64()) / float64(kills) * float64(tr.limit) * 0.9)
		tr.reach(t, at)
		<-time.After(time.Duration(rng.IntN(20_000)) * time.Microsecond)
		e.kill()
		if i%3 == 2 {
			// A second time before it is up again.
			e.launch()
			<-time.After(time.Duration(rng.IntN(150_000)) * time.Microsecond)
			e.kill()
		}
		e.start()
	}
	ids := tr.wait()
	tr.mustSucceed(t)
	rec.await(t, ids)
	e.stop()
	repeated := rec.check(t, tr, false)
	t.Logf("%d accepted, %d kills, %d requests repeated, %d calls repeated", tr.accepted.Load(), kills, tr.retries.Load(), repeated)
	if tr.retries.Load() == 0 {
		t.Error("no request failed: the engine was not killed under load")
	}
}

// TestSpreadIsSwitched: a trigger whose jobs are spread, and not, and spread
// again while the load runs, calls for each event once; and when the engine is
// killed in between, for each at least once with its one key.
func TestSpreadIsSwitched(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("kill=", kill), func(t *testing.T) {
			rec := newRecorder(t)
			spec := func(i int) string {
				s := inSpec(rec.Addr(), fmt.Sprint("v", i))
				if i%2 == 0 {
					s = strings.Replace(s, "- name: call\n", "- name: call\n      spread: true\n", 1)
				}
				return s
			}
			e := newEngine(t, map[string]string{"in.yaml": spec(0)})
			e.start()
			tr := &traffic{conns: 16, retry: kill}
			tr.start(e)
			for i := range 6 {
				if kill && i > 0 {
					e.kill()
					e.write("in.yaml", spec(i))
					e.start()
				} else {
					e.write("in.yaml", spec(i))
				}
				eventually(t, readyTimeout, "the next one is in force", func() error {
					if n := rec.version(fmt.Sprint("v", i)); n < 200 {
						return fmt.Errorf("%d calls", n)
					}
					return nil
				})
			}
			ids := tr.end()
			tr.mustSucceed(t)
			rec.await(t, ids)
			e.stop()
			rec.check(t, tr, !kill)
		})
	}
}

// TestTerminate: SIGTERM under load ends cleanly, and nothing acknowledged is
// lost.
func TestTerminate(t *testing.T) {
	rec := newRecorder(t)
	e := newEngine(t, map[string]string{"in.yaml": inSpec(rec.Addr(), "v1")})
	tr := &traffic{conns: 16, retry: true}
	e.start()
	tr.start(e)
	for range 3 {
		tr.reach(t, tr.accepted.Load()+int64(scaled(1000)))
		e.stop()
		e.start()
	}
	ids := tr.end()
	tr.mustSucceed(t)
	rec.await(t, ids)
	e.stop()
	if n := rec.check(t, tr, false); n > 0 {
		t.Logf("%d of %d calls were repeated", n, len(ids))
	}
}

// pairSpec pairs orders with payments, and tells of each order at once.
const pairSpec = `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec:
  webhook:
    orders: {path: /orders}
    payments: {path: /payments}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: ship-paid-orders}
spec:
  dependencies:
    - {name: order, source: shop, event: orders, when: data.total > 100}
    - {name: payment, source: shop, event: payments}
  correlate: data.orderId
  within: 10m
  condition: order && payment
  triggers:
    - name: ship
      http: {url: "http://%[1]s/ship"}
      input: {order: "${ order.data }", amount: "${ payment.data.amount }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: placed}
spec:
  dependencies:
    - {name: order, source: shop, event: orders}
  triggers:
    - name: tell
      http: {url: "http://%[1]s/placed"}
`

// TestPairSurvivesRestart: the first event of a pair waits across a restart,
// after a kill and after a clean stop, and is paired with its own partner.
func TestPairSurvivesRestart(t *testing.T) {
	for name, end := range map[string]func(*engine){"kill": (*engine).kill, "stop": (*engine).stop} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			got := map[string][]string{} // bodies by path
			sink, err := load.Listen(func(r load.Request) (int, string) {
				mu.Lock()
				defer mu.Unlock()
				got[r.Path()] = append(got[r.Path()], string(r.Body()))
				return http.StatusOK, ""
			})
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			arrived := func(path string, n int) func() error {
				return func() error {
					mu.Lock()
					defer mu.Unlock()
					if len(got[path]) < n {
						return fmt.Errorf("%d of %d calls of %s", len(got[path]), n, path)
					}
					return nil
				}
			}
			e := newEngine(t, map[string]string{"shop.yaml": fmt.Sprintf(pairSpec, sink.Addr())})
			e.start()
			const orders = 5
			// 19 digits: neighbours would be the same number as floats.
			key := func(i int) int64 { return 1234567890123456780 + int64(i) }
			for i := range orders {
				if s := e.post("/orders", fmt.Sprintf(`{"orderId":%d,"total":%d}`, key(i), 200+i)); s != http.StatusAccepted {
					t.Fatalf("order %d: status %d", i, s)
				}
			}
			eventually(t, arriveTimeout, "the orders are known", arrived("/placed", orders))
			end(e)
			e.start()
			for i := orders - 1; i >= 0; i-- {
				if s := e.post("/payments", fmt.Sprintf(`{"orderId":%d,"amount":%d}`, key(i), 300+i)); s != http.StatusAccepted {
					t.Fatalf("payment %d: status %d", i, s)
				}
			}
			eventually(t, arriveTimeout, "the orders are shipped", arrived("/ship", orders))
			e.stop()

			type shipment struct {
				Order struct {
					OrderID json.Number `json:"orderId"`
					Total   int         `json:"total"`
				} `json:"order"`
				Amount int `json:"amount"`
			}
			want := map[string]bool{}
			for i := range orders {
				want[fmt.Sprintf("%d %d %d", key(i), 200+i, 300+i)] = true
			}
			have := map[string]bool{}
			for _, body := range got["/ship"] {
				var s shipment
				if err := json.Unmarshal([]byte(body), &s); err != nil {
					t.Fatalf("%v: %s", err, body)
				}
				have[fmt.Sprintf("%s %d %d", s.Order.OrderID, s.Order.Total, s.Amount)] = true
			}
			if !maps.Equal(have, want) {
				t.Errorf("shipped %v, want %v", slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(want)))
			}
		})
	}
}

// TestReloadUnderLoad: an edit, a broken edit and a repair while the load runs
// fail no request and lose nothing; the broken one leaves the last good version
// running and is reported with its place.
func TestReloadUnderLoad(t *testing.T) {
	rec := newRecorder(t)
	e := newEngine(t, map[string]string{"in.yaml": inSpec(rec.Addr(), "v1")})
	e.start()
	tr := &traffic{conns: 8}
	tr.start(e)
	inForce := func(version string) {
		t.Helper()
		before := rec.version(version)
		eventually(t, readyTimeout, version+" is in force", func() error {
			// More than were on their way.
			if n := rec.version(version); n < before+200 {
				return fmt.Errorf("%d calls", n-before)
			}
			return nil
		})
	}
	reported := func(what string) {
		t.Helper()
		eventually(t, readyTimeout, "the log says "+what, func() error {
			if !strings.Contains(e.log(), what) {
				return errors.New("it does not")
			}
			return nil
		})
	}
	inForce("v1")
	e.write("in.yaml", inSpec(rec.Addr(), "v2"))
	inForce("v2")
	broken := inSpec(rec.Addr(), "v3")
	e.write("in.yaml", broken[:len(broken)-40]+"\n  [half: {written") // no YAML
	reported("in.yaml:")
	inForce("v2")
	e.write("in.yaml", strings.Replace(inSpec(rec.Addr(), "v4"), "data.total > 100", "data.total >", 1)) // no expression
	reported("spec.dependencies[0].when")
	inForce("v2")
	e.write("in.yaml", inSpec(rec.Addr(), "v5"))
	inForce("v5")
	for _, v := range []string{"v3", "v4"} {
		if n := rec.version(v); n > 0 {
			t.Errorf("the broken %s was in force for %d calls", v, n)
		}
	}
	ids := tr.end()
	tr.mustSucceed(t)
	rec.await(t, ids)
	e.stop()
	rec.check(t, tr, true)
}
