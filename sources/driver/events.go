package driver

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/sensor-engine/engine/bus"
)

const (
	// maxAttributes bounds the attributes of one event as they travel:
	// JetStream takes at most 64 KiB of headers.
	maxAttributes = 60 << 10
	// maxEventType is the longest type of an event of CloudEvents 0.1.
	maxEventType = 128
)

// The versions of CloudEvents that are understood.
const (
	v01 = "0.1"
	v02 = "0.2"
	v03 = "0.3"
	v10 = event.CloudEventsVersionV1
)

var (
	errNoEvents = errors.New("No events parsed") //nolint:staticcheck // the text drivers know
	eventType   = regexp.MustCompile(`^[\w.-]+$`)
)

// invalidError says what is wrong with one event of a message.
type invalidError struct {
	id  string
	err error
}

func (e *invalidError) Error() string {
	return fmt.Sprintf("Error validating event with ID %s: %v", e.id, e.err)
}

func (e *invalidError) Unwrap() error { return e.err }

// parse reads a message in the structured content mode: one event, an array of
// them, or several one after the other. Either all of them are valid, or there
// is an error: an *invalidError, errNoEvents, or one about the JSON. The data
// of the events is part of msg.
func parse(msg []byte) ([]*bus.Event, error) {
	msg = bytes.Trim(msg, " \t\r\n")
	if len(msg) == 0 {
		return nil, parseError("there is nothing")
	}
	var objects [][]byte
	switch whole := bus.ValidJSON(msg); {
	case whole && msg[0] == '{':
		ev, err := parseEvent(msg)
		if err != nil {
			return nil, err
		}
		return []*bus.Event{ev}, nil
	case whole && msg[0] == '[':
		for i := space(msg, 1); msg[i] != ']'; {
			end := valueEnd(msg, i)
			objects = append(objects, msg[i:end])
			if i = space(msg, end); msg[i] == ',' {
				i = space(msg, i+1)
			}
		}
		if len(objects) == 0 {
			return nil, errNoEvents
		}
	case whole || msg[0] != '{':
		return nil, parseError("begins with %q, an event is a JSON object", firstRune(msg))
	default:
		for i := 0; i < len(msg); {
			end := valueEnd(msg, i)
			one := msg[i:end]
			if one[0] != '{' {
				return nil, parseError("event %d begins with %q, an event is a JSON object", len(objects), firstRune(one))
			}
			if !bus.ValidJSON(one) {
				return nil, parseError("event %d is not valid JSON", len(objects))
			}
			objects = append(objects, one)
			i = space(msg, end)
		}
	}
	evs := make([]*bus.Event, len(objects))
	for i, one := range objects {
		if one[0] != '{' {
			return nil, parseError("element %d of the array is not an object", i)
		}
		var err error
		if evs[i], err = parseEvent(one); err != nil {
			return nil, err
		}
	}
	return evs, nil
}

func parseError(format string, args ...any) error {
	return fmt.Errorf("Error parsing input: "+format, args...) // the text drivers know
}

func firstRune(b []byte) string {
	r, _ := utf8.DecodeRune(b)
	return string(r)
}

// space returns the place of the first byte of b from i on that is no white space.
func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// valueEnd returns the place after the JSON value that begins at i, if it is
// one, and some place after i otherwise.
func valueEnd(b []byte, i int) int {
	switch b[i] {
	case '"':
		return stringEnd(b, i+1)
	case '{', '[':
		depth := 0
		for i < len(b) {
			switch b[i] {
			case '"':
				i = stringEnd(b, i+1)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return i
	}
	for i++; i < len(b) && strings.IndexByte(",]} \t\r\n", b[i]) < 0; i++ {
	}
	return i
}

// stringEnd returns the place after the quote that ends a string of which i is
// the first character.
func stringEnd(b []byte, i int) int {
	for i < len(b) {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			break
		}
		end, escapes := i+n, 0
		for end-escapes > i && b[end-escapes-1] == '\\' {
			escapes++
		}
		if i = end + 1; escapes%2 == 0 {
			return i
		}
	}
	return len(b)
}

// member is one name and value of an object.
type member struct{ name, value []byte }

// members lists the members of a valid object.
func members(obj []byte, list []member) []member {
	for i := space(obj, 1); obj[i] != '}'; {
		end := stringEnd(obj, i+1)
		m := member{name: obj[i+1 : end-1]}
		if bytes.IndexByte(m.name, '\\') >= 0 {
			m.name = []byte(text(obj[i:end]))
		}
		i = space(obj, space(obj, end)+1)
		end = valueEnd(obj, i)
		m.value = obj[i:end]
		list = append(list, m)
		if i = space(obj, end); obj[i] == ',' {
			i = space(obj, i+1)
		}
	}
	return list
}

// text returns the text of a valid JSON string.
func text(raw []byte) string {
	if inner := raw[1 : len(raw)-1]; bytes.IndexByte(inner, '\\') < 0 && utf8.Valid(inner) {
		return string(inner)
	}
	var s string
	_ = json.Unmarshal(raw, &s) // it is valid
	return s
}

// builder makes one event out of its attributes.
type builder struct {
	ev      *bus.Event
	version string
	// data is the JSON value of data, encoded that of data_base64.
	data, encoded []byte
	// base64 is true for the datacontentencoding of 0.3.
	base64 bool
	// old are the extensions of a version before 1.0 as JSON values, lossy is
	// true when 1.0 cannot say one of them.
	old   map[string]json.RawMessage
	lossy bool
}

// parseEvent reads a valid JSON object as an event of any version.
func parseEvent(obj []byte) (*bus.Event, error) {
	var room [16]member
	list := members(obj, room[:0])
	b := builder{ev: &bus.Event{}}
	for _, m := range list {
		if n := name(m.name); (n == "specversion" || n == "cloudEventsVersion") && m.value[0] == '"' {
			b.version = version(m.value)
			if err := b.checkVersion(n == "cloudEventsVersion"); err != nil {
				return nil, &invalidError{b.idOf(list), err}
			}
		}
	}
	for _, m := range list {
		if err := b.member(name(m.name), m.value); err != nil {
			return nil, &invalidError{b.idOf(list), err}
		}
	}
	err := b.setData()
	if err == nil {
		err = b.finish()
	}
	if err != nil {
		return nil, &invalidError{b.idOf(list), err}
	}
	return b.ev, nil
}

// name is the name of a member, without a copy for those of nearly all events.
func name(b []byte) string {
	switch string(b) {
	case "specversion":
		return "specversion"
	case "id":
		return "id"
	case "type":
		return "type"
	case "source":
		return "source"
	case "time":
		return "time"
	case "subject":
		return "subject"
	case "datacontenttype":
		return "datacontenttype"
	case "data":
		return "data"
	}
	return string(b)
}

// version is the text of a version, without a copy for the current one.
func version(raw []byte) string {
	if string(raw) == `"1.0"` {
		return v10
	}
	return text(raw)
}

// checkVersion tells versions that are not understood; old is true for one
// given as cloudEventsVersion.
func (b *builder) checkVersion(old bool) error {
	switch {
	case old && b.version != v01:
		return fmt.Errorf("cloudEventsVersion must be 0.1, is %s", quote(b.version))
	case !old && b.version != v02 && b.version != v03 && b.version != v10:
		return fmt.Errorf("specversion must be 1.0, 0.3 or 0.2, is %s", quote(b.version))
	}
	return nil
}

// idOf finds the id for the text of an error.
func (b *builder) idOf(list []member) string {
	for _, m := range list {
		if n := string(m.name); (n == "id" || n == "eventID") && m.value[0] == '"' {
			return shorten(text(m.value))
		}
	}
	return ""
}

// member takes one member of the JSON format.
func (b *builder) member(name string, value []byte) error {
	if value[0] == 'n' { // null is the same as absent
		return nil
	}
	switch name {
	case "specversion", "cloudEventsVersion":
		return nil
	case "data":
		b.data = value
		return nil
	}
	if b.version == v01 {
		if name == "extensions" {
			if value[0] != '{' {
				return errors.New("extensions must be an object")
			}
			for _, m := range members(value, nil) {
				b.extension(string(m.name), m.value)
			}
			return nil
		}
		if b.context(name) == "" {
			return nil // unknown keys, such as tags, say nothing about the event
		}
	} else if name == "data_base64" && b.version == v10 {
		b.encoded = value
		return nil
	}
	if b.context(name) == "" && b.version != v10 {
		b.extension(name, value)
		return nil
	}
	s := string(value)
	switch c := value[0]; {
	case c == '"':
		s = text(value)
	case c == '{' || c == '[':
		return fmt.Errorf("the attribute %s must be a string, an integer or a boolean", quote(name))
	case b.context(name) != "":
		return fmt.Errorf("the attribute %s must be a string", quote(name))
	case c != 't' && c != 'f' && strings.ContainsAny(s, ".eE"):
		return fmt.Errorf("the attribute %s must be an integer, or a string", quote(name))
	}
	return b.attribute(name, s)
}

// context returns the name that CloudEvents 1.0 gives to a context attribute
// of the version, "" when it has none of the name.
func (b *builder) context(name string) string {
	if b.version == v01 {
		switch name {
		case "eventID":
			return "id"
		case "eventType":
			return "type"
		case "source":
			return name
		case "eventTime":
			return "time"
		case "schemaURL":
			return "dataschema"
		case "contentType":
			return "datacontenttype"
		case "eventTypeVersion":
			return bus.EventTypeVersionAttribute
		}
		return ""
	}
	switch name {
	case "id", "source", "type", "time":
		return name
	case "subject":
		if b.version != v02 {
			return name
		}
	case "datacontenttype":
		if b.version != v02 {
			return name
		}
	case "contenttype":
		if b.version == v02 {
			return "datacontenttype"
		}
	case "dataschema":
		if b.version == v10 {
			return name
		}
	case "schemaurl":
		if b.version != v10 {
			return "dataschema"
		}
	case "datacontentencoding":
		if b.version == v03 {
			return name
		}
	}
	return ""
}

// attribute sets an attribute of any version to its text.
func (b *builder) attribute(name, value string) error {
	known := b.context(name)
	switch known {
	case "id":
		b.ev.ID = value
	case "source":
		b.ev.Source = value
	case "type":
		b.ev.Type = value
	case "subject":
		b.ev.Subject = value
	case "datacontenttype":
		b.ev.DataContentType = value
	case "dataschema":
		b.ev.DataSchema = value
	case "datacontentencoding":
		if b.base64 = strings.EqualFold(value, "base64"); !b.base64 {
			return fmt.Errorf("datacontentencoding must be base64, is %s", quote(value))
		}
	case "time":
		t, err := time.Parse(time.RFC3339Nano, value)
		if err != nil || t.Year() < 1 || t.Year() > 9999 {
			return fmt.Errorf("the attribute %s must be a timestamp of RFC 3339", name)
		}
		b.ev.Time = t
	case "":
		if !legal(name) || name == "data" {
			return fmt.Errorf("the attribute name %s may have small letters and digits only", quote(name))
		}
		b.set(name, value)
		return nil
	default:
		b.set(known, value)
	}
	if value == "" && b.version == v10 {
		return fmt.Errorf("the attribute %s must not be empty", name)
	}
	return nil
}

func (b *builder) set(extension, value string) {
	if b.ev.Extensions == nil {
		b.ev.Extensions = make(map[string]string, 4)
	}
	b.ev.Extensions[extension] = value
}

// extension takes an extension of a version before 1.0, where names and values
// are nearly free.
func (b *builder) extension(name string, value []byte) {
	if value[0] == 'n' {
		return
	}
	if b.old == nil {
		b.old = make(map[string]json.RawMessage, 4)
	}
	b.old[name] = value
	b.lossy = b.lossy || value[0] != '"' || !legal(name)
}

// legal reports whether 1.0 allows the name for an extension.
func legal(name string) bool { return name != "" && bus.PlainExtension(name) == name }

// setExtensions makes extensions of 1.0 out of the older ones.
func (b *builder) setExtensions() error {
	if b.old == nil {
		return nil
	}
	// A name as it is wins over one that becomes the same.
	names := slices.SortedFunc(maps.Keys(b.old), func(x, y string) int {
		if lx, ly := legal(x), legal(y); lx != ly {
			if ly {
				return -1
			}
			return 1
		}
		return strings.Compare(x, y)
	})
	for _, name := range names {
		value := b.old[name]
		alias := bus.PlainExtension(name)
		if alias == "" || reserved(alias) {
			b.lossy = true
			continue
		}
		switch value[0] {
		case '{', '[':
		case '"':
			if s := text(value); s != "" {
				b.set(alias, s)
			} else {
				b.lossy = true
			}
		default:
			b.set(alias, string(value))
		}
	}
	if !b.lossy {
		return nil
	}
	all, err := json.Marshal(b.old)
	if err != nil {
		return fmt.Errorf("extensions: %w", err)
	}
	b.set(bus.ExtensionsAttribute, string(all))
	return nil
}

// reserved reports whether an extension of 1.0 must not have the name.
func reserved(name string) bool {
	return slices.Contains([]string{"id", "source", "type", "specversion", "subject", "time", "datacontenttype", "dataschema", "data", bus.ExtensionsAttribute}, name)
}

// setData sets the data of an event in the JSON format.
func (b *builder) setData() error {
	ev := b.ev
	switch {
	case b.encoded != nil && b.data != nil:
		return errors.New("has both data and data_base64")
	case b.encoded != nil || b.base64 && b.data != nil:
		encoded := b.encoded
		if encoded == nil {
			encoded = b.data
		}
		if encoded[0] != '"' {
			return errors.New("data in base64 must be a string")
		}
		raw, err := base64.StdEncoding.DecodeString(text(encoded))
		if err != nil {
			return errors.New("data is not base64")
		}
		if ev.DataContentType != "" && len(raw) > 0 && bus.IsJSON(ev.DataContentType) && !bus.ValidJSON(raw) {
			return fmt.Errorf("data is not the JSON its content type %s claims", quote(ev.DataContentType))
		}
		if len(raw) > 0 {
			ev.Data = raw
		}
	case b.data == nil:
	case b.data[0] == '"' && !bus.IsJSON(ev.DataContentType):
		ev.Data = []byte(text(b.data))
	default:
		ev.Data = b.data
		if ev.DataContentType == "" {
			ev.DataContentType = "application/json" // what the format says
		}
	}
	return nil
}

// finish checks the event as a whole.
func (b *builder) finish() error {
	ev := b.ev
	if err := b.setExtensions(); err != nil {
		return err
	}
	ev.ProducerID = true
	id, typ, schema := "id", "type", "dataschema"
	switch b.version {
	case v01:
		id, typ, schema = "eventID", "eventType", "schemaURL"
		switch {
		case ev.Type != "" && !eventType.MatchString(ev.Type):
			return fmt.Errorf("eventType %s may have letters, digits, '_', '.' and '-' only", quote(ev.Type))
		case len(ev.Type) > maxEventType:
			return fmt.Errorf("eventType must not be longer than %d characters", maxEventType)
		}
	case v02, v03:
		schema = "schemaurl"
	case v10:
	default:
		return errors.New("specversion or cloudEventsVersion is missing")
	}
	switch {
	case ev.ID == "":
		return fmt.Errorf("%s is missing", id)
	case ev.Type == "":
		return fmt.Errorf("%s is missing", typ)
	case ev.Source == "":
		return errors.New("source is missing")
	}
	if ev.DataSchema != "" && types.ParseURI(ev.DataSchema) == nil {
		return fmt.Errorf("%s is not a URI", schema)
	}
	if b.version == v10 && (!simple(ev.Source) || ev.DataContentType != "" && ev.DataContentType != "application/json") {
		cx := event.EventContextV1{ID: ev.ID, Type: ev.Type}
		if u, err := url.Parse(ev.Source); err == nil {
			cx.Source = types.URIRef{URL: *u}
		}
		if ev.DataContentType != "" && ev.DataContentType != "application/json" {
			cx.DataContentType = &ev.DataContentType
		}
		wrong := cx.Validate()
		for _, name := range []string{"source", "datacontenttype"} {
			if err := wrong[name]; err != nil {
				return fmt.Errorf("the attribute %s is not valid", name)
			}
		}
	}
	n := escapedLen(ev.ID) + escapedLen(ev.Source) + escapedLen(ev.Type) + escapedLen(ev.Subject) +
		escapedLen(ev.DataContentType) + escapedLen(ev.DataSchema)
	for k, v := range ev.Extensions {
		n += len(k) + 8 + escapedLen(v)
	}
	if n > maxAttributes {
		return fmt.Errorf("the attributes are longer than %d bytes", maxAttributes)
	}
	return nil
}

// simple reports whether a text is a URI reference beyond doubt.
func simple(source string) bool {
	for i := 0; i < len(source); i++ {
		switch c := source[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '/':
		default:
			return false
		}
	}
	return source != ""
}

// binary reads an event in the binary content mode: attributes are headers,
// the body is the data. ok is false when the headers have no event.
func binary(h http.Header, body []byte) (ev *bus.Event, ok bool, err error) {
	b := builder{ev: &bus.Event{}}
	id, old := h.Get("Ce-Id"), false
	if v := h["Ce-Specversion"]; len(v) > 0 {
		b.version = v[0]
	} else if v := h["Ce-Cloudeventsversion"]; len(v) > 0 {
		b.version, id, old = v[0], h.Get("Ce-Eventid"), true
	} else {
		return nil, false, nil
	}
	fail := func(err error) (*bus.Event, bool, error) {
		return nil, true, &invalidError{shorten(id), err}
	}
	if err := b.checkVersion(old); err != nil {
		return fail(err)
	}
	for name, lines := range h {
		name, is := strings.CutPrefix(name, "Ce-")
		if !is || len(lines) == 0 {
			continue
		}
		value, ok := decodeHeader(lines[0])
		if !ok || len(lines) > 1 {
			return fail(fmt.Errorf("the header ce-%s is not an attribute", quote(name)))
		}
		if err := b.header(strings.ToLower(name), value); err != nil {
			return fail(err)
		}
	}
	b.ev.DataContentType = h.Get("Content-Type")
	if !utf8.ValidString(b.ev.DataContentType) {
		return fail(errors.New("the content type is not valid"))
	}
	if len(body) > 0 {
		b.ev.Data = body
		if b.ev.DataContentType != "" && bus.IsJSON(b.ev.DataContentType) && !bus.ValidJSON(body) {
			return fail(fmt.Errorf("the body is not the JSON its content type %s claims", quote(b.ev.DataContentType)))
		}
	}
	if err := b.finish(); err != nil {
		return fail(err)
	}
	return b.ev, true, nil
}

// names01 are the headers of CloudEvents 0.1, in small letters.
var names01 = map[string]string{
	"eventid": "eventID", "eventtype": "eventType", "source": "source", "eventtime": "eventTime",
	"schemaurl": "schemaURL", "eventtypeversion": "eventTypeVersion",
}

// header takes the header ce-NAME.
func (b *builder) header(name, value string) error {
	if name == "specversion" || name == "cloudeventsversion" {
		return nil
	}
	if b.version == v01 {
		if known := names01[name]; known != "" {
			return b.attribute(known, value)
		}
		name = strings.TrimPrefix(name, "x-")
	} else if known := b.context(name); known == "datacontenttype" {
		return fmt.Errorf("in the binary mode, Content-Type takes the place of ce-%s", name)
	} else if known == "datacontentencoding" {
		return nil // the body is as it is
	} else if known != "" || b.version == v10 {
		return b.attribute(name, value)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return err
	}
	b.extension(name, raw)
	return nil
}

// decodeHeader undoes the quoting and percent-encoding of a ce-* header.
func decodeHeader(s string) (string, bool) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		var b strings.Builder
		for i := 1; i < len(s)-1; i++ {
			if s[i] == '\\' && i+1 < len(s)-1 {
				i++
			}
			b.WriteByte(s[i])
		}
		s = b.String()
	}
	if strings.IndexByte(s, '%') >= 0 {
		var err error
		if s, err = url.PathUnescape(s); err != nil {
			return "", false
		}
	}
	return s, utf8.ValidString(s)
}

// escapedLen is the length of an attribute on the bus, where some bytes
// become three.
func escapedLen(s string) int {
	n := len(s)
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			n += 2
		}
	}
	return n
}

// shorten cuts what a driver sent to what helps in a text.
func shorten(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

func quote(s string) string { return fmt.Sprintf("%+q", shorten(s)) }
