package jobs

import (
	"cmp"
	"maps"
	"slices"
)

// turns keep the jobs of a trigger with `order: key` in the order of their
// firings: of each correlation key, one job at a time has the turn, from before
// its first call until it has ended. It keeps the turn while it is parked for a
// retry. Those behind it wait in memory, or in PARKED, of which only the
// sequence is kept here. The queue's mu guards them. A nil *turns is that of a
// trigger without an order.
type turns struct {
	keys map[string]*key
	// next are parked jobs that have the turn and were not fetched yet.
	next []turn
	// waiting counts the jobs behind others that are in memory, and parked
	// those in PARKED, with the ones on their way there.
	waiting, parked int
	// loaded is false until it is known what is parked: before, nothing has its
	// turn. open is false until all jobs that were in JOBS up to the barriers, by
	// partition, were delivered: before, one that is earlier than a parked one may
	// come.
	loaded, open bool
	barriers     map[int]uint64
}

// key is one correlation key with unfinished jobs.
type key struct {
	holders []uint64 // the order of those that have the turn; more than one only after a change of the spec
	line    []turn   // by order
}

// turn is the place of one job. It has a task while that is in memory, and
// parked once it is stored there.
type turn struct {
	key    string
	order  uint64
	parked uint64
	task   *task
}

func newTurns() *turns { return &turns{keys: map[string]*key{}} }

func (s *turns) inMemory() int {
	if s == nil {
		return 0
	}
	return s.waiting
}

// known reports whether a job is in line or has the turn.
func (s *turns) known(name string, order uint64) bool {
	k := s.keys[name]
	if k == nil {
		return false
	}
	_, found := k.find(order)
	return found || slices.Contains(k.holders, order)
}

func (k *key) find(order uint64) (int, bool) {
	return slices.BinarySearchFunc(k.line, order, func(t turn, order uint64) int { return cmp.Compare(t.order, order) })
}

// free reports whether no earlier job of the key is unfinished.
func (s *turns) free(name string) bool { return s.loaded && s.keys[name] == nil }

// hold gives the turn to a job whatever is before it.
func (s *turns) hold(name string, order uint64) {
	k := s.keys[name]
	if k == nil {
		k = &key{}
		s.keys[name] = k
	}
	if !slices.Contains(k.holders, order) {
		k.holders = append(k.holders, order)
	}
}

// add puts a job in line. It returns those tasks that have the turn now, and
// whether the job was not known.
func (s *turns) add(t turn) (ready []*task, added bool) {
	if s.known(t.key, t.order) {
		return nil, false
	}
	k := s.keys[t.key]
	if k == nil {
		k = &key{}
		s.keys[t.key] = k
	}
	i, _ := k.find(t.order)
	k.line = slices.Insert(k.line, i, t)
	if t.task != nil {
		s.waiting++
	} else {
		s.parked++
	}
	return s.advance(nil, t.key, k), true
}

// stored notes where a job in line was parked. It reports whether it is in line.
func (s *turns) stored(name string, order, seq uint64) bool {
	k := s.keys[name]
	if k == nil {
		return false
	}
	i, found := k.find(order)
	if found {
		k.line[i].parked = seq
		s.advance(nil, name, k)
	}
	return found
}

// release ends a job's turn and appends to ready who has it next.
func (s *turns) release(ready []*task, name string, order uint64) []*task {
	k := s.keys[name]
	if k == nil {
		return ready
	}
	if i := slices.Index(k.holders, order); i >= 0 {
		k.holders = slices.Delete(k.holders, i, i+1)
	}
	return s.advance(ready, name, k)
}

// advance gives the turn of a key to the first in line when nobody has it, and
// appends its task to ready, or notes it in next.
func (s *turns) advance(ready []*task, name string, k *key) []*task {
	if !s.loaded || len(k.holders) > 0 {
		return ready
	}
	if len(k.line) == 0 {
		delete(s.keys, name)
		return ready
	}
	first := k.line[0]
	switch {
	case first.task != nil:
		s.waiting--
		first.task.held = true
		ready = append(ready, first.task)
	case first.parked != 0 && !s.open:
		return ready
	case first.parked != 0:
		s.next = append(s.next, first)
	default: // on its way to PARKED
		return ready
	}
	k.line = slices.Delete(k.line, 0, 1)
	k.holders = append(k.holders, first.order)
	return ready
}

// load tells that all parked jobs are known, and up to where each partition of
// JOBS holds jobs that may be earlier. It returns the tasks that have the turn.
func (s *turns) load(barriers map[int]uint64) []*task {
	s.loaded, s.barriers = true, barriers
	return s.advanceAll()
}

// delivered tells up to where a partition was delivered. It returns the tasks
// that have the turn when nothing earlier can come any more.
func (s *turns) delivered(partition int, seq uint64) []*task {
	if s.open || !s.loaded {
		return nil
	}
	if barrier, ok := s.barriers[partition]; ok && seq >= barrier {
		delete(s.barriers, partition)
	}
	if len(s.barriers) > 0 {
		return nil
	}
	s.open = true
	return s.advanceAll()
}

func (s *turns) advanceAll() (ready []*task) {
	names := slices.SortedFunc(maps.Keys(s.keys), func(a, b string) int { return cmp.Compare(s.keys[a].first(), s.keys[b].first()) })
	for _, name := range names {
		ready = s.advance(ready, name, s.keys[name])
	}
	return ready
}

func (k *key) first() uint64 {
	if len(k.line) == 0 {
		return 0
	}
	return k.line[0].order
}

// leave empties the line and returns the tasks in memory.
func (s *turns) leave() (out []*task) {
	if s == nil {
		return nil
	}
	for _, k := range s.keys {
		for _, t := range k.line {
			if t.task != nil {
				out = append(out, t.task)
			}
		}
	}
	slices.SortFunc(out, byOrder)
	s.keys, s.next = map[string]*key{}, nil
	return out
}

func byOrder(a, b *task) int { return cmp.Compare(a.order(), b.order()) }

// parkTurn notes that a task is about to be parked as overflow. It reports false
// when it is there already, as after a crash between parking and removal.
func (q *queue) parkTurn(t *task) bool {
	if q.turns == nil {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	_, added := q.turns.add(turn{key: t.job.Correlation, order: t.order()})
	return added
}

// release ends the turn of a task that has ended. It does nothing without an
// order.
func (q *queue) release(t *task) {
	if q.turns == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.held {
		t.held = false
		q.passLocked(t.job.Correlation, t.order())
	}
}

// pass ends the turn of a job that is not there any more.
func (q *queue) pass(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.passLocked(t.key, t.order)
}

func (q *queue) passLocked(name string, order uint64) {
	q.ready = q.turns.release(q.ready, name, order)
	q.startLocked()
	if len(q.turns.next) > 0 {
		q.signal()
	}
}

// reached tells the turns up to where a partition was delivered.
func (q *queue) reached(part *partition, seq uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.turns.open {
		q.ready = append(q.ready, q.turns.delivered(part.index, seq)...)
		q.startLocked()
		q.signal()
	}
}
