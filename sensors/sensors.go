// Package sensors owns the decision whether and with what a trigger fires:
// compiling a Sensor, routing events to it, the state kept per correlation
// key, the step, and the verdicts that explain it. It is pure: no I/O, no
// goroutines, no clock; the same input gives the same output in the running
// engine, in tests and in replay. It must not know queues, functions, stores
// or the bus behind an event.
//
// One event goes through three calls. [Index.Lookup] names the programs that
// may want it; [Program.Route] says for which dependencies and which
// correlation key one of them does, sharing a [View] of the event between
// programs; [Program.Step] takes the [KeyState] of that key and the event to
// the next state and the firings. Time is an input of Step like any other:
// [Program.NextWake] says when a step without an event is due. So are the
// events a state refers to: it has their sequences only.
//
// What is kept is kept per trigger: each has its own view of what has arrived,
// and a firing takes away, from its own trigger's view only, the events it
// used. An event waits until it is used, replaced by a newer one (pick:
// latest), or has waited for the whole window: an event stored at T with
// within W takes part up to, and not at, T+W.
//
// A trigger may hold back what would fire, until it has been quiet or a batch is
// complete; and others may follow it, once they are told by an event how its
// calls ended. What was held back and such workflows are a part of the state of
// the key.
//
// The event of a dependency that is declared absent is never kept. What is
// noted is, with each kept event that begins a time, whether it was answered
// within that time or the time passed: so a deadline is a part of the event
// that waits, and gone with it.
package sensors

import (
	"time"

	"github.com/sensor-engine/engine/bus"
)

// Match says that an event is wanted by a dependency, for one correlation key.
type Match struct {
	// Dep is the index of the dependency in the sensor. Indexes behind those of
	// the dependencies are the triggers whose results the event is.
	Dep int
	// Key is the correlation key, "" when the sensor does not correlate.
	Key string
}

// Outcome is the sort of a verdict.
type Outcome uint8

// The outcomes of looking at an event.
const (
	// Yes: the expression held, the event was kept or fired.
	Yes Outcome = iota
	// No: the expression was false.
	No
	// Missing: the expression asked for what is not there; Detail names it.
	Missing
	// Failed: the expression failed; Detail says how.
	Failed
	// Superseded: a newer event replaced the kept one, pushed the oldest out
	// where as many wait as can, or is itself not kept, because one with the same
	// distinct value waits.
	Superseded
	// Expired: a kept event waited longer than the window.
	Expired
	// Waiting: the condition does not hold yet.
	Waiting
	// Fired: the trigger fires.
	Fired
	// Answered: the event that was to stay away arrived in time; Seq is the one
	// that began the time.
	Answered
	// Suppressed: the condition held within the trigger's cooldown, so that the
	// events were used up and nothing fired; Seq is the last of them.
	Suppressed
	// Debounced: the condition held again before the trigger's quiet time was
	// over, so that what held before was used up and does not fire; Seq is the
	// last event of that.
	Debounced
	// Skipped: a step of a workflow does not fire, or a fan-out has no items;
	// Detail says why.
	Skipped
	// Evicted: a key was given up with all that waited, because the sensor keeps
	// as much as it may; Seq is the event after which it was not touched, Detail
	// names the key, how many events waited, and the limit.
	Evicted
	// Lost: an event that is kept is no longer stored, which a condition or
	// template found that reads it. It does not wait any more; a firing that
	// needs it fails.
	Lost
)

// Verdict explains one decision about one event.
type Verdict struct {
	Outcome Outcome
	// Dependency and Trigger say what decided, "" when it was not that.
	Dependency, Trigger string
	// Seq is the event's sequence in the log (of the superseded or expired
	// one for these outcomes).
	Seq uint64
	// Detail is for people: the missing path, the error.
	Detail string
}

// Routing is what [Program.Route] found.
type Routing struct {
	Matches []Match
	// Verdicts explains what was evaluated and did not match.
	Verdicts []Verdict
}

// Input is one step's input: an event for a key, or the passing of time.
type Input struct {
	// LogID is the identity of the EVENTS log.
	LogID string
	// Key is the correlation key.
	Key string
	// Event is nil when a deadline is stepped.
	Event *bus.Event
	// Kept gives an event the state refers to, by its sequence, or nil when it
	// is no longer stored. It stands for the log: of one sequence it gives the
	// same event always. Step asks for what an expression reads, and no more.
	Kept func(seq uint64) *bus.Event
	// Deps are those of the matches with this key, ascending.
	Deps []int
	// Time is the log time of the step: the event's, or the deadline.
	Time time.Time
	// Explain asks for the verdicts Waiting and Fired too.
	Explain bool
	// Inspect is filled in with what the step decides and why, when it is not
	// nil. That takes much longer than the step.
	Inspect *Inspection
}

// Contribution is one event that took part in a firing.
type Contribution struct {
	// Dependency is its name; for the result of an earlier step of a workflow it
	// is "triggers." and the name of the trigger.
	Dependency string `json:"dep"`
	Seq        uint64 `json:"seq"`
	// Batch is which of the parts of a batch it belongs to, Item which item of a
	// fan-out the result is of; both from 0.
	Batch int `json:"batch,omitempty"`
	Item  int `json:"item,omitempty"`
}

// Firing is one decision to call a function.
type Firing struct {
	// Key is the firing key: a hash of log, sensor, trigger, correlation key,
	// the sequences of the contributing events and the deadline. It is the
	// idempotency key of the call.
	Key string
	// Trigger is the trigger's name and index in the sensor.
	Trigger      string
	TriggerIndex int
	// Spread is true for `spread: true`: what the trigger's firings become need
	// not stay together.
	Spread bool
	// Correlation is the correlation key.
	Correlation string
	// Flow is the identity of the workflow this firing is a step of, "" when it
	// is of none. Items is the size of the fan-out it is a part of and Item its
	// place there, from 0; both are 0 when it is of none.
	Flow        string
	Item, Items int
	// Events are the contributing events, in the order of dependencies, then
	// of sequence. Last is the highest sequence of them.
	Events []Contribution
	Last   uint64
	// Time is the log time of the step.
	Time time.Time
	// Rendered holds the rendered templates of the trigger by their path
	// (specs.Text.Path, specs.Template.Path; the trigger's input has the path
	// of its `input`), nil when there are none or Late is true.
	Rendered map[string]any
	// Late is true when Rendered would exceed 64 KiB: the worker renders again
	// from the contributing events.
	Late bool
	// Err is set when a template could not be rendered: the firing goes to
	// the dead letters with this reason. It names the path.
	Err error
}
