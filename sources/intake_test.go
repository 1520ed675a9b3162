package sources_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// intake loads the intake of an event that is written in YAML's flow style.
func intake(t testing.TB, text string) (*sources.Intake, specs.Diagnostics) {
	t.Helper()
	types := specs.Types{Sources: []specs.Type{{Name: "probe", Doc: "A probe.", New: func() any { return &struct{}{} }}}}
	doc := "apiVersion: engine/v1\nkind: EventSource\nmetadata: {name: s}\nspec:\n  probe:\n    e: " + text + "\n"
	loaded := specs.Loader{Types: types}.LoadBytes("s.yaml", []byte(doc))
	if loaded.Diagnostics.HasErrors() {
		return nil, loaded.Diagnostics
	}
	es := loaded.Resources[0].Spec.(*specs.EventSource)
	return sources.CompileIntake(&es.Events[0].Intake, "spec.probe.e")
}

func TestIntake(t *testing.T) {
	event := func() *bus.Event {
		return &bus.Event{
			ID: "1", Source: "/s/e", Type: "probe.seen", Time: time.Unix(1700000000, 0).UTC(), DataContentType: "application/json",
			Data: []byte(`{"n":7,"state":"paid","order":{"id":9007199254740993},"list":[1]}`), Extensions: map[string]string{"region": "eu"},
			EventSource: "s", EventName: "e", Cursor: "c7",
			Request: []byte(`{"headers":{"x-kind":"push"}}`),
		}
	}
	for name, tt := range map[string]struct {
		in      string
		verdict sources.Verdict
		problem string
		want    func(*bus.Event)
	}{
		"nothing":          {in: `{}`},
		"wanted":           {in: `{filter: data.n > 3}`},
		"not wanted":       {in: `{filter: data.n > 7}`, verdict: sources.Filtered},
		"by attribute":     {in: `{filter: 'type == "probe.seen" && extensions.region == "eu"'}`},
		"by request":       {in: `{filter: 'request.headers["x-kind"] == "pull"'}`, verdict: sources.Filtered},
		"filter missing":   {in: `{filter: data.m > 3}`, verdict: sources.FilterMissing, problem: "filter: missing `data.m`"},
		"filter fails":     {in: `{filter: int(data.state) > 3}`, verdict: sources.FilterFailed, problem: "filter: "},
		"dedup by number":  {in: `{dedup: data.order.id}`, want: func(e *bus.Event) { e.ID, e.ProducerID = "9007199254740993", true }},
		"dedup by text":    {in: `{dedup: data.state + "/" + string(data.n)}`, want: func(e *bus.Event) { e.ID, e.ProducerID = "paid/7", true }},
		"dedup by list":    {in: `{dedup: '[data.n, data.state]'}`, want: func(e *bus.Event) { e.ID, e.ProducerID = `[7,"paid"]`, true }},
		"dedup missing":    {in: `{dedup: data.key}`, verdict: sources.Unshaped, problem: "dedup: it has no value"},
		"dedup empty":      {in: `{dedup: '""'}`, verdict: sources.Unshaped, problem: "dedup: it has no value"},
		"type and subject": {in: `{type: "order.${ data.state }", subject: "${ data.order.id }"}`, want: func(e *bus.Event) { e.Type, e.Subject = "order.paid", "9007199254740993" }},
		"constant type":    {in: `{type: order}`, want: func(e *bus.Event) { e.Type = "order" }},
		"type missing":     {in: `{type: "${ data.kind }"}`, verdict: sources.Unshaped, problem: "type: missing `data.kind`"},
		"data":             {in: `{data: {count: "${ data.n }", at: "${ id }", all: [1, "${ data.order }"]}}`, want: func(e *bus.Event) { e.Data = []byte(`{"all":[1,{"id":9007199254740993}],"at":"1","count":7}`) }},
		"constant data":    {in: `{data: {warehouse: amsterdam}}`, want: func(e *bus.Event) { e.Data = []byte(`{"warehouse":"amsterdam"}`) }},
		"null data":        {in: `{data: null}`, want: func(e *bus.Event) { e.Data = []byte(`null`) }},
		"data missing":     {in: `{type: order, data: {a: "${ data.a.b }"}}`, verdict: sources.Unshaped, problem: "missing " + "`data.a`"},
		"data absent":      {in: `{data: {a: "${ data.a }"}}`, want: func(e *bus.Event) { e.Data = []byte(`{"a":null}`) }},
		"data fails":       {in: `{type: order, data: {a: "${ int(data.state) }"}}`, verdict: sources.Unshaped, problem: "data: "},
		"labels":           {in: `{labels: {team: payments, region: "${ data.state }"}}`, want: func(e *bus.Event) { e.Extensions["team"], e.Extensions["region"] = "payments", "paid" }},
		"all from what it was": {
			in: `{filter: 'type == "probe.seen"', type: "${ data.state }", subject: "${ type }", dedup: type, data: "${ data.n }", labels: {was: "${ id }"}}`,
			want: func(e *bus.Event) {
				e.Type, e.Subject, e.ID, e.ProducerID, e.Data = "paid", "probe.seen", "probe.seen", true, []byte("7")
				e.Extensions["was"] = "1"
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in, ds := intake(t, tt.in)
			if len(ds) > 0 {
				t.Fatal(ds)
			}
			was := event()
			got, verdict, err := in.Apply(was)
			if verdict != tt.verdict || (err != nil) != (tt.problem != "") || err != nil && !strings.Contains(err.Error(), tt.problem) {
				t.Fatalf("verdict %d, %v; want %d, %q", verdict, err, tt.verdict, tt.problem)
			}
			if !same(was, event()) {
				t.Errorf("the incoming event was changed: %+v", was)
			}
			want := event()
			switch verdict {
			case sources.Filtered, sources.FilterMissing, sources.FilterFailed:
				if got != nil {
					t.Errorf("%+v", got)
				}
				return
			case sources.Unshaped:
				want.Extensions[sources.ProblemExtension] = err.Error()
			case sources.Accepted:
				if tt.want != nil {
					tt.want(want)
				}
			}
			if !same(got, want) {
				t.Errorf("stored\n%+v\nwant\n%+v", got, want)
			}
		})
	}
}

func same(a, b *bus.Event) bool {
	return a.ID == b.ID && a.Source == b.Source && a.Type == b.Type && a.Subject == b.Subject && a.Time.Equal(b.Time) &&
		a.DataContentType == b.DataContentType && string(a.Data) == string(b.Data) && maps.Equal(a.Extensions, b.Extensions) &&
		a.EventSource == b.EventSource && a.EventName == b.EventName && a.ProducerID == b.ProducerID && a.Cursor == b.Cursor &&
		string(a.Request) == string(b.Request)
}

func TestIntakeDiagnostics(t *testing.T) {
	for in, want := range map[string]string{
		`{filter: data.n +}`:                 "s.yaml:6:",
		`{filter: dta.n > 1}`:                "dta",
		`{filter: '"text"'}`:                 "spec.probe.e.filter",
		`{type: "${ dta.kind }"}`:            "spec.probe.e.type",
		`{data: {a: ["${ nothing }"]}}`:      "spec.probe.e.data",
		`{labels: {Team: x}}`:                "not a valid name of an extension attribute",
		`{labels: {datacontenttype: x}}`:     "an attribute of CloudEvents itself",
		`{rateLimit: {events: 0}}`:           "at least 1",
		`{rateLimit: {per: 1s}}`:             "missing",
		`{rateLimit: {events: 1, per: 0ms}}`: "at least 1ms",
		`{filtr: data.n > 1}`:                `did you mean "filter"`,
	} {
		_, ds := intake(t, in)
		text := ""
		for _, d := range ds {
			text += d.String() + "\n"
		}
		if !ds.HasErrors() || !strings.Contains(text, want) {
			t.Errorf("%s: %q, want an error with %q", in, text, want)
		}
	}
}

func BenchmarkIntake(b *testing.B) {
	ev := &bus.Event{
		ID: "1", Source: "/s/e", Type: "probe.seen", DataContentType: "application/json", EventSource: "s", EventName: "e",
		Data: []byte(`{"n":7,"state":"paid","order":{"id":9007199254740993},"list":[1]}`),
	}
	for name, text := range map[string]string{
		"none": `{}`, "attribute": `{filter: 'type == "probe.seen"'}`, "data": `{filter: data.n > 3}`,
		"all": `{filter: data.n > 3, dedup: data.order.id, type: "order.${ data.state }", data: {order: "${ data.order }"}, labels: {team: payments}}`,
	} {
		in, ds := intake(b, text)
		if len(ds) > 0 {
			b.Fatal(ds)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := in.Apply(ev.Derive()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
