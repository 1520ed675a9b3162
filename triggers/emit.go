package triggers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
)

// Emission is an event that a call wants stored. Only Type is required.
type Emission struct {
	Type, Source, Subject, DataContentType, DataSchema string
	// Time is zero for now.
	Time time.Time
	Data []byte
	// Extensions are further attributes; traceparent and tracestate of the
	// event that caused the call are passed on unless they are here, "" drops
	// them.
	Extensions map[string]string
}

// Limits of what one call may emit.
const (
	MaxEmissions     = 1000
	MaxEmissionBytes = 8 << 20
)

// ExtensionName reports an error when CloudEvents does not allow s as the name
// of an extension attribute.
func ExtensionName(s string) error {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return errors.New("the name of an extension attribute is not " + s)
		}
	}
	switch s {
	case "", "id", "source", "type", "subject", "time", "data", "specversion", "datacontenttype", "dataschema":
		return errors.New("an extension attribute cannot be named " + s)
	}
	return nil
}

// Derive makes the event of the i-th emission of a call: its id follows from
// the key of the call, so that a repeated call does not store a second one, it
// names the call as its cause, and it counts one function more than the event
// of the call; beyond maxHops that is a [*PermanentError], which ends loops.
func (c *Call) Derive(i int, e Emission, maxHops int) (*bus.Event, error) {
	// The function's name stands in when no sensor called.
	by, source := c.Sensor, "/sensors/"+c.Sensor
	if by == "" {
		by, source = c.Function, "/functions/"+c.Function
	}
	if c.Key == "" || by == "" {
		return nil, Permanentf("the call has no key or no name; it cannot be repeated safely")
	}
	if e.Type == "" {
		return nil, Permanentf("type is empty; an event needs one")
	}
	ev := &bus.Event{
		ID: c.Key + "/" + strconv.Itoa(i), ProducerID: true, Time: e.Time,
		Type: e.Type, Source: e.Source, Subject: e.Subject, DataContentType: e.DataContentType, DataSchema: e.DataSchema, Data: e.Data,
		EventSource: bus.SourcePublish, EventName: by,
		Hops: 1, Cause: c.Key,
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now().UTC()
	}
	if ev.Source == "" {
		ev.Source = source
	}
	set := func(k, v string) {
		if ev.Extensions == nil {
			ev.Extensions = make(map[string]string, 2)
		}
		ev.Extensions[k] = v
	}
	if in := c.Event; in != nil {
		if ev.Hops = in.Hops + 1; ev.Hops > maxHops {
			return nil, Permanentf(
				"hop limit %d reached: %s publishes %s because of %s (event %s), which already passed through %d functions; this is a loop unless maxHops is too low: narrow the dependency of the sensor that listens to %s",
				maxHops, c.caller(), ev.Type, in.Type, in.ID, in.Hops, ev.Type)
		}
		for _, k := range [...]string{"traceparent", "tracestate"} {
			if v, ok := in.Extensions[k]; ok {
				set(k, v)
			}
		}
	}
	for k, v := range e.Extensions {
		if v == "" {
			delete(ev.Extensions, k)
			continue
		}
		set(k, v)
	}
	return ev, nil
}

// caller names who calls, for people.
func (c *Call) caller() string {
	if c.Sensor == "" {
		return "function " + c.Function
	}
	return "trigger " + c.Trigger + " of sensor " + c.Sensor
}

// Emit stores what a call emitted, in order, and returns when all of it is
// durable. An event that the bus would never take is a permanent error; after
// an error some may be stored, and a repeated call does not store them again.
func (c *Call) Emit(ctx context.Context, h Host, all []Emission, maxHops int) error {
	if len(all) == 0 {
		return nil
	}
	evs := make([]*bus.Event, len(all))
	for i, e := range all { // all are looked at before the first is stored
		ev, err := c.Derive(i, e, maxHops)
		if err == nil {
			err = wellFormed(ev)
		}
		if err != nil {
			return &PermanentError{Errorf(FunctionError, "emitted event %d: %w", i+1, err)}
		}
		evs[i] = ev
	}
	if h == nil {
		return Errorf(SystemError, "there is no bus to emit events on")
	}
	for i, ev := range evs {
		if err := h.Publish(ctx, ev); errors.Is(err, bus.ErrTooLarge) {
			return &PermanentError{Errorf(FunctionError, "emitted event %d, %s: %w", i+1, ev.Type, err)}
		} else if err != nil {
			return Errorf(SystemError, "emitted event %d, %s, cannot be stored: %w", i+1, ev.Type, err)
		}
	}
	return nil
}

// maxAttribute is the longest attribute of an emitted event, in bytes:
// JetStream takes at most 64 KiB of headers.
const maxAttribute = 8 << 10

// wellFormed tells what is wrong with the attributes of an event that a
// program made.
func wellFormed(ev *bus.Event) error {
	for _, a := range [...]struct{ name, value string }{
		{"type", ev.Type}, {"source", ev.Source}, {"subject", ev.Subject}, {"datacontenttype", ev.DataContentType}, {"dataschema", ev.DataSchema},
	} {
		if err := attribute(a.name, a.value); err != nil {
			return err
		}
	}
	for k, v := range ev.Extensions {
		if err := ExtensionName(k); err != nil {
			return err
		}
		if err := attribute(k, v); err != nil {
			return err
		}
	}
	return nil
}

func attribute(name, value string) error {
	switch {
	case len(value) > maxAttribute:
		return fmt.Errorf("its %s is longer than %d bytes", name, maxAttribute)
	case !utf8.ValidString(value):
		return fmt.Errorf("its %s is not UTF-8", name)
	}
	return nil
}
