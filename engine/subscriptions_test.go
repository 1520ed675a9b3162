package engine_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/engine/jobs"
)

// subscribed is a Subscription whose function posts to a sink.
func subscribed(name, url, more string) string {
	return head + `kind: Function
metadata: {name: ` + name + `}
spec: {http: {url: "` + url + `"}, retry: {attempts: 3, backoff: 1ms}}
---
` + head + `kind: Subscription
metadata: {name: ` + name + `}
spec: {function: ` + name + `, ` + more + `}
`
}

// TestSubscriptionsFanOut: each gets every event, once; one that is removed gets
// no more, and the others go on as before.
func TestSubscriptionsFanOut(t *testing.T) {
	one, two := newSink(t), newSink(t)
	r := start(t, written(t, "one.yaml", subscribed("one", one.URL, "eventType: a.b"), "two.yaml", subscribed("two", two.URL, `eventType: "a.*"`)), t.TempDir())
	const n = 10
	for i := range n {
		r.emit("a.b", strconv.Itoa(i), strconv.Itoa(i))
	}
	r.emit("a.b.c", "100", "100") // for the glob alone
	r.emit("b", "101", "101")     // for nobody
	r.until("all calls", func() bool { return len(one.got()) >= n && len(two.got()) >= n+1 })
	r.write("two.yaml", "")
	r.reload()
	for i := range n {
		r.emit("a.b", strconv.Itoa(n+i), strconv.Itoa(n+i))
	}
	r.until("the calls of the one that stays", func() bool { return len(one.got()) >= 2*n })
	for what, s := range map[string]struct {
		got  []string
		want int
	}{"one": {one.got(), 2 * n}, "two": {two.got(), n + 1}} {
		seen := map[string]bool{}
		for _, c := range s.got {
			seen[c] = true
		}
		if len(s.got) != s.want || len(seen) != s.want || seen["101"] || seen["100"] != (what == "two") {
			t.Errorf("%s was called %d times, with %v", what, len(s.got), s.got)
		}
	}
}

// TestSubscriptionsBegin: with the next event, unless they say otherwise.
func TestSubscriptionsBegin(t *testing.T) {
	early, now := newSink(t), newSink(t)
	r := start(t, written(t, "other.yaml", subscribed("other", newSink(t).URL, "eventType: other")), t.TempDir())
	r.emit("t", "1", "1")
	r.until("the event to be folded", func() bool { return r.e.Status(t.Context()).Fold.Folded == 1 })
	r.write("early.yaml", subscribed("early", early.URL, "eventType: t, from: earliest"))
	r.write("now.yaml", subscribed("now", now.URL, "eventType: t"))
	r.reload()
	r.emit("t", "2", "2")
	r.until("the calls", func() bool { return len(early.got()) == 2 && len(now.got()) == 1 })
	if got := now.got()[0]; got != "2" {
		t.Errorf("called with %s", got)
	}
}

// TestSubscriptionsComeBack: after a restart they are there, and what was
// accepted before it is called then.
func TestSubscriptionsComeBack(t *testing.T) {
	sink := newSink(t)
	fail := func(fail bool) {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		sink.fail = fail
	}
	fail(true)
	data := t.TempDir()
	r := start(t, written(t, "s.yaml", subscribed("s", sink.URL, "eventType: t, retry: {attempts: 1000, backoff: 1ms, max: 5ms}")), data)
	r.emit("t", "1", "1")
	r.until("a call to fail", func() bool {
		for _, s := range r.e.Jobs().Status() {
			if s.Ref.Sensor == "subscription.s" && s.Stats.Retried.Load() > 0 {
				return true
			}
		}
		return false
	})
	r.stop()
	fail(false)
	r = start(t, r.dir, data)
	r.emit("t", "2", "2")
	r.until("both calls", func() bool { return len(sink.got()) == 2 })
}

// TestSubscriptionsFail: a failure is repeated as the Subscription says, or else
// its function, and ends in the dead letters; others are not concerned.
func TestSubscriptionsFail(t *testing.T) {
	var calls [2]atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls[len(r.URL.Path)-1].Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(srv.Close)
	fine := newSink(t)
	r := start(t, written(t, "a.yaml", subscribed("own", srv.URL+"/", "eventType: t, retry: {attempts: 2, backoff: 1ms}"), "b.yaml", subscribed("functions", srv.URL+"/x", "eventType: t"), "c.yaml", subscribed("fine", fine.URL, "eventType: t")), t.TempDir())
	r.emit("t", "1", "1")
	r.until("the dead letters", func() bool { return r.letters() == 2 })
	if calls[0].Load() != 2 || calls[1].Load() != 3 || len(fine.got()) != 1 {
		t.Errorf("%d, %d and %d calls", calls[0].Load(), calls[1].Load(), len(fine.got()))
	}
	r.until("the history", func() bool {
		runs, err := jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{})
		if err != nil {
			t.Fatal(err)
		}
		dead := 0
		for _, run := range runs {
			var of struct{ Sensor, Status, Error string }
			if json.Unmarshal(run.JSON, &of) == nil && of.Status == jobs.StatusDead && strings.HasPrefix(of.Sensor, "subscription.") && strings.Contains(of.Error, "503") {
				dead++
			}
		}
		return dead == 2
	})
}

// TestSubscriptionsAddSecrets: its secrets come after those of the function, and
// win; without it the function has only its own.
func TestSubscriptionsAddSecrets(t *testing.T) {
	t.Setenv("GRANTED", "granted-value")
	t.Setenv("ADDED", "added-value")
	r := start(t, written(t, "s.yaml", head+`kind: Function
metadata: {name: f}
spec:
  exec: {command: [sh, -c, 'test "$OWN" = granted-value && echo "[\"$(test "$BOTH" = added-value && echo added)\",\"$(test "$MORE" = added-value && echo added)\"]"']}
  secrets: [a]
---
`+head+`kind: Subscription
metadata: {name: more}
spec: {eventType: more, function: f, secrets: [b]}
---
`+head+`kind: Subscription
metadata: {name: plain}
spec: {eventType: plain, function: f}
---
`+head+`kind: Secret
metadata: {name: a}
spec: {env: {own: GRANTED, both: GRANTED}}
---
`+head+`kind: Secret
metadata: {name: b}
spec: {env: {both: ADDED, more: ADDED}}
`), t.TempDir())
	for typ, want := range map[string]string{"more": `["added","added"]`, "plain": `["",""]`} {
		if got := r.call(typ, typ, `{}`); string(got.Output) != want {
			t.Errorf("%s: %s, want %s (%+v)", typ, got.Output, want, got)
		}
	}
}
