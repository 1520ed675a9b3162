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
	function := func(name string) string {
		return head + "kind: Function\nmetadata: {name: " + name + "}\nspec: {log: {}}\n---\n"
	}
	sensor := func(name, dependency, triggers string) string {
		return head + "kind: Sensor\nmetadata: {name: " + name + "}\nspec:\n  dependencies:\n    - " +
			strings.Replace(dependency, "{", "{name: d, ", 1) + "\n  triggers: " + triggers + "\n"
	}
	loop := func(place, path, way, function string) string {
		return "s.yaml:" + place + ": warning[result-loop] " + path + ": it takes results of calls that this sensor causes itself (" + way +
			`): a loop, which ends after 16 functions with a dead letter (narrow it, for example with when: data.function != "` + function + `")`
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
		{
			name: "fields that the data of a ticker does not have",
			spec: head + `kind: EventSource
metadata: {name: clock}
spec:
  ticker:
    tick: {every: 1s, filter: data.cout > 1}
    other: {every: 1s, data: {any: thing}}
---
` + head + `kind: Sensor
metadata: {name: s}
spec:
  dependencies:
    - {name: tick, source: clock, event: tick, when: data.count > 1 && tick.data.tme != ""}
    - {name: made, source: clock, event: tick, transform: "{n: data.cnt}", when: data.n > 1}
    - {name: other, source: clock, event: other, when: data.any == "thing"}
    - {name: every, source: clock, event: "*", when: data.any == "thing"}
    - {name: typed, type: ticker.tick, when: data.any == "thing"}
  correlate: data.key
  condition: tick && made && other && every && typed && tick.data.missed == 0
  triggers:
    - {name: a, log: {message: "${ tick.data.coutn } ${ made.data.x } ${ tick.data.late ?? 0 }"}}
    - {name: b, condition: tick && tick.data.xxxx == 1, log: {}}
    - {name: c, condition: tick, batch: {size: 2}, log: {}}
    - {name: d, condition: tick, foreach: {in: tick.data.list, key: tick.data.kye}, log: {}}
    - {name: e, condition: tick, log: {}, deadLetter: {log: {message: "${ tick.data.coutn }"}}}
`,
			want: []string{
				`s.yaml:6:36: error[unknown-field] spec.ticker.tick.filter: the data of a ticker has no field "cout" (did you mean count?)`,
				`s.yaml:14:82: error[unknown-field] spec.dependencies[0].when: the data of a ticker has no field "tme" (did you mean time?)`,
				`s.yaml:15:69: error[unknown-field] spec.dependencies[1].transform: the data of a ticker has no field "cnt" (it has time, count, missed)`,
				`s.yaml:19:19: error[unknown-field] spec.correlate: the data of a ticker has no field "key" (it has time, count, missed)`,
				`s.yaml:22:46: error[unknown-field] spec.triggers[0].log.message: the data of a ticker has no field "coutn" (did you mean count?)`,
				`s.yaml:22:84: error[unknown-field] spec.triggers[0].log.message: the data of a ticker has no field "late" (it has time, count, missed)`,
				`s.yaml:23:46: error[unknown-field] spec.triggers[1].condition: the data of a ticker has no field "xxxx" (it has time, count, missed)`,
				`s.yaml:25:58: error[unknown-field] spec.triggers[3].foreach.in: the data of a ticker has no field "list" (it has time, count, missed)`,
				`s.yaml:25:79: error[unknown-field] spec.triggers[3].foreach.key: the data of a ticker has no field "kye" (it has time, count, missed)`,
				`s.yaml:26:85: error[unknown-field] spec.triggers[4].deadLetter.log.message: the data of a ticker has no field "coutn" (did you mean count?)`,
			},
		},
		{
			name: "schemas of functions",
			spec: head + `kind: Function
metadata: {name: f}
spec:
  exec: {command: [cat]}
  input:
    schema:
      properties:
        name: {type: strin}
  output: {schema: {oneOf: [{type: string}, {minLength: x}]}}
---
` + head + `kind: Function
metadata: {name: g}
spec:
  exec: {command: [cat]}
  input: {schema: testdata/schema.yaml}
  output: {schema: testdata/none.json}
`,
			want: []string{
				"s.yaml:9:22: error[invalid-schema] spec.input.schema.properties.name.type: the schema is not valid: value must be one of array, boolean, integer, null, number, object, string",
				"s.yaml:10:57: error[invalid-schema] spec.output.schema.oneOf[1].minLength: the schema is not valid: got string, want integer",
				"s.yaml:18:20: error[unreadable] spec.output.schema: the schema cannot be read: testdata/none.json: no such file or directory (a path is relative to this file)",
				"testdata/schema.yaml:3:14: error[invalid-schema] input.schema.properties.n.minimum: the schema is not valid: got string, want number",
			},
		},
		{
			name: "secrets for kinds that do not use them",
			spec: head + `kind: Secret
metadata: {name: s}
spec: {env: {k: K}}
---
` + head + `kind: Function
metadata: {name: f}
spec:
  log: {}
  secrets: [s]
---
` + head + `kind: Subscription
metadata: {name: sub}
spec: {eventType: t, function: f, secrets: [s]}
---
` + head + `kind: Subscription
metadata: {name: dead}
spec: {eventType: t, function: f, deadLetter: {log: {}, secrets: [s]}}
---
` + head + `kind: Sensor
metadata: {name: dead}
spec:
  dependencies: [{name: a, type: t}]
  triggers:
    - {name: t, function: f, deadLetter: {python: {file: none.py}}}
`,
			want: []string{
				"s.yaml:11:12: error[invalid-value] spec.secrets: functions of kind log are not handed secrets by name (write {secret: {name, key}} where a value belongs)",
				"s.yaml:16:7: error[invalid-value] spec.secrets: functions of kind log are not handed secrets by name (write {secret: {name, key}} where a value belongs)",
				"s.yaml:21:47: error[invalid-value] spec.deadLetter.secrets: functions of kind log are not handed secrets by name (write {secret: {name, key}} where a value belongs)",
				"s.yaml:29:58: error[unreadable] spec.triggers[0].deadLetter.python.file: none.py: no such file or directory (a path is relative to this file)",
			},
		},
		{
			name: "fields that results do not have",
			spec: function("build") + sensor("s", "{function: build, when: data.outptu.ok}", `[{name: t, input: "${ d.data.error ?? d.data.output.x }", log: {}}]`),
			want: []string{
				`s.yaml:11:45: error[unknown-field] spec.dependencies[0].when: the data of a function's result has no field "outptu" (did you mean output?)`,
			},
		},
		{
			name: "a sensor that waits for what it calls",
			spec: function("build") + sensor("again", "{function: build, outcome: failed}", "[{name: t, function: build}]"),
			want: []string{loop("11:7", "spec.dependencies[0]", "trigger t of sensor again calls build", "build")},
		},
		{
			name: "by way of another sensor, inline and with a glob",
			spec: function("build") +
				sensor("a", `{function: "b.*"}`, "[{name: t, function: build}]") + "---\n" +
				sensor("b", "{function: build}", "[{name: u, log: {}}]") + "---\n" +
				sensor("c", "{function: b.u}", "[{name: v, log: {}}]"),
			want: []string{
				loop("11:7", "spec.dependencies[0]", "trigger t of sensor a calls build; trigger u of sensor b calls b.u", "b.u"),
				loop("19:7", "spec.dependencies[0]", "trigger u of sensor b calls b.u; trigger t of sensor a calls build", "build"),
			},
		},
		{
			name: "a Subscription to all failures",
			spec: function("build") + head + "kind: Subscription\nmetadata: {name: alarm}\nspec: {eventType: engine.function.failed, function: build}\n",
			want: []string{loop("9:7", "spec.eventType", "trigger call of sensor subscription.alarm calls build", "build")},
		},
		{
			name: "with its own failures left out",
			spec: function("build") + head + "kind: Subscription\nmetadata: {name: alarm}\nspec: {eventType: engine.function.failed, function: build, when: data.function != \"build\"}\n",
		},
		{
			name: "a filter that needs an output may let it pass",
			spec: function("build") + sensor("again", "{function: build, when: data.output.code == 7}", "[{name: t, function: build}]"),
			want: []string{loop("11:7", "spec.dependencies[0]", "trigger t of sensor again calls build", "build")},
		},
		{
			name: "by what is called for dead letters",
			spec: function("build") + sensor("again", "{function: build}", "[{name: t, log: {}, deadLetter: {function: build}}]") + "---\n" +
				sensor("inline", "{function: inline.t.deadLetter, outcome: failed}", "[{name: t, log: {}, deadLetter: {log: {}}}]"),
			want: []string{
				loop("11:7", "spec.dependencies[0]", "trigger t.deadLetter of sensor again calls build", "build"),
				loop("19:7", "spec.dependencies[0]", "trigger t.deadLetter of sensor inline calls inline.t.deadLetter", "inline.t.deadLetter"),
			},
		},
		{
			name: "everything, and nobody asks",
			spec: function("build") + sensor("all", `{source: "*"}`, "[{name: t, function: build}]"),
		},
		{
			name: "everything, and another one asks",
			spec: function("build") + sensor("all", `{source: "*"}`, "[{name: t, function: build}]") + "---\n" +
				sensor("other", "{function: build}", "[{name: t, log: {}}]"),
			want: []string{loop("11:7", "spec.dependencies[0]", "trigger t of sensor all calls build", "build")},
		},
		{
			name: "everything, and a workflow of its own",
			spec: sensor("all", `{source: "*"}`, "[{name: t, log: {}}, {name: u, after: [t], log: {}}]"),
			want: []string{loop("6:7", "spec.dependencies[0]", "trigger t of sensor all calls all.t", "all.t")},
		},
		{
			name: "a workflow alone",
			spec: sensor("flow", `{source: _emit}`, "[{name: t, log: {}}, {name: u, after: [t], log: {}}]"),
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
