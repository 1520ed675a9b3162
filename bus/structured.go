package bus

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// StructuredType is the media type of an event in the JSON format.
const StructuredType = "application/cloudevents+json"

// AppendStructured appends the event in the JSON format of CloudEvents (the
// structured content mode), on one line. JSON data is embedded as it is, so
// that its numbers keep all their digits; text of other types is a string and
// anything else base64, also what claims to be JSON and is not.
func (e *Event) AppendStructured(b []byte) []byte {
	b = append(b, `{"specversion":"1.0","id":`...)
	b = AppendJSONString(b, e.ID)
	field := func(name, v string) { b = AppendJSONField(b, name, v) }
	field("source", e.Source)
	field("type", e.Type)
	field("subject", e.Subject)
	if !e.Time.IsZero() {
		field("time", e.Time.Format(time.RFC3339Nano))
	}
	field("datacontenttype", e.DataContentType)
	field("dataschema", e.DataSchema)
	for _, name := range e.ExtensionNames() {
		switch name {
		case "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data", "data_base64":
		default: // a name may be anything
			if v := e.Extensions[name]; v != "" {
				b = AppendJSONString(append(AppendJSONString(append(b, ','), name), ':'), v)
			}
		}
	}
	switch {
	case len(e.Data) == 0:
	case IsJSON(e.DataContentType) && ValidJSON(e.Data):
		data := e.Data
		if !utf8.Valid(data) {
			data = bytes.ToValidUTF8(data, []byte("\uFFFD"))
		}
		b = append(b, `,"data":`...)
		buf := bytes.NewBuffer(b)
		_ = json.Compact(buf, data) // it is valid
		b = buf.Bytes()
	case utf8.Valid(e.Data) && !IsJSON(e.DataContentType):
		b = append(b, `,"data":`...)
		b = AppendJSONString(b, string(e.Data))
	default:
		b = append(b, `,"data_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, e.Data)
		b = append(b, '"')
	}
	return append(b, '}')
}
