package jobs

import (
	"container/heap"
	"slices"
	"time"
)

// briefly is the longest time a job waits in memory for a call of its key.
const briefly = time.Second

// lines are the jobs of a trigger with a rate limit by key for which no call of
// their key is free. Each key has its own, so that none waits for another. In
// memory are only those that wait briefly, and not many; the others are parked
// without having had an attempt, and only where is kept here. The first of a
// line gets its chance when the time has come, and the next one after it has
// taken that. The queue's mu guards them. A nil *lines is that of a trigger
// without such a limit.
type lines struct {
	limits keyLimits
	keys   map[string]*line
	due    lineHeap // those whose first one waits for its time
	fetch  []*line  // those whose first one may be called, and is parked
	memory int      // jobs in memory
	parked int      // jobs in PARKED, and on their way there
	// leaving are on their way; parking is true while somebody sees to it.
	leaving []*task
	parking bool
}

// line is the jobs of one key. It exists as long as there are some.
type line struct {
	key    string
	tasks  []*task
	parked []parkedRetry // behind tasks
	coming int           // on their way to PARKED
	at     time.Time     // when it is asked again whether a call is free
	index  int           // in the heap, -1 when it is not there
	called bool          // its first job is out of the line and has not begun
}

func (l *line) empty() bool { return len(l.tasks) == 0 && len(l.parked) == 0 && l.coming == 0 }

// lineHeap has the line that is due next first.
type lineHeap []*line

func (h lineHeap) Len() int           { return len(h) }
func (h lineHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h lineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push and Pop are for container/heap.
func (h *lineHeap) Push(x any) {
	l := x.(*line)
	l.index = len(*h)
	*h = append(*h, l)
}

// Pop is for container/heap.
func (h *lineHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.index = -1
	return l
}

func newLines(limits []*KeyLimit) *lines {
	if len(limits) == 0 {
		return nil
	}
	return &lines{limits: limits, keys: map[string]*line{}}
}

// inMemory and inParked are how many jobs wait.
func (s *lines) inMemory() int {
	if s == nil {
		return 0
	}
	return s.memory
}

func (s *lines) inParked() int {
	if s == nil {
		return 0
	}
	return s.parked
}

// fetchable reports whether a parked job may be called.
func (s *lines) fetchable() bool { return s != nil && len(s.fetch) > 0 }

// of returns the line of a key, a new one if there is none.
func (s *lines) of(key string) *line {
	l := s.keys[key]
	if l == nil {
		l = &line{key: key, index: -1}
		s.keys[key] = l
	}
	return l
}

// arm sees that the first of a line gets its chance, at the earliest.
func (s *lines) arm(l *line, at time.Time) {
	if l.called || len(l.tasks) == 0 && len(l.parked) == 0 {
		return
	}
	l.at = at
	if l.index < 0 {
		heap.Push(&s.due, l)
	} else {
		heap.Fix(&s.due, l.index)
	}
}

// leave ends that the first job of a line is called: it has begun, or is gone.
func (s *lines) leave(l *line, now time.Time) {
	l.called = false
	if !l.empty() {
		s.arm(l, now)
	} else if s.keys[l.key] == l {
		delete(s.keys, l.key)
	}
}

// call calls the first of those lines whose time has come: it returns those that
// are in memory, and notes the others in fetch.
func (s *lines) call(now time.Time) (ready []*task) {
	for len(s.due) > 0 && !s.due[0].at.After(now) {
		l := s.due[0]
		if at := s.limits.when(l.key, now); at.After(now) {
			l.at = at
			heap.Fix(&s.due, 0)
			continue
		}
		heap.Pop(&s.due)
		l.called = true
		if len(l.tasks) > 0 {
			t := l.tasks[0]
			l.tasks = l.tasks[1:]
			s.memory--
			t.called = true
			ready = append(ready, t)
		} else {
			s.fetch = append(s.fetch, l)
		}
	}
	return ready
}

// next is when the first line is due, if one waits.
func (s *lines) next() (at time.Time, ok bool) {
	if s == nil || len(s.due) == 0 {
		return at, false
	}
	return s.due[0].at, true
}

// first takes the next parked job that may be called.
func (s *lines) first() (*line, parkedRetry) {
	l := s.fetch[0]
	s.fetch = s.fetch[1:]
	r := l.parked[0]
	l.parked = l.parked[1:]
	s.parked--
	return l, r
}

// back puts a job that could not be fetched back, to be tried at a time.
func (s *lines) back(l *line, r parkedRetry, at time.Time) {
	l.parked = slices.Insert(l.parked, 0, r)
	s.parked++
	l.called = false
	s.arm(l, at)
}

// stored notes where a job was parked.
func (s *lines) stored(key string, r parkedRetry, now time.Time) {
	l := s.of(key)
	l.parked = append(l.parked, r)
	if l.coming > 0 {
		l.coming--
	} else {
		s.parked++
	}
	if l.index < 0 {
		s.arm(l, now)
	}
}

// join puts a task in the line of its key. It reports false when it must be
// parked instead, and has counted it then; at most so many are in memory.
func (s *lines) join(t *task, now time.Time, most int) bool {
	l := s.of(t.job.Correlation)
	if t.called { // somebody else took the call
		t.called, l.called = false, false
		l.tasks = slices.Insert(l.tasks, 0, t)
		s.memory++
		s.arm(l, s.limits.when(l.key, now))
		return true
	}
	if s.waitsBriefly(l, now) && s.memory < most {
		s.keep(l, t, now)
		return true
	}
	s.send(l, t, now)
	return false
}

// keep lets a task wait in memory.
func (s *lines) keep(l *line, t *task, now time.Time) {
	l.tasks = append(l.tasks, t)
	s.memory++
	if l.index < 0 {
		s.arm(l, s.limits.when(l.key, now))
	}
}

// send counts a task that will be parked, and says in its job how long it will
// be there.
func (s *lines) send(l *line, t *task, now time.Time) {
	t.job.NotBefore, t.job.Limited = s.expected(l, now), true
	l.coming++
	s.parked++
}

// expected is when the call of a job would be free that joins a line.
func (s *lines) expected(l *line, now time.Time) time.Time {
	ahead := len(l.tasks) + len(l.parked) + l.coming
	every := s.limits.every()
	if ahead > 0 && every > time.Duration(1<<62)/time.Duration(ahead) {
		every = time.Duration(1<<62) / time.Duration(ahead)
	}
	return s.limits.when(l.key, now).Add(time.Duration(ahead) * every)
}

// waitsBriefly reports whether a job that joins a line would be called soon.
func (s *lines) waitsBriefly(l *line, now time.Time) bool {
	return len(l.parked)+l.coming == 0 && s.expected(l, now).Sub(now) <= briefly
}

// each visits what is in PARKED.
func (s *lines) each(visit func(parkedRetry)) {
	if s == nil {
		return
	}
	for _, l := range s.keys {
		for _, r := range l.parked {
			visit(r)
		}
	}
}

// end empties the lines and returns what was in memory and in PARKED.
func (s *lines) end() (tasks []*task, parked []parkedRetry) {
	if s == nil {
		return nil, nil
	}
	for _, l := range s.keys {
		tasks = append(tasks, l.tasks...)
		parked = append(parked, l.parked...)
	}
	slices.SortFunc(tasks, byOrder)
	s.keys, s.due, s.fetch, s.memory, s.parked = map[string]*line{}, nil, nil, 0, 0
	return tasks, parked
}

// waitLocked makes a task wait for a call of its key. mu is held.
func (q *queue) waitLocked(t *task, now time.Time) {
	s := q.lines
	if uint64(s.parked) >= q.p.o.ParkLimit && !t.called {
		if spec := q.spec.Load(); spec == nil || !spec.Block {
			q.p.spawn(func() { q.p.bury(t, q.p.tooMany()) })
		} else {
			s.keep(s.of(t.job.Correlation), t, now)
		}
		return
	}
	if s.join(t, now, q.p.o.MaxOutstanding/16) {
		return
	}
	s.leaving = append(s.leaving, t)
	if !s.parking {
		s.parking = true
		q.p.spawn(func() { q.parkWaiting(s) })
	}
}

// leaveLine ends that the first job of a line is called, unless that is nil.
func (q *queue) leaveLine(l *line) {
	if l == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lines != nil {
		q.lines.leave(l, time.Now())
		q.startLocked()
	}
}

// parkWaiting parks what cannot wait in memory.
func (q *queue) parkWaiting(s *lines) {
	for {
		q.mu.Lock()
		leaving := s.leaving
		s.leaving = nil
		s.parking = len(leaving) > 0
		q.mu.Unlock()
		if len(leaving) == 0 {
			return
		}
		for _, t := range leaving {
			q.p.park(t, q, WhyRetry)
		}
	}
}

// parksAtOnce reports whether a new task must be parked, since jobs of its key
// before it are, and has counted it then.
func (q *queue) parksAtOnce(t *task) bool {
	if q.spec.Load() == nil {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.lines
	if s == nil || q.turns != nil || uint64(s.parked) >= q.p.o.ParkLimit {
		return false
	}
	l, now := s.keys[t.job.Correlation], time.Now()
	if l == nil || s.waitsBriefly(l, now) {
		return false
	}
	s.send(l, t, now)
	return true
}

// limitLocked makes other limits hold. What waited for the old ones asks again.
// mu is held.
func (q *queue) limitLocked(limits []*KeyLimit) {
	s, now := q.lines, time.Now()
	switch {
	case s == nil:
		q.lines = newLines(limits)
	case len(limits) > 0:
		s.limits = limits
		for _, l := range s.keys {
			s.arm(l, now)
		}
	default:
		q.lines = nil
		tasks, parked := s.end()
		q.ready = append(q.ready, tasks...)
		for _, r := range parked {
			r.due = now
			heap.Push(&q.retries, r)
		}
	}
}
