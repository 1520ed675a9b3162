package generic

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources/generic/eventing"
)

const (
	// maxAttributes bounds the attributes of an event with its cursor as they
	// travel: JetStream takes at most 64 KiB of headers.
	maxAttributes = 60 << 10
	// maxCursor bounds the cursor of one event, in bytes.
	maxCursor = 4 << 10
)

// refused is the error about a message that can never become an event.
type refused struct{ reason string }

func (e *refused) Error() string { return e.reason }

// convert makes an event of a message. What CloudEvents
// do not allow as an attribute is named in leftOut, and the event comes without
// it; an error is a *refused.
func convert(m *eventing.Event, contentType string) (ev *bus.Event, leftOut []string, err error) {
	if len(m.Payload) == 0 && m.Name == "" && len(m.ProtoReflect().GetUnknown()) > 0 && m.Id == "" && m.Type == "" {
		return nil, nil, &refused{"the server sent a message that is no generic.Event: it must use generic.proto"}
	}
	ev = &bus.Event{
		ID: m.Id, ProducerID: m.Id != "", Type: m.Type, Source: m.Source, Subject: m.Subject,
		DataContentType: m.ContentType, Cursor: m.Cursor,
	}
	if len(m.Payload) > 0 {
		ev.Data = m.Payload
		if ev.DataContentType == "" {
			ev.DataContentType = contentType
		}
		if ev.DataContentType == "" {
			ev.DataContentType = detect(m.Payload)
		}
	}
	if m.Time != nil {
		if m.Time.CheckValid() == nil {
			ev.Time = m.Time.AsTime()
		} else {
			leftOut = append(leftOut, "time")
		}
	}
	for name, value := range m.Attributes {
		switch {
		case value == "": // the same as absent
		case name == "dataschema":
			ev.DataSchema = value
		case !extension(name):
			leftOut = append(leftOut, name)
		default:
			if ev.Extensions == nil {
				ev.Extensions = make(map[string]string, len(m.Attributes))
			}
			ev.Extensions[name] = value
		}
	}
	return ev, leftOut, tooLong(ev)
}

// extension tells whether CloudEvents allow an extension attribute of this name.
func extension(name string) bool {
	switch name {
	case "", "id", "source", "type", "subject", "time", "specversion", "datacontenttype", "data":
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return len(name) <= 256
}

// tooLong refuses what would not fit into the headers of a record.
func tooLong(ev *bus.Event) error {
	if len(ev.Cursor) > maxCursor {
		return &refused{fmt.Sprintf("the server sent a cursor of %d bytes, the most is %d: it must send a shorter one", len(ev.Cursor), maxCursor)}
	}
	short := func(s string) int { return 3 * len(s) } // at most, percent-encoded
	if attributes(ev, short) <= maxAttributes {
		return nil
	}
	if n := attributes(ev, escapedLen); n > maxAttributes {
		return &refused{fmt.Sprintf("the server sent an event with attributes of %d bytes, the most is %d: it must send them in the payload", n, maxAttributes)}
	}
	return nil
}

func attributes(ev *bus.Event, size func(string) int) int {
	n := size(ev.ID) + size(ev.Source) + size(ev.Type) + size(ev.Subject) + size(ev.DataContentType) + size(ev.DataSchema) + size(ev.Cursor)
	for k, v := range ev.Extensions {
		n += len(k) + 8 + size(v)
	}
	return n
}

// escapedLen is the length of an attribute on the bus, where some bytes become
// three.
func escapedLen(s string) int {
	n := len(s)
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			n += 2
		}
	}
	return n
}

// detect names the media type of a payload. A lone number or word is text,
// although it may be JSON too.
func detect(payload []byte) string {
	for _, c := range payload {
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case '{', '[':
			if bus.ValidJSON(payload) {
				return "application/json"
			}
		}
		break
	}
	if utf8.Valid(payload) {
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

// size is what an event counts for while it waits, in bytes.
func size(ev *bus.Event) int64 {
	return int64(len(ev.Data)+attributes(ev, func(s string) int { return len(s) })) + 512
}

// asRefused returns the *refused in err, or nil.
func asRefused(err error) *refused {
	r, _ := errors.AsType[*refused](err)
	return r
}

// list joins names for a log line.
func list(names []string) string { return strings.Join(names, ", ") }
