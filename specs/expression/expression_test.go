package expression

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/expr-lang/expr/builtin"

	"github.com/sensor-engine/engine/specs"
)

func at(src string) specs.Expr {
	return specs.Expr{Source: src, Pos: specs.TextPos{Pos: specs.Pos{File: "f.yaml", Line: 10, Col: 7}, Indent: 5}}
}

func compileOK(t testing.TB, src string, sc Scope, want Want) *Program {
	t.Helper()
	p, ds := Compile(at(src), "spec.x", sc, want)
	if err := ds.Err(); err != nil {
		t.Fatalf("compile %q:\n%v", src, err)
	}
	return p
}

func event(data any) map[string]any {
	return map[string]any{
		"id": "1", "type": "order.created", "source": "/shop", "subject": "s",
		"time":            time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		"datacontenttype": "application/json", "dataschema": "", "extensions": map[string]any{"traceparent": "t"},
		"data": data, "request": nil,
	}
}

func TestBool(t *testing.T) {
	order := event(map[string]any{
		"total": int64(150), "kind": "book", "id": int64(9007199254740993), "tags": []any{"a", "b"},
		"items": []any{map[string]any{"n": int64(1)}, map[string]any{"n": int64(2)}}, "flag": true, "null": nil,
	})
	tests := []struct {
		src     string
		want    bool
		missing string
		failed  string
	}{
		{src: "data.total > 100", want: true},
		{src: "data.total > 200"},
		{src: "order.data.total > 100", want: true},
		{src: `order.type == "order.created" && type startsWith "order."`, want: true},
		{src: "data.id == 9007199254740993", want: true},
		{src: "data.id == 9007199254740992"},
		{src: `data.kind in ["book", "toy"]`, want: true},
		{src: `"a" in data.tags`, want: true},
		{src: "data.flag", want: true},
		{src: "!data.flag"},
		{src: "count(data.items, .n > 1) == 1", want: true},
		{src: "any(data.items, .n > 1 && .n < 3)", want: true},
		{src: `extensions.traceparent == "t"`, want: true},
		{src: `data.kind matches "^b.*k$"`, want: true},
		{src: "time.Year() == 2026", want: true},
		{src: "data.total > 100 ? data.flag : false", want: true},
		{src: "(data?.nothing?.here ?? 7) == 7", want: true},
		{src: "data.nothing == nil", want: true},
		{src: "let t = data.total; t > 100 && t < 200", want: true},
		{src: `data.kind + "s" == "books"`, want: true},
		{src: "order != nil", want: true},

		{src: "data.nothing", missing: "data.nothing"},
		{src: "data.nothing > 5", missing: "data.nothing"},
		{src: "5 < data.nothing", missing: "data.nothing"},
		{src: "data.a.b == 1", missing: "data.a"},
		{src: "data.kind.b == 1", missing: "data.kind.b"},
		{src: "data.kind > 5", missing: "data.kind"},
		{src: `data.total > "5"`, missing: "data.total"},
		{src: "data.items[7].n == 1", missing: "data.items[7]"},
		{src: "data.null && data.flag", missing: "data.null"},
		{src: "data.flag && data.null", missing: "data.null"},
		{src: "data.flag && (false || data.null)", missing: "data.null"},
		{src: "not data.null", missing: "data.null"},
		{src: "data.null ? true : false", missing: "data.null"},
		{src: "data.null + 1 > 1", missing: "data.null"},
		{src: "data.null + data.total > 1", missing: "data.null"},
		{src: "len(data.null) > 1", missing: "data.null"},
		{src: "any(data.null, # > 1)", missing: "data.null"},
		{src: "any(data.items, .x > 1)", missing: ".x"},
		{src: `upper(data.null) == "X"`, missing: "data.null"},
		{src: `join(data.null, ",") == "X"`, missing: "data.null"},
		{src: "-data.null == 1", missing: "data.null"},
		{src: "data.null[1:2] == 1", missing: "data.null"},
		{src: "request.method == \"GET\"", missing: "request"},
		{src: "order.data.zip.code == 1", missing: "order.data.zip"},

		{src: "data.kind", failed: "not true or false"},
		{src: "data.total % 0 == 1", failed: "integer divide by zero"},
		{src: "data.total && true", failed: "not bool"},
		{src: `int(data.kind) == 1`, failed: "int(book)"},
		{src: `fromJSON(data.kind) == 1`, failed: "invalid character"},
		{src: `timezone("Local") == nil`, failed: "depends on the machine"},
	}
	for _, tt := range tests {
		t.Run(tt.src, func(t *testing.T) {
			p := compileOK(t, tt.src, EventScope("order"), WantBool)
			got, err := p.Bool(order)
			var missing *MissingError
			switch {
			case tt.missing != "":
				if !errors.As(err, &missing) || missing.Path != tt.missing {
					t.Fatalf("got %v, %v; want missing %s", got, err, tt.missing)
				}
			case tt.failed != "":
				if err == nil || errors.As(err, &missing) || !strings.Contains(err.Error(), tt.failed) {
					t.Fatalf("got %v, %v; want a failure with %q", got, err, tt.failed)
				}
			case err != nil || got != tt.want:
				t.Fatalf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestArrival(t *testing.T) {
	a, b := event(map[string]any{"n": int64(1), "ok": true}), event(map[string]any{"n": int64(2)})
	tests := []struct {
		src  string
		env  map[string]any
		want any
	}{
		{"a && b_b", map[string]any{"a": a}, false},
		{"a && b_b", map[string]any{"a": a, "b_b": b}, true},
		{"a || b_b", map[string]any{"b_b": b}, true},
		{"a or b_b", map[string]any{}, false},
		{"a", map[string]any{"a": a}, true},
		{"a", nil, false},
		{"a ? b_b : l", map[string]any{"a": a}, false},
		{"a ? b_b : l", map[string]any{"l": []any{a}}, true},
		{"l", map[string]any{"l": []any{}}, false},
		{"l && len(l) > 1", map[string]any{"l": []any{a, b}}, true},
		{"a && a.data.n == 1", map[string]any{"a": a}, true},
		{"a and b_b and a.data.n < b_b.data.n", map[string]any{"a": a, "b_b": b}, true},
		{"!(a && b_b)", map[string]any{"a": a}, true},
		{"a && a.data.ok", map[string]any{"a": a}, true},
		{"sum(l, .data.n) == 3", map[string]any{"l": []any{a, b}}, true},
		{"let n = a.data.n; b_b && n == 1", map[string]any{"a": a, "b_b": b}, true},
	}
	sc := FiringScope(Dep{Name: "a"}, Dep{Name: "b-b"}, Dep{Name: "l", List: true})
	for _, tt := range tests {
		p := compileOK(t, tt.src, sc, WantBool)
		got, err := p.Bool(tt.env)
		if err != nil || got != tt.want {
			t.Errorf("%s: got %v, %v; want %v", tt.src, got, err, tt.want)
		}
	}
	p := compileOK(t, "b_b && a && a.data.n > 1", sc, WantBool)
	if got := strings.Join(p.Dependencies(), " "); got != "b-b a" {
		t.Errorf("Dependencies() = %q", got)
	}
	p = compileOK(t, "a.data.n == 1", sc, WantBool)
	var missing *MissingError
	if _, err := p.Bool(nil); !errors.As(err, &missing) || missing.Path != "a" {
		t.Errorf("an event that has not arrived: %v", err)
	}
}

func TestNeeds(t *testing.T) {
	tests := []struct {
		src           string
		sc            Scope
		data, request bool
	}{
		{"type == 'x'", EventScope("o"), false, false},
		{"data.x == 1", EventScope("o"), true, false},
		{"o.data.x == 1", EventScope("o"), true, false},
		{"o.request.method == 'GET'", EventScope("o"), false, true},
		{"o == nil", EventScope("o"), true, true},
		{"a && b", FiringScope(Dep{Name: "a"}, Dep{Name: "b"}), false, false},
		{"a.type == 'x'", FiringScope(Dep{Name: "a"}), false, false},
		{"a.data == 'x'", FiringScope(Dep{Name: "a"}), true, false},
		{"any(a, .data.n == 1)", FiringScope(Dep{Name: "a", List: true}), true, true},
		{"input == 1 && event.data == 1", CallScope(), true, false},
	}
	for _, tt := range tests {
		p := compileOK(t, tt.src, tt.sc, WantBool)
		if p.NeedsData() != tt.data || p.NeedsRequest() != tt.request {
			t.Errorf("%s: needs data %v, request %v", tt.src, p.NeedsData(), p.NeedsRequest())
		}
	}
}

// TestDiagnostics asserts place, code and text of each sort of diagnostic. The
// text begins at 10:7; later lines at column 5.
func TestDiagnostics(t *testing.T) {
	ev, fi := EventScope("order"), FiringScope(Dep{Name: "order"}, Dep{Name: "pay-ment"})
	ab := FiringScope(Dep{Name: "order"}, Dep{Name: "heart-beat", Absent: true})
	tests := []struct {
		src  string
		sc   Scope
		want string
	}{
		{"data.total >", ev, "f.yaml:10:18: error[expr-syntax] spec.x: the expression ends too early"},
		{"data.total = 5", ev, "f.yaml:10:18: error[expr-syntax] spec.x: unexpected token Operator(\"=\") (equality is written ==)"},
		{"  ", ev, "f.yaml:10:7: error[expr-syntax] spec.x: the expression is empty"},
		{"data.a == 'x", ev, "f.yaml:10:19: error[expr-syntax] spec.x: literal not terminated"},
		{"äö == 1", ev, "f.yaml:10:7: error[expr-unknown-name] spec.x: unknown name äö (the payload is `data`: write data.äö)"},
		{"type == 'ä' && total > 1", ev, "f.yaml:10:22: error[expr-unknown-name] spec.x: unknown name total (the payload is `data`: write data.total)"},
		{"true &&\n  subjct == 'x'", ev, "f.yaml:11:7: error[expr-unknown-name] spec.x: unknown name subjct (did you mean subject?)"},
		{"order.dta.x == 1", ev, "f.yaml:10:13: error[expr-unknown-name] spec.x: unknown field dta (did you mean data?)"},
		{"lenn(data.x) == 1", ev, "f.yaml:10:7: error[expr-unknown-name] spec.x: unknown name lenn (did you mean len?)"},
		{"$env.id == 'x'", ev, "f.yaml:10:7: error[expr-unknown-name] spec.x: unknown name $env"},
		{"order && paymnt", fi, "f.yaml:10:16: error[expr-unknown-name] spec.x: unknown name paymnt (did you mean pay_ment?)"},
		{"order && zzz", fi, "f.yaml:10:16: error[expr-unknown-name] spec.x: unknown name zzz (the dependencies are order, pay_ment)"},
		{"order && absent(pay_ment)", fi, "f.yaml:10:23: error[expr-absent-dependency] spec.x: dependency pay-ment does not say when it counts as absent (give it absent: {for, after})"},
		{"absent(order)", ev, "f.yaml:10:7: error[expr-unknown-name] spec.x: unknown name absent (whether an event stays away is asked in the condition of a sensor)"},
		{"order && absent(heartbeat)", ab, "f.yaml:10:23: error[expr-unknown-name] spec.x: unknown name heartbeat (did you mean heart_beat?)"},
		{"absent()", ab, "f.yaml:10:7: error[expr-absent-dependency] spec.x: absent() takes the name of one dependency (write absent(name))"},
		{"absent(order.data)", ab, "f.yaml:10:7: error[expr-absent-dependency] spec.x: absent() takes"},
		{"order && heart_beat", ab, "f.yaml:10:16: error[expr-absent-dependency] spec.x: heart-beat is declared absent, so it never arrives (ask absent(heart_beat); to read the event, declare a second dependency without absent)"},
		{"order && heart_beat.data.x == 1", ab, "f.yaml:10:16: error[expr-absent-dependency]"},
		{"order && heart_beat == nil", ab, "f.yaml:10:16: error[expr-absent-dependency]"},
		{"order && !heart_beat", ab, "f.yaml:10:16: error[expr-negated-dependency] spec.x: !heart_beat would be true until heart_beat arrives (write absent(heart_beat))"},
		{"order && not absent(heart_beat)", ab, "f.yaml:10:16: error[expr-negated-dependency] spec.x: not absent() would be true until the time is up (name a dependency without absent for the event that should arrive)"},
		{"order.data.x == 1 && order.dat == 1", fi, "f.yaml:10:34: error[expr-unknown-name] spec.x: unknown field dat (did you mean data?)"},
		{"subject > 5", ev, "f.yaml:10:15: error[expr-type] spec.x: invalid operation: > (mismatched types string and int)"},
		{"len(data.x, 1) == 1", ev, "f.yaml:10:7: error[expr-type] spec.x: invalid number of arguments (expected 1, got 2)"},
		{"data.total + 1", ev, ""},
		{"len(data.x) + 1", ev, "f.yaml:10:7: error[expr-not-boolean] spec.x: the condition gives a number, not true or false (compare it with something)"},
		{"order", ev, "f.yaml:10:7: error[expr-not-boolean] spec.x: order is the event itself, not true or false (ask for one of its attributes, such as order.data)"},
		{"subject ? true : false", ev, "f.yaml:10:7: error[expr-not-boolean] spec.x: non-bool expression (type string) used as condition"},
		{"order && !pay_ment", fi, "f.yaml:10:16: error[expr-negated-dependency] spec.x: !pay_ment would be true until pay_ment arrives (to ask whether an event stays away, give pay-ment absent: {for, after} and write absent(pay_ment))"},
		{"order && not (pay_ment)", fi, "f.yaml:10:16: error[expr-negated-dependency] spec.x: not pay_ment would be true until pay_ment arrives (to ask whether an event stays away, give pay-ment absent: {for, after} and write absent(pay_ment))"},
		{"time < now()", ev, "f.yaml:10:14: error[expr-not-deterministic] spec.x: now() reads the clock (use the event's `time`)"},
		{"time.Local().Hour() == 1", ev, "f.yaml:10:12: error[expr-not-deterministic] spec.x: Local() depends on the machine (use UTC(), or In(timezone(\"Europe/Berlin\")))"},
		{"data.a matches data.b", ev, "f.yaml:10:27: error[expr-pattern] spec.x: the pattern of matches must be a string literal (use contains, startsWith or endsWith for text that is not known before)"},
		{"data.a matches '" + strings.Repeat("a", MaxPattern+1) + "'", ev, "f.yaml:10:22: error[expr-pattern] spec.x: the pattern has 1001 bytes, the limit is 1000"},
		{"data.a matches '('", ev, "f.yaml:10:14: error[expr-type] spec.x: error parsing regexp: missing closing ): `(`"},
		{strings.Repeat(" ", MaxSource) + "1", ev, "f.yaml:10:7: error[expr-too-large] spec.x: the expression has 16385 bytes, the limit is 16384 (split it over several dependencies or move it into a function)"},
		{"[" + strings.Repeat("1,", MaxNodes) + "1] == 1", ev, "error[expr-too-large] spec.x: the expression has more than 4096 parts"},
		{"(data.total + 1 ?? 5) == 1", ev, "f.yaml:10:21: error[expr-unused-default] spec.x: the left side of ?? is 1, so its default is never taken (?? binds more tightly than any other operator: put what may be missing alone on its left, as in (data.a ?? 5) + 1)"},
		{"((data.total + 1) ?? 5) == 1", ev, "f.yaml:10:9: error[expr-unused-default] spec.x: the left side of ?? is never nil, so its default is never taken (write ?? after each path that may be missing, as in (data.a ?? 5) + 1)"},
		{"(-data.total ?? 5) == 1", ev, ""},
		{"(subject ?? 'x') == 'x'", ev, "f.yaml:10:8: error[expr-unused-default] spec.x: subject is an empty text when the event has none, so the default is never taken (write subject != \"\" ? subject : …)"},
		{"order.type ?? 'x'", ev, "f.yaml:10:13: error[expr-unused-default] spec.x: every event has type, so the default is never taken"},
		{"let order = 1; order == 1", ev, "f.yaml:10:11: error[expr-type] spec.x: cannot redeclare order"},
	}
	for _, tt := range tests {
		_, ds := Compile(at(tt.src), "spec.x", tt.sc, WantBool)
		var got []string
		for _, d := range ds {
			got = append(got, d.String())
		}
		if s := strings.Join(got, "\n"); s != tt.want && (tt.want == "" || !strings.Contains(s, tt.want)) {
			t.Errorf("%.60q\n got %s\nwant %s", tt.src, s, tt.want)
		}
	}
}

// TestBuiltinsClassified fails when a version of expr brings a function that
// nobody has thought about.
func TestBuiltinsClassified(t *testing.T) {
	known := map[string]bool{}
	for _, f := range builtin.Builtins {
		known[f.Name] = true
		c, ok := classes[f.Name]
		switch {
		case !ok:
			t.Errorf("%s: not classified: does it read a clock, a zone, the order of a map? what does it cost?", f.Name)
		case c == own && ownFunctions[f.Name] == nil, c == refused && refusals[f.Name] == "":
			t.Errorf("%s: classified without its implementation or hint", f.Name)
		}
		if f.Predicate != (c == loop) {
			t.Errorf("%s: takes a predicate: %v", f.Name, f.Predicate)
		}
	}
	for name := range classes {
		if !known[name] {
			t.Errorf("%s: classified but no function of expr", name)
		}
	}
}

func TestDeterministicBuiltins(t *testing.T) {
	m := map[string]any{}
	for k := range strings.SplitSeq("k e a z y b w c", " ") {
		m[k] = k + k
	}
	env := event(map[string]any{"m": m, "nums": []any{int64(3), int64(1), int64(3)}})
	for src, want := range map[string]any{
		`join(keys(data.m), "")`:                                        "abcekwyz",
		`join(values(data.m), "")`:                                      "aabbcceekkwwyyzz",
		`join(map(toPairs(data.m), #[0]), "")`:                          "abcekwyz",
		`fromPairs(toPairs(data.m)).k`:                                  "kk",
		`string(date("2026-01-02T03:04:05+02:00"))`:                     "2026-01-02 03:04:05 +0200 +0200",
		`date("2026-01-02").Location().String()`:                        "UTC",
		`date("2026-01-02", "2006-01-02", "Europe/Berlin").UTC().Day()`: 1,
		`fromJSON("9007199254740993")`:                                  int64(9007199254740993),
		`toJSON(data.nums)`:                                             "[\n  3,\n  1,\n  3\n]",
		`len(uniq(data.nums))`:                                          2,
		`sum(data.nums)`:                                                7,
		`replace("aXbX", "X", "--")`:                                    "a--b--",
		`replace("aXbX", "X", "--", 1)`:                                 "a--bX",
		`repeat("ab", 3)`:                                               "ababab",
		`string(keys(groupBy(data.nums, #)))`:                           "[1 3]",
		`sort(data.nums)[0]`:                                            int64(1),
		`toBase64("x") + fromBase64("eA==")`:                            "eA==x",
		`len("äö")`:                                                     2,
		`split("a,b", ",")[1]`:                                          "b",
		`max(data.nums)`:                                                int64(3),
		`duration("2s").Seconds()`:                                      2.0,
		`data.m | keys() | len()`:                                       8,
		`trim(" x ")`:                                                   "x",
	} {
		p := compileOK(t, src, EventScope(), WantAny)
		for range 20 {
			got, err := p.Eval(env)
			if err != nil || got != want {
				t.Errorf("%s = %v, %v; want %v", src, got, err, want)
				break
			}
		}
	}
}

// TestBombs runs expressions that would take seconds to hours or gigabytes.
func TestBombs(t *testing.T) {
	big := strings.Repeat("a", 1<<20)
	deep := any(int64(1))
	for range 500 {
		deep = []any{deep}
	}
	wide := make([]any, 100_000)
	for i := range wide {
		wide[i] = int64(i)
	}
	// A list that holds itself 2^40 times over, in few steps.
	dag := "(reduce(1..40, [#acc, #acc], 1))"
	env := event(map[string]any{"s": big, "t": strings.Clone(big), "l": wide, "l2": append([]any(nil), wide...), "deep": deep})
	for _, src := range []string{
		`len(join(map(1..10000, data.s)))`,
		`replace(data.s, "a", data.s)`,
		`repeat(data.s, 100000)`,
		`repeat("abc", 9223372036854775807)`,
		`count(1..3000, count(1..3000, # > 0) > 0)`,
		`count(data.l, count(data.l, # > 0) > 0)`,
		`1..1000000000`,
		`map(1..3000, 1..3000)`,
		`reduce(1..64, #acc + #acc, data.s)`,
		`reduce(1..64, concat(#acc, #acc), [1, 2])`,
		`let a = data.s + data.s; let b = a + a; let c = b + b; let d = c + c; let e = d + d; let f = e + e; f + f`,
		`count(1..100000, data.s == data.t)`,
		`count(1..100000, data.s < data.t)`,
		`count(1..100000, data.l == data.l2)`,
		`count(1..100000, -1 in data.l)`,
		`count(1..100000, data.s contains "b")`,
		`count(1..100000, data.s startsWith data.t)`,
		`count(1..100000, data.s matches "b$")`,
		`data.s matches "(a?){200}(a?){200}b"`,
		`count(1..100000, upper(data.s) == "")`,
		`count(1..100000, len(data.s) == 0)`,
		`count(1..100000, sum(data.l) == 0)`,
		`count(1..100000, max(data.l) == 0)`,
		`count(1..100000, len(split(data.s, "")) == 0)`,
		`count(1..100000, indexOf(data.s, "b") == 0)`,
		`count(1..100000, string(data.l) == "")`,
		`count(1..100000, len(toJSON(data.l)) == 0)`,
		`count(1..100000, len(keys({"a": 1})) == 0 || len(time.Format(data.s)) == 0)`,
		`len(uniq(data.l))`,
		`let a = [data.l, data.l]; let b = [a, a]; let c = [b, b]; let d = [c, c]; let e = [d, d]; toJSON([e, e])`,
		`reduce(1..100000, [#acc, #acc], 1) == reduce(1..100000, [#acc, #acc], 1)`,
		`any(1..2000000, # < 0)`,
		`string(reduce(1..200000, [#acc], 1))`,
		`reduce(1..200000, [#acc], 1) == data.l`,
		`data.nothing[` + dag + `]`,
		`data.l[` + dag + `:]`,
		`data.l[:` + dag + `]`,
		dag + ` in [` + dag + `]`,
	} {
		t.Run(src, func(t *testing.T) {
			p := compileOK(t, src, EventScope(), WantAny)
			if _, err := p.Eval(env); !errors.Is(err, ErrBudget) {
				t.Fatalf("got %v, want the budget", err)
			}
		})
	}
	// Ordinary work on big data stays within it.
	for _, src := range []string{
		`upper(data.s) != ""`, `data.s == data.t`, `data.l == data.l2`, `data.s matches "b$" || true`,
		`count(data.l, # > 5) > 1`, `sum(data.l) > 0`, `99999 in data.l`,
	} {
		p := compileOK(t, src, EventScope(), WantBool)
		if got, err := p.Bool(env); err != nil || !got {
			t.Errorf("%s: %v, %v", src, got, err)
		}
	}
}

// TestDeepSources: sources as long and as deep as they may be are compiled or
// refused, and evaluated, without a panic.
func TestDeepSources(t *testing.T) {
	for name, src := range map[string]string{
		"parentheses": strings.Repeat("(", MaxSource/2-1) + "1" + strings.Repeat(")", MaxSource/2-1),
		"lists":       strings.Repeat("[", 4000) + strings.Repeat("]", 4000),
		"signs":       strings.Repeat("-", 4000) + "1",
		"negations":   strings.Repeat("!", 4000) + "true",
		"members":     "data" + strings.Repeat(".a", 4000),
		"optional":    "data" + strings.Repeat("?.a", 4000) + " ?? 1",
		"branches":    strings.Repeat("true ? ", 1300) + "1" + strings.Repeat(" : 1", 1300),
		"lets":        strings.Repeat("let a = 1; ", 1000) + "a",
		"predicates":  strings.Repeat("map([1], ", 1300) + "#" + strings.Repeat(")", 1300),
		"defaults":    strings.Repeat("(data.a ?? ", 1300) + "1" + strings.Repeat(")", 1300),
		"and":         strings.Repeat("true && ", 2000) + "true",
	} {
		t.Run(name, func(t *testing.T) {
			p, ds := Compile(at(src), "p", EventScope(), WantAny)
			if (p == nil) != ds.HasErrors() {
				t.Fatalf("program %v with %v", p, ds)
			}
			if p != nil {
				agrees(t, p, event(map[string]any{}))
			}
		})
	}
}

func TestConcurrentUse(t *testing.T) {
	p := compileOK(t, `any(data.l, # > 2) && upper(data.s) + "x" == "Ax"`, EventScope(), WantBool)
	env := event(map[string]any{"l": []any{int64(1), int64(3)}, "s": "a"})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if got, err := p.Bool(env); err != nil || !got {
					t.Errorf("got %v, %v", got, err)
					return
				}
				if _, err := p.Bool(event(nil)); err == nil {
					t.Error("no error without data")
					return
				}
			}
		})
	}
	wg.Wait()
}

// narrowed is env with only what p says it reads.
func narrowed(p *Program, sc Scope, env map[string]any) map[string]any {
	narrow := func(ev map[string]any) map[string]any {
		names, all := p.Attributes()
		if all {
			return ev
		}
		out := map[string]any{}
		for _, n := range names {
			if v, ok := ev[n]; ok {
				out[n] = v
			}
		}
		fields, whole := p.DataFields()
		if data, ok := out["data"].(map[string]any); ok && !whole {
			some := map[string]any{}
			for _, f := range fields {
				if v, ok := data[f]; ok {
					some[f] = v
				}
			}
			out["data"] = some
		}
		return out
	}
	if sc.deps == nil {
		return narrow(env)
	}
	out := map[string]any{}
	for ident, d := range sc.deps {
		switch v := env[ident].(type) {
		case map[string]any:
			if slices.Contains(p.Dependencies(), d.Name) {
				out[ident] = narrow(v)
			}
		case []any:
			list := []any{}
			for _, e := range v {
				list = append(list, narrow(e.(map[string]any)))
			}
			out[ident] = list
		}
	}
	return out
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{
		"data.total > 100", "a && b", "!a", "any(l, .x ?? 1)", "let x = 1; x", "{a: 1}", "a.data[1:2]", "if a {1} else {2}", "'\\x'", "$env[a]", "a?.data?.[0]", "::len(a)", "1..5 | map(#)",
		"data.total + data.l[0] > 3 && 'x' in data", "a.data.total == 5 || a.type == 'order.created'", "l[0].data.total", "let d = data; d.s + d['s']",
		"data?.s ?? keys(data)", "get(data, 's')", "a.data | keys()", "map(l, .data.s)", "(data).s", "event.data.s", "find(l, .data != nil).data.total",
	} {
		f.Add(s)
	}
	scopes := []Scope{EventScope("a"), FiringScope(Dep{Name: "a"}, Dep{Name: "l", List: true}), CallScope()}
	env := event(map[string]any{"total": int64(5), "l": []any{int64(1)}, "s": "x"})
	some := event(map[string]any{"total": int64(5), "s": "x"})
	env["a"], env["l"] = some, []any{some, event(nil)}
	f.Fuzz(func(t *testing.T, src string) {
		for _, sc := range scopes {
			for _, want := range []Want{WantAny, WantBool} {
				p, ds := Compile(at(src), "p", sc, want)
				if (p == nil) != ds.HasErrors() {
					t.Fatalf("program %v with %v", p, ds)
				}
				for _, d := range ds {
					if d.Pos.Line < 10 || d.Pos.Col < 1 || d.Pos.Line > 10+strings.Count(src, "\n") {
						t.Fatalf("place outside the text: %s", d)
					}
				}
				if p == nil {
					continue
				}
				begin := time.Now()
				agrees(t, p, env)
				if d := time.Since(begin); d > 10*time.Second { // far beyond what a busy machine explains
					t.Fatalf("it took %v", d)
				}
				v1, err1 := p.Eval(env)
				v2, err2 := p.Eval(env)
				v3, err3 := p.Eval(narrowed(p, sc, env))
				if fmt.Sprint(v1, err1) != fmt.Sprint(v2, err2) {
					t.Fatalf("differs: %v, %v; then %v, %v", v1, err1, v2, err2)
				}
				if fmt.Sprint(v1, err1) != fmt.Sprint(v3, err3) {
					t.Fatalf("%v, %v; with only what it says it reads %v, %v", v1, err1, v3, err3)
				}
			}
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	p := compileOK(b, "data.total > 100", EventScope("order"), WantBool)
	env := event(map[string]any{"total": int64(150)})
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := p.Bool(env); !ok || err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMissing(b *testing.B) {
	p := compileOK(b, "data.total > 100", EventScope("order"), WantBool)
	env := event(map[string]any{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Bool(env); err == nil {
			b.Fatal("no error")
		}
	}
}

func BenchmarkCondition(b *testing.B) {
	p := compileOK(b, "order && payment", FiringScope(Dep{Name: "order"}, Dep{Name: "payment"}), WantBool)
	env := map[string]any{"order": event(nil), "payment": event(nil)}
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := p.Bool(env); !ok || err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	sc := EventScope("order")
	b.ReportAllocs()
	for b.Loop() {
		Compile(at("data.total > 100 && type == 'x'"), "p", sc, WantBool)
	}
}

func TestAbsent(t *testing.T) {
	sc := FiringScope(Dep{Name: "order"}, Dep{Name: "heart-beat", Absent: true}, Dep{Name: "b", Absent: true})
	for _, tt := range []struct {
		src, required string
		hold          bool // with order and heart-beat's absence
	}{
		{"absent(heart_beat)", "heart-beat", true},
		{"order and (absent(heart_beat) && absent(b))", "heart-beat b", false},
		{"order || absent(b)", "", true},
		{"(order && absent(b)) || absent(heart_beat) && absent(b)", "b", false},
		{"order && (absent(b) ? false : absent(heart_beat))", "", true},
		{"absent(heart_beat) && order.data.n == 1", "heart-beat", true},
	} {
		p, ds := Compile(at(tt.src), "spec.x", sc, WantBool)
		if len(ds) > 0 {
			t.Fatal(ds)
		}
		if got := strings.Join(p.Absences(), " "); got != tt.required {
			t.Errorf("%s: requires %q, want %q", tt.src, got, tt.required)
		}
		env := map[string]any{"order": map[string]any{"data": map[string]any{"n": int64(1)}}, "heart_beat": true}
		if got, err := p.Bool(env); err != nil || got != tt.hold {
			t.Errorf("%s: %v, %v", tt.src, got, err)
		}
		if got, _ := p.Bool(map[string]any{}); got {
			t.Errorf("%s holds with nothing", tt.src)
		}
	}
}

func TestResponseScope(t *testing.T) {
	env := map[string]any{"status": int64(200), "headers": map[string]any{"a": "b"}, "body": map[string]any{"id": int64(1234567890123456789)}}
	for source, want := range map[string]any{
		"status < 300 && body.id == 1234567890123456789": true, "headers.a": "b", `headers["x-none"] == nil`: true,
	} {
		p, ds := Compile(specs.Expr{Source: source}, "spec.x", ResponseScope(), WantAny)
		if len(ds) > 0 {
			t.Fatal(ds)
		}
		if got, err := p.Eval(env); got != want || err != nil {
			t.Errorf("%s: %v, %v", source, got, err)
		}
	}
	for _, source := range []string{"data.a", "status && true", "now()"} {
		if _, ds := Compile(specs.Expr{Source: source}, "spec.x", ResponseScope(), WantBool); !ds.HasErrors() {
			t.Errorf("%s compiles", source)
		}
	}
}
