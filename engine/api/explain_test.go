package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/sensors"
)

// TestExplain asks a running engine why.
func TestExplain(t *testing.T) {
	r := start(t, Options{})
	r.emit("order", "o1", `{"total":180}`)
	r.emit("order", "o2", `{"total":80}`)
	r.emit("a", "a1", `{"id":"k1"}`)
	r.emit("b", "b1", `{"id":"k2"}`)
	r.emit("b", "b2", `{"id":"k1"}`)
	ask := func(query string) engine.Explained {
		t.Helper()
		var out engine.Explained
		eventually(t, func() error {
			if r.get("/api/v1/explain?"+query, &out); out.Folded < 5 {
				return fmt.Errorf("folded %d", out.Folded)
			}
			return nil
		})
		return out
	}

	eventually(t, func() error {
		out := ask("event=o1")
		if len(out.Explanations) != 1 || len(out.Explanations[0].Sensors) != 1 {
			t.Fatalf("%+v", out)
		}
		s := out.Explanations[0].Sensors[0]
		if s.Sensor != "large" || len(s.Steps) != 1 || len(s.Steps[0].Firings) != 1 || out.Explanations[0].Others != 2 || len(s.Warnings) != 0 {
			t.Fatalf("%+v", out)
		}
		if c := s.Steps[0].Firings[0].Call; c == nil || c.Status != "succeeded" || c.Run == "" {
			return fmt.Errorf("call %+v", c)
		}
		return nil
	})

	out := ask("event=2&sensor=large")
	s := out.Explanations[0].Sensors[0]
	if a := s.Answers[0]; a.Outcome != sensors.No || a.When == nil || a.When.Value != false || len(a.When.Parts) == 0 || len(s.Steps) != 0 {
		t.Errorf("event 2: %+v", s)
	}

	out = ask("sensor=pair&last=2")
	if len(out.Explanations) != 2 || out.Explanations[0].Event.ID != "b1" || out.Explanations[1].Event.ID != "b2" {
		t.Fatalf("the last two of pair: %+v", out)
	}
	if s := out.Explanations[0].Sensors[0]; !s.Waiting || len(s.Steps) != 1 || len(s.Steps[0].Firings) != 0 || s.Steps[0].Decisions[0].Missing[0] != "a" {
		t.Errorf("b1: %+v", s)
	}
	if s := out.Explanations[1].Sensors[0]; s.Waiting || len(s.Steps) != 1 || len(s.Steps[0].Firings) != 1 || s.Steps[0].Before.Triggers[0].Events[0].ID != "a1" {
		t.Errorf("b2: %+v", s)
	}
	if s := ask("event=a1").Explanations[0].Sensors[0]; len(s.Later) == 0 || s.Later[0].Seq != 5 || s.Later[0].Firing == nil {
		t.Errorf("a1: %+v", s)
	}
	if s := ask("event=b2&from=4").Explanations[0].Sensors[0]; len(s.Steps[0].Firings) != 0 || !strings.Contains(strings.Join(s.Warnings, " "), "from event 4 on") {
		t.Errorf("b2 from 4: %+v", s)
	}

	for path, want := range map[string]int{
		"":                         400,
		"event=nobody":             404,
		"event=999999":             404,
		"sensor=nobody":            404,
		"sensor=pair&last=0":       400,
		"sensor=pair&last=many":    400,
		"event=1&from=yesterday":   400,
		"sensor=bad":               404, // it has seen nothing
		"event=1&from=1&sensor=no": 404,
	} {
		if w := r.do("GET", "/api/v1/explain?"+path, ""); w.Code != want || !strings.Contains(w.Body.String(), `"error"`) {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
}

// TestShadowsAreFew asks more than may at the same time.
func TestShadowsAreFew(t *testing.T) {
	s := &server{shadows: make(chan struct{}, maxShadows)}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	var ends []func()
	for i := range maxShadows + 1 {
		_, done, err := s.shadow(req)
		if refused := err != nil; refused != (i == maxShadows) {
			t.Fatalf("number %s: %v", strconv.Itoa(i), err)
		}
		ends = append(ends, done)
	}
	ends[0]()
	if _, _, err := s.shadow(req); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}
