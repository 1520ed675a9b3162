package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/sensors"
)

// Explanation tells what the sensors said of one event.
type Explanation struct {
	Event Event `json:"event"`
	// Sensors are those that looked at it: of which a dependency selects it.
	// More is how many others did and whose filters it does not pass.
	Sensors []SensorExplanation `json:"sensors"`
	More    int                 `json:"more,omitempty"`
	// Others is how many sensors do not select it.
	Others int `json:"others"`
}

// Event names an event.
type Event struct {
	Seq         uint64    `json:"seq"`
	ID          string    `json:"id"`
	Type        string    `json:"type"`
	Source      string    `json:"source"`
	Subject     string    `json:"subject,omitempty"`
	EventSource string    `json:"eventSource"`
	EventName   string    `json:"event"`
	Stored      time.Time `json:"stored"`
}

// eventOf names an event.
func eventOf(ev *bus.Event) Event {
	return Event{
		Seq: ev.Seq, ID: ev.ID, Type: ev.Type, Source: ev.Source, Subject: ev.Subject,
		EventSource: ev.EventSource, EventName: ev.EventName, Stored: ev.StoredAt.UTC(),
	}
}

// SensorExplanation tells what one sensor said of an event.
type SensorExplanation struct {
	Sensor string `json:"sensor"`
	// Spec is the hash of its spec.
	Spec string `json:"spec"`
	// Answers are those of its dependencies.
	Answers []sensors.Answer `json:"dependencies"`
	// Steps are what came of it, one for each correlation key; none when no
	// dependency wants the event.
	Steps []Step `json:"steps,omitempty"`
	// Later is what became of the event afterwards, as far as the log was read;
	// Waiting is true when it still waits there.
	Later   []Later `json:"later,omitempty"`
	Waiting bool    `json:"waiting,omitempty"`
	// From is the first event that what it met was found out from, 0 when that
	// did not matter. Warnings say why it may have been different.
	From     uint64   `json:"from,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Step is one step of a sensor: what it met, decided and fired.
type Step struct {
	sensors.Inspection
	Verdicts []Verdict `json:"verdicts"`
	Firings  []Firing  `json:"firings"`
}

// Verdict is a [sensors.Verdict].
type Verdict struct {
	Outcome    sensors.Outcome `json:"outcome"`
	Dependency string          `json:"dependency,omitempty"`
	Trigger    string          `json:"trigger,omitempty"`
	Seq        uint64          `json:"seq,omitempty"`
	Detail     string          `json:"detail,omitempty"`
}

// Firing is a decision to call a function.
type Firing struct {
	Key         string                 `json:"key"`
	Trigger     string                 `json:"trigger"`
	Correlation string                 `json:"correlation,omitempty"`
	Time        time.Time              `json:"time"`
	Events      []sensors.Contribution `json:"events"`
	// Item and Items are the place in a fan-out and its size.
	Item  int `json:"item,omitempty"`
	Items int `json:"items,omitempty"`
	// Error says why its input could not be made.
	Error string `json:"error,omitempty"`
	// Call is what is known of its call, nil when nothing is.
	Call *Call `json:"call,omitempty"`
}

func firingOf(f *sensors.Firing) Firing {
	out := Firing{
		Key: f.Key, Trigger: f.Trigger, Correlation: f.Correlation, Time: f.Time.UTC(), Events: slices.Clone(f.Events), Item: f.Item, Items: f.Items,
	}
	if f.Err != nil {
		out.Error = f.Err.Error()
	}
	return out
}

// Later is what became of an event that waited.
type Later struct {
	At time.Time `json:"at"`
	// Seq is the event at which it happened, 0 for a deadline.
	Seq uint64 `json:"seq,omitempty"`
	Verdict
	// Firing is set when it was used.
	Firing *Firing `json:"firing,omitempty"`
}

// maxTold is the most sensors of one event that are told of in full.
const maxTold = 50

// maxLater is the most that is told of what became of an event.
const maxLater = 20

// Question asks what sensors said of events.
type Question struct {
	Sensors []Sensor
	// Events are of the log and in its order.
	Events []*bus.Event
	// All asks for sensors that do not select an event, too.
	All bool
	// From is the first event to find out from what sensors met, 0 for where
	// each of them began.
	From uint64
	// To is the last event to look for what became of events that waited.
	To uint64
}

// Explain answers a question from the log, of which info was told. It reads as
// much of it as that needs, and blocks as long.
func Explain(ctx context.Context, log bus.Log, info bus.LogInfo, q Question) ([]Explanation, error) {
	from := q.From
	x := &explainer{out: make([]Explanation, len(q.Events)), at: map[uint64]int{}, all: q.All}
	var needed []Sensor
	for i, ev := range q.Events {
		x.at[ev.Seq] = i
		for _, s := range x.look(i, ev, q.Sensors) {
			if !slices.ContainsFunc(needed, func(o Sensor) bool { return o.Name == s.Name }) {
				needed = append(needed, s)
			}
		}
	}
	if len(needed) == 0 {
		return x.out, nil
	}
	begin := max(from, info.First)
	if from == 0 {
		least := needed[0].Since
		for _, s := range needed {
			least = min(least, s.Since)
		}
		begin = max(least+1, info.First)
	}
	x.shadow = newShadow(ctx, x, log, info.ID, needed, begin-1)
	x.warn(begin, from, info)
	err := bus.ReadThrough(ctx, log, begin, max(q.To, q.Events[len(q.Events)-1].Seq), x.event)
	if errors.Is(err, errEnough) {
		err = nil
	}
	err = cmp.Or(err, x.shadow.eval.Err())
	for _, w := range x.watched {
		w.of.Waiting = true
	}
	return x.out, err
}

var errEnough = errors.New("nothing is left to be found out")

// explainer is the observer of one Explain.
type explainer struct {
	out    []Explanation
	at     map[uint64]int // by sequence
	all    bool
	shadow *shadow
	done   int

	now     *Explanation // the one under way, nil for none
	seq     uint64       // of the event that is evaluated, 0 between events
	watched []*watch
	touched bool // a key that is watched has changed
}

// watch follows what becomes of an event.
type watch struct {
	seq    uint64
	sensor string
	keys   []string // under which it may wait
	of     *SensorExplanation
}

// look asks the sensors about an event, and returns those that want it.
func (x *explainer) look(i int, ev *bus.Event, list []Sensor) (wanting []Sensor) {
	out := &x.out[i]
	out.Event, out.Sensors = eventOf(ev), []SensorExplanation{}
	var filtered []SensorExplanation
	for _, s := range list {
		if !x.all && !s.Program.Selects(ev) {
			out.Others++
			continue
		}
		se := SensorExplanation{Sensor: s.Name, Spec: s.Hash}
		r := s.Program.Route(sensors.NewView(ev))
		dull := len(r.Matches) == 0 && !slices.ContainsFunc(r.Verdicts, func(v sensors.Verdict) bool { return v.Outcome != sensors.No })
		if dull && len(filtered) >= maxTold {
			out.More++
			continue
		}
		se.Answers = s.Program.Explain(ev)
		if ev.Seq <= s.Since {
			se.Warnings = []string{fmt.Sprintf("the sensor did not see this event: it began after event %d", s.Since)}
		} else if len(r.Matches) > 0 {
			wanting = append(wanting, s)
		}
		if dull {
			filtered = append(filtered, se)
		} else {
			out.Sensors = append(out.Sensors, se)
		}
	}
	room := max(0, maxTold-len(out.Sensors))
	out.More += max(0, len(filtered)-room)
	out.Sensors = append(out.Sensors, filtered[:min(room, len(filtered))]...)
	return wanting
}

// sensor is what is told of a sensor in an explanation, nil for nothing.
func (e *Explanation) sensor(name string) *SensorExplanation {
	for i := range e.Sensors {
		if e.Sensors[i].Sensor == name {
			return &e.Sensors[i]
		}
	}
	return nil
}

// event evaluates one record.
func (x *explainer) event(r bus.Record) error {
	if err := x.shadow.note(); err != nil {
		return err
	}
	x.seq = 0
	x.shadow.advance(r.Seq, r.Time)
	x.seq = r.Seq
	ev, err := bus.DecodeEvent(r)
	if err != nil {
		return nil //nolint:nilerr // no sensor sees it
	}
	i, explained := x.at[r.Seq]
	if !explained {
		x.shadow.eval.Event(ev)
		return x.enough()
	}
	x.forget()
	x.now = &x.out[i]
	x.shadow.eval.Inspect = x.inspect
	x.shadow.eval.Event(ev)
	x.shadow.eval.Inspect = nil
	for j := range x.now.Sensors {
		se := &x.now.Sensors[j]
		w := &watch{seq: r.Seq, sensor: se.Sensor, of: se}
		for k := range se.Steps {
			w.keys = append(w.keys, se.Steps[k].Key)
		}
		if x.waits(w) {
			x.watched = append(x.watched, w)
		}
	}
	x.now = nil
	x.done++
	return x.enough()
}

// forget drops events that wait no more.
func (x *explainer) forget() {
	if x.touched {
		x.watched, x.touched = slices.DeleteFunc(x.watched, func(w *watch) bool { return !x.waits(w) }), false
	}
}

// enough ends the reading when all was found out.
func (x *explainer) enough() error {
	x.forget()
	if x.done == len(x.out) && len(x.watched) == 0 {
		return errEnough
	}
	return nil
}

// waits reports whether an event is still kept.
func (x *explainer) waits(w *watch) bool {
	return slices.ContainsFunc(w.keys, func(key string) bool {
		en := x.shadow.eval.Entry(evaluate.Key{Sensor: w.sensor, Key: key})
		return en != nil && slices.Contains(en.State.Refs(), w.seq)
	})
}

// inspect begins what is told of a step.
func (x *explainer) inspect(sensor int, _ string) *sensors.Inspection {
	se := x.now.sensor(x.shadow.list[sensor].Name)
	if se == nil {
		return nil
	}
	se.Steps = append(se.Steps, Step{Verdicts: []Verdict{}, Firings: []Firing{}})
	return &se.Steps[len(se.Steps)-1].Inspection
}

// step is the step of a sensor under way, nil for none that is told of.
func (x *explainer) step(sensor int) *Step {
	if x.now == nil {
		return nil
	}
	se := x.now.sensor(x.shadow.list[sensor].Name)
	if se == nil || len(se.Steps) == 0 {
		return nil
	}
	return &se.Steps[len(se.Steps)-1]
}

// Undecided is nothing here: each sensor was asked for itself.
func (x *explainer) Undecided([]sensors.GroupVerdict) {}

// Routed is nothing here: each sensor was asked for itself.
func (x *explainer) Routed(int, sensors.Routing) {}

// Stepped notes the verdicts of the step that is told of, and what became of
// events that waited.
func (x *explainer) Stepped(sensor int, verdicts []sensors.Verdict) {
	if st := x.step(sensor); st != nil {
		for _, v := range verdicts {
			st.Verdicts = append(st.Verdicts, Verdict(v))
		}
	}
	for _, v := range verdicts {
		x.later(sensor, v.Seq, Later{Verdict: Verdict(v)})
	}
}

// later notes what became of an event that waited.
func (x *explainer) later(sensor int, seq uint64, l Later) {
	for _, w := range x.watched {
		if w.seq == seq && w.sensor == x.shadow.list[sensor].Name && len(w.of.Later) < maxLater {
			l.At, l.Seq = x.shadow.eval.Now(), x.seq
			w.of.Later = append(w.of.Later, l)
		}
	}
}

// Evicted notes what became of the events of a key.
func (x *explainer) Evicted(sensor int, ev evaluate.Eviction) {
	for _, w := range x.watched {
		if w.sensor == x.shadow.list[sensor].Name && slices.Contains(w.keys, ev.Key) && len(w.of.Later) < maxLater {
			w.of.Later = append(w.of.Later, Later{At: x.shadow.eval.Now(), Seq: ev.Position, Verdict: Verdict(ev.Verdict())})
		}
	}
}

// Changed forgets keys of which nothing is left, and events that wait no more.
func (x *explainer) Changed(k evaluate.Key, en *evaluate.Entry) {
	x.touched = x.touched || slices.ContainsFunc(x.watched, func(w *watch) bool { return w.sensor == k.Sensor && slices.Contains(w.keys, k.Key) })
	if en.State.Empty() {
		x.shadow.eval.Drop(k)
	}
}

// Fired notes a firing of the step that is told of, and those that use an event
// that waited.
func (x *explainer) Fired(sensor int, f *sensors.Firing) {
	firing := firingOf(f)
	if st := x.step(sensor); st != nil {
		st.Firings = append(st.Firings, firing)
	}
	for _, c := range f.Events {
		x.later(sensor, c.Seq, Later{Verdict: Verdict{Outcome: sensors.Fired, Trigger: f.Trigger}, Firing: &firing})
	}
}

// warn says what is not certain about what the sensors met.
func (x *explainer) warn(begin, from uint64, info bus.LogInfo) {
	for i := range x.out {
		e := &x.out[i]
		for j := range e.Sensors {
			se := &e.Sensors[j]
			at := slices.IndexFunc(x.shadow.list, func(s Sensor) bool { return s.Name == se.Sensor })
			if at < 0 || x.shadow.list[at].Since >= e.Event.Seq || !slices.ContainsFunc(se.Answers, func(a sensors.Answer) bool { return a.Outcome == sensors.Yes }) {
				continue
			}
			s := &x.shadow.list[at]
			se.From = max(begin, s.Since+1)
			se.Warnings = Warnings(s, se.From, e.Event.Seq, from != 0, info)
		}
	}
}
