package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/bus"
)

// cloudEvent is what is shown of an event.
type cloudEvent struct {
	ID, Type, Source, Subject string
	Data                      json.RawMessage
	DataBase64                string    `json:"data_base64"`
	EventSource               string    `json:"enginesource"`
	Event                     string    `json:"engineevent"`
	Seq                       string    `json:"engineseq"`
	Stored                    time.Time `json:"enginestored"`
}

// text is the event on one line.
func (ev *cloudEvent) text() string {
	data := string(ev.Data)
	if data == "" && ev.DataBase64 != "" {
		data = "base64:" + ev.DataBase64
	}
	if ev.EventSource == bus.SourceFunction {
		data = ev.result()
	}
	return fmt.Sprintf("%-12s  %-24s  %-24s  %-26s  %s", clock(ev.Stored), clean(ev.EventSource+"/"+ev.Event), clean(ev.Type), clean(ev.ID), short(data, 100))
}

// result is what the event of a function's result says beside its type: who
// called, and what came of it.
func (ev *cloudEvent) result() string {
	var r struct {
		Output    json.RawMessage
		Error     string
		Truncated bool
	}
	if err := json.Unmarshal(ev.Data, &r); err != nil {
		return string(ev.Data)
	}
	switch {
	case r.Error != "":
		return ev.Subject + ": " + r.Error
	case r.Truncated:
		return ev.Subject + ": the output is left out, it is too large"
	}
	return ev.Subject + ": " + string(r.Output)
}

func (e *env) eventsVerb() *cobra.Command {
	var follow bool
	var typ, source, event, since string
	limit := 0
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show the newest events",
		Long: `Shows the newest events of the log, oldest first: when it was stored, its
EventSource and event, type, id and data. With -o json each is a CloudEvent on
one line; engineseq, enginestored, enginesource and engineevent tell its place
in the log.`,
		Example: `  engine events --follow --source shop
  engine events --type 'com.example.*' --since 10m -o json | jq .data`,
		Args: cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.BoolVarP(&follow, "follow", "f", false, "go on with the events that come")
	fs.StringVar(&typ, "type", "", "CloudEvents type, or a glob")
	fs.StringVar(&source, "source", "", "name of the EventSource, or a glob")
	fs.StringVar(&event, "event", "", "name of the event of the EventSource, or a glob")
	fs.StringVar(&since, "since", "", "not older than a time (2026-01-31T12:00:00Z) or a duration (10m)")
	fs.IntVarP(&limit, "limit", "n", 0, "most events; default 50, with --follow the last 10 before it begins")
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q := queryOf("type", typ, "source", source, "event", event, "since", since)
		if cmd.Flags().Changed("limit") {
			q.Set("limit", strconv.Itoa(limit))
		}
		p := c.printer()
		show := func(b json.RawMessage) error {
			if !p.text() {
				return p.record(b)
			}
			var ev cloudEvent
			if err := json.Unmarshal(b, &ev); err != nil {
				return err
			}
			_, err := fmt.Fprintln(e.stdout, ev.text())
			return err
		}
		return c.list(cmd.Context(), "/events", q, follow, func() ([]json.RawMessage, error) {
			var all []json.RawMessage
			err := c.ask(cmd.Context(), http.MethodGet, "/events", q, &all)
			return all, err
		}, show)
	}
	return cmd
}

// list shows what get gives, or with follow the lines of the stream at path.
func (c *client) list(ctx context.Context, path string, q url.Values, follow bool, get func() ([]json.RawMessage, error), show func(json.RawMessage) error) error {
	if follow {
		q.Set("follow", "true")
		return c.lines(ctx, path, q, show)
	}
	all, err := get()
	if err != nil {
		return err
	}
	if len(all) == 0 && c.printer().text() {
		_, err := fmt.Fprintln(c.e.stderr, "no "+strings.TrimPrefix(path, "/"))
		return err
	}
	for _, b := range all {
		if err := show(b); err != nil {
			return err
		}
	}
	return nil
}

// queryOf makes a query of the pairs whose value is not empty.
func queryOf(pairs ...string) url.Values {
	q := url.Values{}
	for pair := range slices.Chunk(pairs, 2) {
		if name, v := pair[0], pair[1]; v != "" {
			q.Set(name, v)
		}
	}
	return q
}
