package sensors

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

var update = flag.Bool("update", false, "write the golden files")

// TestResetDiagnostics loads and compiles sensors with all that can be wrong
// with a reset; those of
// which the golden file says nothing are right.
func TestResetDiagnostics(t *testing.T) {
	text, err := os.ReadFile("testdata/reset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	loaded := (&specs.Loader{}).LoadBytes("reset.yaml", text)
	all := loaded.Diagnostics
	for _, r := range loaded.Set().Resources {
		p, found := Compile(r.Metadata.Name, r.Spec.(*specs.Sensor))
		if (p == nil) != found.HasErrors() || p != nil && p.reset == nil {
			t.Errorf("%s: the program is %v with %v", r.Metadata.Name, p, found)
		}
		all = append(all, found...)
	}
	var b strings.Builder
	for _, d := range all.Sort() {
		b.WriteString(d.String() + "\n")
	}
	const file = "testdata/reset.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s%v", b.String(), want, err)
	}
}

// TestResetSchedule: the schedule is that of the zone, and of UTC without one.
func TestResetSchedule(t *testing.T) {
	for zone, want := range map[string]string{
		"": "2026-03-29T00:00:00Z", "Europe/Amsterdam": "2026-03-28T23:00:00Z", "America/New_York": "2026-03-29T04:00:00Z",
	} {
		s := sensor("a", "t=a")
		s.Reset = &specs.Reset{Cron: "0 0 * * *", Timezone: zone}
		at, ok := compileOK(t, s).reset.Next(time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC).Unix())
		if got := time.Unix(at, 0).UTC().Format(time.RFC3339); !ok || got != want {
			t.Errorf("in %q it is %s, want %s", zone, got, want)
		}
	}
}

// TestReset: what waits is given up at the times of the schedule, and not what
// has been decided.
func TestReset(t *testing.T) {
	const m = time.Minute
	// The script begins at 12:00.
	at := func(s *specs.Sensor, cron string) *specs.Sensor { s.Reset = &specs.Reset{Cron: cron}; return s }
	playAll(t, []play{
		{"gives up what waits", "a +10m b", at(sensor("a b", "t=a && b"), "10 * * * *"), "", "expired at 1"},
		{"not before", "a +9m59s b", at(sensor("a b", "t=a && b"), "10 * * * *"), "t(a1 b2)", ""},
		{"an event at that time comes after it", "+10m a +59m b", at(sensor("a b", "t=a && b"), "10 * * * *"), "t(a1 b2)", ""},
		{"again and again", "a +20m a +60m b", at(sensor("a b", "t=a && b"), "10 * * * *"), "", "expired at 1; expired at 2"},
		{"of a queue", "a +1m a +9m a b", at(sensor("a:first b", "t=a && b"), "10 * * * *"), "t(a3 b4)", "expired at 1; expired at 2"},
		{"with a shorter window", "a +5m b", with(at(sensor("a b", "t=a && b"), "10 * * * *"), func(s *specs.Sensor) { s.Within = specs.Duration(5 * m) }), "", "expired at 1"},
		{"with a longer window", "a +10m b", with(at(sensor("a b", "t=a && b"), "10 * * * *"), func(s *specs.Sensor) { s.Within = specs.Duration(time.Hour) }), "", "expired at 1"},
		{"a batch goes on", "a +10m a", at(batch(sensor("a", "t=a"), 2, 0), "10 * * * *"), "t(a1|a2)", ""},
		{"a quiet time goes on", "a +10m a", at(cooldown(sensor("a", "t=a"), time.Hour), "10 * * * *"), "t(a1)", "suppressed t 2"},
		{"a workflow goes on", "a +10m b!1", at(after(sensor("a", "b=a"), "d<b"), "10 * * * *"), "b(a1) d(a1 triggers.b2)", ""},
	})
}

// TestResetAtClockChanges: 02:30 happens once in each night, also in those in
// which the clock is put forward or back.
func TestResetAtClockChanges(t *testing.T) {
	for _, tt := range []struct{ kept, reset string }{
		{"2026-03-29T00:00:00Z", "2026-03-29T01:30:00Z"}, // 02:30 does not exist, 03:30 CEST is meant
		{"2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z"}, // the first of two
		{"2026-10-25T00:31:00Z", "2026-10-26T01:30:00Z"},
	} {
		s := sensor("a b", "t=a && b")
		s.Reset = &specs.Reset{Cron: "30 2 * * *", Timezone: "Europe/Amsterdam"}
		r := newRun(t, compileOK(t, s))
		kept, err := time.Parse(time.RFC3339, tt.kept)
		if err != nil {
			t.Fatal(err)
		}
		r.send(r.event("a", "", kept.Sub(t0)))
		if at, ok := r.p.NextWake(r.states[""]); !ok || at.Format(time.RFC3339) != tt.reset {
			t.Errorf("what waits since %s is given up at %s, want %s", tt.kept, at, tt.reset)
		}
	}
}
