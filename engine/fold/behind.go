package fold

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// Errors of [Dispatcher.Pause] and [Dispatcher.Resume].
var (
	// ErrNoSensor says that no such sensor is in force.
	ErrNoSensor = errors.New("no such sensor is in force")
	// ErrNotPaused says that the sensor is not paused.
	ErrNotPaused = errors.New("the sensor is not paused")
	// ErrTooManyBehind says that the checkpoint has no room for another sensor
	// with a position of its own.
	ErrTooManyBehind = errors.New("too many sensors are paused or behind; resume some first")
)

// Pauser says who paused a sensor.
type Pauser string

// Those who pause sensors.
const (
	ByPerson   Pauser = "person"
	ByWatchdog Pauser = "watchdog"
)

// MaxReason is the most bytes of a reason for a pause.
const MaxReason = 512

// Pause says since when, by whom and why a sensor is paused.
type Pause struct {
	Since  time.Time `json:"since"`
	By     Pauser    `json:"by"`
	Reason string    `json:"reason,omitempty"`
}

// Behind is where a sensor stands that is not where the others are.
type Behind struct {
	// Position is the last event the sensor has evaluated, Time its log time.
	Position uint64
	Time     time.Time
	// Events is how many sequences the others are ahead.
	Events uint64
	// Removed is how many of these are no longer in the log.
	Removed uint64
	// From is where it will begin when that is not known yet, "" otherwise.
	From specs.From
	// Pause is nil when the sensor catches up.
	Pause *Pause
}

// standing is where the sensors of one lane stand, as the checkpoint has it.
type standing struct {
	Sensors []string   `json:"sensors"`
	Event   uint64     `json:"event"`
	Time    time.Time  `json:"time,omitzero"`
	From    specs.From `json:"from,omitempty"`
	Pause   *Pause     `json:"pause,omitempty"`
}

// behind is what a lane has that is not the main one.
type behind struct {
	// from says where the lane begins while its position is not known, "" later.
	from  specs.From
	pause *Pause
	// condemned is why the sensor will be paused when its traces are decided
	// again, nil for not at all.
	condemned *panicError

	names   []string // of its sensors
	backlog *backlog // what reads for it, nil for nobody
	// What was read and is not folded yet, where the lane begins, why it could
	// not be read.
	read   []read
	start  *uint64
	failed error

	retry time.Time
	told  time.Time // when it was last said that reading fails
}

const (
	// sliceTime is how long a lane folds before it is the turn of the main one.
	sliceTime = time.Millisecond
	// After the main lane had events, a lane folds for 1/mainShare of their time
	// and number: reading its events takes a part of the machine, too. The least
	// is leastTime and leastEvents. As long as there are none, its time doubles
	// with each turn.
	mainShare   = 4
	leastTime   = 100 * time.Microsecond
	leastEvents = 16
	// residentShare is the part of [Options.Resident] that a lane has beside it.
	residentShare = 16
)

// Pause stops the evaluation of a sensor between two events and returns when
// that is stored: it keeps its state and its position, and evaluates everything
// from there on when it is resumed. Pausing one that is paused changes nothing.
// The errors are [ErrNoSensor], [ErrTooManyBehind] and those of ctx, after
// which it may be paused all the same.
func (d *Dispatcher) Pause(ctx context.Context, sensor, reason string) error {
	if len(reason) > MaxReason {
		reason = strings.ToValidUTF8(reason[:MaxReason], "")
	}
	return d.do(ctx, func(s *session) error {
		return s.pause(sensor, Pause{Since: time.Now().UTC(), By: ByPerson, Reason: reason})
	})
}

// Resume lets a paused sensor catch up from its position, and returns when that
// is stored. With skip it goes on behind the event folded last instead, with
// its state as it is; skipped is how many sequences it will not see. The errors
// are [ErrNoSensor], [ErrNotPaused] and those of ctx, after which it may be
// resumed all the same.
func (d *Dispatcher) Resume(ctx context.Context, sensor string, skip bool) (skipped uint64, err error) {
	var n uint64
	err = d.do(ctx, func(s *session) (err error) {
		n, err = s.resume(sensor, skip)
		return err
	})
	if err != nil { // it may still be under way
		return 0, err
	}
	return n, nil
}

// Behind returns the sensors that are paused or behind, by name.
func (d *Dispatcher) Behind() map[string]Behind {
	list := d.standing.Load()
	if list == nil {
		return nil
	}
	out := map[string]Behind{}
	pos, first := d.position.Load(), d.first.Load()
	for _, st := range *list {
		b := Behind{Position: st.Event, Time: st.Time, From: st.From, Pause: st.Pause}
		if st.From == "" && pos > st.Event {
			b.Events = pos - st.Event
			if first > st.Event+1 {
				b.Removed = min(first-st.Event-1, b.Events)
			}
		}
		for _, name := range st.Sensors {
			out[name] = b
		}
	}
	return out
}

// all yields every lane, the main one first.
func (s *session) all(yield func(*lane) bool) {
	if !yield(s.main) {
		return
	}
	for _, l := range s.lanes {
		if !yield(l) {
			return
		}
	}
}

// laneOf is the lane of a sensor in force.
func (s *session) laneOf(sensor string) *lane {
	if l := s.place[sensor]; l != nil {
		return l
	}
	if s.main.eval.Sensor(sensor) != nil {
		return s.main
	}
	return nil
}

// addLane adds a lane behind, for sensors that stand behind the event at pos.
func (s *session) addLane(pos uint64, now time.Time, names ...string) *lane {
	l := newLane(s, pos, now)
	l.trailing = true
	l.eval.Resident = s.d.o.Resident / residentShare
	s.lanes = append(s.lanes, l)
	for _, name := range names {
		s.place[name] = l
	}
	return l
}

// dropLane forgets a lane that has no sensors any more.
func (s *session) dropLane(l *lane) {
	l.stopReading()
	s.lanes = slices.DeleteFunc(s.lanes, func(o *lane) bool { return o == l })
}

// arrange puts the sensors in force into the lanes in which they have their
// place; changed are those that have others than before. The keys stay where
// they are.
func (s *session) arrange(changed ...*lane) {
	lists := make(map[*lane][]Sensor, len(changed))
	for _, sn := range s.rules.Sensors {
		l := s.place[sn.Name]
		if l == nil {
			l = s.main
		}
		lists[l] = append(lists[l], sn)
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, l := range changed {
		l.use(lists[l])
		l.names = l.names[:0:0]
		for _, sn := range lists[l] {
			l.names = append(l.names, sn.Name)
		}
	}
	for _, st := range s.d.stats {
		st.settle()
	}
	for l := range s.all {
		l.share()
	}
	s.watch.reset(s.main.eval)
	s.shift()
}

// shift notes that a lane behind stands elsewhere than before.
func (s *session) shift() { s.moved, s.untold = true, true }

// split gives a sensor a lane of its own, at the same place.
func (s *session) split(sensor string) *lane {
	was := s.laneOf(sensor)
	was.save(s.batch)
	l := s.addLane(was.pos, was.eval.Now(), sensor)
	l.from, l.recoverTo, l.recoverTime = was.from, was.recoverTo, was.recoverTime
	s.arrange(was, l)
	was.eval.Move(l.eval)
	if was != s.main && len(was.names) == 0 {
		s.dropLane(was)
	}
	return l
}

func (s *session) pause(sensor string, p Pause) error {
	l := s.laneOf(sensor)
	switch {
	case l == nil:
		return fmt.Errorf("%s: %w", sensor, ErrNoSensor)
	case l.pause != nil:
		return nil
	case !s.room(len(sensor) + len(p.Reason)):
		return ErrTooManyBehind
	}
	s.split(sensor).pause = &p
	s.shift()
	return s.barrier()
}

func (s *session) resume(sensor string, skip bool) (skipped uint64, err error) {
	l := s.laneOf(sensor)
	switch {
	case l == nil:
		return 0, fmt.Errorf("%s: %w", sensor, ErrNoSensor)
	case l.pause == nil:
		return 0, fmt.Errorf("%s: %w", sensor, ErrNotPaused)
	}
	l.pause = nil
	if skip {
		if l.from == "" && s.main.pos > l.pos {
			skipped = s.main.pos - l.pos
		}
		began := l.from == ""
		l.from, l.read = "", nil
		l.goTo(s.main.pos)
		if began {
			s.unforce(sensor)
		} else {
			s.enforceFrom(l)
		}
	}
	s.shift()
	// What it decides from now on is found only when the checkpoint tells that
	// it is not paused.
	return skipped, s.barrier()
}

// goTo goes past events without evaluating them.
func (l *lane) goTo(pos uint64) {
	l.pos, l.deciding = pos, pos
	l.eval.Advance(pos, l.eval.Now())
}

// room reports whether the checkpoint can hold another sensor behind whose
// texts have n bytes.
func (s *session) room(n int) bool {
	const each = 160 // bytes of a standing without its texts
	n += each
	for _, l := range s.lanes {
		n += each
		for _, name := range l.names {
			n += len(name) + 3
		}
		if l.pause != nil {
			n += len(l.pause.Reason)
		}
	}
	return n <= s.d.o.Bus.MaxPayload()/2
}

// tell publishes where the lanes behind stand.
func (s *session) tell() []standing {
	if s.untold {
		list := s.standing()
		s.standings, s.untold = list, false
		s.d.standing.Store(&list)
	}
	return s.standings
}

// standing is where the lanes behind stand.
func (s *session) standing() []standing {
	if len(s.lanes) == 0 {
		return nil
	}
	out := make([]standing, 0, len(s.lanes))
	for _, l := range s.lanes {
		if len(l.names) > 0 {
			out = append(out, standing{Sensors: l.names, Event: l.pos, Time: l.eval.Now(), From: l.from, Pause: l.pause})
		}
	}
	return out
}

// begin gives sensors that come newly into force a lane of their own when they
// do not begin with the next event. Those of one from begin together.
func (s *session) begin(fresh []string) {
	lanes := map[specs.From]*lane{}
	for _, name := range fresh {
		from := s.rules.From[name]
		if from == "" || from == specs.FromNow {
			continue
		}
		if !s.room(len(name)) {
			s.d.o.Alarm("from-ignored", fmt.Sprintf("sensor %s begins with the next event instead of from %s: %v", name, from, ErrTooManyBehind))
			continue
		}
		if lanes[from] == nil {
			lanes[from] = s.addLane(0, time.Time{})
			lanes[from].from = from
		}
		s.place[name] = lanes[from]
		lanes[from].names = append(lanes[from].names, name)
		// An earlier sensor of this name may have seen what this one is to see.
		prefix := sensorPrefix + bus.Token(name) + "."
		for stone := range s.stones.names {
			if strings.HasPrefix(stone, prefix) {
				s.batch.put(stone, s.grave())
				s.stones.note(stone, true)
			}
		}
	}
}

// idle reports whether a lane has nothing to do whatever is read.
func (s *session) idle(l *lane) bool {
	if l.pause != nil || len(l.names) == 0 {
		return true
	}
	if l.from != "" {
		at, isTime := l.from.Time()
		return !s.recovered || isTime && s.main.eval.Now().Before(at)
	}
	return l.pos > s.main.pos
}

// catchingUp reports whether a lane has something to do.
func (s *session) catchingUp() bool {
	return slices.ContainsFunc(s.lanes, func(l *lane) bool { return !s.idle(l) })
}

// goal is how far a lane may go: as far as it has left traces while they are
// decided again, and never past the main one.
func (s *session) goal(l *lane) uint64 {
	if !s.recovered {
		return min(l.recoverTo, s.main.pos)
	}
	return s.main.pos
}

// ready reports whether a lane can go on at once. If it cannot, this sees to it
// that its events are read.
func (s *session) ready(l *lane) bool {
	if s.idle(l) {
		return false
	}
	if l.from == "" {
		if goal := s.goal(l); l.pos >= goal {
			return s.recovered // it joins
		}
		if len(l.read) > 0 || s.d.o.Cache.peek(l.pos+1) != nil {
			return true
		}
	}
	return s.await(l)
}

// anyReady reports whether a lane behind can go on at once.
func (s *session) anyReady() bool {
	any := false
	for _, l := range s.lanes {
		any = s.ready(l) || any
	}
	return any
}

// catchUp gives one of the lanes behind its turn. mainEvents is how many events
// the main one has folded just now, and mainTook how long that took.
func (s *session) catchUp(mainEvents int, mainTook time.Duration) error {
	events := math.MaxInt
	if mainEvents > 0 {
		s.slices = max(mainTook/mainShare, leastTime)
		events = max(mainEvents/mainShare, leastEvents)
	}
	s.slices = min(max(s.slices, leastTime), sliceTime)
	budget := s.slices
	s.slices *= 2
	for range len(s.lanes) {
		s.turn++
		l := s.lanes[s.turn%len(s.lanes)]
		if !s.ready(l) {
			continue
		}
		if l.failed != nil {
			if err := s.readFailed(l); err != nil {
				return err
			}
			continue
		}
		return s.slice(l, time.Now().Add(budget), events)
	}
	return nil
}

// slice lets a lane fold until end, at least one event and at most so many, and
// join the main one where they meet.
func (s *session) slice(l *lane, end time.Time, events int) error {
	if l.start != nil {
		l.goTo(*l.start)
		l.from, l.start = "", nil
		s.enforceFrom(l)
		// What it decides is found only when the checkpoint tells where it began.
		s.shift()
		return s.barrier()
	}
	for goal := s.goal(l); l.pos < goal && events > 0; events-- {
		r, ok := l.next()
		if !ok {
			break
		}
		if r.seq > l.pos+1 {
			last := min(r.seq-1, goal)
			s.d.o.Alarm("sensor-missed-events", fmt.Sprintf("%d events (%d to %d) were removed from EVENTS before they were evaluated by sensor %s, which was behind",
				last-l.pos, l.pos+1, last, strings.Join(l.names, ", ")))
			s.shift()
		}
		if r.seq > goal {
			l.goTo(goal)
			break
		}
		if r.err != nil {
			s.d.o.Alarm("event-unreadable", fmt.Sprintf("%v; no sensor sees it", r.err))
		}
		if _, err := l.event(r.seq, r.at, r.ev); err != nil {
			return err
		}
		s.shift()
		if len(l.evicted) >= mostEvicted || !time.Now().Before(end) {
			break
		}
	}
	l.publish()
	if s.recovered && l.pos == s.main.pos {
		return s.join(l)
	}
	return nil
}

// join makes a lane a part of the main one, where both have folded everything
// up to the same event, and all deadlines up to the same time.
func (s *session) join(l *lane) error {
	if err := l.deadlines(s.main.eval.Now()); err != nil {
		return err
	}
	l.publish()
	l.save(s.batch)
	for _, name := range l.names {
		delete(s.place, name)
	}
	s.dropLane(l)
	s.arrange(s.main)
	l.eval.Move(s.main.eval)
	s.d.log.Info("sensor has caught up", "sensor", strings.Join(l.names, ", "), "event", s.main.pos)
	return nil
}

// settled reports whether everything that left traces beyond the checkpoint is
// decided again, but for what deadlines behind it did.
func (s *session) settled() bool {
	if s.main.pos < s.main.recoverTo {
		return false
	}
	for _, l := range s.lanes {
		if !s.idle(l) && l.pos < min(l.recoverTo, s.main.pos) {
			return false
		}
	}
	return true
}

// condemn makes the next session pause a sensor that panicked.
func (d *Dispatcher) condemn(p *panicError) {
	d.log.Error("sensor panicked; it is paused", "sensor", p.sensor, "event", p.event, "panic", p.value, "stack", string(p.stack))
	if d.condemned[p.sensor] != nil {
		p.again = true
	}
	d.condemned[p.sensor] = p
}

// placeLanes makes the lanes behind that the checkpoint tells of, and those of
// condemned sensors.
func (s *session) placeLanes(list []standing, rules *Rules, exchanged bool) (changed bool) {
	inForce := make(map[string]bool, len(rules.Sensors))
	for i := range rules.Sensors {
		inForce[rules.Sensors[i].Name] = true
	}
	s.place = map[string]*lane{}
	for _, st := range list {
		names := slices.DeleteFunc(slices.Clone(st.Sensors), func(name string) bool { return !inForce[name] })
		if len(names) == 0 || exchanged && st.From == "" && st.Pause == nil {
			continue
		}
		pos, now := st.Event, st.Time
		switch {
		case exchanged:
			pos, now = 0, time.Time{}
		case pos > s.end:
			pos, changed = s.end, true
		}
		l := s.addLane(pos, now, names...)
		l.names, l.from, l.pause = names, st.From, st.Pause
	}
	for name, p := range s.d.condemned {
		if !inForce[name] {
			delete(s.d.condemned, name)
			continue
		}
		l := s.place[name]
		if l == nil {
			l = s.addLane(s.main.pos, s.main.eval.Now(), name)
		} else if len(l.names) > 1 {
			l.names = slices.DeleteFunc(l.names, func(n string) bool { return n == name })
			l = s.addLane(l.pos, l.eval.Now(), name)
		}
		l.names = []string{name}
		if l.condemned = p; p.again {
			// Even what it decided before cannot be decided again.
			l.pause = p.pause()
		}
	}
	return changed
}

// pause is the quarantine of the sensor.
func (e *panicError) pause() *Pause {
	reason := fmt.Sprintf("it panicked at event %d: %v", e.event, e.value)
	if len(reason) > MaxReason {
		reason = strings.ToValidUTF8(reason[:MaxReason], "")
	}
	return &Pause{Since: time.Now().UTC(), By: ByWatchdog, Reason: reason}
}

// quarantineCondemned pauses the sensors that panicked, now that everything
// they have decided is known again.
func (s *session) quarantineCondemned() error {
	var list []*lane
	for _, l := range s.lanes {
		if l.condemned != nil {
			list = append(list, l)
			if l.pause == nil {
				l.pause = l.condemned.pause()
			}
			l.stopReading()
		}
	}
	if len(list) == 0 {
		return nil
	}
	s.shift()
	if err := s.barrier(); err != nil {
		return err
	}
	for _, l := range list {
		delete(s.d.condemned, l.condemned.sensor)
		l.condemned = nil
		s.quarantined(l)
	}
	return nil
}

// quarantined tells of a quarantine that is stored.
func (s *session) quarantined(l *lane) {
	s.d.mu.Lock()
	s.d.statsOf(l.names[0]).quarantines.Add(1)
	s.d.mu.Unlock()
	s.d.o.Alarm("sensor-quarantined", fmt.Sprintf("sensor %s is paused behind event %d: %s; nothing is lost, engine resume lets it go on", l.names[0], l.pos, l.pause.Reason))
}

// next is the next event of a lane, from memory or from what was read for it.
func (l *lane) next() (read, bool) {
	for len(l.read) > 0 && l.read[0].seq <= l.pos {
		l.read = l.read[1:]
	}
	if len(l.read) == 0 || l.read[0].seq > l.pos+1 {
		if ev := l.s.d.o.Cache.peek(l.pos + 1); ev != nil {
			return read{seq: ev.Seq, at: ev.StoredAt, ev: ev}, true
		}
	}
	if len(l.read) == 0 {
		return read{}, false
	}
	r := l.read[0]
	l.read = l.read[1:]
	return r, true
}

// adopt adapts the states of all keys after other rules came into force.
func (s *session) adopt(old map[string]*Sensor) {
	dropped := map[string]int{}
	for l := range s.all {
		for k, en := range l.eval.Keys() {
			was, is := old[k.Sensor], l.eval.Sensor(k.Sensor)
			switch {
			case was == nil || is == nil || was.Program.StateFingerprint() != is.Program.StateFingerprint():
				dropped[k.Sensor]++
				en.State = sensors.KeyState{}
				l.eval.Schedule(k)
			case was.Hash == is.Hash:
				continue
			default:
				en.State = is.Program.Adopt(en.State)
				l.eval.Schedule(k) // the window may have changed
			}
			l.Changed(k, en)
		}
	}
	for name, n := range dropped {
		s.d.log.Info("sensor state dropped: its dependencies changed or it was removed", "sensor", name, "keys", n)
	}
}

// floorBehind is the first event that lanes are about to fold, 0 for none. What
// is paused does not count: it must not keep the log from shrinking.
func (s *session) floorBehind() (floor uint64) {
	for _, l := range s.lanes {
		if l.pause == nil && l.from == "" && len(l.names) > 0 && (floor == 0 || l.pos+1 < floor) {
			floor = l.pos + 1
		}
	}
	return floor
}
