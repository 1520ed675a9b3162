package replay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/sensors"
)

// KeyPrefix begins the keys of firings that were replayed.
const KeyPrefix = "replay."

// Key is the firing key under which a firing is called in the replay with an
// id: another one than the firing's own, and than in any other replay.
func Key(id, firing string) string {
	sum := sha256.Sum256([]byte(id + "/" + firing))
	return KeyPrefix + base64.RawURLEncoding.EncodeToString(sum[:18])
}

// Request asks what events make fire.
type Request struct {
	Sensors []Sensor
	// Begin is the first event that is evaluated, so that what waits at From is
	// what waited there; 0 for where each sensor began.
	Begin uint64
	// From and To are the first and last event whose firings are told.
	From, To uint64
	// Until is up to when deadlines after the last event are evaluated.
	Until time.Time
	// Edit returns the event that the sensors see instead of one from From on; a
	// nil Edit changes none.
	Edit func(*bus.Event) (*bus.Event, error)
	// Select tells which of the events from From on are meant, nil for all. The
	// sensors see the others as well, but a firing is told only when one that is
	// meant contributes to it.
	Select func(*bus.Event) (bool, error)
	// Fired is told of each firing.
	Fired func(*Fired) error
}

// Fired is one firing of a replay.
type Fired struct {
	Sensor *Sensor
	Firing *sensors.Firing
	// Position is the event at which it was decided.
	Position uint64
	// Edited is true when an event that was edited contributes.
	Edited bool
	// Load gives an event as the sensors saw it, nil when it is not stored any
	// more.
	Load func(seq uint64) (*bus.Event, error)
}

// Summary tells what a replay looked at.
type Summary struct {
	// Read is how many events were evaluated before the first one asked for, so
	// that the right ones waited.
	Read int `json:"read"`
	// Events is how many events were evaluated from then on, Selected how many of
	// them are meant, Wanted how many of these a sensor wanted, Edited how many
	// were edited.
	Events   int `json:"events"`
	Selected int `json:"selected"`
	Wanted   int `json:"wanted"`
	Edited   int `json:"edited"`
	// Verdicts counts what the sensors said of the events that are meant, by
	// outcome.
	Verdicts map[string]int `json:"verdicts,omitempty"`
	// Chosen are the events that are meant, ascending, when not all are.
	Chosen []uint64 `json:"-"`
}

// Means reports whether an event from From on is meant.
func (s *Summary) Means(r *Request, seq uint64) bool {
	if seq < r.From || seq > r.To {
		return false
	}
	if r.Select == nil {
		return true
	}
	_, ok := slices.BinarySearch(s.Chosen, seq)
	return ok
}

// Run evaluates events again and tells what fires. It blocks as long as the log
// takes to read.
func Run(ctx context.Context, log bus.Log, info bus.LogInfo, r Request) (Summary, error) {
	p := &player{r: &r}
	p.sum.Verdicts = map[string]int{}
	begin := r.Begin
	if begin == 0 {
		begin = r.From
		for i := range r.Sensors {
			begin = min(begin, r.Sensors[i].Since+1)
		}
	}
	begin = max(begin, info.First, 1)
	p.shadow = newShadow(ctx, p, log, info.ID, r.Sensors, begin-1)
	err := bus.ReadThrough(ctx, log, begin, r.To, p.event)
	if err == nil && p.err == nil && !r.Until.IsZero() {
		p.loud, p.counts = true, r.Select == nil
		p.shadow.eval.Deadlines(r.Until)
	}
	return p.sum, cmp.Or(err, p.err, p.shadow.eval.Err())
}

// player is the observer of one Run.
type player struct {
	r      *Request
	shadow *shadow
	sum    Summary
	loud   bool // from From on
	counts bool // verdicts are of what is meant
	at     uint64
	err    error // of Fired
}

func (p *player) event(rec bus.Record) error {
	if err := p.shadow.note(); err != nil {
		return err
	}
	// Deadlines before the first event that is asked for are not.
	p.counts = p.loud && p.r.Select == nil
	p.shadow.advance(rec.Seq, rec.Time)
	if p.loud = rec.Seq >= p.r.From; !p.loud {
		p.sum.Read++
	}
	p.at = rec.Seq
	ev, err := bus.DecodeEvent(rec)
	if err != nil {
		return nil //nolint:nilerr // no sensor sees it
	}
	if p.loud {
		if ev, err = p.choose(ev); err != nil {
			return err
		}
	}
	if p.shadow.eval.Event(ev) && p.counts {
		p.sum.Wanted++
	}
	return p.err
}

// choose is the event that the sensors see, and notes whether it is meant.
func (p *player) choose(was *bus.Event) (ev *bus.Event, err error) {
	ev = was
	if p.r.Edit != nil {
		if ev, err = p.r.Edit(was); err != nil {
			return nil, err
		}
		if ev != was {
			p.shadow.edited[ev.Seq] = ev
			p.sum.Edited++
		}
	}
	p.sum.Events++
	p.counts = true
	if p.r.Select != nil {
		if p.counts, err = p.r.Select(ev); err != nil {
			return nil, err
		}
		if p.counts {
			p.sum.Chosen = append(p.sum.Chosen, ev.Seq)
		}
	}
	if p.counts {
		p.sum.Selected++
	}
	return ev, nil
}

// Undecided counts verdicts.
func (p *player) Undecided(verdicts []sensors.GroupVerdict) {
	for i := range verdicts {
		p.count(&verdicts[i].Verdict)
	}
}

// Routed counts verdicts.
func (p *player) Routed(_ int, r sensors.Routing) {
	for i := range r.Verdicts {
		p.count(&r.Verdicts[i])
	}
}

// Stepped counts verdicts.
func (p *player) Stepped(_ int, verdicts []sensors.Verdict) {
	for i := range verdicts {
		p.count(&verdicts[i])
	}
}

func (p *player) count(v *sensors.Verdict) {
	if p.loud && p.counts {
		p.sum.Verdicts[v.Outcome.String()]++
	}
}

// Evicted counts what was given up.
func (p *player) Evicted(int, evaluate.Eviction) { p.count(&sensors.Verdict{Outcome: sensors.Evicted}) }

// Changed forgets keys of which nothing is left.
func (p *player) Changed(k evaluate.Key, en *evaluate.Entry) {
	if en.State.Empty() {
		p.shadow.eval.Drop(k)
	}
}

// Fired tells of a firing.
func (p *player) Fired(sensor int, f *sensors.Firing) {
	if !p.loud || p.err != nil || p.r.Select != nil && !slices.ContainsFunc(f.Events, func(c sensors.Contribution) bool { return p.sum.Means(p.r, c.Seq) }) {
		return
	}
	p.err = p.r.Fired(&Fired{
		Sensor: &p.shadow.list[sensor], Firing: f, Position: p.at, Load: p.shadow.load,
		Edited: slices.ContainsFunc(f.Events, func(c sensors.Contribution) bool { return p.shadow.edited[c.Seq] != nil }),
	})
}

// What became of a firing, held against the history.
const (
	// Same: it fired then, too.
	Same = "same"
	// New: it did not fire then.
	New = "new"
	// Gone: it fired then, and does not now.
	Gone = "gone"
	// Unknown: the history does not reach back that far.
	Unknown = "unknown"
)

// Played is one firing of a replay, for people and programs.
type Played struct {
	Sensor string `json:"sensor"`
	Firing
	// Difference is how it compares with what happened: same, new, gone or
	// unknown.
	Difference string `json:"difference"`
	// Edited is true when an event that was edited contributes.
	Edited bool `json:"edited,omitempty"`
	// Input is what the function gets and Config what else of the trigger was
	// rendered, by path. Cut is true when they were left out because they are
	// large.
	Input  any            `json:"input,omitempty"`
	Config map[string]any `json:"config,omitempty"`
	Cut    bool           `json:"cut,omitempty"`
	// Called is the key under which it was called in this replay, "" when it was
	// not.
	Called string `json:"called,omitempty"`
}

// maxInput is the most bytes of JSON that are shown of one input.
const maxInput = 16 << 10

// Play makes what is told of a firing; size is how many bytes of JSON its input
// and the rest take. It may block on the bus.
func Play(f *Fired) (out Played, size int, err error) {
	out = Played{Sensor: f.Sensor.Name, Firing: firingOf(f.Firing), Edited: f.Edited}
	p := f.Sensor.Program
	path := p.InputPath(f.Firing.TriggerIndex)
	switch {
	case f.Firing.Err != nil:
	case f.Firing.Late:
		out.Cut = true
	case path != "":
		out.Input = f.Firing.Rendered[path]
	case f.Firing.Last > 0:
		ev, err := f.Load(f.Firing.Last)
		if err != nil {
			return out, 0, err
		}
		if ev != nil {
			out.Input, _ = ev.Value() // what cannot be read is passed as it is
		}
	}
	for name, v := range f.Firing.Rendered {
		if name == path {
			continue
		}
		if out.Config == nil {
			out.Config = map[string]any{}
		}
		out.Config[name] = v
	}
	b, err := json.Marshal([]any{out.Input, out.Config})
	if err != nil || len(b) > maxInput {
		out.Input, out.Config, out.Cut = nil, nil, true
		return out, 0, nil
	}
	return out, len(b), nil
}

// Compare notes how firings compare with the history, and returns the calls in
// it that are not among them and whose last event is meant, in the order of
// these events.
func Compare(played []Played, h *History, means func(sensor string, seq uint64) bool) (gone []Played) {
	fired := make(map[string]bool, len(played))
	for i := range played {
		f := &played[i]
		fired[f.Key] = true
		c := h.Calls[f.Key]
		switch {
		case c != nil:
			f.Difference, f.Call = Same, c
		case f.Time.Before(h.Oldest):
			f.Difference = Unknown
		default:
			f.Difference = New
		}
	}
	for key, c := range h.Calls {
		if fired[key] || strings.HasPrefix(key, KeyPrefix) || !means(c.sensor, c.event) {
			continue
		}
		gone = append(gone, Played{
			Sensor: c.sensor, Difference: Gone,
			Firing: Firing{Key: key, Trigger: c.trigger, Events: []sensors.Contribution{{Seq: c.event}}, Time: c.Started, Call: c},
		})
	}
	slices.SortFunc(gone, func(a, b Played) int {
		return cmp.Or(cmp.Compare(a.Events[0].Seq, b.Events[0].Seq), cmp.Compare(a.Trigger, b.Trigger), cmp.Compare(a.Key, b.Key))
	})
	return gone
}

// Patch is an event with parts of it changed.
type Patch struct {
	// Data is merged into the event's data as JSON Merge Patch (RFC 7396) has it,
	// or replaces it when Replace is true.
	Data    any
	Replace bool
}

// Apply returns a changed copy of an event.
func (p Patch) Apply(ev *bus.Event) (*bus.Event, error) {
	value := p.Data
	if !p.Replace {
		was, err := ev.Value()
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", ev.Seq, err)
		}
		value = merge(was, p.Data)
	}
	b, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("the changed data of event %d is no JSON: %w", ev.Seq, err)
	}
	out := ev.Derive()
	out.Seq, out.StoredAt = ev.Seq, ev.StoredAt
	out.Data, out.DataContentType = b, "application/json"
	return out, nil
}

// merge is a JSON Merge Patch. What it is given is not changed.
func merge(was, patch any) any {
	change, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	out := map[string]any{}
	if object, ok := was.(map[string]any); ok {
		maps.Copy(out, object)
	}
	for k, v := range change {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = merge(out[k], v)
	}
	return out
}
