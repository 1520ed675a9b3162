package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// command is a spec of a webhook on /cmd whose function runs a shell script.
func command(script, more string) string {
	q, _ := json.Marshal(script)
	return fmt.Sprintf(`apiVersion: engine/v1
kind: EventSource
metadata: {name: cmd}
spec: {webhook: {in: {path: /cmd}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: cmd}
spec:
  dependencies: [{name: ev, source: cmd, event: in}]
  triggers:
    - name: run
      concurrency: 2
      exec: {command: [sh, -c, %s]}
      %s
`, q, more)
}

// letter is a dead letter, as far as we look at it.
type letter struct {
	Error    string
	Attempts int
}

// letters waits for n dead letters.
func (e *engine) letters(n int) []letter {
	var all struct{ Letters []letter }
	e.t.eventually(60*time.Second, fmt.Sprintf("%d dead letters are there", n), func() error {
		all.Letters = nil
		_, body, err := get("http://" + e.api + "/api/v1/dlq?limit=1000")
		if err == nil {
			err = json.Unmarshal([]byte(body), &all)
		}
		if err == nil && len(all.Letters) < n {
			err = errCount(len(all.Letters), n)
		}
		return err
	})
	return all.Letters
}

// functionHangs calls a program that neither ends nor can be asked to.
func functionHangs(t *trial) {
	s := t.sink()
	tag := fmt.Sprintf("86400.%d", os.Getpid())
	t.after(func() {
		for _, pid := range processes(tag) {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	})
	script := fmt.Sprintf(`trap "" TERM; setsid sleep %[1]s & sleep %[1]s & wait; sleep %[1]s`, tag)
	e := t.engine(map[string]string{
		"load.yaml": spec(s.Addr(), ""),
		"cmd.yaml":  command(script, "timeout: 500ms\n      retry: {attempts: 2, backoff: 50ms}"),
	}, build{})
	e.start()
	l := t.traffic(e, 2, 10*time.Millisecond)
	for range t.n {
		e.accepted("/cmd", `{}`)
	}
	l.reach(50)
	from := time.Now()
	for _, d := range e.letters(t.n) {
		if d.Attempts != 2 || !strings.Contains(d.Error, "timeout") && !strings.Contains(d.Error, "in time") {
			t.failf("dead letter after %d attempts: %q", d.Attempts, d.Error)
		}
	}
	t.recovered(from)
	t.eventually(5*time.Second, "nothing of the function is left", func() error {
		if left := processes(tag); len(left) > 0 {
			return fmt.Errorf("%d processes: %v", len(left), left)
		}
		return nil
	})
	l.reach(50)
	l.end()
	l.settle(s)
	e.stop()
}

// processes are the pids whose command line contains s.
func processes(s string) (pids []int) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		var pid int
		if _, err := fmt.Sscanf(d.Name(), "%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		if b, err := os.ReadFile("/proc/" + d.Name() + "/cmdline"); err == nil && strings.Contains(string(b), s) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// functionCrashes calls programs that die.
func functionCrashes(t *trial) {
	s := t.sink()
	e := t.engine(map[string]string{
		"load.yaml": spec(s.Addr(), ""),
		"cmd.yaml":  command(`read how; case "$how" in *kill*) kill -9 $$;; *) echo 'on purpose' >&2; exit 3;; esac`, "retry: {attempts: 3, backoff: 20ms}"),
	}, build{})
	e.start()
	l := t.traffic(e, 2, 10*time.Millisecond)
	for i := range t.n {
		e.accepted("/cmd", []string{`{"how":"kill"}`, `{"how":"exit"}`}[i%2])
	}
	from := time.Now()
	kills, exits := 0, 0
	for _, d := range e.letters(t.n) {
		switch {
		case d.Attempts != 3:
			t.failf("dead letter after %d attempts, want 3: %q", d.Attempts, d.Error)
		case strings.Contains(d.Error, "SIGKILL"):
			kills++
		case strings.Contains(d.Error, "exit 3") && strings.Contains(d.Error, "on purpose"):
			exits++
		default:
			t.failf("the reason says neither signal nor exit code: %q", d.Error)
		}
	}
	t.recovered(from)
	if kills != (t.n+1)/2 || exits != t.n/2 {
		t.failf("%d killed and %d failed, want %d and %d", kills, exits, (t.n+1)/2, t.n/2)
	}
	l.reach(20)
	l.end()
	l.settle(s)
	e.stop()
}

// functionFloods calls a program that prints without end.
func functionFloods(t *trial) {
	s := t.sink()
	e := t.engine(map[string]string{
		"load.yaml": spec(s.Addr(), ""),
		"cmd.yaml":  command(`read n rest; head -c "$n" /dev/zero | tr "\\0" x; head -c "$n" /dev/zero | tr "\\0" y >&2`, "timeout: 60s"),
	}, build{})
	e.start()
	runs := func(limit int) string {
		_, body, err := get(fmt.Sprintf("http://%s/api/v1/runs?function=cmd.run&limit=%d", e.api, limit))
		t.must(err)
		return body
	}
	// Asking costs the engine memory too: seldom, and for little.
	const asking = 200 * time.Millisecond
	run := func(bytes int) {
		before := runs(1)
		e.accepted("/cmd", fmt.Sprintf("%d \n", bytes), "Content-Type", "text/plain")
		t.eventually(90*time.Second, "the function ended", func() error {
			if runs(1) == before {
				t.pause(asking)
				return errors.New("its run is not there")
			}
			return nil
		})
	}
	run(10)
	// What the engine keeps of its newest events is as large as it gets before
	// anything is measured.
	l := t.traffic(e, 8, 0)
	l.reach(10_000)
	l.end()
	l.conns, l.every = 2, 10*time.Millisecond
	l.start(e)
	// The load and the asking alone first, for as long as the flood will take.
	peak := func(fn func()) (most int64) {
		stop, sampled := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(sampled)
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				most = max(most, e.rss())
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
		}()
		fn()
		close(stop)
		<-sampled
		return most
	}
	base := peak(func() {
		for end := time.Now().Add(t.long(8*time.Second, 2*time.Second)); time.Now().Before(end); t.pause(asking) {
			runs(1)
		}
	})
	from := time.Now()
	flood := peak(func() {
		for range t.n {
			run(100_000_000)
		}
	})
	t.recovered(from)
	grew := float64(flood-base) / 1e6
	if grew > 10 {
		t.failf("RSS grew by %.1f MB, want < 10 MB", grew)
	}
	if out := runs(1000); strings.Count(out, `"truncated":true`) < t.n || strings.Count(out, `"status":"succeeded"`) < t.n+1 {
		t.failf("of %d runs not all succeeded and are marked truncated: %.300s", t.n, out)
	}
	l.end()
	l.settle(s)
	e.stop()
	t.note("RSS grew by %.1f MB", grew)
}
