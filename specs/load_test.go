package specs_test

import (
	"testing"
)

const shop = `apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec:
  webhook:                       # a source type …
    orders: {path: /orders}      # … and its events, by name
    payments: {path: /payments, auth: {hmac: {header: X-Signature, secret: {name: shop, key: hook}}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: ship-paid-orders}
spec:
  dependencies:
    - {name: order,   source: shop, event: orders, when: data.total > 100}
    - {name: payment, source: shop, event: payments}
  correlate: data.orderId
  within: 10m
  condition: order && payment
  triggers:
    - name: ship
      function: ship-order
      input: {order: "${ order.data }", amount: "${ payment.data.amount }"}
      retry: {attempts: 5, backoff: 1s, factor: 2}
    - name: note
      log: {message: "order ${ order.data.id }"}
---
apiVersion: engine/v1
kind: Function
metadata: {name: ship-order}
spec:
  http:
    url: https://example.com/${ input.order.id }
    headers:
      Authorization: {secret: {name: shop, key: hook}, prefix: "Bearer "}
  timeout: 10s
---
apiVersion: engine/v1
kind: Secret
metadata: {name: shop}
spec:
  env: {hook: SHOP_HOOK}
`

func TestLoadShop(t *testing.T) {
	l := loader()
	got := l.LoadBytes("shop.yaml", []byte(shop))
	if err := got.Diagnostics.Err(); err != nil || len(got.Resources) != 4 {
		t.Fatalf("%d resources, %v", len(got.Resources), err)
	}
	if ds := l.Check(got.Set()); len(ds) > 0 {
		t.Fatal(ds.Err())
	}
	for _, r := range got.Resources {
		t.Logf("%s %s %q %v\n%+v", r.Ref(), r.Pos, r.Source, r.Uses, r.Spec)
	}
}
