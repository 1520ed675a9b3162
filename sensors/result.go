package sensors

import (
	"bytes"
	"encoding/json"
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

// Hops is how many functions the event will have passed through.
func (r *Result) Hops() int {
	if r.Last == nil {
		return 1
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
		ev.Subject = r.Sensor + "/" + r.Trigger
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
