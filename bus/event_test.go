package bus_test

import (
	"bytes"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
)

func example() *bus.Event {
	return &bus.Event{
		ID: "0190f2a0-7c1e-7bb8-9a53-2f4cf3a1b2c3", Source: "/shop/orders?x=ä b", Type: "order.created", Subject: "order 7",
		DataContentType: "application/json; charset=utf-8", DataSchema: "https://example.com/s#1",
		Time:       time.Date(2026, 3, 1, 12, 30, 0, 123456789, time.FixedZone("", 3600)),
		Extensions: map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x": "100% \"sure\"\r\n"},
		Data:       []byte(`{"id":9007199254740993}`), EventSource: "shop", EventName: "orders.new", ProducerID: true,
		Request: []byte(`{"method":"POST","path":"/orders"}`), Hops: 3, Cause: "0a1b2c", Cursor: "42 ü",
	}
}

// content compares everything but the parsed value.
func content(a, b *bus.Event) bool {
	return a.ID == b.ID && a.Source == b.Source && a.Type == b.Type && a.Subject == b.Subject &&
		a.DataContentType == b.DataContentType && a.DataSchema == b.DataSchema && a.Time.Equal(b.Time) &&
		maps.Equal(a.Extensions, b.Extensions) && bytes.Equal(a.Data, b.Data) && a.EventSource == b.EventSource &&
		a.EventName == b.EventName && a.ProducerID == b.ProducerID && bytes.Equal(a.Request, b.Request) &&
		a.Hops == b.Hops && a.Cause == b.Cause && a.Cursor == b.Cursor
}

func TestEventRoundTrip(t *testing.T) {
	for name, e := range map[string]*bus.Event{
		"full":    example(),
		"minimal": {ID: "1", Source: "s", Type: "t"},
		"names":   {ID: "1", Source: "s", Type: "t", EventSource: "a.b*>", EventName: "ü %"},
	} {
		r := e.Record()
		r.Seq, r.Time = 7, time.Unix(1, 2)
		got, err := bus.DecodeEvent(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !content(e, got) || got.Seq != 7 || !got.StoredAt.Equal(r.Time) {
			t.Errorf("%s: got %+v, want %+v", name, got, e)
		}
		if (r.MsgID != "") != e.ProducerID {
			t.Errorf("%s: MsgID %q, ProducerID %v", name, r.MsgID, e.ProducerID)
		}
	}
}

func TestDerive(t *testing.T) {
	e := example()
	d := e.Derive()
	if !content(e, d) {
		t.Errorf("derived %+v of %+v", d, e)
	}
	d.Extensions["x"], d.Data = "other", []byte("other")
	if !content(e, example()) {
		t.Errorf("changed with its copy: %+v", e)
	}
}

func TestEventHeaders(t *testing.T) {
	r := example().Record()
	want := bus.Header{
		"ce-specversion": {"1.0"}, "ce-id": {"0190f2a0-7c1e-7bb8-9a53-2f4cf3a1b2c3"}, "ce-source": {"/shop/orders?x=%C3%A4%20b"},
		"ce-type": {"order.created"}, "ce-subject": {"order%207"}, "ce-time": {"2026-03-01T12:30:00.123456789+01:00"},
		"ce-dataschema": {"https://example.com/s#1"}, "content-type": {"application/json;%20charset=utf-8"},
		"ce-traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "ce-x": {"100%25%20%22sure%22%0D%0A"},
		"engine-request": {`{"method":"POST","path":"/orders"}`}, "engine-hops": {"3"}, "engine-cause": {"0a1b2c"}, "engine-cursor": {"42%20%C3%BC"}, "engine-producer-id": {"1"},
	}
	if !reflect.DeepEqual(r.Header, want) {
		t.Errorf("got %v\nwant %v", r.Header, want)
	}
	if r.Subject != "engine.events.shop.orders%2Enew" {
		t.Errorf("subject %q", r.Subject)
	}
}

func TestDecodeEventErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*bus.Record)
		want   string
	}{
		"other stream": {func(r *bus.Record) { r.Subject = "engine.jobs.1.a.b" }, "not of the form"},
		"no name":      {func(r *bus.Record) { r.Subject = "engine.events.a" }, "not of the form"},
		"bad token":    {func(r *bus.Record) { r.Subject = "engine.events.a.%zz" }, "subject token"},
		"bad source":   {func(r *bus.Record) { r.Subject = "engine.events.%1.a" }, "subject token"},
		"no id":        {func(r *bus.Record) { delete(r.Header, "ce-id") }, "are required"},
		"no source":    {func(r *bus.Record) { delete(r.Header, "ce-source") }, "are required"},
		"no type":      {func(r *bus.Record) { r.Header["ce-type"] = nil }, "are required"},
		"time":         {func(r *bus.Record) { r.Header["ce-time"] = []string{"yesterday"} }, "ce-time"},
		"hops":         {func(r *bus.Record) { r.Header["engine-hops"] = []string{"x"} }, "engine-hops"},
	} {
		r := example().Record()
		r.Seq = 42
		tc.change(&r)
		if _, err := bus.DecodeEvent(r); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "42") {
			t.Errorf("%s: %v, want %q and the sequence", name, err, tc.want)
		}
	}
}

func TestDedupID(t *testing.T) {
	e := example()
	id := e.DedupID()
	if id != example().DedupID() || len(id) != 24 {
		t.Errorf("id %q", id)
	}
	for name, change := range map[string]func(*bus.Event){
		"source": func(e *bus.Event) { e.Source += "x" }, "id": func(e *bus.Event) { e.ID += "x" },
		"event source": func(e *bus.Event) { e.EventSource += "x" }, "event name": func(e *bus.Event) { e.EventName += "x" },
		"shifted": func(e *bus.Event) { e.EventSource, e.EventName = e.EventSource+"o", e.EventName[1:] },
	} {
		o := example()
		change(o)
		if o.DedupID() == id {
			t.Errorf("another %s has the same id", name)
		}
	}
	o := example()
	o.Data, o.Time, o.Type = nil, time.Time{}, "other"
	if o.DedupID() != id {
		t.Error("the id depends on more than the identity")
	}
}

func TestValue(t *testing.T) {
	for _, tc := range []struct {
		contentType, data string
		want              any
		err               bool
	}{
		{"application/json", `{"a":9007199254740993,"b":1.5,"c":[1e2,-1]}`, map[string]any{"a": int64(9007199254740993), "b": 1.5, "c": []any{100.0, int64(-1)}}, false},
		{"", `7`, int64(7), false},
		{"", `plain`, "plain", false},
		{"application/json", `plain`, nil, true},
		{"application/json", `{} {}`, nil, true},
		{"application/cloudevents+json; x=y", `"s"`, "s", false},
		{"text/plain", `7`, "7", false},
		{"application/octet-stream", "\xff\x00", []byte("\xff\x00"), false},
		{"application/json", ``, nil, false},
		{"", `99999999999999999999`, 1e20, false},
	} {
		e := &bus.Event{DataContentType: tc.contentType, Data: []byte(tc.data)}
		for range 2 {
			got, err := e.Value()
			if (err != nil) != tc.err || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%s %q: got %#v, %v, want %#v", tc.contentType, tc.data, got, err, tc.want)
			}
		}
	}
}

func TestAttributes(t *testing.T) {
	e := example()
	m, err := e.Attributes(true, true)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m["data"], map[string]any{"id": int64(9007199254740993)}) || m["id"] != e.ID ||
		!reflect.DeepEqual(m["request"], map[string]any{"method": "POST", "path": "/orders"}) || len(m["extensions"].(map[string]any)) != 2 {
		t.Errorf("got %v", m)
	}
	if m, err = e.Attributes(false, false); err != nil || m["data"] != nil || m["request"] != nil {
		t.Errorf("got %v, %v", m, err)
	}
	bad := &bus.Event{ID: "1", Data: []byte("{"), DataContentType: "application/json"}
	if m, err = bad.Attributes(true, false); err == nil || m["id"] != "1" {
		t.Errorf("broken data: %v, %v", m, err)
	}
}

func TestTokenProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := string(rapid.SliceOf(rapid.Byte()).Draw(t, "a")), rapid.String().Draw(t, "b")
		ta, tb := bus.Token(a), bus.Token(b)
		if strings.ContainsAny(ta, ".*> \t\r\n") || ta == "" {
			t.Fatalf("token %q of %q", ta, a)
		}
		if (a == b) != (ta == tb) {
			t.Fatalf("%q and %q are %q and %q", a, b, ta, tb)
		}
		if back, err := bus.Untoken(ta); err != nil || back != a {
			t.Fatalf("%q came back as %q, %v", a, back, err)
		}
	})
}

func FuzzToken(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "*", ">", "%", "%41", "ü", "\xff\x00", "a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok := bus.Token(s)
		if tok == "" || strings.ContainsAny(tok, ".*> \t\r\n") {
			t.Fatalf("token %q", tok)
		}
		if back, err := bus.Untoken(tok); err != nil || back != s {
			t.Fatalf("%q came back as %q, %v", s, back, err)
		}
		_, _ = bus.Untoken(s) // never panics
	})
}

func FuzzEventRoundTrip(f *testing.F) {
	f.Add("1", "s", "t", "sub", "k", "v", "es", "en", []byte("{}"), true, int64(0))
	f.Add("%", "ä ", "\"", "\r\n", "x", "%zz", "a.b", "", []byte(nil), false, int64(1e18))
	f.Fuzz(func(t *testing.T, id, source, typ, subject, key, value, es, en string, data []byte, producer bool, ns int64) {
		e := &bus.Event{
			ID: id, Source: source, Type: typ, Subject: subject, Data: data, EventSource: es, EventName: en,
			ProducerID: producer, Time: time.Unix(0, ns),
		}
		if key != "" && value != "" && strings.IndexFunc(key, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) < 0 {
			switch key { // attributes of their own
			case "specversion", "id", "source", "type", "subject", "time", "dataschema":
			default:
				e.Extensions = map[string]string{key: value}
			}
		}
		r := e.Record()
		for k, vs := range r.Header {
			for _, v := range vs {
				if strings.ContainsAny(k+v, "\r\n") {
					t.Fatalf("header %q: %q breaks the line", k, v)
				}
			}
		}
		got, err := bus.DecodeEvent(r)
		if id == "" || source == "" || typ == "" {
			if err == nil {
				t.Fatal("an event without its required attributes was accepted")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if !content(e, got) {
			t.Fatalf("got %+v, want %+v", got, e)
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add("engine.events.a.b", "ce-id", "1", []byte("{}"))
	f.Add("engine.events.%.%", "ce-time", "x", []byte(nil))
	f.Fuzz(func(t *testing.T, subject, k, v string, data []byte) {
		r := bus.Record{Subject: subject, Data: data, Header: bus.Header{"ce-id": {"1"}, "ce-source": {"s"}, "ce-type": {"t"}, k: {v}}}
		e, err := bus.DecodeEvent(r)
		if err != nil {
			return
		}
		_, _ = e.Value()
		_, _ = e.Attributes(true, true)
	})
}

func BenchmarkRecord(b *testing.B) {
	e := example()
	b.ReportAllocs()
	for b.Loop() {
		_ = e.Record()
	}
}

func BenchmarkDecodeEvent(b *testing.B) {
	r := example().Record()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := bus.DecodeEvent(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValue(b *testing.B) {
	data := []byte(`{"orderId":"o-1","total":129.5,"items":[{"sku":"a","qty":2},{"sku":"b","qty":1}],"customer":{"id":9007199254740993}}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (&bus.Event{Data: data}).Value(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkToken(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = bus.EventSubject("shop", "orders")
	}
}
