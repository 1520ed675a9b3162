package triggers

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
)

// Payload is what the call hands to its function, as JSON: the input when the
// trigger has one, else the data of the event: JSON as it came, other text as
// a string, other bytes as a string in base64, none as null. Data that claims
// to be JSON and is not is an InputError. The result may share the event's
// data.
func (c *Call) Payload() ([]byte, error) {
	if c.HasInput {
		return c.InputJSON()
	}
	if c.Event == nil || len(c.Event.Data) == 0 {
		return []byte("null"), nil
	}
	data := c.Event.Data
	if bus.IsJSON(c.Event.DataContentType) {
		if bus.ValidJSON(data) {
			if !utf8.Valid(data) {
				data = bytes.ToValidUTF8(data, []byte("\uFFFD"))
			}
			return data, nil
		}
		if c.Event.DataContentType != "" {
			return nil, Errorf(InputError, "Invalid Input: the data of event %s is not the JSON its content type claims", c.Event.ID)
		}
	}
	if utf8.Valid(data) {
		return bus.AppendJSONString(nil, string(data)), nil
	}
	b := make([]byte, 0, base64.StdEncoding.EncodedLen(len(data))+2)
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, data)
	return append(b, '"'), nil
}

// Readable is what the call hands to its function as people read it: the input
// when the trigger has one, else the data of the event. Text is as it came; JSON
// but text is indented, which code tells; nothing is "". Bytes that are no text
// are an InputError.
func (c *Call) Readable() (text string, code bool, err error) {
	var data []byte
	switch {
	case c.HasInput:
		v, err := c.InputValue()
		if err != nil {
			return "", false, err
		}
		if v == nil {
			return "", false, nil
		}
		if s, ok := v.(string); ok {
			return s, false, nil
		}
		if raw, ok := c.Input.(json.RawMessage); ok { // with all its digits
			data = raw
			break
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false) // people read <
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return "", false, Errorf(InputError, "Invalid Input: %w", err)
		}
		return strings.TrimSuffix(b.String(), "\n"), true, nil
	case c.Event != nil:
		data = c.Event.Data
		if !utf8.Valid(data) {
			return "", false, Errorf(InputError, "Invalid Input: the data of event %s is no text; make one of it with an expression", c.Event.ID)
		}
		if !bus.ValidJSON(data) {
			return string(data), false, nil
		}
	}
	if string(bytes.TrimSpace(data)) == "null" {
		return "", false, nil
	}
	var b bytes.Buffer
	if len(data) > 0 && json.Indent(&b, data, "", "  ") != nil {
		return string(data), false, nil
	}
	return b.String(), b.Len() > 0, nil
}

// InputJSON is the input as JSON. The result may be the input itself.
func (c *Call) InputJSON() ([]byte, error) {
	if raw, ok := c.Input.(json.RawMessage); ok {
		return raw, nil
	}
	b, err := json.Marshal(c.Input)
	if err != nil {
		return nil, Errorf(InputError, "Invalid Input: %w", err)
	}
	return b, nil
}

// InputValue is the input as a value, for expressions.
func (c *Call) InputValue() (any, error) {
	raw, ok := c.Input.(json.RawMessage)
	if !ok {
		return c.Input, nil
	}
	v, err := bus.ParseJSON(raw)
	if err != nil {
		return nil, Errorf(InputError, "Invalid Input: %w", err)
	}
	return v, nil
}

// AppendContext appends the context of a call as a JSON object: what functions
// get beside the payload. It has `event` (see [Call.AppendEvent]; absent without
// one), `secrets` (always an object), `deadline` (RFC 3339, when ctx has one),
// `httpContext` (when a request is waiting), `key`, `attempt`, and, where they
// are known, `function`, `sensor` and `trigger`.
func (c *Call) AppendContext(ctx context.Context, b []byte) []byte {
	b = c.AppendBareContext(ctx, b)
	if c.Event == nil {
		return b
	}
	b = append(b[:len(b)-1], `,"event":`...)
	b = c.AppendEvent(b)
	return append(b, '}')
}

// AppendBareContext is [Call.AppendContext] without the event.
func (c *Call) AppendBareContext(ctx context.Context, b []byte) []byte {
	b = append(b, `{"key":`...)
	b = bus.AppendJSONString(b, c.Key)
	b = append(b, `,"attempt":`...)
	b = strconv.AppendInt(b, int64(c.Attempt), 10)
	b = bus.AppendJSONField(b, "function", c.Function)
	b = bus.AppendJSONField(b, "sensor", c.Sensor)
	b = bus.AppendJSONField(b, "trigger", c.Trigger)
	if deadline, ok := ctx.Deadline(); ok {
		b = append(b, `,"deadline":"`...)
		b = deadline.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
		b = append(b, '"')
	}
	b = append(b, `,"secrets":`...)
	b = appendStrings(b, c.Secrets)
	if len(c.HTTPContext) > 0 {
		b = append(b, `,"httpContext":`...)
		b = append(b, c.HTTPContext...)
	}
	return append(b, '}')
}

// AppendEvent appends the attributes of the call's event as a JSON object, all
// but the data, under their names of CloudEvents 0.1 and 1.0; nothing without an
// event.
func (c *Call) AppendEvent(b []byte) []byte {
	ev := c.Event
	if ev == nil {
		return b
	}
	b = append(b, `{"specversion":"1.0","cloudEventsVersion":"0.1"`...)
	both := func(old, name, v string) {
		for _, n := range [...]string{old, name} {
			if n != "" {
				b = bus.AppendJSONField(b, n, v)
			}
		}
	}
	both("eventID", "id", ev.ID)
	both("eventType", "type", ev.Type)
	both("", "source", ev.Source)
	both("", "subject", ev.Subject)
	both("contentType", "datacontenttype", ev.DataContentType)
	both("schemaURL", "dataschema", ev.DataSchema)
	both("eventTypeVersion", "", ev.Extensions[bus.EventTypeVersionAttribute])
	if !ev.Time.IsZero() {
		both("eventTime", "time", ev.Time.Format(time.RFC3339Nano))
	}
	ext := ev.Extensions
	if _, ok := ext[bus.EventTypeVersionAttribute]; ok { // said already
		ext = maps.Clone(ext)
		delete(ext, bus.EventTypeVersionAttribute)
	}
	if len(ext) > 0 {
		b = append(b, `,"extensions":`...)
		b = appendExtensions(b, ext)
	}
	return append(b, '}')
}

// appendExtensions appends the extensions of an event: those it came with
// before CloudEvents 1.0 as they were, then those that are not among them.
func appendExtensions(b []byte, ext map[string]string) []byte {
	old := ext[bus.ExtensionsAttribute]
	if old == "" {
		return appendStrings(b, ext)
	}
	var known map[string]json.RawMessage
	if json.Unmarshal([]byte(old), &known) != nil || known == nil {
		return appendStrings(b, ext)
	}
	taken := map[string]bool{bus.ExtensionsAttribute: true}
	for name := range known {
		taken[bus.PlainExtension(name)] = true
	}
	b = append(b, bytes.TrimSuffix(bytes.TrimSpace([]byte(old)), []byte("}"))...)
	first := len(known) == 0
	for _, k := range slices.Sorted(maps.Keys(ext)) {
		if taken[k] {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = bus.AppendJSONString(b, k)
		b = append(b, ':')
		b = bus.AppendJSONString(b, ext[k])
	}
	return append(b, '}')
}

// appendStrings appends an object of strings, sorted by name.
func appendStrings(b []byte, m map[string]string) []byte {
	b = append(b, '{')
	if len(m) == 1 { // without sorting
		for k, v := range m {
			b = bus.AppendJSONString(b, k)
			b = append(b, ':')
			b = bus.AppendJSONString(b, v)
		}
		return append(b, '}')
	}
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = bus.AppendJSONString(b, k)
		b = append(b, ':')
		b = bus.AppendJSONString(b, m[k])
	}
	return append(b, '}')
}

// MediaType is that of an output which has none of its own: JSON, text or
// anything else; "" for an empty one.
func MediaType(out []byte) string {
	switch {
	case len(bytes.TrimSpace(out)) == 0:
		return ""
	case bus.ValidJSON(out):
		return "application/json"
	case utf8.Valid(out) && bytes.IndexByte(out, 0) < 0:
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}
