package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

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

// TestReplay replays to a running engine.
func TestReplay(t *testing.T) {
	r := start(t, Options{})
	for i, total := range []int{180, 80, 500} {
		r.emit("order", fmt.Sprintf("o%d", i+1), fmt.Sprintf(`{"total":%d, "big": 12345678901234567890}`, total))
	}
	r.emit("a", "a1", `{"id":"k1"}`)
	r.emit("b", "b1", `{"id":"k1"}`)
	runs := func(n int) []map[string]any {
		t.Helper()
		var all struct{ Runs []map[string]any }
		eventually(t, func() error {
			if r.get("/api/v1/runs?function=note", &all); len(all.Runs) != n {
				return fmt.Errorf("%d runs, want %d", len(all.Runs), n)
			}
			return nil
		})
		return all.Runs
	}
	runs(3)
	ask := func(body string) *engine.Replayed {
		t.Helper()
		w := r.do("POST", "/api/v1/replay", body)
		var out engine.Replayed
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", body, w.Code, w.Body)
		}
		return &out
	}
	said := func(out *engine.Replayed) string {
		var parts []string
		for _, f := range out.Firings {
			status := "-"
			if f.Call != nil {
				status = f.Call.Status
			}
			parts = append(parts, fmt.Sprintf("%s/%s %d %s %s", f.Sensor, f.Trigger, f.Events[len(f.Events)-1].Seq, f.Difference, status))
		}
		return strings.Join(parts, ", ")
	}
	other := func(when string) string {
		b, _ := json.Marshal([]engine.SpecFile{{Path: "shop.yaml", Content: strings.ReplaceAll(shop, "data.total > 100", when)}})
		return `"specs": ` + string(b)
	}
	for _, tt := range []struct{ name, body, want string }{
		{"as it was", `{"sensor": "large"}`, "large/say 1 same succeeded, large/say 3 same succeeded"},
		{"a range", `{"sensor": "large", "from": "2", "to": "10m"}`, ""},
		{"to now", `{"sensor": "large", "from": "2", "to": "` + time.Now().Add(time.Minute).Format(time.RFC3339) + `"}`, "large/say 3 same succeeded"},
		{"less", `{"sensor": "large", ` + other("data.total > 400") + `}`, "large/say 3 same succeeded, large/say 1 gone succeeded"},
		{"more", `{` + other("data.total > 50") + `}`, "large/say 1 same succeeded, large/say 2 new -, large/say 3 same succeeded"},
		{"only what is new", `{"only": ["new"], ` + other("data.total > 50") + `}`, "large/say 2 new -"},
		{"an edited event", `{"sensor": "large", "patches": {"o2": {"data": {"total": 1000000}}, "3": {"data": {}, "replace": true}}}`, "large/say 1 same succeeded, large/say 2 new -, large/say 3 gone succeeded"},
		{"with an expression", `{"sensor": "large", "when": "data.total > 400"}`, "large/say 3 same succeeded"},
		{"by its id", `{"sensor": "large", "events": ["o1"]}`, "large/say 1 same succeeded"},
		{"paired with what is not meant", `{"sensor": "pair", "events": ["5"]}`, "pair/say 5 same succeeded"},
		{"cold", `{"sensor": "pair", "from": "5", "cold": true}`, "pair/say 5 gone succeeded"},
		{"by its type", `{"sensor": "pair", "type": "a"}`, "pair/say 5 same succeeded"},
		{"by its source", `{"sensor": "pair", "source": "shop"}`, ""},
		{"by its name", `{"sensor": "pair", "event": "b*"}`, "pair/say 5 same succeeded"},
	} {
		body := tt.body
		if tt.name == "a range" {
			if w := r.do("POST", "/api/v1/replay", body); w.Code != http.StatusNotFound { // nothing was stored ten minutes ago
				t.Errorf("%s: %d %s", tt.name, w.Code, w.Body)
			}
			continue
		}
		if got := said(ask(body)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	out := ask(`{"sensor": "large", "from": "2", "patches": {"o2": {"data": {"total": 1000000}}}}`)
	if s := out.Sensors[0]; len(s.Warnings) != 0 || s.From != 1 || out.Read != 1 || out.Events != 4 || out.Wanted != 2 || out.Edited != 1 || out.Counts["same"] != 1 || out.Counts["new"] != 1 {
		t.Errorf("%+v", out)
	}
	if in, _ := json.Marshal(out.Firings[0].Input); !strings.Contains(string(in), `"total":1000000`) {
		t.Errorf("input %s", in)
	}
	if out := ask(`{` + other("data.total > 50") + `, "limit": 1}`); len(out.Firings) != 1 || out.More != 2 || len(out.Unchanged) != 2 {
		t.Errorf("%+v", out)
	}
	runs(3) // all that was dry

	const again = `{"sensor": "large", "patches": {"o2": {"data": {"total": 1000000}}}, "execute": true, "id": %q}`
	out = ask(fmt.Sprintf(again, "one"))
	if out.Executed != 3 || out.ID != "one" || out.Error != "" || !strings.HasPrefix(out.Firings[0].Called, "replay.") {
		t.Fatalf("%+v", out)
	}
	all := runs(6)
	keys := map[string]bool{}
	for _, run := range all {
		keys[run["key"].(string)] = true
		if run["key"] == out.Firings[1].Called && !strings.Contains(fmt.Sprint(run["output"]), "44 bytes") {
			t.Errorf("the edited event: %v", run)
		}
	}
	if len(keys) != 6 || !keys[out.Firings[0].Called] {
		t.Errorf("keys %v", keys)
	}
	if out = ask(fmt.Sprintf(again, "one")); out.Executed != 0 || out.Repeated != 3 {
		t.Errorf("the same again: %+v", out)
	}
	if out = ask(`{"sensor": "large", "only": ["new"], "patches": {"o2": {"data": {"total": 1000000}}}, "execute": true}`); out.Executed != 1 || out.ID == "" || keys[out.Firings[0].Called] {
		t.Errorf("another: %+v", out)
	}
	runs(7)
	if got := said(ask(`{"sensor": "large"}`)); got != "large/say 1 same succeeded, large/say 3 same succeeded" {
		t.Errorf("afterwards: %s", got)
	}

	for _, tt := range []struct {
		body string
		want int
		text string
	}{
		{``, 400, "the body is empty"},
		{`{"sensors": "large"}`, 400, "unknown field"},
		{`{} {}`, 400, "follows"},
		{`{}`, 400, "say to which sensor"},
		{`{"sensor": "nobody"}`, 404, "no sensor"},
		{`{"sensor": "large", "from": "yesterday"}`, 400, "yesterday"},
		{`{"sensor": "large", "to": "yesterday"}`, 400, "yesterday"},
		{`{"sensor": "large", "from": "4", "to": "3"}`, 404, "no event from 4 to 3"},
		{`{"sensor": "large", "events": ["nobody"]}`, 404, "no event nobody"},
		{`{"sensor": "large", "patches": {"9": {"data": {}}}}`, 404, "no event 9"},
		{`{"sensor": "large", "when": "data.total >"}`, 422, "when:1:"},
		{`{"sensor": "large", "when": "data.total / 2 == 1 || data.total + 1"}`, 400, "when, of event 1"},
		{`{"sensor": "large", "only": ["newer"]}`, 400, "newer"},
		{`{"sensor": "large", "limit": 5000}`, 400, "1000"},
		{`{"sensor": "large", "id": "x"}`, 400, "executed"},
		{`{"sensor": "large", "cold": true, "begin": "1"}`, 400, "exclude"},
		{`{"execute": true, ` + other("true") + `}`, 400, "in force"},
		{`{"sensor": "large", ` + other("data.total >") + `}`, 422, "shop.yaml:10:"},
		{`{"sensor": "nobody", ` + other("true") + `}`, 404, "nobody"},
		{`{` + other("data.total > 100") + `}`, 404, "as they are in force"},
		{`{"specs": [{"path": "a.yaml", "content": ""}]}`, 404, "no sensor"},
	} {
		w := r.do("POST", "/api/v1/replay", tt.body)
		var body Refused
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != tt.want || !strings.Contains(body.Error, tt.text) || tt.want == 422 && len(body.Diagnostics) == 0 {
			t.Errorf("%s: %d %s, want %d with %q", tt.body, w.Code, w.Body, tt.want, tt.text)
		}
	}
	runs(7)
}
