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

	"github.com/sensor-engine/engine/engine/api"
)

func (e *env) dlqVerb() *cobra.Command {
	return group(&cobra.Command{
		Use:   "dlq",
		Short: "Look at, redrive and drop dead letters",
		Long: `A call that failed for good becomes a dead letter: nothing is lost, and once the
cause is repaired it can be redriven.`,
	}, e.dlqListVerb(), e.dlqShowVerb(), e.dlqManyVerb("redrive", "Put dead letters back into the queue, with fresh attempts"), e.dlqManyVerb("drop", "Forget dead letters for ever"))
}

func (e *env) dlqListVerb() *cobra.Command {
	var sensor, trigger string
	limit, from := 0, uint64(0)
	cmd := &cobra.Command{Use: "list", Short: "List dead letters, oldest first", Args: cobra.NoArgs}
	fs := cmd.Flags()
	fs.StringVar(&sensor, "sensor", "", "only those of this sensor")
	fs.StringVar(&trigger, "trigger", "", "only those of this trigger")
	fs.IntVarP(&limit, "limit", "n", 100, "most letters")
	fs.Uint64Var(&from, "from", 0, "begin with this id")
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q := queryOf("sensor", sensor, "trigger", trigger)
		q.Set("limit", strconv.Itoa(limit))
		q.Set("from", strconv.FormatUint(from, 10))
		var all struct{ Letters []json.RawMessage }
		if err := c.ask(cmd.Context(), http.MethodGet, "/dlq", q, &all); err != nil {
			return err
		}
		p := c.printer()
		if !p.text() {
			for _, b := range all.Letters {
				if err := p.record(b); err != nil {
					return err
				}
			}
			return nil
		}
		if len(all.Letters) == 0 {
			_, err := fmt.Fprintln(e.stderr, "no dead letters")
			return err
		}
		t := newTable(e.stdout, "ID", "DIED", "SENSOR", "TRIGGER", "ATTEMPTS", "ERROR")
		for _, b := range all.Letters {
			var l api.Letter
			if err := json.Unmarshal(b, &l); err != nil {
				return err
			}
			t.row(strconv.FormatUint(l.ID, 10), clock(l.Died), l.Sensor, l.Trigger, strconv.Itoa(l.Attempts), short(l.Error, 100))
		}
		return t.flush()
	}
	return cmd
}

func (e *env) dlqShowVerb() *cobra.Command {
	cmd := &cobra.Command{Use: "show ID", Short: "Show everything about one dead letter", Args: cobra.ExactArgs(1)}
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var b json.RawMessage
		if err := c.ask(cmd.Context(), http.MethodGet, "/dlq/"+url.PathEscape(args[0]), nil, &b); err != nil {
			return err
		}
		p := c.printer()
		if !p.text() {
			return p.value(b)
		}
		var l api.Letter
		if err := json.Unmarshal(b, &l); err != nil {
			return err
		}
		t := newTable(e.stdout)
		t.row("Letter:", strconv.FormatUint(l.ID, 10))
		t.row("Sensor:", l.Sensor)
		t.row("Trigger:", l.Trigger)
		t.row("Error:", l.Error)
		t.row("Attempts:", strconv.Itoa(l.Attempts))
		t.row("Redrives:", strconv.Itoa(l.Redrives))
		t.row("Fired:", l.Fired.Local().Format(time.RFC3339Nano))
		t.row("Died:", l.Died.Local().Format(time.RFC3339Nano))
		t.row("Key:", l.Key)
		if l.Correlation != "" {
			t.row("Correlation:", l.Correlation)
		}
		t.row("Spec:", l.Spec)
		for _, ev := range l.Events {
			t.row("Event:", fmt.Sprintf("%s, sequence %d", ev.Dependency, ev.Seq))
		}
		if err := t.flush(); err != nil {
			return err
		}
		for _, part := range []struct {
			name string
			b    json.RawMessage
		}{{"Last event", l.Event}, {"Rendered", l.Rendered}, {"Edited input", l.Input}} {
			if len(part.b) == 0 {
				continue
			}
			if _, err := fmt.Fprintf(e.stdout, "%s:\n", part.name); err != nil {
				return err
			}
			text, _ := json.MarshalIndent(part.b, "  ", "  ")
			if _, err := fmt.Fprintf(e.stdout, "  %s\n", text); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// dlqManyVerb is redrive or drop.
func (e *env) dlqManyVerb(verb, short string) *cobra.Command {
	var sensor, trigger, edited string
	var all bool
	cmd := &cobra.Command{
		Use: verb + " [ID…]", Short: short,
		Example: fmt.Sprintf("  engine dlq %[1]s 7 8\n  engine dlq %[1]s --sensor ship-paid-orders --trigger ship\n  engine dlq %[1]s --all", verb),
	}
	fs := cmd.Flags()
	fs.StringVar(&sensor, "sensor", "", "all those of this sensor")
	fs.StringVar(&trigger, "trigger", "", "all those of this trigger")
	fs.BoolVar(&all, "all", false, "all there are")
	if verb == "redrive" {
		fs.StringVarP(&edited, "input", "i", "", "what the function of one letter gets instead, as JSON; @FILE reads a file, - standard input")
		cmd.Example += "\n  engine dlq redrive 7 --input @repaired.json"
	}
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, ids []string) error {
		many := sensor != "" || trigger != "" || all
		if many == (len(ids) > 0) {
			return usagef("say which: ids, or --sensor, --trigger or --all")
		}
		if all && (sensor != "" || trigger != "") {
			return usagef("--all and --sensor or --trigger exclude each other")
		}
		method, path := http.MethodDelete, ""
		if verb == "redrive" {
			method, path = http.MethodPost, "/redrive"
		}
		var body []byte
		if cmd.Flags().Changed("input") {
			if len(ids) != 1 {
				return usagef("--input is that of one dead letter: give its id")
			}
			input, err := e.execInput(edited, true)
			if err != nil {
				return err
			}
			if body, err = json.Marshal(api.Redrive{Input: input}); err != nil {
				return err
			}
		}
		var total api.Many
		add := func(m api.Many) {
			total.Redriven, total.Dropped, total.Skipped = total.Redriven+m.Redriven, total.Dropped+m.Dropped, total.Skipped+m.Skipped
		}
		var failed []string
		if many {
			q := queryOf("sensor", sensor, "trigger", trigger)
			if all {
				q.Set("all", "true")
			}
			var m api.Many
			if err := c.ask(cmd.Context(), method, "/dlq"+path, q, &m); err != nil {
				return err
			}
			add(m)
		}
		for _, id := range ids {
			var m api.Many
			if err := c.send(cmd.Context(), method, "/dlq/"+url.PathEscape(id)+path, nil, body, &m); err != nil {
				if code, ok := err.(*codeError); ok { //nolint:errorlint // ask returns it as it is
					return code
				}
				failed = append(failed, err.Error())
				continue
			}
			add(m)
		}
		p := c.printer()
		if !p.text() {
			if err := p.value(total); err != nil {
				return err
			}
		} else {
			n, done := total.Redriven, "redriven"
			if verb == "drop" {
				n, done = total.Dropped, "dropped"
			}
			if _, err := fmt.Fprintf(e.stdout, "%d %s\n", n, done); err != nil {
				return err
			}
			if total.Skipped > 0 {
				if _, err := fmt.Fprintf(e.stdout, "%d cannot be redriven: they could not even be rendered\n", total.Skipped); err != nil {
					return err
				}
			}
		}
		if len(failed) > 0 {
			return fmt.Errorf("%s", strings.Join(failed, "\n"))
		}
		return nil
	}
	return cmd
}
