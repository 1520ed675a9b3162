package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/api"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
)

func (e *env) describeVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "describe KIND NAME",
		Short:   "Show everything about one resource",
		Long:    "Shows state, place, hash, what it uses and who uses it, its problems, the state of\nwhat it runs with its counters, and its document as it runs.",
		Example: "  engine describe sensor large-orders\n  engine describe eventsource/demo",
		Args:    cobra.RangeArgs(1, 2),
	}
	c := e.client(cmd)
	cmd.ValidArgsFunction = c.completeRefs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kind, name, err := refArgs(args)
		if err != nil {
			return err
		}
		if name == "" {
			return usagef("a name is missing: describe KIND NAME, or KIND/NAME")
		}
		var b json.RawMessage
		if err := c.ask(cmd.Context(), http.MethodGet, resourcePath(kind, name), nil, &b); err != nil {
			return err
		}
		p := c.printer()
		if !p.text() {
			return p.value(b)
		}
		var r api.Resource
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		return describe(e.stdout, &r)
	}
	return cmd
}

// sections writes tables under headings.
type sections struct {
	w   io.Writer
	err error
}

func (s *sections) add(heading string, fill func(*table)) {
	if s.err != nil {
		return
	}
	var b strings.Builder
	t := newTable(&b)
	fill(t)
	_ = t.flush() // into memory
	if b.Len() == 0 {
		return
	}
	indent := ""
	if heading != "" {
		_, s.err = fmt.Fprintln(s.w, heading+":")
		indent = "  "
	}
	for line := range strings.Lines(b.String()) {
		if s.err == nil {
			_, s.err = io.WriteString(s.w, indent+strings.TrimRight(line, " \n")+"\n")
		}
	}
}

// describe prints a resource for people.
func describe(w io.Writer, r *api.Resource) error {
	out := &sections{w: w}
	out.add("", func(t *table) {
		t.row("Name:", r.Name)
		t.row("Kind:", string(r.Kind))
		state := stateOf(r.ResourceStatus)
		if r.Reason != "" {
			state += " (" + r.Reason + ")"
		} else if r.NotReady != "" {
			state += " (" + r.NotReady + ")"
		}
		t.row("State:", state)
		if r.Behind != nil {
			t.row("Behind:", behindInfo(r.Behind))
		}
		if r.Trial != nil {
			t.row("New version:", "on trial since "+r.Trial.Since.Local().Format(time.RFC3339))
		}
		t.row("Place:", dash(r.Place))
		t.row("Hash:", dash(r.Hash))
		if !r.Until.IsZero() {
			t.row("Removed at:", r.Until.Local().Format(time.RFC3339))
		}
		for _, k := range slices.Sorted(maps.Keys(r.Labels)) {
			t.row("Label:", k+"="+r.Labels[k])
		}
		if r.RunsAs != "" && r.RunsAs != r.Name {
			t.row("Runs as sensor:", r.RunsAs)
		}
		t.row("Uses:", orNone(r.Uses))
		t.row("Used by:", orNone(r.UsedBy))
	})
	if len(r.Problems) > 0 {
		out.add("Problems", func(t *table) {
			for _, d := range r.Problems {
				t.row(d.String())
			}
		})
	}
	if len(r.Events) > 0 {
		out.add("Events", func(t *table) {
			t.row("NAME", "TYPE", "STATE", "SINCE", "STORED", "DUPLICATE", "REFUSED", "RESTARTS", "LAST", "DETAIL")
			for _, ev := range r.Events {
				t.row(ev.Name, ev.Type, string(ev.State), ago(ev.Since), count(ev.Stored), count(ev.Duplicates), count(ev.Refused),
					strconv.Itoa(ev.Restarts), ago(ev.Last), ev.Detail)
			}
		})
		for _, ev := range r.Events {
			out.add("Event "+ev.Name, func(t *table) { describeEvent(t, &ev) })
		}
	}
	if ep := r.Endpoint; ep != nil {
		out.add("Endpoint", func(t *table) {
			t.row("Route:", strings.Join(ep.Methods, ",")+" "+strings.Join(ep.Hosts, ",")+ep.Path)
			t.row("Function:", ep.Function)
			t.row("Authentication:", ep.Auth)
			t.row("State:", string(ep.State)+", "+ep.Detail)
			t.row("In flight:", strconv.FormatInt(ep.InFlight, 10))
			for _, status := range slices.Sorted(maps.Keys(ep.Answers)) {
				t.row(fmt.Sprintf("Answered %d:", status), count(ep.Answers[status]))
			}
		})
	}
	if f := r.Function; f != nil {
		out.add("Function", func(t *table) {
			t.row("Kind of function:", f.Kind)
			t.row("Calls now:", fmt.Sprintf("%d of at most %d", f.Running, f.Limit))
			if f.Waiting > 0 {
				t.row("Held up by that:", strconv.Itoa(f.Waiting))
			}
			if f.Processes > 0 {
				t.row("Processes:", strconv.Itoa(f.Processes))
			}
		})
	}
	if len(r.Dependencies) > 0 {
		out.add("Dependencies", func(t *table) {
			t.row("NAME", "SOURCE", "EVENT", "TYPE", "WHEN")
			for _, d := range r.Dependencies {
				source, event, typ := d.Source, d.Event, d.Type
				if d.Function != "" {
					source, event, typ = bus.SourceFunction, d.Function, "engine.function."+cmp.Or(string(d.Outcome), "*")
				}
				t.row(d.Name, dash(source), dash(event), dash(typ), dash(d.When))
			}
		})
	}
	if sn := r.Sensor; sn != nil {
		out.add("Counters since the start", func(t *table) {
			for _, c := range []struct {
				n    uint64
				what string
			}{
				{sn.Matched, "events wanted"},
				{sn.Fired, "firings"},
				{sn.Missing, "evaluations that asked for what is missing"},
				{sn.Failed, "evaluations that failed"},
				{sn.Superseded, "waiting events replaced by a newer one"},
				{sn.Expired, "waiting events given up"},
				{sn.Suppressed, "firings suppressed by a cooldown"},
				{sn.Debounced, "conditions held again before it was quiet"},
				{sn.Skipped, "steps of workflows skipped"},
				{sn.Evicted, "correlation keys given up at a limit"},
				{sn.Quarantines, "quarantines"},
			} {
				t.row(count(c.n), c.what)
			}
			if sn.Keys > 0 {
				t.row(count(sn.Keys), fmt.Sprintf("correlation keys with state now, which count %d bytes", sn.Bytes))
			}
			if sn.Problem != "" {
				t.row("last:", sn.Problem)
			}
		})
	}
	if len(r.Triggers) > 0 {
		heading := "Triggers"
		if r.Kind == specs.KindEndpoint || r.Kind == specs.KindFunction {
			heading = "Calls"
		}
		out.add(heading, func(t *table) {
			t.row("NAME", "FUNCTION", "RUNNING", "WAITING", "PARKED", "RETRIES", "SUCCEEDED", "FAILED", "DEAD")
			for _, tr := range r.Triggers {
				name := tr.Name
				if tr.Sensor != "" {
					name = tr.Sensor + "/" + tr.Name
				}
				t.row(name, tr.Function, strconv.Itoa(tr.Running), strconv.Itoa(tr.Waiting), count(tr.Overflow), strconv.Itoa(tr.Retries),
					count(tr.Succeeded), count(tr.Failed), count(tr.Dead))
			}
			for _, tr := range r.Triggers {
				if tr.Limited > 0 {
					t.row(fmt.Sprintf("%s: further jobs wait for the rate of their key: %d", tr.Name, tr.Limited))
				}
				switch tr.Breaker {
				case jobs.BreakerOpen:
					t.row(fmt.Sprintf("%s is paused: its function fails; it is probed at %s", tr.Name, clock(tr.RetryAt)))
				case jobs.BreakerProbing:
					t.row(tr.Name + " is paused: its function fails; it is being probed")
				}
			}
		})
	}
	if len(r.Pending) > 0 {
		out.add("Keys that wait for more", func(t *table) {
			t.row("KEY", "EVENTS", "GIVEN UP")
			for _, k := range r.Pending {
				expires := "never"
				if !k.Expires.IsZero() {
					expires = clock(k.Expires)
				}
				t.row(dash(k.Key), strings.Trim(fmt.Sprint(k.Events), "[]"), expires)
			}
		})
	}
	if r.Source != "" {
		out.add("Document", func(t *table) {
			for line := range strings.Lines(strings.TrimSpace(r.Source)) {
				_, _ = fmt.Fprintln(t.w, clean(strings.TrimRight(line, "\n")))
			}
		})
	}
	return out.err
}

// describeEvent prints what there is to say of one event beside its state.
func describeEvent(t *table, ev *engine.EventStatus) {
	if ev.Position != "" {
		t.row("Position:", ev.Position)
	}
	if ev.Lag != 0 {
		t.row("Lag:", time.Duration(ev.Lag*float64(time.Second)).Round(time.Millisecond).String())
	}
	for _, c := range []struct {
		name string
		n    uint64
	}{
		{"Filtered:", ev.Intake.Filtered},
		{"Filter asked for what is missing:", ev.Intake.FilterMissing},
		{"Filter failed:", ev.Intake.FilterFailed},
		{"Stored as they came:", ev.Intake.Unshaped},
		{"Over the rate limit:", ev.Intake.Limited},
	} {
		if c.n > 0 {
			t.row(c.name, count(c.n))
		}
	}
	if ev.Intake.Problem != "" {
		t.row("Last problem:", ev.Intake.Problem)
	}
	for _, d := range ev.Details {
		for i, v := range d.Values {
			name := ""
			if i == 0 {
				name = d.Name + ":"
			}
			t.row(name, v)
		}
	}
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ", ")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }
