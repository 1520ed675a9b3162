package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test binary play the external bus.
func TestMain(m *testing.M) {
	if helper() {
		return
	}
	os.Exit(m.Run())
}

// TestFaults tries every fault that does not take long, a few times.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	// Another user may run functions there.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := newBuilds(t.Context(), dir, os.Getenv("FAULTS_ENGINE"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults() {
		if f.short == 0 || testing.Short() && f.short > 1 {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			r := runFault(t.Context(), f, options{builds: b, short: true, progress: io.Discard})
			if r.Skipped != "" {
				t.Skip(r.Skipped)
			}
			for _, s := range r.Failures {
				t.Error(s)
			}
			t.Logf("%.1f s: %d acknowledged, %d lost, %d enqueued twice, %d calls repeated, recovery %.2f s %v",
				r.Took, r.Acked, r.Lost, r.Twice, r.Repeated, r.Recovery, r.Notes)
		})
	}
}

// TestPatches: what -prove removes, and the builds with a slow checkpoint or
// another clock, still fit the source.
func TestPatches(t *testing.T) {
	b, err := newBuilds(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	patches := []patch{slowCheckpoint(), steppedClock(), fragileBus()}
	known := map[string]bool{}
	for _, f := range faults() {
		known[f.name] = true
	}
	for _, r := range removals() {
		if !known[r.fault] {
			t.Errorf("%q is to be noticed by %q, which is no fault", r.name, r.fault)
		}
		patches = append(patches, r.patch)
	}
	for _, p := range patches {
		if _, err := b.overlay(filepath.Join(t.TempDir(), "x"), []patch{p}); err != nil {
			t.Error(err)
		}
	}
	wrong := patch{"wrong", []edit{{"go.mod", "no such line", ""}}}
	if _, err := b.overlay(filepath.Join(t.TempDir(), "x"), []patch{wrong}); err == nil {
		t.Error("a patch that does not fit is not an error")
	}
}

// TestPage: the table is put between its markers and nothing else changes.
func TestPage(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	text := "head\n<!-- results: faults -->\nold\n<!-- end of results: faults -->\ntail\n"
	if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &result{Fault: "f", Title: "a|b", Passes: "< 5 s", Repetitions: 3, Acked: 7, Failures: []string{"lost 2\nmore"}}
	if err := writePage(page, []*result{r}, false); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, want := range []string{"head\n<!--", "| `f`: a\\|b |", "&lt; 5 s", "FAIL: lost 2 |", "faults -->\ntail\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") {
		t.Error("the old table is still there")
	}
	// Another fault leaves the row of the first.
	if err := writePage(page, []*result{{Fault: "g", Title: "other", Acked: 9}, {Fault: "f", Title: "a", Acked: 8}}, false); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(page); err != nil {
		t.Fatal(err)
	}
	f, g := strings.Index(string(b), "| `f`: a |  | 0 | 8 |"), strings.Index(string(b), "| `g`: other |  | 0 | 9 |")
	if f < 0 || g < f || strings.Count(string(b), "`f`") != 1 {
		t.Errorf("rows were not merged:\n%s", b)
	}
	if err := writePage(page, nil, true); err == nil {
		t.Error("a page without markers is not an error")
	}
}
