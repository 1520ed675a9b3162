package engine_test

import (
	"strings"
	"testing"

	"github.com/sensor-engine/engine/engine"
)

// TestChecksOfTheWholeSet has a case for each code of this package and asserts
// the exact places.
func TestChecksOfTheWholeSet(t *testing.T) {
	source := func(name, events string) string {
		return head + "kind: EventSource\nmetadata: {name: " + name + "}\nspec:\n  webhook:\n" + events
	}
	for _, tt := range []struct {
		name, spec string
		max        int
		want       []string
	}{
		{
			name: "same path in two sources",
			spec: source("a", "    one: {path: /orders}\n") + "---\n" + source("b", "    two: {path: /orders}\n"),
			want: []string{"s.yaml:13:5: error[route-conflict] spec.webhook.two: its route /orders meets the route /orders of EventSource/a, event one, at s.yaml:6:5 (give one of them another path or other methods)"},
		},
		{
			name: "patterns that overlap",
			spec: source("a", "    one: {path: \"/{shop}/new\"}\n    two: {path: \"/orders/{id}\"}\n"),
			want: []string{"s.yaml:7:5: error[route-conflict] spec.webhook.two: its route /orders/{id} meets the route /{shop}/new of EventSource/a, event one, at s.yaml:6:5 (give one of them another path or other methods)"},
		},
		{
			name: "the more specific one wins, and methods tell routes apart",
			spec: source("a", "    one: {path: /orders/new}\n    two: {path: \"/orders/{id}\"}\n    three: {path: /orders/new, methods: [PUT]}\n"),
		},
		{
			name: "larger than the bus takes", max: 1 << 20,
			spec: source("a", "    one: {path: /a, maxBody: 1MiB}\n    two: {path: /b, maxBody: 2MiB}\n"),
			want: []string{"s.yaml:7:5: warning[event-too-large] spec.webhook.two: it accepts events of 2MiB, the bus takes 1MiB: what is larger is refused (a restart raises the limit of the engine's own bus; on another one raise its max_payload, or set a smaller limit here)"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			loaded := catalog().Loader().LoadBytes("s.yaml", []byte(tt.spec))
			if len(loaded.Diagnostics) > 0 {
				t.Fatal(loaded.Diagnostics)
			}
			c := engine.NewCompiler(catalog())
			c.MaxEvent = tt.max
			var got []string
			for _, d := range c.Check(loaded.Set()) {
				got = append(got, d.String())
			}
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}
