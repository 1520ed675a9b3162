package fold

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/sensors"
)

// Counts are the counters of one sensor since the start, at one moment.
type Counts struct {
	Matched, Fired, Missing, Failed, Superseded, Expired, Suppressed, Debounced, Skipped uint64
	// Evicted is how many keys were given up because the sensor kept more than
	// it may; Keys and Bytes are what it keeps.
	Evicted, Keys, Bytes uint64
	// Quarantines is how often the watchdog paused it.
	Quarantines uint64
	// Problem is the last expression that failed or missed what it asked for,
	// "" for none.
	Problem string
}

// stats are the counters of one sensor. The fold's goroutine counts, whoever
// asks reads.
type stats struct {
	matched, fired, missing, failed, superseded, expired, suppressed, debounced, skipped atomic.Uint64
	problem                                                                              atomic.Pointer[problem]
	evicted, keys, bytes                                                                 atomic.Uint64
	told                                                                                 time.Time // when an alarm told of evictions; the fold's
	quarantines                                                                          atomic.Uint64
	// shares are the groups of the index that decide for this sensor; the
	// dispatcher's mu guards the slice.
	shares []share
}

// share is the part of one dependency in the counters of a group.
type share struct {
	group      *groupStats
	dependency string
}

// groupStats counts what could not be decided for all dependencies of a group
// together.
type groupStats struct {
	missing, failed atomic.Uint64
	problem         atomic.Pointer[problem]
}

// problem says what went wrong in an expression.
type problem struct{ sensors.Verdict }

// text is one line for people.
func (p *problem) text(dependency string) string {
	where := "dependency " + dependency
	if p.Trigger != "" {
		where = "trigger " + p.Trigger
	}
	what := "failed: "
	if p.Outcome == sensors.Missing {
		what = "missing "
	}
	return fmt.Sprintf("event %d, %s: %s%s", p.Seq, where, what, p.Detail)
}

// uses takes notice of what the sensor keeps.
func (s *stats) uses(keys, bytes int) {
	if n := uint64(keys); s.keys.Load() != n {
		s.keys.Store(n)
	}
	if n := uint64(bytes); s.bytes.Load() != n {
		s.bytes.Store(n)
	}
}

// count takes verdicts about one sensor in.
func (s *stats) count(vs []sensors.Verdict) {
	for i := range vs {
		switch vs[i].Outcome {
		case sensors.Missing:
			s.missing.Add(1)
			s.problem.Store(&problem{vs[i]})
		case sensors.Failed:
			s.failed.Add(1)
			s.problem.Store(&problem{vs[i]})
		case sensors.Superseded:
			s.superseded.Add(1)
		case sensors.Expired:
			s.expired.Add(1)
		case sensors.Suppressed:
			s.suppressed.Add(1)
		case sensors.Debounced:
			s.debounced.Add(1)
		case sensors.Skipped:
			s.skipped.Add(1)
		case sensors.Yes, sensors.No, sensors.Waiting, sensors.Fired, sensors.Answered, sensors.Evicted, sensors.Lost:
		}
	}
}

// count takes a verdict about a whole group in.
func (g *groupStats) count(v sensors.Verdict) {
	if v.Outcome == sensors.Missing {
		g.missing.Add(1)
	} else {
		g.failed.Add(1)
	}
	g.problem.Store(&problem{v})
}

// counts adds up. The dispatcher's mu is held.
func (s *stats) counts() Counts {
	c := Counts{
		Matched: s.matched.Load(), Fired: s.fired.Load(), Missing: s.missing.Load(), Failed: s.failed.Load(),
		Superseded: s.superseded.Load(), Expired: s.expired.Load(), Suppressed: s.suppressed.Load(),
		Debounced: s.debounced.Load(), Skipped: s.skipped.Load(), Quarantines: s.quarantines.Load(),
		Evicted: s.evicted.Load(), Keys: s.keys.Load(), Bytes: s.bytes.Load(),
	}
	seq := uint64(0)
	if p := s.problem.Load(); p != nil {
		c.Problem, seq = p.text(p.Dependency), p.Seq
	}
	for _, sh := range s.shares {
		c.Missing += sh.group.missing.Load()
		c.Failed += sh.group.failed.Load()
		if p := sh.group.problem.Load(); p != nil && p.Seq > seq {
			c.Problem, seq = p.text(sh.dependency), p.Seq
		}
	}
	return c
}

// settle makes the shares the sensor's own, before the groups change. The
// dispatcher's mu is held.
func (s *stats) settle() {
	for _, sh := range s.shares {
		s.missing.Add(sh.group.missing.Load())
		s.failed.Add(sh.group.failed.Load())
		own, theirs := s.problem.Load(), sh.group.problem.Load()
		if theirs != nil && (own == nil || theirs.Seq > own.Seq) {
			v := theirs.Verdict
			v.Dependency = sh.dependency
			s.problem.Store(&problem{v})
		}
	}
	s.shares = nil
}
