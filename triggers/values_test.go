package triggers

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

func TestLiteral(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a": "a", "$a {b} $": "$a {b} $", "$${a}": "${a}", "x$${a}$${b}": "x${a}${b}",
		"${a}": "-", "x${": "-", "$${a}${b}": "-",
	} {
		got, ok := Literal(specs.Text{Value: in})
		if !ok {
			got = "-"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	text := specs.Text{Value: "https://example.com/hook"}
	if n := testing.AllocsPerRun(10, func() { Literal(text) }); n != 0 {
		t.Errorf("a plain text costs %v allocations", n)
	}
}

type inner struct {
	List []specs.Text
	Self *inner
}

type config struct {
	URL     specs.Text
	Data    specs.Template
	Headers map[string]specs.TextOrSecret
	Inner   *inner
	Plain   string
	Value   specs.Value
	private specs.Text
}

func text(path, s string) specs.Text { return specs.Text{Value: s, Path: path} }

func secret(specs.SecretRef) (string, error) { return "hidden", nil }

func newConfig() *config {
	return &config{
		URL: text("url", "http://x/${ data.id }"),
		Data: specs.Template{Set: true, Path: "data", Root: map[string]any{
			"n": text("data.n", "${ data.id }"), "s": text("data.s", "plain"), "i": text("data.i", "${ input }"), "k": int64(1),
		}},
		Headers: map[string]specs.TextOrSecret{
			"a": {Text: text("headers.a", "${ type } ${ event.source }")},
			"b": {Secret: &specs.SecretRef{Name: "n", Key: "k"}, Prefix: "Bearer "},
		},
		Inner:   &inner{List: []specs.Text{text("list[0]", "$${ x }"), text("list[1]", "${ data.absent.x }")}},
		private: text("private", "${ not an expression"),
	}
}

func TestCompiled(t *testing.T) {
	cfg := newConfig()
	compiled, ds := CompileConfig(cfg)
	if len(ds) > 0 {
		t.Fatal(ds)
	}
	if !compiled.NeedsData() || compiled.NeedsRequest() {
		t.Error("wrong needs")
	}
	c := &Call{Event: &bus.Event{Type: "t", Source: "s", Data: []byte(`{"id":1234567890123456789}`)}, Input: "in", HasInput: true}
	v := compiled.Values(c, secret)
	if got, err := v.Text(cfg.URL); got != "http://x/1234567890123456789" || err != nil {
		t.Error(got, err)
	}
	if got, err := v.TextOrSecret(cfg.Headers["a"]); got != "t s" || err != nil {
		t.Error(got, err)
	}
	if got, err := v.TextOrSecret(cfg.Headers["b"]); got != "Bearer hidden" || err != nil {
		t.Error(got, err)
	}
	if got, err := v.Text(cfg.Inner.List[0]); got != "${ x }" || err != nil {
		t.Error(got, err)
	}
	want := map[string]any{"n": int64(1234567890123456789), "s": "plain", "i": "in", "k": int64(1)}
	if got, err := v.Template(cfg.Data); !reflect.DeepEqual(got, want) || err != nil {
		t.Error(got, err)
	}
	if got, err := v.Template(specs.Template{}); got != nil || err != nil {
		t.Error(got, err)
	}
	if _, err := v.Text(cfg.Inner.List[1]); ClassOf(err) != InputError || !strings.Contains(err.Error(), "list[1]: missing `data.absent`; give it, or a default: ${ data.absent ?? … }") {
		t.Error(err)
	}

	// Data that does not parse fails only what reads it, and not for ever after.
	v = compiled.Values(&Call{Event: &bus.Event{Type: "t", Source: "s", DataContentType: "application/json", Data: []byte(`{`)}}, secret)
	for range 2 {
		if _, err := v.Text(cfg.URL); !Permanent(err) {
			t.Error(err)
		}
	}
	// No event at all: templates that need it say so, others work.
	v = compiled.Values(&Call{}, nil)
	if _, err := v.Text(cfg.URL); ClassOf(err) != InputError {
		t.Error(err)
	}
	if _, err := v.Secret(specs.SecretRef{Name: "n", Key: "k"}); err == nil {
		t.Error("a secret from nowhere")
	}
}

func TestCompileErrors(t *testing.T) {
	cfg := newConfig()
	cfg.URL.Value = "${ nonsense }"
	cfg.Inner.Self = &inner{List: []specs.Text{text("self", "${ data.")}}
	c, ds := CompileConfig(cfg)
	if c != nil || len(ds) != 2 {
		t.Errorf("%v", ds)
	}
	c, ds = CompileConfig(&struct{ A specs.Text }{text("a", "plain")})
	if len(ds) > 0 || c.templates != nil || c.NeedsData() {
		t.Errorf("constants were compiled: %v", ds)
	}
}

func TestRendered(t *testing.T) {
	cfg := newConfig()
	v := NewValues(map[string]any{"url": "http://x/1", "data": map[string]any{"n": int64(1)}, "headers.a": int64(7), "list[1]": nil}, secret)
	if got, err := v.Text(cfg.URL); got != "http://x/1" || err != nil {
		t.Error(got, err)
	}
	if got, err := v.TextOrSecret(cfg.Headers["a"]); got != "7" || err != nil {
		t.Error(got, err)
	}
	if got, err := v.Template(cfg.Data); !reflect.DeepEqual(got, map[string]any{"n": int64(1)}) || err != nil {
		t.Error(got, err)
	}
	v = NewValues(nil, nil)
	if got, err := v.Template(specs.Template{Set: true, Root: []any{text("", "a"), map[string]any{"b": text("", "$${b}")}, int64(1)}}); !reflect.DeepEqual(got, []any{"a", map[string]any{"b": "${b}"}, int64(1)}) || err != nil {
		t.Error(got, err)
	}
	for _, err := range []error{
		func() error { _, err := v.Text(cfg.URL); return err }(),
		func() error { _, err := v.Template(cfg.Data); return err }(),
		func() error { _, err := v.Text(cfg.Inner.List[1]); return err }(),
	} {
		if _, ok := errors.AsType[*PermanentError](err); !ok {
			t.Error(err)
		}
	}
}

// Literal agrees with the language: it takes exactly the strings without
// expressions, and gives them the same value.
func TestLiteralAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.StringOfN(rapid.SampledFrom([]rune("${}$$a")), 0, 12, -1).Draw(t, "text")
		got, ok := Literal(text("x", in))
		tmpl, ds := expression.CompileText(text("x", in), expression.CallScope())
		if !ok {
			if tmpl != nil && tmpl.Constant() {
				t.Fatalf("%q is constant", in)
			}
			return
		}
		if ds.HasErrors() {
			t.Fatalf("%q: %v", in, ds)
		}
		if want, err := tmpl.RenderString(nil); err != nil || got != want {
			t.Fatalf("%q: %q, want %q (%v)", in, got, want, err)
		}
	})
}

func TestMediaType(t *testing.T) {
	for out, want := range map[string]string{
		"": "", " \n": "", "{}\n": "application/json", "hi": "text/plain; charset=utf-8", "a\x00": "application/octet-stream", "\xff": "application/octet-stream",
	} {
		if got := MediaType([]byte(out)); got != want {
			t.Errorf("%q: %s, want %s", out, got, want)
		}
	}
}
