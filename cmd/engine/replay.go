package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/replay"
	"github.com/sensor-engine/engine/sources"
)

type replayFlags struct {
	q                 engine.ReplayQuery
	specs             string
	patches, replaces []string
	yes               bool
}

func (e *env) replayVerb() *cobra.Command {
	f := &replayFlags{}
	cmd := &cobra.Command{
		Use:   "replay [EVENT…]",
		Short: "Tell what events make fire now, or call it again",
		Long: `Evaluates events of the log again, with a sensor in force or with the specs of
a directory, and tells what fires, with which input, and how that differs from
what happened: the same, new, or gone. Nothing is called, unless --execute is
given: then the calls are enqueued, after a question, under keys of their own.

Which events are meant is said by their sequences or ids, --from and --to, the
globs, and --when. The sensors see the others as well, so that the right ones
wait; but only what the events meant contribute to is told.

A patch changes the data of an event before the sensors see it.`,
		Example: `  engine replay --sensor ship-paid-orders --from 1h
  engine replay --specs new-specs/ --from 2026-01-31T12:00:00Z
  engine replay order-1234 --sensor ship-paid-orders --patch 'order-1234={"total": 90}'
  engine replay --sensor ship-paid-orders --from 1h --only new --execute`,
	}
	fs := cmd.Flags()
	fs.StringVar(&f.q.Sensor, "sensor", "", "the sensor; may be left out with --specs, for all that are new or changed in them")
	fs.StringVar(&f.specs, "specs", "", "file or directory of specs to take the sensors from, instead of those in force")
	fs.StringVar(&f.q.From, "from", "", "first event: its sequence, a time or a duration (1h); default: the first the sensor saw that is stored")
	fs.StringVar(&f.q.To, "to", "", "last event, likewise; default: the last")
	fs.StringVar(&f.q.Source, "source", "", "only events of this EventSource (glob)")
	fs.StringVar(&f.q.Event, "event", "", "only events of this name (glob)")
	fs.StringVar(&f.q.Type, "type", "", "only events of this CloudEvents type (glob)")
	fs.StringVar(&f.q.When, "when", "", "only events for which this expression is true, such as 'data.total > 100'")
	fs.StringArrayVar(&f.patches, "patch", nil, "EVENT=JSON merges into the data of an event (RFC 7396), EVENT=@FILE a file; may be repeated")
	fs.StringArrayVar(&f.replaces, "replace", nil, "EVENT=JSON or EVENT=@FILE takes the place of the data of an event; may be repeated")
	fs.StringVar(&f.q.Begin, "begin", "", "event to begin with so that the right ones wait at the first one; default: where the sensor began")
	fs.BoolVar(&f.q.Cold, "cold", false, "begin with the first event and with nothing that waits")
	fs.StringSliceVar(&f.q.Only, "only", nil, "differences to tell of and to execute: same, new, gone, unknown")
	fs.IntVarP(&f.q.Limit, "limit", "n", 100, "most firings to tell of; all are counted")
	fs.BoolVar(&f.q.Execute, "execute", false, "call what fires")
	fs.BoolVarP(&f.yes, "yes", "y", false, "with --execute: do not ask before")
	fs.StringVar(&f.q.ID, "as", "", "with --execute: id of the replay, from which the keys of its calls follow; default: a new one")
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.q.Events = args
		if err := e.replayQuery(cmd.Context(), f); err != nil {
			return err
		}
		return e.replay(cmd.Context(), c, f)
	}
	return cmd
}

// replayQuery fills in what the flags name.
func (e *env) replayQuery(ctx context.Context, f *replayFlags) error {
	q := &f.q
	switch {
	case q.Sensor == "" && f.specs == "":
		return usagef("say to which sensor with --sensor, or with which specs with --specs")
	case q.Execute && f.specs != "":
		return usagef("only sensors in force can be executed; --execute and --specs exclude each other")
	case q.ID != "" && !q.Execute:
		return usagef("--as is for --execute")
	case q.Execute && !f.yes && !terminal(e.stdin):
		return usagef("there is nobody to ask; --execute needs --yes here")
	}
	q.Patches = map[string]engine.ReplayPatch{}
	for _, list := range []struct {
		flag    string
		values  []string
		replace bool
	}{{"patch", f.patches, false}, {"replace", f.replaces, true}} {
		for _, v := range list.values {
			name, text, ok := strings.Cut(v, "=")
			if !ok || name == "" {
				return usagef("--%s %q is not EVENT=JSON or EVENT=@FILE", list.flag, v)
			}
			if _, twice := q.Patches[name]; twice {
				return usagef("event %s is changed twice", name)
			}
			b, err := e.payload("--"+list.flag, text)
			if err != nil {
				return err
			}
			data, err := bus.ParseJSON(b)
			if err != nil {
				return usagef("--%s: the data of event %s is no JSON: %v", list.flag, name, err)
			}
			q.Patches[name] = engine.ReplayPatch{Data: data, Replace: list.replace}
		}
	}
	if f.specs == "" {
		return nil
	}
	if err := readable([]string{f.specs}); err != nil {
		return err
	}
	loaded, err := catalog().Loader().Load(ctx, f.specs)
	if err != nil {
		return err
	}
	for _, file := range loaded.Files {
		b, err := os.ReadFile(file.Path)
		if err != nil {
			return err
		}
		q.Specs = append(q.Specs, engine.SpecFile{Path: file.Path, Content: string(b)})
	}
	if len(q.Specs) == 0 {
		return fmt.Errorf("%s has no specs", f.specs)
	}
	return nil
}

// askReplay has the engine replay.
func (c *client) askReplay(ctx context.Context, q *engine.ReplayQuery) (*engine.Replayed, json.RawMessage, error) {
	var body bytes.Buffer
	if err := plainJSON(&body, q); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.open(ctx, http.MethodPost, "/replay", nil, &body, http.Header{"Content-Type": {"application/json"}})
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, unreachable("the engine is gone: %w", err)
	}
	out := &engine.Replayed{}
	if err := decode(b, out); err != nil {
		return nil, nil, errors.Join(errors.New("the engine's answer is not understood"), err)
	}
	return out, b, nil
}

// replay tells what fires, and has it called when it shall be.
func (e *env) replay(ctx context.Context, c *client, f *replayFlags) error {
	q := f.q
	q.Execute, q.ID = false, ""
	out, raw, err := c.askReplay(ctx, &q)
	if err != nil {
		return err
	}
	p := c.printer()
	if p.text() {
		if err := e.replayed(out, f); err != nil {
			return err
		}
	}
	if !f.q.Execute || out.Calls == 0 {
		if p.text() {
			return nil
		}
		return p.value(raw)
	}
	if !f.yes {
		ok, err := e.confirm(fmt.Sprintf("Make %s?", plural(out.Calls, "call")))
		if err != nil {
			return err
		}
		if !ok {
			return errFindings
		}
	}
	// The same events again, and no later ones.
	q.From, q.To, q.Until = fmt.Sprint(out.From), fmt.Sprint(out.To), out.Until
	q.Execute, q.ID = true, f.q.ID
	if q.ID == "" {
		q.ID = sources.NewID()
	}
	out, raw, err = c.askReplay(ctx, &q)
	if err != nil {
		return fmt.Errorf("%w; with --as %s the same calls can be asked for again", err, q.ID)
	}
	if !p.text() {
		err = p.value(raw)
	} else {
		line := fmt.Sprintf("%s enqueued by replay %s", plural(out.Executed, "call"), out.ID)
		if out.Repeated > 0 {
			line += fmt.Sprintf("; %d were already", out.Repeated)
		}
		_, err = fmt.Fprintln(e.stdout, line)
	}
	if err == nil && out.Error != "" {
		err = errors.New(out.Error)
	}
	return err
}

// confirm asks.
func (e *env) confirm(question string) (bool, error) {
	if _, err := fmt.Fprint(e.stderr, question+" [y/N] "); err != nil {
		return false, err
	}
	line, err := bufio.NewReader(e.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes", nil
}

// replayed prints what a replay gave.
func (e *env) replayed(out *engine.Replayed, f *replayFlags) error {
	t := &tree{w: e.stdout}
	for i := range out.Firings {
		t.played(&out.Firings[i])
	}
	if out.More > 0 {
		t.line(0, "and %s; --limit shows more", plural(out.More, "other firing"))
	}
	if len(out.Firings) > 0 {
		t.blank()
	}
	t.line(0, "%s: %s", plural(sum(out.Counts), "firing"), differences(out.Counts))
	events := fmt.Sprintf("events %d to %d", out.From, out.To)
	if out.Selected < out.Events {
		events += fmt.Sprintf(", %d of %d meant", out.Selected, out.Events)
	}
	t.line(0, "%s, %d of them wanted", events, out.Wanted)
	if len(out.Unchanged) > 0 {
		t.line(0, "as they are in force, and not replayed to: %s", strings.Join(out.Unchanged, ", "))
	}
	for i := range out.Sensors {
		for _, w := range out.Sensors[i].Warnings {
			t.line(0, "note: %s: %s", out.Sensors[i].Sensor, w)
		}
	}
	if out.Counts[replay.Unknown] > 0 {
		t.line(0, "note: the history begins %s; whether something earlier was called is unknown", out.KnownSince.Local().Format(time.DateTime))
	}
	if out.Steps > 0 {
		t.line(0, "note: %s of workflows are not called again: they follow from the results of others", plural(out.Steps, "later step"))
	}
	if !f.q.Execute {
		t.line(0, "nothing was called")
	} else if out.Calls == 0 {
		t.line(0, "there is nothing to call")
	}
	return t.err
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// differences counts firings in words.
func differences(counts map[string]int) string {
	var parts []string
	for _, d := range []string{replay.Same, replay.New, replay.Gone, replay.Unknown} {
		if n := counts[d]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, d))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// inTrigger begins the path of what a trigger says.
var inTrigger = regexp.MustCompile(`^spec\.triggers\[\d+\]\.`)

// played prints one firing.
func (t *tree) played(f *replay.Played) {
	var events []string
	for _, c := range f.Events {
		events = append(events, fmt.Sprintf("%s %d", cmp.Or(c.Dependency, "event"), c.Seq))
	}
	line := fmt.Sprintf("%-7s %s.%s of %s", f.Difference, f.Sensor, f.Trigger, strings.Join(slices.Compact(events), ", "))
	if f.Items > 0 {
		line += fmt.Sprintf(", item %d of %d", f.Item+1, f.Items)
	}
	if f.Correlation != "" {
		line += ", key " + key(f.Correlation)
	}
	if f.Edited {
		line += ", edited"
	}
	t.line(0, "%s%s", line, outcome(f.Call))
	if f.Error != "" {
		t.line(4, "its input could not be made: %s", f.Error)
	}
	if f.Input != nil {
		t.line(4, "input %s", short(compact(f.Input), 200))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Config)) {
		t.line(4, "%s %s", inTrigger.ReplaceAllString(name, ""), short(compact(f.Config[name]), 200))
	}
	if f.Cut {
		t.line(4, "its input is large and not shown")
	}
}
