package specs_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

const shopTests = `specs: [orders.yaml]
tests:
  - name: paid
    start: 2026-03-29T00:30:00Z
    events:
      - {source: shop, event: orders, data: {orderId: o1, total: 120}}
      - {after: 5m, source: shop, event: payments, id: p1, extensions: {tenant: acme}, request: {path: /p}}
      - {at: 1h, type: com.example.x, datacontenttype: text/plain, data: hello}
    until: 2h
    expect:
      - {sensor: ship, trigger: t, at: 5m, key: o1, function: f, contains: {a: 1}}
    verdicts: [{sensor: ship, outcome: expired}]
    unmatched: 0
  - {name: nothing, events: [{type: x}], expect: []}
`

func TestLoadTestBytes(t *testing.T) {
	files, found := loader().LoadTestBytes("shop_test.yaml", []byte(shopTests))
	if len(found) > 0 || len(files) != 1 || len(files[0].Tests) != 2 {
		t.Fatalf("%d files\n%s", len(files), text(found))
	}
	paid, nothing := files[0].Tests[0], files[0].Tests[1]
	for i, want := range []time.Duration{0, 5 * time.Minute, time.Hour} {
		if got := paid.Events[i].At.D(); got != want {
			t.Errorf("event %d comes at %s, want %s", i, got, want)
		}
	}
	if got := paid.StartTime(); got != time.Date(2026, 3, 29, 0, 30, 0, 0, time.UTC) {
		t.Errorf("the test starts at %s", got)
	}
	if *paid.Until != specs.Duration(2*time.Hour) || *nothing.Until != 0 || nothing.StartTime() != specs.TestStart() {
		t.Error("until and start are not as written, or have other defaults")
	}
	if paid.Pos.String() != "shop_test.yaml:3:5" || *paid.Unmatched != 0 || nothing.Unmatched != nil {
		t.Errorf("%+v", paid)
	}
}

// TestTestDiagnostics: what is wrong with files of spec tests, and where.
func TestTestDiagnostics(t *testing.T) {
	for name, c := range map[string]struct{ yaml, want string }{
		"resource": {
			"apiVersion: engine/v1\nkind: Secret\n",
			"a_test.yaml:1:1: error[test-file] a resource in a file of spec tests is not loaded (rename the file so that its name does not end in _test)\n",
		},
		"unknown key": {
			"tests:\n  - {name: a, evnts: [], events: [{type: x}], expect: []}\n",
			"a_test.yaml:2:15: error[unknown-key] tests[0].evnts: unknown key \"evnts\" (did you mean \"events\"?)\n",
		},
		"no expectation": {
			"tests:\n  - {name: a, events: [{type: x}]}\n",
			"a_test.yaml:2:5: error[missing-key] tests[0].expect: \"expect\" is missing (write expect: [] when nothing fires)\n",
		},
		"same name": {
			"tests:\n  - {name: a, events: [{type: x}], expect: []}\n  - {name: a, events: [{type: x}], expect: []}\n",
			"a_test.yaml:3:12: error[duplicate-name] tests[1].name: test \"a\" is already defined at line 2 (rename one of them)\n  a_test.yaml:2:12\n",
		},
		"order": {
			"tests:\n  - {name: a, events: [{type: x, at: 5m}, {type: x, at: 1m}], until: 2m, expect: []}\n",
			"a_test.yaml:2:57: error[out-of-range] tests[0].events[1].at: `1m` is before the event above (events are written in their order; at least 5m)\n" +
				"a_test.yaml:2:70: error[out-of-range] tests[0].until: `2m` is before the last event (at least 5m)\n",
		},
		"twice": {
			"tests:\n  - {name: a, events: [{type: x, at: 5m, after: 1m}], expect: [{sensor: s, input: 1, contains: 2}]}\n",
			"a_test.yaml:2:49: error[invalid-value] tests[0].events[0].after: at is given, and after too (keep one of them)\n" +
				"a_test.yaml:2:96: error[invalid-value] tests[0].expect[0].contains: input is given, and contains too (keep one of them)\n",
		},
		"nowhere": {
			"tests:\n  - {name: a, events: [{}, {source: s}, {event: e}], expect: []}\n",
			"a_test.yaml:2:24: error[missing-key] tests[0].events[0].source: the event comes from nowhere (give source and event, or the type of an event sent by hand)\n" +
				"a_test.yaml:2:28: error[missing-key] tests[0].events[1].event: \"event\" is missing (name the event of the EventSource)\n" +
				"a_test.yaml:2:49: error[missing-key] tests[0].events[2].source: \"source\" is missing (name the EventSource)\n",
		},
		"results": {
			"tests:\n  - name: a\n    events:\n" +
				"      - {type: x, data: 1, result: {trigger: t}}\n" +
				"      - {result: {sensor: s}}\n" +
				"      - {result: {function: f, sensor: s}}\n" +
				"      - {result: {function: f, trigger: s}}\n" +
				"      - {result: {function: f, item: 1}}\n" +
				"      - {result: {trigger: t, outcome: succeeded, error: no}}\n" +
				"      - {result: {trigger: t, outcome: done}}\n" +
				"      - {result: t}\n" +
				"    expect: []\n",
			"a_test.yaml:4:16: error[invalid-value] tests[0].events[0].type: result is given, and type too (keep one of them)\n" +
				"a_test.yaml:4:25: error[invalid-value] tests[0].events[0].data: result is given, and data too (keep one of them)\n" +
				"a_test.yaml:5:18: error[missing-key] tests[0].events[1].result.trigger: \"trigger\" is missing (name the trigger whose firing it answers, or the function alone)\n" +
				"a_test.yaml:6:18: error[missing-key] tests[0].events[2].result.trigger: \"trigger\" is missing (name the trigger whose firing it answers, or the function alone)\n" +
				"a_test.yaml:7:18: error[missing-key] tests[0].events[3].result.sensor: \"sensor\" is missing (remove function if a firing of this test is meant)\n" +
				"a_test.yaml:8:38: error[invalid-value] tests[0].events[4].result.item: a result from elsewhere answers no firing (remove it)\n" +
				"a_test.yaml:9:58: error[invalid-value] tests[0].events[5].result.error: what succeeded has no error (write outcome: failed, or remove it)\n" +
				"a_test.yaml:10:40: error[unknown-value] tests[0].events[6].result.outcome: `done` is not allowed here (one of: succeeded, failed)\n" +
				"a_test.yaml:11:18: error[wrong-type] tests[0].events[7].result: expected a mapping, found `t` (keys: trigger, sensor, function, key, item, outcome, output, error)\n",
		},
		"start": {
			"tests:\n  - {name: a, start: tomorrow, events: [{type: x}], expect: []}\n",
			"a_test.yaml:2:22: error[invalid-value] tests[0].start: `tomorrow` is not a time (write it as 2026-01-01T00:00:00Z)\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			files, found := loader().LoadTestBytes("a_test.yaml", []byte(c.yaml))
			if got := text(found); got != c.want || len(files) != 0 {
				t.Errorf("%d files\n got:\n%s\nwant:\n%s", len(files), got, c.want)
			}
		})
	}
}

// TestTestsBesideSpecs: specs and their tests live in one directory, and
// neither is read as the other.
func TestTestsBesideSpecs(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), "apiVersion: engine/v1\nkind: Secret\nmetadata: {name: a}\nspec: {env: {k: V}}\n")
	write(t, filepath.Join(dir, "sub", "a_test.yaml"), shopTests)
	write(t, filepath.Join(dir, "b_test.yml"), shopTests)
	write(t, filepath.Join(dir, ".c_test.yaml"), "broken: [")
	l, err := loader().Load(t.Context(), dir)
	if err != nil || len(l.Diagnostics) > 0 || len(l.Files) != 1 {
		t.Errorf("specs: %v %v %s", err, l.Files, text(l.Diagnostics))
	}
	tests, err := loader().LoadTests(t.Context(), dir)
	if err != nil || len(tests.Diagnostics) > 0 || len(tests.Files) != 2 {
		t.Fatalf("tests: %v %d files\n%s", err, len(tests.Files), text(tests.Diagnostics))
	}
	tests, err = loader().LoadTests(t.Context(), filepath.Join(dir, "b_test.yml"), filepath.Join(dir, "a.yaml"))
	if err != nil || len(tests.Files) != 1 || len(tests.Diagnostics) != 1 || tests.Diagnostics[0].Code != specs.CodeTestFile {
		t.Errorf("%v %d files\n%s", err, len(tests.Files), text(tests.Diagnostics))
	}
}

func TestTestSchema(t *testing.T) {
	got, err := specs.TestSchema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/test-schema.golden.json", string(got))
}

// FuzzLoadTests looks for panics and for tests that are not in their order.
func FuzzLoadTests(f *testing.F) {
	f.Add([]byte(shopTests))
	f.Add([]byte("tests: [{name: a, events: [{at: 99999999h, after: 1s}], expect: [x]}]\n---\nkind: X\n"))
	f.Add([]byte("tests: [{name: a, events: [{result: {trigger: b, key: [1], item: 2, outcome: failed, output: {a: .inf}, error: c}}, {result: {function: d, sensor: e}, data: 1}], expect: [], verdicts: [{sensor: e, outcome: skipped}]}]"))
	f.Add([]byte("tests:\n- &a {events: [1, *a], expect: {}, until: -1s, start: 1}\n- *a\n"))
	l := loader()
	l.MaxNodes, l.MaxDepth = 5000, 50
	f.Fuzz(func(t *testing.T, data []byte) {
		files, found := l.LoadTestBytes("x_test.yaml", data)
		if len(files) == 0 {
			return
		}
		for _, file := range files {
			for _, test := range file.Tests {
				last := specs.Duration(0)
				for _, e := range test.Events {
					if *e.At < last {
						t.Errorf("an event comes before the one above\n%s", text(found))
					}
					last = *e.At
				}
				if *test.Until < last {
					t.Error("the test ends before its last event")
				}
			}
		}
	})
}
