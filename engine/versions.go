package engine

import (
	"context"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// CodeNotReady marks a function whose new version does not start, while the one
// before goes on.
const CodeNotReady specs.Code = "not-ready"

// Bounds of the wait before a version that did not start is tried again. A
// problem that was there at the first try and at the second is news; a
// half-written file is gone by then.
const (
	firstTry = time.Second
	lastTry  = time.Minute
	// trialWait is how long a person who asks for a reload waits for versions on
	// trial.
	trialWait = 10 * time.Second
)

// version is one version of a function: what its document says, with the Secrets
// it uses, its schemas and the content of its files. All of it is in force, or
// nothing of it.
type version struct {
	// hash covers all that but the content of its files.
	hash   string
	callee *jobs.Callee
	// resource is its Function, nil for the function of a trigger.
	resource *specs.Resource
	// limit is how many of its calls may run at the same time.
	limit int
	// call and dir say what files it was made from, and content what was in them.
	call         *specs.Call
	dir, content string
	// stamp is the content of the files with its schemas.
	stamp string
	// needsRequest is true when it reads `request`.
	needsRequest bool
}

// ready reports whether it can be called, or may be: it has started, or nobody
// knows yet.
func (v *version) ready() bool {
	contract, ok := v.callee.Function.(*triggers.Contract)
	return ok && contract.Ready() == nil
}

// close closes its function, which nobody calls.
func (v *version) close() {
	if c, ok := v.callee.Function.(io.Closer); ok {
		_ = c.Close()
	}
}

// trial finds out whether a version starts that shall take the place of another
// one. It owns the version until that is put in force.
type trial struct {
	version
	// at is the place of the function in the specs, and before the hash of the
	// Function that goes on, "" of one of a trigger.
	at     specs.Diagnostic
	before string
	stop   context.CancelFunc
	done   chan struct{} // its goroutine has ended
	// known is closed by settle: its first try has failed and that is told, or
	// it is in force, or not wanted any more.
	known  chan struct{}
	settle func()

	mu     sync.Mutex
	since  time.Time
	proven bool
	err    error // why it did not start, nil as long as nobody knows
	told   bool  // the problem was logged
	fails  int
}

// run tries until the version has started or ctx ends. It calls tell when there
// is news.
func (t *trial) run(ctx context.Context, tell func()) {
	defer close(t.done)
	contract := t.callee.Function.(*triggers.Contract)
	wait := firstTry
	for {
		err := contract.Prove(ctx)
		if ctx.Err() != nil {
			return
		}
		t.mu.Lock()
		t.err, t.proven = err, err == nil
		if err != nil {
			t.fails++
		}
		t.mu.Unlock()
		tell()
		if err == nil {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = min(2*wait, lastTry)
	}
}

// over reports whether the version is to be in force: it has started, or neither
// it nor the one before can be called.
func (t *trial) over(before *version) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.proven || t.err != nil && !before.ready()
}

// problem is why the version does not start; ok is false when nothing is known
// to be wrong.
func (t *trial) problem() (d specs.Diagnostic, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return d, false
	}
	d = t.at
	d.Severity, d.Code = specs.Error, CodeNotReady
	d.Message = "the new version does not start, the one before goes on: " + t.err.Error()
	return d, true
}

// begin starts a trial.
func (c *callees) begin(t *trial) {
	c.log.Info("a new version of the function is starting; the one before goes on until it has", "function", t.callee.Name)
	ctx, stop := context.WithCancel(context.Background())
	t.stop, t.done, t.since, t.known = stop, make(chan struct{}), time.Now(), make(chan struct{})
	t.settle = sync.OnceFunc(func() { close(t.known) })
	go t.run(ctx, func() {
		select {
		case c.tried <- struct{}{}:
		default: // there is news already
		}
	})
}

// end ends a trial. discard is true when its version is not wanted any more: then
// it is closed. It does not wait.
func (c *callees) end(t *trial, discard bool) {
	t.stop()
	if discard {
		t.settle()
	}
	c.ending.Go(func() {
		<-t.done
		if discard {
			t.close()
		}
	})
}

// close ends all trials and waits for their end.
func (c *callees) close() {
	c.mu.Lock()
	trials := c.trials
	c.trials = nil
	c.mu.Unlock()
	for _, t := range trials {
		c.end(t, true)
	}
	c.ending.Wait()
}

// onTrial returns the trials by the name of their function.
func (c *callees) onTrial() map[string]*trial {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.trials)
}

// problems are those of versions that do not start.
func (c *callees) problems() specs.Diagnostics {
	var found specs.Diagnostics
	for _, t := range c.onTrial() {
		if d, bad := t.problem(); bad {
			found = append(found, d)
		}
	}
	return found.Sort()
}

// awaitTrials waits until something is known of every version on trial, at most
// for a while, and returns what is wrong with them.
func (c *callees) awaitTrials(ctx context.Context) specs.Diagnostics {
	ctx, cancel := context.WithTimeout(ctx, trialWait)
	defer cancel()
	for _, t := range c.onTrial() {
		select {
		case <-t.known:
		case <-ctx.Done():
		}
	}
	return c.problems()
}

// TrialStatus is that of a new version of a function that has not started, so
// that the one before goes on.
type TrialStatus struct {
	// Since is when the new version was found.
	Since time.Time `json:"since"`
	// Problem is why it does not start, "" while it is tried for the first time.
	Problem string `json:"problem,omitempty"`
}

func (t *trial) status() *TrialStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &TrialStatus{Since: t.since}
	if t.err != nil {
		s.Problem = t.err.Error()
	}
	return s
}

// tell adds to the status of a resource that the new version of its function is
// on trial; trigger is the name of its trigger, "" for a Function.
func (rs *ResourceStatus) tell(t *trial, trigger string) {
	if t == nil || rs.Trial != nil && rs.Trial.Problem != "" {
		return
	}
	rs.Trial = t.status()
	if t.before != "" {
		rs.Hash = t.before
	}
	if trigger != "" && rs.Trial.Problem != "" {
		rs.Trial.Problem = trigger + ": " + rs.Trial.Problem
	}
	if rs.State == string(reload.OK) && rs.Trial.Problem != "" {
		rs.State, rs.Reason = string(reload.Stale), "not ready: "+rs.Trial.Problem+"; the version before goes on"
	}
}

// tried takes notice of what trials have found: what has started is put in
// force, what has not is told once it has lasted.
func (e *Engine) tried() {
	var adopted []string
	trials := e.callees.onTrial()
	defer func() {
		for _, t := range trials {
			if _, bad := t.problem(); bad || slices.Contains(adopted, t.callee.Name) {
				t.settle()
			}
		}
	}()
	for name, t := range trials {
		if before := e.callees.made[name]; t.over(&before) {
			adopted = append(adopted, name)
			continue
		}
		d, bad := t.problem()
		t.mu.Lock()
		first, news := t.fails == 1, t.fails > 1 && !t.told
		t.told = t.told || news
		t.mu.Unlock()
		if bad && first {
			e.mu.Lock()
			e.reload.Refused = time.Now()
			e.mu.Unlock()
		}
		if bad && news {
			e.log.Error("function refused; its last good version stays in force", "problem", d.String())
		}
	}
	if len(adopted) == 0 {
		return
	}
	slices.Sort(adopted)
	table, err := e.callees.table(e.applied)
	if err != nil { // the next reload makes them, or says the same
		e.mu.Lock()
		e.reload.Error, e.reload.Refused = err.Error(), time.Now()
		e.mu.Unlock()
		e.log.Error("new versions of functions cannot be put in force; those before go on", "functions", adopted, "error", err)
		return
	}
	e.pool.Apply(table)
	e.mu.Lock()
	e.reload.Applied, e.reload.Error = time.Now(), ""
	e.reload.Generation++
	e.mu.Unlock()
	e.log.Info("new versions of functions are in force", "functions", adopted)
}
