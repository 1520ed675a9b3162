package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/specs"
)

// kinds are the kinds of resources with their short names.
var kinds = []struct {
	kind  specs.Kind
	names []string
}{
	{specs.KindEventSource, []string{"eventsource", "eventsources", "source", "sources", "es"}},
	{specs.KindSensor, []string{"sensor", "sensors"}},
	{specs.KindFunction, []string{"function", "functions", "fn"}},
	{specs.KindSubscription, []string{"subscription", "subscriptions", "sub"}},
	{specs.KindEndpoint, []string{"endpoint", "endpoints", "ep"}},
	{specs.KindDriverType, []string{"drivertype", "drivertypes"}},
	{specs.KindSecret, []string{"secret", "secrets"}},
}

func kindArg(arg string) (specs.Kind, error) {
	for _, k := range kinds {
		if slices.Contains(k.names, strings.ToLower(arg)) {
			return k.kind, nil
		}
	}
	return "", usagef("unknown kind %q; there are eventsource, sensor, function, subscription, endpoint, drivertype, secret", arg)
}

// refArgs reads KIND NAME or KIND/NAME; without a name, name is "".
func refArgs(args []string) (kind specs.Kind, name string, err error) {
	if len(args) == 0 {
		return "", "", nil
	}
	k, name, slash := strings.Cut(args[0], "/")
	if len(args) == 2 {
		if slash {
			return "", "", usagef("say KIND NAME or KIND/NAME")
		}
		name = args[1]
	}
	kind, err = kindArg(k)
	return kind, name, err
}

// completeRefs completes kinds and names, the latter with the engine's help.
func (c *client) completeRefs(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var out []string
	if len(args) == 0 {
		for _, k := range kinds {
			out = append(out, k.names[0])
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	kind, err := kindArg(args[0])
	if len(args) > 1 || err != nil || fromEnvironment(c.e, cmd) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := c.resources(cmd.Context(), kind)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, r := range all {
		out = append(out, r.Name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (c *client) resources(ctx context.Context, kind specs.Kind) ([]engine.ResourceStatus, error) {
	var all struct{ Resources []engine.ResourceStatus }
	err := c.ask(ctx, http.MethodGet, "/resources", queryOf("kind", string(kind)), &all)
	return all.Resources, err
}

func (e *env) getVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get [KIND [NAME]]",
		Short: "List resources and their state",
		Long: `Lists resources, and on standard error the problems of the specs, alarms, and
why the engine is not ready. The state is ok; stale: the last good version runs, because the
files have an error; removing: absent from the files; rejected: does not run. An
EventSource of which an event does not work shows that event's state, an Endpoint
that is not served its own: Starting, Retrying, Failed.`,
		Example: "  engine get\n  engine get sensors\n  engine get sensor large-orders -o yaml",
		Args:    cobra.MaximumNArgs(2),
	}
	c := e.client(cmd)
	cmd.ValidArgsFunction = c.completeRefs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kind, name, err := refArgs(args)
		if err != nil {
			return err
		}
		p := c.printer()
		var st engine.Status
		var all []engine.ResourceStatus
		if kind == "" && p.text() {
			err = c.ask(cmd.Context(), http.MethodGet, "/status", nil, &st)
			all = st.Resources
		} else {
			all, err = c.resources(cmd.Context(), kind)
		}
		if err != nil {
			return err
		}
		if name != "" {
			i := slices.IndexFunc(all, func(r engine.ResourceStatus) bool { return r.Name == name })
			if i < 0 {
				return fmt.Errorf("there is no %s/%s", kind, name)
			}
			if !p.text() {
				return p.value(all[i])
			}
			all = all[i : i+1]
		}
		if !p.text() {
			return p.value(all)
		}
		if len(all) == 0 {
			_, err := fmt.Fprintln(e.stderr, "no resources")
			return err
		}
		t := newTable(e.stdout, "KIND", "NAME", "STATE", "INFO", "PLACE")
		for _, r := range all {
			t.row(string(r.Kind), r.Name, stateOf(r), short(infoOf(r), 90), r.Place)
		}
		return errors.Join(t.flush(), e.attention(st))
	}
	return cmd
}

// attention prints what is wrong with the engine itself.
func (e *env) attention(st engine.Status) (err error) {
	say := func(format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintln(e.stderr, clean(fmt.Sprintf(format, args...)))
		}
	}
	for _, d := range st.Problems {
		say("%s", d)
	}
	for _, a := range st.Alarms {
		say("alarm[%s] %s (%s)", a.Code, a.Message, ago(a.Last))
	}
	for _, why := range st.NotReady {
		say("not ready: %s", why)
	}
	return err
}

// stateOf is the state of a resource and of what it runs in one word.
func stateOf(r engine.ResourceStatus) string {
	if r.State == string(reload.OK) {
		if r.Endpoint != nil && r.Endpoint.State != engine.UnitRunning {
			return string(r.Endpoint.State)
		}
		for _, ev := range r.Events {
			if ev.State != engine.UnitRunning {
				return string(ev.State)
			}
		}
		if r.Behind != nil {
			return behindState(r.Behind)
		}
		if r.NotReady != "" {
			return "NotReady"
		}
	}
	return r.State
}

// infoOf is the most important about a resource.
func infoOf(r engine.ResourceStatus) string {
	if r.Reason != "" {
		return r.Reason
	}
	if r.Behind != nil {
		return behindInfo(r.Behind)
	}
	if r.NotReady != "" {
		return r.NotReady
	}
	if r.Trial != nil {
		return "a new version is starting, the one before goes on"
	}
	switch {
	case r.Kind == specs.KindEventSource:
		running, stored, why := 0, uint64(0), ""
		for _, ev := range r.Events {
			stored += ev.Stored
			if ev.State == engine.UnitRunning {
				running++
			} else if why == "" {
				why = ": " + ev.Name + " " + ev.Detail
			}
		}
		return fmt.Sprintf("%d of %d run, %d stored%s", running, len(r.Events), stored, why)
	case r.Endpoint != nil:
		return infoOfEndpoint(r.Endpoint)
	case r.Sensor != nil:
		var failed, dead, waiting uint64
		for _, t := range r.Triggers {
			failed, dead, waiting = failed+t.Failed, dead+t.Dead, waiting+uint64(t.Waiting)+t.Overflow+uint64(t.Retries)+uint64(t.Limited)
		}
		parts := []string{fmt.Sprintf("%d matched, %d fired", r.Sensor.Matched, r.Sensor.Fired)}
		for _, n := range []struct {
			n    uint64
			what string
		}{{waiting, "waiting"}, {failed, "failed"}, {dead, "dead"}} {
			if n.n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n.n, n.what))
			}
		}
		for _, t := range r.Triggers {
			if t.Breaker == jobs.BreakerOpen || t.Breaker == jobs.BreakerProbing {
				parts = append(parts, t.Name+" paused")
			}
		}
		return strings.Join(parts, ", ")
	}
	var parts []string
	if r.Function != nil {
		var succeeded, failed uint64
		for _, t := range r.Triggers {
			succeeded, failed = succeeded+t.Succeeded, failed+t.Failed
		}
		parts = append(parts, fmt.Sprintf("%s, %d succeeded", r.Function.Kind, succeeded))
		if failed > 0 {
			parts = append(parts, fmt.Sprintf("%d failed", failed))
		}
	}
	if len(r.UsedBy) > 0 {
		parts = append(parts, "used by "+strings.Join(r.UsedBy, ", "))
	}
	return strings.Join(parts, ", ")
}

func infoOfEndpoint(ep *engine.EndpointStatus) string {
	var all, failed uint64
	for status, n := range ep.Answers {
		all += n
		if status >= 400 {
			failed += n
		}
	}
	info := ep.Detail
	if ep.State == engine.UnitRunning && len(ep.Methods) > 0 {
		info = fmt.Sprintf("%s %s%s calls %s, %d requests", strings.Join(ep.Methods, ","), strings.Join(ep.Hosts, ","), ep.Path, ep.Function, all)
		if failed > 0 {
			info += fmt.Sprintf(", %d failed", failed)
		}
	}
	return info
}

func resourcePath(kind specs.Kind, name string) string {
	return "/resources/" + string(kind) + "/" + url.PathEscape(name)
}
