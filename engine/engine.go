// Package engine owns what runs: it reconciles the specs with the running
// sources, sensors and functions, supervises them, and tells how they are. It
// knows the contracts of sources, functions and the bus, never a concrete
// type; these reach it as values.
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/endpoints"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/listen"
	"github.com/sensor-engine/engine/engine/reload"
	"github.com/sensor-engine/engine/engine/secrets"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// Options configures an [Engine]. Bus, Catalog, Paths and Logger are required.
type Options struct {
	// Bus is the durable bus; the caller opens it before and closes it after.
	Bus     bus.Bus
	Catalog Catalog
	// Paths are the files and directories with specs.
	Paths []string
	// Listen is the address where webhooks arrive, "" for none.
	Listen string
	Logger *slog.Logger
	// LookupEnv finds environment variables for Secrets, as os.LookupEnv does;
	// nil means none are set.
	LookupEnv func(string) (string, bool)
	// Masker learns the secret values in use; give Logger a handler that
	// writes through it. Nil means an own one.
	Masker *secrets.Masker
	// RemovalGrace is how long a resource absent from the files keeps
	// running; negative means the default of 5 s, 0 removes at once.
	RemovalGrace time.Duration
	// Poll is how often the files are read without a notification, default 10 s.
	Poll time.Duration
	// NoNotify turns file notifications off, so that only Poll is left.
	NoNotify bool
	// Retention of EVENTS; see [fold.Retention].
	Retention fold.Retention
	// Grace is how long running calls may take to end at a stop, default 10 s.
	Grace time.Duration
	// MaxLag is how far the fold may be behind while the engine is ready,
	// default 10 s.
	MaxLag time.Duration
	// Strict makes broken specs keep the engine from being ready.
	Strict bool
	// Data is the directory where functions keep what they made and want to find
	// again, such as installed dependencies; "" for none.
	Data string
	// Version is told in the status.
	Version string
}

// Engine is one running engine. Make it with [New] and let Run work.
type Engine struct {
	o     Options
	log   *slog.Logger
	start time.Time

	loader     specs.Loader
	compiler   *Compiler
	reconciler *reload.Reconciler
	watcher    *reload.Watcher
	secrets    *secrets.Resolver
	callees    *callees
	pool       *jobs.Pool
	fold       *fold.Dispatcher
	table      *listen.Table
	server     *listen.Server // nil without an address to listen on
	wanted     atomic.Bool    // a spec reads `request`
	reloads    chan reloadRequest
	unitsCtx   context.Context
	wakes      *wakes
	stored     []byte // the accepted specs as STATE has them

	logMu    sync.Mutex
	logName  string
	logAsked time.Time

	mu       sync.Mutex
	units    map[unitKey]*unit
	stats    map[unitKey]*SourceStats
	answers  map[string]*endpoints.Stats // by the name of the endpoint
	decision reload.Decision
	applied  *specs.Set
	alarms   map[string]Alarm
	reload   ReloadStatus
	ready    bool
}

// Alarm is something that needs a person.
type Alarm struct {
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
	Last    time.Time `json:"last"`
	Count   int       `json:"count"`
}

// alarmMemory is how long an alarm that does not come again is shown.
const alarmMemory = 24 * time.Hour

// ReloadStatus tells of the last reads of the files.
type ReloadStatus struct {
	// Applied is when a changed set was applied last, Generation how often.
	Applied    time.Time `json:"applied"`
	Generation int       `json:"generation"`
	// Refused is when an edit was last refused, in whole or in part.
	Refused time.Time `json:"refused,omitzero"`
	// Error is why the last apply failed, "" when it did not.
	Error string `json:"error,omitempty"`
}

type reloadRequest struct {
	prune bool
	done  chan reloadAnswer
}

type reloadAnswer struct {
	decision reload.Decision
	err      error
}

// handover is how long requests wait for a route whose source is replaced.
const handover = 2 * time.Second

// STATE key of the accepted specs.
const acceptedKey = "specs.accepted"

// New makes an engine; nothing runs yet.
func New(o Options) *Engine {
	if o.LookupEnv == nil {
		o.LookupEnv = func(string) (string, bool) { return "", false }
	}
	if o.Masker == nil {
		o.Masker = &secrets.Masker{}
	}
	if o.RemovalGrace < 0 {
		o.RemovalGrace = reload.DefaultGrace
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.MaxLag == 0 {
		o.MaxLag = 10 * time.Second
	}
	e := &Engine{
		o: o, log: o.Logger, start: time.Now(), reloads: make(chan reloadRequest),
		units: map[unitKey]*unit{}, stats: map[unitKey]*SourceStats{}, answers: map[string]*endpoints.Stats{}, alarms: map[string]Alarm{},
		applied: &specs.Set{Resources: map[specs.Ref]*specs.Resource{}},
		wakes:   newWakes(),
	}
	e.loader = o.Catalog.Loader()
	e.loader.Cache = &specs.Cache{}
	e.compiler = NewCompiler(o.Catalog)
	e.compiler.MaxEvent = o.Bus.MaxPayload() - headerRoom
	e.reconciler = reload.New(reload.Options{Check: e.compiler.Check, Grace: o.RemovalGrace, Settle: reload.DefaultSettle})
	e.watcher = reload.NewWatcher(reload.WatchOptions{Paths: o.Paths, Poll: o.Poll, NoNotify: o.NoNotify, Logger: o.Logger})
	e.secrets = secrets.NewResolver(o.LookupEnv, o.Masker)
	cache := fold.NewCache(o.Bus.Events(), 1<<13, 32<<20)
	e.pool = jobs.NewPool(jobs.Options{Bus: o.Bus, Events: cache, Logger: o.Logger, Alarm: e.raise})
	e.fold = fold.New(fold.Options{
		Bus: o.Bus, Cache: cache, Logger: o.Logger, Rules: &fold.Rules{},
		Covered: e.pool.Covered, Enqueued: e.pool.Offer, Alarm: e.raise,
	})
	e.callees = &callees{
		compiler: e.compiler, host: functionHost{o.Bus}, log: o.Logger, data: o.Data,
		secrets: e.secrets, mask: o.Masker.Mask, tried: make(chan struct{}, 1),
	}
	e.table = &listen.Table{Handover: handover, Logger: o.Logger}
	return e
}

// functionHost is what functions are given.
type functionHost struct{ bus bus.Bus }

// Publish stores an event durably.
func (h functionHost) Publish(ctx context.Context, ev *bus.Event) error {
	_, err := h.bus.Events().Append(ctx, ev.Record())
	return err
}

// raise notes an alarm and logs it when it is new.
func (e *Engine) raise(code, message string) {
	e.mu.Lock()
	a, known := e.alarms[code]
	if !known || time.Since(a.Last) > alarmMemory {
		a.Since = time.Now()
	}
	again := a.Message == message
	a.Code, a.Message, a.Count, a.Last = code, message, a.Count+1, time.Now()
	e.alarms[code] = a
	e.mu.Unlock()
	if !again {
		e.log.Error("alarm", "code", code, "what", message)
	}
}

// Run starts everything, downstream first, and works until ctx ends; then it
// stops upstream first, lets running calls end, and returns nil. An error says
// why it could not start.
func (e *Engine) Run(ctx context.Context) error {
	if e.o.Listen != "" {
		server, err := listen.Listen(ctx, e.o.Listen, e.table, listen.Options{Flag: "--listen", Logger: e.log})
		if err != nil {
			return err
		}
		defer server.Shutdown(context.WithoutCancel(ctx)) //nolint:errcheck // it was shut down in time, or the engine could not start
		e.mu.Lock()
		e.server = server
		e.mu.Unlock()
	}
	if err := e.restore(ctx); err != nil {
		return err
	}
	// The set accepted before the last stop decides about the events that
	// were stored then; the files' set takes over after it.
	old := e.compiler.rules(e.reconciler.Accepted())
	loaded, err := e.loader.Load(ctx, e.o.Paths...)
	if err != nil {
		return err
	}
	decision, err := e.reconciler.Next(loaded, time.Now(), false)
	if err != nil {
		return err
	}
	first := len(e.reconciler.Accepted().Resources) == 0
	if first {
		old = e.compiler.rules(decision.Set)
	}
	e.fold.SetRules(old)

	// Each stage has its own context: they end in reverse order.
	base := context.WithoutCancel(ctx)
	poolCtx, stopPool := context.WithCancel(base)
	foldCtx, stopFold := context.WithCancel(base)
	unitsCtx, stopUnits := context.WithCancel(base)
	defer stopPool()
	defer stopFold()
	defer stopUnits()
	e.unitsCtx = unitsCtx
	go e.wakes.run(unitsCtx)
	failed := make(chan error, 3)
	var down <-chan struct{} // the listener does not accept any more
	if e.server != nil {
		down = e.server.Done()
	}
	var poolDone, foldDone sync.WaitGroup

	e.secrets.Apply(decision.Set)
	defer e.callees.close()
	table, err := e.callees.table(decision.Set)
	if err != nil {
		return err
	}
	e.pool.Apply(table)
	poolDone.Go(func() { failed <- e.pool.Run(poolCtx, e.o.Grace) })
	foldDone.Go(func() { failed <- e.fold.Run(foldCtx) })
	foldDone.Go(func() { _ = e.fold.Purge(foldCtx, e.o.Retention) })
	var watching sync.WaitGroup
	watchCtx, stopWatch := context.WithCancel(base)
	defer stopWatch()
	watching.Go(func() { e.watcher.Run(watchCtx) })

	err = e.accept(ctx, decision)
	switch {
	case ctx.Err() != nil: // stopped while it started
		err = nil
	case err == nil:
		e.mu.Lock()
		e.ready = true
		e.mu.Unlock()
		e.log.Info("engine is running", "resources", len(decision.Set.Resources), "sources", e.countSources(), "took", time.Since(e.start).Round(time.Millisecond))
		err = e.loop(ctx, failed, down, decision.Again)
	}

	e.log.Info("engine is stopping")
	stopWatch()
	watching.Wait()
	if e.server != nil {
		shut, cancel := context.WithTimeout(base, e.o.Grace)
		_ = e.server.Shutdown(shut)
		cancel()
	}
	stopUnits()
	e.stopUnits(slices.Collect(maps.Values(e.units)))
	stopFold()
	foldDone.Wait()
	stopPool()
	poolDone.Wait()
	return err
}

// loop handles what happens until ctx ends.
func (e *Engine) loop(ctx context.Context, failed <-chan error, down <-chan struct{}, again time.Time) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	retry := time.Duration(0)
	for {
		wait := time.Hour
		if !again.IsZero() {
			wait = max(time.Until(again), 10*time.Millisecond)
		}
		if retry > 0 {
			wait = min(wait, retry)
		}
		timer.Reset(wait)
		var req reloadRequest
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if err != nil {
				return err
			}
		case <-down:
			return fmt.Errorf("the HTTP listener ended: %w", e.server.Err())
		case <-e.callees.tried:
			e.tried()
			continue
		case <-e.watcher.Changes():
		case <-timer.C:
		case req = <-e.reloads:
		}
		d, err := e.read(ctx, req.prune)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			retry = min(max(2*retry, time.Second), 30*time.Second)
		} else {
			retry, again = 0, d.Again
		}
		if req.done != nil {
			req.done <- reloadAnswer{d, err}
		}
	}
}

// read reads the files and applies what follows from them.
func (e *Engine) read(ctx context.Context, prune bool) (reload.Decision, error) {
	loaded, err := e.loader.Load(ctx, e.o.Paths...)
	if err != nil {
		return reload.Decision{}, err
	}
	d, err := e.reconciler.Next(loaded, time.Now(), prune)
	if err != nil {
		return d, err
	}
	if err := e.accept(ctx, d); err != nil {
		e.mu.Lock()
		e.reload.Error, e.reload.Refused = err.Error(), time.Now()
		e.mu.Unlock()
		e.log.Error("reload failed; what ran before goes on", "error", err)
		return d, err
	}
	return d, nil
}

// accept reports a decision, applies it and makes it the last good one.
func (e *Engine) accept(ctx context.Context, d reload.Decision) error {
	for _, diag := range d.NewDiagnostics {
		if diag.Severity == specs.Error {
			e.log.Error("spec refused; its last good version stays in force where there is one", "problem", diag.String())
		} else {
			e.log.Warn("spec", "problem", diag.String())
		}
	}
	for _, diag := range d.Recovered {
		e.log.Info("spec problem is gone", "problem", diag.String())
	}
	e.mu.Lock()
	if d.NewDiagnostics.HasErrors() {
		e.reload.Refused = time.Now()
	}
	first := e.reload.Generation == 0
	e.mu.Unlock()
	code := e.callees.outdated(d.Set)
	if changed := !d.Plan.Empty() || moved(e.applied, d.Set); first || changed || len(code) > 0 {
		begin := time.Now()
		if err := e.apply(ctx, d.Set, first); err != nil {
			return err
		}
		e.reconciler.Accept(d)
		trials := e.callees.onTrial()
		tried := !first && !changed && !slices.ContainsFunc(code, func(name string) bool { return trials[name] == nil })
		e.mu.Lock()
		e.reload.Error = ""
		if !tried { // what is on trial is not in force
			e.reload.Applied = time.Now()
			e.reload.Generation++
		}
		e.mu.Unlock()
		if !first && !tried {
			changes := strings.Join(strings.Fields(d.Plan.String()), " ")
			if d.Plan.Empty() && len(code) > 0 {
				changes = "files of " + strings.Join(code, ", ")
			}
			e.log.Info("reload applied", "changes", changes, "took", time.Since(begin).Round(time.Microsecond))
		}
	}
	if err := e.store(ctx); err != nil {
		e.log.Warn("the accepted specs could not be stored; a restart may not know the last good version", "error", err)
	}
	e.mu.Lock()
	e.decision = d
	e.mu.Unlock()
	return nil
}

// moved reports whether a resource is now in another directory: paths in it
// are relative to that.
func moved(was, is *specs.Set) bool {
	for ref, r := range is.Resources {
		if old := was.Resources[ref]; old != nil && filepath.Dir(old.Pos.File) != filepath.Dir(r.Pos.File) {
			return true
		}
	}
	return false
}

// apply makes set run: functions first, then the fold, then the sources. The
// first time, sources do not wait for the fold, which may have much to recover:
// what they store meanwhile is in the log.
func (e *Engine) apply(ctx context.Context, set *specs.Set, first bool) error {
	e.secrets.Apply(set)
	table, err := e.callees.table(set)
	if err != nil {
		return err
	}
	rules := e.compiler.rules(set)
	e.pool.Apply(table)
	swapped := e.fold.BeginSwap(rules)
	if !first {
		if err := swapped(ctx); err != nil {
			return err
		}
	}
	wanted := e.callees.needRequest(set)
	for _, s := range rules.Sensors {
		wanted = wanted || s.Program.NeedsRequest()
	}
	e.wanted.Store(wanted)
	e.applyUnits(set)
	if first {
		e.awaitSettled(ctx, 10*time.Second)
		e.table.Open()
		if err := swapped(ctx); err != nil {
			return err
		}
	}
	e.compiler.forget(set)
	e.watcher.Include(e.compiler.files(set))
	e.mu.Lock()
	e.applied = set
	e.mu.Unlock()
	return nil
}

// applyUnits starts, restarts and stops sources and endpoints so that those of
// set run.
func (e *Engine) applyUnits(set *specs.Set) {
	type wish struct {
		ev   specs.SourceEvent // of a source
		hash string
		dir  string
	}
	wishes := map[unitKey]wish{}
	for ref, r := range set.Resources {
		if _, ok := r.Spec.(*specs.Endpoint); ok {
			wishes[endpointKey(ref.Name)] = wish{hash: endpointHash(set, r), dir: filepath.Dir(r.Pos.File)}
		}
		if es, ok := r.Spec.(*specs.EventSource); ok {
			for _, ev := range es.Events {
				hash := []string{set.HashOfEvent(ev)}
				for _, u := range ev.Uses { // paths in them are relative to their files
					if used := set.Resources[u]; used != nil {
						hash = append(hash, filepath.Dir(used.Pos.File))
					}
				}
				wishes[unitKey{ref.Name, ev.Name}] = wish{ev, strings.Join(hash, " "), filepath.Dir(r.Pos.File)}
			}
		}
	}
	// Only this goroutine changes the map; the lock is for those who look.
	units := maps.Clone(e.units)
	var stopping, replaced, starting []*unit
	for k, u := range units {
		w, ok := wishes[k]
		if ok && w.hash == u.hash && w.dir == u.dir {
			continue
		}
		delete(units, k)
		f := e.o.Catalog.Sources.Lookup(u.typ)
		if ok && (k.isEndpoint() || w.ev.Type == u.typ && f.Routes != nil && !f.Single) {
			// Its routes pass to the new one without a gap: the old one ends
			// after the new one has them.
			replaced = append(replaced, u)
		} else {
			stopping = append(stopping, u)
		}
	}
	e.stopUnits(stopping)
	e.mu.Lock()
	for k, w := range wishes {
		if units[k] != nil {
			continue
		}
		if k.isEndpoint() {
			units[k] = e.newEndpoint(k, w.hash, w.dir, set)
		} else {
			units[k] = e.newSource(k, w.ev, w.hash, w.dir, set)
		}
		starting = append(starting, units[k])
	}
	for k := range e.stats {
		if units[k] == nil {
			delete(e.stats, k)
		}
	}
	for name := range e.answers {
		if units[endpointKey(name)] == nil {
			delete(e.answers, name)
		}
	}
	e.units = units
	e.mu.Unlock()
	for _, u := range starting {
		u.start(e.unitsCtx, e.wakes)
	}
	for _, old := range replaced {
		units[old.key].awaitReady(time.Second)
	}
	e.stopUnits(replaced)
}

// newSource makes the unit of one event. mu is held.
func (e *Engine) newSource(k unitKey, ev specs.SourceEvent, hash, dir string, set *specs.Set) *unit {
	f := e.o.Catalog.Sources.Lookup(ev.Type)
	log := e.log.With("source", k.source, "event", k.event, "type", ev.Type)
	u := newUnit(k, "source", hash, dir, log)
	u.typ = ev.Type
	st := e.stats[k]
	if st == nil {
		st = &SourceStats{}
		e.stats[k] = st
	}
	at := env(set, k.source, dir, ev)
	if e.server != nil {
		at.Base = "http://" + listen.Reachable(e.server.Addr())
	}
	u.make = func() (sources.Source, error) { return f.Make(ev.Config, at) }
	u.routed = f.Routes != nil && len(f.Routes(ev.Config, at)) > 0
	u.details = func(now time.Time) []sources.Detail {
		if f.Describe == nil {
			return nil
		}
		return f.Describe(ev.Config, at, now)
	}
	// A checked set compiles.
	intake, _ := sources.CompileIntake(&ev.Intake, "")
	u.host = &host{
		key: k, defaultType: f.DefaultType, ceSource: "/" + k.source + "/" + k.event, push: f.Push,
		bus: e.o.Bus, routes: e.table, secret: e.secrets.Secret, wanted: &e.wanted, log: log, stats: st,
		ready: u.isReady, intake: intake, limit: limiter(ev.Intake.RateLimit),
		position: position{key: k, bus: e.o.Bus, log: e.logID, out: log},
	}
	return u
}

// limiter is the token bucket of a spec, nil for none.
func limiter(r *specs.RateLimit) *rate.Limiter {
	if r == nil {
		return nil
	}
	per, burst := r.Per.D(), r.Burst
	if per == 0 {
		per = time.Second
	}
	if burst == 0 {
		burst = r.Events
	}
	return rate.NewLimiter(rate.Limit(float64(r.Events)/per.Seconds()), burst)
}

// logIDFor is how long the identity of EVENTS is remembered, so that thousands
// of sources that start together ask for it once.
const logIDFor = time.Second

// logID returns the identity of EVENTS.
func (e *Engine) logID(ctx context.Context) (string, error) {
	e.logMu.Lock()
	defer e.logMu.Unlock()
	if time.Since(e.logAsked) < logIDFor {
		return e.logName, nil
	}
	info, err := e.o.Bus.Events().Info(ctx)
	if err != nil {
		return "", err
	}
	e.logName, e.logAsked = info.ID, time.Now()
	return e.logName, nil
}

// awaitSettled waits until every source with routes was ready or failed once,
// so that nobody is told that a route does not exist before its source has it.
func (e *Engine) awaitSettled(ctx context.Context, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, u := range e.units {
		if !u.routed {
			continue
		}
		select {
		case <-u.settled:
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		}
	}
}

// stopUnits ends units at the same time and waits for them.
func (e *Engine) stopUnits(units []*unit) {
	var wg sync.WaitGroup
	for _, u := range units {
		wg.Go(func() { u.stop(10 * time.Second) })
	}
	wg.Wait()
}

func (e *Engine) countSources() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for k := range e.units {
		if !k.isEndpoint() {
			n++
		}
	}
	return n
}

// restore takes the set accepted before the last stop from STATE.
func (e *Engine) restore(ctx context.Context) error {
	entry, err := e.o.Bus.State().Get(ctx, acceptedKey)
	if errors.Is(err, bus.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the accepted specs: %w", err)
	}
	lost, err := e.reconciler.Restore(entry.Value, e.loader.LoadSource)
	if err != nil {
		e.raise("accepted-damaged", fmt.Sprintf("the last good specs in STATE cannot be read and are not used: %v", err))
	}
	for _, d := range lost {
		e.raise("accepted-lost", "a last good spec in STATE cannot be used: "+d.String())
	}
	return nil
}

// store keeps the accepted set in STATE when it, or a place in it, changed.
func (e *Engine) store(ctx context.Context) error {
	data, err := e.reconciler.Encode()
	if err != nil || bytes.Equal(data, e.stored) {
		return err
	}
	if _, err = e.o.Bus.State().Put(ctx, acceptedKey, data); err == nil {
		e.stored = data
	}
	return err
}

// Reload reads the files now and returns what followed. With prune, absent
// resources nothing uses are removed at once, whatever guard holds them. It waits
// until new versions of functions have started, or for ten seconds; what keeps
// them from it is among the diagnostics.
func (e *Engine) Reload(ctx context.Context, prune bool) (reload.Decision, error) {
	req := reloadRequest{prune, make(chan reloadAnswer, 1)}
	select {
	case e.reloads <- req:
	case <-ctx.Done():
		return reload.Decision{}, ctx.Err()
	}
	select {
	case a := <-req.done:
		if a.err == nil {
			a.decision.Diagnostics = append(slices.Clone(a.decision.Diagnostics), e.callees.awaitTrials(ctx)...).Sort()
		}
		return a.decision, a.err
	case <-ctx.Done():
		return reload.Decision{}, ctx.Err()
	}
}

// Emit stores an event by hand. What is empty is filled in: the id, the time,
// and the pseudo source `_emit` with the event's type as its name.
func (e *Engine) Emit(ctx context.Context, ev *bus.Event) (bus.Ack, error) {
	if ev.EventSource == "" {
		ev.EventSource, ev.EventName = bus.SourceEmit, ev.Type
	}
	if ev.ID == "" {
		ev.ID = sources.NewID()
	}
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	return e.o.Bus.Events().Append(ctx, ev.Record())
}

// Addr is the address where webhooks arrive, with the port that was taken;
// "" before Run has opened it or when there is none.
func (e *Engine) Addr() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return ""
	}
	return e.server.Addr()
}

// Routes returns the HTTP routes that are served, by owner
// ("<EventSource>/<event>", "Endpoint/<name>").
func (e *Engine) Routes() map[string][]sources.Route { return e.table.Routes() }

// Bus is the bus the engine works on.
func (e *Engine) Bus() bus.Bus { return e.o.Bus }
