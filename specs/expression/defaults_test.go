package expression

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

// TestDefaults: ?? gives its default for everything that is missing on the
// path before it, in every place.
func TestDefaults(t *testing.T) {
	order := event(map[string]any{
		"n": int64(7), "s": "text", "null": nil, "l": []any{int64(1), int64(2)}, "o": map[string]any{"x": int64(1)}, "flag": true,
	})
	ev, fi := EventScope("order"), FiringScope(Dep{Name: "order"}, Dep{Name: "pay"}, Dep{Name: "l", List: true})
	firing := map[string]any{"order": order, "l": []any{order}}
	const none = "\x00missing "
	for _, tt := range []struct {
		src  string
		sc   Scope
		want Want
		out  any
	}{
		{`data.a ?? "d"`, ev, WantAny, "d"},
		{`data.a.b ?? "d"`, ev, WantAny, "d"},
		{`data.a.b.c.d ?? "d"`, ev, WantAny, "d"},
		{`data.null.b ?? "d"`, ev, WantAny, "d"},
		{`data.n.b ?? "d"`, ev, WantAny, "d"},
		{`data.s.b ?? "d"`, ev, WantAny, "d"},
		{`data.l.b ?? "d"`, ev, WantAny, "d"},
		{`data.l[5].b ?? "d"`, ev, WantAny, "d"},
		{`data.l["x"] ?? "d"`, ev, WantAny, "d"},
		{`data.l[-1] ?? "d"`, ev, WantAny, int64(2)},
		{`data.o["x"] ?? "d"`, ev, WantAny, int64(1)},
		{`data.o[data.a] ?? "d"`, ev, WantAny, "d"},
		{`data.o.x ?? "d"`, ev, WantAny, int64(1)},
		{`data["o"].y.z ?? "d"`, ev, WantAny, "d"},
		{`data?.a.b ?? "d"`, ev, WantAny, "d"},
		{`data.a?.b.c ?? "d"`, ev, WantAny, "d"},
		{`data.a.b[1:] ?? "d"`, ev, WantAny, "d"},
		{`string(data.l[1:] ?? "d")`, ev, WantAny, "[2]"},
		{`string(data.l[:1] ?? "d")`, ev, WantAny, "[1]"},
		{`string(data.l[:-1] ?? "d")`, ev, WantAny, "[1]"},
		{`string(data.l[:] ?? "d")`, ev, WantAny, "[1 2]"},
		{`data.s[1:3] ?? "d"`, ev, WantAny, "ex"},
		{`data.n[1:] ?? "d"`, ev, WantAny, "d"},
		{`data.a.b ?? data.c.d ?? "d"`, ev, WantAny, "d"},
		{`data.a.b ?? data.o.x ?? "d"`, ev, WantAny, int64(1)},
		{`(data.flag ? data.a.b : data.s) ?? "d"`, ev, WantAny, "d"},
		{`(let a = data.o; a.b.c) ?? "d"`, ev, WantAny, "d"},
		{`order.data.a.b ?? "d"`, ev, WantAny, "d"},
		{`request.headers.x ?? "d"`, ev, WantAny, "d"},
		{`extensions.x ?? "d"`, ev, WantAny, "d"},
		{`upper(data.a.b ?? "d")`, ev, WantAny, "D"},
		{`map(data.l, #.x.y ?? (# + 1))`, ev, WantAny, "[2 3]"},
		{`(data.a.b ?? 1) > 0 && data.flag`, ev, WantBool, true},
		{`data.a.b ?? true`, ev, WantBool, true},
		{`first(data.o.list ?? []) ?? "d"`, ev, WantAny, "d"},
		// What is not the path before ?? is as everywhere.
		{`data.a.b ?? data.c.d`, ev, WantAny, none + "data.c"},
		{`data.a.b`, ev, WantAny, none + "data.a"},
		{`data.a?.b`, ev, WantAny, nil},
		{`data?.a.b`, ev, WantAny, none + "data?.a"},
		{`first(data.a.b) ?? "d"`, ev, WantAny, none + "data.a"},
		{`upper(data.a.b) ?? "d"`, ev, WantAny, none + "data.a"},
		{`data.a`, ev, WantAny, nil},
		{`data.o[data.a.b] ?? "d"`, ev, WantAny, none + "data.a"},
		{`order.data.a.b ?? "d"`, fi, WantAny, "d"},
		{`order.request.headers["x-y"] ?? "d"`, fi, WantAny, "d"},
		{`l[7].data.a ?? "d"`, fi, WantAny, "d"},
		// A template takes the default for an event that has not arrived, a
		// condition waits for it, unless it says ?. itself.
		{`pay.data.a.b ?? "d"`, fi, WantAny, "d"},
		{`(pay.data.a ?? 1) == 1`, fi, WantBool, none + "pay"},
		{`(pay?.data.a ?? 1) == 1`, fi, WantBool, true},
		{`(order.data.a.b ?? 1) == 1`, fi, WantBool, true},
	} {
		env := order
		if tt.sc.deps != nil {
			env = firing
		}
		p := compileOK(t, tt.src, tt.sc, tt.want)
		got, err := p.Eval(env)
		if path, ok := strings.CutPrefix(fmt.Sprint(tt.out), none); ok {
			var missing *MissingError
			if !errors.As(err, &missing) || missing.Path != path {
				t.Errorf("%s: got %v, %v; want missing %s", tt.src, got, err, path)
			}
		} else if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.out) {
			t.Errorf("%s: got %v, %v; want %v", tt.src, got, err, tt.out)
		}
		agrees(t, p, env)
	}
}

// TestDefaultsInTemplates: whole, in text, and nested.
func TestDefaultsInTemplates(t *testing.T) {
	sc := FiringScope(Dep{Name: "order"}, Dep{Name: "pay"})
	env := map[string]any{"order": event(map[string]any{"n": int64(7)})}
	for src, want := range map[string]string{
		`${ order.data.a.b ?? "none" }`:                                      "none",
		`a ${ order.data.a.b ?? "none" } ${ order.data.n ?? 0 }`:             "a none 7",
		`${ pay.data.sum ?? 0 } of ${ pay.id ?? "nothing" }`:                 "0 of nothing",
		`${ order?.data?.a?.b ?? "none" }`:                                   "none",
		`${ {"x": order.data.a.b ?? [], "y": order.data.l[3] ?? {"z": 1}} }`: `{"x":[],"y":{"z":1}}`,
	} {
		tm, ds := CompileText(specs.Text{Value: src, Path: "input.x"}, sc)
		if err := ds.Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := tm.RenderString(env); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", src, got, err, want)
		}
	}
	tm, _ := CompileText(specs.Text{Value: "x ${ order.data.a.b }", Path: "input.x"}, sc)
	if _, err := tm.RenderString(env); err == nil || err.Error() != "input.x: missing `order.data.a`" {
		t.Errorf("got %v", err)
	}
}

// TestFieldReads: the fields of data that are read, and where.
func TestFieldReads(t *testing.T) {
	fi := FiringScope(Dep{Name: "order"}, Dep{Name: "pay-ment"}, Dep{Name: "l", List: true})
	for _, tt := range []struct {
		src  string
		sc   Scope
		want string
	}{
		{"data.total > 100 && kind == data.kind", EventScope("kind"), "10:12 total; 10:40 kind"},
		{"order.data.total > data?.x", EventScope("order"), "10:18 total; 10:32 x?"},
		{"order.data.total > 1 &&\n pay_ment.data['a'].b == (pay_ment.data.c.d ?? 1)", fi, "10:18 order.total; 11:20 pay-ment.a; 11:45 pay-ment.c?"},
		{"data", EventScope(), ""},
		{"any(l, .data.x)", fi, ""},
	} {
		p := compileOK(t, tt.src, tt.sc, WantAny)
		var got []string
		for _, r := range p.FieldReads() {
			s := fmt.Sprintf("%d:%d ", r.Pos.Line, r.Pos.Col)
			if r.Dependency != "" {
				s += r.Dependency + "."
			}
			if s += r.Field; r.Optional {
				s += "?"
			}
			got = append(got, s)
		}
		if s := strings.Join(got, "; "); s != tt.want {
			t.Errorf("%s: got %q, want %q", tt.src, s, tt.want)
		}
	}
}
