package specs_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// TestSyntaxErrors asserts the place and the hint, for which the parser itself
// is no help.
func TestSyntaxErrors(t *testing.T) {
	var b strings.Builder
	for _, c := range []string{
		"a: {a: ${ b }}",
		"a:\n- b\n- [${ b }, c]",
		"x: 1\nwhen: !order && b",
		"x: 1\nwhen: *order\ny: 2",
		"a:\n  url: ${ x ? a : b }\n",
		"a:\n\tb: 1",
		"a:\n  - b: c\n\t  d: 1",
		"a: 'x\nb: 1\n",
		"a: [1,\n  2\nb: 3\n",
		"a: @x",
		"a:\n  b: `x`",
		"a: %x",
		"a:\n  - b\n c: d\n",
		"a: 1\nb",
		"x:\n  y: 1\n   z: 2\n",
		"a: \"\\q\"",
		"a: &x\nb: {",
		"k: [" + strings.Repeat("[", 20000),
		"a: b: c",
		"\ufeffa: }",
		"a: 1\r\nb: }\r\n",
		"- a\nb: c\n",
		"apiVersion: engine/v1\nkind: Sensor\nmeta",
		"a: \"\xff\"",
		"\xff\xfea\x00",
		"a: b\x01",
		"é: \x00",
	} {
		got := loader().LoadBytes("x", []byte(c))
		if !got.Files[0].Broken || len(got.Diagnostics) != 1 {
			t.Errorf("%q: %+v", c, got)
		}
		fmt.Fprintf(&b, "%.60q\n    %s", c, text(got.Diagnostics))
	}
	golden(t, "testdata/syntax.golden", b.String())
}

// TestHugeFilesAreRefused tries what is meant to exhaust a reader. The limits end
// each at once.
func TestHugeFilesAreRefused(t *testing.T) {
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	merge := "a0: &a0 {x: 1, y: 2}\n"
	for i := 1; i < 40; i++ {
		merge += fmt.Sprintf("a%d: &a%d {<<: [*a%d, *a%d], k%d: {<<: *a%d}, l%d: {<<: *a%d}}\n", i, i, i-1, i-1, i, i-1, i, i-1)
	}
	deep := "a: &a0 [x]\n"
	for i := 1; i < 200; i++ {
		deep += fmt.Sprintf("a%d: &a%d [*a%d]\n", i, i, i-1)
	}
	for _, c := range []struct {
		name, text string
		code       specs.Code
	}{
		{"alias bomb", bomb, specs.CodeTooManyNodes},
		{"merge bomb", merge, specs.CodeTooManyNodes},
		{"nesting", strings.Repeat("[", 2_000_000), specs.CodeSyntax},
		{"block nesting", strings.Repeat("- ", 1_000_000), specs.CodeSyntax},
		{"mappings", strings.Repeat("{a: ", 100_000), specs.CodeSyntax},
		{"nesting by aliases", deep, specs.CodeTooDeep},
		{"large", strings.Repeat("a: b\n", 2_000_000), specs.CodeFileTooLarge},
		{"cycle", "a: &a {b: *a}", specs.CodeAliasCycle},
		{"merge cycle", "a: &a {<<: *a}", specs.CodeAliasCycle},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			got := loader().LoadBytes("x", []byte(c.text))
			t.Log(time.Since(start))
			if len(got.Diagnostics) != 1 || got.Diagnostics[0].Code != c.code || got.Diagnostics[0].Pos.Col < 1 || !got.Files[0].Broken {
				t.Errorf("%.1000s", text(got.Diagnostics))
			}
		})
	}
}

// TestManyProblems tries files whose size is allowed and whose content is
// wrong all over; nothing about them may be quadratic.
func TestManyProblems(t *testing.T) {
	const n = 20_000
	many := func(format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	head := func(kind, spec string) string {
		return "apiVersion: engine/v1\nkind: " + kind + "\nmetadata: {name: x}\nspec:\n" + spec
	}
	for name, c := range map[string]string{
		"unknown keys":      head("Function", "  log: {}\n"+many("  mesage%d: {}\n")),
		"unknown kinds":     head("Function", many("  mesage%d: {}\n")),
		"unknown types":     head("EventSource", many("  tick%d: {}\n")),
		"unknown top keys":  many("tick%d: {}\n"),
		"events":            head("EventSource", "  ticker:\n"+many("    t%d: {every: 5}\n")),
		"secrets":           head("Secret", "  env:\n"+many("    k%d: a-b\n")+"  files:\n"+many("    k%d: x\n")),
		"duplicate keys":    head("Secret", "  env:\n"+many("    k%d: AB\n")+many("    k%d: AB\n")),
		"empty texts":       head("Function", "  log:\n    fields:\n"+many("    - ${ x%d\n")),
		"names on one line": head("Function", "  log: {fields: ["+many("é%d, 010, ")+"]}\n"),
		"documents":         strings.Repeat("---\napiVersion: engine/v1\nkind: Secret\nmetadata: {name: x}\nspec: {env: {a: A}}\n", n/5),
	} {
		t.Run(name, func(t *testing.T) {
			got := loader().LoadBytes("x", []byte(c))
			if n := len(got.Diagnostics); n < 201 {
				t.Errorf("%d problems: %.1000s", n, text(got.Diagnostics))
			}
		})
	}
}

// TestFreeValues shows what free values become.
func TestFreeValues(t *testing.T) {
	const head = "apiVersion: engine/v1\nkind: Function\nmetadata: {name: f}\nspec:\n  log:\n    fields:\n      v: "
	for _, c := range []struct {
		text string
		want any
		said string
	}{
		{"1", int64(1), ""},
		{"-5", int64(-5), ""},
		{"0", int64(0), ""},
		{"0x1F", int64(31), ""},
		{"9223372036854775807", int64(9223372036854775807), ""},
		{"1.5", 1.5, ""},
		{"1.0", 1.0, ""},
		{"1e3", 1000.0, ""},
		{"0.5", 0.5, ""},
		{".5", 0.5, ""},
		{"true", true, ""},
		{"null", nil, ""},
		{"~", nil, ""},
		{"", nil, ""},
		{"text", "text", ""},
		{`"010"`, "010", ""},
		{`'1.10'`, "1.10", ""},
		{`"on"`, "on", ""},
		{"2026-01-02", "2026-01-02", ""},
		{"2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z", ""},
		{"12:30", "12:30", ""},
		{"!!str 5", "5", ""},
		{"!!float 5", 5.0, ""},
		{"1.10", 1.1, "warning[ambiguous-value]"},
		{"yes", "yes", "warning[ambiguous-value]"},
		{"NO", "NO", "warning[ambiguous-value]"},
		{"010", nil, "error[ambiguous-value]"},
		{"-007", nil, "error[ambiguous-value]"},
		{"08", nil, "error[ambiguous-value]"},
		{"1_000", nil, "error[ambiguous-value]"},
		{"9223372036854775808", nil, "error[invalid-number]"},
		{"-99999999999999999999", nil, "error[invalid-number]"},
		{".nan", nil, "error[invalid-number]"},
		{"-.inf", nil, "error[invalid-number]"},
		{"1e999", "1e999", ""},
		{"!order", nil, "error[custom-tag]"},
		{"! order", nil, "error[custom-tag]"},
		{"!!binary aGVsbG8=", nil, "error[custom-tag]"},
		{"!!set {a}", nil, "error[custom-tag]"},
		{"!x [a]", nil, "error[custom-tag]"},
		{"${ a", nil, "error[unterminated-expression]"},
		{"${ a # b }", nil, "error[unterminated-expression]"},
		{"$${ a", "$${ a", ""},
		{"${ {\"a\": '}'} }", "${ {\"a\": '}'} }", "yaml-syntax"},
		{"'${ {\"a\": \"}\"}[\"a\"] }'", "${ {\"a\": \"}\"}[\"a\"] }", ""},
	} {
		t.Run(c.text, func(t *testing.T) {
			got := loader().LoadBytes("x", []byte(head+c.text+"\n"))
			if said := text(got.Diagnostics); c.said == "" && said != "" || !strings.Contains(said, c.said) {
				t.Fatalf("said %q, want %q", said, c.said)
			}
			if got.Diagnostics.HasErrors() {
				if c.said == "" {
					t.Error(text(got.Diagnostics))
				}
				return
			}
			fields := got.Resources[0].Spec.(*specs.Function).Call.Config.(*logConfig).Fields
			v := fields.Root.(map[string]any)["v"]
			if s, ok := v.(specs.Text); ok {
				if s.Path != "spec.log.fields.v" {
					t.Error(s.Path)
				}
				v = s.Value
			}
			if v != c.want || !fields.Set {
				t.Errorf("%T %v, want %T %v", v, v, c.want, c.want)
			}
		})
	}
}

// TestTypedValues shows what the fields of configs take.
func TestTypedValues(t *testing.T) {
	const http = "apiVersion: engine/v1\nkind: Function\nmetadata: {name: f}\nspec:\n  http:\n    "
	for _, c := range []struct{ text, got, said string }{
		{"url: 010", "010", ""},
		{"url: 1.10", "1.10", ""},
		{"url: on", "on", ""},
		{"url: 2026-01-02", "2026-01-02", ""},
		{"url: null", "", "missing-key"},
		{"url: x\n    rate: 5", "5", ""},
		{"url: x\n    rate: 1.50", "1.5", ""},
		{"url: x\n    rate: 1_000", "1000", ""},
		{"url: x\n    rate: 010", "", "write 10"},
		{"url: x\n    rate: fast", "", "expected a number"},
		{"url: x\n    port: 8_080", "8080", ""},
		{"url: x\n    port: 0x50", "80", ""},
		{"url: x\n    port: -1", "", "out-of-range"},
		{"url: x\n    port: 80.0", "", "expected a whole number"},
		{"url: x\n    port: \"80\"", "", "write 80 without quotes"},
		{"url: x\n    port: 080", "", "write 80"},
		{"url: x\n    insecure: true", "true", ""},
		{"url: x\n    insecure: True", "true", ""},
		{"url: x\n    insecure: on", "", "write true"},
		{"url: x\n    insecure: No", "", "write false"},
		{"url: x\n    insecure: 1", "", "expected true or false"},
		{"url: x\n    insecure:", "false", ""},
		{"url: x\n    headers: {A: 010, B: {secret: {name: s, key: 1.10}}}", "010 1.10", ""},
		{"url: x\n    headers: {B: {prefix: x}}", "", "\"secret\" is missing"},
		{"url: x\n    headers: {B: {secret: {name: s}}}", "", "\"key\" is missing"},
		{"url: ${ a", "", "unterminated"},
		{"url: x\n    headers: {B: \"${ a\"}", "", "x:7:19: error[unterminated"},
		{"<<: {url: x, rate: 2}\n    rate: 3", "3", ""},
		{"<<: [{rate: 4}, {url: x, rate: 5}]", "4", ""},
		{"\"<<\": {url: x}", "", "unknown key \"<<\""},
	} {
		t.Run(c.text, func(t *testing.T) {
			got := loader().LoadBytes("x", []byte(http+c.text+"\n"))
			said := text(got.Diagnostics)
			if c.said != "" || said != "" {
				if c.said == "" || !strings.Contains(said, c.said) {
					t.Fatalf("said %q, want %q", said, c.said)
				}
				return
			}
			cfg := got.Resources[0].Spec.(*specs.Function).Call.Config.(*httpConfig)
			if cfg.Method != "POST" {
				t.Error("the default is gone")
			}
			v := cfg.URL.Value
			switch {
			case strings.Contains(c.text, "rate"):
				v = fmt.Sprint(cfg.Rate)
			case strings.Contains(c.text, "port"):
				v = fmt.Sprint(cfg.Port)
			case strings.Contains(c.text, "insecure"):
				v = fmt.Sprint(cfg.Insecure)
			case strings.Contains(c.text, "headers"):
				v = cfg.Headers["A"].Text.Value + " " + cfg.Headers["B"].Secret.Key
			}
			if v != c.got {
				t.Errorf("%q, want %q", v, c.got)
			}
		})
	}
}

// TestHints shows what is proposed for a wrong key.
func TestHints(t *testing.T) {
	for key, want := range map[string]string{
		"dependancies": "dependencies", "deps": "dependencies", "Triggers": "triggers", "trigers": "triggers", "conditoin": "condition",
		"witihn": "within", "corelate": "correlate", "cond": "condition", "x": "", "name": "", "something": "",
	} {
		got := loader().LoadBytes("x", []byte("apiVersion: engine/v1\nkind: Sensor\nmetadata: {name: s}\nspec:\n  "+key+": 1\n"))
		i := slices.IndexFunc(got.Diagnostics, func(d specs.Diagnostic) bool { return d.Code == specs.CodeUnknownKey })
		if want != "" {
			want = fmt.Sprintf("did you mean %q?", want)
		} else {
			want = "one of: dependencies, correlate, within, reset, condition, from, triggers, limits"
		}
		if i < 0 || got.Diagnostics[i].Hint != want {
			t.Errorf("%s: %s", key, text(got.Diagnostics))
		}
	}
}

// TestEmptyElements makes sure that nothing is not taken for something.
func TestEmptyElements(t *testing.T) {
	got := loader().LoadBytes("x", []byte(`apiVersion: engine/v1
kind: Sensor
metadata: {name: s, labels: {a: }}
spec:
  dependencies:
    -
  triggers: [{name: t, log: }, ~]
`))
	const want = `x:3:33: error[wrong-type] metadata.labels.a: expected a value, found nothing (remove it, or write "" for empty text)
x:6:6: error[wrong-type] spec.dependencies[0]: expected a value, found nothing (remove it, or write "" for empty text)
x:7:32: error[wrong-type] spec.triggers[1]: expected a value, found nothing (remove it, or write "" for empty text)
`
	if said := text(got.Diagnostics); said != want {
		t.Errorf("%s", said)
	}
}

// TestTextPos maps places in texts to the file, in every style of scalar.
func TestTextPos(t *testing.T) {
	for _, c := range []struct {
		when      string
		line, col int
		want      string
	}{
		{"when: data.a", 1, 6, "7:17"},
		{"when: 'data.a'", 1, 6, "7:18"},
		{"when: \"data.a\"", 1, 6, "7:18"},
		{"when: \"\\u0064ata.a\"", 1, 6, "7:12"},
		{"when:   data.é > data.b", 1, 10, "7:23"},
		{"when: data.a &&\n        data.b", 1, 12, "7:12"},
		{"when: |\n       data.a &&\n       data.b", 1, 6, "8:13"},
		{"when: |\n       data.a &&\n       data.b", 2, 6, "9:13"},
		{"when: |-\n         data.a &&\n           data.b", 2, 3, "9:12"},
		{"when: |2\n         data.a &&\n           data.b", 2, 5, "9:12"},
		{"when: |\n\n\n       data.a", 3, 1, "10:8"},
		{"when: >\n       data.a &&\n       data.b", 1, 12, "7:12"},
		{"when: &x data.a", 1, 1, "7:12"},
	} {
		t.Run(c.when, func(t *testing.T) {
			got := valid(t, "apiVersion: engine/v1\nkind: Sensor\nmetadata: {name: s}\nspec:\n  dependencies:\n    -\n     "+
				c.when+"\n     name: x\n     type: a\n  triggers: [{name: t, log: {}}]\n")
			pos := got.Resources[0].Spec.(*specs.Sensor).Dependencies[0].When.Pos.At(c.line, c.col)
			if pos.String() != "x.yaml:"+c.want {
				t.Errorf("%s, want %s", pos, c.want)
			}
		})
	}
}

func TestDurationsAndSizes(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"500ms": 500 * time.Millisecond, "10s": 10 * time.Second, "5m": 5 * time.Minute, "2h": 2 * time.Hour, "7d": 7 * 24 * time.Hour,
		"1h30m": 90 * time.Minute, "1.5s": 1500 * time.Millisecond, "0": 0, "0s": 0, "1d12h": 36 * time.Hour, "20us": 20 * time.Microsecond,
	} {
		if got, err := specs.ParseDuration(text); err != nil || got.D() != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "5", "s", "5 s", "-1s", "1y", "1.2.3s", "106752d", "999999999999999999999s", "5S", "PT5M", "1s2"} {
		if got, err := specs.ParseDuration(text); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
	for text, want := range map[string]specs.Size{
		"0": 0, "512": 512, "64KiB": 64 << 10, "1MiB": 1 << 20, "10GB": 10e9, "1.5MiB": 3 << 19, "100B": 100, "1kB": 1000, "2TiB": 2 << 40,
	} {
		if got, err := specs.ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1M", "-1", "1.5B", "1 MiB", "MiB", "9999999999TiB", "0x10", "1e3", "NaN", "InfB"} {
		if got, err := specs.ParseSize(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	for size, want := range map[specs.Size]string{0: "0", 512: "512", 1 << 20: "1MiB", 3 << 19: "1536KiB", 1000: "1000"} {
		if got := size.String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
