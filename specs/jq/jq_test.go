package jq

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/itchyny/gojq"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

func at(src string) specs.Expr {
	return specs.Expr{Source: src, Pos: specs.TextPos{Pos: specs.Pos{File: "f.yaml", Line: 10, Col: 7}, Indent: 5}}
}

func compileOK(t testing.TB, src string) *Program {
	t.Helper()
	p, ds := Compile(at(src), "spec.x")
	if err := ds.Err(); err != nil {
		t.Fatalf("compile %q:\n%v", src, err)
	}
	return p
}

func event(data any) map[string]any {
	return map[string]any{
		"id": "1", "type": "order.created", "source": "/shop", "subject": "s", "time": time.Date(2026, 3, 1, 12, 0, 0, 5e6, time.UTC),
		"datacontenttype": "application/json", "dataschema": "", "extensions": map[string]any{"traceparent": "t"}, "data": data, "request": nil,
	}
}

func order() map[string]any {
	return map[string]any{
		"total": int64(150), "kind": "book", "id": int64(9007199254740993), "max": int64(math.MaxInt64), "min": int64(math.MinInt64), "half": 1.5,
		"tags": []any{"b", "a", "b"}, "null": nil, "flag": true, "text": "x=1, y=22", "when": "2026-03-01T12:00:00+02:00",
		"items": []any{map[string]any{"sku": "k1", "n": int64(1)}, map[string]any{"sku": "k2", "n": int64(2)}},
		"o":     map[string]any{"b": int64(1), "a": map[string]any{"c": int64(2)}},
	}
}

// TestEval: what programs give, as JSON.
func TestEval(t *testing.T) {
	for _, tt := range []struct{ src, want string }{
		{`.data | {id: .id, kind}`, `{"id":9007199254740993,"kind":"book"}`},
		{`{t: .type, at: .time, x: .extensions.traceparent, s: .source, r: .request}`, `{"at":"2026-03-01T12:00:00.005Z","r":null,"s":"/shop","t":"order.created","x":"t"}`},
		{`. | keys`, `["data","datacontenttype","dataschema","extensions","id","request","source","subject","time","type"]`},
		{`.data.items | map({(.sku): .n}) | add`, `{"k1":1,"k2":2}`},
		{`[.data.items[] | select(.n > 1) | .sku]`, `["k2"]`},
		{`.data.items[1].sku`, `"k2"`},
		{`.data.items[-1].n`, `2`},
		{`.data.items | length`, `2`},
		{`.data.a.b.c`, `null`},
		{`.data.a.b // "none"`, `"none"`},
		{`.data.kind.x? // "none"`, `"none"`},
		{`.data.max`, `9223372036854775807`},
		{`[.data.max, .data.min, .data.id + 1]`, `[9223372036854775807,-9223372036854775808,9007199254740994]`},
		{`.data.max + 1`, `9223372036854776000`},
		{`.data.max + 1 - 1`, `9223372036854775807`},
		{`.data.half * 2`, `3`},
		{`7 / 2`, `3.5`},
		{`"12345678901234567890123" | tonumber`, `1.2345678901234568e+22`},
		{`"9007199254740993" | tonumber`, `9007199254740993`},
		{`"{\"a\": 9007199254740993}" | fromjson.a`, `9007199254740993`},
		{`[nan, infinite]`, `[null,1.7976931348623157e+308]`},
		{`"order \(.data.id): \(.data.tags)"`, `"order 9007199254740993: [\"b\",\"a\",\"b\"]"`},
		{`@base64 "x\(.data.kind)"`, `"xYm9vaw=="`},
		{`.data.tags | @csv, @json | @base64 | @base64d | . as $x | [$x] | first | select(startswith("["))`, `"[\"b\",\"a\",\"b\"]"`},
		{`.data.tags | unique | join("-")`, `"a-b"`},
		{`.data.tags | sort | reverse`, `["b","b","a"]`},
		{`.data.o | to_entries | map(.key)`, `["a","b"]`},
		{`.data.o | with_entries(.key |= ascii_upcase)`, `{"A":{"c":2},"B":1}`},
		{`.data.o | del(.a.c)`, `{"a":{},"b":1}`},
		{`.data.o.a.c = 5 | .data.o`, `{"a":{"c":5},"b":1}`},
		{`.data.items[].n |= . * 10 | [.data.items[].n]`, `[10,20]`},
		{`(.data.items[] | select(.sku == "k2") | .n) += 5 | [.data.items[].n]`, `[1,7]`},
		{`(.data.total, .data.kind) = 0 | [.data.total, .data.kind]`, `[0,0]`},
		{`.data.items[0:1] = [] | .data.items | length`, `1`},
		{`.data.null //= 4 | .data.null`, `4`},
		{`.data.tags[1:] |= map(. + "!") | .data.tags`, `["b","a!","b!"]`},
		{`.data.list[2] = 1 | .data.list`, `[null,null,1]`},
		{`.data | walk(if type == "number" then . + 1 else . end) | .o`, `{"a":{"c":3},"b":2}`},
		{`[.data.o | paths]`, `[["a"],["a","c"],["b"]]`},
		{`.data.o | [..]`, `[{"a":{"c":2},"b":1},{"c":2},2,1]`},
		{`.data | pick(.o.a)`, `{"o":{"a":{"c":2}}}`},
		{`.data.o | getpath(["a", "c"])`, `2`},
		{`.data.o | setpath(["x", 1]; 9)`, `{"a":{"c":2},"b":1,"x":[null,9]}`},
		{`reduce .data.items[] as {$sku, $n} ({}; .[$sku] = $n)`, `{"k1":1,"k2":2}`},
		{`[foreach .data.items[].n as $n (0; . + $n; [$n, .])]`, `[[1,1],[2,3]]`},
		{`def twice(f): f | f; .data.total | twice(. * 2)`, `600`},
		{`def f($a; $b): $a + $b; f(1; 2)`, `3`},
		{`def map(f): "mine"; [1] | map(.)`, `"mine"`},
		{`. as {data: {$kind, items: [$first]}} | [$kind, $first.sku]`, `["book","k1"]`},
		{`label $out | foreach (1, 2, 3) as $x (0; . + $x; if . > 2 then ., break $out else empty end)`, `3`},
		{`try error("x") catch .`, `"x"`},
		{`try (.data.kind | keys) catch "no object"`, `"no object"`},
		{`.data.text | [scan("(\\w)=(\\d+)")]`, `[["x","1"],["y","22"]]`},
		{`.data.text | [scan("\\d+")]`, `["1","22"]`},
		{`.data.text | test("Y="; "i")`, `true`},
		{`.data.text | capture("(?<k>\\w)=(?<v>\\d+)")`, `{"k":"x","v":"1"}`},
		{`.data.text | [match("\\d+"; "g") | [.offset, .length, .string]]`, `[[2,1,"1"],[7,2,"22"]]`},
		{`.data.text | gsub("(?<d>\\d)"; "[\(.d)]")`, `"x=[1], y=[2][2]"`},
		{`.data.text | sub("\\d+"; "n")`, `"x=n, y=22"`},
		{`.data.text | sub("nothing"; "n")`, `"x=1, y=22"`},
		{`.data.text | split(", *"; null)`, `["x=1","y=22"]`},
		{`.data.text | split(", ")`, `["x=1","y=22"]`},
		{`[.data.text | splits(", *")]`, `["x=1","y=22"]`},
		{`"äöü" | [match("ü").offset, length, utf8bytelength]`, `[2,3,6]`},
		{`.data.when | strptime("%Y-%m-%dT%H:%M:%S%z") | mktime`, `1772359200`},
		{`1772359200 | todate`, `"2026-03-01T10:00:00Z"`},
		{`"2026-03-01T10:00:00Z" | fromdate`, `1772359200`},
		{`1772359200 | strftime("%A %d %B %Y")`, `"Sunday 01 March 2026"`},
		{`[limit(3; range(10))]`, `[0,1,2]`},
		{`[range(0; 10; 3)]`, `[0,3,6,9]`},
		{`first(range(10; 20))`, `10`},
		{`last(range(10; 20))`, `19`},
		{`[.data.tags[] | IN("a", "x")]`, `[false,true,false]`},
		{`.data.items | group_by(.n) | map(length)`, `[1,1]`},
		{`.data.items | max_by(.n).sku, min_by(.n).sku | select(. == "k1")`, `"k1"`},
		{`.data.items | sort_by(-.n)[0].sku`, `"k2"`},
		{`[[1, 2], [3]] | transpose | flatten(1)`, `[1,3,2,null]`},
		{`[[1, 2], [3, 4]] | [combinations]`, `[[1,3],[1,4],[2,3],[2,4]]`},
		{`any(.data.tags[]; . == "a") and all(.data.tags[]; length == 1)`, `true`},
		{`.data.tags | index("a"), (contains(["a"]) | not) | select(. != false)`, `1`},
		{`{"a": 1} * {"a": {"b": 2}}`, `{"a":{"b":2}}`},
		{`"ab" * 3`, `"ababab"`},
		{`[1, 2, 3] - [2]`, `[1,3]`},
		{`"a,b" / ","`, `["a","b"]`},
		{`.data["kind"]`, `"book"`},
		{`.data[.data.kind]`, `null`},
		{`.data | .tags[.items[0].n]`, `"a"`},
		{`.data.kind[1:3]`, `"oo"`},
		{`if .data.total > 100 then "large" elif .data.total > 10 then "medium" else "small" end`, `"large"`},
		{`-(.data.total)`, `-150`},
		{`{"x\(.data.total)": 1}`, `{"x150":1}`},
		{`{a: 1, "b": 2, ("c"): 3}`, `{"a":1,"b":2,"c":3}`},
		{`[.data.items[] as $i | $i.n, -$i.n]`, `[1,-1,2,-2]`},
		{`[.[]?] | length`, `10`},
		{`.data.total | tostring | tojson`, `"\"150\""`},
		{`[.data | .items[(0, 1)].n]`, `[1,2]`},
		{`[1, [2]] | getpath([1, 0])`, `2`},
		{`.data.tags | map_values(ascii_upcase)`, `["B","A","B"]`},
		{`[.data.tags[] | {a: .}] | map(.a) | implode? // "no"`, `"no"`},
		{`[65, 66] | implode`, `"AB"`},
		{`[.data.tags | .[1:][]]`, `["a","b"]`},
	} {
		p := compileOK(t, tt.src)
		v, err := p.Eval(event(order()))
		if err != nil {
			t.Errorf("%s: %v", tt.src, err)
			continue
		}
		if b, _ := json.Marshal(v); string(b) != tt.want {
			t.Errorf("%s: got %s, want %s", tt.src, b, tt.want)
		}
	}
}

func TestFailures(t *testing.T) {
	deep := any(int64(1))
	for range 1200 {
		deep = []any{deep}
	}
	for _, tt := range []struct{ src, want string }{
		{`select(.data.total > 1000)`, ErrNothing.Error()},
		{`empty`, ErrNothing.Error()},
		{`.data.tags[]`, "the jq program gave more than one value; put them into a list: […]"},
		{`.data.kind.x`, "expected an object but got: string (\"book\")"},
		{`error("no order " + .data.kind)`, "no order book"},
		{`error({a: 1})`, `error: {"a":1}`},
		{`.data.total, error("late")`, "late"},
		{`1 / 0`, "cannot divide number (1) by: number (0)"},
		{`(.data.kind | test("o")) and (.data | test("x"))`, `a regular expression cannot be applied to: {"deep":[[[[[[[[[[[[[[[[[ ...}`},
		{`.data.deep`, "the jq program gave a value that is nested deeper than 1000"},
		{`.data.kind | gsub("o"; "a", "b")`, "the replacement must be one text"},
	} {
		data := order()
		data["deep"] = deep
		if v, err := compileOK(t, tt.src).Eval(event(data)); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, %v; want %s", tt.src, v, err, tt.want)
		}
	}
}

// TestDiagnostics asserts place, code and text. The text begins at 10:7; later
// lines at column 5.
func TestDiagnostics(t *testing.T) {
	for _, tt := range []struct{ src, want string }{
		{`.data |`, `f.yaml:10:14: error[jq-syntax] spec.x: unexpected EOF`},
		{".data\n | {id: .id", `f.yaml:11:16: error[jq-syntax] spec.x: unexpected EOF`},
		{`.data | ]`, `f.yaml:10:15: error[jq-syntax] spec.x: unexpected token "]"`},
		{`"ä" | .data |`, `f.yaml:10:20: error[jq-syntax] spec.x: unexpected EOF`},
		{` `, `error[jq-syntax] spec.x: the jq program is empty (write . for the event as it is)`},
		{".data |\n # now\n  now", `f.yaml:12:7: error[jq-not-deterministic] spec.x: now reads the clock (use .time, the time of the event)`},
		{`.x | localtime`, `f.yaml:10:12: error[jq-not-deterministic] spec.x: localtime depends on the machine's time zone (use gmtime)`},
		{`{a: env}`, `f.yaml:10:11: error[jq-not-deterministic] spec.x: env reads the environment (put the value into the program)`},
		{`$ENV.x`, `f.yaml:10:7: error[jq-not-deterministic] spec.x: $ENV reads the environment (put the value into the program)`},
		{`[inputs]`, `f.yaml:10:8: error[jq-not-deterministic] spec.x: inputs reads further inputs, and there is one: the event (use .)`},
		{`input`, `error[jq-not-deterministic] spec.x: input reads`},
		{`"now: \(now)"`, `f.yaml:10:15: error[jq-not-deterministic] spec.x: now reads the clock`},
		{`debug`, `error[jq-not-deterministic] spec.x: debug writes to the engine's output (engine explain shows what the program gave)`},
		{`. | debug("x")`, `f.yaml:10:11: error[jq-not-deterministic]`},
		{`stderr`, `error[jq-not-deterministic]`},
		{`halt_error`, `error[jq-not-deterministic] spec.x: halt_error ends the program from within (use error)`},
		{`halt`, `error[jq-not-deterministic] spec.x: halt ends the program`},
		{`include "x"; .`, `error[jq-not-deterministic] spec.x: modules are files`},
		{`import "x" as x; .`, `error[jq-not-deterministic] spec.x: modules are files`},
		{`.data.x | sin`, `f.yaml:10:17: error[jq-not-deterministic] spec.x: sin has last digits that depend on the processor (use it in a function that a trigger calls)`},
		{`.data | lenght`, `f.yaml:10:15: error[jq-unknown-name] spec.x: unknown function lenght/0 (did you mean length?)`},
		{`.data | split`, `f.yaml:10:15: error[jq-unknown-name] spec.x: unknown function split/0 (it takes`},
		{`.data | $x`, `f.yaml:10:15: error[jq-unknown-name] spec.x: variable not defined: $x`},
		{`break $out`, `f.yaml:10:13: error[jq-unknown-name] spec.x: label not defined: $out`},
		{`_modify(.; .)`, `f.yaml:10:7: error[jq-unknown-name] spec.x: unknown function _modify/2`},
		{`.data | @bas64`, `f.yaml:10:15: error[jq-unknown-name] spec.x: unknown format @bas64 (did you mean @base64?)`},
		{`.data.kind | test(.data.re)`, `f.yaml:10:20: error[jq-unsupported] spec.x: the regular expression of test must be a text in quotes (write the regular expression into the program)`},
		{`.x | test("a"; .flags)`, `f.yaml:10:12: error[jq-unsupported] spec.x: the flags of test must be a text in quotes`},
		{`.x | test("a"; "x")`, `error[jq-unsupported] spec.x: unknown flags "x" of test`},
		{`.x | test("(")`, "f.yaml:10:12: error[jq-syntax] spec.x: error parsing regexp: missing closing ): `(`"},
		{`.x | test("` + strings.Repeat("a", 1001) + `")`, `error[jq-too-large] spec.x: the regular expression has 1001 bytes, the limit is 1000`},
		{`.x | strftime(.f)`, `error[jq-unsupported] spec.x: the layout of strftime must be a text in quotes`},
		{`.x | strptime("%H %Z")`, `error[jq-not-deterministic] spec.x: what the name of a time zone (%Z) means depends on the machine`},
		{`.. |= 1`, `f.yaml:10:10: error[jq-unsupported] spec.x: the left side of |= is no plain path (assign to a path`},
		{`(.a, .a.b) = 1`, `f.yaml:10:18: error[jq-unsupported] spec.x: the left side of = is no plain path`},
		{`.a | recurse += 1`, `error[jq-unsupported]`},
		{`first(.a) |= 1`, `error[jq-unsupported]`},
		{`. as {("a" + "b"): $x} | $x`, `error[jq-unsupported] spec.x: a computed key in a pattern is not supported`},
		{`tostream`, `error[jq-unsupported] spec.x: tostream is not supported`},
		{`format("csv")`, `error[jq-unsupported] spec.x: format takes a name that is not known before (write the format itself, such as @base64)`},
		{strings.Repeat("1", 1001), `error[jq-unsupported] spec.x: a number of 1001 digits; the limit is 1000`},
		{strings.Repeat(" ", MaxSource) + ".", `f.yaml:10:7: error[jq-too-large] spec.x: the jq program has 16385 bytes, the limit is 16384`},
		{`def f: now; 1`, `f.yaml:10:14: error[jq-not-deterministic]`},
	} {
		_, ds := Compile(at(tt.src), "spec.x")
		var got []string
		for _, d := range ds {
			got = append(got, d.String())
		}
		if s := strings.Join(got, "\n"); !strings.Contains(s, tt.want) {
			t.Errorf("%.60q\n got %s\nwant %s", tt.src, s, tt.want)
		}
	}
}

func TestReads(t *testing.T) {
	for src, want := range map[string]string{
		`.data | {id: .order.id}`:               "data",
		`.data.a`:                               "data",
		`{a: .data.a, t: .type, subject, "id"}`: "all",
		`{a: .data.a, t: .type, subject}`:       "data subject type",
		`{a: .data.a, "b": .["type"]}`:          "data type",
		`.`:                                     "all",
		`.data as $d | {x: $d.x, at: .time}`:    "data time",
		`if .data.x then .type else .id end`:    "data id type",
		`if .data.x then .type end`:             "all",
		`"\(.data.x) \(.type)"`:                 "data type",
		`[.data.x, (.type | length)]`:           "data type",
		`keys`:                                  "all",
		`.data[.type]`:                          "data type",
		`.data[.type]?`:                         "data type",
		`.[.type]`:                              "all",
		`.data.x = 1`:                           "all",
		`def f: .; .data`:                       "all",
		`.data + .nothing`:                      "data",
		`1`:                                     "",
		`reduce .data[] as $x (0; . + $x)`:      "all",
		`.data // empty`:                        "data",
		`.data?`:                                "data",
		`-.data.x`:                              "data",
		`(.data | .type) == .subject and (.data | .id)`: "data subject",
	} {
		names, all := compileOK(t, src).Attributes()
		got := strings.Join(names, " ")
		if all {
			got = "all"
		}
		if got != want {
			t.Errorf("%s reads %q, want %q", src, got, want)
		}
	}
}

// TestFunctionsClassified fails when a version of gojq brings a function that
// nobody has thought about.
func TestFunctionsClassified(t *testing.T) {
	q, err := gojq.Parse("builtins")
	if err != nil {
		t.Fatal(err)
	}
	v, _ := q.Run(nil).Next()
	known := map[string]bool{
		// Not listed, or only known with the options of the jq command.
		"inputs/0": true, "debug/0": true, "stderr/0": true, "input_filename/0": true, "input_line_number/0": true,
		"get_search_list/0": true, "not/0": true,
	}
	for _, name := range v.([]any) {
		known[name.(string)] = true
		if classes[name.(string)] == 0 {
			t.Errorf("%s: not classified: does it read a clock, a zone, the machine? what does it cost?", name)
		}
	}
	for name, kind := range classes {
		if !known[name] {
			t.Errorf("%s: classified but no function of gojq", name)
		}
		bare, _, _ := strings.Cut(name, "/")
		if kind == metered && costs[bare] == nil {
			t.Errorf("%s: its cost is not known", name)
		}
	}
	for name := range refusals {
		found := false
		for c, kind := range classes {
			bare, _, _ := strings.Cut(c, "/")
			found = found || bare == name && kind == refused
		}
		if !found {
			t.Errorf("%s: it is said why it is refused, and it is not", name)
		}
	}
	// Every definition of the prelude compiles.
	for name, kind := range classes {
		if kind != defined {
			continue
		}
		bare, n, _ := strings.Cut(name, "/")
		compileOK(t, bare+map[string]string{"0": "", "1": "(.)", "2": "(.; .)"}[n])
	}
	b, err := os.ReadFile("prelude.jq")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^def (\w+)(\(.*?\))?:`).FindAllStringSubmatch(string(b), -1) {
		args := 0
		if m[2] != "" {
			args = 1 + strings.Count(m[2], ";")
		}
		if name := fmt.Sprintf("%s/%d", m[1], args); m[1][0] != '_' && classes[name] != defined {
			t.Errorf("the prelude defines %s, which is not classified so", name)
		}
	}
}

// plain runs a program with gojq as it is.
func plain(src string, in any) (out []any, err error) {
	q, err := gojq.Parse(src)
	if err != nil {
		return nil, err
	}
	code, err := gojq.Compile(q)
	if err != nil {
		return nil, err
	}
	it := code.RunWithContext(newMeter(20_000), in)
	for {
		v, ok := it.Next()
		if !ok {
			return out, nil
		}
		if err, ok := v.(error); ok {
			return out, err
		}
		out = append(out, v)
	}
}

var indexOptional = regexp.MustCompile(`[^[]\s*\]\s*\?`)

// agrees compares a program with what gojq gives without the rewriting.
func agrees(t testing.TB, src string) {
	t.Helper()
	p, ds := Compile(at("["+src+"\n]"), "p")
	if ds.HasErrors() {
		return
	}
	env := event(order())
	in, err := newMeter(expression.Budget).input(env, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Eval(env)
	again, errAgain := p.Eval(env)
	if fmt.Sprint(got, err) != fmt.Sprint(again, errAgain) {
		t.Fatalf("%s: %v, %v; then %v, %v", src, got, err, again, errAgain)
	}
	if errors.Is(err, expression.ErrBudget) {
		return // gojq alone would go on
	}
	if indexOptional.MatchString(src) {
		return // gojq computes the index of .a[f]? from .a, jq from what is before it
	}
	want, wantErr := plain("["+src+"\n]", in)
	if errors.Is(wantErr, expression.ErrBudget) {
		return
	}
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%s: got %v, %v; gojq gives %v, %v", src, got, err, want, wantErr)
	}
	if err != nil {
		return
	}
	out, err := newMeter(expression.Budget).output(want[0], 0)
	if err != nil {
		return
	}
	if fmt.Sprint(got) != fmt.Sprint(out) {
		t.Fatalf("%s: got %v; gojq gives %v", src, got, out)
	}
}

// TestAgreesWithGojq: the rewriting changes no result.
func TestAgreesWithGojq(t *testing.T) {
	for _, src := range []string{
		`(1, 2) + (10, 20)`, `(1, 2) * (10, 20)`, `[(1, 2)] - [(1, 2)]`, `(1, 2) < (1, 3)`, `(1, 2) == (1, 2)`,
		`[0, 1, 2, 3, 4] | .[(0, 1):(2, 3)]`, `[[0, 1], [2, 3]] | .[(0, 1)][(0, 1)]`,
		`.data.items[(0, 1)].n`, `.data | .tags[.items[].n]`, `.data.items[].n += (1, 2)`, `.data.total = (1, 2) | .data.total`,
		`.data.total += (1, 2) | .data.total`, `.data.items |= map(.n) | .data.items`, `.data.items[] |= empty`,
		`.data.o | .a.c |= empty`, `.data.o | (.a, .b) |= 1`, `.data.tags | .[1:] = ["x"]`, `.data.tags | .[1:2] |= map(. * 2)`,
		`.data.tags | .[-1] = 0`, `try ([] | .[-1] = 0) catch "e"`, `try (1 | .a = 0) catch "e"`, `.data | .x.y.z = 1 | .x`,
		`{(("a", "b")): (1, 2)}`, `{"a\((1, 2))": 3}`, `"\((1, 2))-\((3, 4))"`, `@base64 "\((1, 2))"`, `.data | {kind, "total", (("id", "half")): 1}`,
		`[paths]`, `[paths(type == "number")]`, `path(.data.items[].n)`, `path(.data.o | .a, .b)`, `[path(..)]`, `path(first(.data.items[]))`,
		`path(if .data.flag then .data.o else .id end)`, `path(.data.items[1:])`, `path(getpath(["data", "o"]))`, `path(.data.tags | last)`, `path(.data.tags[.data.items[0].n])`,
		`path(.data | select(.flag) | .o)`, `del(.data.items[0], .id) | [.data.items, .id]`, `del(.data.items[].n).data.items`, `del(.data.tags[(0, 2)]).data.tags`,
		`to_entries`, `.data.o | with_entries(select(.value == 1))`, `.data | walk(if type == "array" then sort else . end)`,
		`.data.items | group_by(.sku)`, `.data.items | unique_by(.sku | length)`, `min_by(.data)?`, `[.data.items[].n] | add`, `add(.data.items[].n)`, `.data.tags | add`,
		`.data.items | map(.n) | any, all`, `.data.tags | any(. == "a"), all(. == "a")`, `[3, 1, 2] | first, last, nth(1)`, `last(empty)`, `last(1, 2)`, `[limit(2; 1, 2, 3)]`,
		`.data.text | [match("(?<k>\\w)=(?<v>\\d+)"; "g")]`, `.data.text | [scan("(\\w)=")], [scan("\\w")]`, `.data.text | split(","), split(", *"; null)`, `.data.text | [splits("[,=]")]`,
		`.data.text | sub("(?<x>\\d)"; "[\(.x)]"), gsub("(?<x>\\d)"; "[\(.x)]"), gsub("\\s"; "")`, `.data.text | [test("y"), test("Y"; "i"), test("^$")]`,
		`.data.text | capture("(?<k>\\w)=(?<v>\\d+)")`, `"aXbxc" | ascii_downcase | [match("x"; "g").offset]`, `"äöü" | [match("."; "g") | .offset, .string]`,
		`.data.text | indices("1"), index("="), rindex("=")`, `.data.tags | indices("b"), index("b"), rindex(["b"])`, `"abc" | .[1:], .[:1], .[0:2]`,
		`"x" * (0, 1, 3)`, `{"a": {"b": 1}} * {"a": {"c": 2}}`, `try ("a" + 1) catch "e"`, `null + 1, 1 + null`, `{} + {"a": 1}`, `[1] + [2]`, `"a" + "b"`,
		`10 % (3, -3)`, `5 / (2, 5)`, `1 - 2`, `- .data.total`, `-(1, 2)`, `.data.max + 1`, `.data.max * 2`, `.data.id % 10`,
		`[.data.o | .. | numbers]`, `.data.o | [recurse]`, `.data.o | [recurse(.a?)]`, `[recurse(if . < 3 then . + 1 else empty end)]?`,
		`[1, [2, [3]]] | flatten, flatten(1)`, `[[1, 2], [3]] | transpose`, `[[1, 2], [3, 4]] | [combinations]`, `[1, 2, 3] | bsearch(2), bsearch(5)`,
		`"a,b" / ","`, `[.data.tags[] | . as $t | [$t, ($t | length)]]`, `. as [$a] ?// $a | [$a] | length`, `.data | . as {items: [{$n}, {n: $m}]} | [$n, $m]`,
		`reduce (1, 2, 3) as $x (0; . + $x)`, `foreach (1, 2, 3) as $x (0; . + $x)`, `foreach (1, 2) as $x (0; . + $x; [$x, .])`, `label $f | 1, break $f, 2`,
		`try error("x") catch .`, `try error({a: 1}) catch .a`, `.a.b.c?`, `(.data.kind | .x)?`, `.data.kind.x? // 1`, `[.data[]?] | length`, `[1[]?]`, `[.data.tags[]?, .nothing[]?]`,
		`(1, null, 2) // 3`, `(null, false) // 3`, `first(empty) // 4`, `.data.null //= 3 | .data.null`, `isempty(empty), isempty(1)`, `[until(. == "x"; "x")] | length`, `[.[]?] | length`,
		`1 as $x | 2 as $y | [$x, $y, $x + $y]`, `def f(x): x * 2; f(.data.total)`, `def f(g): [g, g]; f(1, 2)`, `def f: def g: 3; g; f`, `def f($n): if $n == 0 then [] else [f($n - 1)] end; f(3)`,
		`.data.total | tostring, tojson, (tostring | tonumber)`, `.data.o | tojson | fromjson`, `[.data.tags[] | explode] | map(implode)`, `.data.kind | ltrimstr("b"), rtrimstr("k"), startswith("b"), endswith("x")`,
		`" x " | trim, ltrim, rtrim`, `.data | has("kind"), has("nope")`, `"kind" | in({"kind": 1})`, `.data.tags | contains(["a"]), inside(["a", "b", "c"])`, `.data.half | floor, ceil, round, sqrt, fabs, trunc, abs`,
		`[.data.items[] | {(.sku): .n}] | add`, `.data.items | map({key: .sku, value: .n}) | from_entries`, `1772359200 | todate, gmtime, (gmtime | mktime), strftime("%j")`, `pick(.data.o.a), pick(.data.tags[1])`,
		`.data.tags | IN(["b", "a", "b"]), IN("a")`, `IN(1, 2; 2, 3)`, `getpath(["data", "o", "a"])`, `[getpath(["data", "nope"], ["id"])]`, `setpath(["data", "tags", 5]; 1).data.tags`, `delpaths([["data"], ["id"]]) | keys`,
		`@csv "\([1, "a"])"`, `[1, "a\"b"] | @csv, @tsv, @sh`, `"<&>" | @html, @uri`, `"aGk=" | @base64d`, `"%41" | @urid`, `. as $r | [1, 2] | map(. + $r.data.total)`,
		`if .data.flag then 1 end`, `if empty then 1 else 2 end`, `if (true, false) then 1 else 2 end`, `[.data.items[] | if .n > 1 then "b" elif .n > 0 then "a" else "c" end]`,
		`.data.items | map(select(.n == (1, 2)))`, `[range(3)] | map(. * 2) | add`, `[range(5; 0; -2)]`, `[splits("a")]?`, `{} | .["a"] = 1 | .["b", "c"] = 2`, `{} | .a["x"].b += 1`, `[[1]] | .[0][0] -= 1`, `{"a": [1, 2]} | .a[] *= 2`,
		`toboolean?`, `["true", true] | map(toboolean)`, `[.data.o | to_entries[] | .key]`, `nan < 1, ([nan] | sort)`, `[infinite, -infinite] | map(isinfinite)`, `limit(0; 1)`, `[skip(1; 1, 2, 3)]`,
	} {
		if _, ds := Compile(at("["+src+"]"), "p"); ds.HasErrors() {
			t.Errorf("%s: %v", src, ds)
			continue
		}
		agrees(t, src)
	}
}

// TestHostile: programs that would take seconds to hours, or gigabytes. Each
// ends with the budget, in bounded time and memory.
func TestHostile(t *testing.T) {
	// A sixteenth of everything: the whole takes as much longer.
	const part = 16
	wide := make([]any, 100_000/part)
	for i := range wide {
		wide[i] = int64(i)
	}
	keys := map[string]any{}
	for i := range 50_000 / part {
		keys[fmt.Sprint("k", i)] = int64(i)
	}
	env := event(map[string]any{"s": strings.Repeat("a", 1<<20/part), "l": wide, "o": keys, "digits": strings.Repeat("9", 1<<20/part)})
	dag := `reduce range(60) as $i (1; [., .])`
	for _, src := range []string{
		`def f: f; f`, `def f: 1 + f; f`, `[repeat(1)] | length`, `[range(1e18)] | length`, `last(range(infinite))`, `until(false; .)`, `[recurse(.)] | length`, `[while(true; .)] | 1`,
		`[limit(1e9; repeat(1))] | length`, `reduce range(1e9) as $i (0; . + $i)`, `label $x | repeat(1) | select(false)`,
		`try (def f: f; f) catch 1`, `(def f: f; f)?`, `(def f: f; f) // 1`, `[.data.l[] | try (def f: f; f) catch 1]`, `first(def f: f; f)`, `isempty(def f: f; f)`,
		`try (.data.s * 1e9) catch 1`, `.data.s * 100`, `.data.s * 1e300 | length`, `"x" * 1e9`, `reduce range(60) as $i ("ab"; . + .) | length`, `reduce range(60) as $i ("ab"; . * 2) | length`,
		`reduce range(60) as $i ([1]; . + .) | length`, `[range(1000)] | map(.) | reduce range(1000) as $i (.; . + .)`, `reduce range(60) as $i ({}; {a: ., b: .}) | tojson | length`,
		dag + ` | tojson | length`, dag + ` | tostring | length`, dag + ` | "\(.)" | length`, dag + ` | @json | length`, dag + ` | @text`, dag + ` | flatten | length`, dag + ` | . == .`, dag + ` | . < .`,
		dag + ` | [., .] | sort | length`, dag + ` | [., .] | unique | length`, dag + ` | [., .] | group_by(.) | length`, dag + ` | [., .] | min | length`, dag + ` | contains([1])`,
		dag + ` | [.] - [.]`, dag + ` | walk(.)`, dag + ` | [..] | length`, dag + ` | [paths] | length`, dag + ` | del(.[0])`, dag + ` | {a: .} * {a: {}}`, dag + ` | [.] | transpose | tojson`,
		dag + ` | join(",") | length`, dag + ` | setpath([0]; 1) | tojson`, dag + ` | bsearch(.)`, dag + ` | add | tojson`, dag, `try error(` + dag + `) catch tojson`,
		`[range(100000)] | map(tojson) | add | . * 100`, `range(100000) as $i | .data.s | test("b$") | select(.)`, `[range(100000) as $i | .data.s | length] | 1`, `[range(100000) as $i | .data.s | .[0]] | 1`,
		`[range(100000) as $i | .data.s | .[1:]] | 1`, `[range(100000) as $i | .data.s | explode] | 1`, `[range(100000) as $i | .data.s == .data.s + "a"] | 1`, `[range(100000) as $i | .data.s | ascii_upcase] | 1`,
		`[range(100000) as $i | first(.data.l[])] | 1`, `[range(100000) as $i | .data.o | keys] | 1`, `[range(100000) as $i | .data.o | first(.[])] | 1`, `[range(100000) as $i | .data.o.x = $i] | 1`,
		`[range(100000) as $i | .data.l | .[0] = $i] | 1`, `[range(100000) as $i | .data.l | .[0] += 1] | 1`, `[range(100000) as $i | .data.l | reverse] | 1`, `[range(100000) as $i | .data.l | add] | 1`,
		`[range(100000) as $i | .data.l + [1]] | 1`, `[range(100000) as $i | .data.l | index(-1)] | 1`, `[range(100000) as $i | .data.l - [-1]] | 1`, `.data.l - .data.l`, `.data.l | contains(.)`,
		`.data.s | split("") | length`, `.data.s / "" | length`, `[.data.s | scan("a")] | length`, `.data.s | gsub("a"; "bb")`, `.data.s | gsub(""; "bb")`, `[.data.s | match("(a)(a)(a)"; "g")] | length`,
		`.data.s | test("(a?){200}(a?){200}b")`, `.data.s | [splits("a")] | length`, `.data.s | indices("a") | length`, `.data.s as $s | $s | indices($s)`,
		`.data.digits | tonumber`, `.data.digits | fromjson`, `"[" + .data.digits + "]" | fromjson`, `reduce range(100) as $i (7; . * .)`, `reduce range(1000) as $i (9007199254740993; . * 9007199254740993) | . * . | . * . | . * .`,
		`null | .[1000000000] = 1`, `null | .[300000000] |= 1`, `setpath([500000000]; 1)`, `null | setpath([500000000]; 1)`, `[null | .[(range(1000) * 1000)] = 1] | length`, `null | setpath([range(2000)]; 1)`,
		`null | setpath([range(100000) | "a"]; 1)`, `reduce range(100000) as $i (0; [.]) | tojson`, `reduce range(40000) as $i (0; [.]) | [path(..)] | length`, `[range(300) | [range(300)]] | [combinations] | length`,
		`[range(2000)] | map([.]) + [[range(2000)]] | transpose | length`, `[.data.l, .data.l] | [combinations] | length`,
		`.data.l | map(tostring) | join(.[0:1000] | join("x")) | length`, `.data.l | sort_by(tojson) | sort_by(.) | group_by(.) | length`, `[.data.l[] as $x | .data.l[] as $y | 1] | length`,
		`.data.o | with_entries(.value |= tojson) | with_entries(.key |= . + "x")`, `.data.o | walk(.) | walk(.)`, `[.data.s | match("a"; "g").offset] | add`, `1 | strftime("` + strings.Repeat("%1024Y", 33) + `") | . * 100000`,
		`[limit(100000; repeat("%Y" | . * 5000))] | length`, `[range(100000) as $i | .data.s | ltrimstr($i | tostring * 100000)] | length`,
	} {
		t.Run(src, func(t *testing.T) {
			p := compileOK(t, src)
			p.budget /= part
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			v, err := p.Eval(env)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, expression.ErrBudget) {
				t.Errorf("got %.80s, %v, want the budget", fmt.Sprint(v), err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<30/part {
				t.Errorf("it allocated %d MiB in all", used>>20)
			}
		})
	}
}

// TestOrdinaryWork stays within the budget on data of a considerable size.
func TestOrdinaryWork(t *testing.T) {
	items := make([]any, 2000)
	for i := range items {
		items[i] = map[string]any{"sku": fmt.Sprint("k", i%50), "n": int64(i), "price": 1.5, "tags": []any{"a", "b"}}
	}
	env := event(map[string]any{"items": items, "text": strings.Repeat("some words, ", 5000)})
	for _, src := range []string{
		`.data.items | map({sku, sum: (.n * .price)})`, `.data.items | group_by(.sku) | map({sku: .[0].sku, n: map(.n) | add})`, `.data.items | sort_by(-.n) | .[:10]`,
		`[.data.items[] | select(.tags | index("a")) | .sku] | unique`, `.data.items[].price |= . * 2`, `.data | walk(if type == "number" then . + 1 else . end)`, `reduce .data.items[] as $i ({}; .[$i.sku] += $i.n)`,
		`.data | tojson | fromjson`, `.data.text | gsub("words"; "word")`, `.data.text | ascii_upcase | split(", ") | length`, `[.data.items[].sku] | join(",")`, `.data.items | map_values(.n)`, `del(.data.items[].tags)`,
	} {
		if _, err := compileOK(t, src).Eval(env); err != nil {
			t.Errorf("%s: %v", src, err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	p := compileOK(t, `.data | {a: ([1, {b: 2}, 3] | del(.[0])), k: .kind}`)
	env := event(order())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				v, err := p.Eval(env)
				if b, _ := json.Marshal(v); err != nil || string(b) != `{"a":[{"b":2},3],"k":"book"}` {
					t.Errorf("got %s, %v", b, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if fmt.Sprint(env["data"]) != fmt.Sprint(order()) {
		t.Error("the event was changed")
	}
}

func FuzzProgram(f *testing.F) {
	for _, s := range []string{
		`.data | {id: .order.id}`, `[.data.items[] | select(.n > 1)] | add`, `.data.items[].n |= . + 1`, `reduce .data[] as $x (0; [., $x])`, `def f(x): x | x; f(.)`, `"a\(.data)b" | test("a")`, `try error("x") catch .`,
		`.. | numbers`, `path(..)`, `{(.type): .data[1:2]}`, `. as [$a, {b: $c}] ?// $a | $a`, `label $f | 1, break $f`, `@base64 "x\(1)"`, `limit(3; repeat(.))`, `[.[]?] | sort_by(.) | unique | group_by(.)`, `.a.b[0]?.c //= 1`,
		`to_entries | from_entries`, `tojson | fromjson`, `[combinations]?`, `[1, [2]] | flatten | transpose?`, `setpath(["a", 1]; 2) | delpaths([["a"]])`, `gsub("(?<x>a)"; .x)`, `. * 3 - 1 / 2 % 5`,
	} {
		f.Add(s)
	}
	env := event(order())
	f.Fuzz(func(t *testing.T, src string) {
		p, ds := Compile(at(src), "p")
		if (p == nil) != ds.HasErrors() {
			t.Fatalf("program %v with %v", p, ds)
		}
		for _, d := range ds {
			if d.Pos.Line < 10 || d.Pos.Col < 1 || d.Pos.Line > 10+strings.Count(src, "\n") {
				t.Fatalf("place outside the text: %s", d)
			}
		}
		if p == nil {
			return
		}
		begin := time.Now()
		v1, err1 := p.Eval(env)
		if d := time.Since(begin); d > 5*time.Second { // far beyond what a busy machine explains
			t.Fatalf("it took %v", d)
		}
		if names, all := p.Attributes(); !all {
			some := map[string]any{}
			for _, n := range names {
				some[n] = env[n]
			}
			if v2, err2 := p.Eval(some); fmt.Sprint(v1, err1) != fmt.Sprint(v2, err2) {
				t.Fatalf("%v, %v; with only what it says it reads %v, %v", v1, err1, v2, err2)
			}
		}
		agrees(t, src)
	})
}

func BenchmarkTransform(b *testing.B) {
	env := event(order())
	b.Run("jq", func(b *testing.B) {
		p := compileOK(b, `.data | {id: .id, n: [.items[].n]}`)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Eval(env); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("expr", func(b *testing.B) {
		p, ds := expression.Compile(at(`{id: data.id, n: map(data.items, .n)}`), "p", expression.EventScope(), expression.WantAny)
		if ds.HasErrors() {
			b.Fatal(ds)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := p.Eval(env); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		Compile(at(`.data | {id: .id, n: [.items[].n]}`), "p")
	}
}
