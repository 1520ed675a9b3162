package expression

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// outline is a trace on one line: source=value, or source!outcome, and the
// parts in brackets.
func outline(t *Trace) string {
	s := t.Source
	switch t.Outcome {
	case Evaluated:
		b, _ := json.Marshal(t.Value)
		s += "=" + string(b)
		if t.Cut {
			s += "~"
		}
	case Skipped:
		s += "-"
	default:
		s += "!" + string(t.Outcome) + ":" + t.Detail
	}
	if len(t.Parts) > 0 {
		parts := make([]string, len(t.Parts))
		for i := range t.Parts {
			parts[i] = outline(&t.Parts[i])
		}
		s += " [" + strings.Join(parts, "; ") + "]"
	}
	return s
}

func TestTrace(t *testing.T) {
	order := event(map[string]any{
		"total": int64(50), "kind": "x", "null": nil, "flag": true, "tags": []any{"a", "b"},
		"items": []any{map[string]any{"n": int64(1)}, map[string]any{"n": int64(2)}}, "o": map[string]any{"b": int64(2), "a": 1.5},
		"long": strings.Repeat("x", 300),
	})
	small := func(id string) map[string]any {
		return map[string]any{"id": id, "data": map[string]any{"flag": true, "kind": "x", "total": int64(50)}}
	}
	firing := map[string]any{"order": order, "l": []any{small("1"), small("2")}, "gone": true}
	ev := EventScope("order")
	fi := FiringScope(Dep{Name: "order"}, Dep{Name: "pay-ment"}, Dep{Name: "l", List: true}, Dep{Name: "gone", Absent: true}, Dep{Name: "here", Absent: true})
	for _, tt := range []struct {
		src  string
		sc   Scope
		want Want
		out  string
	}{
		{`data.total > 100 && data.kind == "x"`, ev, WantBool, `data.total > 100 && data.kind == "x"=false [data.total > 100=false [data.total=50]; data.kind == "x"- [data.kind-]]`},
		{`data.kind == "x" and (data.total > 10 or data.a.b == 1)`, ev, WantBool, `data.kind == "x" and (data.total > 10 or data.a.b == 1)=true [data.kind == "x"=true [data.kind="x"]; data.total > 10 or data.a.b == 1=true [data.total > 10=true [data.total=50]; data.a.b == 1- [data.a.b-]]]`},
		{`data.flag && data.a.b == 1 && data.total > 1`, ev, WantBool, `data.flag && data.a.b == 1 && data.total > 1!missing:data.a [data.flag=true; data.a.b == 1!missing:data.a [data.a.b!missing:data.a]; data.total > 1- [data.total-]]`},
		{`data.flag && data.null`, ev, WantBool, `data.flag && data.null!missing:data.null [data.flag=true; data.null=null]`},
		{`data.kind`, ev, WantBool, `data.kind!failed:data.kind is a string, not true or false`},
		{`data.total % 0 == 1`, ev, WantBool, `data.total % 0 == 1!failed:runtime error: integer divide by zero [data.total % 0!failed:runtime error: integer divide by zero [data.total=50]]`},
		{`order.data.total + 1`, ev, WantAny, `order.data.total + 1=51 [order.data.total=50]`},
		{`any(data.items, .n > 1) && count(data.items, .n > 1) == len(data.tags)`, ev, WantBool, `any(data.items, .n > 1) && count(data.items, .n > 1) == len(data.tags)=false [any(data.items, .n > 1)=true [data.items=[{"n":1},{"n":2}]]; count(data.items, .n > 1) == len(data.tags)=false [count(data.items, .n > 1)=1 [data.items=[{"n":1},{"n":2}]]; len(data.tags)=2 [data.tags=["a","b"]]]]`},
		{`any(data.items, .x.y > 1)`, ev, WantBool, `any(data.items, .x.y > 1)!missing:.x [data.items=[{"n":1},{"n":2}]]`},
		{`data?.nothing?.here ?? 7`, ev, WantAny, `data?.nothing?.here ?? 7=7 [data?.nothing?.here=null]`},
		{`data.items[data.total - 49].n`, ev, WantAny, `data.items[data.total - 49].n=2 [data.total - 49=1 [data.total=50]]`},
		{`data.tags[1:]`, ev, WantAny, `data.tags[1:]=["b"]`},
		{`time.Year() > 2000 ? data.o : data.null`, ev, WantAny, `time.Year() > 2000 ? data.o : data.null={"a":1.5,"b":2} [time.Year() > 2000=true [time.Year()=2026]; data.o={"a":1.5,"b":2}; data.null-]`},
		{`let t = data.total; t > 100`, ev, WantBool, `let t = data.total; t > 100=false [data.total=50; t > 100=false [t=50]]`},
		{`{id: data.kind, l: [1, data.total]}`, ev, WantAny, `{id: data.kind, l: [1, data.total]}={"id":"x","l":[1,50]} [data.kind="x"; data.total=50]`},
		{`data.kind in ["x", "y"] && type startsWith "order."`, ev, WantBool, `data.kind in ["x", "y"] && type startsWith "order."=true [data.kind in ["x", "y"]=true [data.kind="x"]; type startsWith "order."=true [type="order.created"]]`},
		{`data.long`, ev, WantAny, `data.long="` + strings.Repeat("x", 200) + `…"~`},
		{`time`, ev, WantAny, `time="2026-03-01T12:00:00Z"`},
		{`1..3`, ev, WantAny, `1..3=[1,2,3]`},
		{`7`, ev, WantAny, `7=7`},

		{`order && pay_ment`, fi, WantBool, `order && pay_ment=false [order=true; pay_ment=false]`},
		{`order && absent(gone) && absent(here)`, fi, WantBool, `order && absent(gone) && absent(here)=false [order=true; absent(gone)=true; absent(here)=false]`},
		{`pay_ment.data.x == 1 || order`, fi, WantBool, `pay_ment.data.x == 1 || order!missing:pay_ment [pay_ment.data.x == 1!missing:pay_ment [pay_ment.data.x!missing:pay_ment]; order-]`},
		{`l && sum(l, .data.total) > 60`, fi, WantBool, `l && sum(l, .data.total) > 60=true [l=true; sum(l, .data.total) > 60=true [sum(l, .data.total)=100 [l=[{"data":{"flag":true,"kind":"x","total":50},"id":"1"},{"data":{"flag":true,"kind":"x","total":50},"id":"2"}]]]]`},
		{`!(order && pay_ment)`, fi, WantBool, `!(order && pay_ment)=true [order && pay_ment=false [order=true; pay_ment=false]]`},
	} {
		env := order
		if tt.sc.deps != nil {
			env = firing
		}
		p := compileOK(t, tt.src, tt.sc, tt.want)
		tr := p.Trace(env)
		if got := outline(&tr); got != tt.out {
			t.Errorf("%s\n got %s\nwant %s", tt.src, got, tt.out)
		}
		agrees(t, p, env)
	}
}

// TestTraceFilter: guards are decided first, and the rest is skipped when one
// does not hold, wherever it stands.
func TestTraceFilter(t *testing.T) {
	env := event(map[string]any{"total": int64(50), "kind": "x"})
	for _, tt := range []struct{ src, out string }{
		{`data.a.b > 1 && data.kind == "y"`, `data.a.b > 1 && data.kind == "y"=false [data.a.b > 1- [data.a.b-]; data.kind == "y"=false [data.kind="x"]]`},
		{`data.a.b > 1 && data.kind == "x"`, `data.a.b > 1 && data.kind == "x"!missing:data.a [data.a.b > 1!missing:data.a [data.a.b!missing:data.a]; data.kind == "x"- [data.kind-]]`},
		{`data.total > 1 && (order.data.kind == "x" && "z" == data.a.b) && type == "t"`, `data.total > 1 && (order.data.kind == "x" && "z" == data.a.b) && type == "t"!missing:data.a [data.total > 1- [data.total-]; order.data.kind == "x"=true [order.data.kind="x"]; "z" == data.a.b!missing:data.a [data.a.b!missing:data.a]; type == "t"- [type-]]`},
		{`data.kind == "y"`, `data.kind == "y"=false [data.kind="x"]`},
		{`data.total > 1 && data.kind in ["x"]`, `data.total > 1 && data.kind in ["x"]=true [data.total > 1=true [data.total=50]; data.kind in ["x"]=true [data.kind="x"]]`},
	} {
		p := compileOK(t, tt.src, EventScope("order"), WantBool)
		tr := p.TraceFilter(env)
		if got := outline(&tr); got != tt.out {
			t.Errorf("%s\n got %s\nwant %s", tt.src, got, tt.out)
		}
	}
}

// agrees compares a trace with the result.
func agrees(t testing.TB, p *Program, env map[string]any) {
	t.Helper()
	var v any
	var err error
	if p.want == WantBool {
		v, err = p.Bool(env)
	} else {
		v, err = p.Eval(env)
	}
	tr := p.Trace(env)
	var missing *MissingError
	switch {
	case err == nil:
		want, cut := new(preview{all: maxShownAll}).of(v)
		if tr.Outcome != Evaluated || fmt.Sprint(tr.Value) != fmt.Sprint(want) && !cut {
			t.Fatalf("%s: the trace says %s, the result is %v", p.Source(), outline(&tr), v)
		}
	case errors.As(err, &missing):
		if tr.Outcome != Missing || tr.Detail != missing.Path {
			t.Fatalf("%s: the trace says %s, the result is %v", p.Source(), outline(&tr), err)
		}
	default:
		if tr.Outcome != Failed || tr.Detail != err.Error() {
			t.Fatalf("%s: the trace says %s, the result is %v", p.Source(), outline(&tr), err)
		}
	}
	b, err := json.Marshal(tr)
	if err != nil {
		t.Fatalf("%s: %v", p.Source(), err)
	}
	if limit := 2*maxShownAll + maxTraced*(4*maxText+200); len(b) > limit {
		t.Fatalf("%s: a trace of %d bytes", p.Source(), len(b))
	}
	if p.guards == nil {
		return
	}
	// The filter's answer: guards, then the rest.
	ok, detail := true, ""
	for i := range p.guards {
		if ok, detail = p.guards[i].Test(env); !ok {
			break
		}
	}
	if tf := p.TraceFilter(env); !ok && (tf.Held() || tf.Detail != detail || (tf.Outcome == Missing) != (detail != "")) || ok && outline(&tf) != outline(&tr) {
		t.Fatalf("%s: the filter's trace says %s, its guards %v %s", p.Source(), outline(&tf), ok, detail)
	}
}

// TestTraceBudget: a trace ends where the evaluation ends.
func TestTraceBudget(t *testing.T) {
	env := event(map[string]any{"s": strings.Repeat("a", 1<<20)})
	// Each sum costs an eighth of the budget, and so does the last one's length: it is too much.
	src := `let a = data.s + data.s; let b = data.s + data.s; let c = data.s + data.s; let d = data.s + data.s; let e = data.s + data.s; let f = data.s + data.s; len(data.s + data.s) > 0`
	p := compileOK(t, src, EventScope(), WantAny)
	tr := p.Trace(env)
	if _, err := p.Eval(env); !errors.Is(err, ErrBudget) || tr.Outcome != Failed || tr.Detail != ErrBudget.Error() {
		t.Errorf("%v, the trace says %s %s", err, tr.Outcome, tr.Detail)
	}
	p = compileOK(t, strings.Replace(src, "let f = data.s + data.s; ", "", 1), EventScope(), WantAny)
	if tr := p.Trace(env); !tr.Held() {
		t.Errorf("the trace says %s %s", tr.Outcome, tr.Detail)
	}
}

func BenchmarkTrace(b *testing.B) {
	p := compileOK(b, "data.total > 100 && type == 'x'", EventScope("order"), WantBool)
	env := event(map[string]any{"total": int64(150)})
	b.ReportAllocs()
	for b.Loop() {
		p.Trace(env)
	}
}
