package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/test/load"
)

// recorder is a function behind HTTP that always succeeds and remembers every
// call: for each event id, the idempotency keys and how often each came.
type recorder struct {
	*load.Sink
	mu       sync.Mutex
	calls    map[string]map[string]int
	versions map[string]int // calls by their X-Version header
	foreign  []string       // bodies that are no event of ours
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	r := &recorder{calls: map[string]map[string]int{}, versions: map[string]int{}}
	sink, err := load.Listen(func(req load.Request) (int, string) {
		var ev struct {
			ID string `json:"id"`
		}
		err := json.Unmarshal(req.Body(), &ev)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err != nil || ev.ID == "" {
			r.foreign = append(r.foreign, string(req.Body()))
			return http.StatusOK, ""
		}
		if r.calls[ev.ID] == nil {
			r.calls[ev.ID] = map[string]int{}
		}
		r.calls[ev.ID][req.Header("Idempotency-Key")]++
		r.versions[req.Header("X-Version")]++
		return http.StatusOK, ""
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	r.Sink = sink
	return r
}

// version returns how many calls carried this X-Version.
func (r *recorder) version(v string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.versions[v]
}

// missing returns the ids that have not been called for.
func (r *recorder) missing(ids []string) (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if r.calls[id] == nil {
			out = append(out, id)
		}
	}
	return out
}

// await waits until all ids have been called for.
func (r *recorder) await(t *testing.T, ids []string) {
	t.Helper()
	eventually(t, arriveTimeout, "every accepted event reached the function", func() error {
		if m := r.missing(ids); len(m) > 0 {
			return fmt.Errorf("%d of %d are missing, for example %s", len(m), len(ids), m[0])
		}
		return nil
	})
}

// check compares what was called with what was sent: no unknown call, one
// idempotency key per event, and with exactlyOnce one call per event. It
// returns how many calls were repeated.
func (r *recorder) check(t *testing.T, tr *traffic, exactlyOnce bool) (repeated int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	wrong := 0
	bad := func(format string, args ...any) {
		if wrong++; wrong <= 5 {
			t.Errorf(format, args...)
		}
	}
	for id, keys := range r.calls {
		if !tr.wants(id) {
			bad("%s was called for and should not have been", id)
		}
		if len(keys) != 1 || keys[""] > 0 {
			bad("%s came with %d idempotency keys, want one: %v", id, len(keys), slices.Collect(maps.Keys(keys)))
		}
		n := 0
		for _, k := range keys {
			n += k
		}
		if exactlyOnce && n != 1 {
			bad("%s was called for %d times, want once", id, n)
		}
		repeated += n - 1
	}
	if len(r.foreign) > 0 {
		t.Errorf("%d calls with a body that was never sent, for example %q", len(r.foreign), r.foreign[0])
	}
	if wrong > 5 {
		t.Errorf("… and %d more", wrong-5)
	}
	return repeated
}

// traffic is a load of numbered events. Every tenth does not pass the filter
// `data.total > 100`.
type traffic struct {
	conns int
	// limit is how many events are sent, 0 for as many as there is time.
	limit int
	// retry repeats a request with the same producer id until it is accepted;
	// otherwise a connection ends at its first failure.
	retry bool

	next     atomic.Int64
	accepted atomic.Int64
	retries  atomic.Int64
	stop     atomic.Bool

	mu       sync.Mutex
	ids      []string // accepted, of those that pass the filter
	failures []string
	wg       sync.WaitGroup
}

func eventID(n int) string { return fmt.Sprintf("e%07d", n) }

func passes(n int) bool { return n%10 != 9 }

// wants tells whether the function should be called for id.
func (tr *traffic) wants(id string) bool {
	var n int
	if _, err := fmt.Sscanf(id, "e%d", &n); err != nil {
		return false
	}
	return passes(n) && int64(n) < tr.next.Load()
}

// start begins to post to the webhook /in of e.
func (tr *traffic) start(e *engine) {
	for range tr.conns {
		tr.wg.Go(func() { tr.connection(e.in) })
	}
}

// wait waits until everything was sent and returns the accepted ids that the
// function should be called for.
func (tr *traffic) wait() []string {
	tr.wg.Wait()
	return tr.ids
}

// end stops sending, then waits.
func (tr *traffic) end() []string {
	tr.stop.Store(true)
	return tr.wait()
}

func (tr *traffic) connection(addr string) {
	var c *load.Conn
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for !tr.stop.Load() {
		n := int(tr.next.Add(1) - 1)
		if tr.limit > 0 && n >= tr.limit {
			tr.next.Add(-1)
			return
		}
		id, total := eventID(n), 150
		if !passes(n) {
			total = 50
		}
		body := fmt.Appendf(nil, `{"id":%q,"total":%d}`, id, total)
		deadline := time.Now().Add(arriveTimeout)
		for {
			status, answer := 0, []byte(nil)
			var err error
			if c == nil {
				c, err = load.Dial(addr)
			}
			if err == nil {
				status, answer, err = c.Post("/in", "Content-Type: application/json\r\nX-Id: "+id+"\r\n", body)
			}
			if err == nil && status == http.StatusAccepted {
				tr.accepted.Add(1)
				if passes(n) {
					tr.mu.Lock()
					tr.ids = append(tr.ids, id)
					tr.mu.Unlock()
				}
				break
			}
			if err != nil && c != nil {
				_ = c.Close()
				c = nil
			}
			retry := tr.retry && (err != nil || status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests)
			if !retry || time.Now().After(deadline) {
				tr.mu.Lock()
				tr.failures = append(tr.failures, fmt.Sprintf("%s: %d %s %v", id, status, answer, err))
				tr.mu.Unlock()
				return
			}
			tr.retries.Add(1)
			<-pause.C
		}
	}
}

// reach waits until n requests are accepted; a failed one ends the test, since
// the load is then not what the test asks for.
func (tr *traffic) reach(t *testing.T, n int64) {
	t.Helper()
	eventually(t, arriveTimeout, fmt.Sprintf("%d events are accepted", n), func() error {
		if tr.mustSucceed(t); t.Failed() {
			t.FailNow()
		}
		if have := tr.accepted.Load(); have < n {
			return fmt.Errorf("%d are", have)
		}
		return nil
	})
}

// mustSucceed fails the test if a request did.
func (tr *traffic) mustSucceed(t *testing.T) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if n := len(tr.failures); n > 0 {
		t.Errorf("%d requests failed, for example %s", n, tr.failures[0])
	}
}
