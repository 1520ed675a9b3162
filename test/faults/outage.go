package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// external is a NATS server in a process of its own.
type external struct {
	t         *trial
	dir, port string
	proc      *exec.Cmd
}

func (t *trial) external() *external {
	_, port, err := net.SplitHostPort(t.addrs(1)[0])
	t.must(err)
	x := &external{t: t, dir: t.path("nats"), port: port}
	t.after(x.kill)
	return x
}

func (x *external) start() {
	self, err := os.Executable()
	x.t.must(err)
	x.proc = exec.Command(self)
	x.proc.Env = append(os.Environ(), "FAULTS_NATS_DIR="+x.dir, "FAULTS_NATS_PORT="+x.port)
	x.proc.Stderr = os.Stderr
	x.t.must(x.proc.Start())
	x.t.eventually(startTimeout, "the NATS server answers", func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+x.port)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

func (x *external) kill() {
	if x.proc != nil {
		_ = x.proc.Process.Kill()
		_ = x.proc.Wait()
		x.proc = nil
	}
}

// refusals posts events while nothing can be stored: after grace every one
// must be answered 503 with Retry-After. Their ids are new, so that an answer
// which lies is found as a loss.
func (t *trial) refusals(e *engine, l *traffic, grace, d time.Duration) {
	begin := time.Now()
	for time.Since(begin) < d {
		at := time.Since(begin)
		n := int(l.next.Add(1) - 1)
		status, after, err := e.post("/in", string(event(n)), "X-Id", id(l.run, n))
		switch {
		case err == nil && status == http.StatusAccepted:
			l.mu.Lock()
			l.acked[n] = true
			l.mu.Unlock()
			if at > grace {
				t.failf("%.1f s into the outage an event was accepted", at.Seconds())
			}
		case at > grace && (err != nil || status != http.StatusServiceUnavailable):
			t.failf("%.1f s into the outage the answer is %d %v, want 503", at.Seconds(), status, err)
		case status == http.StatusServiceUnavailable && after == "":
			t.failf("a 503 has no Retry-After")
		}
		t.pause(100 * time.Millisecond)
	}
}

// busAway kills an external bus under load and starts it again later.
func busAway(t *trial) {
	x := t.external()
	x.start()
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	e.args = []string{"--bus", "nats://127.0.0.1:" + x.port}
	e.start()
	l := t.traffic(e, 4, 5*time.Millisecond)
	lines := 0
	for range t.n {
		away := t.long(60*time.Second, 3*time.Second)
		l.reach(200)
		before := strings.Count(e.log(), "\n")
		x.kill()
		// What was on its way is answered within the time-out of an
		// acknowledgement, 5 s.
		t.refusals(e, l, 6*time.Second, away)
		x.start()
		from := time.Now()
		if d := l.sinceOK(from, time.Minute); d > 30*time.Second {
			t.failf("no event was accepted for %v after the bus was back", d)
		}
		e.awaitReady()
		t.recovered(from)
		n := strings.Count(e.log(), "\n") - before
		if most := 10 * max(1, int(away/time.Minute)); n >= most {
			t.failf("%d lines of log for an outage of %v, want < %d", n, away, most)
		}
		lines = max(lines, n)
	}
	l.end()
	l.settle(s)
	e.stop()
	x.kill()
	t.open(x.dir, func(ctx context.Context, js jetstream.JetStream) { t.auditStreams(ctx, js) })
	t.note("%d refused with 503, at most %d lines of log", l.refused, lines)
}

// diskFull takes all space of a small file system.
func diskFull(t *trial) {
	if os.Getuid() != 0 {
		t.skip("mounting a small file system needs root")
	}
	mnt := t.path("mnt")
	if err := syscall.Mount("tmpfs", mnt, "tmpfs", 0, "size=64m"); err != nil {
		t.skip("mount: %v", err)
	}
	t.after(func() {
		if err := syscall.Unmount(mnt, 0); err != nil {
			t.failf("unmount: %v", err)
		}
	})
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	e.data = filepath.Join(mnt, "data")
	e.start()
	l := t.traffic(e, 8, 10*time.Millisecond)
	for range t.n {
		l.reach(200)
		// Somebody writes whatever can be written, also what is freed meanwhile.
		filler := filepath.Join(mnt, "filler")
		full, filled := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(filled)
			f, err := os.Create(filler)
			if err != nil {
				return
			}
			defer f.Close()
			block := make([]byte, 64<<10)
			for {
				size := len(block)
				for size > 0 {
					n, err := f.Write(block[:size])
					if err != nil && n == 0 {
						size /= 2
					}
				}
				select {
				case <-full:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		}()
		t.refusals(e, l, 3*time.Second, t.long(8*time.Second, 5*time.Second))
		var st syscall.Statfs_t
		t.must(syscall.Statfs(mnt, &st))
		if st.Bavail > 0 {
			t.failf("the disk was not full: %d blocks are free", st.Bavail)
		}
		close(full)
		<-filled
		t.must(os.Remove(filler))
		from := time.Now()
		if d := l.sinceOK(from, time.Minute); d > 30*time.Second {
			t.failf("no event was accepted for %v after there was space", d)
		}
		if !e.alive() {
			return
		}
		e.awaitReady()
		t.recovered(from)
	}
	l.end()
	l.settle(s)
	e.stop()
	t.audit(e)
	t.note("%d refused with 503; the embedded server was restarted inside %d times", l.refused, strings.Count(e.log(), "restarting the embedded bus"))
}

// busRestarted takes the embedded server, or its store, from a running engine.
func busRestarted(t *trial) {
	for _, durability := range []string{"os", "fsync"} {
		s := t.sink()
		e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{patches: []patch{fragileBus()}})
		order := filepath.Join(t.dir, "fall-"+durability)
		e.env = []string{"FAULT_BUS=" + order}
		e.args = []string{"--durability", durability}
		e.start()
		l := t.traffic(e, 8, 5*time.Millisecond)
		for i := range max(t.n/2, 2) {
			l.reach(200)
			before := strings.Count(e.log(), "\n")
			how := [...]string{"server", "store"}[i%2]
			t.must(os.WriteFile(order+".tmp", []byte(how), 0o600))
			t.must(os.Rename(order+".tmp", order))
			t.eventually(10*time.Second, "the "+how+" is gone", func() error {
				if _, err := os.Stat(order); err == nil {
					return fmt.Errorf("%s is still there", order)
				}
				return nil
			})
			from := time.Now()
			t.eventually(30*time.Second, "the embedded bus was started again", func() error {
				if n := strings.Count(e.log(), "restarting the embedded bus"); n <= i {
					return errCount(n, i+1)
				}
				return nil
			})
			l.sinceOK(time.Now(), 30*time.Second)
			if !e.alive() {
				return
			}
			e.awaitReady()
			if d := t.recovered(from); d > 30*time.Second {
				t.failf("no event was accepted for %v", d)
			}
			if n := strings.Count(e.log(), "\n") - before; n >= 20 {
				t.failf("%d lines of log for one restart", n)
			}
		}
		l.end()
		l.settle(s)
		e.stop()
		t.audit(e)
		t.note("%s: %d refused with 503", durability, l.refused)
	}
}

// clockSteps sets the wall clock of an engine forwards and back.
func clockSteps(t *trial) {
	s := t.sink()
	clock := filepath.Join(t.dir, "clock")
	t.must(os.WriteFile(clock, make([]byte, 8), 0o600))
	f, err := os.OpenFile(clock, os.O_WRONLY, 0)
	t.must(err)
	defer f.Close()
	set := func(offset time.Duration) {
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], uint64(int64(offset/time.Second)))
		_, err := f.WriteAt(b[:], 0)
		t.must(err)
	}
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), ""), "clock.yaml": fmt.Sprintf(`apiVersion: engine/v1
kind: EventSource
metadata: {name: clock}
spec: {ticker: {second: {every: 1s}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: ticks}
spec:
  dependencies: [{name: tick, source: clock, event: second}]
  triggers: [{name: tell, http: {url: "http://%s/tick"}}]
`, s.Addr())}, build{patches: []patch{steppedClock()}})
	e.env = []string{"FAULT_CLOCK=" + clock}
	var mu sync.Mutex
	ticks := 0
	fn := func(path string) {
		if path == "/tick" {
			mu.Lock()
			ticks++
			mu.Unlock()
		}
	}
	s.before.Store(&fn)
	begin := time.Now()
	e.start()
	l := t.traffic(e, 4, 5*time.Millisecond)
	for range t.n {
		for _, offset := range []time.Duration{time.Hour, 0, -time.Hour, 0, time.Until(time.Unix(0, 0)), 0} {
			l.reach(100)
			set(offset)
			from := time.Now()
			l.sinceOK(from, 10*time.Second)
			t.pause(t.long(3*time.Second, time.Second))
			l.reach(100)
			e.awaitReady()
			t.recovered(from)
		}
		// And a restart in the past.
		set(-time.Hour)
		e.kill()
		e.start()
		l.reach(100)
		set(0)
	}
	l.end()
	l.settle(s)
	e.stop()
	t.audit(e)
	mu.Lock()
	defer mu.Unlock()
	elapsed := int(time.Since(begin).Seconds())
	if ticks > elapsed+10*t.n {
		t.failf("%d ticks in %d s: a storm", ticks, elapsed)
	}
	if ticks < elapsed/2 {
		t.failf("%d ticks in %d s: the ticker stood still", ticks, elapsed)
	}
	t.note("%d ticks in %d s", ticks, elapsed)
}
