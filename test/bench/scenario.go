package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// scenario is one question to the engine.
type scenario struct {
	name, title string
	rounds      int // 0: as many as -rounds says
	attempts    []attempt
	figures     []figure
}

// figure is a number made of the columns of one round.
type figure struct {
	key, text string
	unit      string // "" for a ratio, which is kept; otherwise such as "ms"
	budget    float64
	lower     bool // less is better
	of        func(map[string]result) float64
}

const (
	sourceDoc = `apiVersion: engine/v1
kind: EventSource
metadata: {name: bench}
spec:
  webhook:
    in: {path: /in, maxBody: 2MiB}
    second: {path: /second, maxBody: 2MiB}
`
	filterDoc = `---
apiVersion: engine/v1
kind: Sensor
metadata: {name: %s}
spec:
  dependencies:
    - {name: ev, source: bench, event: %s, when: %s}
  triggers:
    - name: call
      concurrency: %d
      timeout: 30m
      http: {url: "http://%s/", method: POST}
`
	pairDoc = `---
apiVersion: engine/v1
kind: Sensor
metadata: {name: pair}
spec:
  dependencies:
    - {name: first, source: bench, event: in, when: data.total > 100}
    - {name: second, source: bench, event: second}
  correlate: data.n
  within: 10m
  triggers:
    - name: call
      concurrency: %d
      http: {url: "http://%s/", method: POST}
`
	// everyEvent is a filter that all events pass.
	everyEvent = "data.total > 100"
	// scarceMemory is about half of what the engine takes when nobody limits it.
	scarceMemory = "128MiB"
	// docsPerFile keeps files of thousands of sensors below the size limit.
	docsPerFile = 1000
)

// engine is a target that runs documents, which docs makes for the sinks.
func (o options) engineWith(docs func(sinks []string) []string, flags ...string) target {
	return target{
		name:  "engine",
		ready: func(a addresses) string { return "http://" + a.api + "/readyz" },
		command: func(ctx context.Context, dir string, a addresses) (*exec.Cmd, error) {
			specs := filepath.Join(dir, "specs")
			if err := os.Mkdir(specs, 0o755); err != nil {
				return nil, err
			}
			all := append([]string{sourceDoc}, docs(a.sinks)...)
			for i := 0; len(all) > 0; i++ {
				n := min(len(all), docsPerFile)
				if err := os.WriteFile(filepath.Join(specs, fmt.Sprintf("bench%d.yaml", i)), []byte(strings.Join(all[:n], "")), 0o600); err != nil {
					return nil, err
				}
				all = all[n:]
			}
			args := append([]string{"run", specs, "--data", filepath.Join(dir, "data"), "--listen", a.in, "--api", a.api, "--log-format", "json"}, flags...)
			return exec.CommandContext(ctx, o.engine, args...), nil
		},
	}
}

// with adds an environment variable.
func (t target) with(env string) target {
	command := t.command
	t.command = func(ctx context.Context, dir string, a addresses) (*exec.Cmd, error) {
		cmd, err := command(ctx, dir, a)
		if err == nil {
			cmd.Env = append(cmd.Environ(), env)
		}
		return cmd, err
	}
	return t
}

// filter is the documents of one sensor that all events of the first lane pass.
func (o options) filter(sinks []string) []string {
	return []string{fmt.Sprintf(filterDoc, "bench", "in", everyEvent, o.workers, sinks[0])}
}

// ceiling is HTTP in and HTTP out with a channel between.
func (o options) ceiling(flags ...string) target {
	return target{
		name:  "ceiling",
		ready: func(a addresses) string { return "http://" + a.in + "/" },
		command: func(ctx context.Context, _ string, a addresses) (*exec.Cmd, error) {
			self, err := os.Executable()
			if err != nil {
				return nil, err
			}
			args := append([]string{"ceiling", "-listen", a.in, "-sink", "http://" + a.sinks[0] + "/", "-concurrency", fmt.Sprint(o.workers)}, flags...)
			return exec.CommandContext(ctx, self, args...), nil
		},
	}
}

// rate is the ratio of two columns' end-to-end rates.
func rate(over, under string) func(map[string]result) float64 {
	return func(r map[string]result) float64 { return r[over].EndToEnd / r[under].EndToEnd }
}

// lane is one of the default events.
func (o options) lane(column string) lane {
	return lane{column: column, paths: []string{"/in"}, conns: o.conns, warmup: o.warmup, events: o.events, size: o.size}
}

// resized is a lane of fewer events, with a fitting warm-up.
func (l lane) resized(events int) lane {
	l.warmup, l.events = max(1, l.warmup*events/l.events), events
	return l
}

// scenarios are all there are, in the order of the report.
func (o options) scenarios(peers []target) []scenario {
	one := func(t target, l lane) attempt { return attempt{t, []lane{l}} }
	base := o.lane("engine")
	under := o.lane("ceiling")

	filter := scenario{
		name: "filter", title: "one filter, one HTTP function",
		attempts: []attempt{one(o.engineWith(o.filter), base), one(o.ceiling(), under)},
		figures:  []figure{{key: "filter/engine", text: "one filter, one HTTP function: engine / ceiling", budget: 0.5, of: rate("engine", "ceiling")}},
	}
	for _, p := range peers {
		filter.attempts = append(filter.attempts, one(p, o.lane(p.name).resized(max(1, o.events/5))))
		filter.figures = append(filter.figures,
			figure{key: "filter/" + p.name, text: "the same: " + p.name + " / ceiling", of: rate(p.name, "ceiling")},
			figure{key: "filter/engine over " + p.name, text: "the same: engine / " + p.name, of: rate("engine", p.name)})
	}

	const took = 10 * time.Millisecond
	most := float64(o.workers) / took.Seconds()
	waiting := max(1, int(most*o.seconds))
	// Accepted first and called then: what a function's slots do must not hang
	// on how much of the machine the generator needs at the moment.
	slow := func(column string) lane {
		l := o.lane(column).resized(waiting)
		l.delay, l.hold = took, true
		return l
	}
	arriving := func(column string) lane {
		l := o.lane(column).resized(max(1, int(1.1*most*o.seconds)))
		l.delay, l.rate = took, 1.1*most
		return l
	}
	fast := func(column string) lane {
		l := o.lane(column).resized(max(1, int(2*o.rate*o.seconds)))
		l.paths, l.rate = []string{"/second"}, 2*o.rate
		return l
	}
	slowDoc := func(sink string) string {
		return fmt.Sprintf(filterDoc, "slow", "in", everyEvent, o.workers, sink)
	}
	fastDoc := func(sink string) string {
		return fmt.Sprintf(filterDoc, "fast", "second", everyEvent, o.workers, sink)
	}
	ideal := func(column string) func(map[string]result) float64 {
		return func(r map[string]result) float64 { return r[column].EndToEnd / most }
	}
	slowly := scenario{
		name: "slow", title: fmt.Sprintf("a function that takes %s, %d at the same time, and %d jobs that wait for it; then offered 1.1 × %d/%s beside a fast one at %.0f/s", took, o.workers, waiting, o.workers, took, 2*o.rate),
		attempts: []attempt{
			one(o.engineWith(func(s []string) []string { return []string{slowDoc(s[0])} }), slow("slow")),
			one(o.ceiling("-queue", fmt.Sprint(waiting)), slow("slow, ceiling")),
			one(o.engineWith(func(s []string) []string { return []string{fastDoc(s[0])} }), fast("fast")),
			{o.engineWith(func(s []string) []string { return []string{slowDoc(s[0]), fastDoc(s[1])} }), []lane{arriving("slow, both"), fast("fast, both")}},
		},
		figures: []figure{
			{key: "slow/rate", text: fmt.Sprintf("function of %s: rate / (%d/%s)", took, o.workers, took), budget: 0.9, of: ideal("slow")},
			{key: "slow/ceiling", text: fmt.Sprintf("the same: ceiling's rate / (%d/%s)", o.workers, took), of: ideal("slow, ceiling")},
			{key: "slow/engine", text: "the same: engine / ceiling", of: rate("slow", "slow, ceiling")},
			{key: "slow/both", text: fmt.Sprintf("more arrives than it can take, and a fast one beside it: rate / (%d/%s)", o.workers, took), of: ideal("slow, both")},
			{key: "slow/neighbour", text: "the fast function beside it: rate / alone", budget: 0.95, of: rate("fast, both", "fast")},
		},
	}

	sensors := scenario{name: "sensors", title: "sensors with different equality filters on one source, one matches"}
	counts := []int{1, 100, o.sensors}
	for _, n := range counts {
		l := o.lane(fmt.Sprint(n))
		l.kinds = n
		sensors.attempts = append(sensors.attempts, one(o.engineWith(func(sinks []string) (docs []string) {
			for i := range n {
				docs = append(docs, fmt.Sprintf(filterDoc, fmt.Sprintf("s%d", i), "in", fmt.Sprintf("data.kind == 'k%05d'", i), o.workers, sinks[0]))
			}
			return docs
		}), l))
		if n > 1 {
			sensors.figures = append(sensors.figures,
				figure{
					key: fmt.Sprintf("sensors/%d", n), text: fmt.Sprintf("CPU per event with %d sensors / with 1", n), budget: 2, lower: true,
					of: func(r map[string]result) float64 { return r[fmt.Sprint(n)].CPU / r["1"].CPU },
				},
				figure{key: fmt.Sprintf("sensors/%d rate", n), text: fmt.Sprintf("rate with %d sensors / with 1", n), of: rate(fmt.Sprint(n), "1")},
				figure{key: fmt.Sprintf("sensors/%d MiB", n), text: fmt.Sprintf("peak memory with %d sensors", n), unit: "MiB", lower: true, of: func(r map[string]result) float64 {
					return r[fmt.Sprint(n)].PeakMiB
				}})
		}
	}

	pair, pairUnder := base, under
	pair.paths, pairUnder.paths = []string{"/in", "/second"}, []string{"/in", "/second"}
	correlate := scenario{
		name: "correlate", title: "two events with the same key make one call; rates are of pairs",
		attempts: []attempt{
			one(o.engineWith(func(s []string) []string { return []string{fmt.Sprintf(pairDoc, o.workers, s[0])} }), pair.resized(max(1, o.events/2))),
			one(o.ceiling("-drop", "/in"), pairUnder.resized(max(1, o.events/2))),
		},
		figures: []figure{{key: "correlate/engine", text: "two events correlated: engine / ceiling", of: rate("engine", "ceiling")}},
	}

	size := scenario{name: "size", title: "the first scenario with bodies of 1 KiB, 64 KiB and 1 MiB"}
	for _, s := range []struct {
		name        string
		bytes, part int
	}{{"1 KiB", 1 << 10, 2}, {"64 KiB", 64 << 10, 10}, {"1 MiB", 1 << 20, 100}} {
		e, c := o.lane(s.name).resized(max(1, o.events/s.part)), o.lane(s.name+", ceiling").resized(max(1, o.events/s.part))
		e.size, c.size = s.bytes, s.bytes
		size.attempts = append(size.attempts, one(o.engineWith(o.filter), e), one(o.ceiling(), c))
		size.figures = append(size.figures, figure{key: "size/" + s.name, text: "bodies of " + s.name + ": engine / ceiling", of: rate(e.column, c.column)})
	}

	held := func(column string, n int) lane {
		l := o.lane(column)
		l.events, l.hold = n, true
		return l
	}
	less := max(1, o.backlog/10)
	few, many := fmt.Sprint(less), fmt.Sprint(o.backlog)
	scarce := many + ", " + scarceMemory
	peak := func(column string) func(map[string]result) float64 {
		return func(r map[string]result) float64 { return r[column].PeakMiB }
	}
	backlog := scenario{
		name: "backlog", title: fmt.Sprintf("the function hangs until %d events are accepted; end to end is from when it is back", o.backlog), rounds: 1,
		attempts: []attempt{
			one(o.engineWith(o.filter), held(few, less)),
			one(o.engineWith(o.filter), held(many, o.backlog)),
			one(o.engineWith(o.filter).with("GOMEMLIMIT="+scarceMemory), held(scarce, o.backlog)),
			one(o.ceiling(), under),
		},
		figures: []figure{
			{key: "backlog/accepted", text: "a backlog of " + many + ": events accepted / ceiling", of: func(r map[string]result) float64 {
				return r[many].Accepted / r["ceiling"].Accepted
			}},
			{key: "backlog/drain", text: "the same: rate of its calls / ceiling", of: rate(many, "ceiling")},
			{key: "backlog/scarce", text: "the same with GOMEMLIMIT=" + scarceMemory + " / without", budget: 0.5, of: rate(scarce, many)},
			{key: "backlog/memory", text: "the same: peak memory / that of a tenth of it", lower: true, of: func(r map[string]result) float64 {
				return r[many].PeakMiB / r[few].PeakMiB
			}},
			{key: "backlog/peak MiB", text: "the same: peak memory", unit: "MiB", lower: true, of: peak(many)},
			{key: "backlog/scarce MiB", text: "the same: peak memory with GOMEMLIMIT=" + scarceMemory, unit: "MiB", lower: true, of: peak(scarce)},
			{key: "backlog/files MiB", text: "the same: files", unit: "MiB", lower: true, of: func(r map[string]result) float64 { return r[many].DiskMiB }},
		},
	}

	paced, pacedUnder := base.resized(max(1, int(o.rate*o.seconds))), under.resized(max(1, int(o.rate*o.seconds)))
	paced.rate, pacedUnder.rate = o.rate, o.rate
	fixed := scenario{
		name: "rate", title: fmt.Sprintf("the first scenario at %.0f/s, open loop", o.rate),
		attempts: []attempt{one(o.engineWith(o.filter), paced), one(o.ceiling(), pacedUnder)},
		figures: []figure{
			{key: "rate/p50 ms", text: fmt.Sprintf("latency at %.0f/s: p50", o.rate), unit: "ms", budget: 0.5, lower: true, of: func(r map[string]result) float64 { return r["engine"].Latency[0] }},
			{key: "rate/p99 ms", text: fmt.Sprintf("latency at %.0f/s: p99", o.rate), unit: "ms", budget: 2, lower: true, of: func(r map[string]result) float64 { return r["engine"].Latency[2] }},
			{key: "rate/p50", text: fmt.Sprintf("latency at %.0f/s: p50 engine / ceiling", o.rate), lower: true, of: func(r map[string]result) float64 { return r["engine"].Latency[0] / r["ceiling"].Latency[0] }},
			{key: "rate/p99", text: fmt.Sprintf("latency at %.0f/s: p99 engine / ceiling", o.rate), lower: true, of: func(r map[string]result) float64 { return r["engine"].Latency[2] / r["ceiling"].Latency[2] }},
		},
	}

	wide := func(column string) lane {
		l := o.lane(column)
		l.conns *= 4
		return l
	}
	durability := scenario{
		name: "durability", title: fmt.Sprintf("what is acknowledged has reached the disk: --durability fsync, %d connections", 4*o.conns),
		attempts: []attempt{
			one(o.engineWith(o.filter, "--durability", "os"), wide("os")),
			one(o.engineWith(o.filter, "--durability", "fsync"), wide("fsync")),
			one(o.ceiling(), wide("ceiling")),
		},
		figures: []figure{
			{key: "durability/fsync", text: fmt.Sprintf("%d connections: fsync / os", 4*o.conns), budget: 0.7, of: rate("fsync", "os")},
			{key: "durability/ceiling", text: fmt.Sprintf("%d connections: os / ceiling", 4*o.conns), of: rate("os", "ceiling")},
		},
	}
	return []scenario{filter, fixed, slowly, sensors, correlate, size, backlog, durability}
}

// chosen are the scenarios named in list, which is separated by commas; all
// for "".
func chosen(all []scenario, list string) ([]scenario, error) {
	if list == "" {
		return all, nil
	}
	byName := map[string]scenario{}
	for _, s := range all {
		byName[s.name] = s
	}
	var out []scenario
	for name := range strings.SplitSeq(list, ",") {
		s, ok := byName[strings.TrimSpace(name)]
		if !ok {
			return nil, fmt.Errorf("there is no scenario %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(byName)), ", "))
		}
		out = append(out, s)
	}
	return out, nil
}
