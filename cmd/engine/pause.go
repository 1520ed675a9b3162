package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/api"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/specs"
)

func (e *env) pauseVerb() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "pause SENSOR",
		Short: "Stop the evaluation of a sensor",
		Long: `Lets a sensor evaluate nothing until it is resumed. What waits in it and its
place in the log stay, also over a restart and an edit of its spec; others are
not concerned. Jobs that it has decided already are worked off.`,
		Example: "  engine pause ship-paid-orders --reason 'the depot is closed'\n  engine pause subscription/audit",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who see it paused")
	c := e.client(cmd)
	cmd.ValidArgsFunction = c.completeSensors
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.steer(cmd.Context(), args[0], "pause", queryOf("reason", reason), func(p *api.Paused) string {
			if p.Behind == nil {
				return "paused"
			}
			return "paused " + place(p.Behind)
		})
	}
	return cmd
}

// steer pauses or resumes a sensor and prints what came of it.
func (c *client) steer(ctx context.Context, sensor, verb string, query url.Values, tell func(*api.Paused) string) error {
	name, err := sensorArg(sensor)
	if err != nil {
		return err
	}
	var done api.Paused
	if err := c.ask(ctx, http.MethodPost, "/sensors/"+url.PathEscape(name)+"/"+verb, query, &done); err != nil {
		return err
	}
	p := c.printer()
	if !p.text() {
		return p.value(done)
	}
	_, err = fmt.Fprintln(c.e.stdout, tell(&done))
	return err
}

// sensorArg is the name a sensor runs as, given by its name, or as KIND/NAME.
func sensorArg(arg string) (string, error) {
	k, name, slash := strings.Cut(arg, "/")
	if !slash {
		return arg, nil
	}
	kind, err := kindArg(k)
	switch {
	case err != nil:
		return "", err
	case kind == specs.KindSubscription:
		return specs.SubscriptionPrefix + name, nil
	case kind != specs.KindSensor:
		return "", usagef("%s/%s is no sensor", kind, name)
	}
	return name, nil
}

// completeSensors completes names of sensors with the engine's help.
func (c *client) completeSensors(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || fromEnvironment(c.e, cmd) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := c.resources(cmd.Context(), "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, r := range all {
		if r.RunsAs != "" {
			out = append(out, r.RunsAs)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// place says where a sensor stands that is behind.
func place(b *engine.BehindStatus) string {
	if b.From != "" {
		return "until its beginning: " + string(b.From)
	}
	s := fmt.Sprintf("behind event %d, %d behind the others", b.Position, b.Events)
	if b.Removed > 0 {
		s += fmt.Sprintf(", of which %d are no longer stored", b.Removed)
	}
	return s
}

// behindState is the state of a sensor that is behind, in a word.
func behindState(b *engine.BehindStatus) string {
	switch {
	case b.Paused == nil && b.From != "":
		return "NotBegun"
	case b.Paused == nil:
		return "CatchingUp"
	case b.Paused.By == fold.ByWatchdog:
		return "Quarantined"
	}
	return "Paused"
}

// behindInfo says why a sensor is behind, and where it stands.
func behindInfo(b *engine.BehindStatus) string {
	if b.Paused == nil {
		return place(b)
	}
	s := fmt.Sprintf("since %s, %s", b.Paused.Since.Local().Format(time.RFC3339), place(b))
	if b.Paused.Reason != "" {
		s += ": " + b.Paused.Reason
	}
	return s
}
