package specs_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
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

// valid loads one text that has no errors.
func valid(t *testing.T, text string) *specs.Loaded {
	t.Helper()
	got := loader().LoadBytes("x.yaml", []byte(text))
	if err := got.Diagnostics.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}

func load(t *testing.T, l specs.Loader, paths ...string) *specs.Loaded {
	t.Helper()
	got, err := l.Load(t.Context(), paths...)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func names(l *specs.Loaded) string {
	var out []string
	for _, r := range l.Resources {
		out = append(out, r.Metadata.Name)
	}
	return strings.Join(out, " ")
}

func tick(name string) string {
	return "apiVersion: engine/v1\nkind: EventSource\nmetadata: {name: " + name + "}\nspec: {ticker: {tick: {every: 1s}}}\n"
}

func TestLoadShop(t *testing.T) {
	got := valid(t, shop)
	if ds := loader().Check(got.Set()); len(ds) > 0 {
		t.Fatal(ds.Err())
	}
	if names(got) != "shop ship-order shop ship-paid-orders" && len(got.Resources) != 4 {
		t.Fatal(names(got))
	}
	set := got.Set()
	sensor := set.Resources[specs.Ref{Kind: specs.KindSensor, Name: "ship-paid-orders"}]
	spec := sensor.Spec.(*specs.Sensor)
	if p := sensor.Pos.String() + " " + sensor.NamePos.String(); p != "x.yaml:9:1 x.yaml:11:18" {
		t.Error(p)
	}
	if want := []specs.Ref{{Kind: "EventSource", Name: "shop"}, {Kind: "Function", Name: "ship-order"}}; !slices.Equal(sensor.Uses, want) {
		t.Error(sensor.Uses)
	}
	if when := spec.Dependencies[0].When; when.Source != "data.total > 100" || when.Pos.At(1, 6).String() != "x.yaml:14:63" {
		t.Error(when, when.Pos.At(1, 6))
	}
	ship := spec.Triggers[0]
	if ship.Function != "ship-order" || ship.FunctionPos.String() != "x.yaml:21:17" || ship.Retry.Attempts != 5 ||
		ship.Retry.Backoff.D() != time.Second || spec.Within.D() != 10*time.Minute {
		t.Errorf("%+v", ship)
	}
	amount := ship.Input.Root.(map[string]any)["amount"].(specs.Text)
	if amount.Value != "${ payment.data.amount }" || amount.Path != "spec.triggers[0].input.amount" || amount.Pos.At(1, 1).String() != "x.yaml:22:50" {
		t.Errorf("%+v %s", amount, amount.Pos.At(1, 1))
	}
	note := spec.Triggers[1].Inline
	if c := note.Config.(*logConfig); note.Kind != "log" || c.Message.Path != "spec.triggers[1].log.message" {
		t.Errorf("%+v", note)
	}
	events := set.Resources[specs.Ref{Kind: specs.KindEventSource, Name: "shop"}].Spec.(*specs.EventSource).Events
	if len(events) != 2 || events[0].Name != "orders" || events[0].Config.(*webhookConfig).MaxBody != 1<<20 {
		t.Errorf("%+v", events)
	}
	if h := events[1].Config.(*webhookConfig).Auth.HMAC.Secret; h.Name != "shop" || h.Key != "hook" || h.Pos.String() != "x.yaml:7:76" {
		t.Errorf("%+v", h)
	}
	fn := set.Resources[specs.Ref{Kind: specs.KindFunction, Name: "ship-order"}].Spec.(*specs.Function)
	auth := fn.Call.Config.(*httpConfig).Headers["Authorization"]
	if auth.Prefix != "Bearer " || auth.Secret == nil || auth.Secret.Key != "hook" || fn.Timeout.D() != 10*time.Second {
		t.Errorf("%+v", auth)
	}
}

// TestSourceRoundTrip loads stored sources: everything is as it was, down to
// the places.
func TestSourceRoundTrip(t *testing.T) {
	text := "# shop\n" + shop + "...\n%YAML 1.1\n--- {apiVersion: engine/v1, kind: Function, metadata: {name: note}, spec: {log: {message: |-\n" +
		"x}}}\n"
	text = strings.Replace(text, "message: |-\nx", "message: x", 1) +
		"---\n# text at the end\n" + "apiVersion: engine/v1\nkind: Function\nmetadata: {name: last}\nspec:\n  log:\n    message: |+\n      a\n\n      ---\n\n"
	got := valid(t, text)
	if len(got.Resources) != 6 {
		t.Fatal(names(got))
	}
	for _, r := range got.Resources {
		again := loader().LoadSource(r.Pos, r.Source)
		if err := again.Diagnostics.Err(); err != nil || len(again.Resources) != 1 {
			t.Fatalf("%s: %v\n%s", r.Ref(), err, r.Source)
		}
		if !reflect.DeepEqual(again.Resources[0], r) {
			t.Errorf("%s is not the same:\n%+v\n%+v", r.Ref(), again.Resources[0], r)
		}
	}
}

func TestHash(t *testing.T) {
	const base = "apiVersion: engine/v1\nkind: Function\nmetadata: {name: f}\nspec:\n  log: {message: hello, fields: {a: 1, b: [x, 1.5]}}\n  timeout: 10s\n"
	same := []string{
		"# comment\n" + base,
		"kind: Function\napiVersion: 'engine/v1'\nspec:\n    timeout: \"10s\"\n    log:\n        fields:\n            b:\n                - x\n                - 1.5\n            a: 1\n        message: >-\n            hello\nmetadata:\n    name: f\n",
		"apiVersion: engine/v1\nkind: Function\nmetadata: {name: &n f}\nspec:\n  log: {message: hello, fields: {a: 1, b: [&x x, 1.5]}}\n  timeout: 10s\n",
		"apiVersion: engine/v1\nkind: Function\nmetadata: {name: f}\nspec:\n  log: {message: hello, fields: {<<: {a: 1, b: 2}, b: [x, 1.5]}}\n  timeout: 10s\n",
	}
	want := valid(t, base).Resources[0].Hash
	for _, s := range same {
		if got := valid(t, s).Resources[0].Hash; got != want {
			t.Errorf("another hash for:\n%s", s)
		}
	}
	for _, r := range [][2]string{{"10s", "11s"}, {"hello", "hallo"}, {"a: 1", "a: \"1\""}, {"[x, 1.5]", "[[x], 1.5]"}, {"name: f", "name: g"}, {"[x, 1.5]", "[1.5, x]"}, {"a: 1", "a: "}} {
		if got := valid(t, strings.Replace(base, r[0], r[1], 1)).Resources[0].Hash; got == want {
			t.Errorf("the same hash with %s", r[1])
		}
	}
}

func TestHashOf(t *testing.T) {
	hashes := func(text string) map[string]string {
		set := valid(t, text).Set()
		out := map[string]string{}
		for ref, r := range set.Resources {
			out[ref.String()] = set.HashOf(ref)
			if s, ok := r.Spec.(*specs.EventSource); ok {
				for _, e := range s.Events {
					out[ref.String()+"/"+e.Name] = set.HashOfEvent(e)
				}
			}
		}
		return out
	}
	changed := func(old, new string) string {
		a, b := hashes(shop), hashes(strings.Replace(shop, old, new, 1))
		var out []string
		for k := range a {
			if a[k] != b[k] {
				out = append(out, k)
			}
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, c := range []struct{ old, new, want string }{
		{"# a source type", "# changed", ""},
		{"condition: order", "condition: payment", "Sensor/ship-paid-orders"},
		{"timeout: 10s", "timeout: 20s", "Function/ship-order Sensor/ship-paid-orders"},
		{"path: /orders", "path: /order", "EventSource/shop EventSource/shop/orders Sensor/ship-paid-orders"},
		{"SHOP_HOOK", "HOOK", "EventSource/shop EventSource/shop/payments Function/ship-order Secret/shop Sensor/ship-paid-orders"},
	} {
		if got := changed(c.old, c.new); got != c.want {
			t.Errorf("%s → %s changes %q, want %q", c.old, c.new, got, c.want)
		}
	}
	if h := valid(t, shop).Set().HashOf(specs.Ref{Kind: specs.KindSensor, Name: "absent"}); h != "" {
		t.Error(h)
	}
}

// TestLoadDirectory reads what is a spec and nothing else.
func TestLoadDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{
		"a.yaml", "b.yml", "sub/deep/c.yaml",
		".hidden.yaml", ".git/config.yaml", "a.yaml~", ".a.yaml.swp", "#a.yaml#", "backup~/d.yaml", "e.json", "f.yaml.tmp", "4913",
	} {
		write(t, filepath.Join(dir, f), tick(strings.NewReplacer("/", "-", ".", "-", "~", "", "#", "").Replace("x"+f)))
	}
	write(t, filepath.Join(dir, "empty.yaml"), "")
	write(t, filepath.Join(dir, "comment.yaml"), "# nothing\n---\n---\n")
	got := load(t, loader(), dir)
	if err := got.Diagnostics.Err(); err != nil || names(got) != "xa-yaml xb-yml xsub-deep-c-yaml" {
		t.Errorf("%s, %v", names(got), err)
	}
	var files []string
	for _, f := range got.Files {
		rel, _ := filepath.Rel(dir, f.Path)
		files = append(files, fmt.Sprintf("%s%v%v", rel, f.Refs, f.Broken))
	}
	if want := "a.yaml[EventSource/xa-yaml]false b.yml[EventSource/xb-yml]false comment.yaml[]false empty.yaml[]false sub/deep/c.yaml[EventSource/xsub-deep-c-yaml]false"; strings.Join(files, " ") != want {
		t.Error(files)
	}
	// Files and overlapping roots are read once.
	got = load(t, loader(), filepath.Join(dir, "sub"), filepath.Join(dir, "a.yaml"), dir)
	if len(got.Files) != 5 || len(got.Diagnostics) != 0 || len(got.Roots) != 3 || got.Roots[2].Path != dir || got.Roots[2].Device == 0 {
		t.Errorf("%+v", got)
	}
}

func TestLoadSeveralFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), tick("one")+"---\n"+tick("two"))
	write(t, filepath.Join(dir, "b.yaml"), tick("two"))
	write(t, filepath.Join(dir, "c.yaml"), tick("three")+"---\n"+tick("four")+"spec2: [")
	write(t, filepath.Join(dir, "d.yaml"), strings.Replace(tick("five"), "every", "evry", 1))
	got := load(t, loader(), dir)
	if names(got) != "one two" || fmt.Sprint(got.Invalid) != "[EventSource/five]" {
		t.Errorf("%s; invalid %v", names(got), got.Invalid)
	}
	if f := got.Files[2]; !f.Broken || f.Refs != nil {
		t.Errorf("%+v", f)
	}
	if f := got.Files[3]; f.Broken || len(f.Refs) != 1 {
		t.Errorf("%+v", f)
	}
	want := dir + "/b.yaml:3:18: error[duplicate-resource] metadata.name: EventSource \"two\" is already defined at " + dir + "/a.yaml:8:18 (rename or remove one of them)"
	if d := got.Diagnostics[0]; d.String() != want || fmt.Sprint(d.Related) != "["+dir+"/a.yaml:8:18]" {
		t.Error(d)
	}
}

// TestLoadConfigMap is how Kubernetes mounts a ConfigMap: the visible names
// are links through a hidden link into a hidden directory.
func TestLoadConfigMap(t *testing.T) {
	dir := t.TempDir()
	swap := func(version string, files map[string]string) {
		for f, text := range files {
			write(t, filepath.Join(dir, version, f), text)
		}
		symlink(t, version, filepath.Join(dir, "..tmp"))
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	swap("..2026_01", map[string]string{"a.yaml": tick("a"), "b.yaml": tick("b")})
	symlink(t, "..data/a.yaml", filepath.Join(dir, "a.yaml"))
	symlink(t, "..data/b.yaml", filepath.Join(dir, "b.yaml"))
	if got := load(t, loader(), dir); names(got) != "a b" || len(got.Diagnostics) > 0 || len(got.Files) != 2 || got.Files[0].Path != filepath.Join(dir, "a.yaml") {
		t.Errorf("%s %v %+v", names(got), got.Diagnostics, got.Files)
	}
	swap("..2026_02", map[string]string{"a.yaml": tick("a2"), "b.yaml": tick("b2")})
	if got := load(t, loader(), dir); names(got) != "a2 b2" || len(got.Diagnostics) > 0 {
		t.Errorf("%s %v", names(got), got.Diagnostics)
	}
	// A link to the mount, and a file in it, are roots like others.
	link := filepath.Join(t.TempDir(), "specs")
	symlink(t, dir, link)
	if got := load(t, loader(), link); names(got) != "a2 b2" || len(got.Diagnostics) > 0 {
		t.Errorf("%s %v", names(got), got.Diagnostics)
	}
	if got := load(t, loader(), filepath.Join(dir, "a.yaml")); names(got) != "a2" || len(got.Diagnostics) > 0 {
		t.Errorf("%s %v", names(got), got.Diagnostics)
	}
}

func TestLoadLinks(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret.yaml"), tick("outside"))
	write(t, filepath.Join(outside, "note.txt"), "x")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "real", "a.yaml"), tick("a"))
	symlink(t, "real/a.yaml", filepath.Join(dir, "0-same-file.yaml"))
	symlink(t, "real", filepath.Join(dir, "0-same-dir"))
	symlink(t, "..", filepath.Join(dir, "real", "parent"))
	symlink(t, ".", filepath.Join(dir, "real", "self"))
	symlink(t, filepath.Join(outside, "note.txt"), filepath.Join(dir, "note.txt"))
	if got := load(t, loader(), dir); names(got) != "a" || len(got.Diagnostics) > 0 || got.Files[0].Path != filepath.Join(dir, "real", "a.yaml") {
		t.Errorf("%s %v %v", names(got), got.Files, got.Diagnostics)
	}
	symlink(t, outside, filepath.Join(dir, "out"))
	symlink(t, filepath.Join(outside, "secret.yaml"), filepath.Join(dir, "out.yaml"))
	symlink(t, "loop.yaml", filepath.Join(dir, "loop.yaml"))
	got := load(t, loader(), dir)
	if names(got) != "a" || len(got.Diagnostics) != 3 || got.Diagnostics[1].Code != specs.CodeLinkOutside || got.Diagnostics[2].Code != specs.CodeLinkOutside ||
		got.Diagnostics[0].Code != specs.CodeUnreadable {
		t.Errorf("%s\n%s", names(got), text(got.Diagnostics))
	}
	if f := got.Files[0]; !f.Broken || f.Path != filepath.Join(dir, "loop.yaml") {
		t.Errorf("%+v", got.Files)
	}
}

func TestLoadUnreadable(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), tick("a"))
	got := load(t, loader(), filepath.Join(dir, "absent"), dir)
	if names(got) != "a" || got.Roots[0].Err == nil || got.Roots[1].Err != nil || !got.Diagnostics.HasErrors() {
		t.Errorf("%+v", got)
	}
	if os.Getuid() == 0 {
		t.Skip("root may read everything")
	}
	write(t, filepath.Join(dir, "closed", "b.yaml"), tick("b"))
	if err := os.Chmod(filepath.Join(dir, "closed"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "closed"), 0o755) })
	if got := load(t, loader(), dir); names(got) != "a" || got.Roots[0].Err == nil {
		t.Errorf("%+v", got)
	}
}

func TestLoadCancelled(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), tick("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := loader().Load(ctx, dir); err == nil {
		t.Errorf("%+v", got)
	}
}

// TestErrorsBelongToTheirDocument makes sure that an error found while parsing
// invalidates its own document only.
func TestErrorsBelongToTheirDocument(t *testing.T) {
	got := loader().LoadBytes("x.yaml", []byte(tick("a")+"---\n"+tick("b")+"spec: {}\n---\n"+tick("c")))
	if names(got) != "a c" || fmt.Sprint(got.Invalid) != "[EventSource/b]" || len(got.Diagnostics) != 1 || got.Diagnostics[0].Ref.Name != "b" {
		t.Errorf("%s %v\n%s", names(got), got.Invalid, text(got.Diagnostics))
	}
	var many strings.Builder
	many.WriteString(tick("a") + "---\n" + strings.TrimSuffix(tick("b"), "}}}\n"))
	for i := range 300 {
		fmt.Fprintf(&many, ", x%d: 1", i)
	}
	many.WriteString("}}}\n---\n" + tick("c") + "spec: {}\n---\n" + tick("d"))
	got = loader().LoadBytes("x.yaml", []byte(many.String()))
	if names(got) != "a d" || fmt.Sprint(got.Invalid) != "[EventSource/b EventSource/c]" || len(got.Diagnostics) != 201 {
		t.Errorf("%s %v %d", names(got), got.Invalid, len(got.Diagnostics))
	}
}

func TestMatchGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{"a", "ab", false},
		{"", "", true},
		{"", "a", false},
		{"*", "", true},
		{"*", "a.b", true},
		{"a*", "a", true},
		{"a*", "abc", true},
		{"a*c", "abbc", true},
		{"a*c", "abcd", false},
		{"*b*", "abc", true},
		{"*b*", "ac", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"?", "é", true},
		{"?", "éé", false},
		{"*?é", "aé", true},
		{"**", "x", true},
		{"com.example.*", "com.example.order.paid", true},
		{"com.example.*", "com.example", false},
		{"*.paid", "a.paid.paid", true},
	} {
		if got := specs.MatchGlob(c.pattern, c.s); got != c.want {
			t.Errorf("MatchGlob(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

// thousand writes 1,000 documents into 100 files.
func thousand(b *testing.B) string {
	dir := b.TempDir()
	for i := range 100 {
		var text strings.Builder
		for j := range 10 {
			name := fmt.Sprintf("r%d-%d", i, j)
			switch j % 3 {
			case 0:
				text.WriteString(strings.ReplaceAll(tick(name), "spec: {ticker: {tick: {every: 1s}}}",
					"spec:\n  webhook:\n    orders: {path: /"+name+", methods: [POST], maxBody: 64KiB}\n    other:\n      path: /x/"+name+"\n"))
			case 1:
				fmt.Fprintf(&text, "apiVersion: engine/v1\nkind: Sensor\nmetadata: {name: %s}\nspec:\n  dependencies:\n    - name: order\n      source: r%d-0\n      event: orders\n      when: data.total > %d\n  triggers:\n    - name: call\n      function: r%d-2\n      input:\n        order: ${ order.data }\n        note: \"order ${ order.id }\"\n      retry: {attempts: 3, backoff: 1s}\n", name, i, j, i)
			case 2:
				fmt.Fprintf(&text, "apiVersion: engine/v1\nkind: Function\nmetadata: {name: %s}\nspec:\n  http:\n    url: https://example.com/${ input.order.id }\n    headers: {X-Trace: \"${ event.id }\"}\n  timeout: 10s\n", name)
			}
			text.WriteString("---\n")
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.yaml", i)), []byte(text.String()), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	return dir
}

// TestCache reads again only what changed.
func TestCache(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), tick("a"))
	write(t, filepath.Join(dir, "b.yaml"), tick("b")+"---\nkind: x\n")
	write(t, filepath.Join(dir, "c.yaml"), tick("a"))
	l := loader()
	l.Cache = new(specs.Cache)
	first := load(t, l, dir)
	second := load(t, l, dir)
	if !reflect.DeepEqual(first, second) || first.Resources[0] != second.Resources[0] {
		t.Errorf("%+v\n%+v", first, second)
	}
	write(t, filepath.Join(dir, "a.yaml"), tick("new"))
	if err := os.Rename(filepath.Join(dir, "b.yaml"), filepath.Join(dir, "moved.yaml")); err != nil {
		t.Fatal(err)
	}
	third, plain := load(t, l, dir), load(t, loader(), dir)
	if names(third) != "a b new" || !reflect.DeepEqual(third, plain) {
		t.Errorf("%+v\n%+v", third, plain)
	}
}

func BenchmarkReload1Of1000(b *testing.B) {
	dir := thousand(b)
	l := loader()
	l.Cache = new(specs.Cache)
	name := filepath.Join(dir, "050.yaml")
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := os.WriteFile(name, fmt.Appendf(data, "# %d\n", i), 0o644); err != nil {
			b.Fatal(err)
		}
		if got, err := l.Load(b.Context(), dir); err != nil || len(got.Resources) != 1000 {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad1000(b *testing.B) {
	dir := thousand(b)
	l := loader()
	b.ReportAllocs()
	for b.Loop() {
		got, err := l.Load(b.Context(), dir)
		if err != nil || len(got.Resources) != 1000 || len(got.Diagnostics) > 0 {
			b.Fatal(len(got.Resources), got.Diagnostics.Err())
		}
	}
}

func BenchmarkCheckAndHash1000(b *testing.B) {
	l := loader()
	got, err := l.Load(b.Context(), thousand(b))
	if err != nil {
		b.Fatal(err)
	}
	set := got.Set()
	b.ReportAllocs()
	for b.Loop() {
		if ds := l.Check(set); len(ds) > 0 {
			b.Fatal(ds.Err())
		}
		for ref := range maps.Keys(set.Resources) {
			set.HashOf(ref)
		}
	}
}
