package sensors

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

func TestResultData(t *testing.T) {
	for _, c := range []struct {
		name  string
		r     Result
		limit int
		want  string
	}{
		{"JSON", Result{Output: []byte(` {"a": [1.50, "<x>"]} `), ContentType: "application/json", Attempts: 1}, 1000, `"output":{"a":[1.50,"<x>"]},"attempts":1`},
		{"JSON without a type", Result{Output: []byte(`7`), Attempts: 2}, 1000, `"output":7,"attempts":2`},
		{"JSON that is none", Result{Output: []byte(`{"a":`), ContentType: "application/json"}, 1000, `"output":"{\"a\":","attempts":0`},
		{"text", Result{Output: []byte("7"), ContentType: "text/plain"}, 1000, `"output":"7"`},
		{"bytes", Result{Output: []byte("\xff\x00"), ContentType: "image/png"}, 1000, `"output":"\ufffd\u0000"`},
		{"none", Result{}, 1000, `"output":null,"attempts":0}`},
		{"cut", Result{Output: []byte(`12`), Cut: true}, 1000, `"output":null,"attempts":0,"truncated":true}`},
		{"too long", Result{Output: []byte(`"` + strings.Repeat("x", 500) + `"`)}, 600, `"output":null,"attempts":0,"truncated":true}`},
		{"too long when it is escaped", Result{Output: []byte(strings.Repeat("\x01", 200)), ContentType: "text/plain"}, 600, `"output":null,"attempts":0,"truncated":true}`},
		{"error of a success", Result{Error: "first try"}, 1000, `"output":null,"attempts":0}`},
		{"failure", Result{Failed: true, Error: "no", Redrive: 2, Output: []byte(`{}`)}, 1000, `"outcome":"failed","output":{},"error":"no","attempts":0,"redrive":2}`},
		{"long error", Result{Failed: true, Error: strings.Repeat("ä", 5000)}, 100, strings.Repeat("ä", 4096) + `…","attempts":0`},
		{"key", Result{Correlation: "#[1,2]"}, 1000, `"key":[1,2],`},
	} {
		got := string(c.r.Event(c.limit).Data)
		if !strings.Contains(got, c.want) || !json.Valid([]byte(got)) {
			t.Errorf("%s: %s\nhas not %s", c.name, got, c.want)
		}
	}
}

// TestKeyValue: the value of a key pairs with what gave the key.
func TestKeyValue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(
			rapid.StringN(0, 60, 60).AsAny(), rapid.Int64().AsAny(), rapid.Float64().AsAny(), rapid.Bool().AsAny(),
			rapid.Just[any]([]any{int64(1), "#x"}), rapid.Just[any](map[string]any{"a": "b"}),
		).Draw(t, "value")
		key, err := correlationKey(value)
		if err != nil {
			t.Fatal(err)
		}
		again, err := correlationKey(KeyValue(key))
		if err != nil || again != key {
			t.Fatalf("%v has key %q, whose value %v has key %q, %v", value, key, KeyValue(key), again, err)
		}
	})
}

// TestFunctionDependency: which results a dependency takes, and which it has
// told.
func TestFunctionDependency(t *testing.T) {
	results := map[string]*bus.Event{}
	for name, r := range map[string]Result{
		"build":      {Function: "build", Sensor: "ci", Trigger: "b"},
		"build/fail": {Function: "build", Sensor: "ci", Trigger: "b", Failed: true},
		"ship":       {Function: "ship", Sensor: "shop", Trigger: "s"},
		"inline":     {Function: "shop.note", Sensor: "shop", Trigger: "note"},
	} {
		results[name] = r.Event(1000)
	}
	for _, c := range []struct {
		name  string
		dep   specs.Dependency
		takes string // names of results
		asks  string // functions
		exact bool   // the index finds it by hash
	}{
		{"function", specs.Dependency{Function: "build"}, "build build/fail", "build", true},
		{"succeeded", specs.Dependency{Function: "build", Outcome: specs.OutcomeSucceeded}, "build", "build", true},
		{"failed", specs.Dependency{Function: "build", Outcome: specs.OutcomeFailed}, "build/fail", "build", true},
		{"inline", specs.Dependency{Function: "shop.note"}, "inline", "shop.note", true},
		{"glob", specs.Dependency{Function: "*ui*"}, "build build/fail", "build", false},
		{"every function", specs.Dependency{Function: "*"}, "build build/fail inline ship", "build ship shop.note", false},
		{"every failure", specs.Dependency{Function: "*", Outcome: specs.OutcomeFailed}, "build/fail", "build ship shop.note", true},
		{"one caller", specs.Dependency{Function: "*", Subject: "shop/*"}, "inline ship", "ship shop.note", false},
		{"another caller", specs.Dependency{Function: "build", Subject: "shop/b"}, "", "", true},
		{"type", specs.Dependency{Type: "engine.function.failed"}, "build/fail", "build ship shop.note", true},
		{"types", specs.Dependency{Type: "engine.function.*"}, "build build/fail inline ship", "build ship shop.note", false},
		{"type of any source", specs.Dependency{Source: "*", Type: "*.failed"}, "build/fail", "build ship shop.note", false},
		{"type of a source", specs.Dependency{Source: "shop", Type: "engine.function.failed"}, "", "", true},
		{"other type", specs.Dependency{Type: "com.example.*"}, "", "", false},
		{"pseudo source", specs.Dependency{Source: "_function", Event: "ship"}, "ship", "ship", true},
		{"pseudo sources", specs.Dependency{Source: "_*"}, "build build/fail inline ship", "build ship shop.note", false},
		{"every source", specs.Dependency{Source: "*"}, "build build/fail inline ship", "", false},
		{"every source, otherwise", specs.Dependency{Source: "?*"}, "build build/fail inline ship", "", false},
		{"every type", specs.Dependency{Type: "*"}, "build build/fail inline ship", "", false},
		{"subject", specs.Dependency{Subject: "ci/b"}, "build build/fail", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.dep.Name = "d"
			p := compileOK(t, &specs.Sensor{Dependencies: []specs.Dependency{c.dep}, Triggers: []specs.Trigger{{Name: "t", Function: "f"}}})
			var takes, asks []string
			index := NewIndex([]*Program{p})
			for name, ev := range results {
				v := NewView(ev)
				found, _ := index.Lookup(v, nil)
				if len(found) > 0 && len(p.Route(v).Matches) > 0 {
					takes = append(takes, name)
				}
				if matches := p.Route(NewView(ev)).Matches; len(matches) > 0 != slices.Contains(takes, name) {
					t.Errorf("%s: the index finds %d programs, there are %d matches", name, len(found), len(matches))
				}
			}
			asked := NewAsked([]*Program{p})
			for function, by := range map[string]string{"build": "ci/b", "ship": "shop/s", "shop.note": "shop/note"} {
				if s, tr, _ := strings.Cut(by, "/"); asked.Wants(function, s, tr) {
					asks = append(asks, function)
				}
			}
			slices.Sort(takes)
			slices.Sort(asks)
			if strings.Join(takes, " ") != c.takes || strings.Join(asks, " ") != c.asks || len(index.rest) == 0 != c.exact {
				t.Errorf("takes %v, asks for %v, found by hash: %v", takes, asks, len(index.rest) == 0)
			}
		})
	}
}

// TestFingerprintWithoutFunction: sensors that name no function keep the state
// that older engines made; naming one, or another outcome, makes another state.
func TestFingerprintWithoutFunction(t *testing.T) {
	plain := sensor("a b", "t=a && b")
	if got := compileOK(t, plain).StateFingerprint(); got != "82537ca1976b99571b4e486d" {
		t.Errorf("fingerprint %s", got)
	}
	seen := map[string]bool{}
	for _, d := range []specs.Dependency{
		{}, {Function: "f"}, {Function: "g"}, {Function: "f", Outcome: specs.OutcomeFailed}, {Function: "f", Outcome: specs.OutcomeSucceeded},
	} {
		d.Name = "a"
		s := sensor("b", "t=a && b")
		s.Dependencies = append(s.Dependencies, d)
		seen[compileOK(t, s).StateFingerprint()] = true
	}
	if len(seen) != 5 {
		t.Errorf("%d fingerprints of 5 sensors", len(seen))
	}
}
