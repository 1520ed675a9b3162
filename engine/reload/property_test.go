package reload

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever the files go through: what shall run is valid, nothing that runs is
// lost to an error, every problem is told once, and a restart changes nothing.
func TestReconcilerProperty(t *testing.T) { rapid.Check(t, reconcilerProperty) }

func FuzzReconciler(f *testing.F) { f.Fuzz(rapid.MakeFuzz(reconcilerProperty)) }

func reconcilerProperty(t *rapid.T) {
	o := Options{Check: check, Grace: rapid.SampledFrom([]time.Duration{0, 5 * time.Second}).Draw(t, "grace")}
	r := New(o)
	now := start
	open := map[string]bool{}
	for range rapid.IntRange(1, 6).Draw(t, "reads") {
		now = now.Add(time.Duration(rapid.IntRange(0, 6000).Draw(t, "ms")) * time.Millisecond)
		files := tree{}
		for _, line := range lines(t, "1", "2", "/x", "bad", "uncompilable") {
			file := rapid.SampledFrom([]string{"a.yaml", "b.yaml"}).Draw(t, "file")
			files[file] += line + "\n"
		}
		if rapid.IntRange(0, 4).Draw(t, "broken") == 0 {
			files["a.yaml"] = "BROKEN"
		}
		l := files.load()
		was := maps.Clone(r.Accepted().Resources)
		d, err := r.Next(l, now, false)
		if err != nil {
			t.Fatal(err)
		}
		if errs := check(d.Set); errs.HasErrors() {
			t.Fatalf("the set is not valid: %v\n%v", errs, d.Statuses)
		}
		if !maps.Equal(applied(r.Accepted(), d.Plan), d.Set.Resources) {
			t.Fatal("the plan does not lead to the set")
		}
		for _, f := range l.Files {
			for _, ref := range f.Refs {
				if was[ref] != nil && d.Set.Resources[ref] == nil {
					t.Fatalf("%v ran, is in the files and is lost: %v", ref, d.Statuses)
				}
			}
		}
		tell(t, open, d)
		r.Accept(d)

		// The same files once more: nothing happens, except that a change
		// which something now removed stood in the way of is made.
		for round := 0; !d.Plan.Empty(); round++ {
			again, err := r.Next(l, now, false)
			if err != nil {
				t.Fatal(err)
			}
			if len(d.Plan.Of(Removed)) == 0 && (!again.Plan.Empty() || statuses(again) != statuses(d) || len(again.NewDiagnostics) > 0) {
				t.Fatalf("the same read again decides otherwise:\n%s\n%v\nthan\n%s", statuses(again), again.Plan, statuses(d))
			}
			if !again.Plan.Empty() && (d.Again.IsZero() || round > 5) {
				t.Fatalf("round %d does not come to rest", round)
			}
			tell(t, open, again)
			r.Accept(again)
			d = again
		}
		if rapid.Bool().Draw(t, "restart") {
			data, err := r.Encode()
			if err != nil {
				t.Fatal(err)
			}
			after := New(o)
			if lost, err := after.Restore(data, loadLine); err != nil || len(lost) > 0 {
				t.Fatal(lost, err)
			}
			if p := Diff(r.Accepted(), after.Accepted()); !p.Empty() {
				t.Fatalf("a restart changes what was accepted: %v", p)
			}
			r, open = after, map[string]bool{}
		}
	}
}

func statuses(d Decision) string {
	var b strings.Builder
	for _, s := range d.Statuses {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// tell checks that no open problem is told again.
func tell(t *rapid.T, open map[string]bool, d Decision) {
	for _, diag := range d.NewDiagnostics {
		key := fmt.Sprint(diag.Ref, diag.Pos.File, diag.Message)
		if open[key] {
			t.Fatalf("told twice: %v", diag)
		}
		open[key] = true
	}
	for _, diag := range d.Recovered {
		delete(open, fmt.Sprint(diag.Ref, diag.Pos.File, diag.Message))
	}
}
