package spectest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/engine/spectest"
)

const shop = `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec:
  webhook:
    orders: {path: /orders, filter: data.kind != "test", dedup: data.id, labels: {tenant: "${ request.headers.tenant }"}}
    payments: {path: /payments}
---
apiVersion: engine/v1
kind: Function
metadata: {name: ship}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: pair}
spec:
  dependencies: [{name: order, source: shop, event: orders}, {name: payment, source: shop, event: payments, when: data.amount > 0}]
  correlate: data.id
  within: 10m
  triggers:
    - {name: ship, function: ship, input: {items: "${ order.data.items }", amount: "${ payment.data.amount }"}}
    - {name: tell, condition: order, http: {url: "http://a/${ order.data.id }", headers: {X-Tenant: "${ order.extensions.tenant }", X-Fixed: "yes"}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: silent}
spec:
  dependencies: [{name: up, type: up}, {name: beat, type: beat, absent: {for: 5m, after: up}}]
  condition: up && absent(beat)
  triggers: [{name: t, function: ship}]
---
apiVersion: engine/v1
kind: Subscription
metadata: {name: hello}
spec: {eventType: com.example.hello, function: ship}
---
apiVersion: engine/v1
kind: Subscription
metadata: {name: broken}
spec: {eventType: com.example.broken, function: ship, input: "${ event.data.a.b }"}
`

// run runs the tests of a text and returns what fails.
func run(t *testing.T, text string) string {
	t.Helper()
	return runOn(t, shop, text)
}

// runOn runs the tests of a text against specs and returns what fails.
func runOn(t *testing.T, specs, text string) (out string) {
	t.Helper()
	runner, _ := compile(t, specs)
	files, found := catalog.Loader().LoadTestBytes("t_test.yaml", []byte(text))
	if len(found) > 0 {
		t.Fatal(found)
	}
	for i := range files[0].Tests {
		test := &files[0].Tests[i]
		if found := runner.Check(test); len(found) > 0 {
			t.Fatal(found)
		}
		res, err := runner.Run(test)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range res.Failures {
			out += fmt.Sprintf("%s: %s\n%s\n", test.Name, f.Message, strings.Join(f.Diff, "\n"))
		}
	}
	return out
}

// TestPasses has a case for each thing a test can say.
func TestPasses(t *testing.T) {
	if got := run(t, `
tests:
  - name: intake, key, input
    events:
      - {source: shop, event: orders, request: {headers: {tenant: acme}}, data: {id: 12345678901234567, kind: new, items: [{n: 1, at: x}, {n: 2, at: y}]}}
      - {after: 1m, source: shop, event: payments, data: {id: 12345678901234567, amount: 2.0}}
    expect:
      - {sensor: pair, trigger: ship, at: 1m, key: 12345678901234567, function: ship, input: {items: [{n: 1.0, at: x}, {at: y, n: 2}], amount: 2}}
      - {sensor: pair, trigger: tell, at: 0s, function: http, config: {url: "http://a/12345678901234567", headers: {X-Tenant: acme, X-Fixed: "yes"}}}
  - name: part of an input, in any order of expectations
    events:
      - {source: shop, event: orders, request: {headers: {tenant: acme}}, data: {id: "1", kind: new, items: [{n: 1, at: x}]}}
      - {source: shop, event: payments, data: {id: "1", amount: 2}}
    expect:
      - {sensor: pair}
      - {sensor: pair, trigger: tell, contains: {kind: new}}
  - name: filter and duplicates
    events:
      - {source: shop, event: orders, data: {kind: test}}
      - {source: shop, event: orders, request: {headers: {tenant: a}}, data: {id: a, kind: b}}
      - {at: 9m, source: shop, event: orders, request: {headers: {tenant: a}}, data: {id: a, kind: b}}
      - {at: 10m, source: shop, event: orders, request: {headers: {tenant: a}}, data: {id: a, kind: b}}
    until: 20m
    expect:
      - {sensor: pair, trigger: tell, at: 0s}
      - {sensor: pair, trigger: tell, at: 10m}
    filtered: 1
    duplicates: 1
    verdicts:
      - {sensor: pair, outcome: expired, dependency: order, trigger: ship, at: 10m}
      - {sensor: pair, outcome: expired, dependency: order, trigger: ship, at: 20m}
  - name: missing, waiting, dead letter
    events:
      - {source: shop, event: payments, data: {id: 1}}
      - {source: shop, event: orders, request: {headers: {tenant: a}}, data: {id: 1, kind: x}}
      - {source: shop, event: payments, data: {id: 1, amount: 1}}
      - {type: com.example.broken, data: {}}
    expect:
      - {sensor: pair, trigger: tell}
      - {sensor: pair, trigger: ship}
      - {sensor: subscription.broken, error: event.data.a}
    verdicts:
      - {sensor: pair, outcome: missing, dependency: payment, detail: amount}
      - {sensor: pair, outcome: waiting, trigger: ship}
  - name: absence, by the clock alone
    events: [{type: up}, {after: 4m, type: beat}, {after: 1m, type: up}]
    until: 10m
    expect: [{sensor: silent, at: 10m, trigger: t}]
    verdicts: [{sensor: silent, outcome: answered, at: 4m}]
  - name: by hand, without and with data of any type
    events:
      - {type: com.example.hello}
      - {type: com.example.hello, data: null}
      - {type: com.example.hello, datacontenttype: text/plain, data: hi}
      - {type: com.example.other, subject: s, extensions: {a: b}}
    expect:
      - {sensor: subscription.hello, function: ship, input: null}
      - {sensor: subscription.hello, function: ship, input: null}
      - {sensor: subscription.hello, function: ship, input: hi}
    unmatched: 1
`); got != "" {
		t.Error(got)
	}
}

// TestFails: what is almost as expected is not.
func TestFails(t *testing.T) {
	const order = `{source: shop, event: orders, request: {headers: {tenant: a}}, data: {id: "1", kind: x, items: [1, 2]}}`
	const payment = `{source: shop, event: payments, data: {id: "1", amount: 2}}`
	for expect, want := range map[string]string{
		`[{sensor: pair, key: 1}]`:                                               "- key: 1\n+ key: \"1\"",
		`[{sensor: pair, trigger: ship, input: {items: [1, 2]}}]`:                `+   "amount": 2,`,
		`[{sensor: pair, contains: {items: [1]}, trigger: ship}]`:                "+     2\n",
		`[{sensor: pair, trigger: ship, error: x}]`:                              "- error: x",
		`[{sensor: pair, at: 1s, trigger: ship}]`:                                "- at: 1s\n+ at: 0s",
		`[{sensor: pair, function: http, trigger: ship}]`:                        "- function: http\n+ function: ship",
		`[{sensor: pair, trigger: tell, config: {headers: {X-Tenant: x}}}]`:      `+     "X-Tenant": "a"`,
		`[{sensor: pair, trigger: tell, config: {nothing: 1}}]`:                  `-   "nothing": 1`,
		`[{sensor: pair, trigger: tell}, {sensor: pair, trigger: tell}]`:         "does not fire as expected",
		`[{sensor: pair}, {sensor: pair}, {sensor: subscription.hello, key: 1}]`: "sensor subscription.hello does not fire as expected",
		`[{sensor: pair}]`: "which is not expected",
	} {
		got := run(t, "tests: [{name: n, events: ["+order+", "+payment+"], expect: "+expect+"}]")
		if !strings.Contains(got, want) {
			t.Errorf("%s: %q is not in\n%s", expect, want, got)
		}
	}
}

// TestCheck: names that the specs do not have.
func TestCheck(t *testing.T) {
	runner, _ := compile(t, shop)
	files, found := catalog.Loader().LoadTestBytes("t_test.yaml", []byte(`
tests:
  - name: n
    events:
      - {source: shp, event: orders}
      - {source: _publish, event: x, type: x}
    expect:
      - {sensor: pairs}
    verdicts:
      - {sensor: pair, outcome: failed, dependency: ordr}
      - {sensor: pair, outcome: failed, trigger: shp}
`))
	if len(found) > 0 {
		t.Fatal(found)
	}
	var got []string
	for _, d := range runner.Check(&files[0].Tests[0]) {
		got = append(got, d.String())
	}
	want := `t_test.yaml:5:9: error[unknown-event] the specs have no EventSource "shp" with an event "orders"
t_test.yaml:8:9: error[unknown-reference] the specs have no Sensor "pairs"
t_test.yaml:10:9: error[unknown-reference] sensor pair has no dependency "ordr"
t_test.yaml:11:9: error[unknown-reference] sensor pair has no trigger "shp"`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// FuzzRun looks for panics and for tests that give other results when run again.
func FuzzRun(f *testing.F) {
	f.Add([]byte("tests: [{name: n, events: [{source: shop, event: orders, data: {id: 1}}], expect: [{sensor: pair, key: [1, {a: b}], contains: {}, config: {headers: 1}}], until: 1h}]"))
	f.Add([]byte("tests: [{name: n, events: [{type: com.example.hello, data: .inf}, {type: com.example.hello, data: 1e400}], expect: [{sensor: subscription.hello}]}]"))
	f.Add([]byte("tests: [{name: n, events: [{source: shop, event: orders, data: {id: 1}}, {result: {trigger: tell, key: [1], output: .nan}}, {result: {trigger: call, sensor: subscription.hello, error: x, item: 1}}, {result: {function: ship, key: {a: 1}}}], expect: []}]"))
	f.Add([]byte("tests: [{name: n, start: 2026-03-29T00:59:59Z, until: 24h, events: [{source: shop, event: a, data: {key: 1, n: 2}}, {at: 149s, source: shop, event: b, data: {key: 1, n: 3}}, {source: shop, event: c, data: {n: 2, key: 1}}, {result: {sensor: lines, trigger: each, item: 1, output: 1}}, {result: {sensor: steps, trigger: build, outcome: failed}}], expect: [{sensor: lines, error: x}]}]"))
	var runners []*spectest.Runner
	for _, text := range []string{shop, agreeing} {
		runner, _ := compile(f, text)
		runners = append(runners, runner)
	}
	l := catalog.Loader()
	l.MaxNodes, l.MaxDepth = 2000, 20
	f.Fuzz(func(t *testing.T, data []byte) {
		files, _ := l.LoadTestBytes("t_test.yaml", data)
		for i := range files {
			for j := range files[i].Tests {
				test := &files[i].Tests[j]
				for _, runner := range runners {
					if len(runner.Check(test)) > 0 {
						continue
					}
					one, err := runner.Run(test)
					two, err2 := runner.Run(test)
					if fmt.Sprint(one, err) != fmt.Sprint(two, err2) {
						t.Errorf("%v %v\n%v %v", one, err, two, err2)
					}
				}
			}
		}
	})
}

const ci = `apiVersion: engine/v1
kind: Function
metadata: {name: build}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Function
metadata: {name: quiet}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: ci}
spec:
  dependencies: [{name: push, type: push}]
  correlate: data.commit
  triggers:
    - {name: b, function: build, input: "${ push.data.commit }"}
    - {name: q, condition: push.data.quiet, function: quiet}
    - {name: broken, condition: push.data.broken, function: build, input: "${ push.data.none.x }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: cd}
spec:
  dependencies: [{name: build, function: build}]
  correlate: data.key
  triggers:
    - name: b
      log: {}
      input: {key: "${ build.data.key }", output: "${ build.data.output }", error: "${ build.data.error ?? nil }", attempts: "${ build.data.attempts }", by: "${ build.subject }"}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: late}
spec:
  dependencies: [{name: up, type: up}, {name: beat, type: beat, absent: {for: 5m, after: up}}]
  condition: absent(beat)
  triggers: [{name: restart, function: build, input: "${ up.data }"}]
`

// TestResults has a case for each thing a result can say.
func TestResults(t *testing.T) {
	runner, _ := compile(t, ci)
	for _, c := range []struct{ name, events, expect, want string }{
		{
			name: "the oldest firing, the one with the key, of the sensor named",
			events: `
      - {type: push, data: {commit: 1}}
      - {type: push, data: {commit: two}}
      - {type: push, data: {commit: 3}}
      - {result: {sensor: ci, trigger: b, key: two, output: {n: 1.5}}}
      - {result: {sensor: ci, trigger: b, output: text}}
      - {after: 1m, result: {sensor: ci, trigger: b, key: 3.0, outcome: failed}}`,
			expect: `
      - {sensor: cd, at: 0s, key: two, input: {key: two, output: {n: 1.5}, error: null, attempts: 1, by: ci/b}}
      - {sensor: cd, at: 0s, key: 1, input: {key: 1, output: text, error: null, attempts: 1, by: ci/b}}
      - {sensor: cd, at: 1m, key: 3, input: {key: 3, output: null, error: failed, attempts: 1, by: ci/b}}`,
		},
		{
			name: "from elsewhere",
			events: `
      - {result: {function: build, output: [1], key: 7}}
      - {result: {function: build, sensor: other, trigger: make, error: no disk, output: log}}`,
			expect: `
      - {sensor: cd, key: 7, input: {key: 7, output: [1], error: null, attempts: 1, by: ""}}`,
		},
		{
			name: "of a firing whose input cannot be rendered",
			events: `
      - {type: push, data: {commit: 1, broken: true}}
      - {result: {trigger: broken, outcome: failed}}`,
			expect: `
      - {sensor: cd, input: {key: 1, output: null, error: "spec.triggers[2].input: missing ` + "`push.data.none`" + `", attempts: 0, by: ci/broken}}`,
		},
		{
			name: "of a firing that time makes at that moment",
			events: `
      - {type: up, data: x}
      - {after: 5m, result: {trigger: restart}}`,
			expect: `
      - {sensor: late, at: 5m}`,
		},
		{
			name: "no firing",
			events: `
      - {type: push, data: {commit: 1}}
      - {result: {sensor: ci, trigger: b, key: 2}}
      - {result: {sensor: ci, trigger: b, output: 1}}
      - {result: {sensor: ci, trigger: b}}`,
			expect: `
      - {sensor: cd, key: 1}`,
			want: "t_test.yaml:6:18: no firing of trigger b of sensor ci waits for a result\nt_test.yaml:8:18: no firing of trigger b of sensor ci waits for a result",
		},
		{
			name: "a dead letter has not succeeded",
			events: `
      - {type: push, data: {commit: 1, broken: true}}
      - {result: {trigger: broken}}`,
			expect: ` []`,
			want:   "t_test.yaml:6:18: the firing is a dead letter, so its outcome is failed: spec.triggers[2].input: missing `push.data.none`",
		},
		{
			name: "nobody asks",
			events: `
      - {type: push, data: {commit: 1, quiet: true}}
      - {result: {trigger: q}}
      - {result: {function: quiet}}`,
			expect: ` []`,
			want:   "t_test.yaml:6:18: the engine does not tell this result: no dependency asks for results of quiet\nt_test.yaml:7:18: the engine does not tell this result: no dependency asks for results of quiet",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := "tests:\n  - name: n\n    strict: false\n    events:" + c.events + "\n    expect:" + c.expect + "\n"
			files, found := catalog.Loader().LoadTestBytes("t_test.yaml", []byte(text))
			if len(found) > 0 {
				t.Fatal(found)
			}
			test := &files[0].Tests[0]
			if found := runner.Check(test); len(found) > 0 {
				t.Fatal(found)
			}
			res, err := runner.Run(test)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range res.Failures {
				got = append(got, f.Pos.String()+": "+f.Message+strings.Join(f.Diff, "\n"))
			}
			if strings.Join(got, "\n") != c.want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
}

// TestLoopOfResultsInATest: beyond the hop limit there is no result.
func TestLoopOfResultsInATest(t *testing.T) {
	runner, _ := compile(t, `apiVersion: engine/v1
kind: Sensor
metadata: {name: loop}
spec:
  dependencies: [{name: go, type: go}, {name: own, function: loop.t}]
  condition: go || own
  triggers: [{name: t, log: {}}]
`)
	text := "tests:\n  - name: n\n    strict: false\n    expect: []\n    events:\n      - {type: go}\n" + strings.Repeat("      - {result: {trigger: t}}\n", 17)
	files, found := catalog.Loader().LoadTestBytes("t_test.yaml", []byte(text))
	if len(found) > 0 {
		t.Fatal(found)
	}
	res, err := runner.Run(&files[0].Tests[0])
	if err != nil || len(res.Failures) != 1 || !strings.Contains(res.Failures[0].Message, "already passed through 16 functions") || res.Failures[0].Pos.Line != 23 || len(res.Firings) != 17 {
		t.Errorf("%d firings, %+v, %v", len(res.Firings), res.Failures, err)
	}
}

// TestCheckResults: names of results that the specs do not have.
func TestCheckResults(t *testing.T) {
	runner, _ := compile(t, ci)
	files, found := catalog.Loader().LoadTestBytes("t_test.yaml", []byte(`
tests:
  - name: n
    expect: []
    events:
      - {result: {trigger: none}}
      - {result: {trigger: none, sensor: ci}}
      - {result: {trigger: none, sensor: none}}
      - {result: {trigger: b}}
      - {result: {function: none}}
      - {result: {function: cd.b}}
`))
	if len(found) > 0 {
		t.Fatal(found)
	}
	var got []string
	for _, d := range runner.Check(&files[0].Tests[0]) {
		got = append(got, d.String())
	}
	want := `t_test.yaml:6:18: error[unknown-reference] the specs have no Sensor with a trigger "none"
t_test.yaml:7:18: error[unknown-reference] sensor ci has no trigger "none"
t_test.yaml:8:18: error[unknown-reference] the specs have no Sensor "none"
t_test.yaml:9:18: error[missing-key] several sensors have a trigger "b", name one: cd and ci
t_test.yaml:10:18: error[unknown-reference] the specs have no function "none"`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// TestWebhookAttributes: events of a webhook get what it says of type, source,
// subject and id; what the test says itself comes first.
func TestWebhookAttributes(t *testing.T) {
	runner, _ := compile(t, `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec:
  webhook:
    plain: {path: /plain, type: order.created, source: /shop, subject: "${ data.id }", id: {expression: data.id}}
    github: {path: /github, type: "github.${ request.headers[\"x-github-event\"] }", id: {header: X-GitHub-Delivery}}
    bare: {path: /bare}
---
apiVersion: engine/v1
kind: Function
metadata: {name: f}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Subscription
metadata: {name: all}
spec: {eventType: "*", source: shop, function: f, input: "${ event.type } ${ event.source } ${ event.subject }"}
`)
	files, found := catalog.Loader().LoadTestBytes("t_test.yaml", []byte(`
tests:
  - name: a
    events:
      - {source: shop, event: plain, data: {id: o-1}}
      - {source: shop, event: plain, data: {id: o-1}}
      - {source: shop, event: plain, data: {id: 7}, type: cloud.event, subject: mine}
      - {source: shop, event: plain, data: {}}
      - {source: shop, event: github, request: {headers: {x-github-event: push, x-github-delivery: d1}}, data: {}}
      - {source: shop, event: github, request: {headers: {x-github-event: push, x-github-delivery: d1}}, data: {}}
      - {source: shop, event: github, data: {}}
      - {source: shop, event: bare, data: {}}
    expect:
      - {sensor: subscription.all, input: order.created /shop o-1}
      - {sensor: subscription.all, input: cloud.event /shop/plain mine}
      - {sensor: subscription.all, input: "order.created /shop "}
      - {sensor: subscription.all, input: "github.push /shop/github "}
      - {sensor: subscription.all, input: "webhook /shop/github "}
      - {sensor: subscription.all, input: "webhook /shop/bare "}
    duplicates: 2
  - name: refused
    events: [{source: shop, event: plain, data: {id: [1]}}]
    expect: []
`))
	if len(found) > 0 {
		t.Fatal(found)
	}
	res, err := runner.Run(&files[0].Tests[0])
	if err != nil || len(res.Failures) > 0 {
		t.Errorf("%+v, %v", res.Failures, err)
	}
	if _, err := runner.Run(&files[0].Tests[1]); err == nil || !strings.Contains(err.Error(), "the id of the event cannot be made of this request") {
		t.Errorf("%v", err)
	}
}
