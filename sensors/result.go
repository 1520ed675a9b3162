package sensors

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// maxResultError is how much of an error an event carries, in bytes; maxTrace
// is the longest trace attribute that is passed on.
const (
	maxResultError = 8 << 10
	maxTrace       = 512
)

// Result is how the job of one firing ended for good. Secrets in it are masked
// already.
type Result struct {
	// Function is the function's name, "<sensor>.<trigger>" of an inline one.
	Function string
	// Sensor and Trigger say who called; they are empty when it is not known.
	Sensor, Trigger string
	// Firing is the firing key; Correlation, Flow, Item and Items are the
	// firing's.
	Firing, Correlation, Flow string
	Item, Items               int
	// Failed is true when the job was given up, and Error says why.
	Failed bool
	Error  string
	// Output is the answer of the last call and ContentType its media type. Cut
	// is true when a part of it is missing.
	Output      []byte
	ContentType string
	Cut         bool
	// Attempts counts the calls, Redrive how often the job came back from the
	// dead letters.
	Attempts, Redrive int
	// Last is the last event that contributed to the firing, nil for none.
	Last *bus.Event
	// Time is when the job ended.
	Time time.Time
}

// resultData is the data of the event.
type resultData struct {
	Function  string `json:"function"`
	Sensor    string `json:"sensor"`
	Trigger   string `json:"trigger"`
	Key       any    `json:"key"`
	Firing    string `json:"firing"`
	Outcome   string `json:"outcome"`
	Output    any    `json:"output"`
	Error     string `json:"error,omitempty"`
	Attempts  int    `json:"attempts"`
	Redrive   int    `json:"redrive,omitempty"`
	Truncated bool   `json:"truncated,omitempty"`
}

// Hops is how many functions the event will have passed through. The steps of
// one workflow, of which there is an end, count as one.
func (r *Result) Hops() int {
	switch {
	case r.Last == nil:
		return 1
	case r.Flow != "" && r.Last.EventSource == bus.SourceFunction && r.Last.Extensions[bus.ExtFlow] == r.Flow:
		return r.Last.Hops
	}
	return r.Last.Hops + 1
}

// Event is the event that tells the result. Its id follows from the firing, so
// that the log recognises it when the job is repeated. An output with which its
// data would exceed limit, in bytes, is left out. It does not look at the hop
// limit.
func (r *Result) Event(limit int) *bus.Event {
	ev := &bus.Event{
		ID: r.Firing + "/result", ProducerID: true, Source: "/functions/" + r.Function, Type: bus.TypeFunctionSucceeded, Time: r.Time.UTC(),
		DataContentType: "application/json", EventSource: bus.SourceFunction, EventName: r.Function, Hops: r.Hops(), Cause: r.Firing,
		Extensions: make(map[string]string, 8),
	}
	if r.Failed {
		ev.Type = bus.TypeFunctionFailed
	}
	if r.Redrive > 0 {
		ev.ID += "/" + strconv.Itoa(r.Redrive)
	}
	if r.Sensor != "" {
		ev.Subject = resultSubject(r.Sensor, r.Trigger)
	}
	set := func(name, v string) {
		if v != "" {
			ev.Extensions[name] = v
		}
	}
	set(bus.ExtSensor, r.Sensor)
	set(bus.ExtTrigger, r.Trigger)
	set(bus.ExtKey, r.Correlation)
	set(bus.ExtFlow, r.Flow)
	if r.Items > 0 {
		set(bus.ExtItem, strconv.Itoa(r.Item))
		set(bus.ExtItems, strconv.Itoa(r.Items))
	}
	if r.Last != nil {
		for _, name := range [...]string{"traceparent", "tracestate"} {
			if v := r.Last.Extensions[name]; len(v) <= maxTrace {
				set(name, v)
			}
		}
	}
	ev.Data = r.data(limit)
	return ev
}

// data is the data of the event, without the output when it does not fit.
func (r *Result) data(limit int) []byte {
	d := resultData{
		Function: r.Function, Sensor: r.Sensor, Trigger: r.Trigger, Key: KeyValue(r.Correlation), Firing: r.Firing,
		Outcome: "succeeded", Attempts: r.Attempts, Redrive: r.Redrive,
	}
	if r.Failed {
		d.Outcome, d.Error = "failed", r.Error
		if len(d.Error) > maxResultError {
			d.Error = strings.ToValidUTF8(d.Error[:maxResultError], "") + "…"
		}
	}
	if d.Truncated = r.Cut || len(r.Output) > limit; !d.Truncated {
		d.Output = r.output()
		if b, err := encode(&d); err == nil && len(b) <= limit {
			return b
		}
		d.Output, d.Truncated = nil, true
	}
	b, _ := encode(&d) // texts and numbers can always be encoded
	return b
}

// output is the output as JSON when it is JSON, text otherwise, nil for none.
func (r *Result) output() any {
	switch {
	case len(r.Output) == 0:
		return nil
	case bus.IsJSON(r.ContentType) && bus.ValidJSON(r.Output):
		return json.RawMessage(r.Output)
	}
	return string(r.Output)
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// ResultFields are the fields that the data of such an event may have.
func ResultFields() []string {
	return []string{"function", "sensor", "trigger", "key", "firing", "outcome", "output", "error", "attempts", "redrive", "truncated"}
}

// Asked tells of which calls programs ask for the results. It is not changed
// after it was made and is safe for concurrent use.
type Asked struct {
	exact map[string][]*dependency // by the function they name
	globs []*dependency
}

// NewAsked returns what programs ask for. A dependency asks for results when
// the text of its source or type fits them; one that takes events of any source
// and type does not ask, but gets them when another one does.
func NewAsked(programs []*Program) *Asked {
	a := &Asked{exact: map[string][]*dependency{}}
	for _, p := range programs {
		for i := range p.deps {
			d := &p.deps[i]
			switch {
			case !d.asksForResults():
			case d.event.exact():
				a.exact[d.event.text] = append(a.exact[d.event.text], d)
			default:
				a.globs = append(a.globs, d)
			}
		}
	}
	return a
}

// asksForResults reports whether a dependency is about results of functions.
func (d *dependency) asksForResults() bool {
	return d.source.match(bus.SourceFunction) && (d.kind.match(bus.TypeFunctionSucceeded) || d.kind.match(bus.TypeFunctionFailed)) &&
		(d.source.says() || d.kind.says())
}

// says reports whether a pattern has any text of its own.
func (p pattern) says() bool { return strings.Trim(p.text, "*?") != "" }

// Wants reports whether somebody asks for the results of the calls of a
// function by a trigger.
func (a *Asked) Wants(function, sensor, trigger string) bool {
	fits := func(d *dependency) bool {
		return d.subject.text == "" || d.subject.match(resultSubject(sensor, trigger))
	}
	return slices.ContainsFunc(a.exact[function], fits) ||
		slices.ContainsFunc(a.globs, func(d *dependency) bool { return d.event.match(function) && fits(d) })
}

func resultSubject(sensor, trigger string) string { return sensor + "/" + trigger }

// TakesResults reports whether a dependency takes results of functions, whether
// or not it asks for them.
func (p *Program) TakesResults() bool {
	return slices.ContainsFunc(p.deps, func(d dependency) bool {
		return d.source.match(bus.SourceFunction) && (d.kind.match(bus.TypeFunctionSucceeded) || d.kind.match(bus.TypeFunctionFailed))
	})
}

// Followed reports whether other triggers of the sensor follow a trigger, so
// that the results of its calls are told.
func (p *Program) Followed(trigger string) bool {
	i := slices.Index(p.names, trigger)
	return i >= 0 && p.triggers[i].followed
}
