package sensors

import (
	"fmt"
	"slices"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// View is one event on its way past the programs that may want it. What
// expressions read of it is made once, however many programs read it. A View
// belongs to one goroutine.
type View struct {
	event *bus.Event
	env   map[string]any
	full  bool
	// fields are those of the payload that env holds, unless whole is set.
	fields []string
	whole  bool

	// transformed is the environment of the dependency asked last, when it has a
	// transform.
	transformed map[string]any

	matches  []Match
	verdicts []Verdict
	// indexed is true when the programs asked are those an index found; found
	// and undecided are its own.
	indexed   bool
	found     []int32
	undecided []GroupVerdict
	few       [2]Match
	fewer     [2]Verdict
}

// NewView returns a view of ev, which must not be changed any more.
func NewView(ev *bus.Event) *View { return &View{event: ev} }

// Reset makes the view one of ev, reusing its memory. What was got from it
// before is no longer valid.
func (v *View) Reset(ev *bus.Event) {
	clear(v.env)
	clear(v.few[:])
	clear(v.fewer[:])
	*v = View{event: ev, env: v.env, found: v.found, undecided: v.undecided}
}

// Event is the event viewed.
func (v *View) Event() *bus.Event { return v.event }

// Fill makes everything that expressions read of the event, so that no program
// pays for what others share with it. What cannot be made is missing as ever.
func (v *View) Fill() { _, _ = v.environment(&need{all: true}) }

// environment returns the event as expressions see it, with at least what is
// needed. An error says that a needed part does not parse; the others are there.
func (v *View) environment(n *need) (map[string]any, error) {
	if v.env == nil {
		v.env = make(map[string]any, 8)
	}
	if v.full {
		return v.env, nil
	}
	names := n.names
	if n.all {
		names = attributeNames
	}
	var failed error
	for _, name := range names {
		if name == "data" {
			if err := v.data(n); err != nil {
				failed = err
			}
			continue
		}
		if _, ok := v.env[name]; ok {
			continue
		}
		value, err := attribute(v.event, name)
		if err != nil {
			failed = err
			continue
		}
		v.env[name] = value
	}
	v.full = n.all && failed == nil
	return v.env, failed
}

// data puts the payload into env. The first program that reads only some of
// its fields has only those decoded; when a later one reads others, all are.
func (v *View) data(n *need) error {
	if v.whole {
		return nil
	}
	if _, there := v.env["data"]; !n.whole && !n.all {
		if there && subset(n.fields, v.fields) {
			return nil
		}
		if !there && bus.IsJSON(v.event.DataContentType) && len(v.event.Data) > 0 {
			if value, err := bus.ParseJSONFields(v.event.Data, n.fields); err == nil {
				v.env["data"], v.fields = value, n.fields
				return nil
			}
		}
	}
	value, err := attribute(v.event, "data")
	if err != nil {
		return err
	}
	v.env["data"], v.whole = value, true
	return nil
}

func subset(a, b []string) bool {
	for _, s := range a {
		if !slices.Contains(b, s) {
			return false
		}
	}
	return true
}

// attributeNames are all attributes of an event.
var attributeNames = []string{
	"data", "datacontenttype", "dataschema", "extensions", "id", "request", "source", "subject", "time", "type",
}

// object returns an event as an object with what is needed, as the sensor sees
// it for this dependency.
func (d *dependency) object(ev *bus.Event, n *need) (map[string]any, error) {
	if d.transform == nil || !n.has("data") {
		return object(ev, n)
	}
	out, err := object(ev, &need{names: union(n.names, d.raw.names), all: n.all || d.raw.all})
	if err != nil {
		return nil, err
	}
	return d.transformed(out)
}

// object returns an event as an object with what is needed.
func object(ev *bus.Event, n *need) (map[string]any, error) {
	names := n.names
	if n.all {
		names = attributeNames
	}
	out := make(map[string]any, len(names))
	for _, name := range names {
		value, err := attribute(ev, name)
		if err != nil {
			return nil, err
		}
		out[name] = value
	}
	return out, nil
}

// attribute returns one attribute as expressions see it; what is no attribute
// is nil.
func attribute(ev *bus.Event, name string) (any, error) {
	switch name {
	case "id":
		return ev.ID, nil
	case "type":
		return ev.Type, nil
	case "source":
		return ev.Source, nil
	case "subject":
		return ev.Subject, nil
	case "time":
		return zoned(ev.Time), nil
	case "datacontenttype":
		return ev.DataContentType, nil
	case "dataschema":
		return ev.DataSchema, nil
	case "extensions":
		ext := make(map[string]any, len(ev.Extensions))
		for k, v := range ev.Extensions {
			ext[k] = v
		}
		return ext, nil
	case "data":
		v, err := ev.Value()
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", ev.Seq, err)
		}
		return v, nil
	case "request":
		if len(ev.Request) == 0 {
			return nil, nil
		}
		v, err := bus.ParseJSON(ev.Request)
		if err != nil {
			return nil, fmt.Errorf("request of event %d: %w", ev.Seq, err)
		}
		return v, nil
	}
	return nil, nil
}

// zoned gives a time the offset it was written with and no zone rules: parsing
// may have attached the machine's own zone, whose rules differ elsewhere.
func zoned(t time.Time) time.Time {
	_, offset := t.Zone()
	if offset == 0 {
		return t.UTC()
	}
	return t.In(time.FixedZone("", offset))
}
