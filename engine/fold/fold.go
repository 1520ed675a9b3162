// Package fold owns the dispatcher: it reads EVENTS in order, hands each
// event to the sensors that may want it, publishes their firings to JOBS,
// keeps the state per correlation key and the checkpoint, and recovers all of
// it after a crash. The decisions themselves are package sensors'; calling
// functions is package jobs'.
package fold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
)

// Rules is a set of compiled sensors in force. It is not changed after it was
// handed over.
type Rules struct {
	// Hash identifies the set; it is stored in the checkpoint.
	Hash string
	// Sensors are the sensors, names unique.
	Sensors []Sensor
	// From says where sensors begin, by name, when they come newly into force;
	// those that are not in it begin with the next event.
	From map[string]specs.From
}

// Sensor is one compiled sensor.
type Sensor = evaluate.Sensor

// Options configures a [Dispatcher].
type Options struct {
	Bus    bus.Bus
	Cache  *Cache
	Logger *slog.Logger
	// Rules are in force when the fold starts: after a crash the set that was
	// in force before it.
	Rules *Rules
	// Covered is called, from one goroutine, when a checkpoint is stored: all
	// events up to position are folded and their firings are in JOBS; so are
	// those of deadlines, up to the sequence job there.
	Covered func(position, job uint64)
	// Enqueued is called for each firing when JOBS has acknowledged its job,
	// which it then owns. It must not block.
	Enqueued func(j *jobs.Job, seq uint64)
	// Alarm is told what needs a person: a gap in the log, an exchanged log.
	Alarm func(code, message string)
	// CheckpointEvery is the least time between two checkpoints, default 5 ms.
	CheckpointEvery time.Duration
	// BatchSize is the most events folded at once, default 256.
	BatchSize int
	// Resident is about how many bytes of events that wait in sensors stay in
	// memory; others are read when they are needed. The default is an eighth of
	// the memory limit of the Go runtime (GOMEMLIMIT), 256 MiB without one.
	Resident int
	// Tombstones is how many emptied keys of sensor state stay in STATE before
	// they are removed together, at least; default 1024.
	Tombstones int
}

// Dispatcher runs the fold. Make it with [New]; Run does the work.
type Dispatcher struct {
	o   Options
	log *slog.Logger

	mu      sync.Mutex
	rules   *Rules
	calls   []func(*session) // to be run by the fold between two batches
	wake    context.CancelFunc
	stats   map[string]*stats
	failing error

	// Of the fold's goroutine: sensors to be paused, and those whose beginning
	// is perhaps not stored yet.
	condemned map[string]*panicError
	fresh     []string

	position  atomic.Uint64 // last event folded
	covered   atomic.Uint64 // last event under the checkpoint
	eventTime atomic.Int64  // its storage time, in nanoseconds
	unmatched atomic.Uint64
	ready     atomic.Bool

	standing    atomic.Pointer[[]standing] // where those are that are not at position
	floorBehind atomic.Uint64              // the first event that they are about to fold, 0 for none
	first       atomic.Uint64              // the first event stored, as far as known
}

// defaultResident is [Options.Resident] without a memory limit.
const defaultResident = 256 << 20

// New returns a dispatcher that does nothing yet.
func New(o Options) *Dispatcher {
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = 5 * time.Millisecond
	}
	if o.BatchSize == 0 {
		o.BatchSize = 256
	}
	if o.Resident == 0 {
		o.Resident = defaultResident
		if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
			o.Resident = int(limit / 8)
		}
	}
	if o.Tombstones == 0 {
		o.Tombstones = leastTombstones
	}
	if o.Covered == nil {
		o.Covered = func(position, job uint64) {}
	}
	if o.Enqueued == nil {
		o.Enqueued = func(*jobs.Job, uint64) {}
	}
	if o.Alarm == nil {
		o.Alarm = func(code, message string) { o.Logger.Error("alarm", "code", code, "what", message) }
	}
	return &Dispatcher{o: o, log: o.Logger, rules: o.Rules, stats: map[string]*stats{}, condemned: map[string]*panicError{}}
}

// Run folds until ctx ends, then writes a last checkpoint within the bus's
// time-outs and returns nil. When the bus fails it recovers from the last
// checkpoint and goes on, for ever.
func (d *Dispatcher) Run(ctx context.Context) error {
	wait := time.Duration(0)
	var told time.Time // when a failure was last logged
	for {
		start := time.Now()
		err := d.session(ctx)
		worked := d.ready.Swap(false)
		if ctx.Err() != nil {
			return nil
		}
		if p, ok := errors.AsType[*panicError](err); ok {
			d.condemn(p)
			continue
		}
		d.setFailing(err)
		if time.Since(start) > time.Minute {
			wait = 0
		}
		wait = min(max(2*wait, 50*time.Millisecond), time.Second)
		if worked || time.Since(told) > time.Minute { // not each try of an outage
			told = time.Now()
			d.log.Warn("fold interrupted; it recovers from its checkpoint", "error", err, "in", wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (d *Dispatcher) setFailing(err error) {
	d.mu.Lock()
	d.failing = err
	d.mu.Unlock()
}

// Swap puts rules in force after the event folded last and returns when the
// checkpoint says so. State of sensors whose dependencies did not change is
// kept. It waits while the bus is away, until ctx ends; the rules take force
// then all the same.
func (d *Dispatcher) Swap(ctx context.Context, rules *Rules) error {
	return d.BeginSwap(rules)(ctx)
}

// BeginSwap is [Dispatcher.Swap] in two parts: what it returns waits. An event
// that is stored after it returned is evaluated by rules.
func (d *Dispatcher) BeginSwap(rules *Rules) (wait func(context.Context) error) {
	return d.call(func(s *session) error { return s.swap(rules) })
}

// SetRules replaces the rules before Run was called.
func (d *Dispatcher) SetRules(rules *Rules) {
	d.mu.Lock()
	d.rules = rules
	d.mu.Unlock()
}

// InForce are the rules in force. The caller must not change them.
func (d *Dispatcher) InForce() *Rules {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rules
}

// Position is the last event folded and the last one under the checkpoint.
func (d *Dispatcher) Position() (folded, covered uint64) {
	return d.position.Load(), d.covered.Load()
}

// Ready reports whether the fold has recovered and works.
func (d *Dispatcher) Ready() bool { return d.ready.Load() }

// Lag is how long the oldest event not yet folded has been stored, 0 when
// there is none. It blocks on the bus.
func (d *Dispatcher) Lag(ctx context.Context) (time.Duration, error) {
	info, err := d.o.Bus.Events().Info(ctx)
	if err != nil {
		return 0, err
	}
	pos := d.position.Load()
	if info.Last <= pos {
		return 0, nil
	}
	r, err := d.o.Bus.Events().Next(ctx, bus.EventsPrefix+">", pos+1)
	if errors.Is(err, bus.ErrNotFound) || err == nil && d.position.Load() >= r.Seq {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return max(time.Since(r.Time), 0), nil
}

// Failing is the error that keeps the fold from working, nil when it works.
func (d *Dispatcher) Failing() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failing
}

// Unmatched counts events no sensor wanted.
func (d *Dispatcher) Unmatched() uint64 { return d.unmatched.Load() }

// SensorStats returns the counters of the sensors in force, by name.
func (d *Dispatcher) SensorStats() map[string]Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[string]Counts, len(d.rules.Sensors))
	for _, s := range d.rules.Sensors {
		out[s.Name] = d.statsOf(s.Name).counts()
	}
	return out
}

// statsOf returns the counters of a sensor. mu is held.
func (d *Dispatcher) statsOf(name string) *stats {
	st := d.stats[name]
	if st == nil {
		st = &stats{}
		d.stats[name] = st
	}
	return st
}

// do runs fn on the fold's goroutine between two batches, as soon as the
// recovery is over.
func (d *Dispatcher) do(ctx context.Context, fn func(*session) error) error {
	return d.call(fn)(ctx)
}

// call is do in two parts: what it returns waits.
func (d *Dispatcher) call(fn func(*session) error) (wait func(context.Context) error) {
	done := make(chan error, 1)
	d.mu.Lock()
	d.calls = append(d.calls, func(s *session) { done <- fn(s) })
	wake := d.wake
	d.mu.Unlock()
	if wake != nil {
		wake()
	}
	return func(ctx context.Context) error {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return fmt.Errorf("waiting for the fold: %w", ctx.Err())
		}
	}
}

// takeCalls returns what waits to be run.
func (d *Dispatcher) takeCalls() []func(*session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

// Pending is the state of one correlation key, for people.
type Pending struct {
	Sensor, Key string
	// Refs are the sequences of the events that wait.
	Refs []uint64
	// Wake is when the next of them expires, zero for never.
	Wake time.Time
}

// Pending returns up to limit waiting keys of a sensor ("" for all).
func (d *Dispatcher) Pending(ctx context.Context, sensor string, limit int) ([]Pending, error) {
	var out []Pending
	err := d.do(ctx, func(s *session) error {
		for l := range s.all {
			for k, e := range l.eval.Keys() {
				if len(out) >= limit {
					break
				}
				if sensor == "" || k.Sensor == sensor {
					out = append(out, Pending{Sensor: k.Sensor, Key: k.Key, Refs: e.State.Refs(), Wake: e.Wake()})
				}
			}
		}
		return nil
	})
	if err != nil { // it may still be under way
		return nil, err
	}
	return out, nil
}
