package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// killRandom kills at points left to chance, under load.
func killRandom(t *trial) {
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	e.start()
	l := t.traffic(e, 16, 5*time.Millisecond)
	for i := range t.n {
		l.reach(20)
		t.pause(t.between(0, 60*time.Millisecond))
		e.kill()
		if i%3 == 2 {
			e.launch()
			t.pause(t.between(0, 200*time.Millisecond))
			e.kill()
		}
		if d := e.start(); d > 5*time.Second {
			t.failf("ready %.1f s after a kill, want < 5 s", d.Seconds())
		} else {
			t.Recovery = max(t.Recovery, d.Seconds())
		}
	}
	l.end()
	l.settle(s)
	e.stop()
	t.audit(e)
	if l.broken == 0 {
		t.failf("no request broke: the engine was not killed under load")
	}
	t.note("%d requests cut off and repeated by their producer", l.broken)
}

func killEnqueued(t *trial)     { killInside(t, false, 0) }
func killEnqueuedLate(t *trial) { killInside(t, false, window+time.Second) }
func killCalled(t *trial)       { killInside(t, true, 0) }
func killCalledLate(t *trial)   { killInside(t, true, window+time.Second) }

// killInside kills between the enqueueing of a firing and the checkpoint that
// covers it: when its call arrives at the function, or when it was answered.
func killInside(t *trial, answered bool, wait time.Duration) {
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{patches: []patch{slowCheckpoint()}})
	e.start()
	hits := 0
	var jobs uint64
	l := t.traffic(e, 4, 10*time.Millisecond)
	for range t.n {
		l.reach(5)
		t.pause(t.between(0, 300*time.Millisecond))
		killed := make(chan struct{})
		proc := e.proc.Process
		kill := sync.OnceFunc(func() {
			_ = proc.Kill()
			close(killed)
		})
		fn := func(string) { kill() }
		if answered {
			// The answer is on its way when this connection asks for the next.
			fn = func(string) { time.AfterFunc(t.betweenSafe(), kill) }
			s.after.Store(&fn)
		} else {
			s.before.Store(&fn)
		}
		select {
		case <-killed:
		case <-time.After(10 * time.Second):
			t.fatalf("no call came")
		}
		s.before.Store(nil)
		s.after.Store(nil)
		e.kill()
		if n := t.uncovered(e); n > 0 {
			hits++
			jobs += n
		}
		t.pause(wait)
		if d := e.start(); d > 5*time.Second {
			t.failf("ready %.1f s after a kill, want < 5 s", d.Seconds())
		} else {
			t.Recovery = max(t.Recovery, d.Seconds())
		}
	}
	l.end()
	l.settle(s)
	e.stop()
	t.audit(e)
	if hits*2 < t.n {
		t.failf("only %d of %d kills left jobs beyond the checkpoint: the moment was missed", hits, t.n)
	}
	if int64(t.Repeated) > int64(jobs) {
		t.failf("%d calls were repeated and only %d jobs were beyond a checkpoint", t.Repeated, jobs)
	}
	t.note("%d kills left %d jobs beyond the checkpoint", hits, jobs)
}

// betweenSafe is a moment after an answer, for any goroutine.
func (t *trial) betweenSafe() time.Duration {
	return time.Duration(time.Now().UnixNano()%3000) * time.Microsecond
}

// freeze stops the process for a while, as a suspended machine would.
func freeze(t *trial) {
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	e.start()
	l := t.traffic(e, 8, 2*time.Millisecond)
	for range t.n {
		l.reach(200)
		e.signal(syscall.SIGSTOP)
		t.pause(t.long(5*time.Second, 2*time.Second))
		from := time.Now()
		e.signal(syscall.SIGCONT)
		if d := l.sinceOK(from, arriveTimeout); d > 5*time.Second {
			t.failf("no event was accepted for %v after it went on", d)
		} else {
			t.Recovery = max(t.Recovery, d.Seconds())
		}
		e.awaitReady()
	}
	l.end()
	l.settle(s)
	e.stop()
	t.audit(e)
	if t.Repeated > 0 {
		t.failf("%d calls were repeated", t.Repeated)
	}
}

// phase is one part of a trial whose log of events is exchanged: its events
// have ids of their own.
func (t *trial) phase(e *engine, s *sink, run string, from, n int) {
	l := &traffic{t: t, run: run, conns: 1, limit: from + n, acked: map[int]bool{}, statuses: map[int]string{}}
	l.next.Store(int64(from))
	l.start(e)
	l.wg.Wait()
	if len(l.acked) != n {
		t.fatalf("%d of %d events were accepted: %v", len(l.acked), n, l.statuses)
	}
	l.settle(s)
}

// bus is where an engine keeps a stream.
func (e *engine) stream(name string) string {
	return filepath.Join(e.data, "bus", "jetstream", "$G", "streams", name)
}

// logRecreated deletes EVENTS while jobs of its events wait for a retry. Their
// event is gone, and another one takes its number before they are due.
func logRecreated(t *trial) {
	const waiting = 20
	for range t.n {
		s := t.sink()
		e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "\n      retry: {attempts: 9, backoff: 4s, factor: 1}")}, build{})
		e.start()
		t.phase(e, s, "a", 0, 11) // one of them waits for its partner
		s.fail.Store(true)
		for n := 100; n < 100+waiting; n++ {
			e.accepted("/in", string(event(n)), "X-Id", id("w", n))
		}
		t.eventually(20*time.Second, "the calls failed", func() error {
			if n := int(s.failed.Load()); n < waiting*3/2 {
				return errCount(n, waiting*3/2)
			}
			return nil
		})
		e.stop()
		s.fail.Store(false)
		t.open(filepath.Join(e.data, "bus"), func(ctx context.Context, js jetstream.JetStream) {
			t.must(js.DeleteStream(ctx, "EVENTS"))
		})
		start := time.Now()
		e.start()
		t.recovered(start)
		e.alarmed("log-exchanged")
		t.phase(e, s, "b", 200, 50) // these have the numbers of all others
		if s.count("/pair") != 5+25 {
			t.failf("%d pairs were called for, want 30", s.count("/pair"))
		}
		for _, d := range e.letters(waiting * 3 / 2) {
			if !strings.Contains(d.Error, "no longer stored") {
				t.failf("a job whose event is gone died of %q", d.Error)
			}
		}
		if n := s.count("/each"); n != 11+50 {
			t.failf("%d events were called for, want 61", n)
		}
		e.stop()
		for i, b := range s.bad {
			if i < 3 {
				t.failf("%s", b)
			}
		}
	}
}

func logExchanged(t *trial) {
	for range t.n {
		s := t.sink()
		e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
		e.start()
		t.phase(e, s, "a", 0, 101)
		e.stop()
		// Another engine's log, with events that nobody folded.
		other := t.engine(map[string]string{"load.yaml": webhookOnly}, build{})
		other.start()
		for n := 1000; n < 1050; n++ {
			other.accepted("/in", string(event(n)), "X-Id", id("x", n))
		}
		other.stop()
		t.must(os.RemoveAll(e.stream("EVENTS")))
		t.must(os.CopyFS(e.stream("EVENTS"), os.DirFS(other.stream("EVENTS"))))
		start := time.Now()
		e.start()
		t.recovered(start)
		e.alarmed("log-exchanged")
		t.eventually(arriveTimeout, "the other log is folded from its beginning", func() error {
			if n := s.count("/each"); n < 101+50 {
				return errCount(n, 101+50)
			}
			return nil
		})
		t.phase(e, s, "b", 200, 50)
		if s.count("/pair") != 50+25+25 {
			t.failf("%d pairs were called for, want 100", s.count("/pair"))
		}
		e.kill()
	}
}

const webhookOnly = `apiVersion: engine/v1
kind: EventSource
metadata: {name: load}
spec: {webhook: {in: {path: /in, id: {header: X-Id}}}}
`

func logRestored(t *trial) {
	for range t.n {
		s := t.sink()
		e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
		e.start()
		t.phase(e, s, "a", 0, 51)
		e.stop()
		backup := filepath.Join(t.path("backup"), "EVENTS")
		t.must(os.CopyFS(backup, os.DirFS(e.stream("EVENTS"))))
		e.start()
		t.phase(e, s, "b", 100, 101) // the last one waits for its partner
		e.stop()
		t.must(os.RemoveAll(e.stream("EVENTS")))
		t.must(os.CopyFS(e.stream("EVENTS"), os.DirFS(backup)))
		start := time.Now()
		e.start()
		t.recovered(start)
		e.alarmed("log-shortened")
		// 50 is the partner of an event in the backup, 201 of one that is gone.
		t.phase(e, s, "c", 201, 60)
		e.accepted("/in", string(event(51)), "X-Id", id("c", 51))
		t.eventually(20*time.Second, "the partner that was in the backup is called for", func() error {
			if n := s.count("/pair"); n < 25+50+29+1 {
				return errCount(n, 25+50+29+1)
			}
			return nil
		})
		e.kill()
	}
}
