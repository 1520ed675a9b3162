package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/specs"
)

// missingError says that something is not there; it is [bus.ErrNotFound].
type missingError struct{ text string }

func (e *missingError) Error() string { return e.text }

func (e *missingError) Is(target error) bool { return target == bus.ErrNotFound }

func missingf(format string, args ...any) error {
	return &missingError{fmt.Sprintf(format, args...)}
}

func wrongf(format string, args ...any) error {
	return &RequestError{fmt.Sprintf(format, args...)}
}

// ExplainQuery asks what sensors said of events.
type ExplainQuery struct {
	// Event is its sequence in the log, or its id; "" for the last ones that
	// Sensor looked at.
	Event string
	// Sensor is the one to ask, "" for all.
	Sensor string
	// Last is how many of the events are asked for that the sensor looked at,
	// 0 for one.
	Last int
	// From is the event to begin with to find out what the sensors met: a
	// sequence, a time, or a duration before now; "" for where each began.
	From string
}

// Explained answers an [ExplainQuery].
type Explained struct {
	// First and Last are the first and last event that is stored, and Folded the
	// last that the engine has evaluated.
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
	Folded uint64 `json:"folded"`
	// Explanations are those of the events, in the order of the log.
	Explanations []replay.Explanation `json:"explanations"`
	// Incomplete is true when older events were not looked through, so that there
	// may be more of the kind asked for.
	Incomplete bool `json:"incomplete,omitempty"`
}

// Explain tells what the sensors in force said of events, and why. It is found
// out from the log, beside the fold and without a trace; that takes as long as
// reading the log from where the sensors concerned began. The error may be a
// *[RequestError], or wrap [bus.ErrNotFound] or [replay.ErrTooMuch].
func (e *Engine) Explain(ctx context.Context, q ExplainQuery) (*Explained, error) {
	info, list, err := e.shadows(ctx)
	if err != nil {
		return nil, err
	}
	if q.Sensor != "" {
		at := slices.IndexFunc(list, func(s replay.Sensor) bool { return s.Name == q.Sensor })
		if at < 0 {
			return nil, missingf("no sensor %q is in force", q.Sensor)
		}
		list = list[at : at+1]
	}
	out := &Explained{First: info.First, Last: info.Last, Explanations: []replay.Explanation{}}
	out.Folded, _ = e.fold.Position()
	ask := replay.Question{Sensors: list, All: q.Sensor != "", To: min(info.Last, out.Folded)}
	switch {
	case q.Event != "":
		ev, err := e.findEvent(ctx, info, q.Event)
		if err != nil {
			return nil, err
		}
		ask.Events = []*bus.Event{ev}
	case q.Sensor == "":
		return nil, wrongf("say which event, or which sensor")
	default:
		var complete bool
		ask.Events, complete, err = replay.Newest(ctx, e.o.Bus.Events(), info, replay.Search{
			Subject: bus.EventsPrefix + ">", Match: list[0].Program.Selects, Limit: max(q.Last, 1),
		}, replay.DefaultBounds())
		if err != nil {
			return nil, err
		}
		if out.Incomplete = !complete; len(ask.Events) == 0 {
			return nil, missingf("there is no event in the log that sensor %s looks at", q.Sensor)
		}
	}
	if ask.From, err = e.position(ctx, info, q.From); err != nil {
		return nil, err
	}
	if out.Explanations, err = replay.Explain(ctx, e.o.Bus.Events(), info, ask); err != nil {
		return nil, tooLong(ctx, err)
	}
	behind := e.fold.Behind()
	for i := range out.Explanations {
		x := &out.Explanations[i]
		for j := range x.Sensors {
			b, late := behind[x.Sensors[j].Sensor]
			switch {
			case x.Event.Seq > out.Folded:
				x.Sensors[j].Warnings = append(x.Sensors[j].Warnings, "the engine has not evaluated this event yet; this is what it will say")
			case late && (x.Event.Seq > b.Position || b.From != ""):
				x.Sensors[j].Warnings = append(x.Sensors[j].Warnings, "the sensor is paused or behind and has not evaluated this event yet; this is what it will say")
			}
		}
	}
	return out, e.addCalls(ctx, out.Explanations)
}

// tooLong adds what to do about a time-out.
func tooLong(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("reading the log took too long; begin later, with from: %w", err)
	}
	return err
}

// shadows are the sensors in force with what is known of when they began, and
// what the log holds.
func (e *Engine) shadows(ctx context.Context) (bus.LogInfo, []replay.Sensor, error) {
	info, err := e.o.Bus.Events().Info(ctx)
	if err != nil {
		return info, nil, err
	}
	force, err := fold.ReadForce(ctx, e.o.Bus.State())
	if err != nil {
		return info, nil, err
	}
	rules := e.fold.InForce()
	list := make([]replay.Sensor, 0, len(rules.Sensors))
	for _, s := range rules.Sensors {
		r := replay.Sensor{Sensor: s}
		if f, ok := force[s.Name]; ok && f.Log == info.ID && f.Fingerprint == s.Program.StateFingerprint() {
			r.Known, r.Since, r.Changed = true, f.Since, f.Changed
		}
		list = append(list, r)
	}
	return info, list, nil
}

// findEvent finds an event by its sequence or id.
func (e *Engine) findEvent(ctx context.Context, info bus.LogInfo, name string) (*bus.Event, error) {
	log := e.o.Bus.Events()
	if seq, err := strconv.ParseUint(name, 10, 64); err == nil && seq >= info.First && seq <= info.Last {
		rec, err := log.Get(ctx, seq)
		switch {
		case err == nil:
			return bus.DecodeEvent(rec)
		case !errors.Is(err, bus.ErrNotFound):
			return nil, err
		}
	}
	found, complete, err := replay.Newest(ctx, log, info, replay.Search{
		Subject: bus.EventsPrefix + ">", Match: func(ev *bus.Event) bool { return ev.ID == name }, Limit: 1,
	}, replay.DefaultBounds())
	switch {
	case err != nil:
		return nil, err
	case len(found) > 0:
		return found[0], nil
	case !complete:
		return nil, missingf("there is no event %s among the newest ones; give its sequence in the log to find an older one", name)
	}
	return nil, missingf("there is no event %s in the log, which holds %d to %d", name, info.First, info.Last)
}

// position is the first event at or after a place in the log: a sequence, a
// time, or a duration before now; 0 for "".
func (e *Engine) position(ctx context.Context, info bus.LogInfo, at string) (uint64, error) {
	if at == "" {
		return 0, nil
	}
	if seq, err := strconv.ParseUint(at, 10, 64); err == nil {
		return max(seq, 1), nil
	}
	t, err := Moment(at)
	if err != nil {
		return 0, wrongf("%q is neither a sequence, nor a time such as 2026-01-31T12:00:00Z, nor a duration such as 10m", at)
	}
	return fold.FirstAfter(ctx, e.o.Bus.Events(), info, t.Add(-1))
}

// Moment reads a time, absolute or as a length of time before now.
func Moment(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := specs.ParseDuration(s)
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-d.D()), nil
}

// triggersOf are the triggers of a sensor with the functions they call, or those
// that their deadLetters stand for. ref is the resource.
func triggersOf(sensor string, ref specs.Ref, s *specs.Sensor, handlers bool) (out []replay.Trigger) {
	for _, t := range s.Calls() {
		if strings.HasSuffix(t.Name, specs.DeadLetterSuffix) == handlers {
			out = append(out, replay.Trigger{Sensor: sensor, Trigger: t.Name, Function: calleeName(ref, t)})
		}
	}
	return out
}

// callsOf are the triggers of sensors in force, or those that their deadLetters
// stand for.
func (e *Engine) callsOf(sensors map[string]bool, handlers bool) (out []replay.Trigger) {
	e.mu.Lock()
	set := e.applied
	e.mu.Unlock()
	for ref, r := range set.Resources {
		if name, spec := r.Sensor(); spec != nil && sensors[name] {
			out = append(out, triggersOf(name, ref, spec, handlers)...)
		}
	}
	return out
}

// addCalls adds what is known of the calls of the firings in explanations.
func (e *Engine) addCalls(ctx context.Context, all []replay.Explanation) error {
	var firings []*replay.Firing
	sensors, keys := map[string]bool{}, map[string]bool{}
	var since time.Time
	for i := range all {
		for j := range all[i].Sensors {
			s := &all[i].Sensors[j]
			add := func(f *replay.Firing) {
				if len(firings) == 0 || f.Time.Before(since) {
					since = f.Time
				}
				firings = append(firings, f)
				keys[f.Key], sensors[s.Sensor] = true, true
			}
			for k := range s.Steps {
				for n := range s.Steps[k].Firings {
					add(&s.Steps[k].Firings[n])
				}
			}
			for k := range s.Later {
				if f := s.Later[k].Firing; f != nil {
					add(f)
				}
			}
		}
	}
	if len(firings) == 0 {
		return nil
	}
	h, err := replay.ReadHistory(ctx, e.o.Bus, replay.HistoryQuery{Triggers: e.callsOf(sensors, false), Keys: keys, Since: since})
	if err != nil {
		return err
	}
	dead := map[string]*replay.Call{}
	for _, f := range firings {
		if f.Call = h.Calls[f.Key]; f.Call != nil && f.Call.Status == jobs.StatusDead {
			dead[jobs.DeadLetterKey(f.Key, f.Call.Redrive)] = f.Call
		}
	}
	return e.addHandled(ctx, dead, e.callsOf(sensors, true), since)
}

// addHandled adds what is known of the calls of deadLetters to those they are
// for, by the keys of their jobs.
func (e *Engine) addHandled(ctx context.Context, dead map[string]*replay.Call, handlers []replay.Trigger, since time.Time) error {
	if len(dead) == 0 || len(handlers) == 0 {
		return nil
	}
	q := replay.HistoryQuery{Triggers: handlers, Keys: make(map[string]bool, len(dead)), Since: since}
	for key := range dead {
		q.Keys[key] = true
	}
	h, err := replay.ReadHistory(ctx, e.o.Bus, q)
	if err != nil {
		return err
	}
	for key, c := range dead {
		c.DeadLetter = h.Calls[key]
	}
	return nil
}
