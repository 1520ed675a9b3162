package spectest_test

import (
	"strings"
	"testing"
)

const handled = `apiVersion: engine/v1
kind: Function
metadata: {name: ship}
spec: {log: {}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: orders}
spec:
  dependencies: [{name: order, type: order}]
  correlate: data.id
  triggers:
    - name: ship
      function: ship
      input: "${ order.data.to.address }"
      deadLetter:
        http: {url: "http://a/${ order.data.id }", headers: {X-Why: "${ triggers.ship.error }"}}
        input: {id: "${ order.data.id }", why: "${ triggers.ship.error }", code: "${ triggers.ship.output.code ?? 0 }"}
    - {name: plain, condition: order && order.data.id > 100, function: ship, deadLetter: {function: ship}}
    - name: parts
      condition: order && order.data.id > 200
      function: ship
      foreach: {in: order.data.parts}
      deadLetter: {log: {message: "part ${ item }: ${ triggers.parts.error }"}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: shouts}
spec:
  dependencies: [{name: told, function: orders.ship.deadLetter, outcome: failed}]
  triggers: [{name: shout, function: ship, input: "${ told.data.error }"}]
---
apiVersion: engine/v1
kind: Subscription
metadata: {name: hello}
spec: {eventType: hello, function: ship, deadLetter: {log: {message: "hello ${ event.data.name }: ${ triggers.call.error }"}}}
`

// TestDeadLetters: a result that fails calls the deadLetter of its trigger,
// whether or not the result is told.
func TestDeadLetters(t *testing.T) {
	const fire = "{type: order, data: {id: 7, to: {address: here}}}"
	if got := runOn(t, handled, `
tests:
  - name: what is rendered, when, and with which key
    events:
      - `+fire+`
      - {after: 5m, result: {trigger: ship, error: no such street, output: {code: 3}}}
    expect:
      - {sensor: orders, trigger: ship, at: 0s, input: here}
      - sensor: orders
        trigger: ship.deadLetter
        at: 5m
        key: 7
        function: http
        input: {id: 7, why: no such street, code: 3}
        config: {url: http://a/7, headers: {X-Why: no such street}}
  - name: its own failure is a dead letter that is told to who asks
    events:
      - `+fire+`
      - {after: 5m, result: {trigger: ship, outcome: failed}}
      - {after: 5m, result: {trigger: ship.deadLetter, error: nobody there}}
    expect:
      - {sensor: orders, trigger: ship}
      - {sensor: orders, trigger: ship.deadLetter, at: 5m, contains: {why: failed, code: 0}}
      - {sensor: shouts, at: 10m, input: nobody there}
  - name: a fault
    events:
      - {type: order, data: {id: 8}}
      - {after: 1s, result: {trigger: ship, outcome: failed}}
    expect:
      - {sensor: orders, trigger: ship, error: order.data.to}
      - {sensor: orders, trigger: ship.deadLetter, contains: {id: 8}}
  - name: without an input it gets what the result would tell
    events:
      - {type: order, data: {id: 101, to: {address: there}}}
      - {result: {trigger: plain, error: nope}}
    expect:
      - {sensor: orders, trigger: ship}
      - {sensor: orders, trigger: plain}
      - {sensor: orders, trigger: plain.deadLetter, function: ship, contains: {function: ship, sensor: orders, trigger: plain, key: 101, outcome: failed, error: nope, attempts: 1}}
  - name: an item
    strict: false
    events:
      - {type: order, data: {id: 201, to: {address: there}, parts: [a, b]}}
      - {result: {trigger: parts, item: 1, error: nope}}
    expect:
      - {sensor: orders, trigger: parts.deadLetter, config: {message: "part b: nope"}}
  - name: of a subscription
    events:
      - {type: hello, data: {name: world}}
      - {result: {trigger: call, error: nope}}
    expect:
      - {sensor: subscription.hello, trigger: call}
      - {sensor: subscription.hello, trigger: call.deadLetter, config: {message: "hello world: nope"}}
`); got != "" {
		t.Error(got)
	}
	got := runOn(t, handled, `
tests:
  - name: not called
    events:
      - `+fire+`
      - {after: 5m, result: {trigger: ship, error: nope}}
    expect:
      - {sensor: orders, trigger: ship}
  - name: a success is not told
    events:
      - `+fire+`
      - {after: 5m, result: {trigger: ship}}
    expect:
      - {sensor: orders, trigger: ship}
`)
	for _, want := range []string{
		"not called: sensor orders fires, which is not expected\n", "+ trigger: ship.deadLetter",
		"a success is not told: the engine does not tell this result: no dependency asks for results of ship",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nhas not %q", got, want)
		}
	}
}
