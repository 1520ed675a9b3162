package fold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sensors"
)

// session is the fold between a recovery and the next failure. All fields
// belong to the fold's goroutine, unless stated otherwise.
type session struct {
	d   *Dispatcher
	ctx context.Context
	log string // identity of EVENTS

	rules *Rules
	main  *lane
	lanes []*lane          // those behind
	place map[string]*lane // of the sensors that are behind, by name
	turn  int              // the lane that folded last
	moved bool             // something is to be stored
	// standings are where the lanes behind stand, but for what is untold.
	standings []standing
	untold    bool

	// While a lane is behind, the main one is read for on another goroutine:
	// rest is what it has still to fold, asked what is on its way.
	rest    []bus.Record
	asked   chan answer
	slices  time.Duration // how long a lane behind folds the next time
	readCtx context.Context
	readers sync.WaitGroup
	pokes   chan struct{} // a lane may have something to do
	watch   watchdog

	job    uint64 // JOBS sequence known to be below later firings
	jobLog string
	cpRev  uint64
	tombs  []string // tombstones to delete with the next write; the committer's
	stones tombstones

	enqueued  map[string]struct{} // firings found in JOBS beyond the checkpoint
	lastFound uint64              // the last of the firings found in JOBS
	decided   map[string]uint64   // by sensor, the last position whose evictions were decided before
	end       uint64              // last event known to be stored
	gone      uint64              // last position that left traces and is not stored any more
	changed   bool                // the rules are others than those of the checkpoint
	force     map[string]Force    // since when the sensors are in force, as far as that is known
	began     bool                // the log is folded from its beginning
	recovered bool
	batch     *batch
	commits   chan *batch
	cursors   map[string]Cursor // by STATE key, since the last batch
}

// batch is what one turn of the fold produced, on its way to the checkpoint.
type batch struct {
	position uint64
	time     time.Time
	spec     string
	epoch    uint64            // the lowest of sensor state that counts
	behind   []standing        // where those stand that are not at position
	floor    uint64            // the first event that lanes behind are about to fold, 0 for none
	found    uint64            // a job found by the recovery, up to which all are covered
	states   map[string][]byte // by STATE key
	evicted  []evicted
	tombs    []string      // tombstones to delete under the checkpoint
	urgent   bool          // do not wait for the checkpoint interval
	stored   chan struct{} // closed when the checkpoint covers it

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

// put adds what is stored under a key of STATE.
func (b *batch) put(key string, value []byte) {
	if b.states == nil {
		b.states = map[string][]byte{}
	}
	b.states[key] = value
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
	s := &session{d: d, ctx: ctx, decided: map[string]uint64{}, commits: make(chan *batch, 16), pokes: make(chan struct{}, 1)}
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
	if err := settleJobs(ctx, d.o.Bus.Jobs()); err != nil {
		return err
	}
	jinfo, err := d.o.Bus.Jobs().Info(ctx)
	if err != nil {
		return fmt.Errorf("asking for the state of JOBS: %w", err)
	}
	d.o.Cache.adopt(info.ID, info.Last)
	now := cp.Time
	pos := cp.Event
	s.log, s.cpRev, s.job, s.jobLog = info.ID, rev, cp.Job, jinfo.ID
	switch {
	case rev == 0:
		pos, s.job = 0, 0
	case cp.Log != info.ID:
		d.o.Alarm("log-exchanged", fmt.Sprintf("EVENTS is another log than before (%s, was %s): it is folded from its beginning; sensor state of the old one is dropped", info.ID, cp.Log))
		pos, now = 0, time.Time{}
	case cp.Event > info.Last:
		pos, s.gone = info.Last, cp.Event
	}
	s.end = info.Last
	if cp.JobLog != jinfo.ID || s.job > jinfo.Last {
		s.job = 0
	}
	if info.First > pos+1 {
		if rev != 0 && cp.Log == info.ID {
			d.o.Alarm("log-gap", fmt.Sprintf("%d events (%d to %d) were removed from EVENTS before they were folded", info.First-pos-1, pos+1, info.First-1))
		}
		pos = info.First - 1
	}
	s.main = newLane(s, pos, now)
	s.main.eval.Resident = d.o.Resident
	d.mu.Lock()
	s.rules = d.rules
	d.mu.Unlock()
	moved := s.placeLanes(cp.Behind, s.rules, rev != 0 && cp.Log != info.ID)
	if rev == 0 { // everything stored is evaluated, but for what begins later
		d.fresh = nil
		for i := range s.rules.Sensors {
			if _, ok := s.rules.From[s.rules.Sensors[i].Name].Time(); ok {
				d.fresh = append(d.fresh, s.rules.Sensors[i].Name)
			}
		}
	}
	s.begin(slices.DeleteFunc(slices.Clone(d.fresh), func(name string) bool { return s.place[name] != nil }))
	if err := s.readJobs(ctx, jinfo); err != nil {
		return fmt.Errorf("reading JOBS from %d: %w", s.job+1, err)
	}
	s.arrange(slices.Collect(s.all)...)
	if err := s.loadKeys(ctx, cp.Epoch, info.First); err != nil {
		return fmt.Errorf("loading sensor state: %w", err)
	}
	if err := s.loadForce(ctx); err != nil {
		return fmt.Errorf("loading since when sensors are in force: %w", err)
	}
	s.began = rev == 0 || cp.Log != info.ID
	if err := s.loadEvictions(ctx); err != nil {
		return fmt.Errorf("loading what was evicted: %w", err)
	}
	if s.gone > 0 && cp.Log == info.ID {
		d.o.Alarm("log-shortened", fmt.Sprintf("EVENTS ends at %d, and events up to %d were folded: %d are missing, for example after a restore or a power loss; sensor state that came of them is dropped", s.end, s.gone, s.gone-s.end))
	}
	if (cp.Event > pos || moved) && cp.Log == info.ID {
		// At once: what comes now takes the numbers of what is missing, and
		// must not be taken for folded after a crash.
		cp.Event, cp.Behind = min(cp.Event, pos), s.standing()
		if err := s.storeCheckpoint(ctx, cp); err != nil {
			return err
		}
	}
	s.changed = rev != 0 && cp.Spec != s.rules.Hash
	d.first.Store(info.First)
	d.position.Store(pos)
	d.covered.Store(pos)
	d.floorBehind.Store(s.floorBehind())
	s.untold = true
	s.tell()
	d.o.Covered(pos, s.job)
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
	return bus.ReadThrough(ctx, s.d.o.Bus.Jobs(), s.job+1, info.Last, func(r bus.Record) error {
		j, err := jobs.DecodeJob(r.Data)
		if err != nil || j.Redrive > 0 || j.Position <= s.main.pos && !j.Trailing {
			return nil
		}
		if gone, err := s.isGone(ctx, j.Position); err != nil || gone {
			return err
		}
		s.enqueued[j.Key] = struct{}{}
		s.lastFound = r.Seq
		s.trace(j.Sensor, j.Position, j.Time)
		return nil
	})
}

// trace notes that a sensor decided something beyond the checkpoint.
func (s *session) trace(sensor string, position uint64, at time.Time) {
	s.main.recoverTo = max(s.main.recoverTo, position)
	l := s.place[sensor]
	if l == nil {
		l = s.main
	}
	l.recoverTo = max(l.recoverTo, position)
	if at.After(l.recoverTime) {
		l.recoverTime = at
	}
}

// grave is a tombstone of a key that nobody knows.
func (s *session) grave() []byte {
	st := storedKey{log: s.log, epoch: s.stones.epoch, empty: true}
	return st.encode()
}

// loadKeys loads the state of all keys. The events they wait with are loaded
// when they are read; those before first are not stored any more. States of
// epochs before floor do not count any more.
func (s *session) loadKeys(ctx context.Context, floor, first uint64) error {
	s.stones = tombstones{epoch: max(floor, firstEpoch), floor: floor, names: map[string]uint64{}, least: s.d.o.Tombstones}
	var old, stale []string
	lost := map[string]int{}
	err := s.d.o.Bus.State().Scan(ctx, sensorPrefix, func(e bus.Entry) error {
		st, err := decodeStored(e.Value)
		if err != nil {
			s.d.o.Alarm("state-damaged", fmt.Sprintf("state %s: %v; it is dropped", e.Key, err))
			stale = append(stale, e.Key)
			return nil
		}
		if st.epoch < floor {
			old = append(old, e.Key)
			return nil
		}
		s.stones.found(st.epoch)
		l := s.laneOf(st.sensor)
		if st.empty && (l == nil || st.seen <= l.pos) {
			s.stones.names[e.Key] = st.epoch
			return nil
		}
		// Those who have yet to begin have no state: it is that of an earlier
		// sensor of this name.
		if l == nil || l.from != "" || st.log != s.log || l.eval.Sensor(st.sensor).Program.StateFingerprint() != st.fingerprint {
			stale = append(stale, e.Key)
			return nil
		}
		state, err := sensors.DecodeKeyState(st.state)
		if err != nil {
			s.d.o.Alarm("state-damaged", fmt.Sprintf("state of sensor %s, key %q: %v; it is dropped", st.sensor, st.key, err))
			stale = append(stale, e.Key)
			return nil
		}
		if gone, err := s.isGone(ctx, st.seen); err != nil {
			return err
		} else if gone {
			stale = append(stale, e.Key)
			return nil
		}
		if state.Empty() && st.seen <= l.pos { // written before tombstones were marked
			stale = append(stale, e.Key)
			return nil
		}
		state = l.eval.Sensor(st.sensor).Program.Adopt(state)
		if n := state.Forget(first); n > 0 {
			lost[st.sensor] += n
		}
		k := evaluate.Key{Sensor: st.sensor, Key: st.key}
		l.eval.Put(k, &evaluate.Entry{State: state, Seen: st.seen, Stored: true, Epoch: st.epoch})
		l.eval.Schedule(k)
		if st.seen > l.pos {
			s.decided[st.sensor] = max(s.decided[st.sensor], st.seen)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, n := range lost {
		s.d.o.Alarm("state-events-lost", fmt.Sprintf("sensor %s: %d waiting events before event %d are no longer stored", name, n, first))
	}
	for _, k := range old {
		if err := s.d.o.Bus.State().Delete(ctx, k); err != nil {
			return err
		}
	}
	// What does not fit may have older states behind it that would.
	for _, k := range stale {
		if _, err := s.d.o.Bus.State().Put(ctx, k, s.grave()); err != nil {
			return err
		}
		s.stones.note(k, true)
	}
	return nil
}

// swap puts rules in force between two events. The checkpoint before it
// covers everything the old ones decided, the one after it names the new ones.
// Sensors that are paused or behind stay so.
func (s *session) swap(rules *Rules) error {
	if err := s.barrier(); err != nil {
		return err
	}
	old := map[string]*Sensor{}
	for i := range s.rules.Sensors {
		old[s.rules.Sensors[i].Name] = &s.rules.Sensors[i]
	}
	s.rules = rules
	var fresh []string
	inForce := map[string]bool{}
	for i := range rules.Sensors {
		name := rules.Sensors[i].Name
		inForce[name] = true
		if old[name] == nil {
			fresh = append(fresh, name)
		}
	}
	maps.DeleteFunc(s.place, func(name string, _ *lane) bool { return !inForce[name] })
	s.d.fresh = fresh
	s.begin(fresh)
	s.arrange(slices.Collect(s.all)...)
	s.d.mu.Lock()
	s.d.rules = rules
	s.d.mu.Unlock()
	s.enforce(old)
	s.adopt(old)
	for l := range s.all {
		l.limit()
	}
	if err := s.barrier(); err != nil {
		return err
	}
	s.d.fresh = nil
	for _, l := range slices.Clone(s.lanes) {
		if len(l.names) == 0 {
			s.dropLane(l)
		}
	}
	return nil
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
	rd, err := d.o.Bus.Events().Read(s.ctx, s.main.pos+1, "")
	if err != nil {
		return fmt.Errorf("reading EVENTS from %d: %w", s.main.pos+1, err)
	}
	defer rd.Close()
	var stopReading context.CancelFunc
	s.readCtx, stopReading = context.WithCancel(s.ctx)
	defer func() {
		stopReading()
		if s.asked != nil {
			<-s.asked // it uses rd
		}
		s.readers.Wait()
	}()
	s.batch = newBatch()
	defer func() { s.batch.ack(bus.Ack{}, nil) }()
	if s.changed {
		for l := range s.all {
			l.limit()
		}
	}
	if s.began {
		s.enforce(nil)
	}
	for {
		// Calls from outside interrupt the wait for events.
		ctx, cancel := context.WithCancel(stop)
		unhook := context.AfterFunc(s.ctx, cancel)
		d.mu.Lock()
		d.wake = cancel
		d.mu.Unlock()
		var err error
		if !s.recovered && s.settled() {
			err = s.endRecovery()
		}
		if err == nil && s.recovered {
			for _, call := range d.takeCalls() {
				call(s)
			}
			// What a call could not store must not be acted upon.
			err = context.Cause(s.ctx)
		}
		if err == nil {
			err = s.foldUntil(ctx, rd)
		}
		unhook()
		cancel()
		if cause := context.Cause(s.ctx); cause != nil {
			return cause
		}
		if err := s.main.err(); err != nil {
			return err
		}
		// An event that was not evaluated to its end must not be covered by the
		// last checkpoint.
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		if stop.Err() != nil {
			return s.barrier()
		}
	}
}

// endRecovery forgets what the recovery found beyond the checkpoint, after
// the last of it was folded again.
func (s *session) endRecovery() error {
	for l := range s.all {
		// A deadline behind the last event that fired had come then.
		if !l.recoverTime.IsZero() && (l == s.main || !s.idle(l)) {
			if err := l.deadlines(l.recoverTime); err != nil {
				return err
			}
			l.publish()
		}
		for k, en := range l.eval.Keys() {
			if en.State.Empty() {
				l.Changed(k, en)
			}
		}
	}
	s.main.measure()
	s.recovered = true
	clear(s.enqueued)
	if err := s.quarantineCondemned(); err != nil {
		return err
	}
	s.d.setFailing(nil)
	s.d.ready.Store(true)
	s.send(false)
	return nil
}

// foldUntil folds batch after batch until ctx ends or, during the recovery,
// its target is reached.
func (s *session) foldUntil(ctx context.Context, rd bus.Reader) error {
	for {
		recs, err := s.next(ctx, rd)
		if err != nil {
			return err
		}
		n, took, err := s.foldMain(recs)
		if err != nil {
			return err
		}
		if s.catchingUp() {
			s.ask(rd) // so that the next events are there after a slice
		}
		if err := s.catchUp(n, took); err != nil {
			return err
		}
		// While others are decided again, the main lane must not be covered past
		// what they have in JOBS.
		if s.moved && (s.recovered || len(s.lanes) == 0) {
			s.send(false)
		}
		if !s.recovered && s.settled() {
			return nil
		}
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		if s.recovered {
			if name, p := s.watch.look(s.main); p != nil {
				if err := s.quarantine(name, *p); err != nil {
					return err
				}
			}
		}
	}
}

const (
	// longFold is when the main lane lets what it has decided be stored, in the
	// middle of a batch.
	longFold = 20 * time.Millisecond
	// lookEvery is how many events it folds between two looks at the clock.
	lookEvery = 16
)

// foldMain folds events and returns how many, and how long it took. What does
// not fit into its time stays in rest.
func (s *session) foldMain(recs []bus.Record) (n int, took time.Duration, err error) {
	if len(recs) == 0 {
		return 0, 0, nil
	}
	s.moved = true
	begin := time.Now()
	for i := range recs {
		if err := s.event(&recs[i]); err != nil {
			return n, 0, err
		}
		if len(s.main.evicted) >= mostEvicted {
			s.rest = recs[i+1:]
			break
		}
		if n++; n%lookEvery == 0 || s.watch.slow {
			if time.Since(begin) > longFold {
				s.rest = recs[i+1:]
				break
			}
		}
	}
	took = time.Since(begin)
	s.watch.note(begin, took, n)
	return n, took, nil
}

// answer is what was read for the main lane.
type answer struct {
	recs []bus.Record
	err  error
}

// ask reads for the main lane beside the fold, unless that is under way or it has
// still to fold something, or must not go on before others.
func (s *session) ask(rd bus.Reader) {
	if s.asked != nil || len(s.rest) > 0 || !s.recovered && s.main.pos >= s.main.recoverTo {
		return
	}
	ch := make(chan answer, 1)
	s.asked = ch
	go func() {
		recs, err := rd.Next(s.readCtx, s.d.o.BatchSize)
		ch <- answer{recs, err}
	}()
}

// read waits for events of the main lane. While a lane is behind it returns
// none when that one can go on.
func (s *session) read(ctx context.Context, rd bus.Reader) ([]bus.Record, error) {
	if s.asked == nil {
		if !s.catchingUp() {
			return rd.Next(ctx, s.d.o.BatchSize)
		}
		s.ask(rd)
	}
	select {
	case a := <-s.asked:
		s.asked = nil
		return a.recs, a.err
	default:
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if s.anyReady() {
		return nil, nil
	}
	select {
	case a := <-s.asked:
		s.asked = nil
		return a.recs, a.err
	case <-s.pokes:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// next waits for events, or for the next deadline; then it returns none.
func (s *session) next(ctx context.Context, rd bus.Reader) ([]bus.Record, error) {
	if recs := s.rest; len(recs) > 0 {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.rest = nil
		return recs, nil
	}
	wake, ok := s.main.eval.NextWake()
	if !ok {
		return s.read(ctx, rd)
	}
	timed, cancel := context.WithDeadline(ctx, wake)
	recs, err := s.read(timed, rd)
	cancel()
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return recs, err
	}
	// The clock is past the deadline. It counts only when the log, asked now,
	// holds nothing that should be folded first. What is stored from now on is
	// stored later than this; deadlines in between have to wait for it.
	asked := time.Now()
	info, err := s.d.o.Bus.Events().Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.Last > s.main.pos {
		// What is there arrives at once, unless its end was removed by hand.
		timed, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		recs, err := s.read(timed, rd)
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return recs, err
		}
	}
	s.moved = true
	err = s.main.deadlines(asked)
	s.main.publish()
	return nil, err
}

// event folds one event in the main lane.
func (s *session) event(r *bus.Record) error {
	d, l := s.d, s.main
	if r.Seq <= l.pos {
		return nil
	}
	if r.Seq > l.pos+1 && l.pos > 0 {
		d.o.Alarm("log-gap", fmt.Sprintf("%d events (%d to %d) were removed from EVENTS before they were folded", r.Seq-l.pos-1, l.pos+1, r.Seq-1))
	}
	ev, err := bus.DecodeEvent(*r)
	switch {
	case err != nil:
		d.o.Alarm("event-unreadable", fmt.Sprintf("%v; no sensor sees it", err))
	case ev.Cursor != "":
		if s.cursors == nil {
			s.cursors = map[string]Cursor{}
		}
		s.cursors[cursorKey(cursorPrefix, ev.EventSource, ev.EventName)] = Cursor{s.log, ev.Seq, ev.Cursor}
	}
	if err == nil {
		d.o.Cache.put(ev)
	}
	wanted, failed := l.event(r.Seq, r.Time, ev)
	if failed != nil {
		return failed
	}
	if !wanted && err == nil {
		d.unmatched.Add(1)
	}
	l.publish()
	return nil
}

// quarantine pauses a sensor that takes too much of the fold's time.
func (s *session) quarantine(sensor string, p Pause) error {
	if err := s.pause(sensor, p); errors.Is(err, ErrTooManyBehind) {
		s.watch.quiet = time.Now().Add(time.Minute)
		s.d.o.Alarm("sensor-hogs", fmt.Sprintf("sensor %s slows all others down and cannot be paused (%v): %s", sensor, err, p.Reason))
		return nil
	} else if err != nil {
		return err
	}
	s.quarantined(s.laneOf(sensor))
	return nil
}

// send hands the batch over to be committed and begins the next one.
func (s *session) send(urgent bool) *batch {
	b := s.batch
	b.position, b.time, b.spec, b.urgent = s.main.pos, s.main.eval.Now(), s.rules.Hash, urgent
	if urgent {
		b.stored = make(chan struct{})
	}
	for l := range s.all {
		l.save(b)
	}
	for name, c := range s.cursors {
		b.put(name, c.encode())
	}
	clear(s.cursors)
	s.sweep(b)
	b.epoch = s.stones.floor
	if s.recovered {
		b.found = s.lastFound // all of them were decided again
	}
	b.behind, b.floor = s.tell(), s.floorBehind()
	s.batch, s.moved = newBatch(), false
	s.d.position.Store(s.main.pos)
	s.d.eventTime.Store(s.main.eval.Now().UnixNano())
	b.ack(bus.Ack{}, nil)
	select {
	case s.commits <- b:
	case <-s.ctx.Done():
	}
	return b
}

// commit takes batches in order: when their firings are acknowledged it
// stores the changed keys, then the checkpoint. What gathers meanwhile goes
// into the next one.
func (s *session) commit() error {
	var last time.Time
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for b := range s.commits {
		group, evicted := []*batch{b}, len(b.evicted)
		urgent := b.urgent
		for wait := s.d.o.CheckpointEvery - time.Since(last); ; wait = s.d.o.CheckpointEvery - time.Since(last) {
			if urgent || wait <= 0 || evicted >= mostEvicted {
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
				urgent, evicted = more.urgent, evicted+len(more.evicted)
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
	states := group[0].states
	var evicted []evicted
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
		s.job = max(s.job, b.lastJob, b.found)
		published = published || b.lastJob > 0
		tombs, evicted = append(tombs, b.tombs...), append(evicted, b.evicted...)
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
	if err := s.storeEvictions(evicted); err != nil {
		return fmt.Errorf("storing what was evicted: %w", err)
	}
	if err := s.storeKeys(states); err != nil {
		return fmt.Errorf("storing sensor state: %w", err)
	}
	// What came to life again after its tombstone was given up stays.
	s.tombs = slices.DeleteFunc(tombs, func(name string) bool {
		value, written := states[name]
		if !written {
			return false
		}
		st, err := decodeStored(value)
		return err == nil && !st.empty
	})
	end := group[len(group)-1]
	if err := s.storeCheckpoint(s.ctx, checkpoint{Log: s.log, Event: end.position, Job: s.job, JobLog: s.jobLog, Time: end.time, Spec: end.spec, Epoch: end.epoch, Behind: end.behind}); err != nil {
		return err
	}
	s.d.covered.Store(end.position)
	s.d.floorBehind.Store(end.floor)
	s.d.o.Covered(end.position, s.job)
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

func (s *session) storeKeys(states map[string][]byte) error {
	rest := slices.DeleteFunc(s.tombs, func(k string) bool { _, reborn := states[k]; return reborn })
	return s.put(states, rest)
}

// put writes values into STATE by their key, removes others, and returns when
// that is durable.
func (s *session) put(values map[string][]byte, remove []string) error {
	if len(values) == 0 && len(remove) == 0 {
		return nil
	}
	store, acks := s.d.o.Bus.State(), newBatch()
	done := func(_ uint64, err error) { acks.ack(bus.Ack{}, err) }
	for k, v := range values {
		acks.add()
		if err := store.PutAsync(s.ctx, k, v, done); err != nil {
			acks.ack(bus.Ack{}, err)
		}
	}
	for _, k := range remove {
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
