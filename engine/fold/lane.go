package fold

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sensors"
)

// running is a sensor in force with what the fold needs beside it.
type running struct {
	*Sensor
	stats    *stats
	subjects []string // subject in JOBS by trigger index, of jobs that are not spread
}

// lane is sensors that stand at the same place in the log, and what they
// decide there. It belongs to the fold's goroutine.
type lane struct {
	s       *session
	eval    *evaluate.Evaluator
	groups  []groupStats // by their number in the index
	running []running    // by their number in eval

	pos      uint64 // last event folded
	deciding uint64 // the event that is folded, or was last
	// trailing is true while what is decided may be covered by the checkpoint
	// already.
	trailing bool
	dirty    []evaluate.Key
	evicted  []evicted // since the last batch
	out      []firing  // decided and not yet published

	// recoverTo and recoverTime are the last position and log time that left
	// traces beyond the checkpoint.
	recoverTo   uint64
	recoverTime time.Time

	behind // of the lanes that are
}

// firing is a decision that is not published yet.
type firing struct {
	job     *jobs.Job
	subject string
}

// newLane returns a lane without sensors that stands behind the event at pos,
// with now as its log time.
func newLane(s *session, pos uint64, now time.Time) *lane {
	l := &lane{s: s, pos: pos, deciding: pos}
	l.eval = evaluate.New(l, s.log, pos, now, func(seq uint64) (*bus.Event, error) {
		ev, err := s.d.o.Cache.Event(s.ctx, seq)
		if errors.Is(err, bus.ErrNotFound) {
			return nil, nil
		}
		return ev, err
	})
	return l
}

// err is why nothing can be decided any more, nil if all is well.
func (l *lane) err() error {
	if err := l.eval.Err(); err != nil {
		return fmt.Errorf("reading an event that waits in a sensor: %w", err)
	}
	return nil
}

// use puts sensors in force. The dispatcher's mu is held; the caller has made
// all counters settle and adds those of the groups then, with share.
func (l *lane) use(list []Sensor) {
	d := l.s.d
	l.eval.Use(list)
	l.running = make([]running, len(list))
	partitions := d.o.Bus.Jobs().Partitions()
	for i := range list {
		sn := &list[i]
		r := running{Sensor: sn, stats: d.statsOf(sn.Name)}
		for _, name := range sn.Program.Triggers() {
			j := jobs.Job{Sensor: sn.Name, Trigger: name}
			r.subjects = append(r.subjects, j.Subject(partitions))
		}
		l.running[i] = r
	}
}

// share gives the sensors their part in the counters of the index's groups.
// The dispatcher's mu is held.
func (l *lane) share() {
	byProgram := make(map[*sensors.Program]*stats, len(l.running))
	for i := range l.running {
		byProgram[l.running[i].Program] = l.running[i].stats
	}
	groups := l.eval.Groups()
	l.groups = make([]groupStats, len(groups))
	for i, g := range groups {
		for _, m := range g.Members {
			st := byProgram[m.Program]
			st.shares = append(st.shares, share{&l.groups[i], m.Dependency})
		}
	}
}

// event folds one event, decoded; nil goes past one that cannot be. What is
// decided is not published.
func (l *lane) event(seq uint64, at time.Time, ev *bus.Event) (wanted bool, err error) {
	defer l.rescue(&err)
	l.deciding = seq
	l.eval.Advance(seq, at)
	l.pos = seq
	wanted = ev != nil && l.eval.Event(ev)
	return wanted, l.err()
}

// deadlines steps what is due behind the last event, up to until. What is
// decided is not published.
func (l *lane) deadlines(until time.Time) (err error) {
	defer l.rescue(&err)
	was := l.trailing
	l.trailing = true
	l.eval.Deadlines(until)
	l.trailing = was
	return l.err()
}

// panicError says that the evaluation of a sensor panicked.
type panicError struct {
	sensor string
	event  uint64 // that was folded, or was last
	value  any
	stack  []byte
	again  bool // it panicked when its traces were decided again
}

func (e *panicError) Error() string {
	return fmt.Sprintf("sensor %s panicked at event %d: %v", e.sensor, e.event, e.value)
}

// rescue makes an error of a panic of a sensor. It is deferred.
func (l *lane) rescue(err *error) {
	r := recover()
	if r == nil {
		return
	}
	i, ok := l.eval.Current()
	if !ok {
		panic(r)
	}
	*err = &panicError{sensor: l.running[i].Name, event: l.deciding, value: r, stack: debug.Stack()}
}

// Undecided counts for the sensors of a group.
func (l *lane) Undecided(verdicts []sensors.GroupVerdict) {
	for i := range verdicts {
		l.groups[verdicts[i].Group].count(verdicts[i].Verdict)
	}
}

// Routed counts what a sensor says of an event.
func (l *lane) Routed(sensor int, r sensors.Routing) {
	st := l.running[sensor].stats
	st.count(r.Verdicts)
	if len(r.Matches) > 0 {
		st.matched.Add(1)
	}
}

// Stepped counts how a step went.
func (l *lane) Stepped(sensor int, verdicts []sensors.Verdict) {
	run := &l.running[sensor]
	run.stats.count(verdicts)
	run.stats.uses(l.eval.Usage(sensor))
	for i := range verdicts {
		if verdicts[i].Outcome == sensors.Lost {
			l.s.d.o.Alarm("state-events-lost", fmt.Sprintf("sensor %s: event %d, which is needed, is no longer stored", run.Name, verdicts[i].Seq))
		}
	}
}

// Evicted takes notice of a key that was given up.
func (l *lane) Evicted(sensor int, ev evaluate.Eviction) {
	run := &l.running[sensor]
	l.evicted = append(l.evicted, evicted{sensor: run.Name, Eviction: ev})
	run.stats.evicted.Add(1)
	run.stats.uses(l.eval.Usage(sensor))
	if now := time.Now(); now.Sub(run.stats.told) >= evictionsTold {
		run.stats.told = now
		most := run.Program.Limits()
		l.s.d.o.Alarm("state-evicted", fmt.Sprintf("sensor %s keeps as much as it may (%d keys, %d bytes) and gives up what was touched longest ago: %s",
			run.Name, most.Keys, most.Bytes, ev.Verdict().Detail))
	}
}

// limit sees to the limits of sensors that were put in force under a
// checkpoint. After a crash before the next one, the rest is found out again.
func (l *lane) limit() {
	l.eval.Limit()
	l.evicted = nil
	l.measure()
}

// measure takes notice of what all sensors keep.
func (l *lane) measure() {
	for i := range l.running {
		l.running[i].stats.uses(l.eval.Usage(i))
	}
}

// Changed marks a key as changed in this batch.
func (l *lane) Changed(k evaluate.Key, en *evaluate.Entry) {
	if !en.Dirty {
		en.Dirty = true
		l.dirty = append(l.dirty, k)
	}
}

// Fired keeps one firing until it is published, unless it is in JOBS already.
func (l *lane) Fired(sensor int, f *sensors.Firing) {
	if _, there := l.s.enqueued[f.Key]; there {
		return
	}
	run := &l.running[sensor]
	run.stats.fired.Add(1)
	// A deadline before an event is decided again with that event.
	j := jobs.NewJob(run.Name, run.Hash, l.deciding, f)
	j.Trailing = l.trailing
	subject := run.subjects[f.TriggerIndex]
	if j.Spread {
		subject = j.Subject(l.s.d.o.Bus.Jobs().Partitions())
	}
	l.out = append(l.out, firing{j, subject})
}

// publish hands what was decided to JOBS. It waits for no answer.
func (l *lane) publish() {
	s := l.s
	for _, f := range l.out {
		b := s.batch
		b.add()
		err := s.d.o.Bus.Jobs().AppendAsync(s.ctx, bus.Record{Subject: f.subject, Data: f.job.Encode(nil)}, func(a bus.Ack, err error) {
			if err == nil {
				s.d.o.Enqueued(f.job, a.Seq)
			}
			b.ack(a, err)
		})
		if err != nil {
			b.ack(bus.Ack{}, err)
		}
	}
	clear(l.out)
	l.out = l.out[:0]
}

// save encodes the states that changed since the last batch.
func (l *lane) save(b *batch) {
	for _, k := range l.dirty {
		l.saveKey(b, k)
	}
	l.dirty = l.dirty[:0]
	for _, ev := range l.evicted {
		ev.through = l.pos
		b.evicted = append(b.evicted, ev)
	}
	l.evicted = l.evicted[:0]
}

// saveKey encodes the state of a key. An empty one is stored as a tombstone: a
// recovery must know what it has seen, and that the key has nothing else.
func (l *lane) saveKey(b *batch, k evaluate.Key) {
	stones := &l.s.stones
	en := l.eval.Entry(k)
	en.Dirty = false
	empty := en.State.Empty()
	if empty {
		l.eval.Drop(k)
		if !en.Stored {
			return
		}
	}
	en.Stored, en.Epoch = true, stones.epoch
	st := storedKey{
		log: l.s.log, sensor: k.Sensor, key: k.Key, seen: en.Seen, epoch: en.Epoch, empty: empty, state: en.State.Append(nil),
	}
	if r := l.eval.Sensor(k.Sensor); r != nil {
		st.fingerprint = r.Program.StateFingerprint()
	}
	name := stateKey(k)
	b.put(name, st.encode())
	stones.note(name, empty)
}
