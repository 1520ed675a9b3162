// Command bench measures the built engine from outside, webhook → stored →
// sensor → stored job → HTTP function, next to the ceiling: the same HTTP in
// and out with nothing between but a channel, and next to other programs that
// do the same task. Each runs as a process of its own against the same
// generator and sink, in alternating rounds, so that what the machine does at
// the moment hits all of them. It must not import the engine.
//
//	go run ./test/bench                        # builds the engine, prints the tables
//	go run ./test/bench -run filter -rounds 5  # one scenario
//	go run ./test/bench -json                  # for machines
//	go run ./test/bench -peer node-red
//	go run ./test/bench -peer-cmd 'mine=exec ./mine "$LISTEN" "$SINK"'
//
// A closed loop, where every connection posts again when it was answered, gives
// the throughput; a fixed rate gives the latency, from sending the webhook to
// the arrival of the call. Figures are ratios between programs of one round,
// and their median over the rounds; they are compared with those kept.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// options are the flags.
type options struct {
	engine   string
	run      string
	events   int
	warmup   int
	conns    int
	size     int
	rounds   int
	rate     float64
	seconds  float64
	sensors  int
	backlog  int
	full     bool
	workers  int
	patience time.Duration
	calm     float64
	again    int
	dir      string
	jsonOut  bool
	kept     string
	publish  string
	from     string
	peers    list
	peerCmds list
	peerDir  string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
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
	fs.StringVar(&o.run, "run", "", "`scenarios` to run, separated by commas: filter, rate, slow, sensors, correlate, size, backlog, durability; default: all")
	fs.IntVar(&o.events, "events", 20_000, "events of a closed-loop round; heavier scenarios take a part of it")
	fs.IntVar(&o.warmup, "warmup", 3_000, "events before each measurement")
	fs.IntVar(&o.conns, "conns", 32, "connections that post")
	fs.IntVar(&o.size, "size", 256, "`bytes` of an event's body")
	fs.IntVar(&o.rounds, "rounds", 3, "rounds of each scenario but the backlog, which has one")
	fs.Float64Var(&o.rate, "rate", 1000, "events per second of the open loop")
	fs.Float64Var(&o.seconds, "seconds", 4, "`length` of an open loop")
	fs.IntVar(&o.sensors, "sensors", 10_000, "most sensors on one source")
	fs.IntVar(&o.backlog, "backlog", 100_000, "jobs that wait for a function that hangs")
	fs.BoolVar(&o.full, "full", false, "a backlog of 1,000,000 jobs")
	fs.IntVar(&o.workers, "concurrency", 64, "calls at the same time")
	fs.DurationVar(&o.patience, "patience", 15*time.Second, "how long nothing may arrive before the rest counts as lost")
	fs.Float64Var(&o.calm, "calm", 0.15, "`part` of all cores that other programs may take; a measurement they disturb more is repeated, and the calmest counts")
	fs.IntVar(&o.again, "again", 0, "how often a disturbed measurement is repeated")
	fs.StringVar(&o.dir, "dir", "", "`directory` for data, on the disk to measure; default: a temporary one")
	fs.BoolVar(&o.jsonOut, "json", false, "print JSON")
	fs.StringVar(&o.kept, "kept", "test/bench/ratios.json", "`file` of the kept ratios to compare with")
	fs.StringVar(&o.publish, "publish", "", "write the page and its picture into this `directory`, such as docs, and the kept ratios")
	fs.StringVar(&o.from, "from", "", "print what -json wrote into these `files`, separated by commas, instead of measuring")
	fs.Var(&o.peers, "peer", "`program` to compare with: node-red, which npm installs when it is not there; may be repeated")
	fs.Var(&o.peerCmds, "peer-cmd", "`NAME=COMMAND` of a program to compare with. The shell gets LISTEN (host:port), SINK (URL) and DIR; the program answers GET /ready with 2xx, and posts the body of each POST /in whose total is over 100 to SINK; may be repeated")
	fs.StringVar(&o.peerDir, "peer-dir", "", "`directory` where npm installs; default: one in the user's cache")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if min(o.events, o.warmup, o.conns, o.rounds, o.workers, o.sensors, o.backlog) < 1 || o.rate <= 0 || o.seconds <= 0 || o.size < minSize {
		return fmt.Errorf("counts, -rate and -seconds must be positive, -size at least %d", minSize)
	}
	if o.full {
		o.backlog = 1_000_000
	}
	var rep *report
	var err error
	if o.from != "" {
		rep, err = readReports(strings.Split(o.from, ","))
	} else {
		rep, err = o.measureAll(ctx)
	}
	if err != nil {
		return err
	}
	kept, err := readKept(o.kept)
	if err != nil {
		return err
	}
	if o.jsonOut {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(rep)
	} else {
		err = rep.print(out, kept)
	}
	if err == nil && o.publish != "" {
		err = rep.publish(o.publish, o.kept)
	}
	if err != nil {
		return err
	}
	return rep.check()
}

func (o options) measureAll(ctx context.Context) (*report, error) {
	work, err := os.MkdirTemp(o.dir, "engine-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	if o.engine == "" {
		o.engine = filepath.Join(work, "engine")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", o.engine, "./cmd/engine")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building the engine: %w\n%s", err, b)
		}
	}
	peers, err := o.peerTargets(ctx)
	if err != nil {
		return nil, err
	}
	scenarios, err := chosen(o.scenarios(peers), o.run)
	if err != nil {
		return nil, err
	}
	rep := &report{Machine: machineNow()}
	for _, s := range scenarios {
		m, err := o.measure(ctx, s, work)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		rep.Scenarios = append(rep.Scenarios, m)
	}
	return rep, nil
}

// measure runs the rounds of a scenario, each with all its attempts, every
// other one in reverse.
func (o options) measure(ctx context.Context, s scenario, work string) (*measured, error) {
	m := &measured{Name: s.name, Title: s.title, Load: loadNow(), Rounds: map[string][]result{}}
	for _, a := range s.attempts {
		for _, l := range a.lanes {
			m.Columns = append(m.Columns, l.column)
			if a.foreign {
				m.Foreign = append(m.Foreign, l.column)
			}
		}
	}
	for _, f := range s.figures {
		m.Figures = append(m.Figures, &value{Key: f.key, Text: f.text, Unit: f.unit, Budget: f.budget, Lower: f.lower})
	}
	rounds := o.rounds
	if s.rounds > 0 {
		rounds = s.rounds
	}
	for i := range rounds {
		one := map[string]result{}
		for k := range s.attempts {
			if i%2 == 1 {
				k = len(s.attempts) - 1 - k
			}
			a := s.attempts[k]
			fmt.Fprintf(os.Stderr, "%s, round %d of %d: %s\n", s.name, i+1, rounds, a.lanes[0].column)
			rs, err := a.calmest(ctx, o, work)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", a.lanes[0].column, err)
			}
			for j, l := range a.lanes {
				one[l.column] = rs[j]
				m.Rounds[l.column] = append(m.Rounds[l.column], rs[j])
			}
		}
		for k, f := range s.figures {
			m.Figures[k].Rounds = append(m.Figures[k].Rounds, f.of(one))
		}
	}
	for _, v := range m.Figures {
		v.Value = median(v.Rounds)
	}
	return m, nil
}

// calmest is a round that others left alone, or disturbed least. What must not
// happen at all counts in every one.
func (t attempt) calmest(ctx context.Context, o options, work string) ([]result, error) {
	best, err := t.round(ctx, o, work)
	for i := 0; err == nil && i < o.again && best[0].Others > o.calm; i++ {
		fmt.Fprintf(os.Stderr, "others took %.0f %% of the cores: again\n", 100*best[0].Others)
		var rs []result
		if rs, err = t.round(ctx, o, work); err != nil {
			break
		}
		if rs[0].Others < best[0].Others {
			best, rs = rs, best
		}
		for j := range best {
			best[j].addFaults(rs[j])
		}
	}
	return best, err
}

// table is a scenario's results for people: a row for each measure, a column
// for each lane.
func (m *measured) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range m.rows() {
		for _, c := range row {
			fmt.Fprintf(w, "%s\t", c)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}
