package replay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.init.0.func1"))
}

func open(t testing.TB) *jetstream.Bus {
	t.Helper()
	b, err := jetstream.Open(context.Background(), jetstream.Options{Dir: bustest.Dir(t), MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

func expr(src string) specs.Expr { return specs.Expr{Source: src} }

func dep(name string) specs.Dependency {
	return specs.Dependency{Name: name, Source: "s", Event: name}
}

func ms(n int) specs.Duration { return specs.Duration(time.Duration(n) * time.Millisecond) }

func compile(t testing.TB, list map[string]*specs.Sensor) (out []evaluate.Sensor) {
	t.Helper()
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range list {
			if !yield(n) {
				return
			}
		}
	}) {
		p, found := sensors.Compile(name, list[name])
		if err := found.Err(); err != nil {
			t.Fatal(err)
		}
		out = append(out, evaluate.Sensor{Name: name, Hash: "h", Program: p})
	}
	return out
}

// always are sensors that are in force from the beginning.
func always(list []evaluate.Sensor) (out []replay.Sensor) {
	for _, s := range list {
		out = append(out, replay.Sensor{Sensor: s, Known: true})
	}
	return out
}

// folding runs a fold and returns what waits until it has covered an event, and
// what stops it.
func folding(t testing.TB, b bus.Bus, list []evaluate.Sensor) (d *fold.Dispatcher, covered func(seq uint64), stop func()) {
	d = fold.New(fold.Options{
		Bus: b, Cache: fold.NewCache(b.Events(), 1<<10, 1<<20), Logger: slog.New(slog.DiscardHandler), Rules: &fold.Rules{Hash: "h", Sensors: list},
		Alarm: func(string, string) {},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = d.Run(ctx) }()
	return d, func(seq uint64) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, c := d.Position(); c >= seq {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("event %d is not covered", seq)
			}
		}
	}, func() { cancel(); <-done }
}

func publish(t testing.TB, b bus.Bus, name, data string) uint64 {
	t.Helper()
	ev := &bus.Event{ID: "id-" + name, Source: "/s", Type: "t." + name, EventSource: "s", EventName: name, DataContentType: "application/json", Data: []byte(data)}
	a, err := b.Events().Append(context.Background(), ev.Record())
	if err != nil {
		t.Fatal(err)
	}
	return a.Seq
}

func allJobs(t testing.TB, b bus.Bus) (out []*jobs.Job) {
	t.Helper()
	for at := uint64(0); ; {
		r, err := b.Jobs().Next(context.Background(), bus.JobsPrefix+">", at)
		if err != nil {
			return out
		}
		at = r.Seq + 1
		j, err := jobs.DecodeJob(r.Data)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, j)
	}
}

func info(t testing.TB, b bus.Bus) bus.LogInfo {
	t.Helper()
	i, err := b.Events().Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// menagerie are sensors of all sorts.
func menagerie() map[string]*specs.Sensor {
	sensor := func(deps []specs.Dependency, change func(*specs.Sensor)) *specs.Sensor {
		s := &specs.Sensor{Dependencies: deps, Triggers: []specs.Trigger{{Name: "t", Function: "f"}}}
		change(s)
		return s
	}
	return map[string]*specs.Sensor{
		"each": sensor([]specs.Dependency{dep("a")}, func(s *specs.Sensor) { s.Dependencies[0].When = expr("data.n > 3") }),
		"pair": sensor([]specs.Dependency{dep("a"), dep("b")}, func(s *specs.Sensor) { s.Correlate, s.Within = expr("data.k"), ms(8) }),
		"first": sensor([]specs.Dependency{dep("a"), dep("b")}, func(s *specs.Sensor) {
			s.Dependencies[0].Pick = specs.PickFirst
			s.Triggers = append(s.Triggers, specs.Trigger{Name: "u", Function: "f", Condition: expr("b && b.data.n > 5")})
		}),
		"count": sensor([]specs.Dependency{dep("a")}, func(s *specs.Sensor) {
			s.Dependencies[0].Count, s.Correlate, s.Within = 3, expr("data.k"), ms(20)
		}),
		"absence": sensor([]specs.Dependency{dep("a"), dep("b")}, func(s *specs.Sensor) {
			s.Dependencies[1].Absent, s.Correlate = &specs.Absent{For: ms(5), After: "a"}, expr("data.k")
		}),
		"quiet": sensor([]specs.Dependency{dep("a")}, func(s *specs.Sensor) { s.Triggers[0].Cooldown, s.Correlate = ms(6), expr("data.k") }),
		"batch": sensor([]specs.Dependency{dep("b")}, func(s *specs.Sensor) { s.Triggers[0].Batch = &specs.Batch{Size: 4, Wait: ms(10)} }),
		"bounce": sensor([]specs.Dependency{dep("b")}, func(s *specs.Sensor) {
			s.Triggers[0].Debounce, s.Correlate = &specs.Debounce{Quiet: ms(3), Max: ms(9)}, expr("data.k")
		}),
		"jq": sensor([]specs.Dependency{dep("a"), dep("b")}, func(s *specs.Sensor) {
			s.Dependencies[0].Transform, s.Correlate = specs.Transform{JQ: expr(".data | select(.n > 2) | {k}")}, expr("data.k")
		}),
		"few": sensor([]specs.Dependency{dep("a"), dep("c")}, func(s *specs.Sensor) {
			s.Correlate, s.Limits = expr("data.k"), &specs.StateLimits{Keys: 2}
		}),
	}
}

// TestAgreesWithFold: what is evaluated again fires what the fold made fire,
// whatever the log and wherever it begins to tell; and each firing is found in
// the explanation of the event that made it.
func TestAgreesWithFold(t *testing.T) {
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			const total = 200
			// Stored at times that are still to come, so that only events let time
			// pass; the last one longer after the others than every deadline.
			b := &bustest.Past{Bus: open(t)}
			at := time.Now().Add(time.Hour)
			for range total {
				if rnd.IntN(4) == 0 {
					at = at.Add(time.Duration(rnd.IntN(4)) * time.Millisecond)
				}
				at = at.Add(time.Duration(rnd.IntN(1e6))) // nothing is due with another event
				b.Times = append(b.Times, at)
			}
			b.Times = append(b.Times, at.Add(30*time.Millisecond))
			list := compile(t, menagerie())
			_, covered, stop := folding(t, b, list)
			defer stop()
			for range total {
				publish(t, b, []string{"a", "b", "c"}[rnd.IntN(3)], fmt.Sprintf(`{"k": "k%d", "n": %d}`, rnd.IntN(4), rnd.IntN(10)))
			}
			covered(publish(t, b, "z", `{}`))
			stop()

			in := info(t, b)
			byFold := map[string]*jobs.Job{}
			for _, j := range allJobs(t, b) {
				byFold[j.Sensor+" "+j.Key] = j
			}
			if len(byFold) < 100 {
				t.Fatalf("only %d firings", len(byFold))
			}
			from := 1 + rnd.Uint64N(100)
			for _, from := range []uint64{1, from} {
				first, err := b.Events().Get(context.Background(), from)
				if err != nil {
					t.Fatal(err)
				}
				begun := first.Time.UTC()
				again := map[string]replay.Fired{}
				sum, err := replay.Run(context.Background(), b.Events(), in, replay.Request{
					Sensors: always(list), From: from, To: in.Last,
					Fired: func(f *replay.Fired) error { again[f.Sensor.Name+" "+f.Firing.Key] = *f; return nil },
				})
				if err != nil || sum.Read != int(from-1) || sum.Events != int(in.Last-from+1) {
					t.Fatalf("%+v, %v", sum, err)
				}
				for key, j := range byFold {
					f, ok := again[key]
					// A deadline before the first event is none of those told.
					late := j.Position < from || j.Time.Before(begun)
					if !ok && !late {
						t.Errorf("from %d: the firing %s at event %d does not come again", from, key, j.Position)
						continue
					}
					if ok && (f.Firing.Trigger != j.Trigger || !f.Firing.Time.Equal(j.Time) || f.Firing.Correlation != j.Correlation) {
						t.Errorf("from %d: %+v, the fold's was %+v", from, f.Firing, j)
					}
				}
				for key := range again {
					if byFold[key] == nil {
						t.Errorf("from %d: %s did not fire", from, key)
					}
				}
			}
			var events []*bus.Event
			wanted := map[uint64]int{}
			for _, j := range byFold {
				rec, err := b.Events().Get(context.Background(), j.Position)
				if err != nil {
					t.Fatal(err)
				}
				if !j.Time.Equal(rec.Time.UTC()) { // a deadline
					continue
				}
				wanted[j.Position]++
			}
			for seq := range wanted {
				rec, _ := b.Events().Get(context.Background(), seq)
				ev, err := bus.DecodeEvent(rec)
				if err != nil {
					t.Fatal(err)
				}
				events = append(events, ev)
			}
			slices.SortFunc(events, func(a, b *bus.Event) int { return int(a.Seq) - int(b.Seq) })
			all, err := replay.Explain(context.Background(), b.Events(), in, replay.Question{Sensors: always(list), Events: events, To: in.Last})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				n := 0
				for _, s := range e.Sensors {
					for _, st := range s.Steps {
						for _, f := range st.Firings {
							if n++; byFold[s.Sensor+" "+f.Key] == nil {
								t.Errorf("event %d: %s is told to have fired %s", e.Event.Seq, s.Sensor, f.Key)
							}
						}
					}
					if len(s.Warnings) > 0 {
						t.Errorf("event %d: %s: %v", e.Event.Seq, s.Sensor, s.Warnings)
					}
				}
				if n < wanted[e.Event.Seq] {
					t.Errorf("event %d made %d firings, told are %d", e.Event.Seq, wanted[e.Event.Seq], n)
				}
			}
		})
	}
}

// outline writes an explanation down, a line each.
func outline(e *replay.Explanation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "event %d, %d others, %d more\n", e.Event.Seq, e.Others, e.More)
	for _, s := range e.Sensors {
		fmt.Fprintf(&b, "%s from %d", s.Sensor, s.From)
		for _, w := range s.Warnings {
			fmt.Fprintf(&b, " (%s)", w)
		}
		for _, a := range s.Answers {
			fmt.Fprintf(&b, " %s=%s%s", a.Dependency, a.Outcome, suffix(" ", a.Detail))
		}
		b.WriteByte('\n')
		for _, st := range s.Steps {
			fmt.Fprintf(&b, "  key %q met", st.Key)
			for _, t := range st.Before.Triggers {
				for _, ev := range t.Events {
					fmt.Fprintf(&b, " %s%d", ev.Dependency, ev.Seq)
				}
			}
			for _, d := range st.Decisions {
				fmt.Fprintf(&b, "; %s %v", d.Trigger, d.Held)
			}
			for _, v := range st.Verdicts {
				fmt.Fprintf(&b, "; %s %s%s %d", v.Outcome, v.Trigger, v.Dependency, v.Seq)
			}
			for _, f := range st.Firings {
				fmt.Fprintf(&b, "; fires %s", f.Trigger)
			}
			for _, t := range st.After.Triggers {
				fmt.Fprintf(&b, "; %s needs %s", t.Trigger, strings.Join(t.Missing, ", "))
			}
			b.WriteByte('\n')
		}
		for _, l := range s.Later {
			fmt.Fprintf(&b, "  later %s %s at %d\n", l.Outcome, l.Trigger, l.Verdict.Seq)
		}
		if s.Waiting {
			b.WriteString("  still waiting\n")
		}
	}
	return b.String()
}

func suffix(sep, s string) string {
	if s == "" {
		return ""
	}
	return sep + s
}

func explain(t testing.TB, b bus.Bus, list []replay.Sensor, seqs []uint64, from uint64) []replay.Explanation {
	t.Helper()
	q := replay.Question{Sensors: list, From: from}
	for _, seq := range seqs {
		rec, err := b.Events().Get(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := bus.DecodeEvent(rec)
		if err != nil {
			t.Fatal(err)
		}
		q.Events = append(q.Events, ev)
	}
	in := info(t, b)
	q.To = in.Last
	out, err := replay.Explain(context.Background(), b.Events(), in, q)
	if err != nil {
		t.Fatal(err)
	}
	for i := range out {
		if _, err := json.Marshal(out[i]); err != nil {
			t.Error(err)
		}
	}
	return out
}

// TestExplain: what is told of an event that fired, one that waited and was
// used later, one that waits still, one that is filtered and one of nobody.
func TestExplain(t *testing.T) {
	b := open(t)
	list := always(compile(t, map[string]*specs.Sensor{
		"pair": {
			Dependencies: []specs.Dependency{dep("a"), dep("b")}, Correlate: expr("data.k"),
			Triggers: []specs.Trigger{{Name: "t", Function: "f", Condition: expr("a && b")}},
		},
		"big":  {Dependencies: []specs.Dependency{{Name: "a", Source: "s", Event: "a", When: expr("data.n > 5")}}, Triggers: []specs.Trigger{{Name: "t", Function: "f"}}},
		"miss": {Dependencies: []specs.Dependency{{Name: "a", Source: "s", Event: "a", When: expr("data.x.y > 5")}}, Triggers: []specs.Trigger{{Name: "t", Function: "f"}}},
		"late": {Dependencies: []specs.Dependency{dep("a")}, Triggers: []specs.Trigger{{Name: "t", Function: "f"}}},
	}))
	for i := range list {
		if list[i].Name == "late" {
			list[i].Since, list[i].Changed = 2, 4
		}
	}
	publish(t, b, "a", `{"k": "x", "n": 1}`)
	publish(t, b, "a", `{"k": "y", "n": 9}`)
	publish(t, b, "b", `{"k": "x", "n": 1}`)
	publish(t, b, "c", `{}`)
	publish(t, b, "a", `{"k": "z", "n": 1}`)
	for _, tt := range []struct {
		seq, from uint64
		want      string
	}{
		{1, 0, `event 1, 0 others, 0 more
late from 0 (the sensor did not see this event: it began after event 2) a=yes
miss from 0 a=missing data.x
pair from 1 a=yes b=no the event does not fit
  key "x" met; t false; needs b
  later fired t at 0
big from 0 a=no
`},
		{2, 0, `event 2, 0 others, 0 more
big from 1 a=yes
  key "" met; t true; fires t
late from 0 (the sensor did not see this event: it began after event 2) a=yes
miss from 0 a=missing data.x
pair from 1 a=yes b=no the event does not fit
  key "y" met; t false; needs b
  still waiting
`},
		{3, 0, `event 3, 3 others, 0 more
pair from 1 a=no the event does not fit b=yes
  key "x" met a1; t true; fires t
`},
		{3, 2, `event 3, 3 others, 0 more
pair from 2 (computed from event 2 on, as asked for: events before it may have been waiting) a=no the event does not fit b=yes
  key "x" met; t false; needs a
  still waiting
`},
		{4, 0, "event 4, 4 others, 0 more\n"},
		{5, 0, `event 5, 0 others, 0 more
late from 3 (the spec changed after event 4; what an earlier version did with the events before is computed with today's) a=yes
  key "" met; t true; fires t
miss from 0 a=missing data.x
pair from 1 a=yes b=no the event does not fit
  key "z" met; t false; needs b
  still waiting
big from 0 a=no
`},
	} {
		got := strings.ReplaceAll(outline(&explain(t, b, list, []uint64{tt.seq}, tt.from)[0]), "; t needs", "; needs")
		if got != tt.want {
			t.Errorf("event %d from %d:\n%s\nwant\n%s", tt.seq, tt.from, got, tt.want)
		}
	}
	// Together they say what each says alone.
	together := explain(t, b, list, []uint64{1, 2, 3, 4, 5}, 0)
	for i, seq := range []uint64{1, 2, 3, 4, 5} {
		alone := explain(t, b, list, []uint64{seq}, 0)[0]
		if a, b := outline(&together[i]), outline(&alone); a != b {
			t.Errorf("event %d: together\n%s\nalone\n%s", seq, a, b)
		}
	}
	// What is purged is missed.
	if err := b.Events().PurgeTo(context.Background(), 2); err != nil {
		t.Fatal(err)
	}
	if got := outline(&explain(t, b, list, []uint64{3}, 0)[0]); !strings.Contains(got, "events before 2 are no longer stored") {
		t.Error(got)
	}
}

// TestExplainMany: of the sensors whose filters an event does not pass, only
// some are told of in full.
func TestExplainMany(t *testing.T) {
	b := open(t)
	all := map[string]*specs.Sensor{}
	for i := range 120 {
		all[fmt.Sprintf("s%03d", i)] = &specs.Sensor{
			Dependencies: []specs.Dependency{{Name: "a", Source: "s", Event: "a", When: expr(fmt.Sprintf("data.n == %d", i))}}, Triggers: []specs.Trigger{{Name: "t", Function: "f"}},
		}
	}
	publish(t, b, "a", `{"n": 110}`)
	e := explain(t, b, always(compile(t, all)), []uint64{1}, 0)[0]
	if len(e.Sensors) != 50 || e.More != 70 || e.Sensors[0].Sensor != "s110" || len(e.Sensors[0].Steps) != 1 {
		t.Errorf("%d sensors, %d more, the first is %s", len(e.Sensors), e.More, e.Sensors[0].Sensor)
	}
}

// TestSelectAndEdit: only firings of the events selected are told, as they are
// edited.
func TestSelectAndEdit(t *testing.T) {
	b := open(t)
	list := always(compile(t, map[string]*specs.Sensor{"big": {
		Dependencies: []specs.Dependency{{Name: "a", Source: "s", Event: "a", When: expr("data.n > 5")}},
		Triggers:     []specs.Trigger{{Name: "t", Function: "f", Input: specs.Template{Set: true, Path: "in", Root: specs.Text{Value: "${ a.data }", Path: "in"}}}},
	}}))
	for _, n := range []int{1, 7, 8} {
		publish(t, b, "a", fmt.Sprintf(`{"n": %d, "o": {"x": 1, "y": 2}}`, n))
	}
	var played []replay.Played
	edited := 0
	sum, err := replay.Run(context.Background(), b.Events(), info(t, b), replay.Request{
		Sensors: list, From: 1, To: 3,
		Edit: func(ev *bus.Event) (*bus.Event, error) {
			if ev.Seq != 1 {
				return ev, nil
			}
			return replay.Patch{Data: map[string]any{"n": int64(6), "o": map[string]any{"y": nil, "z": "new"}}}.Apply(ev)
		},
		Select: func(ev *bus.Event) (bool, error) { return ev.Seq != 3, nil },
		Fired: func(f *replay.Fired) error {
			if f.Edited {
				edited++
			}
			p, _, err := replay.Play(f)
			played = append(played, p)
			return err
		},
	})
	if err != nil || sum.Events != 3 || sum.Selected != 2 || sum.Edited != 1 || sum.Wanted != 2 || edited != 1 || len(played) != 2 {
		t.Fatalf("%+v, %v, %d firings, %d edited", sum, err, len(played), edited)
	}
	in, _ := json.Marshal(played[0].Input)
	if string(in) != `{"n":6,"o":{"x":1,"z":"new"}}` || len(played[0].Config) != 0 {
		t.Errorf("the input is %s, %v", in, played[0].Config)
	}
	whole, err := replay.Patch{Data: map[string]any{"n": int64(1)}, Replace: true}.Apply(&bus.Event{Seq: 4, Data: []byte(`{"m": 1}`), DataContentType: "application/json"})
	if err != nil || string(whole.Data) != `{"n":1}` || whole.Seq != 4 {
		t.Errorf("%s, %v", whole.Data, err)
	}
}

// TestSelectPair: an event that is meant is paired with what waited for it,
// which is not.
func TestSelectPair(t *testing.T) {
	b := open(t)
	list := always(compile(t, map[string]*specs.Sensor{"pair": {
		Dependencies: []specs.Dependency{dep("a"), dep("b")}, Correlate: expr("data.k"),
		Triggers: []specs.Trigger{{Name: "t", Function: "f", Condition: expr("a && b")}},
	}}))
	for _, ev := range []string{"a1", "a2", "b1", "b2"} {
		publish(t, b, ev[:1], fmt.Sprintf(`{"k": %q}`, ev[1:]))
	}
	var told []string
	run := func(from uint64, meant ...uint64) string {
		told = nil
		sum, err := replay.Run(context.Background(), b.Events(), info(t, b), replay.Request{
			Sensors: list, From: from, To: 4, Select: func(ev *bus.Event) (bool, error) { return slices.Contains(meant, ev.Seq), nil },
			Fired: func(f *replay.Fired) error {
				told = append(told, fmt.Sprint(f.Firing.Events[0].Seq, "+", f.Firing.Events[1].Seq))
				return nil
			},
		})
		if err != nil || sum.Selected != len(meant) || !slices.Equal(sum.Chosen, meant) {
			t.Errorf("%+v, %v", sum, err)
		}
		return strings.Join(told, ", ")
	}
	if got := run(1, 3); got != "1+3" {
		t.Error(got)
	}
	if got := run(3, 4); got != "2+4" {
		t.Error(got)
	}
	if got := run(1, 1, 2); got != "1+3, 2+4" {
		t.Error(got)
	}
}

// TestCompare: what fired then, too, what is new, what is gone, and what the
// history does not know any more.
func TestCompare(t *testing.T) {
	at := func(min int) time.Time { return time.Date(2026, 1, 1, 12, min, 0, 0, time.UTC) }
	firing := func(key string, min int) replay.Played {
		return replay.Played{Sensor: "s", Firing: replay.Firing{Key: key, Trigger: "t", Time: at(min)}}
	}
	b := open(t)
	into := func(log bus.Log, prefix, key string, seq int, status string, started time.Time) {
		t.Helper()
		line := fmt.Sprintf(`{"id":"%s_1","key":"%s","function":"f","sensor":"s","trigger":"t","status":"%s","attempt":1,"event":{"seq":%d},"started":"%s"}`+"\n",
			key, key, status, seq, started.Format(time.RFC3339Nano))
		if _, err := log.Append(context.Background(), bus.Record{Subject: prefix + "f", Data: []byte(line)}); err != nil {
			t.Fatal(err)
		}
	}
	record := func(key string, seq int, status string, started time.Time) {
		t.Helper()
		into(b.Runs(), bus.RunsPrefix, key, seq, status, started)
	}
	for key, status := range map[string]string{"same": "retrying", "failed": "retrying", "died": "dead", "waits": "retrying"} {
		into(b.FailedRuns(), bus.FailedPrefix, key, 2, status, at(0))
	}
	record("forgotten", 1, "succeeded", at(0))
	if err := b.Runs().PurgeTo(context.Background(), 2); err != nil {
		t.Fatal(err)
	}
	record("same", 7, "succeeded", at(7))
	record("gone", 8, "succeeded", at(8))
	record("outside", 99, "succeeded", at(8))
	record(replay.Key("id", "x"), 8, "succeeded", at(9))
	j := &jobs.Job{Key: "waits", Sensor: "s", Trigger: "t", Last: 9}
	if _, err := b.Jobs().Append(context.Background(), bus.Record{Subject: j.Subject(b.Jobs().Partitions()), Data: j.Encode(nil)}); err != nil {
		t.Fatal(err)
	}
	h, err := replay.ReadHistory(context.Background(), b, replay.HistoryQuery{Triggers: []replay.Trigger{{Sensor: "s", Trigger: "t", Function: "f"}}})
	if err != nil {
		t.Fatal(err)
	}
	h.Oldest = at(5) // as if the first block had been written then
	played := []replay.Played{firing("same", 7), firing("new", 8), firing("old", 1), firing("waits", 9), firing("failed", 2), firing("died", 2)}
	gone := replay.Compare(played, h, func(_ string, seq uint64) bool { return seq <= 50 })
	var got []string
	for _, p := range append(played, gone...) {
		status := ""
		if p.Call != nil {
			status = p.Call.Status
		}
		got = append(got, strings.TrimSpace(p.Key+" "+p.Difference+" "+status))
	}
	if s := strings.Join(got, ", "); s != "same same succeeded, new new, old unknown, waits same retrying, failed same ended, died same dead, gone gone succeeded" {
		t.Error(s)
	}
	if a, b := replay.Key("1", "k"), replay.Key("2", "k"); a == b || !strings.HasPrefix(a, replay.KeyPrefix) || a != replay.Key("1", "k") {
		t.Errorf("keys %s and %s", a, b)
	}
}

// BenchmarkShadow compares evaluating a log again with decoding it alone, per
// event.
func BenchmarkShadow(b *testing.B) {
	bu := open(b)
	const events = 20_000
	for i := range events {
		ev := &bus.Event{ID: fmt.Sprint(i), Source: "/s", Type: "t.a", EventSource: "s", EventName: []string{"a", "b"}[i%2], DataContentType: "application/json", Data: fmt.Appendf(nil, `{"k": "k%d", "n": %d}`, i/2%1000, i%10)}
		if err := bu.Events().AppendAsync(context.Background(), ev.Record(), func(bus.Ack, error) {}); err != nil {
			b.Fatal(err)
		}
	}
	for info(b, bu).Last < events {
		time.Sleep(time.Millisecond)
	}
	in := info(b, bu)
	pair := compile(b, map[string]*specs.Sensor{"pair": menagerie()["pair"]})
	perEvent := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			err := bus.ReadThrough(context.Background(), bu.Events(), 1, in.Last, func(r bus.Record) error {
				_, err := bus.DecodeEvent(r)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		perEvent(b)
	})
	b.Run("shadow", func(b *testing.B) {
		for b.Loop() {
			if _, err := replay.Run(context.Background(), bu.Events(), in, replay.Request{Sensors: always(pair), From: 1, To: in.Last, Fired: func(*replay.Fired) error { return nil }}); err != nil {
				b.Fatal(err)
			}
		}
		perEvent(b)
	})
	b.Run("evaluate", func(b *testing.B) { // what the fold does beside reading and writing
		var all []*bus.Event
		for at := uint64(1); at <= in.Last; {
			recs, _ := bu.Events().GetBatch(context.Background(), at, 256, 1<<20)
			for i := range recs {
				ev, _ := bus.DecodeEvent(recs[i])
				all = append(all, ev)
			}
			at = recs[len(recs)-1].Seq + 1
		}
		for b.Loop() {
			o := &silent{}
			o.e = evaluate.New(o, "log", 0, time.Time{}, func(seq uint64) (*bus.Event, error) { return all[seq-1], nil })
			o.e.Use(pair)
			for _, ev := range all {
				o.e.Advance(ev.Seq, ev.StoredAt)
				o.e.Event(ev)
			}
		}
		perEvent(b)
	})
}

// silent is an observer that only forgets empty keys.
type silent struct{ e *evaluate.Evaluator }

func (s *silent) Undecided([]sensors.GroupVerdict) {}
func (s *silent) Routed(int, sensors.Routing)      {}
func (s *silent) Stepped(int, []sensors.Verdict)   {}
func (s *silent) Evicted(int, evaluate.Eviction)   {}
func (s *silent) Fired(int, *sensors.Firing)       {}
func (s *silent) Changed(k evaluate.Key, en *evaluate.Entry) {
	if en.State.Empty() {
		s.e.Drop(k)
	}
}
