// Command bench measures the built engine from outside, webhook → stored →
// sensor → stored job → HTTP function, next to the ceiling: the same HTTP in
// and out with nothing between but a channel. Both run as processes of their
// own against the same generator and sink, in alternating rounds, so that what
// the machine does at the moment hits both. It must not import the engine.
//
//	go run ./test/bench                    # builds the engine, prints one table
//	go run ./test/bench -rounds 5 -json    # for machines
//
// Throughput is a closed loop: every connection posts again when it was
// answered. Latency, from sending the webhook to the arrival of the call, is
// given for that and for a fixed rate.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

// options are the flags.
type options struct {
	engine   string
	events   int
	warmup   int
	conns    int
	size     int
	rounds   int
	rate     float64
	paced    int
	workers  int
	patience time.Duration
	dir      string
	jsonOut  bool
	ceilOnly bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "ceiling" {
		return serveCeiling(ctx, args[1:])
	}
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.engine, "engine", "", "engine `binary`; built from ./cmd/engine when empty")
	fs.IntVar(&o.events, "events", 50_000, "events of a closed-loop round")
	fs.IntVar(&o.warmup, "warmup", 5_000, "events before each measurement")
	fs.IntVar(&o.conns, "conns", 32, "connections that post")
	fs.IntVar(&o.size, "size", 256, "`bytes` of an event's body")
	fs.IntVar(&o.rounds, "rounds", 3, "rounds of each")
	fs.Float64Var(&o.rate, "rate", 1000, "events per second of the fixed-rate round; 0 leaves it out")
	fs.IntVar(&o.paced, "paced", 10_000, "events of the fixed-rate round")
	fs.IntVar(&o.workers, "concurrency", 64, "calls at the same time")
	fs.DurationVar(&o.patience, "patience", 15*time.Second, "how long nothing may arrive before the rest counts as lost")
	fs.StringVar(&o.dir, "dir", "", "`directory` for data, on the disk to measure; default: a temporary one")
	fs.BoolVar(&o.jsonOut, "json", false, "print JSON")
	fs.BoolVar(&o.ceilOnly, "ceiling-only", false, "measure the ceiling alone")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.events < 1 || o.warmup < 1 || o.conns < 1 || o.rounds < 1 || o.paced < 1 || o.workers < 1 || o.size < minSize {
		return fmt.Errorf("-events, -warmup, -conns, -rounds, -paced and -concurrency must be at least 1, -size at least %d", minSize)
	}
	work, err := os.MkdirTemp(o.dir, "engine-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	targets, err := o.targets(ctx, work)
	if err != nil {
		return err
	}
	rep, err := measure(ctx, o, targets, work)
	if err != nil {
		return err
	}
	if o.jsonOut {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(rep)
	} else {
		err = rep.print(out, o)
	}
	if err != nil {
		return err
	}
	return rep.check()
}

// targets returns what is to be measured, the engine first.
func (o options) targets(ctx context.Context, work string) ([]target, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ceil := target{name: "ceiling", command: func(ctx context.Context, _ string, a addresses) (*exec.Cmd, error) {
		return exec.CommandContext(ctx, self, "ceiling", "-listen", a.in, "-sink", "http://"+a.sink+"/", "-concurrency", fmt.Sprint(o.workers)), nil
	}}
	if o.ceilOnly {
		return []target{ceil}, nil
	}
	bin := o.engine
	if bin == "" {
		bin = filepath.Join(work, "engine")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/engine")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building the engine: %w\n%s", err, b)
		}
	}
	engine := target{name: "engine", command: func(ctx context.Context, dir string, a addresses) (*exec.Cmd, error) {
		specs := filepath.Join(dir, "specs")
		if err := os.Mkdir(specs, 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(specs, "bench.yaml"), fmt.Appendf(nil, baseSpec, o.workers, a.sink), 0o600); err != nil {
			return nil, err
		}
		return exec.CommandContext(ctx, bin, "run", specs, "--data", filepath.Join(dir, "data"),
			"--listen", a.in, "--api", a.api, "--log-format", "json"), nil
	}}
	return []target{engine, ceil}, nil
}

// baseSpec is the base scenario: every event passes the filter.
const baseSpec = `apiVersion: engine/v1
kind: EventSource
metadata: {name: bench}
spec:
  webhook:
    in: {path: /in}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: bench}
spec:
  dependencies:
    - {name: ev, source: bench, event: in, when: data.total > 100}
  triggers:
    - name: call
      concurrency: %d
      http: {url: "http://%s/", method: POST}
`

// report is everything that was measured.
type report struct {
	// Rounds are the closed-loop rounds, Paced the fixed-rate one, by target.
	Rounds map[string][]result `json:"rounds"`
	Paced  map[string]result   `json:"paced,omitempty"`
	// Ratios are the end-to-end rates of engine / ceiling round by round, Ratio
	// their median.
	Ratios []float64 `json:"ratios,omitempty"`
	Ratio  float64   `json:"ratio,omitempty"`
	names  []string
}

// measure runs the rounds, alternating between the targets.
func measure(ctx context.Context, o options, targets []target, work string) (*report, error) {
	rep := &report{Rounds: map[string][]result{}, Paced: map[string]result{}}
	for _, t := range targets {
		rep.names = append(rep.names, t.name)
	}
	for i := range o.rounds {
		for _, t := range targets {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", i+1, o.rounds, t.name)
			r, err := t.round(ctx, o, work, o.events, 0)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			rep.Rounds[t.name] = append(rep.Rounds[t.name], r)
		}
		if len(targets) == 2 {
			last := func(k int) float64 { return rep.Rounds[targets[k].name][i].EndToEnd }
			rep.Ratios = append(rep.Ratios, last(0)/last(1))
		}
	}
	if len(rep.Ratios) > 0 {
		rep.Ratio = median(rep.Ratios)
	}
	if o.rate > 0 {
		for _, t := range targets {
			fmt.Fprintf(os.Stderr, "%.0f events/s: %s\n", o.rate, t.name)
			r, err := t.round(ctx, o, work, o.paced, o.rate)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			rep.Paced[t.name] = r
		}
	}
	return rep, nil
}

// check turns a broken promise into an error: a fast engine that loses events
// has not been measured.
func (rep *report) check() error {
	for name, rs := range rep.Rounds {
		for _, r := range append(slices.Clone(rs), rep.Paced[name]) {
			if r.Lost > 0 || r.Duplicated > 0 || r.Refused > 0 || r.Foreign > 0 {
				return fmt.Errorf("%s: %d lost, %d duplicated, %d refused, %d altered", name, r.Lost, r.Duplicated, r.Refused, r.Foreign)
			}
		}
	}
	return nil
}

func (rep *report) print(out io.Writer, o options) error {
	fmt.Fprintf(out, "closed loop: %d events, %d connections, %d bytes, median of %d rounds\n", o.events, o.conns, o.size, o.rounds)
	typical := map[string]result{}
	for name, rs := range rep.Rounds {
		typical[name] = typicalOf(rs)
	}
	if err := rep.table(out, typical); err != nil {
		return err
	}
	if len(rep.Ratios) > 0 {
		fmt.Fprintf(out, "engine/ceiling end to end: %.1f %% (rounds:", 100*rep.Ratio)
		for _, r := range rep.Ratios {
			fmt.Fprintf(out, " %.1f", 100*r)
		}
		fmt.Fprintln(out, ")")
	}
	if len(rep.Paced) > 0 {
		fmt.Fprintf(out, "\nfixed rate: %.0f events/s, %d events\n", o.rate, o.paced)
		return rep.table(out, rep.Paced)
	}
	return nil
}

func (rep *report) table(out io.Writer, by map[string]result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(label, format string, value func(result) float64) {
		fmt.Fprintf(w, "%s\t", label)
		var v []float64
		for _, n := range rep.names {
			v = append(v, value(by[n]))
			fmt.Fprintf(w, format+"\t", v[len(v)-1])
		}
		if len(v) == 2 && v[1] > 0 {
			fmt.Fprintf(w, "%.2f\t", v[0]/v[1])
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "\t")
	for _, n := range rep.names {
		fmt.Fprintf(w, "%s\t", n)
	}
	if len(rep.names) == 2 {
		fmt.Fprint(w, "ratio\t")
	}
	fmt.Fprintln(w)
	row("accepted/s", "%.0f", func(r result) float64 { return r.Accepted })
	row("end to end/s", "%.0f", func(r result) float64 { return r.EndToEnd })
	for i, p := range percentiles {
		row(fmt.Sprintf("p%g ms", p), "%.2f", func(r result) float64 { return r.Latency[i] })
	}
	row("max ms", "%.2f", func(r result) float64 { return r.Latency[len(percentiles)] })
	row("answer p50 ms", "%.2f", func(r result) float64 { return r.Answer[0] })
	row("answer p99 ms", "%.2f", func(r result) float64 { return r.Answer[2] })
	row("lost", "%.0f", func(r result) float64 { return float64(r.Lost) })
	row("duplicated", "%.0f", func(r result) float64 { return float64(r.Duplicated) })
	row("CPU s/1000 events", "%.4f", func(r result) float64 { return r.CPU })
	row("peak memory MiB", "%.0f", func(r result) float64 { return r.PeakMiB })
	return w.Flush()
}
