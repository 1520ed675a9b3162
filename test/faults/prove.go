package main

import (
	"context"
	"io"
	"regexp"
)

// removal is a protection that is taken out of the engine, and the fault that
// must notice.
type removal struct {
	fault string
	n     int
	long  bool // the fault notices only in its long form
	patch
}

// removals is at least one protection for each fault that has some of its own.
func removals() []removal {
	one := func(fault string, n int, name, file, old, new string) removal {
		return removal{fault: fault, n: n, patch: patch{name, []edit{{file, old, new}}}}
	}
	long := func(r removal) removal {
		r.long = true
		return r
	}
	return []removal{
		one("kill-random", 20, "a webhook answers before its event is stored", "sources/webhook/webhook.go",
			"h.host.Emit(r.Context(), one)", "h.host.EmitAsync(r.Context(), one, func(error) {})"),
		one("kill-enqueued", 3, "a recovery does not look for firings in JOBS", "engine/fold/lane.go",
			"if _, there := l.s.enqueued[f.Key]; there {", "if _, there := l.s.enqueued[f.Key]; there && f.Key == \"\" {"),
		one("kill-enqueued-late", 2, "instead of that, the bus's dedup window is relied on", "engine/fold/lane.go",
			"if _, there := l.s.enqueued[f.Key]; there {", "if _, there := l.s.enqueued[f.Key]; there && time.Since(f.Time) < 2*time.Second {"),
		one("kill-called", 3, "a finished job leaves JOBS before the checkpoint covers it", "engine/jobs/pool.go",
			"	if p.gate.pass(t) {", "	if true {"),
		one("kill-called-late", 2, "the same", "engine/jobs/pool.go",
			"	if p.gate.pass(t) {", "	if true {"),
		one("log-recreated", 1, "the identity of the log is not compared", "engine/fold/session.go",
			"	case cp.Log != info.ID:", "	case cp.Log != info.ID && rev == 0:"),
		one("log-recreated", 1, "a job is called with whatever event has the number now", "engine/jobs/queue.go",
			"if err == nil && !j.Time.IsZero() && ev.StoredAt.After(j.Time) {", "if false {"),
		one("log-exchanged", 1, "the identity of the log is not compared", "engine/fold/session.go",
			"	case cp.Log != info.ID:", "	case cp.Log != info.ID && rev == 0:"),
		one("log-restored", 1, "firing keys do not know when their event was stored", "engine/evaluate/evaluate.go",
			"strconv.FormatInt(ev.StoredAt.UnixNano(), 36)", "strconv.FormatInt(0, 36)"),
		one("bus-away", 1, "the client gives up after one try to reconnect", "bus/jetstream/bus.go",
			"nats.MaxReconnects(-1)", "nats.MaxReconnects(1)"),
		one("bus-away", 1, "a 503 does not say when to come again", "sources/webhook/webhook.go",
			`"the event could not be stored, try again", Retry: "1"}`, `"the event could not be stored, try again", Retry: ""}`),
		{fault: "disk-full", n: 1, patch: patch{"no watermark before the disk is full, and a broken store is not opened again", []edit{
			{"bus/jetstream/disk.go", "func (d *disk) low() string {\n", "func (d *disk) low() string {\n\tif d.dir != \"\" {\n\t\treturn \"\"\n\t}\n"},
			{"bus/jetstream/server.go", "func (e *embedded) broken() string {\n", "func (e *embedded) broken() string {\n\tif e != nil {\n\t\treturn \"\"\n\t}\n"},
		}}},
		one("bus-restarted", 2, "nobody looks whether the embedded server can store", "bus/jetstream/server.go",
			"func (e *embedded) broken() string {\n", "func (e *embedded) broken() string {\n\tif e != nil {\n\t\treturn \"\"\n\t}\n"),
		one("power-cut", 40, "JOBS are not synced before the checkpoint that covers them", "engine/fold/session.go",
			"if err := s.d.o.Bus.Jobs().Sync(s.ctx); err != nil {", "if err := s.ctx.Err(); err != nil {"),
		one("power-cut", 40, "the state of keys is not synced before the checkpoint", "engine/fold/session.go",
			"	return store.Sync(s.ctx)\n", "	return nil\n"),
		one("power-cut", 40, "the checkpoint is not synced before jobs leave JOBS", "engine/fold/session.go",
			"	if err := s.d.o.Bus.State().Sync(ctx); err != nil {", "	if err := ctx.Err(); err != nil {"),
		one("power-cut", 40, "a block that was removed or replaced too early is not restored", "bus/jetstream/durability.go",
			"if err := restoreBlocks(b.o, lg.name); err != nil {", "if err := error(nil); err != nil {"),
		one("freeze", 2, "a job counts as unfinished after a second without a sign of life", "bus/jetstream/queue.go",
			"AckWait: q.b.o.RedeliverAfter,", "AckWait: time.Second,"),
		one("clock-steps", 1, "the ticker follows the wall clock", "sources/ticker/ticker.go",
			"	start := time.Now()\n	// Round", "	start := time.Now().Round(0)\n	// Round"),
		one("function-hangs", 1, "processes that left the group are not looked for", "triggers/exec/exec.go",
			`if (interrupted || errors.Is(p.Err(), exec.ErrWaitDelay)) && c.Key != "" {`, `if c.Key == "none" {`),
		one("function-crashes", 2, "one attempt too many", "engine/jobs/queue.go",
			"j.Attempt >= spec.Policy.Attempts", "j.Attempt > spec.Policy.Attempts"),
		one("function-floods", 1, "output is kept whole", "triggers/program/program.go",
			"n := min(len(p), w.Limit-len(w.Kept))", "n := len(p)"),
		one("workers-killed", 20, "a call whose process was killed counts as made", "triggers/worker/worker.go",
			"		return reply{Logs: a.Logs}, false, w.failure(err, a.Logs)", "		return reply{Logs: a.Logs}, false, nil"),
		long(one("function-beside", 1, "any number of jobs is kept in memory for one trigger", "engine/jobs/queue.go",
			"	if part.triggers.Load() > 1 && len(part.inflight) > limit/2 &&", "	if part.triggers.Load() > 1<<20 && len(part.inflight) > limit/2 &&")),
		one("kill-submitted", 3, "a call is accepted before it is stored", "engine/jobs/direct.go",
			"	ack, err := p.o.Bus.Jobs().Append(ctx, rec)\n	if err == nil {",
			"	var ack bus.Ack\n	err = ctx.Err()\n	time.AfterFunc(100*time.Millisecond, func() { _, _ = p.o.Bus.Jobs().Append(context.Background(), rec) })\n	if err == nil {"),
		one("poisoned-jobs", 3, "a call that failed is repeated in its slot", "engine/jobs/queue.go",
			"		p.park(t, q, WhyRetry)\n	}\n}", "		time.Sleep(wait)\n		q.run(t)\n	}\n}"),
		one("torn-specs", 2, "half-written files are taken for a removal, at once", "cmd/engine/run.go",
			"removalGrace: durationFlag(5 * time.Second)", "removalGrace: durationFlag(0)"),
		long(one("slow-clients", 1, "no time-out for headers and bodies", "engine/listen/server.go",
			"ReadHeaderTimeout: or(o.HeaderTimeout, 10*time.Second),\n			ReadTimeout:       or(o.ReadTimeout, 30*time.Second),",
			"ReadHeaderTimeout: or(o.HeaderTimeout, 10*time.Hour),\n			ReadTimeout:       or(o.ReadTimeout, 30*time.Hour),")),
		one("forged-origin", 1, "the Host header is not looked at", "engine/api/guard.go",
			"if !g.host(r.Host) && !g.hasToken(r) {", "if false {"),
		one("forged-origin", 1, "the Origin header is not looked at", "engine/api/guard.go",
			`if origin == "" {`, "if true {"),
		one("secret-canary", 1, "secrets are not masked", "engine/secrets/masker.go",
			"	if t == nil {\n		return s\n	}\n	at, n := t.find(s, 0)", "	if true {\n		return s\n	}\n	at, n := t.find(s, 0)"),
		one("second-engine", 1, "the data directory is not locked", "bus/lock/lock_unix.go",
			"err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)", "err := error(nil)"),
		one("out-of-descriptors", 1, "a connection that cannot be accepted is the end of the listener", "$GOROOT/src/net/http/server.go",
			"if ne, ok := err.(net.Error); ok && ne.Temporary() {", "if ne, ok := err.(net.Error); ok && ne.Temporary() && tempDelay < 0 {"),
		long(one("memory-cap", 1, "any number of jobs is taken into memory", "engine/jobs/pool.go",
			"o.MaxOutstanding = 1024", "o.MaxOutstanding = 1 << 20")),
	}
}

// proveAll takes the protections out one by one. A fault that notices has
// failures; here the failure is that it has none.
func proveAll(ctx context.Context, b *builds, match *regexp.Regexp, progress io.Writer) (results []*result) {
	all := faults()
	for _, r := range removals() {
		if !match.MatchString(r.fault) {
			continue
		}
		for _, f := range all {
			if f.name != r.fault {
				continue
			}
			f.title = "without: " + r.name
			res := runFault(ctx, f, options{builds: b, n: r.n, short: !r.long, patch: &r.patch, progress: progress})
			res.Removed, res.Seen = r.name, res.Failures
			res.Failures = nil
			if len(res.Seen) == 0 && res.Skipped == "" {
				res.Failures = []string{"it does not notice that " + r.name}
			}
			results = append(results, res)
		}
	}
	return results
}
