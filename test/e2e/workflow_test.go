package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sensor-engine/engine/test/load"
)

// workflowSpec is a workflow of calls to a sink: two parts are built, then
// deployed, or the failure of one is told; and what gathers beside it.
const workflowSpec = `apiVersion: engine/v1
kind: EventSource
metadata: {name: git}
spec:
  webhook:
    push: {path: /push, id: {header: X-Id}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: release}
spec:
  dependencies:
    - {name: push, source: git, event: push}
  correlate: data.commit
  triggers:
    - name: build
      foreach: {in: push.data.parts}
      http: {url: "http://%[1]s/build/${ push.data.commit }/${ item }"}
    - name: deploy
      after: [build]
      condition: len(triggers.build.output) == 2
      http: {url: "http://%[1]s/deploy/${ push.data.commit }"}
      input: "${ map(triggers.build.output, .image) }"
    - name: tell
      onFailure: [build]
      http: {url: "http://%[1]s/tell/${ push.data.commit }"}
    - name: archive
      after: [deploy]
      http: {url: "http://%[1]s/archive/${ push.data.commit }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: gather}
spec:
  dependencies:
    - {name: push, source: git, event: push}
  triggers:
    - name: batch
      batch: {size: 1000, wait: 2s}
      input: "${ map(batch, .push.data.commit) }"
      http: {url: "http://%[1]s/batch"}
    - name: quiet
      condition: push
      debounce: {quiet: 1s}
      http: {url: "http://%[1]s/quiet/${ push.data.commit }"}
`

// TestWorkflowSurvivesKills: an engine that is killed again and again takes
// each workflow to its end, one step after the other, and fires once what was
// gathered when its time passes, also while it is down.
func TestWorkflowSurvivesKills(t *testing.T) {
	const commits = 12
	var mu sync.Mutex
	calls := map[string]map[string]bool{} // idempotency keys by path
	bodies := map[string]string{}
	var order []string // paths when they were first called
	// The function answers so many calls, and takes its time with the others until
	// the engine is killed.
	const quick = 4
	killed := make(chan struct{})
	answered, hanging := 0, 0
	sink, err := load.Listen(func(r load.Request) (int, string) {
		mu.Lock()
		defer mu.Unlock()
		if answered < quick {
			answered++
		} else if until := killed; until != nil {
			hanging++
			mu.Unlock()
			<-until
			mu.Lock()
		}
		path := r.Path()
		if calls[path] == nil {
			calls[path] = map[string]bool{}
			order = append(order, path)
		}
		calls[path][r.Header("Idempotency-Key")] = true
		bodies[path] = string(r.Body())
		if strings.HasPrefix(path, "/build/bad") && strings.HasSuffix(path, "/b") {
			return http.StatusUnprocessableEntity, "{}"
		}
		return http.StatusOK, fmt.Sprintf(`{"image": %q}`, path)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	// next lets what hangs go, and the calls of the next engine hang again, or not.
	next := func(until chan struct{}) {
		mu.Lock()
		defer mu.Unlock()
		close(killed)
		killed, answered, hanging = until, 0, 0
	}

	want := map[string]bool{"/batch": true, fmt.Sprint("/quiet/c", commits-1): true}
	for i := range commits {
		commit := fmt.Sprint("c", i)
		if i%4 == 0 {
			commit = fmt.Sprint("bad", i)
		}
		for _, part := range []string{"a", "b"} {
			want["/build/"+commit+"/"+part] = true
		}
		if i%4 == 0 {
			want["/tell/"+commit] = true
			continue
		}
		want["/deploy/"+commit], want["/archive/"+commit] = true, true
	}

	e := newEngine(t, map[string]string{"git.yaml": fmt.Sprintf(workflowSpec, sink.Addr())})
	e.start()
	for i := range commits {
		commit := fmt.Sprint("c", i)
		if i%4 == 0 {
			commit = fmt.Sprint("bad", i)
		}
		if s := e.post("/push", fmt.Sprintf(`{"commit": %q, "parts": ["a", "b"]}`, commit), "X-Id", commit); s != http.StatusAccepted {
			t.Fatalf("push of %s: status %d", commit, s)
		}
	}
	for kills := 1; kills <= 5; kills++ {
		eventually(t, arriveTimeout, "calls are answered and others hang", func() error {
			mu.Lock()
			defer mu.Unlock()
			if hanging == 0 {
				return fmt.Errorf("%d are answered, none hangs", answered)
			}
			return nil
		})
		e.kill()
		if kills < 5 {
			next(make(chan struct{}))
		} else {
			next(nil)
		}
		e.start()
	}
	eventually(t, arriveTimeout, "all steps are called", func() error {
		mu.Lock()
		defer mu.Unlock()
		for path := range want {
			if calls[path] == nil {
				return fmt.Errorf("%s is not called", path)
			}
		}
		return nil
	})
	e.stop()

	if got := slices.Sorted(maps.Keys(calls)); !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
		t.Errorf("called\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(slices.Sorted(maps.Keys(want)), "\n"))
	}
	for path, keys := range calls {
		if len(keys) != 1 {
			t.Errorf("%s was called for %d firings", path, len(keys))
		}
	}
	for path := range want {
		if commit, ok := strings.CutPrefix(path, "/deploy/"); ok {
			if want := fmt.Sprintf(`["/build/%[1]s/a","/build/%[1]s/b"]`, commit); bodies[path] != want {
				t.Errorf("%s got %s, want %s", path, bodies[path], want)
			}
			at := slices.Index(order, path)
			if slices.Index(order, "/build/"+commit+"/a") > at || slices.Index(order, "/build/"+commit+"/b") > at || slices.Index(order, "/archive/"+commit) < at {
				t.Errorf("the steps of %s are out of order", commit)
			}
		}
	}
	if got := strings.Count(bodies["/batch"], `"`) / 2; got != commits {
		t.Errorf("the batch has %d events, want %d: %s", got, commits, bodies["/batch"])
	}
}
