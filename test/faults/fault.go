package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"
)

// fault is one way to break an engine, and what must hold then.
type fault struct {
	name   string
	title  string // what is done
	passes string // the criterion
	// n is how often it is repeated, short how often in the tests; 0 leaves it
	// out there.
	n, short int
	run      func(*trial)
}

// options of one run of a fault.
type options struct {
	builds   *builds
	n        int  // repetitions, 0 for the fault's own
	short    bool // few repetitions, short outages
	patch    *patch
	progress io.Writer
}

// result is a line of the table.
type result struct {
	Fault       string   `json:"fault"`
	Title       string   `json:"title"`
	Passes      string   `json:"passes"`
	Repetitions int      `json:"repetitions"`
	Acked       int      `json:"acknowledged"`
	Lost        int      `json:"lost"`
	Twice       int      `json:"enqueuedTwice"`
	Repeated    int      `json:"repeatedCalls"`
	Recovery    float64  `json:"recoverySeconds"` // the longest
	Took        float64  `json:"seconds"`
	Notes       []string `json:"notes,omitempty"`
	Skipped     string   `json:"skipped,omitempty"`
	Failures    []string `json:"failures,omitempty"`
	// Removed is the protection that was removed, in -prove, and Seen what the
	// fault said to that.
	Removed string   `json:"removed,omitempty"`
	Seen    []string `json:"seen,omitempty"`
}

// trial is one fault while it is tried.
type trial struct {
	ctx context.Context
	*result
	o       options
	n       int
	dir     string
	rng     *rand.Rand
	cleanup []func()
	count   int // of engines
}

// over ends a trial early.
type over struct{}

// runFault tries one fault.
func runFault(ctx context.Context, f fault, o options) *result {
	r := &result{Fault: f.name, Title: f.title, Passes: f.passes}
	n := f.n
	if o.short {
		n = f.short
	}
	if o.n > 0 {
		n = o.n
	}
	dir, err := os.MkdirTemp(o.builds.dir, f.name+"-")
	if err != nil {
		r.Failures = append(r.Failures, err.Error())
		return r
	}
	seed := rand.Uint64()
	t := &trial{ctx: ctx, result: r, o: o, n: n, dir: dir, rng: rand.New(rand.NewPCG(seed, 0))}
	start := time.Now()
	fmt.Fprintf(o.progress, "%s: %d × %s\n", f.name, n, f.title)
	func() {
		defer func() {
			if v := recover(); v != nil {
				if _, ok := v.(over); !ok {
					r.Failures = append(r.Failures, fmt.Sprintf("the trial panicked: %v\n%s", v, debug.Stack()))
				}
			}
			for _, v := range slices.Backward(t.cleanup) {
				v()
			}
		}()
		f.run(t)
	}()
	r.Repetitions, r.Took = n, time.Since(start).Seconds()
	switch {
	case r.Skipped != "":
		fmt.Fprintf(o.progress, "%s: left out: %s\n", f.name, r.Skipped)
	case len(r.Failures) > 0:
		for _, s := range r.Failures {
			fmt.Fprintf(o.progress, "%s: FAILED (seed %d): %s\n", f.name, seed, s)
		}
	default:
		fmt.Fprintf(o.progress, "%s: ok in %.0f s, %d acknowledged, %d lost, %d enqueued twice, %d calls repeated, recovery %.2f s %v\n",
			f.name, r.Took, r.Acked, r.Lost, r.Twice, r.Repeated, r.Recovery, r.Notes)
	}
	return r
}

// failf notes a failure; the first few count.
func (t *trial) failf(format string, args ...any) {
	if len(t.Failures) < 8 {
		t.Failures = append(t.Failures, fmt.Sprintf(format, args...))
	}
}

// fatalf notes a failure and ends the trial.
func (t *trial) fatalf(format string, args ...any) {
	t.failf(format, args...)
	panic(over{})
}

// must ends the trial when err is not nil.
func (t *trial) must(err error) {
	if err != nil {
		t.fatalf("%v", err)
	}
}

// skip ends the trial without a verdict.
func (t *trial) skip(format string, args ...any) {
	t.Skipped = fmt.Sprintf(format, args...)
	panic(over{})
}

// note adds a remark to the table.
func (t *trial) note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// after has fn run when the trial ends.
func (t *trial) after(fn func()) { t.cleanup = append(t.cleanup, fn) }

// recovered notes how long it took from start until now.
func (t *trial) recovered(start time.Time) time.Duration {
	d := time.Since(start)
	t.Recovery = max(t.Recovery, d.Seconds())
	return d
}

// pause waits, or ends the trial when it is interrupted.
func (t *trial) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.ctx.Done():
		t.fatalf("interrupted")
	}
}

// between is a random duration.
func (t *trial) between(least, most time.Duration) time.Duration {
	return least + time.Duration(t.rng.Int64N(int64(most-least)+1))
}

// long is the first in a long run and the second in a short one.
func (t *trial) long(d, short time.Duration) time.Duration {
	if t.o.short {
		return short
	}
	return d
}

// eventually polls until check gives nil. After timeout it fails with its
// last error and reports false.
func (t *trial) eventually(timeout time.Duration, what string, check func() error) bool {
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return true
		}
		if time.Now().After(deadline) {
			t.failf("waiting until %s, %s long: %v", what, timeout, err)
			if t.o.patch != nil {
				panic(over{}) // it was noticed
			}
			return false
		}
		t.pause(10 * time.Millisecond)
	}
}

// path is a new directory of the trial.
func (t *trial) path(name string) string {
	t.count++
	p := filepath.Join(t.dir, fmt.Sprintf("%s%d", name, t.count))
	t.must(os.MkdirAll(p, 0o755))
	return p
}

// errCount says that there are fewer than wanted.
func errCount(have, want int) error { return fmt.Errorf("%d of %d", have, want) }
