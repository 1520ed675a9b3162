package bus

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// MaxHops is how many functions an event and its causes may have passed
// through where nothing else is said. It ends loops.
const MaxHops = 16

// Event is a CloudEvents 1.0 event together with its place in the engine.
// Once it was handed to the bus it must not be changed.
type Event struct {
	// The context attributes of CloudEvents 1.0. ID, Source and Type are
	// required; Time may be zero.
	ID, Source, Type, Subject, DataContentType, DataSchema string
	Time                                                   time.Time
	// Extensions holds the extension attributes in their canonical string
	// form, `traceparent` too; nil when there are none.
	Extensions map[string]string
	// Data is the payload, untouched; nil when there is none.
	Data []byte

	// EventSource and EventName say where it came in: the names of the
	// EventSource and its event, or one of the pseudo sources and a name.
	EventSource, EventName string
	// ProducerID is true when the producer chose ID, so that a retry with the
	// same id is the same event.
	ProducerID bool
	// Request is the JSON of the HTTP request that carried the event, nil
	// when there was none: method, path, params, query, headers.
	Request []byte
	// Hops counts how many functions this event has passed through.
	Hops int
	// Cursor is the position of the source after this event, text of at most
	// 4 KiB, "" for none: event and position are one write.
	Cursor string
	// Cause is the key of the firing that caused it, "" when none did.
	Cause string

	// Seq and StoredAt are the event's place in the log and its log time. They
	// are zero until the event was read from the bus.
	Seq      uint64
	StoredAt time.Time

	once  sync.Once
	value any
	err   error
}

// Header names of the binary content mode (CloudEvents NATS binding) and our
// own.
const (
	hdrPrefix   = "ce-"
	hdrSpec     = "ce-specversion"
	hdrID       = "ce-id"
	hdrSource   = "ce-source"
	hdrType     = "ce-type"
	hdrSubject  = "ce-subject"
	hdrTime     = "ce-time"
	hdrSchema   = "ce-dataschema"
	hdrContent  = "content-type"
	hdrRequest  = "engine-request"
	hdrHops     = "engine-hops"
	hdrCause    = "engine-cause"
	hdrCursor   = "engine-cursor"
	hdrProducer = "engine-producer-id"
)

// Record encodes the event in the binary content mode: attributes are
// `ce-*` headers, percent-encoded where the binding asks for it, and the
// payload is Data itself, not copied. The record has a MsgID only when the
// producer chose the id.
func (e *Event) Record() Record {
	// One backing array for all values: a header costs no allocation of its own.
	vals := make([]string, 0, 10+len(e.Extensions))
	h := make(Header, 10+len(e.Extensions))
	set := func(k, v string) {
		if v != "" {
			vals = append(vals, v)
			h[k] = vals[len(vals)-1 : len(vals) : len(vals)]
		}
	}
	set(hdrSpec, "1.0")
	set(hdrID, escape(e.ID))
	set(hdrSource, escape(e.Source))
	set(hdrType, escape(e.Type))
	set(hdrSubject, escape(e.Subject))
	set(hdrSchema, escape(e.DataSchema))
	set(hdrContent, escape(e.DataContentType))
	if !e.Time.IsZero() {
		set(hdrTime, e.Time.Format(time.RFC3339Nano))
	}
	for k, v := range e.Extensions {
		set(hdrPrefix+k, escape(v))
	}
	if len(e.Request) > 0 {
		set(hdrRequest, string(e.Request))
	}
	if e.Hops > 0 {
		set(hdrHops, strconv.Itoa(e.Hops))
	}
	set(hdrCause, e.Cause)
	set(hdrCursor, escape(e.Cursor))
	r := Record{Subject: EventSubject(e.EventSource, e.EventName), Header: h, Data: e.Data}
	if e.ProducerID {
		set(hdrProducer, "1")
		r.MsgID = e.DedupID()
	}
	return r
}

// Derive returns a copy to change, with extensions of its own and no place in
// the log; the payload is shared until it is replaced.
func (e *Event) Derive() *Event {
	return &Event{
		ID: e.ID, Source: e.Source, Type: e.Type, Subject: e.Subject, DataContentType: e.DataContentType, DataSchema: e.DataSchema,
		Time: e.Time, Extensions: maps.Clone(e.Extensions), Data: e.Data,
		EventSource: e.EventSource, EventName: e.EventName, ProducerID: e.ProducerID, Request: e.Request,
		Hops: e.Hops, Cause: e.Cause, Cursor: e.Cursor,
	}
}

// DedupID is the id under which the log recognises a retry: a hash of
// EventSource, event name, ce-source and ce-id.
func (e *Event) DedupID() string {
	h := sha256.New()
	var n [4]byte
	for _, s := range [...]string{e.EventSource, e.EventName, e.Source, e.ID} {
		binary.BigEndian.PutUint32(n[:], uint32(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18])
}

// DecodeEvent reverses [Event.Record] for a record of the EVENTS log. A
// record without the required attributes is an error.
func DecodeEvent(r Record) (*Event, error) {
	e := &Event{Seq: r.Seq, StoredAt: r.Time, Data: r.Data}
	rest := strings.TrimPrefix(r.Subject, EventsPrefix)
	src, name, ok := strings.Cut(rest, ".")
	if !ok || len(rest) == len(r.Subject) {
		return nil, fmt.Errorf("event %d: subject %q is not of the form %s<source>.<event>", r.Seq, r.Subject, EventsPrefix)
	}
	var err error
	if e.EventSource, err = Untoken(src); err != nil {
		return nil, fmt.Errorf("event %d: %w", r.Seq, err)
	}
	if e.EventName, err = Untoken(name); err != nil {
		return nil, fmt.Errorf("event %d: %w", r.Seq, err)
	}
	for k, vs := range r.Header {
		if len(vs) == 0 {
			continue
		}
		v := vs[0]
		switch k {
		case hdrSpec:
		case hdrID:
			e.ID = unescape(v)
		case hdrSource:
			e.Source = unescape(v)
		case hdrType:
			e.Type = unescape(v)
		case hdrSubject:
			e.Subject = unescape(v)
		case hdrSchema:
			e.DataSchema = unescape(v)
		case hdrContent:
			e.DataContentType = unescape(v)
		case hdrTime:
			if e.Time, err = time.ParseInLocation(time.RFC3339Nano, v, time.UTC); err != nil {
				return nil, fmt.Errorf("event %d: ce-time: %w", r.Seq, err)
			}
		case hdrRequest:
			e.Request = []byte(v)
		case hdrHops:
			if e.Hops, err = strconv.Atoi(v); err != nil {
				return nil, fmt.Errorf("event %d: %s: %w", r.Seq, hdrHops, err)
			}
		case hdrCause:
			e.Cause = v
		case hdrCursor:
			e.Cursor = unescape(v)
		case hdrProducer:
			e.ProducerID = true
		default:
			if name, ok := strings.CutPrefix(k, hdrPrefix); ok {
				if e.Extensions == nil {
					e.Extensions = make(map[string]string, 4)
				}
				e.Extensions[name] = unescape(v)
			}
		}
	}
	if e.ID == "" || e.Source == "" || e.Type == "" {
		return nil, fmt.Errorf("event %d on %s: ce-id, ce-source and ce-type are required", r.Seq, r.Subject)
	}
	return e, nil
}

// ExtensionNames returns the names of the extensions in order.
func (e *Event) ExtensionNames() []string { return slices.Sorted(maps.Keys(e.Extensions)) }

// escape percent-encodes a header value as CloudEvents' HTTP binding §3.1.3.2
// asks: controls, space, '"', '%' and everything outside ASCII.
func escape(s string) string {
	n := 0
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			n++
		}
	}
	if n == 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2*n)
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(upperhex[c>>4])
			b.WriteByte(upperhex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// unescape reverses escape; a '%' that starts no valid escape stays.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(v))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// Value returns the payload as expressions see it, parsed at most once:
// the decoded JSON (objects map[string]any, arrays []any, integers int64,
// other numbers float64) when the content type is JSON or absent and the
// payload is JSON, otherwise a string when it is UTF-8 text, otherwise
// []byte. A payload that claims to be JSON and is not is an error. It is safe
// for concurrent use. The caller must not change the value.
func (e *Event) Value() (any, error) {
	e.once.Do(func() { e.value, e.err = e.parse() })
	return e.value, e.err
}

func (e *Event) parse() (any, error) {
	if len(e.Data) == 0 {
		return nil, nil
	}
	if IsJSON(e.DataContentType) {
		v, err := ParseJSON(e.Data)
		if err != nil && e.DataContentType != "" {
			return nil, fmt.Errorf("data is not the JSON its content type claims: %w", err)
		}
		if err == nil {
			return v, nil
		}
	}
	if utf8.Valid(e.Data) {
		return string(e.Data), nil
	}
	return e.Data, nil
}

// IsJSON reports whether a media type names JSON: application/json, text/json,
// any `+json`, or none at all (CloudEvents' default).
func IsJSON(contentType string) bool {
	if contentType == "" || contentType == "application/json" {
		return true
	}
	mt, _, _ := strings.Cut(contentType, ";")
	mt = strings.ToLower(strings.TrimSpace(mt))
	return mt == "application/json" || mt == "text/json" || strings.HasSuffix(mt, "+json")
}

// Attributes returns the event as expressions see it: id, type, source,
// subject, time, datacontenttype, dataschema, extensions, and, when asked for,
// data and request. An error says that data was asked for and does not parse;
// the map is complete but for data then. The caller owns the map, not the
// values in it.
func (e *Event) Attributes(data, request bool) (map[string]any, error) {
	ext := make(map[string]any, len(e.Extensions))
	for k, v := range e.Extensions {
		ext[k] = v
	}
	m := map[string]any{
		"id": e.ID, "type": e.Type, "source": e.Source, "subject": e.Subject, "time": e.Time,
		"datacontenttype": e.DataContentType, "dataschema": e.DataSchema, "extensions": ext,
	}
	if request && len(e.Request) > 0 {
		r, err := ParseJSON(e.Request)
		if err != nil {
			return m, fmt.Errorf("request of event %d: %w", e.Seq, err)
		}
		m["request"] = r
	}
	if data {
		v, err := e.Value()
		if err != nil {
			return m, err
		}
		m["data"] = v
	}
	return m, nil
}
