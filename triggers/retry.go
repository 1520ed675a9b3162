package triggers

import (
	"math"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// Policy is a retry policy with all defaults filled in.
type Policy struct {
	// Attempts is the number of all calls, at least 1.
	Attempts int
	// Backoff is the wait after the first failure; each later one is Factor
	// times longer, at most Max, plus or minus the part Jitter (0 to 1).
	Backoff, Max   time.Duration
	Factor, Jitter float64
}

// DefaultPolicy is used where a spec says nothing.
func DefaultPolicy() Policy {
	return Policy{Attempts: 5, Backoff: time.Second, Max: 5 * time.Minute, Factor: 2, Jitter: 0.1}
}

// PolicyOf fills a spec's policy in from the defaults; nil gives the defaults.
func PolicyOf(r *specs.Retry) Policy {
	p := DefaultPolicy()
	if r == nil {
		return p
	}
	if r.Attempts > 0 {
		p.Attempts = r.Attempts
	}
	if r.Backoff > 0 {
		p.Backoff = r.Backoff.D()
	}
	if r.Factor > 0 {
		p.Factor = r.Factor
	}
	if r.Max > 0 {
		p.Max = r.Max.D()
	}
	if r.Jitter != nil {
		p.Jitter = *r.Jitter
	}
	return p
}

// Wait returns how long to wait after attempt (from 1) failed. random is a
// number in [0, 1) that places the jitter.
func (p Policy) Wait(attempt int, random float64) time.Duration {
	if p.Backoff <= 0 || p.Max <= 0 {
		return 0 // and never zero times infinity
	}
	d := float64(p.Backoff) * math.Pow(p.Factor, float64(attempt-1))
	d = min(d, float64(p.Max))
	d += d * p.Jitter * (2*random - 1)
	if d >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(max(d, 0))
}
