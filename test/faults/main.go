// Command faults breaks a running engine in every way we know of and checks
// what is left: it starts the built binary with specs, drives it over HTTP and
// keeps a ledger of the events it saw acknowledged; a function behind HTTP
// records the idempotency key of every call; and after the engine was stopped,
// the streams of its data directory are read and compared with both. It must
// not import the engine.
//
//	go run ./test/faults                    # every fault, as often as docs/reliability.md says
//	go run ./test/faults -run 'kill' -n 5   # some, five times each
//	go run ./test/faults -prove             # with the protections removed: every one must fail
//
// A protection is removed, or a moment made longer, by building the engine
// with a changed copy of one source file (go build -overlay); the tree is not
// touched.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

func main() {
	if helper() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	fs := flag.NewFlagSet("faults", flag.ContinueOnError)
	pick := fs.String("run", "", "only faults whose name matches this `regexp`")
	n := fs.Int("n", 0, "repetitions; 0: as many as each fault needs")
	short := fs.Bool("short", false, "few repetitions and short outages")
	asJSON := fs.Bool("json", false, "print JSON")
	page := fs.String("md", "", "`page` whose table is replaced by the results")
	prove := fs.Bool("prove", false, "remove the protections one by one: each time the fault must be seen to do harm")
	engine := fs.String("engine", "", "engine `binary`; built from ./cmd/engine when empty")
	dir := fs.String("dir", "", "`directory` for data and logs, kept; default: a temporary one")
	if err := fs.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*pick)
	if err != nil {
		return err
	}
	work := *dir
	if work == "" {
		if work, err = os.MkdirTemp("", "engine-faults-"); err != nil {
			return err
		}
		defer os.RemoveAll(work)
	} else if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	b, err := newBuilds(ctx, work, *engine)
	if err != nil {
		return err
	}
	var results []*result
	if *prove {
		results = proveAll(ctx, b, match, progress)
	} else {
		for _, f := range faults() {
			if !match.MatchString(f.name) {
				continue
			}
			results = append(results, runFault(ctx, f, options{builds: b, n: *n, short: *short, progress: progress}))
		}
	}
	if len(results) == 0 {
		return fmt.Errorf("no fault matches %q", *pick)
	}
	switch {
	case *asJSON:
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(results)
	case *prove:
		_, err = io.WriteString(out, proof(results))
	default:
		_, err = io.WriteString(out, table(results))
	}
	if err == nil && *page != "" {
		err = writePage(*page, results, *prove)
	}
	for _, r := range results {
		if len(r.Failures) > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %s", r.Fault, r.Failures[0]))
		}
	}
	return err
}

// faults is every fault, in the order of the table.
func faults() []fault {
	return []fault{
		{
			name: "kill-random", title: "kill -9 at random points under load, every third time again while it starts", n: 200, short: 3, run: killRandom,
			passes: "nothing acknowledged is lost; no firing enqueued twice; ready < 5 s; state of correlations equals a replay",
		},
		{
			name: "kill-enqueued", title: "kill -9 between enqueueing and checkpoint, started at once", n: 20, short: 2, run: killEnqueued,
			passes: "no loss; no firing enqueued twice; repeated calls have the same key",
		},
		{
			name: "kill-enqueued-late", title: "the same, started after the bus's dedup window", n: 5, short: 1, run: killEnqueuedLate,
			passes: "no loss; no firing enqueued twice",
		},
		{
			name: "kill-called", title: "kill -9 between a finished call and the checkpoint, started at once", n: 20, short: 2, run: killCalled,
			passes: "no firing enqueued twice; only interrupted calls come again, with the same key",
		},
		{
			name: "kill-called-late", title: "the same, started after the bus's dedup window", n: 5, short: 1, run: killCalledLate,
			passes: "no firing enqueued twice; only interrupted calls come again, with the same key",
		},
		{
			name: "log-recreated", title: "EVENTS deleted under a kept STATE while jobs of its events wait", n: 3, short: 1, run: logRecreated,
			passes: "alarm; every event of the new log is folded; jobs whose event is gone become dead letters, and are not called with another",
		},
		{
			name: "log-exchanged", title: "EVENTS of another engine under a kept STATE", n: 3, short: 1, run: logExchanged,
			passes: "alarm; every event of the new log is folded, from its beginning",
		},
		{
			name: "log-restored", title: "EVENTS of an older backup under a kept STATE", n: 3, short: 1, run: logRestored,
			passes: "alarm; every later event is folded, none takes another's idempotency key",
		},
		{
			name: "freeze", title: "SIGSTOP under load, SIGCONT 5 s later", n: 5, short: 1, run: freeze,
			passes: "no loss, no call twice; answers < 5 s after it goes on",
		},
		{
			name: "bus-away", title: "external bus killed under load, back 60 s later", n: 2, short: 1, run: busAway,
			passes: "503 with Retry-After meanwhile; < 10 log lines/min; no loss; recovers by itself",
		},
		{
			name: "disk-full", title: "disk full under load, space back 5 s later", n: 3, short: 1, run: diskFull,
			passes: "503 with Retry-After, no 2xx without storage; recovers ≤ 30 s after space is back, in the same process",
		},
		{
			name: "bus-restarted", title: "embedded server, or its store, goes down under load and is started again inside", n: 10, short: 4, run: busRestarted,
			passes: "503 meanwhile; no loss; no firing enqueued twice; recovers ≤ 30 s, in the same process",
		},
		{
			name: "power-cut", title: "power cut at random points and between each write and its sync, `--durability fsync`", n: 60, short: 0, run: powerCut,
			passes: "nothing acknowledged is lost; every firing is enqueued once, none for an event that is gone",
		},
		{
			name: "clock-steps", title: "clock +1 h, −1 h and to 1970 under load", n: 1, short: 0, run: clockSteps,
			passes: "no loss, no call twice, no storm of the ticker",
		},
		{
			name: "function-hangs", title: "function ignores SIGTERM and hangs, with a child that left its group", n: 3, short: 1, run: functionHangs,
			passes: "killed with all it started; retried, then dead-lettered with the reason; others keep running",
		},
		{
			name: "function-crashes", title: "function kills itself, or ends in an error", n: 20, short: 3, run: functionCrashes,
			passes: "attempts as the policy says, then dead-lettered with the signal or exit code",
		},
		{
			name: "function-floods", title: "function prints 200 MB", n: 3, short: 1, run: functionFloods,
			passes: "ends well, run marked truncated, RSS grows < 10 MB",
		},
		{
			name: "workers-killed", title: "processes of `python`, `node` and `exec` workers killed at random under load", n: 200, short: 10, run: workersKilled,
			passes: "nothing acknowledged is lost; hurt calls are repeated with the same key, each attempt is in the history; calls of others are made once",
		},
		{
			name: "function-beside", title: "function beside one that hangs, of the same kind, sensor and partition", n: 5, short: 1, run: functionBeside,
			passes: "called for everything meanwhile; rate ≥ 0.8 of that without",
		},
		{
			name: "kill-submitted", title: "kill -9 with calls in flight that were submitted by hand and through an `async` endpoint", n: 20, short: 3, run: killSubmitted,
			passes: "each call that was answered 202 is made and its run found; repeated ones have the same key",
		},
		{
			name: "poisoned-jobs", title: "jobs that kill their process or fail, one in four, concurrency 1, with and without `order: key`", n: 20, short: 3, run: poisonedJobs,
			passes: "all others are called before the first of them comes again; those as often as the policy says",
		},
		{
			name: "torn-specs", title: "torn, half-written and broken specs under load", n: 30, short: 3, run: tornSpecs,
			passes: "no request fails, no call of a broken version, last good version stays, the next good one takes force",
		},
		{
			name: "slow-clients", title: "500 clients with slow headers and slow bodies", n: 2, short: 1, run: slowClients,
			passes: "others are served as before; every slow one is cut off within its time-out",
		},
		{
			name: "forged-origin", title: "forged Host and Origin on the API", n: 1, short: 1, run: forgedOrigin,
			passes: "every one refused with 403",
		},
		{
			name: "secret-canary", title: "a planted secret, told back by functions", n: 1, short: 1, run: secretCanary,
			passes: "0 bytes of it in logs, API, metrics, history and the whole data directory",
		},
		{
			name: "second-engine", title: "second engine on the same data directory", n: 5, short: 1, run: secondEngine,
			passes: "refused < 1 s, names the pid, the first one is unharmed",
		},
		{
			name: "out-of-descriptors", title: "300 connections under ulimit -n 128", n: 2, short: 1, run: outOfDescriptors,
			passes: "no crash, no loss; serves again when they are gone",
		},
		{
			name: "memory-cap", title: "cgroup of 256 MiB, function stuck, backlog of 300,000 jobs", n: 1, short: 1, run: memoryCap,
			passes: "no OOM kill; nothing lost; the backlog is worked off",
		},
	}
}

// window is how long JOBS of the builds with a slow checkpoint remember message
// ids.
const window = 2 * time.Second
