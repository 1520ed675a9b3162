package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine/jobs"
)

// run is what is shown of one call.
type run struct {
	ID, Key, Function, Sensor, Trigger, Status string
	Attempt, Redrive                           int
	Spec, Correlation                          string
	Event                                      struct {
		Seq      uint64
		ID, Type string
	}
	Started              time.Time
	DurationMs, QueuedMs float64
	Next                 time.Time
	Result               string
	Output               json.RawMessage
	Logs                 struct{ Stdout, Stderr []string }
	Class                string
	Stacktrace           []string
	Truncated            bool
	Error                string
	Input                json.RawMessage
	// Attempts are all calls of the same job.
	Attempts []run
}

// text is the run on one line.
func (r *run) text() string {
	what := r.Result
	if r.Error != "" {
		what = r.Error
	}
	return fmt.Sprintf("%-12s  %-9s  %9s  %-24s  %-28s  #%d  %-28s  %s", clock(r.Started), r.Status, millis(r.DurationMs), clean(r.Function),
		clean(r.Sensor+"/"+r.Trigger), r.Attempt, r.ID, short(what, 80))
}

func millis(ms float64) string {
	return time.Duration(ms * float64(time.Millisecond)).Round(10 * time.Microsecond).String()
}

// details prints everything about a run.
func (r *run) details(e *env) error {
	t := newTable(e.stdout)
	line := func(name, value string) {
		if value != "" {
			t.row(name+":", value)
		}
	}
	line("Run", r.ID)
	line("Status", r.Status)
	line("Function", r.Function)
	line("Sensor", r.Sensor)
	line("Trigger", r.Trigger)
	attempt := strconv.Itoa(r.Attempt)
	if r.Redrive > 0 {
		attempt += fmt.Sprintf(" (of redrive %d)", r.Redrive)
	}
	line("Attempt", attempt)
	line("Started", r.Started.Local().Format(time.RFC3339Nano))
	line("Took", millis(r.DurationMs))
	line("Waited", millis(r.QueuedMs))
	if !r.Next.IsZero() {
		line("Next attempt", r.Next.Local().Format(time.RFC3339))
	}
	line("Result", r.Result)
	line("Error", r.Error)
	if r.Event.Seq > 0 {
		line("Event", fmt.Sprintf("%s, type %s, sequence %d", r.Event.ID, r.Event.Type, r.Event.Seq))
	}
	line("Correlation", r.Correlation)
	line("Key", r.Key)
	line("Spec", r.Spec)
	if err := t.flush(); err != nil {
		return err
	}
	input := string(r.Input)
	if err := e.part("Input", input); err != nil {
		return err
	}
	if len(r.Attempts) < 2 {
		return r.given(e)
	}
	for i := range r.Attempts {
		a := &r.Attempts[i]
		what := fmt.Sprintf("Attempt %d", a.Attempt)
		if a.Redrive > 0 {
			what += fmt.Sprintf(" of redrive %d", a.Redrive)
		}
		if _, err := fmt.Fprintf(e.stdout, "\n%s: %s, started %s, took %s\n", what, a.Status, clock(a.Started), millis(a.DurationMs)); err != nil {
			return err
		}
		if err := e.part("Error", a.Error); err != nil {
			return err
		}
		if err := a.given(e); err != nil {
			return err
		}
	}
	return nil
}

// given prints what a call gave.
func (r *run) given(e *env) error {
	out := string(r.Output)
	var text string
	if json.Unmarshal(r.Output, &text) == nil {
		out = text
	}
	note := ""
	if r.Truncated {
		note = " (cut off)"
	}
	for _, p := range [][2]string{
		{"Output" + note, out},
		{"Log (stdout)" + note, strings.Join(r.Logs.Stdout, "\n")},
		{"Log (stderr)" + note, strings.Join(r.Logs.Stderr, "\n")},
		{"Stack trace", strings.Join(r.Stacktrace, "\n")},
	} {
		if err := e.part(p[0], p[1]); err != nil {
			return err
		}
	}
	return nil
}

// part prints a text under its name, nothing when it is empty.
func (e *env) part(name, text string) error {
	if text == "" {
		return nil
	}
	if _, err := fmt.Fprintf(e.stdout, "%s:\n", name); err != nil {
		return err
	}
	for l := range strings.Lines(text) {
		if _, err := fmt.Fprintln(e.stdout, "  "+clean(strings.TrimRight(l, "\n"))); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) runsVerb() *cobra.Command {
	var status, sensor string
	var last, follow bool
	limit := 0
	cmd := &cobra.Command{
		Use:   "runs [FUNCTION]",
		Short: "Show the newest calls of functions",
		Long: `Shows the newest runs, oldest first: when it started, how it ended, how long it
took, the function, sensor and trigger, the attempt, its id and its result. An
inline function of a trigger is named <sensor>.<trigger>. The sensor of calls by
hand is _exec, that of calls through endpoints _endpoint.

A run succeeded, is retrying, is dead (given up, in the dead letters) or failed
(its caller was told); --status failed shows all that did not succeed. Calls that
were submitted and have not begun are queued.`,
		Example: `  engine runs ship-order --status dead
  engine runs --sensor _endpoint --status failed --follow
  engine runs --last
  engine runs show volFJkHVIXYQ1Nxafu6hJO3_-1`,
		Args: cobra.MaximumNArgs(1),
	}
	fs := cmd.Flags()
	fs.StringVar(&status, "status", "", strings.Join(jobs.Statuses(), ", "))
	fs.StringVar(&sensor, "sensor", "", "only runs of this sensor")
	fs.BoolVar(&last, "last", false, "the last run alone, with everything about it")
	fs.BoolVarP(&follow, "follow", "f", false, "go on with the runs that come")
	fs.IntVarP(&limit, "limit", "n", 0, "most runs; default 50, with --follow the last 10 before it begins")
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := queryOf("status", status)
		if sensor != "" {
			q.Set("sensor", sensor)
		}
		if len(args) > 0 {
			q.Set("function", args[0])
		}
		if last {
			limit = 1
		}
		if last || cmd.Flags().Changed("limit") {
			q.Set("limit", strconv.Itoa(limit))
		}
		p := c.printer()
		return c.list(cmd.Context(), "/runs", q, follow, func() ([]json.RawMessage, error) {
			var all struct{ Runs []json.RawMessage }
			err := c.ask(cmd.Context(), http.MethodGet, "/runs", q, &all)
			return all.Runs, err
		}, func(b json.RawMessage) error {
			if !p.text() {
				return p.record(b)
			}
			var r run
			if err := json.Unmarshal(b, &r); err != nil {
				return err
			}
			if last {
				if err := c.ask(cmd.Context(), http.MethodGet, "/runs/"+url.PathEscape(r.ID), nil, &r); err != nil {
					return err
				}
				return r.details(e)
			}
			_, err := fmt.Fprintln(e.stdout, r.text())
			return err
		})
	}
	cmd.AddCommand(e.runsShowVerb())
	return cmd
}

func (e *env) runsShowVerb() *cobra.Command {
	cmd := &cobra.Command{Use: "show ID", Short: "Show everything about one run, and all attempts of its job", Long: "Shows a run by its id, or the newest one of an idempotency key, which is also the id of\na submitted call: its input, and each attempt of its job with output, logs and error.", Args: cobra.ExactArgs(1)}
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var b json.RawMessage
		if err := c.ask(cmd.Context(), http.MethodGet, "/runs/"+url.PathEscape(args[0]), nil, &b); err != nil {
			return err
		}
		p := c.printer()
		if !p.text() {
			return p.value(b)
		}
		var r run
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		return r.details(e)
	}
	return cmd
}
