package fold

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sensors"
)

// key names the state of one correlation key of one sensor.
type key struct{ sensor, key string }

// entry is the state of one key in memory.
type entry struct {
	state  sensors.KeyState
	seen   uint64 // last event this state has seen
	wake   time.Time
	stored bool // STATE holds (or will hold) a value for it
	dirty  bool
}

// running is a sensor in force with what the fold needs beside it.
type running struct {
	Sensor
	stats    *stats
	subjects []string // subject in JOBS by trigger index
}

// session is the fold between a recovery and the next failure. All fields
// belong to the fold's goroutine, unless stated otherwise.
type session struct {
	d   *Dispatcher
	ctx context.Context
	log string // identity of EVENTS

	rules   *Rules
	index   *sensors.Index
	groups  []groupStats // by their number in the index
	running map[*sensors.Program]*running
	byName  map[string]*running

	keys   map[key]*entry
	wakes  wakeHeap
	now    time.Time // log time
	pos    uint64    // last event folded
	job    uint64    // JOBS sequence known to be below later firings
	jobLog string
	cpRev  uint64
	tombs  []string // STATE keys to delete with the next write; the committer's

	enqueued   map[string]struct{} // firings found in JOBS beyond the checkpoint
	recoverTo  uint64              // last position that left traces beyond the checkpoint
	end        uint64              // last event known to be stored
	gone       uint64              // last position that left traces and is not stored any more
	recovered  bool
	batch      *batch
	commits    chan *batch
	dirty      []key
	cursors    map[string]Cursor // by STATE key, since the last batch
	candidates []*sensors.Program
	deps       []int
	view       sensors.View
}

// batch is what one turn of the fold produced, on its way to the checkpoint.
type batch struct {
	position uint64
	time     time.Time
	spec     string
	states   map[string][]byte // by STATE key
	tombs    []string          // those of them to delete under the checkpoint
	urgent   bool              // do not wait for the checkpoint interval
	stored   chan struct{}     // closed when the checkpoint covers it

	mu      sync.Mutex
	pending int // firings not yet acknowledged, plus one while the fold adds
	done    chan struct{}
	lastJob uint64
	err     error
}

func newBatch() *batch {
	return &batch{pending: 1, done: make(chan struct{})}
}

func (b *batch) add() {
	b.mu.Lock()
	b.pending++
	b.mu.Unlock()
}

// ack takes one acknowledgement in; a zero Ack without error is the fold's own.
func (b *batch) ack(a bus.Ack, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && b.err == nil {
		b.err = err
	}
	b.lastJob = max(b.lastJob, a.Seq)
	if b.pending--; b.pending == 0 {
		close(b.done)
	}
}

// session recovers and folds until an error or the end of ctx.
func (d *Dispatcher) session(parent context.Context) error {
	// What is in flight when parent ends is still acknowledged and covered by
	// a last checkpoint, so the session's own context outlives it.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	defer cancel(nil)
	s := &session{d: d, ctx: ctx, keys: map[key]*entry{}, commits: make(chan *batch, 16)}
	if err := s.recover(parent); err != nil {
		return err
	}
	committed := make(chan struct{})
	go func() {
		defer close(committed)
		if err := s.commit(); err != nil {
			cancel(err)
		}
	}()
	err := s.fold(parent)
	close(s.commits)
	if err != nil {
		cancel(err)
	}
	<-committed
	if err == nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, context.Canceled) && parent.Err() != nil {
		err = nil
	}
	return err
}

// recover finds out where the fold stands: the checkpoint, the firings beyond
// it, the state of the keys.
func (s *session) recover(ctx context.Context) error {
	d := s.d
	cp, rev, err := readCheckpoint(ctx, d.o.Bus.State())
	if err != nil {
		return err
	}
	info, err := d.o.Bus.Events().Info(ctx)
	if err != nil {
		return fmt.Errorf("asking for the state of EVENTS: %w", err)
	}
	jinfo, err := d.o.Bus.Jobs().Info(ctx)
	if err != nil {
		return fmt.Errorf("asking for the state of JOBS: %w", err)
	}
	d.o.Cache.adopt(info.ID, info.Last)
	s.log, s.cpRev, s.pos, s.job, s.now, s.jobLog = info.ID, rev, cp.Event, cp.Job, cp.Time, jinfo.ID
	switch {
	case rev == 0:
		s.pos, s.job = 0, 0
	case cp.Log != info.ID:
		d.o.Alarm("log-exchanged", fmt.Sprintf("EVENTS is another log than before (%s, was %s): it is folded from its beginning; sensor state of the old one is dropped", info.ID, cp.Log))
		s.pos, s.now = 0, time.Time{}
	case cp.Event > info.Last:
		s.pos, s.gone = info.Last, cp.Event
	}
	s.end = info.Last
	if cp.JobLog != jinfo.ID || s.job > jinfo.Last {
		s.job = 0
	}
	if info.First > s.pos+1 {
		if rev != 0 && cp.Log == info.ID {
			d.o.Alarm("log-gap", fmt.Sprintf("%d events (%d to %d) were removed from EVENTS before they were folded", info.First-s.pos-1, s.pos+1, info.First-1))
		}
		s.pos = info.First - 1
	}
	if err := s.readJobs(ctx, jinfo); err != nil {
		return fmt.Errorf("reading JOBS from %d: %w", s.job+1, err)
	}
	d.mu.Lock()
	rules := d.rules
	d.mu.Unlock()
	s.use(rules)
	if err := s.loadKeys(ctx); err != nil {
		return fmt.Errorf("loading sensor state: %w", err)
	}
	if s.gone > 0 && cp.Log == info.ID {
		d.o.Alarm("log-shortened", fmt.Sprintf("EVENTS ends at %d, and events up to %d were folded: %d are missing, for example after a restore or a power loss; sensor state that came of them is dropped", s.end, s.gone, s.gone-s.end))
	}
	if cp.Event > s.pos && cp.Log == info.ID {
		// At once: what comes now takes the numbers of what is missing, and
		// must not be taken for folded after a crash.
		cp.Event = s.pos
		if err := s.storeCheckpoint(ctx, cp); err != nil {
			return err
		}
	}
	d.position.Store(s.pos)
	d.covered.Store(s.pos)
	d.o.Covered(s.pos)
	return nil
}

// isGone reports whether seq is beyond the end of EVENTS, so that the event
// with this number, when one comes, is another one.
func (s *session) isGone(ctx context.Context, seq uint64) (bool, error) {
	if seq <= s.end {
		return false, nil
	}
	info, err := s.d.o.Bus.Events().Info(ctx)
	if err != nil {
		return false, fmt.Errorf("asking for the state of EVENTS: %w", err)
	}
	if s.end = info.Last; seq <= s.end {
		return false, nil
	}
	s.gone = max(s.gone, seq)
	return true, nil
}

// readJobs notes the firings that are in JOBS beyond the checkpoint.
func (s *session) readJobs(ctx context.Context, info bus.LogInfo) error {
	s.enqueued = map[string]struct{}{}
	if info.Records == 0 || info.Last <= s.job {
		return nil
	}
	rd, err := s.d.o.Bus.Jobs().Read(ctx, s.job+1, "")
	if err != nil {
		return err
	}
	defer rd.Close()
	for at := s.job; at < info.Last; {
		// JOBS shrinks while it is read: its end may have been removed.
		wait, cancel := context.WithTimeout(ctx, 2*time.Second)
		recs, err := rd.Next(wait, 512)
		cancel()
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			return err
		}
		for _, r := range recs {
			at = r.Seq
			j, err := jobs.DecodeJob(r.Data)
			if err != nil || j.Redrive > 0 || j.Position <= s.pos {
				continue
			}
			if gone, err := s.isGone(ctx, j.Position); err != nil {
				return err
			} else if gone {
				continue
			}
			s.enqueued[j.Key] = struct{}{}
			s.recoverTo = max(s.recoverTo, j.Position)
		}
	}
	return nil
}

// loadKeys loads the state of all keys and the events they wait with.
func (s *session) loadKeys(ctx context.Context) error {
	var stale []string
	err := s.d.o.Bus.State().Scan(ctx, sensorPrefix, func(e bus.Entry) error {
		st, err := decodeStored(e.Value)
		if err != nil {
			s.d.o.Alarm("state-damaged", fmt.Sprintf("state %s: %v; it is dropped", e.Key, err))
			stale = append(stale, e.Key)
			return nil
		}
		r := s.byName[st.sensor]
		if r == nil || st.log != s.log || r.Program.StateFingerprint() != st.fingerprint {
			stale = append(stale, e.Key)
			return nil
		}
		state, err := sensors.DecodeKeyState(st.state)
		if err != nil {
			s.d.o.Alarm("state-damaged", fmt.Sprintf("state of sensor %s, key %q: %v; it is dropped", st.sensor, st.key, err))
			stale = append(stale, e.Key)
			return nil
		}
		if state.Empty() && st.seen <= s.pos { // a tombstone under the checkpoint
			stale = append(stale, e.Key)
			return nil
		}
		if gone, err := s.isGone(ctx, st.seen); err != nil {
			return err
		} else if gone {
			stale = append(stale, e.Key)
			return nil
		}
		s.keys[key{st.sensor, st.key}] = &entry{state: state, seen: st.seen, stored: true}
		s.recoverTo = max(s.recoverTo, st.seen)
		return nil
	})
	if err != nil {
		return err
	}
	for k, en := range s.keys {
		missing := 0
		var failed error
		en.state.Hydrate(func(seq uint64) *bus.Event {
			ev, err := s.d.o.Cache.Event(ctx, seq)
			if errors.Is(err, bus.ErrNotFound) {
				missing++
				return nil
			}
			if err != nil {
				failed = err
			}
			return ev
		})
		if failed != nil {
			return failed
		}
		if missing > 0 {
			s.d.o.Alarm("state-events-lost", fmt.Sprintf("sensor %s, key %q: %d waiting events are no longer stored", k.sensor, k.key, missing))
		}
		s.schedule(k, en, s.byName[k.sensor])
	}
	for _, k := range stale {
		if err := s.d.o.Bus.State().Delete(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// use puts rules in force in memory.
func (s *session) use(rules *Rules) {
	s.rules = rules
	s.running = make(map[*sensors.Program]*running, len(rules.Sensors))
	s.byName = make(map[string]*running, len(rules.Sensors))
	programs := make([]*sensors.Program, 0, len(rules.Sensors))
	partitions := s.d.o.Bus.Jobs().Partitions()
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, sn := range rules.Sensors {
		r := &running{Sensor: sn, stats: s.d.statsOf(sn.Name)}
		for _, name := range sn.Program.Triggers() {
			j := jobs.Job{Sensor: sn.Name, Trigger: name}
			r.subjects = append(r.subjects, j.Subject(partitions))
		}
		s.running[sn.Program], s.byName[sn.Name] = r, r
		programs = append(programs, sn.Program)
	}
	for _, st := range s.d.stats {
		st.settle()
	}
	s.index = sensors.NewIndex(programs)
	groups := s.index.Groups()
	s.groups = make([]groupStats, len(groups))
	for i, g := range groups {
		for _, m := range g.Members {
			st := s.running[m.Program].stats
			st.shares = append(st.shares, share{&s.groups[i], m.Dependency})
		}
	}
	s.d.rules = rules
}

// swap puts rules in force between two events. The checkpoint before it
// covers everything the old ones decided, the one after it names the new ones.
func (s *session) swap(rules *Rules) error {
	if err := s.barrier(); err != nil {
		return err
	}
	old := s.byName
	s.use(rules)
	dropped := map[string]int{}
	for k, en := range s.keys {
		was, is := old[k.sensor], s.byName[k.sensor]
		switch {
		case was == nil || is == nil || was.Program.StateFingerprint() != is.Program.StateFingerprint():
			dropped[k.sensor]++
			en.state = sensors.KeyState{}
		case was.Hash == is.Hash:
			continue
		default:
			en.state = is.Program.Adopt(en.state)
			s.schedule(k, en, is) // the window may have changed
		}
		s.touch(k, en)
	}
	for name, n := range dropped {
		s.d.log.Info("sensor state dropped: its dependencies changed or it was removed", "sensor", name, "keys", n)
	}
	return s.barrier()
}

// barrier waits until the checkpoint covers everything folded so far.
func (s *session) barrier() error {
	b := s.send(true)
	select {
	case <-b.stored:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// fold is the loop of the fold's goroutine. It returns nil when stop ends.
func (s *session) fold(stop context.Context) error {
	d := s.d
	rd, err := d.o.Bus.Events().Read(s.ctx, s.pos+1, "")
	if err != nil {
		return fmt.Errorf("reading EVENTS from %d: %w", s.pos+1, err)
	}
	defer rd.Close()
	s.batch = newBatch()
	defer func() { s.batch.ack(bus.Ack{}, nil) }()
	for {
		// Calls from outside interrupt the wait for events.
		ctx, cancel := context.WithCancel(stop)
		unhook := context.AfterFunc(s.ctx, cancel)
		d.mu.Lock()
		d.wake = cancel
		d.mu.Unlock()
		if s.pos >= s.recoverTo {
			s.endRecovery()
			for _, call := range d.takeCalls() {
				call(s)
			}
		}
		err := s.foldUntil(ctx, rd)
		unhook()
		cancel()
		if cause := context.Cause(s.ctx); cause != nil {
			return cause
		}
		if stop.Err() != nil {
			return s.barrier()
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
}

// endRecovery forgets what the recovery found beyond the checkpoint, after
// the last of it was folded again.
func (s *session) endRecovery() {
	if s.recovered {
		return
	}
	s.recovered = true
	s.d.setFailing(nil)
	s.d.ready.Store(true)
	for k, en := range s.keys {
		if en.state.Empty() {
			s.touch(k, en)
		}
	}
	s.send(false)
}

// foldUntil folds batch after batch until ctx ends or, during the recovery,
// its target is reached.
func (s *session) foldUntil(ctx context.Context, rd bus.Reader) error {
	recovering := s.pos < s.recoverTo
	for {
		recs, err := s.next(ctx, rd)
		if err != nil {
			return err
		}
		for i := range recs {
			s.event(&recs[i])
		}
		s.send(false)
		if recovering && s.pos >= s.recoverTo {
			return nil
		}
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
	}
}

// next waits for events, or for the next deadline; then it returns none.
func (s *session) next(ctx context.Context, rd bus.Reader) ([]bus.Record, error) {
	size := s.d.o.BatchSize
	wake, ok := s.nextWake()
	if !ok {
		return rd.Next(ctx, size)
	}
	timed, cancel := context.WithDeadline(ctx, wake)
	recs, err := rd.Next(timed, size)
	cancel()
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return recs, err
	}
	// The clock is past the deadline. It counts only when the log, asked now,
	// holds nothing that should be folded first.
	info, err := s.d.o.Bus.Events().Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.Last > s.pos {
		// What is there arrives at once, unless its end was removed by hand.
		timed, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		recs, err := rd.Next(timed, size)
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return recs, err
		}
	}
	s.deadlines(time.Now())
	return nil, nil
}

// event folds one event.
func (s *session) event(r *bus.Record) {
	d := s.d
	if r.Seq <= s.pos {
		return
	}
	if r.Seq > s.pos+1 && s.pos > 0 {
		d.o.Alarm("log-gap", fmt.Sprintf("%d events (%d to %d) were removed from EVENTS before they were folded", r.Seq-s.pos-1, s.pos+1, r.Seq-1))
	}
	if r.Time.After(s.now) {
		s.deadlines(r.Time)
		s.now = r.Time
	}
	s.pos = r.Seq
	ev, err := bus.DecodeEvent(*r)
	if err != nil {
		d.o.Alarm("event-unreadable", fmt.Sprintf("%v; no sensor sees it", err))
		return
	}
	if ev.Cursor != "" {
		if s.cursors == nil {
			s.cursors = map[string]Cursor{}
		}
		s.cursors[cursorKey(cursorPrefix, ev.EventSource, ev.EventName)] = Cursor{s.log, ev.Seq, ev.Cursor}
	}
	d.o.Cache.put(ev)
	s.view.Reset(ev)
	var undecided []sensors.GroupVerdict
	s.candidates, undecided = s.index.Lookup(&s.view, s.candidates[:0])
	for i := range undecided {
		s.groups[undecided[i].Group].count(undecided[i].Verdict)
	}
	wanted := false
	for _, p := range s.candidates {
		run := s.running[p]
		routing := p.Route(&s.view)
		run.stats.count(routing.Verdicts)
		if len(routing.Matches) == 0 {
			continue
		}
		wanted = true
		run.stats.matched.Add(1)
		s.match(run, ev, routing.Matches)
	}
	if !wanted {
		d.unmatched.Add(1)
	}
}

// match steps each correlation key an event belongs to, with all
// dependencies that want it for that key.
func (s *session) match(run *running, ev *bus.Event, matches []sensors.Match) {
	// A number may be given again after a restore; then the time differs, and
	// with it the firing key.
	id := s.log + "@" + strconv.FormatInt(ev.StoredAt.UnixNano(), 36)
	for i, m := range matches {
		first := true
		for _, o := range matches[:i] {
			if o.Key == m.Key {
				first = false
			}
		}
		if !first {
			continue
		}
		s.deps = s.deps[:0]
		for _, o := range matches[i:] {
			if o.Key == m.Key {
				s.deps = append(s.deps, o.Dep)
			}
		}
		s.step(run, sensors.Input{LogID: id, Key: m.Key, Event: ev, Deps: s.deps, Time: s.now})
	}
}

// step steps one key and publishes what it fires.
func (s *session) step(run *running, in sensors.Input) {
	k := key{run.Name, in.Key}
	en := s.keys[k]
	var state sensors.KeyState
	if en != nil {
		if in.Event != nil && en.seen >= in.Event.Seq {
			return // stored with this event already, before a crash
		}
		state = en.state
	}
	state, firings, verdicts := run.Program.Step(state, in)
	run.stats.count(verdicts)
	if en != nil || !state.Empty() {
		if en == nil {
			en = &entry{}
			s.keys[k] = en
		}
		en.state, en.seen = state, s.pos
		s.touch(k, en)
		s.schedule(k, en, run)
	}
	for i := range firings {
		s.fire(run, &firings[i])
	}
}

// fire publishes one firing to JOBS, unless it is there already.
func (s *session) fire(run *running, f *sensors.Firing) {
	if _, there := s.enqueued[f.Key]; there {
		return
	}
	run.stats.fired.Add(1)
	j := jobs.NewJob(run.Name, run.Hash, s.pos, f)
	b := s.batch
	b.add()
	err := s.d.o.Bus.Jobs().AppendAsync(s.ctx, bus.Record{Subject: run.subjects[f.TriggerIndex], Data: j.Encode(nil)}, func(a bus.Ack, err error) {
		if err == nil {
			s.d.o.Enqueued(j, a.Seq)
		}
		b.ack(a, err)
	})
	if err != nil {
		b.ack(bus.Ack{}, err)
	}
}

// touch marks a key as changed in this batch.
func (s *session) touch(k key, en *entry) {
	if !en.dirty {
		en.dirty = true
		s.dirty = append(s.dirty, k)
	}
}

// send hands the batch over to be committed and begins the next one.
func (s *session) send(urgent bool) *batch {
	b := s.batch
	b.position, b.time, b.spec, b.urgent = s.pos, s.now, s.rules.Hash, urgent
	if urgent {
		b.stored = make(chan struct{})
	}
	if n := len(s.dirty) + len(s.cursors); n > 0 {
		b.states = make(map[string][]byte, n)
		for _, k := range s.dirty {
			s.save(b, k)
		}
		s.dirty = s.dirty[:0]
		for name, c := range s.cursors {
			b.states[name] = c.encode()
		}
		clear(s.cursors)
	}
	s.batch = newBatch()
	s.d.position.Store(s.pos)
	s.d.eventTime.Store(s.now.UnixNano())
	b.ack(bus.Ack{}, nil)
	select {
	case s.commits <- b:
	case <-s.ctx.Done():
	}
	return b
}

// save encodes the state of a changed key. An empty one is stored as a
// tombstone, so that a recovery knows what it has seen, and removed when the
// checkpoint covers it.
func (s *session) save(b *batch, k key) {
	en := s.keys[k]
	en.dirty = false
	empty := en.state.Empty()
	if empty {
		delete(s.keys, k)
		if !en.stored {
			return
		}
	}
	en.stored = true
	st := storedKey{log: s.log, sensor: k.sensor, key: k.key, seen: en.seen, state: en.state.Append(nil)}
	if r := s.byName[k.sensor]; r != nil {
		st.fingerprint = r.Program.StateFingerprint()
	}
	name := stateKey(k)
	b.states[name] = st.encode()
	if empty {
		b.tombs = append(b.tombs, name)
	}
}

// commit takes batches in order: when their firings are acknowledged it
// stores the changed keys, then the checkpoint. What gathers meanwhile goes
// into the next one.
func (s *session) commit() error {
	var last time.Time
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for b := range s.commits {
		group := []*batch{b}
		urgent := b.urgent
		for wait := s.d.o.CheckpointEvery - time.Since(last); ; wait = s.d.o.CheckpointEvery - time.Since(last) {
			if urgent || wait <= 0 {
				break
			}
			timer.Reset(wait)
			select {
			case more, ok := <-s.commits:
				if !ok {
					urgent = true
					break
				}
				group = append(group, more)
				urgent = more.urgent
			case <-timer.C:
			}
		}
		if err := s.store(group); err != nil {
			return err
		}
		last = time.Now()
	}
	return nil
}

// store makes one checkpoint that covers group.
func (s *session) store(group []*batch) error {
	store := s.d.o.Bus.State()
	states := group[0].states
	var tombs []string
	published := false
	for i, b := range group {
		select {
		case <-b.done:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
		if b.err != nil {
			return fmt.Errorf("publishing firings: %w", b.err)
		}
		s.job = max(s.job, b.lastJob)
		published = published || b.lastJob > 0
		tombs = append(tombs, b.tombs...)
		if i == 0 || len(b.states) == 0 {
			continue
		}
		if states == nil {
			states = b.states
			continue
		}
		maps.Copy(states, b.states)
	}
	// Neither state nor checkpoint may survive a power loss without the
	// firings they say were published.
	if published {
		if err := s.d.o.Bus.Jobs().Sync(s.ctx); err != nil {
			return fmt.Errorf("publishing firings: %w", err)
		}
	}
	if err := s.storeKeys(store, states); err != nil {
		return fmt.Errorf("storing sensor state: %w", err)
	}
	s.tombs = tombs
	end := group[len(group)-1]
	if err := s.storeCheckpoint(s.ctx, checkpoint{Log: s.log, Event: end.position, Job: s.job, JobLog: s.jobLog, Time: end.time, Spec: end.spec}); err != nil {
		return err
	}
	s.d.covered.Store(end.position)
	s.d.o.Covered(end.position)
	for _, b := range group {
		if b.stored != nil {
			close(b.stored)
		}
	}
	return nil
}

func (s *session) storeCheckpoint(ctx context.Context, cp checkpoint) error {
	value, err := json.Marshal(cp)
	if err != nil {
		return err
	}
	rev, err := s.d.o.Bus.State().Update(ctx, checkpointKey, value, s.cpRev)
	if errors.Is(err, bus.ErrConflict) {
		return fmt.Errorf("storing the checkpoint: another engine folds this log, or an earlier write was answered late: %w", err)
	}
	if err != nil {
		return fmt.Errorf("storing the checkpoint: %w", err)
	}
	s.cpRev = rev
	// A job may leave JOBS for good only when the checkpoint is there for good.
	if err := s.d.o.Bus.State().Sync(ctx); err != nil {
		return fmt.Errorf("storing the checkpoint: %w", err)
	}
	return nil
}

func (s *session) storeKeys(store bus.Store, states map[string][]byte) error {
	if len(states) == 0 && len(s.tombs) == 0 {
		return nil
	}
	acks := newBatch()
	done := func(_ uint64, err error) { acks.ack(bus.Ack{}, err) }
	for k, v := range states {
		acks.add()
		if err := store.PutAsync(s.ctx, k, v, done); err != nil {
			acks.ack(bus.Ack{}, err)
		}
	}
	for _, k := range s.tombs {
		if _, reborn := states[k]; reborn {
			continue
		}
		acks.add()
		if err := store.DeleteAsync(s.ctx, k, done); err != nil {
			acks.ack(bus.Ack{}, err)
		}
	}
	acks.ack(bus.Ack{}, nil)
	select {
	case <-acks.done:
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	if acks.err != nil {
		return acks.err
	}
	// The checkpoint may go into another file than they.
	return store.Sync(s.ctx)
}

// wakeItem is a deadline of one key; it is void when the key's has changed.
type wakeItem struct {
	at time.Time
	k  key
}

type wakeHeap []wakeItem

func (h wakeHeap) Len() int { return len(h) }
func (h wakeHeap) Less(i, j int) bool {
	return cmp.Or(h[i].at.Compare(h[j].at), cmp.Compare(h[i].k.sensor, h[j].k.sensor), cmp.Compare(h[i].k.key, h[j].k.key)) < 0
}
func (h wakeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push and Pop are for container/heap.
func (h *wakeHeap) Push(x any) { *h = append(*h, x.(wakeItem)) }

// Pop is for container/heap.
func (h *wakeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// schedule notes when a key must be stepped by time.
func (s *session) schedule(k key, en *entry, run *running) {
	at, ok := run.Program.NextWake(en.state)
	if !ok {
		en.wake = time.Time{}
		return
	}
	if !at.Equal(en.wake) {
		en.wake = at
		heap.Push(&s.wakes, wakeItem{at, k})
	}
}

// nextWake is the earliest deadline that is still meant.
func (s *session) nextWake() (time.Time, bool) {
	for len(s.wakes) > 0 {
		w := s.wakes[0]
		if en := s.keys[w.k]; en != nil && en.wake.Equal(w.at) {
			return w.at, true
		}
		heap.Pop(&s.wakes)
	}
	return time.Time{}, false
}

// deadlines steps all deadlines up to until, in the order (deadline, sensor,
// key).
func (s *session) deadlines(until time.Time) {
	for {
		at, ok := s.nextWake()
		if !ok || at.After(until) {
			return
		}
		k := s.wakes[0].k
		heap.Pop(&s.wakes)
		s.keys[k].wake = time.Time{}
		if at.After(s.now) {
			s.now = at
		}
		if run := s.byName[k.sensor]; run != nil {
			s.step(run, sensors.Input{LogID: s.log, Key: k.key, Time: at})
		}
	}
}
