// Package spectest owns the running of spec tests: it takes the events of a
// test through the intake of their source and through the same evaluator as
// the fold does, in virtual time, and compares what fires with what is
// expected. Nothing is stored, no function is called, no clock is read. It
// must not decide what fires: that is package evaluate's and sensors'.
package spectest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// duplicateWindow is how long EVENTS knows the ids of producers.
const duplicateWindow = 10 * time.Minute

// Runner runs tests against one set of specs. It is safe for concurrent use.
type Runner struct {
	sensors   []evaluate.Sensor
	specs     map[string]*specs.Sensor // by the name it runs under
	events    map[place]event
	functions map[string]bool // all there are, inline ones too
	asked     *sensors.Asked
}

// place names an event of an EventSource.
type place struct{ source, event string }

// event is what the engine does with the events of one place.
type event struct {
	intake      *sources.Intake
	defaultType string
	attributes  func(ev *bus.Event) error // nil for none
}

// New returns a runner for a set without errors: list are its compiled
// sensors, in the order in which the engine has them.
func New(set *specs.Set, list []evaluate.Sensor, types sources.Registry) *Runner {
	r := &Runner{sensors: list, specs: map[string]*specs.Sensor{}, events: map[place]event{}, functions: map[string]bool{}}
	programs := make([]*sensors.Program, len(list))
	for i := range list {
		programs[i] = list[i].Program
	}
	r.asked = sensors.NewAsked(programs)
	for ref, res := range set.Resources {
		if ref.Kind == specs.KindFunction {
			r.functions[ref.Name] = true
		}
		if name, s := res.Sensor(); s != nil {
			r.specs[name] = s
			for _, t := range s.Calls() {
				r.functions[callee(name, t)] = true
			}
		}
		es, ok := res.Spec.(*specs.EventSource)
		if !ok {
			continue
		}
		for i := range es.Events {
			ev := &es.Events[i]
			e := event{}
			e.intake, _ = sources.CompileIntake(&ev.Intake, "")
			if f := types.Lookup(ev.Type); f != nil {
				e.defaultType = f.DefaultType
				if f.Attributes != nil {
					e.attributes = f.Attributes(ev.Config)
				}
			}
			r.events[place{res.Metadata.Name, ev.Name}] = e
		}
	}
	return r
}

// Check finds names in a test that are not in the specs.
func (r *Runner) Check(t *specs.Test) specs.Diagnostics {
	var found specs.Diagnostics
	report := func(pos specs.Pos, code specs.Code, format string, args ...any) {
		found = append(found, specs.Diagnostic{Pos: pos, Severity: specs.Error, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	for i := range t.Events {
		ev := &t.Events[i]
		if ev.Result != nil {
			r.checkResult(ev.Result, report)
			continue
		}
		if ev.Source == "" || strings.HasPrefix(ev.Source, "_") {
			continue
		}
		if _, ok := r.events[place{ev.Source, ev.Event}]; !ok {
			report(ev.Pos, specs.CodeUnknownEvent, "the specs have no EventSource %q with an event %q", ev.Source, ev.Event)
		}
	}
	name := func(pos specs.Pos, sensor, trigger, dependency string) {
		s := r.specs[sensor]
		switch {
		case s == nil:
			report(pos, specs.CodeUnknownReference, "the specs have no Sensor %q", sensor)
		case trigger != "" && !hasTrigger(s, trigger):
			report(pos, specs.CodeUnknownReference, "sensor %s has no trigger %q", sensor, trigger)
		case dependency != "" && !slices.ContainsFunc(s.Dependencies, func(d specs.Dependency) bool { return d.Name == dependency }):
			report(pos, specs.CodeUnknownReference, "sensor %s has no dependency %q", sensor, dependency)
		}
	}
	for i := range t.Expect {
		name(t.Expect[i].Pos, t.Expect[i].Sensor, t.Expect[i].Trigger, "")
	}
	for i := range t.Verdicts {
		name(t.Verdicts[i].Pos, t.Verdicts[i].Sensor, t.Verdicts[i].Trigger, t.Verdicts[i].Dependency)
	}
	return found
}

// Firing is one firing of a test, as far as it can be compared.
type Firing struct {
	// At is when it fired, from the start of the test.
	At       time.Duration
	Sensor   string
	Trigger  string
	Key      any // the value of correlate, nil without
	Function string
	// Input and Config are JSON values; Config holds the texts and templates
	// of an inline function, nil for a named one.
	Input, Config any
	// Error says why the input could not be rendered, "" when it could.
	Error string
}

// Result is what came of one test.
type Result struct {
	// Firings are all firings, in their order.
	Firings []Firing
	// Failures are what is not as expected; the test passes when there are none.
	Failures []Failure
}

// Failure is one thing that is not as expected.
type Failure struct {
	// Pos is the place of the expectation, or of the test.
	Pos specs.Pos
	// Message says it in one line.
	Message string
	// Diff are lines that begin with "- " (expected), "+ " (what was instead)
	// or two blanks (both); nil when there is nothing to compare.
	Diff []string
}

// Run runs one test that [Runner.Check] finds nothing wrong with. The error
// says that an event cannot be made.
func (r *Runner) Run(t *specs.Test) (Result, error) {
	rec := &recorder{runner: r, start: t.StartTime(), events: evaluate.Events{}}
	rec.evaluator = evaluate.New(rec, "test", 0, rec.start, rec.events.Load)
	rec.evaluator.Explain = slices.ContainsFunc(t.Verdicts, func(v specs.ExpectedVerdict) bool { return v.Outcome == "waiting" })
	rec.evaluator.Use(r.sensors)
	ids := map[string]time.Duration{}
	var failures []Failure
	seq, unmatched, filtered, duplicates := uint64(0), 0, 0, 0
	for i := range t.Events {
		at := t.Events[i].At.D()
		var out *bus.Event
		if t.Events[i].Result != nil {
			rec.evaluator.Deadlines(rec.start.Add(at)) // which may make the firing it answers
			ev, why, err := rec.result(&t.Events[i], i)
			if err != nil {
				return Result{}, fmt.Errorf("%s: %w", t.Events[i].Pos, err)
			}
			if why != "" {
				failures = append(failures, Failure{Pos: t.Events[i].Result.Pos, Message: why})
				continue
			}
			if out = ev; out == nil {
				continue
			}
		} else {
			in, err := r.event(t, i)
			if err != nil {
				return Result{}, fmt.Errorf("%s: %w", t.Events[i].Pos, err)
			}
			if out, _, _ = r.events[place{in.EventSource, in.EventName}].intake.Apply(in); out == nil {
				filtered++
				continue
			}
		}
		record := out.Record()
		if first, ok := ids[record.MsgID]; ok && record.MsgID != "" && at-first < duplicateWindow {
			duplicates++
			continue
		}
		ids[record.MsgID] = at
		seq++
		record.Seq, record.Time = seq, rec.start.Add(at)
		ev, err := bus.DecodeEvent(record)
		if err != nil {
			return Result{}, fmt.Errorf("%s: %w", t.Events[i].Pos, err)
		}
		rec.events[seq] = ev
		rec.evaluator.Advance(seq, record.Time)
		if !rec.evaluator.Event(ev) {
			unmatched++
		}
	}
	rec.evaluator.Deadlines(rec.start.Add(t.Until.D()))
	res := Result{Firings: rec.firings, Failures: append(failures, compare(t, rec.firings)...)}
	res.Failures = append(res.Failures, rec.missing(t)...)
	for _, c := range []struct {
		what string
		want *int
		got  int
	}{{"unmatched", t.Unmatched, unmatched}, {"filtered", t.Filtered, filtered}, {"duplicates", t.Duplicates, duplicates}} {
		if c.want != nil && *c.want != c.got {
			res.Failures = append(res.Failures, Failure{Pos: t.Pos, Message: "the number of events is not as expected", Diff: []string{
				fmt.Sprintf("- %s: %d", c.what, *c.want), fmt.Sprintf("+ %s: %d", c.what, c.got),
			}})
		}
	}
	return res, nil
}

// event makes an event as its source would hand it to the engine.
func (r *Runner) event(t *specs.Test, i int) (*bus.Event, error) {
	in := &t.Events[i]
	ev := &bus.Event{
		DataContentType: in.DataContentType, Extensions: maps.Clone(in.Extensions),
		EventSource: in.Source, EventName: in.Event, Source: "/" + in.Source + "/" + in.Event, Time: t.StartTime().Add(in.At.D()),
	}
	if err := content(ev, in); err != nil {
		return nil, err
	}
	switch source := r.events[place{in.Source, in.Event}]; {
	case in.Source == "":
		ev.EventSource, ev.EventName, ev.Source = bus.SourceEmit, in.Type, "/"+bus.SourceEmit
	case in.Type != "": // the producer said what it is
	case source.attributes != nil:
		if err := source.attributes(ev); err != nil {
			return nil, err
		}
	default:
		ev.Type = source.defaultType
	}
	if in.Type != "" {
		ev.Type = in.Type
	}
	if in.Subject != "" {
		ev.Subject = in.Subject
	}
	if in.ID != "" {
		ev.ID, ev.ProducerID = in.ID, true
	}
	if ev.ID == "" {
		ev.ID = "event-" + strconv.Itoa(i+1)
	}
	return ev, nil
}

// content sets request and data of an event.
func content(ev *bus.Event, in *specs.TestEvent) error {
	if in.Request.Set {
		b, err := json.Marshal(in.Request.Root)
		if err != nil {
			return fmt.Errorf("request: %w", err)
		}
		ev.Request = b
	}
	if !in.Data.Set {
		return nil
	}
	if text, ok := in.Data.Root.(string); ok && !bus.IsJSON(ev.DataContentType) {
		ev.Data = []byte(text)
		return nil
	}
	b, err := json.Marshal(in.Data.Root)
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	if ev.Data = b; ev.DataContentType == "" {
		ev.DataContentType = "application/json"
	}
	return nil
}

// recorder keeps what the evaluator says.
type recorder struct {
	runner    *Runner
	evaluator *evaluate.Evaluator
	start     time.Time
	events    evaluate.Events
	firings   []Firing
	verdicts  []verdict
	open      []call
}

// verdict is a verdict with its sensor and time.
type verdict struct {
	sensors.Verdict
	sensor string
	at     time.Duration
}

func (r *recorder) add(sensor string, vs ...sensors.Verdict) {
	for _, v := range vs {
		r.verdicts = append(r.verdicts, verdict{v, sensor, r.evaluator.Now().Sub(r.start)})
	}
}

// Undecided is a verdict of each sensor of the group.
func (r *recorder) Undecided(vs []sensors.GroupVerdict) {
	for _, v := range vs {
		for _, m := range r.evaluator.Groups()[v.Group].Members {
			v.Verdict.Dependency = m.Dependency
			r.add(m.Program.Name(), v.Verdict)
		}
	}
}

// Routed keeps what the sensor says of the event.
func (r *recorder) Routed(sensor int, routing sensors.Routing) {
	r.add(r.runner.sensors[sensor].Name, routing.Verdicts...)
}

// Stepped keeps what the sensor says of the step.
func (r *recorder) Stepped(sensor int, vs []sensors.Verdict) {
	r.add(r.runner.sensors[sensor].Name, vs...)
}

// Evicted keeps what was given up.
func (r *recorder) Evicted(sensor int, ev evaluate.Eviction) {
	r.add(r.runner.sensors[sensor].Name, ev.Verdict())
}

// Changed forgets keys that wait for nothing.
func (r *recorder) Changed(k evaluate.Key, e *evaluate.Entry) {
	if e.State.Empty() {
		r.evaluator.Drop(k)
	}
}

// Fired keeps the firing.
func (r *recorder) Fired(sensor int, f *sensors.Firing) {
	s := &r.runner.sensors[sensor]
	rendered, err := f.Rendered, f.Err
	if f.Late {
		events := make([]sensors.Contributing, len(f.Events))
		for i, c := range f.Events {
			events[i] = sensors.Contributing{Contribution: c, Event: r.events[c.Seq]}
		}
		rendered, err = s.Program.RenderTrigger(f.TriggerIndex, events, f.Item)
	}
	r.call(calling{
		sensor: s.Name, trigger: &r.runner.specs[s.Name].Triggers[f.TriggerIndex], path: fmt.Sprintf("spec.triggers[%d]", f.TriggerIndex),
		inputPath: s.Program.InputPath(f.TriggerIndex), firing: f, last: r.events[f.Last], rendered: rendered, err: err,
	})
}

// calling is a call that is to be made: by what, for which firing with which
// last event, with what is rendered, or why it is not.
type calling struct {
	sensor          string
	trigger         *specs.Trigger
	path, inputPath string // of the trigger in its resource, of its input among rendered
	firing          *sensors.Firing
	last            *bus.Event
	rendered        map[string]any
	err             error
}

// call keeps what a function is called with.
func (r *recorder) call(c calling) {
	t, err := c.trigger, c.err
	out := Firing{At: c.firing.Time.Sub(r.start), Sensor: c.sensor, Trigger: t.Name, Key: sensors.KeyValue(c.firing.Correlation), Function: t.Function}
	if err == nil {
		out.Input, err = input(t, c.inputPath, c.last, c.rendered)
	}
	if t.Inline != nil {
		if out.Function = t.Inline.Kind; err == nil {
			out.Config, err = config(t.Inline, c.path+"."+t.Inline.Kind, c.rendered)
		}
	}
	if err != nil {
		out.Error = err.Error()
	}
	r.firings = append(r.firings, out)
	r.open = append(r.open, call{c.sensor, t, c.firing, c.last, out.Error})
}
