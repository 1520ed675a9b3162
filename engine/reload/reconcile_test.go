package reload

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

var update = flag.Bool("update", false, "rewrite golden files")

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// tree is what a directory holds: per file the resources, one a line, as
// `Kind/name@version uses Kind/name=version, …`; the "=version" demands that
// the used one contains it. "BROKEN" is a file that does not parse; a version
// "bad" is invalid in itself. Versions that begin with "/" are routes.
type tree map[string]string

func (t tree) load() *specs.Loaded {
	l := &specs.Loaded{Roots: []specs.Root{{Path: ".", Device: 1}}}
	defined := map[specs.Ref]specs.Pos{}
	for _, path := range slices.Sorted(maps.Keys(t)) {
		f := specs.File{Path: path}
		for i, line := range strings.Split(strings.TrimSpace(t[path]), "\n") {
			line = strings.TrimSpace(line)
			pos := specs.Pos{File: path, Line: i + 1, Col: 1}
			if line == "BROKEN" {
				f.Broken = true
				l.Diagnostics = append(l.Diagnostics, specs.Diagnostic{Pos: pos, Severity: specs.Error, Code: "syntax", Message: "no YAML"})
				continue
			}
			if line == "" {
				continue
			}
			res := resource(line, pos)
			ref := res.Ref()
			f.Refs = append(f.Refs, ref)
			fail := func(code specs.Code, message string, related ...specs.Pos) {
				l.Diagnostics = append(l.Diagnostics, specs.Diagnostic{Pos: pos, Severity: specs.Error, Code: code, Ref: ref, Message: message, Related: related})
			}
			first, twice := defined[ref]
			switch {
			case strings.HasPrefix(res.Hash, "bad"):
				fail("value", "wrong value")
				l.Invalid = append(l.Invalid, ref)
			case twice:
				fail("duplicate", "defined twice", first)
			default:
				defined[ref] = pos
				l.Resources = append(l.Resources, res)
			}
		}
		l.Files = append(l.Files, f)
	}
	slices.SortFunc(l.Resources, func(a, b *specs.Resource) int { return compareRefs(a.Ref(), b.Ref()) })
	return l
}

func resource(line string, pos specs.Pos) *specs.Resource {
	head, rest, _ := strings.Cut(line, " uses ")
	name, version, _ := strings.Cut(head, "@")
	res := &specs.Resource{Kind: ref(name).Kind, Pos: pos, Hash: version, Source: line}
	res.Metadata.Name = ref(name).Name
	if rest != "" {
		for used := range strings.SplitSeq(rest, ", ") {
			used, want, _ := strings.Cut(used, "=")
			res.Uses = append(res.Uses, ref(used))
			res.Hash += " uses " + used + "=" + want
		}
	}
	return res
}

func ref(s string) specs.Ref {
	kind, name, _ := strings.Cut(s, "/")
	return specs.Ref{Kind: specs.Kind(kind), Name: name}
}

// check finds dangling references, missing versions and route conflicts. An
// error without a resource is found when any version contains "curse".
func check(s *specs.Set, _ ...specs.Ref) specs.Diagnostics {
	var ds specs.Diagnostics
	fail := func(res *specs.Resource, message string, related ...specs.Pos) {
		ds = append(ds, specs.Diagnostic{Pos: res.Pos, Severity: specs.Error, Code: "check", Ref: res.Ref(), Message: message, Related: related})
	}
	routes := map[string]*specs.Resource{}
	for _, r := range slices.SortedFunc(maps.Keys(s.Resources), compareRefs) {
		res := s.Resources[r]
		if strings.Contains(res.Hash, "curse") {
			ds = append(ds, specs.Diagnostic{Severity: specs.Error, Code: "check", Message: "does not work"})
		}
		if strings.Contains(res.Hash, "uncompilable") {
			fail(res, "does not compile")
		}
		if strings.HasPrefix(res.Hash, "/") {
			if other := routes[res.Hash]; other != nil {
				fail(other, "route taken", res.Pos) // blames the one that may be innocent
			}
			routes[res.Hash] = res
		}
		for i, demand := range strings.Split(res.Hash, " uses ")[1:] {
			used := res.Uses[i]
			_, want, _ := strings.Cut(demand, "=")
			switch other := s.Resources[used]; {
			case other == nil:
				fail(res, "no "+used.String())
			case !strings.Contains(other.Hash, want):
				fail(res, used.String()+" has no "+want)
			}
		}
	}
	return ds
}

// newerCheck is stricter: what is "obsolete" is an error.
func newerCheck(s *specs.Set, _ ...specs.Ref) specs.Diagnostics {
	ds := check(s)
	for _, res := range s.Resources {
		if strings.Contains(res.Hash, "obsolete") {
			ds = append(ds, specs.Diagnostic{Pos: res.Pos, Severity: specs.Error, Code: "check", Ref: res.Ref(), Message: "obsolete"})
		}
	}
	return ds
}

// step is one read in a scenario.
type step struct {
	at     time.Duration
	tree   tree
	prune  bool
	change func(*specs.Loaded)
	refuse bool // the decision is not accepted
	reboot bool // the state before this step goes through a restart
	newer  bool // from here on the check of a newer version is used
}

func many(kind string, from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "%s/n%02d@1\n", kind, i)
	}
	return b.String()
}

func TestReconciler(t *testing.T) {
	missing := func(l *specs.Loaded) { l.Roots[0].Err = errors.New("no such directory") }
	device := func(n uint64) func(*specs.Loaded) {
		return func(l *specs.Loaded) { l.Roots[0].Device = n }
	}
	shop := "EventSource/shop@orders\nSensor/ship@1 uses EventSource/shop=orders, Function/ship\nFunction/ship@1"
	tests := []struct {
		name    string
		options Options
		steps   []step
	}{
		{"start-without-last-good", Options{}, []step{
			{tree: tree{"a.yaml": shop, "b.yaml": "Sensor/x@bad", "c.yaml": "BROKEN", "d.yaml": "Sensor/y@1 uses Function/nowhere"}},
		}},
		{"broken-file-keeps-last-good", Options{Settle: time.Second}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: 10 * time.Second, tree: tree{"a.yaml": "BROKEN"}},
			{at: 11 * time.Second, tree: tree{"a.yaml": "BROKEN"}},
			{at: time.Minute, tree: tree{"a.yaml": "BROKEN", "b.yaml": "Function/ship@2"}},
			{at: 2 * time.Minute, tree: tree{"a.yaml": shop}},
			{at: 3 * time.Minute, tree: tree{"a.yaml": shop}},
		}},
		{"half-written-is-no-news", Options{Settle: time.Second, Grace: 5 * time.Second}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: 10 * time.Second, tree: tree{"a.yaml": "BROKEN"}},
			{at: 10500 * time.Millisecond, tree: tree{"a.yaml": strings.Replace(shop, "ship@1", "ship@2", 1)}},
			{at: 20 * time.Second, tree: tree{"a.yaml": strings.Replace(shop, "ship@1", "ship@2", 1)}},
		}},
		{"truncated-then-written", Options{Grace: 5 * time.Second}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: 10 * time.Second, tree: tree{"a.yaml": ""}},
			{at: 11 * time.Second, tree: tree{"a.yaml": shop}},
		}},
		{"invalid-keeps-last-good", Options{}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: time.Second, tree: tree{"a.yaml": strings.Replace(shop, "Sensor/ship@1", "Sensor/ship@bad", 1)}},
			{at: 2 * time.Second, tree: tree{"a.yaml": "\n" + strings.Replace(shop, "Sensor/ship@1", "Sensor/ship@bad", 1)}},
			{at: 3 * time.Second, tree: tree{"a.yaml": strings.Replace(shop, "Sensor/ship@1", "Sensor/ship@3", 1)}},
		}},
		{"invalid-after-move-then-broken", Options{Grace: 5 * time.Second}, []step{
			{tree: tree{"a.yaml": "Function/f@1"}},
			{at: time.Second, tree: tree{"a.yaml": "", "b.yaml": "Function/f@bad"}},
			{at: 10 * time.Second, tree: tree{"a.yaml": "", "b.yaml": "BROKEN"}},
			{at: 20 * time.Second, tree: tree{"a.yaml": "", "b.yaml": "BROKEN"}, reboot: true},
		}},
		{"root-called-otherwise-after-restart", Options{}, []step{
			{tree: tree{"a.yaml": "Function/f@1", "b.yaml": "Function/g@1"}},
			{
				at: time.Second, tree: tree{"/dir/a.yaml": "BROKEN", "/dir/b.yaml": "Function/g@1"}, reboot: true,
				change: func(l *specs.Loaded) { l.Roots[0].Path = "/dir" },
			},
		}},
		{"deleted-while-referenced", Options{Grace: 5 * time.Second}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: time.Minute, tree: tree{"a.yaml": strings.Replace(shop, "Function/ship@1", "", 1)}},
			{at: time.Minute + 5*time.Second, tree: tree{"a.yaml": strings.Replace(shop, "Function/ship@1", "", 1)}},
			{at: 2 * time.Minute, tree: tree{"a.yaml": "EventSource/shop@orders"}},
			{at: 2*time.Minute + 5*time.Second, tree: tree{"a.yaml": "EventSource/shop@orders"}},
		}},
		{"grace-zero", Options{}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: time.Second, tree: tree{"a.yaml": "EventSource/shop@orders"}},
		}},
		{"moved-between-files", Options{}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: time.Second, tree: tree{"a.yaml": "Function/ship@1", "b.yaml": "EventSource/shop@orders\nSensor/ship@1 uses EventSource/shop=orders, Function/ship"}},
			{at: 2 * time.Second, tree: tree{"a.yaml": "Function/ship@1", "b.yaml": "BROKEN"}},
		}},
		{"duplicate-keeps-what-runs", Options{}, []step{
			{tree: tree{"b.yaml": "Function/f@1"}},
			{at: time.Second, tree: tree{"a.yaml": "Function/f@2", "b.yaml": "Function/f@1"}},
			{at: 2 * time.Second, tree: tree{"a.yaml": "Function/f@2"}},
		}},
		{"copy-of-what-runs", Options{}, []step{
			{tree: tree{"b.yaml": "Function/f@1"}},
			{at: time.Second, tree: tree{"a.yaml": "Function/f@1", "b.yaml": "Function/f@1"}},
			{at: 2 * time.Second, tree: tree{"a.yaml": "Function/f@1"}},
		}},
		{"problems-at-start-are-told-at-once", Options{Settle: time.Second}, []step{
			{tree: tree{"a.yaml": "BROKEN"}},
			{at: time.Minute, tree: tree{"a.yaml": "BROKEN"}},
		}},
		{"problem-gone-for-a-moment-is-no-news", Options{Settle: time.Second}, []step{
			{tree: tree{"a.yaml": "Function/f@bad"}},
			{at: 10 * time.Second, tree: tree{"a.yaml": ""}},
			{at: 10500 * time.Millisecond, tree: tree{"a.yaml": "Function/f@bad"}},
			{at: 20 * time.Second, tree: tree{"a.yaml": "Function/f@1"}},
			{at: 21 * time.Second, tree: tree{"a.yaml": "Function/f@1"}},
		}},
		{"change-that-breaks-another-is-refused", Options{}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: time.Second, tree: tree{"a.yaml": strings.Replace(shop, "shop@orders", "shop@payments", 1) + "\nFunction/other@1"}},
			{at: 2 * time.Second, tree: tree{"a.yaml": strings.ReplaceAll(shop, "orders", "payments")}},
		}},
		{"partner-of-an-invalid-change-stays-too", Options{}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: time.Second, tree: tree{"a.yaml": strings.ReplaceAll(strings.Replace(shop, "shop@orders", "shop@bad", 1), "orders", "payments")}},
		}},
		{"conflict-blames-the-newcomer", Options{}, []step{
			{tree: tree{"a.yaml": "EventSource/a@/x"}},
			{at: time.Second, tree: tree{"a.yaml": "EventSource/a@/x", "b.yaml": "EventSource/b@/x"}},
			{at: 2 * time.Second, tree: tree{"a.yaml": "EventSource/a@/x", "b.yaml": "EventSource/b@/y"}},
		}},
		{"error-of-nobody-refuses-all", Options{}, []step{
			{tree: tree{"a.yaml": "Function/f@1"}},
			{at: time.Second, tree: tree{"a.yaml": "Function/f@curse\nFunction/g@1"}},
		}},
		{"last-good-invalid-after-upgrade", Options{}, []step{
			{tree: tree{"a.yaml": "Function/f@obsolete\nFunction/g@1"}},
			{at: time.Second, tree: tree{"a.yaml": "Function/f@obsolete\nFunction/g@2\nSensor/s@1 uses Function/f"}, newer: true},
			{at: 2 * time.Second, tree: tree{"a.yaml": "Function/f@2\nFunction/g@2\nSensor/s@1 uses Function/f"}},
		}},
		{"mass-removal", Options{Grace: 5 * time.Second}, []step{
			{tree: tree{"a.yaml": many("Function", 0, 12), "b.yaml": "Sensor/s@1"}},
			{at: 10 * time.Second, tree: tree{"b.yaml": "Sensor/s@1"}},
			{at: 15 * time.Second, tree: tree{"b.yaml": "Sensor/s@2"}},
			{at: 20 * time.Second, tree: tree{"a.yaml": many("Function", 0, 9), "b.yaml": "Sensor/s@2"}},
			{at: 25 * time.Second, tree: tree{"a.yaml": many("Function", 0, 9), "b.yaml": "Sensor/s@2"}},
			{at: 30 * time.Second, tree: tree{}},
			{at: 35 * time.Second, tree: tree{}},
			{at: 36 * time.Second, tree: tree{}, prune: true},
		}},
		{"nine-are-no-mass", Options{}, []step{
			{tree: tree{"a.yaml": many("Function", 0, 9)}},
			{at: 10 * time.Second, tree: tree{}},
		}},
		{"root-missing", Options{Grace: 5 * time.Second}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: 10 * time.Second, tree: tree{}, change: missing},
			{at: time.Minute, tree: tree{}, change: missing},
			{at: 2 * time.Minute, tree: tree{"a.yaml": "EventSource/shop@orders"}},
			{at: 2*time.Minute + 5*time.Second, tree: tree{"a.yaml": "EventSource/shop@orders"}},
		}},
		{"prune-overrides-a-missing-root", Options{Grace: 5 * time.Second}, []step{
			{tree: tree{"a.yaml": shop}},
			{at: 10 * time.Second, tree: tree{}, change: missing, prune: true},
		}},
		{"root-remounted", Options{}, []step{
			{tree: tree{"a.yaml": shop}, change: device(1)},
			{at: 10 * time.Second, tree: tree{"a.yaml": "EventSource/shop@orders"}, change: device(2)},
			{at: 20 * time.Second, tree: tree{"a.yaml": shop}, change: device(2)},
			{at: 30 * time.Second, tree: tree{"a.yaml": "EventSource/shop@orders"}, change: device(2)},
		}},
		{"refused-by-the-engine", Options{}, []step{
			{tree: tree{"a.yaml": "Function/f@1"}},
			{at: time.Second, tree: tree{"a.yaml": "Function/f@2\nFunction/g@1"}, refuse: true},
			{at: 2 * time.Second, tree: tree{"a.yaml": "Function/f@1"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.options.Check = check
			r := New(tt.options)
			var out strings.Builder
			for _, s := range tt.steps {
				l := s.tree.load()
				if s.change != nil {
					s.change(l)
				}
				if s.reboot {
					r = restart(t, r, tt.options)
				}
				if s.newer {
					r.o.Check = newerCheck
				}
				d, err := r.Next(l, start.Add(s.at), s.prune)
				if err != nil {
					t.Fatal(err)
				}
				show(&out, s.at, d)
				if !s.refuse {
					r.Accept(d)
				}
			}
			golden(t, tt.name, out.String())
		})
	}
}

func show(b *strings.Builder, at time.Duration, d Decision) {
	fmt.Fprintf(b, "== %v\n", at)
	for _, s := range d.Statuses {
		fmt.Fprintf(b, "%s", s)
		if !s.Until.IsZero() {
			fmt.Fprintf(b, " until %v", s.Until.Sub(start))
		}
		if s.State == Stale {
			fmt.Fprintf(b, " version %s", d.Set.Resources[s.Ref].Hash)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintln(b, d.Plan)
	for _, list := range []struct {
		name string
		ds   specs.Diagnostics
	}{{"all", d.Diagnostics}, {"alarm", d.Alarms}, {"new", d.NewDiagnostics}, {"recovered", d.Recovered}} {
		for _, diag := range list.ds {
			fmt.Fprintf(b, "%s: %s\n", list.name, diag)
		}
	}
	if !d.Again.IsZero() {
		fmt.Fprintf(b, "again at %v\n", d.Again.Sub(start))
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (run with -update to accept):\n%s", path, got)
	}
}

// restart is what a restart leaves of a Reconciler.
func restart(t *testing.T, r *Reconciler, o Options) *Reconciler {
	t.Helper()
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again := New(o)
	lost, err := again.Restore(data, loadLine)
	if err != nil || len(lost) > 0 {
		t.Fatalf("restore: %v %v", lost, err)
	}
	return again
}

func loadLine(pos specs.Pos, source string) *specs.Loaded {
	return &specs.Loaded{Resources: []*specs.Resource{resource(source, pos)}}
}
