package triggers

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/specs"
)

func TestPolicyOf(t *testing.T) {
	if got := PolicyOf(nil); got != DefaultPolicy() {
		t.Errorf("%+v", got)
	}
	if got := PolicyOf(&specs.Retry{}); got != DefaultPolicy() {
		t.Errorf("%+v", got)
	}
	zero := 0.0
	got := PolicyOf(&specs.Retry{Attempts: 2, Backoff: specs.Duration(time.Minute), Factor: 3, Max: specs.Duration(time.Hour), Jitter: &zero})
	if want := (Policy{Attempts: 2, Backoff: time.Minute, Max: time.Hour, Factor: 3}); got != want {
		t.Errorf("%+v", got)
	}
}

func TestWait(t *testing.T) {
	p := Policy{Backoff: time.Second, Factor: 2, Max: 10 * time.Second}
	for attempt, want := range map[int]time.Duration{
		1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 5: 10 * time.Second, 5000: 10 * time.Second, math.MaxInt: 10 * time.Second,
	} {
		if got := p.Wait(attempt, 0.5); got != want {
			t.Errorf("after attempt %d: %v, want %v", attempt, got, want)
		}
	}
	p.Jitter = 0.5
	for random, want := range map[float64]time.Duration{0: time.Second / 2, 0.5: time.Second, 0.75: 1250 * time.Millisecond} {
		if got := p.Wait(1, random); got != want {
			t.Errorf("random %v: %v, want %v", random, got, want)
		}
	}
}

// However a policy is written, a wait lies within its bounds, and without
// jitter waits do not shrink (with a factor of at least 1).
func TestWaitProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{
			Backoff: time.Duration(rapid.Int64Range(0, int64(10*24*time.Hour)).Draw(t, "backoff")),
			Max:     time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "max")),
			Factor:  rapid.Float64Range(0, 1e6).Draw(t, "factor"),
			Jitter:  rapid.Float64Range(0, 1).Draw(t, "jitter"),
		}
		n := rapid.IntRange(1, 10000).Draw(t, "attempt")
		d := p.Wait(n, rapid.Float64Range(0, math.Nextafter(1, 0)).Draw(t, "random"))
		if d < 0 || float64(d) > float64(p.Max)*(1+p.Jitter)*(1+1e-12)+1 {
			t.Fatalf("%v is out of bounds", d)
		}
		p.Jitter = 0
		if p.Factor >= 1 && p.Wait(n+1, 0) < p.Wait(n, 0) {
			t.Fatalf("waits shrink: %v, %v", p.Wait(n, 0), p.Wait(n+1, 0))
		}
	})
}
