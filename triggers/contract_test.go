package triggers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs/jsonschema"
)

type invoke func(ctx context.Context, c *Call) (Result, error)

func (f invoke) Invoke(ctx context.Context, c *Call) (Result, error) { return f(ctx, c) }

type stored struct {
	events []*bus.Event
	err    error
}

func (s *stored) Publish(_ context.Context, ev *bus.Event) error {
	if s.err == nil {
		s.events = append(s.events, ev)
	}
	return s.err
}

func schema(t *testing.T, text string) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContractOrder(t *testing.T) {
	const name = `{"type":"object","properties":{"name":{"type":"string","pattern":"^[A-Za-z]+$"}},"required":["name"]}`
	expired, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	cancelled, stop := context.WithCancel(t.Context())
	stop()
	for _, tc := range []struct {
		what      string
		ctx       context.Context
		data      string
		secrets   []string
		result    Result
		err       error
		publish   error
		want      string
		class     Class
		permanent bool
		called    bool
	}{
		{what: "fine", data: `{"name":"Jon"}`, result: Result{Output: []byte(`"Hello"`), ContentType: "application/json"}, called: true},
		{what: "bad input is refused before the call and before secrets", data: `{"name":"J0n"}`, secrets: []string{"absent"}, want: "InputError: Input invalid against schema: /name: J0n does not match", class: InputError, permanent: true},
		{what: "no data", want: "InputError: Input invalid against schema: got null, want object", class: InputError, permanent: true},
		{what: "data that is no JSON", data: `{"name"`, want: "InputError: Invalid Input: the data of event e is not", class: InputError, permanent: true},
		{what: "missing secret", data: `{"name":"Jon"}`, secrets: []string{"absent"}, want: "InputError: error when retrieving secrets from secret store: no absent", class: InputError, permanent: true},
		{what: "bad output", data: `{"name":"Jon"}`, result: Result{Output: []byte(`1`), ContentType: "application/json", Events: []Emission{{Type: "t"}}}, want: "FunctionError: Output invalid against schema: got number, want string", class: FunctionError, called: true},
		{what: "no output", data: `{"name":"Jon"}`, want: "FunctionError: Output invalid against schema: got null, want string", class: FunctionError, called: true},
		{what: "text output", data: `{"name":"Jon"}`, result: Result{Output: []byte("Hello"), ContentType: "text/plain"}, called: true},
		{what: "cut output", data: `{"name":"Jon"}`, result: Result{Output: []byte(`"Hel`), Truncated: true}, want: "too large to be looked at", class: FunctionError, called: true},
		{what: "its own failure", data: `{"name":"Jon"}`, err: errors.New("no"), want: "no", class: FunctionError, called: true},
		{what: "late", ctx: expired, data: `{"name":"Jon"}`, want: "FunctionError: Did not invoke, already exceeded timeout", class: FunctionError},
		{what: "cancelled", ctx: cancelled, data: `{"name":"Jon"}`, want: "context canceled", class: SystemError},
		{what: "emitted events cannot be stored", data: `{"name":"Jon"}`, result: Result{Output: []byte(`""`), ContentType: "application/json", Events: []Emission{{Type: "t"}}}, publish: bus.ErrFull, want: "SystemError: emitted event 1, t, cannot be stored", class: SystemError, called: true},
		{what: "emitted event too large", data: `{"name":"Jon"}`, result: Result{Output: []byte(`""`), ContentType: "application/json", Events: []Emission{{Type: "t"}}}, publish: bus.ErrTooLarge, want: "FunctionError: emitted event 1, t: ", class: FunctionError, permanent: true, called: true},
		{what: "emitted event without a type", data: `{"name":"Jon"}`, result: Result{Output: []byte(`""`), ContentType: "application/json", Events: []Emission{{Type: "t"}, {}}}, want: "FunctionError: emitted event 2: type is empty", class: FunctionError, permanent: true, called: true},
		{what: "bad extension", data: `{"name":"Jon"}`, result: Result{Output: []byte(`""`), ContentType: "application/json", Events: []Emission{{Type: "t", Extensions: map[string]string{"a-b": "c"}}}}, want: "is not a-b", class: FunctionError, permanent: true, called: true},
	} {
		t.Run(tc.what, func(t *testing.T) {
			called := false
			h := &stored{err: tc.publish}
			f := &Contract{
				Function: invoke(func(context.Context, *Call) (Result, error) { called = true; return tc.result, tc.err }),
				Input:    schema(t, name), Output: schema(t, `{"type":"string"}`), Secrets: tc.secrets, Host: h, MaxHops: 16,
				Resolve: func(name string) (map[string]string, error) { return nil, errors.New("no " + name) },
			}
			ctx := tc.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			_, err := f.Invoke(ctx, &Call{Key: "k", Sensor: "s", Event: &bus.Event{ID: "e", DataContentType: "application/json", Data: []byte(tc.data)}})
			if called != tc.called {
				t.Errorf("called: %v", called)
			}
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || ClassOf(err) != tc.class || Permanent(err) != tc.permanent || len(h.events) > 0 {
				t.Errorf("%v (%s, permanent %v, %d events)", err, ClassOf(err), Permanent(err), len(h.events))
			}
		})
	}
}

func TestSecretsAreMergedAndMasked(t *testing.T) {
	values := map[string]map[string]string{"a": {"x": "a-secret-x", "y": "a-secret-y"}, "b": {"y": "b-secret-y"}, "c": {"x": "c-secret-x", "z": "c-secret-z"}}
	h := &stored{}
	var got map[string]string
	f := &Contract{
		Secrets: []string{"a", "b"}, Host: h, MaxHops: 16,
		Resolve: func(name string) (map[string]string, error) { return values[name], nil },
		Mask: func(b []byte) []byte {
			return []byte(strings.NewReplacer("a-secret-x", "***", "c-secret-z", "***").Replace(string(b)))
		},
	}
	f.Function = invoke(func(_ context.Context, c *Call) (Result, error) {
		got = c.Secrets
		return Result{Events: []Emission{{Type: "t", Subject: "a-secret-x", Data: []byte(`"c-secret-z"`), Extensions: map[string]string{"e": "a-secret-x"}}}}, nil
	})
	if _, err := f.Invoke(t.Context(), &Call{Key: "k", Function: "f", Grants: []string{"c"}}); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"x": "c-secret-x", "y": "b-secret-y", "z": "c-secret-z"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if ev := h.events[0]; ev.Subject != "***" || string(ev.Data) != `"***"` || ev.Extensions["e"] != "***" {
		t.Errorf("%+v", ev)
	}
	for _, err := range []error{
		&Error{Class: FunctionError, Message: "a-secret-x", Stacktrace: []string{"at c-secret-z"}},
		&PermanentError{fmt.Errorf("it said a-secret-x: %w", &Error{Class: InputError, Message: "c-secret-z", Stacktrace: []string{"a-secret-x"}})},
		errors.New("plain a-secret-x"),
	} {
		f.Function = invoke(func(context.Context, *Call) (Result, error) { return Result{}, err })
		_, masked := f.Invoke(t.Context(), &Call{Key: "k"})
		text := masked.Error()
		if e, ok := errors.AsType[*Error](masked); ok {
			text += e.Error() + strings.Join(e.Stacktrace, " ")
		}
		if strings.Contains(text, "secret") || !strings.Contains(text, "***") || !errors.Is(masked, err) {
			t.Errorf("%v", masked)
		}
	}
}

func TestEmittedEvents(t *testing.T) {
	h := &stored{}
	c := &Call{Key: "k", Sensor: "s", Trigger: "t", Function: "f", Event: &bus.Event{ID: "e", Type: "cause", Hops: 3, Extensions: map[string]string{"traceparent": "00-1", "other": "x"}}}
	at := time.Unix(7, 0).UTC()
	err := c.Emit(t.Context(), h, []Emission{
		{Type: "a", Data: []byte("1"), DataContentType: "application/json"},
		{Type: "b", Source: "/mine", Subject: "it", Time: at, DataSchema: "https://x", Extensions: map[string]string{"traceparent": "", "own": "1"}},
	}, 16)
	if err != nil || len(h.events) != 2 {
		t.Fatal(err, h.events)
	}
	a, b := h.events[0], h.events[1]
	if a.ID != "k/0" || a.Type != "a" || a.Source != "/sensors/s" || a.Hops != 4 || a.Cause != "k" || !a.ProducerID || a.Time.IsZero() ||
		a.EventSource != bus.SourcePublish || a.EventName != "s" || !reflect.DeepEqual(a.Extensions, map[string]string{"traceparent": "00-1"}) {
		t.Errorf("%+v", a)
	}
	if b.ID != "k/1" || b.Source != "/mine" || b.Subject != "it" || b.DataSchema != "https://x" || !b.Time.Equal(at) || !reflect.DeepEqual(b.Extensions, map[string]string{"own": "1"}) {
		t.Errorf("%+v", b)
	}
	c.Event.Hops = 16
	if err := c.Emit(t.Context(), h, []Emission{{Type: "a"}}, 16); !Permanent(err) || !strings.Contains(err.Error(), "hop limit 16") {
		t.Error(err)
	}
	if len(h.events) != 2 {
		t.Error("a loop was fed")
	}
}

func TestPayload(t *testing.T) {
	for _, tc := range []struct {
		typ, data, want string
		input           any
	}{
		{"", "", "null", nil},
		{"application/json", `{"id":1234567890123456789}`, `{"id":1234567890123456789}`, nil},
		{"", `[1]`, `[1]`, nil},
		{"", `plain`, `"plain"`, nil},
		{"text/plain", `{"a":1}`, `"{\"a\":1}"`, nil},
		{"application/octet-stream", "\xff\x00", `"/wA="`, nil},
		{"application/json", "\"\xff\"", "\"\uFFFD\"", nil},
		{"application/json", `{"a":1}`, `{"b":2}`, map[string]any{"b": 2}},
		{"application/json", `{`, "", nil},
	} {
		c := &Call{Event: &bus.Event{DataContentType: tc.typ, Data: []byte(tc.data)}, Input: tc.input, HasInput: tc.input != nil}
		got, err := c.Payload()
		if string(got) != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("%s %q: %s, %v", tc.typ, tc.data, got, err)
		}
	}
	if got, err := (&Call{}).Payload(); string(got) != "null" || err != nil {
		t.Error(string(got), err)
	}
	if _, err := (&Call{HasInput: true, Input: func() {}}).Payload(); ClassOf(err) != InputError || err == nil {
		t.Error(err)
	}
}

func TestReadable(t *testing.T) {
	for _, tc := range []struct {
		data, want string
		code       bool
		call       Call
	}{
		{data: "", want: ""},
		{data: " null ", want: ""},
		{data: "plain <b>", want: "plain <b>"},
		{data: `{"a":[1],"b":"<"}`, want: "{\n  \"a\": [\n    1\n  ],\n  \"b\": \"<\"\n}", code: true},
		{data: "{", want: "{"},
		{data: "x", call: Call{HasInput: true}, want: ""},
		{data: "x", call: Call{HasInput: true, Input: "in <b>"}, want: "in <b>"},
		{data: "x", call: Call{HasInput: true, Input: json.RawMessage(`"in"`)}, want: "in"},
		{data: "x", call: Call{HasInput: true, Input: json.RawMessage(`{"n":12345678901234567890}`)}, want: "{\n  \"n\": 12345678901234567890\n}", code: true},
		{data: "x", call: Call{HasInput: true, Input: map[string]any{"n": int64(1234567890123456789), "b": "<"}}, want: "{\n  \"b\": \"<\",\n  \"n\": 1234567890123456789\n}", code: true},
	} {
		c := tc.call
		c.Event = &bus.Event{Data: []byte(tc.data)}
		if got, code, err := c.Readable(); got != tc.want || code != tc.code || err != nil {
			t.Errorf("%q %+v: %q, %v, %v", tc.data, tc.call.Input, got, code, err)
		}
	}
	for _, c := range []*Call{{Event: &bus.Event{ID: "e", Data: []byte("\xff")}}, {HasInput: true, Input: json.RawMessage("{")}, {HasInput: true, Input: func() {}}} {
		if _, _, err := c.Readable(); ClassOf(err) != InputError || err == nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if s, code, err := (&Call{}).Readable(); s != "" || code || err != nil {
		t.Error(s, code, err)
	}
}

func TestContext(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Date(2018, 8, 21, 10, 0, 0, 123e6, time.UTC))
	defer cancel()
	for _, tc := range []struct {
		ctx  context.Context
		call *Call
		want string
	}{
		{t.Context(), &Call{Key: "k", Attempt: 2}, `{"key":"k","attempt":2,"secrets":{}}`},
		{ctx, &Call{
			Key: "k", Attempt: 1, Function: "f", Sensor: "s", Trigger: "t", Secrets: map[string]string{"b": "2", "a": "1"}, HTTPContext: []byte(`{"method":"GET"}`),
			Event: &bus.Event{
				ID: "e", Type: "a.b", Source: "/s", Subject: "sub", DataContentType: "application/json", DataSchema: "https://x", Time: time.Unix(0, 5).UTC(), Data: []byte("1"),
				Extensions: map[string]string{"traceparent": "00", bus.EventTypeVersionAttribute: "1"},
			},
		}, `{"key":"k","attempt":1,"function":"f","sensor":"s","trigger":"t","deadline":"2018-08-21T10:00:00.123Z","secrets":{"a":"1","b":"2"},"httpContext":{"method":"GET"},
			"event":{"specversion":"1.0","cloudEventsVersion":"0.1","eventID":"e","id":"e","eventType":"a.b","type":"a.b","source":"/s","subject":"sub","contentType":"application/json","datacontenttype":"application/json",
			"schemaURL":"https://x","dataschema":"https://x","eventTypeVersion":"1","eventTime":"1970-01-01T00:00:00.000000005Z","time":"1970-01-01T00:00:00.000000005Z",
			"extensions":{"traceparent":"00"}}}`},
		{
			t.Context(), &Call{Event: &bus.Event{Extensions: map[string]string{"callbackurl": "u", "label": "l", bus.ExtensionsAttribute: `{"callback-url":"u","n":1}`}}},
			`{"key":"","attempt":0,"secrets":{},"event":{"specversion":"1.0","cloudEventsVersion":"0.1","extensions":{"callback-url":"u","n":1,"label":"l"}}}`,
		},
		{
			t.Context(), &Call{Event: &bus.Event{Extensions: map[string]string{"label": "l", bus.ExtensionsAttribute: `{ }`}}},
			`{"key":"","attempt":0,"secrets":{},"event":{"specversion":"1.0","cloudEventsVersion":"0.1","extensions":{"label":"l"}}}`,
		},
	} {
		var got, want any
		b := tc.call.AppendContext(tc.ctx, nil)
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %s\nwant %s", b, tc.want)
		}
	}
}
