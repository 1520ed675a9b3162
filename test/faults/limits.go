package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// secondEngine starts an engine on a data directory that is in use.
func secondEngine(t *trial) {
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	e.start()
	l := t.traffic(e, 4, 5*time.Millisecond)
	for range t.n {
		l.reach(50)
		second := t.engine(map[string]string{"one.yaml": webhookOnly}, build{})
		second.data = e.data
		from := time.Now()
		second.launch()
		select {
		case <-second.ended:
		case <-time.After(10 * time.Second):
			t.failf("the second engine still runs after 10 s")
			second.kill()
			continue
		}
		if d := t.recovered(from); d > time.Second {
			t.failf("refused after %v, want < 1 s", d)
		}
		if code := second.proc.ProcessState.ExitCode(); code <= 0 {
			t.failf("exit code %d, want a failure", code)
		}
		if log := second.log(); !strings.Contains(log, fmt.Sprint(e.proc.Process.Pid)) || !strings.Contains(log, e.data) {
			t.failf("does not name pid and directory: %s", lastLine(log))
		}
		second.proc = nil
	}
	l.end()
	l.settle(s)
	e.stop()
	t.audit(e)
}

// outOfDescriptors opens more connections than the process may have files.
func outOfDescriptors(t *trial) {
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "")}, build{})
	e.shell = "ulimit -n 128"
	e.start()
	l := t.traffic(e, 4, 5*time.Millisecond)
	for range t.n {
		l.reach(100)
		var conns []net.Conn
		for range 300 {
			c, err := net.DialTimeout("tcp", e.in, 5*time.Second)
			if err != nil {
				break // the kernel's queue is full as well
			}
			conns = append(conns, c)
		}
		t.pause(t.long(5*time.Second, time.Second))
		if !e.alive() {
			return
		}
		for _, c := range conns {
			_ = c.Close()
		}
		from := time.Now()
		t.eventually(15*time.Second, "a new connection is served", func() error {
			n := int(l.next.Add(1) - 1)
			status, _, err := e.post("/in", string(event(n)), "X-Id", id(l.run, n))
			if err == nil && status != http.StatusAccepted {
				err = fmt.Errorf("status %d", status)
			}
			return err
		})
		t.recovered(from)
		e.awaitReady()
		if len(conns) < 200 {
			t.failf("only %d connections could be opened", len(conns))
		}
	}
	if !strings.Contains(open128(e), "128") {
		t.failf("the limit was not in force: %s", open128(e))
	}
	l.end()
	l.settle(s)
	e.stop()
	t.audit(e)
}

// open128 is the line of the kernel's limits about open files.
func open128(e *engine) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", e.proc.Process.Pid))
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Max open files") {
			return line
		}
	}
	return ""
}

// memoryCap gathers a backlog under a limit of the kernel.
func memoryCap(t *trial) {
	const limit = 256 << 20
	group := filepath.Join("/sys/fs/cgroup/memory", fmt.Sprintf("engine-faults-%d", os.Getpid()))
	limitFile, peakFile := "memory.limit_in_bytes", "memory.max_usage_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		group = strings.Replace(group, "/memory/", "/", 1)
		limitFile, peakFile = "memory.max", "memory.peak"
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.skip("no cgroup can be made: %v", err)
	}
	t.after(func() { _ = os.Remove(group) })
	if err := os.WriteFile(filepath.Join(group, limitFile), []byte(strconv.Itoa(limit)), 0o600); err != nil {
		t.skip("the cgroup takes no limit: %v", err)
	}
	s := t.sink()
	e := t.engine(map[string]string{"load.yaml": spec(s.Addr(), "\n      timeout: 10m")}, build{})
	e.shell = "echo $$ > " + filepath.Join(group, "cgroup.procs")
	t.after(e.kill) // before the group is removed
	e.start()
	stuck := make(chan struct{})
	fn := func(string) { <-stuck }
	s.before.Store(&fn)
	released := false
	release := func() {
		if !released {
			released = true
			close(stuck)
		}
	}
	t.after(release) // before the sink waits for its handlers
	for range t.n {
		events := 200_000
		if t.o.short {
			events = 10_000
		}
		l := &traffic{t: t, run: "e", conns: 32, limit: events, acked: map[int]bool{}, statuses: map[int]string{}}
		l.start(e)
		var peak int64
		for l.ok.Load() < int64(events) {
			t.pause(100 * time.Millisecond)
			if !e.alive() {
				return
			}
			peak = max(peak, e.rss())
		}
		l.wg.Wait()
		from := time.Now()
		release()
		l.settle(s)
		t.recovered(from)
		peak = max(peak, e.rss())
		usage, _ := os.ReadFile(filepath.Join(group, peakFile))
		bytes, _ := strconv.ParseFloat(strings.TrimSpace(string(usage)), 64)
		t.note("peak RSS %d MiB, with the page cache %.0f MiB", peak>>20, bytes/(1<<20))
	}
	e.stop()
	t.audit(e)
}
