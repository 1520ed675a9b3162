package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// Limits of one replay.
const (
	// maxPlayed is the most firings that are compared, maxExecuted the most that
	// are called and maxExecutedBytes the most that their jobs take.
	maxPlayed, maxExecuted, maxExecutedBytes = 100_000, 10_000, 64 << 20
	// defaultShown is how many firings are told unless it is said, and maxShown
	// the most.
	defaultShown, maxShown = 100, 1000
	// maxInputs is the most bytes of inputs that are kept to be told of.
	maxInputs = 16 << 20
)

// ReplayQuery asks what events make fire now.
type ReplayQuery struct {
	// Sensor is the one to replay to; "" only with Specs, for all that are new or
	// changed in them.
	Sensor string `json:"sensor,omitempty"`
	// Specs are files to take the sensors from instead of those in force.
	Specs []SpecFile `json:"specs,omitempty"`
	// From and To are the first and last event, each a sequence, a time or a
	// duration before now; default: the first and last that is stored.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Until is up to when what only waits for a time is evaluated after the last
	// event; default: To if it is a time, now if the last event is the last that
	// is stored, else not at all.
	Until time.Time `json:"until,omitzero"`
	// Source, Event and Type are globs, Events sequences or ids, and When is an
	// expression over the event (under its attributes, or as `event`). When any
	// is given only firings are told to which an event contributes for which all
	// that are given hold; the sensors see the others too.
	Source string   `json:"source,omitempty"`
	Event  string   `json:"event,omitempty"`
	Type   string   `json:"type,omitempty"`
	Events []string `json:"events,omitempty"`
	When   string   `json:"when,omitempty"`
	// Patches change the data of events, by sequence or id, before they are seen.
	Patches map[string]ReplayPatch `json:"patches,omitempty"`
	// Begin is the event to begin with so that the right ones wait at From, as a
	// sequence, a time or a duration before now; default: where the sensor began.
	// Cold begins at From with nothing.
	Begin string `json:"begin,omitempty"`
	Cold  bool   `json:"cold,omitempty"`
	// Only are the differences (same, new, gone, unknown) to tell of and to
	// execute; default: all.
	Only []string `json:"only,omitempty"`
	// Limit is the most firings that are told, 1 to 1000, default 100. All are
	// counted.
	Limit int `json:"limit,omitempty"`
	// Execute calls what fires again, under keys of its own that follow from ID;
	// default: a new one.
	Execute bool   `json:"execute,omitempty"`
	ID      string `json:"id,omitempty"`
}

// SpecFile is a file with specs.
type SpecFile struct {
	Path    string `json:"path"`
	Content string `json:"content"`
}

// ReplayPatch changes the data of an event.
type ReplayPatch struct {
	// Data is a JSON Merge Patch (RFC 7396), or the data itself when Replace is
	// true.
	Data    any  `json:"data"`
	Replace bool `json:"replace,omitempty"`
}

// Replayed answers a [ReplayQuery].
type Replayed struct {
	// ID is that of the replay when it was executed.
	ID string `json:"id,omitempty"`
	// From and To are the first and last event that was looked at.
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	// Until is up to when what only waits for a time was evaluated after it,
	// zero for not at all.
	Until time.Time `json:"until,omitzero"`
	// Sensors are those that were replayed to, Unchanged those of the specs that
	// were not, because they are as they are in force.
	Sensors   []ReplayedSensor `json:"sensors"`
	Unchanged []string         `json:"unchanged,omitempty"`
	replay.Summary
	// Counts are how many firings are the same as then, new, gone or unknown.
	Counts map[string]int `json:"counts"`
	// Firings are the first of those asked for, then those that are gone; More is
	// how many others there are.
	Firings []replay.Played `json:"firings"`
	More    int             `json:"more,omitempty"`
	// Calls is how many calls executing it makes. Steps is how many later steps of
	// workflows that leaves out: they wait for results of others.
	Calls int `json:"calls"`
	Steps int `json:"steps,omitempty"`
	// Executed is how many calls were enqueued, Repeated how many were already,
	// by this replay, and Error why not all were enqueued.
	Executed int    `json:"executed,omitempty"`
	Repeated int    `json:"repeated,omitempty"`
	Error    string `json:"error,omitempty"`
	// KnownSince is when the oldest run was written that the history still has:
	// of what fired before it is not known whether it did. Zero when nothing was
	// forgotten.
	KnownSince time.Time `json:"knownSince,omitzero"`
}

// ReplayedSensor is a sensor of a replay.
type ReplayedSensor struct {
	Sensor string `json:"sensor"`
	// Spec is the hash of its spec, and From the first event from which it was
	// found out what waits.
	Spec     string   `json:"spec"`
	From     uint64   `json:"from"`
	Warnings []string `json:"warnings,omitempty"`
}

// SpecsError says that specs of a replay have errors.
type SpecsError struct{ Diagnostics specs.Diagnostics }

// Error is all of them, a line each.
func (e *SpecsError) Error() string { return e.Diagnostics.Err().Error() }

// Replay tells what events make fire, and how that differs from what they did;
// with Execute it calls that again. It is found out as [Engine.Explain] does.
// The error may be a *[RequestError] or *[SpecsError], or wrap [bus.ErrNotFound]
// or [replay.ErrTooMuch].
func (e *Engine) Replay(ctx context.Context, q ReplayQuery) (*Replayed, error) {
	info, inForce, err := e.shadows(ctx)
	if err != nil {
		return nil, err
	}
	p := &replaying{e: e, q: &q, info: info, named: map[string]bool{}, out: &Replayed{Sensors: []ReplayedSensor{}, Firings: []replay.Played{}, Counts: map[string]int{}}}
	if err := q.check(); err != nil {
		return nil, err
	}
	if q.Execute {
		if p.out.ID = q.ID; p.out.ID == "" {
			p.out.ID = sources.NewID()
		}
	}
	if err := p.choose(inForce); err != nil {
		return nil, err
	}
	if err := p.prepare(ctx); err != nil {
		return nil, err
	}
	p.out.Summary, err = replay.Run(ctx, e.o.Bus.Events(), info, p.request)
	if err != nil {
		return nil, tooLong(ctx, err)
	}
	if len(p.named) > 0 {
		return nil, missingf("there is no event %s from %d to %d", slices.Sorted(maps.Keys(p.named))[0], p.out.From, p.out.To)
	}
	if err := p.compare(ctx); err != nil {
		return nil, err
	}
	if q.Execute {
		p.execute(ctx)
	}
	return p.out, nil
}

// check finds what can never be answered, and fills in what was not said.
func (q *ReplayQuery) check() error {
	switch {
	case q.Limit < 0 || q.Limit > maxShown:
		return wrongf("limit must be a number from 1 to %d", maxShown)
	case q.Limit == 0:
		q.Limit = defaultShown
	}
	for _, d := range q.Only {
		if !slices.Contains([]string{replay.Same, replay.New, replay.Gone, replay.Unknown}, d) {
			return wrongf("%q is no difference; those are same, new, gone and unknown", d)
		}
	}
	switch {
	case q.Cold && q.Begin != "":
		return wrongf("a cold replay begins with its first event; begin and cold exclude each other")
	case q.ID != "" && !q.Execute:
		return wrongf("an id is of a replay that is executed")
	case len(q.ID) > 100:
		return wrongf("the id of a replay has at most 100 bytes")
	case q.Execute && len(q.Specs) > 0:
		return wrongf("only sensors in force can be executed, not those of other specs")
	case q.Sensor == "" && len(q.Specs) == 0:
		return wrongf("say to which sensor, or with which specs")
	}
	return nil
}

// replaying is one replay under way.
type replaying struct {
	e       *Engine
	q       *ReplayQuery
	info    bus.LogInfo
	request replay.Request
	calls   []replay.Trigger
	named   map[string]bool // events by sequence or id that were asked for and not seen
	out     *Replayed
	played  []replay.Played
	jobs    []call // of played
	bytes   int    // of jobs
	inputs  int    // bytes of what is told of inputs
}

// call is the job of a firing; step is true for a later step of a workflow,
// which has none.
type call struct {
	job  *jobs.Job
	data []byte
	step bool
}

// choose finds the sensors.
func (p *replaying) choose(inForce []replay.Sensor) error {
	q := p.q
	find := func(name string) *replay.Sensor {
		at := slices.IndexFunc(inForce, func(s replay.Sensor) bool { return s.Name == name })
		if at < 0 {
			return nil
		}
		return &inForce[at]
	}
	if len(q.Specs) == 0 {
		s := find(q.Sensor)
		if s == nil {
			return missingf("no sensor %q is in force", q.Sensor)
		}
		p.request.Sensors = []replay.Sensor{*s}
		p.calls = p.e.callsOf(map[string]bool{q.Sensor: true}, false)
		return nil
	}
	l := p.e.o.Catalog.Loader()
	var found specs.Diagnostics
	names := map[string]string{}
	for _, f := range q.Specs {
		loaded := l.LoadBytes(f.Path, []byte(f.Content))
		found = append(found, loaded.Diagnostics...)
		for _, r := range loaded.Resources {
			name, spec := r.Sensor()
			if spec == nil || q.Sensor != "" && name != q.Sensor {
				continue
			}
			program, ds := sensors.Compile(name, spec)
			for i := range ds {
				ds[i].Ref = r.Ref()
			}
			if found = append(found, ds...); program == nil {
				continue
			}
			if other, twice := names[name]; twice {
				return wrongf("the specs have sensor %s twice, in %s and %s", name, other, f.Path)
			}
			names[name] = f.Path
			s := replay.Sensor{Sensor: evaluate.Sensor{Name: name, Hash: r.Hash, Program: program}, Known: true}
			is := find(name)
			if is != nil && is.Hash == r.Hash && q.Sensor == "" {
				p.out.Unchanged = append(p.out.Unchanged, name)
				continue
			}
			if is != nil && is.Program.StateFingerprint() == program.StateFingerprint() {
				s.Since, s.Known, s.Changed = is.Since, is.Known, is.Since
			}
			p.request.Sensors = append(p.request.Sensors, s)
			p.calls = append(p.calls, triggersOf(name, r.Ref(), spec, false)...)
		}
	}
	if found.HasErrors() {
		return &SpecsError{found.Sort()}
	}
	switch {
	case len(p.request.Sensors) > 0:
	case q.Sensor != "":
		return missingf("the specs have no sensor %q", q.Sensor)
	case len(names) == 0:
		return missingf("the specs have no sensor")
	default:
		return missingf("all sensors of the specs are as they are in force; name one to replay to it nevertheless")
	}
	slices.Sort(p.out.Unchanged)
	// What is not called any more is gone.
	changed := map[string]bool{}
	for _, s := range p.request.Sensors {
		changed[s.Name] = true
	}
	for _, t := range p.e.callsOf(changed, false) {
		if !slices.Contains(p.calls, t) {
			p.calls = append(p.calls, t)
		}
	}
	return nil
}

// prepare finds the events.
func (p *replaying) prepare(ctx context.Context) (err error) {
	q, r, info := p.q, &p.request, p.info
	if q.From == "" {
		r.From = info.Last + 1
		for i := range r.Sensors {
			r.From = min(r.From, r.Sensors[i].Since+1)
		}
	} else if r.From, err = p.e.position(ctx, info, q.From); err != nil {
		return err
	}
	r.From = max(r.From, info.First)
	if err := p.end(ctx); err != nil {
		return err
	}
	if r.To < r.From {
		return missingf("there is no event from %d to %d; the log holds %d to %d", r.From, r.To, info.First, info.Last)
	}
	if r.Begin, err = p.e.position(ctx, info, q.Begin); err != nil {
		return err
	}
	if q.Cold {
		r.Begin = r.From
	}
	r.Begin = min(r.Begin, r.From)
	p.out.From, p.out.To, p.out.Until = r.From, r.To, r.Until.UTC()
	behind := p.e.fold.Behind()
	for i := range r.Sensors {
		s := &r.Sensors[i]
		rs := ReplayedSensor{Sensor: s.Name, Spec: s.Hash}
		switch began := s.Since + 1; {
		case q.From != "" && r.From < began: // it was not there: it begins now
			s.Since = max(r.Begin, info.First) - 1
			if r.Begin == 0 {
				s.Since = r.From - 1
			}
			rs.From = s.Since + 1
			rs.Warnings = []string{fmt.Sprintf("the sensor is in force since event %d; replayed as if it had begun with event %d", began, rs.From)}
		default:
			rs.From = max(r.Begin, began, info.First)
			if !q.Cold {
				rs.Warnings = replay.Warnings(s, rs.From, r.From, r.Begin > 0, info)
			}
		}
		at, _ := p.e.fold.Position()
		if b, ok := behind[s.Name]; ok {
			at = b.Position
		}
		if r.To > at && len(q.Specs) == 0 {
			rs.Warnings = append(rs.Warnings, fmt.Sprintf("the sensor has evaluated the events up to %d; what later ones make fire is still to come", at))
		}
		p.out.Sensors = append(p.out.Sensors, rs)
	}
	if r.Select, err = p.selection(); err != nil {
		return err
	}
	if len(q.Patches) > 0 {
		for name := range q.Patches {
			p.named[name] = true
		}
		r.Edit = p.edit
	}
	r.Fired = p.fired
	return nil
}

// end finds the last event, and up to when deadlines after it are evaluated.
func (p *replaying) end(ctx context.Context) error {
	q, r, info := p.q, &p.request, p.info
	r.To, r.Until = info.Last, q.Until
	switch seq, err := strconv.ParseUint(q.To, 10, 64); {
	case q.To == "":
	case err == nil:
		r.To = min(seq, info.Last)
	default:
		t, err := Moment(q.To)
		if err != nil {
			return wrongf("%q is neither a sequence, nor a time such as 2026-01-31T12:00:00Z, nor a duration such as 10m", q.To)
		}
		after, err := fold.FirstAfter(ctx, p.e.o.Bus.Events(), info, t)
		if err != nil {
			return err
		}
		r.To = after - 1
		if r.Until.IsZero() {
			r.Until = t
		}
	}
	if now := time.Now(); r.Until.After(now) || r.Until.IsZero() && r.To == info.Last {
		r.Until = now
	}
	return nil
}

// edit is the event that the sensors see instead of one.
func (p *replaying) edit(ev *bus.Event) (*bus.Event, error) {
	for _, name := range []string{strconv.FormatUint(ev.Seq, 10), ev.ID} {
		if patch, ok := p.q.Patches[name]; ok {
			delete(p.named, name)
			out, err := replay.Patch{Data: patch.Data, Replace: patch.Replace}.Apply(ev)
			if err != nil {
				return nil, wrongf("%v", err)
			}
			return out, nil
		}
	}
	return ev, nil
}

// selection is what tells which events are meant, nil for all.
func (p *replaying) selection() (func(*bus.Event) (bool, error), error) {
	q := p.q
	var when *expression.Program
	if q.When != "" {
		var found specs.Diagnostics
		when, found = expression.Compile(specs.Expr{Source: q.When, Pos: specs.TextPos{Pos: specs.Pos{File: "when", Line: 1, Col: 1}}}, "when", expression.EventScope("event"), expression.WantBool)
		if found.HasErrors() {
			return nil, &SpecsError{found}
		}
	}
	if when == nil && q.Source == "" && q.Event == "" && q.Type == "" && len(q.Events) == 0 {
		return nil, nil
	}
	named := map[string]bool{}
	for _, name := range q.Events {
		named[name], p.named[name] = true, true
	}
	return func(ev *bus.Event) (bool, error) {
		seq := strconv.FormatUint(ev.Seq, 10)
		delete(p.named, seq)
		delete(p.named, ev.ID)
		switch {
		case q.Source != "" && !specs.MatchGlob(q.Source, ev.EventSource), q.Event != "" && !specs.MatchGlob(q.Event, ev.EventName),
			q.Type != "" && !specs.MatchGlob(q.Type, ev.Type), len(named) > 0 && !named[seq] && !named[ev.ID]:
			return false, nil
		case when == nil:
			return true, nil
		}
		env, err := ev.Attributes(when.NeedsData(), when.NeedsRequest())
		if err != nil {
			return false, nil //nolint:nilerr // its payload cannot be read: it is not what is asked for
		}
		ok, err := when.Bool(env)
		var missing *expression.MissingError
		if err != nil && !errors.As(err, &missing) {
			return false, wrongf("when, of event %d: %v", ev.Seq, err)
		}
		return ok && err == nil, nil
	}, nil
}

// fired takes notice of a firing.
func (p *replaying) fired(f *replay.Fired) error {
	if len(p.played) == maxPlayed {
		return wrongf("more than %d firings; choose fewer events", maxPlayed)
	}
	played, size, err := replay.Play(f)
	if err != nil {
		return err
	}
	switch p.inputs += size; {
	case len(p.q.Only) == 0 && len(p.played) >= p.q.Limit: // only counted
		played.Input, played.Config = nil, nil
	case p.inputs > maxInputs:
		played.Input, played.Config, played.Cut = nil, nil, true
	}
	c := call{step: f.Sensor.Program.Follows(f.Firing.TriggerIndex)}
	if p.q.Execute && !c.step {
		if c, err = p.job(f); err != nil {
			return err
		}
	}
	p.played, p.jobs = append(p.played, played), append(p.jobs, c)
	return nil
}

// job is the call of a firing.
func (p *replaying) job(f *replay.Fired) (call, error) {
	j := jobs.NewJob(f.Sensor.Name, f.Sensor.Hash, 0, f.Firing) // no checkpoint has to cover it
	j.Key = replay.Key(p.out.ID, j.Key)
	j.Flow = "" // its workflow is not under way: nothing follows
	if f.Edited {
		if f.Firing.Late {
			return call{}, wrongf("the input of firing %s is too large to be called with an edited event", f.Firing.Key)
		}
		ev, err := f.Load(f.Firing.Last)
		if err != nil {
			return call{}, err
		}
		if ev != nil { // it travels with the job, for the log has it as it was
			rec := ev.Record()
			rec.Seq, rec.Time, rec.MsgID = ev.Seq, ev.StoredAt, ""
			j.Event = &rec
		}
	}
	c := call{job: j, data: j.Encode(nil)}
	if p.bytes += len(c.data); p.bytes > maxExecutedBytes || len(p.jobs) >= maxExecuted {
		return call{}, wrongf("more than %d calls, or more than %s of them; choose fewer events", maxExecuted, specs.Size(maxExecutedBytes))
	}
	return c, nil
}

// compare holds what fired against the history.
func (p *replaying) compare(ctx context.Context) error {
	since := time.Time{}
	first := p.request.From
	if len(p.out.Chosen) > 0 {
		first = p.out.Chosen[0]
	}
	if rec, err := p.e.o.Bus.Events().Next(ctx, bus.EventsPrefix+">", first); err == nil {
		since = rec.Time
	}
	h, err := replay.ReadHistory(ctx, p.e.o.Bus, replay.HistoryQuery{Triggers: p.calls, Since: since})
	if err != nil {
		return err
	}
	p.out.KnownSince = h.Oldest
	all := append(p.played, replay.Compare(p.played, h, p.means)...)
	p.jobs = append(p.jobs, make([]call, len(all)-len(p.played))...) // what is gone is not called
	p.played = all[:0]
	n := 0
	for i := range all {
		f := &all[i]
		if p.out.Counts[f.Difference]++; len(p.q.Only) > 0 && !slices.Contains(p.q.Only, f.Difference) {
			continue
		}
		p.played, p.jobs[n] = append(p.played, *f), p.jobs[i]
		n++
		switch {
		case f.Difference == replay.Gone:
		case p.jobs[n-1].step:
			p.out.Steps++
		default:
			p.out.Calls++
		}
	}
	p.jobs = p.jobs[:n]
	p.out.Firings = append(p.out.Firings, p.played[:min(p.q.Limit, n)]...)
	p.out.More = n - len(p.out.Firings)
	return nil
}

// means reports whether a sensor would have fired for an event in this replay.
func (p *replaying) means(sensor string, seq uint64) bool {
	at := slices.IndexFunc(p.request.Sensors, func(s replay.Sensor) bool { return s.Name == sensor })
	return at >= 0 && seq > p.request.Sensors[at].Since && p.out.Means(&p.request, seq)
}

// execute enqueues the calls. What was enqueued stays so when it fails.
func (p *replaying) execute(ctx context.Context) {
	q := p.e.o.Bus.Jobs()
	for i, c := range p.jobs {
		if c.job == nil {
			continue
		}
		rec := bus.Record{Subject: c.job.Subject(q.Partitions()), Data: c.data, MsgID: c.job.Key}
		ack, err := q.Append(ctx, rec)
		if err != nil {
			p.out.Error = fmt.Sprintf("%d calls are enqueued, the next one is not: %v; the same replay goes on with its id", p.out.Executed, err)
			break
		}
		if ack.Duplicate {
			p.out.Repeated++
		} else {
			p.out.Executed++
		}
		if i < len(p.out.Firings) {
			p.out.Firings[i].Called = c.job.Key
		}
	}
	if err := q.Sync(ctx); err != nil && p.out.Error == "" {
		p.out.Error = fmt.Sprintf("whether the calls survive a power cut is not known: %v", err)
	}
	p.e.log.Info("events replayed", "sensor", p.q.Sensor, "id", p.out.ID, "calls", p.out.Executed, "from", p.out.From, "to", p.out.To)
}
