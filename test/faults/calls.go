package main

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Functions that note each call in the file OUT, behind their work and before
// their answer: key, attempt and number.
const (
	notingPython = `import os, time

def note(key, attempt, n):
    with open(os.environ["OUT"], "a") as f:
        f.write("%s %d %d\n" % (key, attempt, n))

def handle(ctx, p):
    time.sleep(0.002)
    note(ctx.key, ctx.attempt, p["n"])
    return p["n"]

def hang(ctx, p):
    while os.path.exists(os.environ["HANG"]):
        time.sleep(0.01)
    note(ctx.key, ctx.attempt, p["n"])

def quick(ctx, p):
    note(ctx.key, ctx.attempt, p["n"])

def moody(ctx, p):
    note(ctx.key, ctx.attempt, p["n"])
    if p.get("poison") == "kill":
        os.kill(os.getpid(), 9)
    if p.get("poison") == "fail":
        raise RuntimeError("poison")
`
	notingNode = `const fs = require('fs');
module.exports = async (ctx, p) => {
  await new Promise((resolve) => setTimeout(resolve, 2));
  fs.appendFileSync(process.env.OUT, ctx.key + ' ' + ctx.attempt + ' ' + p.n + '\n');
  return p.n;
};
`
	notingWorker = `import json, sys
from noting import handle

class Context(dict):
    __getattr__ = dict.__getitem__

for line in sys.stdin:
    call = json.loads(line)
    print(json.dumps({"id": call["id"], "payload": handle(Context(call["context"]), call["payload"])}), flush=True)
`
)

// need skips a trial where programs are missing; in continuous integration that
// is a failure.
func (t *trial) need(programs ...string) {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.fatalf("%v", err)
			}
			t.skip("%v", err)
		}
	}
}

// notes are the calls that a function has noted: by number, the attempts of
// each key.
type notes map[int]map[string][]int

func (t *trial) notes(path string) notes {
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.must(err)
	}
	out := notes{}
	for line := range strings.Lines(string(b)) {
		var key string
		var attempt, n int
		if _, err := fmt.Sscanf(line, "%s %d %d\n", &key, &attempt, &n); err != nil {
			continue // not written to its end yet
		}
		if out[n] == nil {
			out[n] = map[string][]int{}
		}
		out[n][key] = append(out[n][key], attempt)
	}
	return out
}

// check waits until everything wanted is noted, and counts what is missing and
// what came again.
func (t *trial) check(path string, want map[int]bool) notes {
	var got notes
	missing := func() (n int) {
		got = t.notes(path)
		for i := range want {
			if got[i] == nil {
				n++
			}
		}
		return n
	}
	if !t.eventually(arriveTimeout, filepath.Base(path)+" was called for everything accepted", func() error {
		if n := missing(); n > 0 {
			return fmt.Errorf("%d of %d are missing", n, len(want))
		}
		return nil
	}) {
		t.Lost += missing()
	}
	for n, keys := range got {
		if len(keys) != 1 {
			t.failf("%s: %d came with the keys %v", filepath.Base(path), n, slices.Collect(maps.Keys(keys)))
		}
		for _, attempts := range keys {
			t.Repeated += len(attempts) - 1
		}
	}
	return got
}

// workers are the processes that an engine keeps for calls.
func (e *engine) workers() (pids []int) {
	pid := e.proc.Process.Pid
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for field := range strings.FieldsSeq(string(list)) {
			var child int
			if _, err := fmt.Sscan(field, &child); err != nil {
				continue
			}
			if environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", child)); strings.Contains(string(environ), "\x00ENGINE_WORKER=") {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// attempt is one in the history, as far as we look at it; the newest one of a
// call has all of them.
type attempt struct {
	Status, Error, Class string
	Attempt              int
	Attempts             []attempt
}

// run asks for a run by its id or key.
func (e *engine) run(id string) (r attempt, err error) {
	status, body, err := get("http://" + e.api + "/api/v1/runs/" + id)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("run %s: %d %.200s", id, status, body)
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &r)
	}
	return r, err
}

// workersKilled kills processes of functions, whatever they are at.
func workersKilled(t *trial) {
	t.need("python3", "node")
	s, out := t.sink(), t.path("out")
	kinds := map[string]string{
		"python": "python: {file: noting.py, env: {OUT: %s}}",
		"node":   "node: {file: noting.js, env: {OUT: %s}}",
		"worker": "exec: {command: [python3, worker.py], mode: worker, env: {OUT: %s}}",
	}
	var b strings.Builder
	b.WriteString("apiVersion: engine/v1\nkind: Sensor\nmetadata: {name: kinds}\nspec:\n  dependencies: [{name: ev, source: load, event: in}]\n  triggers:\n")
	for name := range kinds {
		fmt.Fprintf(&b, "    - {name: %[1]s, function: %[1]s}\n", name)
	}
	for name, kind := range kinds {
		fmt.Fprintf(&b, "---\napiVersion: engine/v1\nkind: Function\nmetadata: {name: %s}\nspec:\n  "+kind+"\n  concurrency: 3\n  retry: {attempts: 1000, backoff: 10ms, factor: 1.5, max: 200ms}\n", name, filepath.Join(out, name))
	}
	e := t.engine(map[string]string{
		"load.yaml": spec(s.Addr(), ""), "kinds.yaml": b.String(),
		"noting.py": notingPython, "noting.js": notingNode, "worker.py": notingWorker,
	}, build{})
	e.start()
	l := t.traffic(e, 4, 10*time.Millisecond)
	l.reach(20)
	for kills := 0; kills < t.n; {
		t.pause(t.between(0, 400*time.Millisecond)) // a start takes a part of that
		if pids := e.workers(); len(pids) > 0 {
			_ = syscall.Kill(pids[t.rng.IntN(len(pids))], syscall.SIGKILL)
			kills++
		}
		if !e.alive() {
			return
		}
	}
	from := time.Now()
	l.end()
	l.settle(s)
	if t.Repeated > 0 {
		t.failf("%d calls of functions without processes were repeated", t.Repeated)
	}
	all := map[string]notes{}
	for name := range kinds {
		all[name] = t.check(filepath.Join(out, name), l.acked)
	}
	t.recovered(from)
	// The history has the attempts of those that came again.
	told := 0
	for name, got := range all {
		asked := 0
		// The newest, which the history still has all of.
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(got))) {
			for key, attempts := range got[n] {
				if len(attempts) == 1 && attempts[0] == 1 {
					continue
				}
				told++
				if asked++; asked <= 10 { // each reads the history
					t.told(e, name, n, key)
				}
			}
		}
	}
	if told == 0 {
		t.failf("no call was repeated: the processes were not killed under load")
	}
	t.note("%d of %d calls hurt", told, len(kinds)*len(l.acked))
	e.stop()
}

// told checks that the history has each attempt of a call, the last of which
// has succeeded.
func (t *trial) told(e *engine, name string, n int, key string) {
	t.eventually(10*time.Second, "the history has the attempts", func() error {
		r, err := e.run(key)
		if err != nil {
			return err
		}
		for i, a := range r.Attempts {
			last := i == len(r.Attempts)-1
			if a.Attempt != i+1 || (a.Status == "succeeded") != last || !last && (a.Status != "retrying" || a.Class != "SystemError") {
				return fmt.Errorf("of %s %d: attempt %d of %d is %+v", name, n, i+1, len(r.Attempts), a)
			}
		}
		if len(r.Attempts) < 2 {
			return fmt.Errorf("of %s %d: %d attempts", name, n, len(r.Attempts))
		}
		return nil
	})
}

// partitions is how many JOBS has.
const partitions = 16

func partition(sensor, trigger string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(sensor + "\x00" + trigger))
	return h.Sum32() % partitions
}

// functionBeside calls a function beside one that hangs, of the same kind, in
// the same sensor and with the same partition.
func functionBeside(t *trial) {
	t.need("python3")
	quick := ""
	for i := 0; quick == ""; i++ {
		if name := fmt.Sprint("quick", i); partition("beside", name) == partition("beside", "hang") {
			quick = name
		}
	}
	out := t.path("out")
	hang := filepath.Join(out, "hanging")
	e := t.engine(map[string]string{"noting.py": notingPython, "beside.yaml": fmt.Sprintf(`apiVersion: engine/v1
kind: EventSource
metadata: {name: load}
spec: {webhook: {in: {path: /in, id: {header: X-Id}}, hang: {path: /hang, id: {header: X-Id}}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: beside}
spec:
  dependencies:
    - {name: ev, source: load, event: in}
    - {name: bad, source: load, event: hang}
  triggers:
    - {name: %[1]s, condition: ev, function: quick}
    - {name: hang, condition: bad, function: hang}
---
apiVersion: engine/v1
kind: Function
metadata: {name: quick}
spec:
  python: {file: noting.py, handler: noting.quick, workers: 1, env: {OUT: %[2]s/quick}}
---
apiVersion: engine/v1
kind: Function
metadata: {name: hang}
spec:
  python: {file: noting.py, handler: noting.hang, workers: 2, env: {OUT: %[2]s/hang, HANG: %[3]s}}
  timeout: 1h
`, quick, out, hang)}, build{})
	e.start()
	done := func(path string, n int) func() error {
		return func() error {
			b, err := os.ReadFile(path)
			if have := strings.Count(string(b), "\n"); err == nil && have < n {
				err = errCount(have, n)
			}
			return err
		}
	}
	events := 0
	// rate posts events as fast as they are taken and tells how many of their
	// calls are done in a second.
	rate := func(n int) float64 {
		l := &traffic{t: t, run: "e", conns: 4, limit: events + n, acked: map[int]bool{}, statuses: map[int]string{}}
		l.next.Store(int64(events))
		from := time.Now()
		l.start(e)
		l.wg.Wait()
		t.Acked += len(l.acked)
		events += n
		t.eventually(arriveTimeout, "the quick function was called for everything", done(filepath.Join(out, "quick"), events))
		return float64(n) / time.Since(from).Seconds()
	}
	n := 100
	if !t.o.short {
		n = 3000
	}
	rate(n) // warm
	hung := 0
	var ratios []float64
	for range t.n {
		before := rate(n)
		t.must(os.WriteFile(hang, nil, 0o600))
		// More than JOBS gives out at a time.
		for range n / 2 {
			e.accepted("/hang", string(event(hung)), "X-Id", id("h", hung))
			hung++
		}
		beside := rate(n)
		if err := done(filepath.Join(out, "hang"), hung)(); err == nil {
			t.failf("the hanging function did not hang")
		}
		t.must(os.Remove(hang))
		t.eventually(arriveTimeout, "the other function was called for everything", done(filepath.Join(out, "hang"), hung))
		ratios = append(ratios, beside/((before+rate(n))/2))
	}
	t.Acked += hung
	slices.Sort(ratios)
	median := ratios[len(ratios)/2]
	t.note("its rate is %.2f of that without (%d rounds, %.2f to %.2f)", median, t.n, ratios[0], ratios[len(ratios)-1])
	if !t.o.short && median < 0.8 {
		t.failf("beside a function that hangs, the rate is %.2f of that without", median)
	}
	e.stop()
	if n := t.notes(filepath.Join(out, "quick")); len(n) != events {
		t.failf("the quick function was called for %d events, want %d", len(n), events)
	}
}

// killSubmitted kills an engine with calls in flight that were submitted by
// hand and through an endpoint, each accepted with 202.
func killSubmitted(t *trial) {
	t.need("python3")
	out := t.path("out")
	e := t.engine(map[string]string{"noting.py": notingPython, "calls.yaml": fmt.Sprintf(`apiVersion: engine/v1
kind: Function
metadata: {name: note}
spec:
  python: {file: noting.py, handler: noting.handle, workers: 4, env: {OUT: %s/notes}}
  retry: {attempts: 1000, backoff: 10ms, factor: 1.5, max: 200ms}
---
apiVersion: engine/v1
kind: Endpoint
metadata: {name: notes}
spec: {path: /notes, function: note, async: true}
`, out)}, build{})
	e.start()
	var mu sync.Mutex
	ids := map[int]string{} // of accepted calls
	var next, accepted atomic.Int64
	var stop atomic.Bool
	var callers sync.WaitGroup
	t.after(func() { stop.Store(true); callers.Wait() })
	submit := func(n int) (string, error) {
		url, body := "http://"+e.in+"/notes", fmt.Sprintf(`{"n":%d}`, n)
		if n%2 == 1 {
			url, body = "http://"+e.api+"/api/v1/runs", fmt.Sprintf(`{"function":"note","input":{"n":%d},"async":true}`, n)
		}
		req, err := http.NewRequestWithContext(t.ctx, http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", id("call", n))
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusAccepted {
			return "", fmt.Errorf("%d %s %w", resp.StatusCode, answer, err)
		}
		var run struct{ ID string }
		err = json.Unmarshal(answer, &run)
		return run.ID, err
	}
	for range 4 {
		callers.Go(func() {
			for !stop.Load() {
				n := int(next.Add(1) - 1)
				for {
					id, err := submit(n)
					if err == nil {
						mu.Lock()
						ids[n] = id
						mu.Unlock()
						accepted.Add(1)
						break
					}
					if stop.Load() {
						return // left unaccepted
					}
					timer := time.NewTimer(5 * time.Millisecond)
					<-timer.C
				}
			}
		})
	}
	for range t.n {
		want := accepted.Load() + 20
		t.eventually(arriveTimeout, "calls are accepted", func() error {
			if have := accepted.Load(); have < want {
				return errCount(int(have), int(want))
			}
			return nil
		})
		t.pause(t.between(0, 30*time.Millisecond))
		e.kill()
		t.Recovery = max(t.Recovery, e.start().Seconds())
	}
	stop.Store(true)
	callers.Wait()
	want := map[int]bool{}
	for n := range ids {
		want[n] = true
	}
	t.Acked = len(want)
	t.check(filepath.Join(out, "notes"), want)
	for n, id := range ids {
		t.eventually(20*time.Second, "each accepted call has a run that has succeeded", func() error {
			r, err := e.run(id)
			if err == nil && r.Status != "succeeded" {
				err = fmt.Errorf("%d: %+v", n, r)
			}
			return err
		})
		if len(t.Failures) > 3 {
			break
		}
	}
	e.stop()
}

// poisonedJobs are among others, of the same trigger and of triggers that keep
// the order of each key.
func poisonedJobs(t *trial) {
	t.need("python3")
	out := t.path("out")
	trigger := func(name, more string) string {
		return fmt.Sprintf("    - {name: %[1]s, function: %[1]s%[2]s}\n", name, more)
	}
	function := func(name string) string {
		return fmt.Sprintf("---\napiVersion: engine/v1\nkind: Function\nmetadata: {name: %[1]s}\nspec:\n  python: {file: noting.py, handler: noting.moody, workers: 1, env: {OUT: %[2]s/%[1]s}}\n  retry: {attempts: 2, backoff: %[3]s, jitter: 0}\n", name, out, t.long(20*time.Second, 3*time.Second))
	}
	e := t.engine(map[string]string{"noting.py": notingPython, "poison.yaml": `apiVersion: engine/v1
kind: EventSource
metadata: {name: load}
spec: {webhook: {in: {path: /in, id: {header: X-Id}}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: poison}
spec:
  dependencies: [{name: ev, source: load, event: in}]
  correlate: data.n
  triggers:
` + trigger("any", ", concurrency: 1") + trigger("ordered", ", concurrency: 1, order: key") + function("any") + function("ordered")}, build{})
	e.start()
	good, poisoned := map[int]bool{}, map[int]bool{}
	for n := range 4 * t.n {
		body := fmt.Sprintf(`{"n":%d}`, n)
		if n%4 == 0 {
			body = fmt.Sprintf(`{"n":%d,"poison":%q}`, n, []string{"kill", "fail"}[rand.IntN(2)])
			poisoned[n] = true
		} else {
			good[n] = true
		}
		e.accepted("/in", body, "X-Id", id("p", n))
	}
	t.Acked = 4 * t.n
	for _, name := range []string{"any", "ordered"} {
		path := filepath.Join(out, name)
		t.eventually(arriveTimeout, name+" was called for all that is good", func() error {
			got := t.notes(path)
			left := 0
			for n := range good {
				if got[n] == nil {
					left++
				}
			}
			if left == 0 {
				return nil
			}
			for n := range poisoned {
				for _, attempts := range got[n] {
					if slices.Max(attempts) > 1 {
						t.fatalf("%s: a poisoned call came again while %d others waited", name, left)
					}
				}
			}
			return errCount(len(good)-left, len(good))
		})
	}
	letters := e.letters(2 * t.n)
	for _, d := range letters {
		if d.Attempts != 2 || !strings.Contains(d.Error, "poison") && !strings.Contains(d.Error, "SIGKILL") {
			t.failf("dead letter after %d attempts: %q", d.Attempts, d.Error)
		}
	}
	for _, name := range []string{"any", "ordered"} {
		for n, keys := range t.notes(filepath.Join(out, name)) {
			want := 1
			if poisoned[n] {
				want = 2
			}
			for key, attempts := range keys {
				if len(attempts) != want || len(keys) != 1 {
					t.failf("%s: %d was called %v with %s, want %d times", name, n, attempts, key, want)
				}
			}
		}
	}
	e.stop()
}
