package fold

import (
	"fmt"
	"time"

	"github.com/sensor-engine/engine/engine/evaluate"
)

// The rule by which a sensor is quarantined: in one second it took more than
// half of the time, and more than hogEach for each event it was asked about.
// The longest evaluation does not count, for a process may be stopped once.
const (
	watchWindow = time.Second
	watchEvents = 3 // at least, however long they take
	hogEach     = time.Millisecond
	// The cost of each sensor is measured for one window after one in which the
	// main lane folded for more than half of the time, and for more than
	// suspectEach an event; if nobody is found, not again within watchPause.
	suspectEach = 200 * time.Microsecond
	watchPause  = 10 * time.Second
)

// watchdog measures what the evaluation of sensors costs. As long as the main
// lane is fast it reads the clock twice a batch; only when it was slow, it reads
// it twice for each sensor and event, for a while.
type watchdog struct {
	// slow is true while sensors are measured.
	slow bool

	begin  time.Time // of the window, zero for none
	busy   time.Duration
	events int
	quiet  time.Time // no measurement before

	costs   []spent // by sensor
	started time.Time
}

// spent is what one sensor took in a window.
type spent struct {
	n           int
	total, most time.Duration
}

// reset ends the window, when other sensors come into force.
func (w *watchdog) reset(e *evaluate.Evaluator) {
	w.slow, w.begin, w.costs = false, time.Time{}, nil
	e.Meter = nil
}

// note takes the time of one batch in.
func (w *watchdog) note(begin time.Time, took time.Duration, events int) {
	if w.begin.IsZero() {
		w.begin, w.busy, w.events = begin, 0, 0
	}
	w.busy += took
	w.events += events
}

// look ends a window when it is over. It returns a sensor that must be paused,
// and why.
func (w *watchdog) look(main *lane) (string, *Pause) {
	if w.begin.IsZero() || w.busy == 0 {
		return "", nil
	}
	now := time.Now()
	length := now.Sub(w.begin)
	if length < watchWindow || w.events < watchEvents {
		return "", nil
	}
	if w.slow {
		defer w.reset(main.eval)
		w.quiet = now.Add(watchPause)
		for i, c := range w.costs {
			if total := c.total - c.most; c.n > 1 && 2*total > length-c.most && total/time.Duration(c.n-1) > hogEach {
				w.quiet = time.Time{}
				return main.running[i].Name, &Pause{Since: now.UTC(), By: ByWatchdog, Reason: fmt.Sprintf(
					"its evaluation took %v of %v, for %d events", c.total.Round(time.Millisecond), length.Round(time.Millisecond), c.n)}
			}
		}
		return "", nil
	}
	suspect := 2*w.busy > length && w.busy/time.Duration(w.events) > suspectEach && !now.Before(w.quiet)
	w.begin = time.Time{}
	if suspect {
		w.slow, w.costs = true, make([]spent, len(main.running))
		main.eval.Meter = w.meter
	}
	return "", nil
}

// meter is the evaluator's.
func (w *watchdog) meter(sensor int, begins bool) {
	if begins {
		w.started = time.Now()
		return
	}
	took := time.Since(w.started)
	c := &w.costs[sensor]
	c.n++
	c.total += took
	c.most = max(c.most, took)
}
