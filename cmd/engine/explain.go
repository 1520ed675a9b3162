package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs/expression"
)

func (e *env) explainVerb() *cobra.Command {
	var sensor, from string
	last := 1
	cmd := &cobra.Command{
		Use:   "explain [EVENT]",
		Short: "Tell what sensors said of an event, and why",
		Long: `Tells of an event, given by its sequence in the log or its id, what each sensor
that looked at it said: which part of which filter was false or missing, what
waited when it came, what each condition made of that, what fired and what came
of the calls, or what is still missing and until when.

It is found out from the log, with the specs in force, from where the sensors
began; so it tells of every event that is stored.`,
		Example: `  engine explain 57
  engine explain order-1234 --sensor ship-paid-orders
  engine explain --sensor ship-paid-orders --last 5`,
		Args: cobra.MaximumNArgs(1),
	}
	fs := cmd.Flags()
	fs.StringVar(&sensor, "sensor", "", "only this sensor; without EVENT, the last events it looked at")
	fs.IntVar(&last, "last", 1, "how many of them")
	fs.StringVar(&from, "from", "", "event to begin with: its sequence, a time or a duration (1h); default: where each sensor began")
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && sensor == "" {
			return usagef("say which event, or which sensor with --sensor")
		}
		if len(args) > 0 && cmd.Flags().Changed("last") {
			return usagef("--last is for --sensor without an event")
		}
		q := queryOf("sensor", sensor, "from", from)
		if len(args) > 0 {
			q.Set("event", args[0])
		} else {
			q.Set("last", strconv.Itoa(last))
		}
		var b json.RawMessage
		if err := c.ask(cmd.Context(), http.MethodGet, "/explain", q, &b); err != nil {
			return err
		}
		p := c.printer()
		if !p.text() {
			return p.value(b)
		}
		var all engine.Explained
		if err := decode(b, &all); err != nil {
			return err
		}
		for i := range all.Explanations {
			if err := explain(e.stdout, &all.Explanations[i], i > 0); err != nil {
				return err
			}
		}
		if all.Incomplete {
			_, err := fmt.Fprintln(e.stderr, "engine: older events were not looked through")
			return err
		}
		return nil
	}
	return cmd
}

// decode reads JSON whose numbers stay as they are.
func decode(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return dec.Decode(v)
}

// tree prints lines below each other.
type tree struct {
	w   io.Writer
	err error
}

func (t *tree) line(depth int, format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintln(t.w, strings.Repeat("  ", depth)+clean(fmt.Sprintf(format, args...)))
	}
}

func (t *tree) blank() {
	if t.err == nil {
		_, t.err = fmt.Fprintln(t.w)
	}
}

// explain prints the explanation of one event.
func explain(w io.Writer, x *replay.Explanation, more bool) error {
	t := &tree{w: w}
	if more {
		t.blank()
	}
	ev := &x.Event
	t.line(0, "event %d  %s/%s  %s  id %s  stored %s", ev.Seq, ev.EventSource, ev.EventName, ev.Type, ev.ID, clock(ev.Stored))
	for i := range x.Sensors {
		t.blank()
		t.sensor(&x.Sensors[i])
	}
	var rest []string
	switch {
	case len(x.Sensors) == 0 && x.Others == 0:
		rest = append(rest, "no sensor is in force")
	case len(x.Sensors) == 0:
		rest = append(rest, "no sensor looks at it")
	case x.Others > 0:
		rest = append(rest, "sensors that do not look at it: "+strconv.Itoa(x.Others))
	}
	if x.More > 0 {
		rest = append(rest, "further sensors whose filters it does not pass: "+strconv.Itoa(x.More))
	}
	if len(rest) > 0 {
		t.blank()
	}
	for _, line := range rest {
		t.line(0, "%s", line)
	}
	return t.err
}

func (t *tree) sensor(s *replay.SensorExplanation) {
	t.line(0, "%s: %s", s.Sensor, verdict(s))
	for i := range s.Answers {
		t.answer(&s.Answers[i])
	}
	for i := range s.Steps {
		t.step(&s.Steps[i])
	}
	for i := range s.Later {
		l := &s.Later[i]
		at := clock(l.At)
		if l.Seq > 0 {
			at += fmt.Sprintf(", at event %d", l.Seq)
		}
		if l.Firing != nil {
			t.line(1, "later, %s: used by %s", at, fired(l.Firing))
			continue
		}
		t.line(1, "later, %s: %s", at, said(&l.Verdict))
	}
	if s.Waiting && len(s.Steps) > 0 {
		t.line(1, "it still waits")
	}
	for _, w := range s.Warnings {
		t.line(1, "note: %s", w)
	}
}

// verdict is what a sensor said, in a few words.
func verdict(s *replay.SensorExplanation) string {
	var fires, waits []string
	for i := range s.Steps {
		st := &s.Steps[i]
		for _, f := range st.Firings {
			fires = append(fires, f.Trigger)
		}
		for _, d := range st.Decisions {
			if !d.Held && len(d.Missing) > 0 {
				waits = append(waits, d.Missing...)
			}
		}
	}
	switch {
	case len(fires) > 0:
		return "fires " + strings.Join(unique(fires), ", ")
	case len(waits) > 0:
		return "waits for " + strings.Join(unique(waits), ", ") + until(s)
	case len(s.Steps) > 0 && slices.ContainsFunc(s.Steps, func(st replay.Step) bool { return len(st.Decisions) > 0 }):
		return "the condition does not hold"
	case len(s.Steps) > 0:
		return "takes it, and nothing follows"
	}
	for _, a := range s.Answers {
		switch a.Outcome {
		case sensors.Yes:
			return "wants it, but has not seen it"
		case sensors.Missing:
			return "does not want it: missing " + a.Detail
		case sensors.Failed:
			return "cannot tell: " + a.Detail
		default:
		}
	}
	return "does not want it"
}

// until is when the first of what waits is given up.
func until(s *replay.SensorExplanation) string {
	var first time.Time
	for i := range s.Steps {
		for _, ts := range s.Steps[i].After.Triggers {
			for _, ev := range ts.Events {
				if !ev.Until.IsZero() && (first.IsZero() || ev.Until.Before(first)) {
					first = ev.Until
				}
			}
		}
	}
	if first.IsZero() {
		return ""
	}
	return ", until " + clock(first)
}

func unique(names []string) (out []string) {
	seen := map[string]bool{}
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// answer prints what a dependency said.
func (t *tree) answer(a *sensors.Answer) {
	what := a.Outcome.String()
	switch {
	case a.Outcome == sensors.Missing:
		what = "missing " + a.Detail
	case a.Detail != "":
		what += ", " + a.Detail
	case a.Key != "":
		what += ", key " + key(a.Key)
	}
	for _, s := range a.Selectors {
		if !s.Fits {
			what = fmt.Sprintf("no, its %s is %s, not %s", s.Name, orEmpty(s.Value), s.Pattern)
			break
		}
	}
	t.line(1, "dependency %s: %s", a.Dependency, what)
	t.trace(2, "transform ", a.Transform)
	t.trace(2, "when ", a.When)
	t.trace(2, "correlate ", a.Correlate)
}

func orEmpty(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

// key is a correlation key as it is written.
func key(k string) string { return compact(sensors.KeyValue(k)) }

// trace prints how an expression went, part by part.
func (t *tree) trace(depth int, label string, tr *expression.Trace) {
	if tr == nil {
		return
	}
	t.line(depth, "%s%s%s", label, short(tr.Source, 100), result(tr))
	for i := range tr.Parts {
		if p := &tr.Parts[i]; tr.Outcome != expression.Skipped {
			t.trace(depth+1, "", p)
		}
	}
}

// result is what an expression gave.
func result(tr *expression.Trace) string {
	switch tr.Outcome {
	case expression.Missing:
		return ": missing " + tr.Detail
	case expression.Failed:
		return ": failed, " + short(tr.Detail, 100)
	case expression.Skipped:
		return ": not evaluated"
	case expression.Evaluated:
	}
	v := compact(tr.Value)
	if tr.Cut && !strings.Contains(v, "…") {
		v += "…"
	}
	return ": " + short(v, 100)
}

// compact is a value as JSON on one line.
func compact(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// step prints what came of the event under one correlation key.
func (t *tree) step(s *replay.Step) {
	under := ""
	if s.Key != "" {
		under = " under key " + key(s.Key)
	}
	t.state("waiting before"+under, &s.Before)
	for i := range s.Decisions {
		d := &s.Decisions[i]
		about := ""
		if len(d.Uses) > 0 {
			var uses []string
			for _, u := range d.Uses {
				uses = append(uses, fmt.Sprintf("%s %d", u.Dependency, u.Seq))
			}
			about = ", of " + strings.Join(uses, ", ")
		}
		t.line(1, "trigger %s: %s%s%s", d.Trigger, short(d.Condition.Source, 100), result(&d.Condition), about)
		for j := range d.Condition.Parts {
			t.trace(2, "", &d.Condition.Parts[j])
		}
		if len(d.Missing) > 0 {
			t.line(2, "not arrived: %s", strings.Join(d.Missing, ", "))
		}
	}
	for i := range s.Verdicts {
		if v := &s.Verdicts[i]; v.Outcome != sensors.Waiting && v.Outcome != sensors.Fired {
			t.line(1, "%s", said(v))
		}
	}
	for i := range s.Firings {
		t.line(1, "fires %s", fired(&s.Firings[i]))
		if s.Firings[i].Error != "" {
			t.line(2, "its input could not be made: %s", s.Firings[i].Error)
		}
	}
	t.state("waiting after"+under, &s.After)
}

// state prints what waits.
func (t *tree) state(label string, s *sensors.State) {
	if len(s.Triggers)+len(s.Workflows) == 0 {
		return
	}
	t.line(1, "%s", label)
	for i := range s.Triggers {
		ts := &s.Triggers[i]
		for _, ev := range ts.Events {
			parts := []string{fmt.Sprintf("%s: %s %d (id %s) since %s", ts.Trigger, ev.Dependency, ev.Seq, ev.ID, clock(ev.Since))}
			if !ev.Until.IsZero() {
				parts = append(parts, "until "+clock(ev.Until))
			}
			for _, a := range ev.Absences {
				switch a.State {
				case "pending":
					parts = append(parts, a.Dependency+" absent at "+clock(a.Until))
				default:
					parts = append(parts, a.Dependency+" "+a.State)
				}
			}
			t.line(2, "%s", strings.Join(parts, ", "))
		}
		if ts.More > 0 {
			t.line(2, "%s: %d more", ts.Trigger, ts.More)
		}
		if len(ts.Missing) > 0 {
			t.line(2, "%s: needs %s", ts.Trigger, strings.Join(ts.Missing, ", "))
		}
		if ts.Gathered > 0 {
			line := fmt.Sprintf("%s: gathered %d", ts.Trigger, ts.Gathered)
			if !ts.Due.IsZero() {
				line += ", fires at " + clock(ts.Due)
			}
			t.line(2, "%s", line)
		}
		if !ts.QuietUntil.IsZero() {
			t.line(2, "%s: quiet until %s", ts.Trigger, clock(ts.QuietUntil))
		}
	}
	for i := range s.Workflows {
		w := &s.Workflows[i]
		var steps []string
		for _, st := range w.Steps {
			step := st.Trigger + " " + st.State
			if st.Calls > 1 {
				step += fmt.Sprintf(" (%d of %d answered)", st.Answers, st.Calls)
			}
			steps = append(steps, step)
		}
		t.line(2, "workflow since %s: %s", clock(w.Since), strings.Join(steps, ", "))
	}
}

// said is a verdict in words.
func said(v *replay.Verdict) string {
	line := v.Outcome.String()
	if who := v.Trigger + v.Dependency; who != "" && v.Trigger != "" && v.Dependency != "" {
		line = v.Trigger + ", " + v.Dependency + ": " + line
	} else if who != "" {
		line = who + ": " + line
	}
	if v.Seq > 0 {
		line += fmt.Sprintf(", event %d", v.Seq)
	}
	if v.Detail != "" {
		line += ", " + v.Detail
	}
	return line
}

// fired is a firing in words.
func fired(f *replay.Firing) string {
	line := f.Trigger
	if f.Items > 0 {
		line += fmt.Sprintf(" (item %d of %d)", f.Item+1, f.Items)
	}
	line += ", firing " + f.Key
	if f.Call == nil {
		return line + ": of its call nothing is known"
	}
	return line + outcome(f.Call)
}

// outcome is what came of a call, in words after those of a firing.
func outcome(c *replay.Call) string {
	if c == nil {
		return ""
	}
	line := ": " + c.Status
	if c.Run != "" {
		line += ", run " + c.Run
		if c.Error != "" {
			line += ", " + short(c.Error, 100)
		}
	}
	if c.Letter > 0 {
		line += fmt.Sprintf(", dead letter %d", c.Letter)
	}
	if c.DeadLetter != nil {
		line += "; its deadLetter" + outcome(c.DeadLetter)
	}
	return line
}
