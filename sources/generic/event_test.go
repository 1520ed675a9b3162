package generic

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources/generic/eventing"
)

func TestContentType(t *testing.T) {
	for payload, want := range map[string]string{
		`{"a": 1}`:        "application/json",
		" \n\t[1, 2]\r\n": "application/json",
		`{"a": 1`:         "text/plain; charset=utf-8",
		`42`:              "text/plain; charset=utf-8",
		`"x"`:             "text/plain; charset=utf-8",
		`hällo`:           "text/plain; charset=utf-8",
		"  ":              "text/plain; charset=utf-8",
		"\xff\xfe":        "application/octet-stream",
		"{\xff}":          "application/octet-stream",
		"":                "",
	} {
		if ev, _, err := convert(&eventing.Event{Payload: []byte(payload)}, ""); err != nil || ev.DataContentType != want {
			t.Errorf("%q is %q (%v), want %q", payload, ev.DataContentType, err, want)
		}
	}
	for _, tt := range []struct{ spec, message, want string }{
		{"application/json", "", "application/json"},
		{"application/json", "text/csv", "text/csv"},
		{"", "text/csv", "text/csv"},
	} {
		if ev, _, err := convert(&eventing.Event{Payload: []byte("42"), ContentType: tt.message}, tt.spec); err != nil || ev.DataContentType != tt.want {
			t.Errorf("%+v becomes %q (%v)", tt, ev.DataContentType, err)
		}
	}
}

// TestLeftOut: what CloudEvents do not allow is named, and the event comes all
// the same.
func TestLeftOut(t *testing.T) {
	for _, name := range []string{"", "Upper", "with-dash", "ünicode", "id", "specversion", "data", strings.Repeat("x", 257)} {
		ev, leftOut, err := convert(&eventing.Event{Payload: []byte("x"), Attributes: map[string]string{name: "v", "good1": "w"}}, "")
		if err != nil || len(leftOut) != 1 || leftOut[0] != name || len(ev.Extensions) != 1 || ev.Extensions["good1"] != "w" {
			t.Errorf("%q: left out %q, extensions %v (%v)", name, leftOut, ev.Extensions, err)
		}
	}
	ev, leftOut, err := convert(&eventing.Event{Payload: []byte("x"), Time: &timestamppb.Timestamp{Seconds: 1 << 60}}, "")
	if err != nil || len(leftOut) != 1 || leftOut[0] != "time" || !ev.Time.IsZero() {
		t.Errorf("an impossible time: left out %q, %v (%v)", leftOut, ev.Time, err)
	}
}

// FuzzConvert: whatever bytes a server sends, they are refused, or become an
// event that the bus takes and that can be read back.
func FuzzConvert(f *testing.F) {
	for _, m := range []*eventing.Event{
		{Name: "n", Payload: []byte(`{"a": 1}`)},
		{Payload: []byte("x"), Id: "1", Type: "t", Source: "/s", Subject: "ü \x00\n", Time: &timestamppb.Timestamp{Seconds: 1, Nanos: 1}, ContentType: "text/plain", Cursor: "\r\n%"},
		{Attributes: map[string]string{"a": "\x7f", "dataschema": "urn:x", "Bad": ""}},
		{Cursor: strings.Repeat("ü", 2048)},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x1a\x05hello"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m eventing.Event
		if proto.Unmarshal(b, &m) != nil {
			t.SkipNow()
		}
		ev, _, err := convert(&m, "")
		if err != nil {
			if asRefused(err) == nil {
				t.Errorf("the error is no refusal: %v", err)
			}
			return
		}
		if ev.ProducerID != (m.Id != "") {
			t.Errorf("the producer's id %q: %v", m.Id, ev.ProducerID)
		}
		ev.EventSource, ev.EventName = "s", "e"
		if ev.ID == "" {
			ev.ID = "x"
		}
		if ev.Source == "" {
			ev.Source = "/s/e"
		}
		if ev.Type == "" {
			ev.Type = DefaultType
		}
		rec := ev.Record()
		headers := 0
		for k, vs := range rec.Header {
			for _, v := range vs {
				headers += len(k) + len(v) + 4
				if strings.ContainsAny(v, "\r\n\x00") {
					t.Errorf("header %s has a control character: %q", k, v)
				}
			}
		}
		if headers > 64<<10 {
			t.Errorf("the headers have %d bytes", headers)
		}
		back, err := bus.DecodeEvent(rec)
		if err != nil {
			t.Fatalf("cannot be read back: %v", err)
		}
		if string(back.Data) != string(m.Payload) || back.Subject != m.Subject || back.Cursor != m.Cursor || len(back.Extensions) != len(ev.Extensions) || !back.Time.Equal(ev.Time) {
			t.Errorf("read back as %+v, want %+v", back, ev)
		}
	})
}
