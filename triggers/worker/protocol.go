package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// protocol is how requests and answers travel.
type protocol interface {
	// request appends call number n.
	request(b []byte, n uint64, r *request) []byte
	// read reads the answer to call number n. A *protocolError says that what
	// came is none.
	read(r *bufio.Reader, n uint64) (answer, error)
}

// request is what a worker is told of a call.
type request struct {
	ctx     context.Context
	call    *triggers.Call
	payload []byte
}

// answer is an answer as it came: err when the function failed, last when the
// worker takes no more calls.
type answer struct {
	last    bool
	payload []byte
	events  []triggers.Emission
	err     *triggers.Error
}

// protocolError says what is wrong with what a worker wrote.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return "not an answer: " + e.text }

func wrong(format string, args ...any) error { return &protocolError{fmt.Sprintf(format, args...)} }

// maxMeta bounds what an answer holds beside its payload.
const maxMeta = triggers.MaxEmissionBytes*4/3 + 1<<20

// frames is the protocol of workers that are ours, on descriptors of their own.
//
// A request is the length of the rest in 4 bytes (big endian), the number of the
// call in 8, the lengths of event and context in 4 each, and event (nothing when
// there is none), context and payload, all JSON. An answer is one byte, R (ready
// to be called), O (fine), E (failed) or D (failed, and the worker ends), the
// number in 8 bytes, the lengths of payload and meta in 4 each, the payload and
// the meta, both JSON. Meta is nothing, {"events": […]}, or {"error": {type,
// message, stacktrace}}.
type frames struct{}

func appendFrame(b, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func (frames) request(b []byte, n uint64, r *request) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, n)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	b = r.call.AppendEvent(b)
	event := len(b) - 20
	b = r.call.AppendBareContext(r.ctx, b)
	binary.BigEndian.PutUint32(b[12:], uint32(event))
	binary.BigEndian.PutUint32(b[16:], uint32(len(b)-20-event))
	b = append(b, r.payload...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

const headSize = 1 + 8 + 4 + 4

func (frames) read(r *bufio.Reader, n uint64) (answer, error) {
	head, err := r.Peek(headSize)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return answer{}, err
	}
	kind, number := head[0], binary.BigEndian.Uint64(head[1:])
	payload, meta := binary.BigEndian.Uint32(head[9:]), binary.BigEndian.Uint32(head[13:])
	kinds := "OED"
	if n == 0 {
		kinds = "RE"
	}
	switch {
	case strings.IndexByte(kinds, kind) < 0 || number != n:
		return answer{}, wrong("it begins with %q", head)
	case payload > triggers.MaxOutput || meta > maxMeta:
		return answer{}, wrong("it would be %d and %d bytes long", payload, meta)
	}
	_, _ = r.Discard(headSize) // is in the buffer
	body := make([]byte, payload+meta)
	if _, err := io.ReadFull(r, body); err != nil {
		return answer{}, err
	}
	a := answer{payload: body[:payload:payload], last: kind == 'D'}
	if r.Buffered() > 0 {
		return answer{}, wrong("more than one came")
	}
	var m members
	if meta > 0 {
		if err := json.Unmarshal(body[payload:], &m); err != nil {
			return answer{}, wrong("%v", err)
		}
	}
	switch {
	case (kind == 'E' || kind == 'D') && m.Error == nil:
		return answer{}, wrong("it has no error")
	case kind == 'O' && !bus.ValidJSON(a.payload):
		return answer{}, wrong("its payload is not JSON")
	}
	return a, m.into(&a)
}

// ndjson is the protocol of any program: one JSON object a line on stdin, one on
// stdout for each.
type ndjson struct{}

func (ndjson) request(b []byte, n uint64, r *request) []byte {
	b = append(b, `{"id":`...)
	b = strconv.AppendUint(b, n, 10)
	b = append(b, `,"context":`...)
	b = r.call.AppendContext(r.ctx, b)
	b = append(b, `,"payload":`...)
	for _, c := range r.payload {
		if c == '\n' || c == '\r' { // between the tokens of JSON that came so
			c = ' '
		}
		b = append(b, c)
	}
	return append(b, '}', '\n')
}

func (ndjson) read(r *bufio.Reader, n uint64) (answer, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if len(line) > triggers.MaxOutput+maxMeta {
				return answer{}, wrong("a line is longer than %d bytes", triggers.MaxOutput+maxMeta)
			}
			continue
		case err != nil:
			return answer{}, err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			break
		}
		line = line[:0]
	}
	if r.Buffered() > 0 {
		return answer{}, wrong("more than one line came")
	}
	if payload, ok := plain(line, n); ok && len(payload) <= triggers.MaxOutput {
		return answer{payload: payload}, nil
	}
	var m members
	if err := json.Unmarshal(line, &m); err != nil || line[0] != '{' {
		return answer{}, wrong("a line is no JSON object: %s", short(line))
	}
	if m.ID == nil || *m.ID != n {
		return answer{}, wrong("its id is not that of the call, %d: %s", n, short(line))
	}
	a := answer{payload: m.Payload}
	if len(a.payload) == 0 {
		a.payload = []byte("null")
	}
	if len(a.payload) > triggers.MaxOutput {
		return answer{}, triggers.Errorf(triggers.FunctionError, "the output is larger than %d bytes", triggers.MaxOutput)
	}
	return a, m.into(&a)
}

// plain returns the payload of an answer to call number n that has nothing else
// in it, as most have: it need not be taken apart.
func plain(line []byte, n uint64) (payload []byte, ok bool) {
	line = bytes.Trim(line, " \t\r\n")
	for _, token := range [...]string{"{", `"id"`, ":", strconv.FormatUint(n, 10), ",", `"payload"`, ":"} {
		if line = bytes.TrimLeft(line, " "); !bytes.HasPrefix(line, []byte(token)) {
			return nil, false
		}
		line = line[len(token):]
	}
	if line, ok = bytes.CutSuffix(line, []byte("}")); !ok || !bus.ValidJSON(line) {
		return nil, false
	}
	return bytes.Trim(line, " \t\r\n"), true
}

func short(line []byte) string {
	line = bytes.TrimSpace(line)
	if len(line) > maxExcerpt {
		line = append(line[:maxExcerpt:maxExcerpt], "…"...)
	}
	return fmt.Sprintf("%q", line)
}

// members are those of an answer in JSON.
type members struct {
	ID      *uint64
	Payload json.RawMessage
	Events  []emission
	Error   *struct {
		Type       triggers.Class
		Message    string
		Stacktrace []string
	}
}

// emission is an emitted event, in the form of CloudEvents JSON.
type emission struct {
	Type, Source, Subject, DataContentType, DataSchema string
	Time                                               string
	Extensions                                         map[string]string
	Data                                               json.RawMessage
	DataBase64                                         *string `json:"data_base64"`
}

// into checks the members and puts them into a.
func (m *members) into(a *answer) error {
	if e := m.Error; e != nil {
		switch e.Type {
		case triggers.InputError, triggers.FunctionError, triggers.SystemError:
		case "":
			e.Type = triggers.FunctionError
		default:
			return wrong("its error is of type %q; there are %s, %s and %s", e.Type, triggers.InputError, triggers.FunctionError, triggers.SystemError)
		}
		a.payload, a.err = nil, &triggers.Error{Class: e.Type, Message: e.Message, Stacktrace: e.Stacktrace}
		return nil
	}
	total := 0
	for i, e := range m.Events {
		t, err := e.emission()
		if err != nil {
			return triggers.Errorf(triggers.FunctionError, "emitted event %d: %w", i+1, err)
		}
		total += len(t.Data)
		a.events = append(a.events, t)
	}
	if len(m.Events) > triggers.MaxEmissions || total > triggers.MaxEmissionBytes {
		return triggers.Errorf(triggers.FunctionError, "the call emits more than %d events or %d bytes", triggers.MaxEmissions, triggers.MaxEmissionBytes)
	}
	return nil
}

func (e *emission) emission() (triggers.Emission, error) {
	t := triggers.Emission{
		Type: e.Type, Source: e.Source, Subject: e.Subject, DataContentType: e.DataContentType, DataSchema: e.DataSchema, Extensions: e.Extensions,
	}
	if e.Time != "" {
		at, err := time.Parse(time.RFC3339Nano, e.Time)
		if err != nil {
			return t, errors.New("its time is no timestamp of RFC 3339")
		}
		t.Time = at
	}
	switch {
	case e.DataBase64 != nil:
		data, err := base64.StdEncoding.DecodeString(*e.DataBase64)
		if err != nil {
			return t, errors.New("its data_base64 is not base64")
		}
		t.Data = data
	case len(e.Data) == 0:
	case !bus.IsJSON(t.DataContentType):
		var s string
		if json.Unmarshal(e.Data, &s) != nil {
			return t, fmt.Errorf("its data is no text, it cannot be %s", t.DataContentType)
		}
		t.Data = []byte(s)
	default:
		t.Data = e.Data
		if t.DataContentType == "" {
			t.DataContentType = "application/json"
		}
	}
	return t, nil
}
