package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/test/load"
)

// spec has a webhook with producer ids and two sensors: `each` calls for every
// event, `pairs` once for both events of a pair, and for nothing else, so it
// needs its state. more are further lines of the triggers.
func spec(sink, more string) string {
	return fmt.Sprintf(`apiVersion: engine/v1
kind: EventSource
metadata: {name: load}
spec:
  webhook:
    in: {path: /in, id: {header: X-Id}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: each}
spec:
  dependencies: [{name: ev, source: load, event: in}]
  triggers:
    - name: call
      concurrency: 16
      http: {url: "http://%[1]s/each"}%[2]s
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: pairs}
spec:
  dependencies:
    - {name: even, source: load, event: in, when: data.side == 0}
    - {name: odd, source: load, event: in, when: data.side == 1}
  correlate: data.pair
  triggers:
    - name: call
      concurrency: 16
      http: {url: "http://%[1]s/pair"}%[2]s
`, sink, more)
}

// event is the body of event n: events 2k and 2k+1 are a pair.
func event(n int) []byte { return fmt.Appendf(nil, `{"n":%d,"pair":%d,"side":%d}`, n, n/2, n%2) }

// id is the producer id of event n in the given run of the load.
func id(run string, n int) string { return fmt.Sprintf("%s%d", run, n) }

// sink is the function behind HTTP: it records every call.
type sink struct {
	*load.Sink
	t *trial
	// before is asked with the path before a call is recorded, after runs when
	// it was; both may be nil and are set while nothing runs.
	before, after atomic.Pointer[func(path string)]
	// fail makes every call fail, unrecorded.
	fail   atomic.Bool
	failed atomic.Int32

	mu    sync.Mutex
	calls map[string]map[int]*call // by path and event, or pair
	keys  map[string]string        // whose idempotency key: path and number
	total int
	bad   []string
}

type call struct {
	key string
	n   int
}

func (t *trial) sink() *sink {
	s := &sink{t: t, calls: map[string]map[int]*call{"/each": {}, "/pair": {}}, keys: map[string]string{}}
	var err error
	s.Sink, err = load.Listen(s.handle)
	t.must(err)
	t.after(func() { _ = s.Close() })
	return s
}

func (s *sink) handle(r load.Request) (int, string) {
	path := r.Path()
	if fn := s.before.Load(); fn != nil {
		(*fn)(path)
	}
	if s.fail.Load() {
		s.failed.Add(1)
		return http.StatusInternalServerError, ""
	}
	var ev struct{ N, Pair *int }
	err := json.Unmarshal(r.Body(), &ev)
	key := r.Header("Idempotency-Key")
	s.mu.Lock()
	switch {
	case path == "/tick" || strings.HasPrefix(path, "/v/"): // before counts them
	case err != nil || ev.N == nil || ev.Pair == nil || s.calls[path] == nil:
		s.bad = append(s.bad, fmt.Sprintf("%s called with %q", path, r.Body()))
	default:
		n := *ev.N
		if path == "/pair" {
			n = *ev.Pair
		}
		what := fmt.Sprintf("%s %d", path, n)
		c := s.calls[path][n]
		if c == nil {
			c = &call{key: key}
			s.calls[path][n] = c
		}
		if c.key != key {
			s.bad = append(s.bad, fmt.Sprintf("%s came with the keys %s and %s", what, c.key, key))
		}
		if other, taken := s.keys[key]; key == "" || taken && other != what {
			s.bad = append(s.bad, fmt.Sprintf("%s came with the key %q of %s", what, key, other))
		}
		s.keys[key] = what
		c.n++
		s.total++
	}
	s.mu.Unlock()
	if fn := s.after.Load(); fn != nil {
		(*fn)(path)
	}
	return http.StatusOK, ""
}

func (s *sink) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls[path])
}

// traffic is a load of numbered events on one engine.
type traffic struct {
	t     *trial
	run   string // prefix of the producer ids
	conns int
	every time.Duration // pause between two requests of a connection
	limit int           // events to send, 0 for no end

	next atomic.Int64
	ok   atomic.Int64
	stop atomic.Bool
	wg   sync.WaitGroup

	mu       sync.Mutex
	acked    map[int]bool
	lastOK   time.Time
	refused  int            // 503 and 429
	broken   int            // connections that broke, or time-outs
	statuses map[int]string // any other status, with an answer
}

func (t *trial) traffic(e *engine, conns int, every time.Duration) *traffic {
	l := &traffic{t: t, run: "e", conns: conns, every: every, acked: map[int]bool{}, statuses: map[int]string{}}
	l.start(e)
	return l
}

func (l *traffic) start(e *engine) {
	l.stop.Store(false)
	for range l.conns {
		l.wg.Go(func() { l.connection(e.in) })
	}
	l.t.after(func() { l.stop.Store(true); l.wg.Wait() })
}

// end stops sending: every event is repeated until it is accepted, at most as
// long as an engine may need to recover.
func (l *traffic) end() {
	l.stop.Store(true)
	l.wg.Wait()
}

func (l *traffic) connection(addr string) {
	var c *load.Conn
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	tick := time.NewTicker(max(l.every, time.Microsecond))
	defer tick.Stop()
	for !l.stop.Load() {
		n := int(l.next.Add(1) - 1)
		if l.limit > 0 && n >= l.limit {
			return
		}
		body := event(n)
		header := "Content-Type: application/json\r\nX-Id: " + id(l.run, n) + "\r\n"
		var stopped time.Time
		for {
			status, answer := 0, []byte(nil)
			var err error
			if c == nil {
				c, err = load.Dial(addr)
			}
			if err == nil {
				status, answer, err = c.Post("/in", header, body)
			}
			l.mu.Lock()
			switch {
			case err == nil && status == http.StatusAccepted:
				l.acked[n] = true
				l.lastOK = time.Now()
			case err != nil:
				l.broken++
			case status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
				l.refused++
			default:
				l.statuses[status] = string(answer)
			}
			l.mu.Unlock()
			if err == nil && status == http.StatusAccepted {
				l.ok.Add(1)
				break
			}
			if err != nil && c != nil {
				_ = c.Close()
				c = nil
			}
			if l.stop.Load() {
				if stopped.IsZero() {
					stopped = time.Now()
				}
				if time.Since(stopped) > 5*time.Second {
					return // left unacknowledged
				}
			}
			timer := time.NewTimer(10 * time.Millisecond)
			<-timer.C
		}
		if l.every > 0 {
			<-tick.C
		}
	}
}

// reach waits until n more events are accepted than when it was called.
func (l *traffic) reach(n int) {
	want := l.ok.Load() + int64(n)
	if !l.t.eventually(arriveTimeout, fmt.Sprintf("%d more events are accepted", n), func() error {
		if have := l.ok.Load(); have < want {
			l.mu.Lock()
			defer l.mu.Unlock()
			return fmt.Errorf("%d are missing; %d refused, %d broken, %v", want-have, l.refused, l.broken, l.statuses)
		}
		return nil
	}) {
		panic(over{})
	}
}

// sinceOK waits until an event sent after from was accepted and returns how
// long after from that was.
func (l *traffic) sinceOK(from time.Time, timeout time.Duration) time.Duration {
	l.t.eventually(timeout, "an event is accepted again", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.lastOK.After(from) {
			return fmt.Errorf("%d refused, %d broken, %v", l.refused, l.broken, l.statuses)
		}
		return nil
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastOK.Sub(from)
}

// settle waits until the function was called for everything acknowledged and
// notes what is lost and what was called for more than once.
func (l *traffic) settle(s *sink) {
	l.mu.Lock()
	acked := l.acked
	l.mu.Unlock()
	missing := func() (each, pairs int, example string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for n := range acked {
			if s.calls["/each"][n] == nil {
				each++
				example = id(l.run, n)
			}
			if n%2 == 1 && acked[n-1] && s.calls["/pair"][n/2] == nil {
				pairs++
				example = fmt.Sprintf("pair %d", n/2)
			}
		}
		return each, pairs, example
	}
	deadline, last := time.Now().Add(20*time.Minute), 0 // slow is not lost
	quiet := time.Now()
	for {
		each, pairs, example := missing()
		if each+pairs == 0 {
			break
		}
		s.mu.Lock()
		total := s.total
		s.mu.Unlock()
		if total != last {
			last, quiet = total, time.Now()
		}
		if time.Now().After(deadline) || time.Since(quiet) > 20*time.Second {
			l.t.Lost += each + pairs
			l.t.failf("%d acknowledged events and %d pairs of them never reached the function, for example %s", each, pairs, example)
			break
		}
		l.t.pause(20 * time.Millisecond)
	}
	l.t.Acked += len(acked)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, calls := range s.calls {
		for _, c := range calls {
			l.t.Repeated += c.n - 1
		}
	}
	for i, b := range s.bad {
		if i < 3 {
			l.t.failf("%s (%d such)", b, len(s.bad))
		}
	}
	for status, answer := range l.statuses {
		l.t.failf("a request was answered with %d %.200s", status, answer)
	}
}
