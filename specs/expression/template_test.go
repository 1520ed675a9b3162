package expression

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

func tmplText(s string) specs.Text {
	return specs.Text{Value: s, Pos: specs.TextPos{Pos: specs.Pos{File: "f.yaml", Line: 3, Col: 9}, Indent: 4}, Path: "spec.t"}
}

func TestTemplate(t *testing.T) {
	env := event(map[string]any{"n": int64(7), "f": 1.5, "big": 1e21, "s": "a<b", "o": map[string]any{"k": []any{int64(1), nil}}, "nil": nil, "ok": true})
	tests := []struct {
		in   any
		want any
	}{
		{tmplText("plain"), "plain"},
		{tmplText(""), ""},
		{tmplText("${ data.n }"), int64(7)},
		{tmplText("${data.o}"), map[string]any{"k": []any{int64(1), nil}}},
		{tmplText("${ data.nil }"), nil},
		{tmplText("${data.absent}"), nil},
		{tmplText("n=${ data.n } f=${data.f} s=${data.s} o=${data.o} ok=${data.ok}"), `n=7 f=1.5 s=a<b o={"k":[1,null]} ok=true`},
		{tmplText("$${ x } $ {} $"), "${ x } $ {} $"},
		{tmplText("$$${ data.n }"), "$${ data.n }"},
		{tmplText("${ {'a': data.n} }"), map[string]any{"a": int64(7)}},
		{tmplText(`${ "}" + '}' + ` + "`}`" + ` }`), "}}}"},
		{tmplText(`${ "\"}" }`), `"}`},
		{tmplText("${ data.n /* } */ }x"), "7x"},
		{tmplText("${ data.n // }\n }x"), "7x"},
		{tmplText("${ time }"), "2026-03-01T12:00:00Z"},
		{tmplText("${ [1, 2.5, len('abc')] }"), []any{int64(1), 2.5, int64(3)}},
		{tmplText("${ 1..3 }"), []any{int64(1), int64(2), int64(3)}},
		{tmplText("${ groupBy([1, 2], # % 2) }"), map[string]any{"1": []any{int64(1)}, "0": []any{int64(2)}}},
		{tmplText("${ duration('90s') }"), "1m30s"},
		{map[string]any{"a": tmplText("${data.n}"), "b": []any{tmplText("x"), int64(1), nil, 2.5, true}}, map[string]any{"a": int64(7), "b": []any{"x", int64(1), nil, 2.5, true}}},
	}
	for _, tt := range tests {
		tmpl, ds := CompileTemplate(specs.Template{Root: tt.in, Path: "spec.t", Set: true}, EventScope())
		if err := ds.Err(); err != nil {
			t.Errorf("%v: %v", tt.in, err)
			continue
		}
		got, err := tmpl.Render(env)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%v: got %#v, %v; want %#v", tt.in, got, err, tt.want)
		}
	}
}

func TestRenderString(t *testing.T) {
	env := event(map[string]any{"n": int64(7), "f": 1e21, "nil": nil})
	for in, want := range map[string]string{"x": "x", "${data.n}": "7", "${[data.n]}": "[7]", "/a/${data.n}?x": "/a/7?x", "${data.f}": "1e+21"} {
		tmpl, ds := CompileText(tmplText(in), EventScope())
		if ds.HasErrors() {
			t.Fatal(ds)
		}
		if got, err := tmpl.RenderString(env); err != nil || got != want {
			t.Errorf("%s: %q, %v", in, got, err)
		}
		if tmpl.Constant() != (in == "x") {
			t.Errorf("%s: constant %v", in, tmpl.Constant())
		}
	}
	for _, in := range []string{"${data.nil}", "/a/${ data.nil }", "${ data.x.y }"} {
		tmpl, _ := CompileText(tmplText(in), EventScope())
		_, err := tmpl.RenderString(env)
		var missing *MissingError
		if !errors.As(err, &missing) || !strings.HasPrefix(err.Error(), "spec.t: missing `data.") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestRenderErrors(t *testing.T) {
	deep := any(int64(1))
	for range maxDepth + 1 {
		deep = []any{deep}
	}
	big := strings.Repeat("a", 1<<20)
	env := event(map[string]any{"deep": deep, "nan": math.NaN(), "s": big})
	for in, want := range map[string]string{
		"${ data.deep }": "deeper than", "${ data.nan }": "no JSON number", "x${ 1 / 0 }": "no JSON number",
		strings.Repeat("${ data.s }", 20): "budget",
	} {
		tmpl, ds := CompileText(tmplText(in), EventScope())
		if ds.HasErrors() {
			t.Fatal(ds)
		}
		if _, err := tmpl.Render(env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30s: %v", in, err)
		}
	}
}

func TestTemplateDiagnostics(t *testing.T) {
	for in, want := range map[string]string{
		"ab ${ data.n":            "f.yaml:3:12: error[template-unterminated] spec.t: `${` without its `}`",
		"ab\n ${ '}":              "f.yaml:4:5: error[template-unterminated]",
		"x ${ nope } ${ alsono }": "f.yaml:3:14: error[expr-unknown-name] spec.t: unknown name nope",
		"ö\nö${ \n nope }":        "f.yaml:5:5: error[expr-unknown-name]",
		"${ }":                    "f.yaml:3:11: error[expr-syntax] spec.t: the expression is empty",
		"${ now() }":              "f.yaml:3:12: error[expr-not-deterministic]",
	} {
		_, ds := CompileText(tmplText(in), EventScope())
		if len(ds) == 0 || !strings.HasPrefix(ds[0].String(), want) {
			t.Errorf("%q: got %v, want %s", in, ds, want)
		}
	}
	for _, pos := range []specs.TextPos{{Pos: specs.Pos{File: "f.yaml", Line: 3, Col: 9}, Fixed: true}, {Pos: specs.Pos{File: "f.yaml", Line: 3, Col: 9}}} {
		_, ds := CompileText(specs.Text{Value: "x\n ${ data.a + nope }", Pos: pos, Path: "spec.t"}, EventScope())
		if len(ds) != 1 || ds[0].Pos != pos.Pos {
			t.Errorf("where places are not known: %v", ds)
		}
	}
	if _, ds := CompileText(tmplText("x ${ nope } ${ alsono }"), EventScope()); len(ds) != 2 {
		t.Errorf("all problems at once: %v", ds)
	}
}

func TestRenderDoesNotChangeTheEvent(t *testing.T) {
	data := map[string]any{"t": time.Unix(0, 0).UTC(), "l": []any{int64(1), 5}}
	tmpl, _ := CompileText(tmplText("${ data }"), EventScope())
	got, err := tmpl.Render(event(data))
	want := map[string]any{"t": "1970-01-01T00:00:00Z", "l": []any{int64(1), int64(5)}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v, %v", got, err)
	}
	if data["t"] != time.Unix(0, 0).UTC() || data["l"].([]any)[1] != 5 {
		t.Fatalf("changed: %v", data)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"a${ data.n }b", "$${x}", "${ '}' }", "${ {a: {b: 1}} }", "${ `", "${ /* } */ 1}", "${ // }\n1}", "$", "${", "}"} {
		f.Add(s)
	}
	env := event(map[string]any{"n": int64(1)})
	f.Fuzz(func(t *testing.T, s string) {
		pieces, bad := scan(s)
		if bad >= 0 && !strings.HasPrefix(s[bad:], "${") {
			t.Fatalf("no ${ at %d", bad)
		}
		for _, p := range pieces {
			if p.expr && (p.at < 2 || s[p.at-2:p.at] != "${" || !strings.HasPrefix(s[p.at:], p.text+"}")) {
				t.Fatalf("piece %+v of %q", p, s)
			}
		}
		tmpl, ds := CompileText(tmplText(s), EventScope())
		if (tmpl == nil) != ds.HasErrors() {
			t.Fatalf("template %v with %v", tmpl, ds)
		}
		if tmpl == nil {
			return
		}
		v, err := tmpl.Render(env)
		if tmpl.Constant() && (err != nil || v != strings.ReplaceAll(s, "$${", "${")) {
			t.Fatalf("%q gives %v, %v", s, v, err)
		}
	})
}

// FuzzRender: compiling and rendering any text ends within the budget,
// without a panic and with the same result each time; places lie inside the
// text.
func FuzzRender(f *testing.F) {
	for _, s := range []string{
		"plain", "${ a.data.n }", "x ${ a.data.s } y ${ a.data.n + 1 }", "$${ a }", "${ a", "${ {x: a.data.l} }", "${ '}' }", "${ `}` }", "${ a /* } */ }",
		"${ a.data.x.y ?? 'none' }", "${ l }${ l[0].id }", "${ a.data }", "${}", "${ repeat('x', 1000000) }", "${ map(1..100000, #) }", "${ // }\n a }", "${ \"\\\"}\" }",
	} {
		f.Add(s)
	}
	sc := FiringScope(Dep{Name: "a"}, Dep{Name: "l", List: true}, Dep{Name: "b"})
	a := event(map[string]any{"n": int64(5), "s": "x", "l": []any{int64(1), nil, 1.5}})
	env := map[string]any{"a": a, "l": []any{a, a}}
	f.Fuzz(func(t *testing.T, src string) {
		text := specs.Text{Value: src, Path: "p", Pos: at(src).Pos}
		tm, ds := CompileText(text, sc)
		if (tm == nil) != ds.HasErrors() {
			t.Fatalf("template %v with %v", tm, ds)
		}
		for _, d := range ds {
			if d.Pos.Line < 10 || d.Pos.Col < 1 || d.Pos.Line > 10+strings.Count(src, "\n") {
				t.Fatalf("place outside the text: %s", d)
			}
		}
		if tm == nil {
			return
		}
		begin := time.Now()
		s1, err1 := tm.RenderString(env)
		if d := time.Since(begin); d > 5*time.Second { // far beyond what a busy machine explains
			t.Fatalf("it took %v", d)
		}
		s2, err2 := tm.RenderString(env)
		if s1 != s2 || (err1 == nil) != (err2 == nil) {
			t.Fatalf("%q, %v; then %q, %v", s1, err1, s2, err2)
		}
		if len(s1) > 32*Budget {
			t.Fatalf("it gives %d bytes", len(s1))
		}
	})
}
