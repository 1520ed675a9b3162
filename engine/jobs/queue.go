package jobs

import (
	"cmp"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/triggers"
)

// queue holds the jobs of one trigger that are in memory, and knows which of
// its jobs are parked.
type queue struct {
	p    *Pool
	ref  TriggerRef
	part *partition // that of its jobs, unless they are spread or were
	spec atomic.Pointer[Trigger]
	wake chan struct{}
	// counted is true, by partition, when the queue is one of its triggers; used
	// when it has had a call or a job.
	counted []atomic.Bool
	used    atomic.Bool

	mu       sync.Mutex
	ready    []*task // ready[head:] wait for a free slot
	head     int
	running  int
	feeding  bool
	overflow uint64 // jobs parked as overflow, with those on their way
	coming   uint64 // those on their way
	sent     uint64 // those that ever were
	cursor   uint64 // overflow below this sequence was taken
	retries  retryHeap
	turns    *turns // nil without `order: key`
	lines    *lines // nil without a rate limit by key
	breaker  breaker
	paid     int // limits the next call has passed
	booking  *rate.Reservation
	booked   time.Time   // when the booking may be used
	timer    *time.Timer // starts what must not start yet

	stats *Stats
}

// newQueue returns the queue of a trigger.
func newQueue(p *Pool, t *Trigger) *queue {
	q := &queue{
		p: p, ref: t.Ref, part: p.parts[Partition(t.Ref.Sensor, t.Ref.Trigger, len(p.parts))], wake: make(chan struct{}, 1), stats: &Stats{},
		counted: make([]atomic.Bool, len(p.parts)),
	}
	if t.Ordered {
		q.turns = newTurns()
	}
	return q
}

// fits reports whether the queue can be that of the trigger from now on.
func (q *queue) fits(t *Trigger) bool { return (q.turns != nil) == t.Ordered }

// Stats are the counters of one trigger since the start.
type Stats struct {
	Succeeded, Failed, Retried, Dead, Parked atomic.Uint64
	// Seconds is the time spent in calls, in nanoseconds.
	Busy atomic.Int64
	// Buckets count calls by duration; bucket i holds those up to Bounds[i],
	// the last one the rest.
	Buckets [len(Bounds) + 1]atomic.Uint64
}

// Bounds are the upper bounds of the duration buckets, in seconds.
var Bounds = [...]float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

func (s *Stats) observe(d time.Duration) {
	s.Busy.Add(int64(d))
	sec := d.Seconds()
	i := 0
	for i < len(Bounds) && sec > Bounds[i] {
		i++
	}
	s.Buckets[i].Add(1)
}

// parkedRetry is one retry that waits in PARKED.
type parkedRetry struct {
	due  time.Time
	seq  uint64
	turn *turn // the one it has, nil without an order
}

type retryHeap []parkedRetry

func (h retryHeap) Len() int { return len(h) }
func (h retryHeap) Less(i, j int) bool {
	return cmp.Or(h[i].due.Compare(h[j].due), cmp.Compare(h[i].seq, h[j].seq)) < 0
}
func (h retryHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push and Pop are for container/heap.
func (h *retryHeap) Push(x any) { *h = append(*h, x.(parkedRetry)) }

// Pop is for container/heap.
func (h *retryHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

func (q *queue) setSpec(t *Trigger) {
	old := q.spec.Swap(t)
	q.mu.Lock()
	if old != nil && old.Callee != t.Callee { // another one may work
		q.breaker = breaker{}
	}
	if old != nil && !slices.Equal(old.Limits, t.Limits) {
		passed := q.paid
		q.unbookLocked()
		if passed <= len(t.Limits) && slices.Equal(old.Limits[:passed], t.Limits[:passed]) {
			q.paid = passed
		}
	}
	if old == nil || !slices.Equal(old.KeyLimits, t.KeyLimits) {
		q.limitLocked(t.KeyLimits)
	}
	q.startLocked()
	q.feedLocked()
	q.mu.Unlock()
	q.signal()
}

// overflows decides whether a new job must be parked: when jobs before it
// are, or when the partition is nearly full and this trigger holds more than
// its share. A trigger alone in its partition is never parked: its backlog
// waits in JOBS.
func (q *queue) overflows(t *task) bool {
	if q.behind(t) {
		return true
	}
	part := t.part
	part.mu.Lock()
	defer part.mu.Unlock()
	limit, held := q.p.o.MaxOutstanding, part.active[q]
	if part.triggers.Load() > 1 && len(part.inflight) > limit/2 && held >= limit/(2*max(1, len(part.active))) {
		return true
	}
	part.active[q] = held + 1
	t.counted = true
	return false
}

// behind reports whether a new job must be parked because of those before it.
func (q *queue) behind(t *task) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.turns == nil:
		return q.overflow > 0
	case q.turns.free(t.job.Correlation):
		return len(q.turns.next) > 0
	default: // it waits for its turn: only so many do that in memory
		return q.turns.waiting >= q.p.o.MaxOutstanding/8
	}
}

// count makes the queue one of the triggers that share a partition.
func (q *queue) count(part *partition) {
	q.used.Store(true)
	if q.counted[part.index].CompareAndSwap(false, true) {
		part.triggers.Add(1)
	}
}

// countAll makes it one of those of each partition that may get its jobs. Where
// it once was one it stays one: there may still be jobs.
func (q *queue) countAll(t *Trigger) {
	q.count(q.part)
	if t.Spread {
		for _, part := range q.p.parts {
			q.count(part)
		}
	}
}

// uncount undoes count, of all partitions.
func (q *queue) uncount() {
	for i, part := range q.p.parts {
		if q.counted[i].CompareAndSwap(true, false) {
			part.triggers.Add(-1)
		}
	}
}

// push takes a task in; it starts at once when a slot is free.
func (q *queue) push(t *task) {
	q.mu.Lock()
	if q.spec.Load() == nil {
		q.mu.Unlock()
		q.p.orphan(t)
		return
	}
	if q.turns != nil && !t.held {
		ready, added := q.turns.add(turn{key: t.job.Correlation, order: t.order(), task: t})
		if !added { // it is parked already, or in the hands of another worker
			q.mu.Unlock()
			q.p.finish(t)
			return
		}
		q.ready = append(q.ready, ready...)
	} else {
		q.ready = append(q.ready, t)
	}
	q.startLocked()
	q.mu.Unlock()
}

// remove ends the queue of a trigger that is gone and returns what waited in
// it. Running calls end as they would.
func (q *queue) remove() []*task {
	q.mu.Lock()
	q.spec.Store(nil)
	q.unbookLocked()
	if q.timer != nil {
		q.timer.Stop()
	}
	inLine, _ := q.lines.end()
	waiting := slices.Concat(q.ready[q.head:], q.turns.leave(), inLine)
	q.ready, q.head = nil, 0
	q.mu.Unlock()
	q.signal()
	return waiting
}

// tryStart starts a task when a slot is free and nothing waits before it.
func (q *queue) tryStart(t *task) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	spec := q.spec.Load()
	if spec == nil || q.running >= spec.Concurrency || q.head < len(q.ready) || len(spec.Limits)+len(spec.KeyLimits) > 0 || q.breaker.open {
		return false
	}
	if q.turns == nil {
		if q.overflow > 0 {
			return false
		}
	} else if !q.turns.free(t.job.Correlation) || len(q.turns.next) > 0 {
		return false
	}
	if !q.p.begin() {
		return false
	}
	if q.turns != nil {
		q.turns.hold(t.job.Correlation, t.seq)
		t.held = true
	}
	q.running++
	go q.worker(t)
	return true
}

// startLocked starts workers for waiting tasks. mu is held.
func (q *queue) startLocked() {
	spec := q.spec.Load()
	if spec == nil {
		return
	}
	for q.running < spec.Concurrency && q.p.begin() {
		t := q.nextLocked(spec)
		if t == nil {
			q.p.work.Done()
			return
		}
		q.running++
		go q.worker(t)
	}
}

func (q *queue) popLocked() *task {
	t := q.ready[q.head]
	q.ready[q.head] = nil
	q.head++
	if q.head == len(q.ready) {
		q.ready, q.head = q.ready[:0], 0
	} else if q.head > 1024 && q.head > len(q.ready)/2 {
		q.ready = slices.Delete(q.ready, 0, q.head)
		q.head = 0
	}
	return t
}

// worker runs tasks until none waits or the trigger has more workers than it
// may have.
func (q *queue) worker(t *task) {
	defer q.p.work.Done()
	for {
		q.run(t)
		q.mu.Lock()
		spec := q.spec.Load()
		t = nil
		if spec != nil && q.running <= spec.Concurrency && !q.p.closing.Load() {
			t = q.nextLocked(spec)
		}
		parked := q.parkedLocked() > 0 || len(q.retries) > 0 || q.lines.fetchable()
		if t == nil {
			q.running--
			q.mu.Unlock()
			if parked {
				q.signal()
			}
			return
		}
		low := parked && len(q.ready)-q.head < spec.Concurrency
		q.mu.Unlock()
		if low {
			q.signal()
		}
	}
}

// run makes one call and decides what becomes of its job.
func (q *queue) run(t *task) {
	p, j := q.p, t.job
	spec, err := q.begin(p.stopping)
	if err != nil { // the job is still stored and comes back
		t.holds.drop(j.Correlation)
		return
	}
	if spec == nil { // the trigger was removed while the job waited
		t.holds.drop(j.Correlation)
		p.orphan(t)
		return
	}
	callee := spec.Callee
	if err := callee.prepare(p.stopping); err != nil {
		t.holds.drop(j.Correlation)
		q.end(spec)
		return
	}
	t.holds.use(j.Correlation, time.Now())
	t.holds, j.Limited = nil, false
	if spec.Direct {
		p.recent.begin(j.Key)
	}
	start := time.Now()
	res, ev, input, err := q.call(t, spec)
	took := time.Since(start)
	q.end(spec)
	if err != nil && p.callCtx.Err() != nil {
		return // shut down in mid-call: the job is still stored and comes back
	}
	counts := q.judge(spec, t, err)
	j.Attempt++
	q.stats.observe(took)
	run := Run{
		ID: runID(j), Key: j.Key, Function: callee.Name, Sensor: j.Sensor, Trigger: j.Trigger,
		Attempt: j.Attempt, Redrive: j.Redrive, Spec: j.SpecHash, Correlation: j.Correlation, Started: start, Duration: took, Queued: start.Sub(j.Time), Input: input, EventSeq: j.Last,
	}
	if ev != nil {
		run.EventID, run.EventType = ev.ID, ev.Type
	}
	run.fill(res, callee.Mask)
	if err == nil {
		run.Status = StatusSucceeded
		q.stats.Succeeded.Add(1)
		p.note(spec, &run)
		if tells(spec, j) {
			p.tell(t, callee, ev, res, false)
		} else {
			p.finish(t)
		}
		q.release(t)
		return
	}
	j.Error = string(mask(callee.Mask, []byte(err.Error())))
	run.fail(err, j.Error)
	q.stats.Failed.Add(1)
	switch {
	case triggers.Permanent(err), counts && j.Attempt >= spec.Policy.Attempts:
		run.Status = StatusDead
		p.note(spec, &run)
		p.giveUp(t, j.Error, ev, res)
	default:
		wait := spec.Policy.Wait(j.Attempt, rand.Float64())
		if later, ok := errors.AsType[*triggers.RetryAfterError](err); ok {
			wait = max(wait, min(later.After, time.Hour))
		}
		j.NotBefore = time.Now().Add(wait)
		run.Status, run.Next = StatusRetrying, j.NotBefore
		p.note(spec, &run)
		q.stats.Retried.Add(1)
		if !counts {
			j.Attempt--
		}
		p.park(t, q, WhyRetry)
	}
}

// runID names one call: the firing key, how often it was redriven, the attempt.
func runID(j *Job) string {
	b := make([]byte, 0, len(j.Key)+8)
	b = append(b, j.Key...)
	if j.Redrive > 0 {
		b = strconv.AppendInt(append(b, '-'), int64(j.Redrive), 10)
	}
	return string(strconv.AppendInt(append(b, '-'), int64(j.Attempt), 10))
}

// note records the run of a job.
func (p *Pool) note(spec *Trigger, run *Run) {
	if spec.Direct {
		p.recent.put(run)
	}
	p.runs.record(run)
}

// call prepares and makes one call. input is what the function was given
// instead of an event of the log, as JSON.
func (q *queue) call(t *task, spec *Trigger) (res triggers.Result, ev *bus.Event, input []byte, err error) {
	p, j, callee := q.p, t.job, spec.Callee
	if spec.Direct {
		r, err := j.request()
		if err != nil {
			return res, nil, nil, err
		}
		if r.Timeout == 0 {
			r.Timeout = spec.Timeout
		}
		ctx, cancel := context.WithTimeout(p.callCtx, r.Timeout)
		defer cancel()
		res, err = invoke(ctx, p.log, callee, r.call(callee, j.Key, j.Attempt+1), r.Timeout)
		return res, nil, r.Input, err
	}
	ctx, cancel := context.WithTimeout(p.callCtx, spec.Timeout)
	defer cancel()
	if j.Event != nil {
		if ev, err = bus.DecodeEvent(*j.Event); err != nil {
			return res, nil, nil, &triggers.PermanentError{Err: err}
		}
	} else if j.Last != 0 {
		if ev, err = p.event(ctx, j, j.Last); err != nil {
			return res, nil, nil, lost(j.Last, err)
		}
	}
	if err = beyondHops(spec, j, ev); err != nil {
		return res, ev, nil, err
	}
	var rendered map[string]any
	switch {
	case j.Late:
		if rendered, err = q.renderLate(ctx, spec, j); err != nil {
			return res, ev, nil, err
		}
	case len(j.Rendered) > 0:
		v, err := bus.ParseJSON(j.Rendered)
		if err != nil {
			return res, ev, nil, triggers.Permanentf("rendered input of the job: %v", err)
		}
		rendered, _ = v.(map[string]any)
	}
	c := &triggers.Call{
		Key: j.Key, Attempt: j.Attempt + 1, Sensor: j.Sensor, Trigger: j.Trigger, Function: callee.Name, Event: ev, Grants: spec.Secrets,
	}
	switch {
	case len(j.Input) > 0:
		v, err := bus.ParseJSON(j.Input)
		if err != nil {
			return res, ev, nil, triggers.Permanentf("edited input of the job: %v", err)
		}
		c.Input, c.HasInput, input = v, true, j.Input
	case spec.InputPath != "":
		if c.Input, c.HasInput = rendered[spec.InputPath]; c.HasInput {
			input = inputOf(j.Rendered, spec.InputPath, rendered)
		}
	}
	if input == nil && j.Last == 0 && ev != nil { // no log has what it gets
		input = ev.Data
	}
	c.Values = callee.Values(c, rendered)
	res, err = invoke(ctx, p.log, callee, c, spec.Timeout)
	return res, ev, input, err
}

// inputOf is the JSON of a rendered input: where nothing else was rendered it
// is a part of what the job holds.
func inputOf(job []byte, path string, rendered map[string]any) []byte {
	if len(rendered) == 1 && len(job) > len(path)+5 && job[1] == '"' && string(job[2:2+len(path)]) == path && string(job[2+len(path):4+len(path)]) == `":` {
		return job[len(path)+4 : len(job)-1]
	}
	b, _ := json.Marshal(rendered[path]) // it came from JSON, or goes there
	return b
}

// event returns an event the job refers to. What was stored after the firing is
// another one with its number, after the log was restored or exchanged.
func (p *Pool) event(ctx context.Context, j *Job, seq uint64) (*bus.Event, error) {
	ev, err := p.o.Events.Event(ctx, seq)
	if err == nil && !j.Time.IsZero() && ev.StoredAt.After(j.Time) {
		return nil, fmt.Errorf("event %d: %w", seq, bus.ErrNotFound)
	}
	return ev, err
}

func lost(seq uint64, err error) error {
	if errors.Is(err, bus.ErrNotFound) {
		return triggers.Permanentf("event %d of this job is no longer stored", seq)
	}
	return fmt.Errorf("reading event %d of this job: %w", seq, err)
}

func (q *queue) renderLate(ctx context.Context, spec *Trigger, j *Job) (map[string]any, error) {
	if spec.Render == nil {
		return nil, triggers.Permanentf("the trigger no longer has the templates this job needs")
	}
	events := make([]sensors.Contributing, len(j.Events))
	for i, c := range j.Events {
		ev, err := q.p.event(ctx, j, c.Seq)
		if err != nil {
			return nil, lost(c.Seq, err)
		}
		events[i] = sensors.Contributing{Contribution: c, Event: ev}
	}
	m, err := spec.Render(events, j.Item)
	if err != nil {
		return nil, &triggers.PermanentError{Err: err}
	}
	return m, nil
}

// settle renders a late job for good, as long as the events it renders from
// are still there. When it cannot, or the result is too large, it stays late.
func (q *queue) settle(j *Job) {
	spec := q.spec.Load()
	if spec == nil {
		return
	}
	ctx, cancel := context.WithTimeout(q.p.callCtx, 5*time.Second)
	defer cancel()
	rendered, err := q.renderLate(ctx, spec, j)
	if err != nil {
		return
	}
	if b, err := json.Marshal(rendered); err == nil && len(b) < q.p.o.Bus.MaxPayload()/3 {
		j.Rendered, j.Late = b, false
	}
}

// bury gives a job up without a call. Who submitted it learns that.
func (p *Pool) bury(t *task, reason string) {
	if j := t.job; j.Sensor == SensorExec || j.Sensor == SensorEndpoint {
		run := Run{
			ID: runID(j), Key: j.Key, Function: j.Trigger, Sensor: j.Sensor, Trigger: j.Trigger, Attempt: j.Attempt, Redrive: j.Redrive, Spec: j.SpecHash,
			Started: time.Now(), Status: StatusDead, Error: reason, Class: triggers.SystemError,
		}
		if t.q != nil {
			if spec := t.q.spec.Load(); spec != nil {
				run.Function = spec.Callee.Name
			}
		}
		p.recent.put(&run)
		p.runs.record(&run)
	}
	p.giveUp(t, reason, nil, triggers.Result{})
}

// giveUp moves a job to the dead letters, and enqueues what its trigger has
// called for them. While the bus does not take that the job stays where it is and
// the slot stays taken: the trigger pauses. ev and res are those of its last
// call, if there was one.
func (p *Pool) giveUp(t *task, reason string, ev *bus.Event, res triggers.Result) {
	j := t.job
	if ev == nil {
		ctx, cancel := context.WithTimeout(p.callCtx, 5*time.Second)
		ev = p.lastEvent(ctx, j)
		cancel()
	}
	spec := p.triggerOf(t)
	told := spec != nil && tells(spec, j)
	if told && beyondHops(spec, j, ev) != nil {
		told = false
		if !strings.HasPrefix(reason, hopLimit) {
			reason += "; its result is not told: " + hopLimit
		}
	}
	j.Error = reason
	j.NotBefore = time.Time{}
	j.Since = time.Now()
	if j.Event == nil && ev != nil && len(ev.Data) < p.o.Bus.MaxPayload()/2 {
		// Dead letters outlive the purge of EVENTS, so they carry their event.
		r := ev.Record()
		r.Seq, r.Time = ev.Seq, ev.StoredAt
		j.Event = &r
	}
	if j.Late && t.q != nil {
		t.q.settle(j)
	}
	rec := bus.Record{Subject: dlqSubject(j.Sensor, j.Trigger), Data: j.Encode(nil)}
	if !p.insist(j, "storing its dead letter", func(ctx context.Context) error {
		_, err := p.o.Bus.DeadLetters().Append(ctx, rec)
		return err
	}) {
		return
	}
	if spec != nil && spec.DeadLetter != nil {
		r := resultOf(j, spec.Callee, ev, res, true)
		if !p.handle(spec.DeadLetter, j, r.Event(p.o.Bus.MaxPayload()/2-resultRoom)) {
			return
		}
	}
	if t.q != nil {
		t.q.stats.Dead.Add(1)
	}
	p.log.Warn("job given up, it is in the dead letters", "sensor", j.Sensor, "trigger", j.Trigger, "key", j.Key, "attempts", j.Attempt, "reason", reason)
	if told {
		p.tell(t, spec.Callee, ev, res, true)
	} else {
		p.finish(t)
	}
	if t.q != nil {
		t.q.release(t)
	}
}

// triggerOf is the trigger of a job, nil when it is gone.
func (p *Pool) triggerOf(t *task) *Trigger {
	q := t.q
	if q == nil {
		return nil
	}
	if spec := q.spec.Load(); spec != nil {
		return spec
	}
	p.mu.RLock()
	q = p.queues[q.ref] // it may have got another queue during the call
	p.mu.RUnlock()
	if q == nil {
		return nil
	}
	return q.spec.Load()
}

// parking counts one more overflow job on its way to PARKED: later ones must
// queue behind it.
func (q *queue) parking() {
	q.mu.Lock()
	if q.turns == nil { // they count themselves
		q.overflow++
		q.coming++
		q.sent++
	}
	q.mu.Unlock()
	q.stats.Parked.Add(1)
}

// unparked takes back that a job is on its way.
func (q *queue) unparked() {
	q.mu.Lock()
	if q.turns == nil {
		q.overflow -= min(q.overflow, 1)
		q.coming--
	}
	q.mu.Unlock()
}

func (q *queue) parkedOverflow() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.parkedLocked()
}

// parkedLocked is the number of jobs parked as overflow that were not fetched,
// with those on their way. mu is held.
func (q *queue) parkedLocked() uint64 {
	if q.turns != nil {
		return uint64(q.turns.parked)
	}
	return q.overflow
}

// parkedAt notes where a job is parked and sees that somebody fetches it.
func (q *queue) parkedAt(why Why, seq uint64, j *Job) {
	q.mu.Lock()
	switch {
	case why == WhyRetry:
		q.addRetryLocked(seq, j)
		if j.Limited {
			q.startLocked()
		}
	case q.turns == nil:
		q.coming--
	default:
		if !q.turns.stored(j.Correlation, j.Order, seq) { // parked before this queue was there
			q.turns.add(turn{key: j.Correlation, order: j.Order, parked: seq})
		}
	}
	q.feedLocked()
	q.mu.Unlock()
	q.signal()
}

// addRetryLocked notes a parked retry. mu is held.
func (q *queue) addRetryLocked(seq uint64, j *Job) {
	r := parkedRetry{due: j.NotBefore, seq: seq}
	if q.turns != nil {
		r.turn = &turn{key: j.Correlation, order: j.Order}
		q.turns.hold(r.turn.key, r.turn.order)
	}
	if j.Limited {
		if r.due = time.Now(); q.lines != nil {
			q.lines.stored(j.Correlation, r, r.due)
			return
		}
	}
	heap.Push(&q.retries, r)
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// hasParkedLocked reports whether something is parked that will be fetched. mu is
// held.
func (q *queue) hasParkedLocked() bool {
	return q.parkedLocked() > 0 || len(q.retries) > 0 || q.lines.inParked() > 0
}

// feedLocked starts the goroutine that fetches parked jobs, unless it runs.
// It lives as long as something is parked. mu is held.
func (q *queue) feedLocked() {
	if q.feeding || q.spec.Load() == nil || !q.hasParkedLocked() || !q.p.begin() {
		return
	}
	q.feeding = true
	go q.feed()
}

// feed brings parked jobs back when they are due and there is room.
func (q *queue) feed() {
	defer q.p.work.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	fromLine := false // the last one was the first of a line: now it is another's turn
	for {
		q.mu.Lock()
		spec := q.spec.Load()
		if spec == nil || q.p.closing.Load() || !q.hasParkedLocked() {
			q.feeding = false
			q.mu.Unlock()
			return
		}
		wait := time.Second // closing is noticed within this time
		var retry parkedRetry
		var line *line // whose first one retry is
		fetchOverflow := false
		var next turn
		if q.running+len(q.ready)-q.head < 2*spec.Concurrency {
			if len(q.retries) > 0 {
				if until := time.Until(q.retries[0].due); until > 0 {
					wait = min(wait, until)
				} else {
					retry = heap.Pop(&q.retries).(parkedRetry)
				}
			}
			switch {
			case retry.seq != 0:
			case q.lines.fetchable() && !fromLine:
				line, retry = q.lines.first()
			case q.turns == nil:
				fetchOverflow = q.overflow > 0
			case len(q.turns.next) > 0:
				next = q.turns.next[0]
				q.turns.next = slices.Delete(q.turns.next, 0, 1)
			}
			if fromLine = line != nil; q.lines.fetchable() {
				wait = 0
			}
		}
		cursor := q.cursor
		q.mu.Unlock()
		switch {
		case retry.seq != 0:
			if !q.fetch(retry, line) {
				q.mu.Lock()
				if retry.due = time.Now().Add(time.Second); line != nil && q.lines != nil {
					q.lines.back(line, retry, retry.due)
					q.startLocked() // which sets the timer
				} else {
					heap.Push(&q.retries, retry)
				}
				q.mu.Unlock()
			}
			continue
		case next.parked != 0:
			if q.fetchNext(next) {
				continue
			}
		case fetchOverflow:
			if q.fetchOverflow(cursor) {
				continue
			}
		}
		timer.Reset(wait)
		select {
		case <-q.wake:
		case <-timer.C:
		case <-q.p.callCtx.Done():
		}
	}
}

// fetch loads one parked job into the queue, of a line unless that is nil. It
// reports false when the bus did not answer.
func (q *queue) fetch(p parkedRetry, l *line) bool {
	r, err := q.p.o.Bus.Parked().Get(q.p.callCtx, p.seq)
	if errors.Is(err, bus.ErrNotFound) { // somebody dropped it
		q.leaveLine(l)
		if p.turn != nil {
			q.pass(p.turn)
		}
		return true
	}
	if err != nil {
		return false
	}
	q.unpark(r, l)
	return true
}

// fetchNext loads a parked job that has the turn of its key. It reports false
// when the bus did not answer.
func (q *queue) fetchNext(n turn) bool {
	r, err := q.p.o.Bus.Parked().Get(q.p.callCtx, n.parked)
	missing := errors.Is(err, bus.ErrNotFound) // somebody dropped it
	q.mu.Lock()
	if err != nil && !missing {
		q.turns.next = slices.Insert(q.turns.next, 0, n)
		q.mu.Unlock()
		return false
	}
	q.turns.parked--
	q.mu.Unlock()
	if missing {
		q.pass(&n)
	} else {
		q.unpark(r, nil)
	}
	return true
}

// fetchOverflow loads the next overflow job at or after cursor. It reports
// false when there is none yet or the bus did not answer.
func (q *queue) fetchOverflow(cursor uint64) bool {
	r, err := q.p.o.Bus.Parked().Next(q.p.callCtx, parkedSubject(q.ref.Sensor, q.ref.Trigger, WhyOverflow), cursor)
	if err != nil {
		if errors.Is(err, bus.ErrNotFound) {
			q.recount()
		}
		return false
	}
	q.mu.Lock()
	q.cursor = r.Seq + 1
	if q.overflow > 0 {
		q.overflow--
	}
	q.mu.Unlock()
	q.unpark(r, nil)
	return true
}

// recount asks the bus how many jobs are parked when memory and bus disagree,
// for example after jobs were dropped by hand. It knows nothing of what is on its
// way.
func (q *queue) recount() {
	q.mu.Lock()
	coming, sent := q.coming, q.sent
	q.mu.Unlock()
	if coming > 0 {
		return
	}
	subject := parkedSubject(q.ref.Sensor, q.ref.Trigger, WhyOverflow)
	counts, err := q.p.o.Bus.Parked().Counts(q.p.callCtx, subject)
	if err != nil {
		return
	}
	q.mu.Lock()
	if counts[subject] == 0 && q.sent == sent {
		q.overflow = 0
	}
	q.mu.Unlock()
}

// unpark takes in a job that was fetched, of a line unless that is nil.
func (q *queue) unpark(r bus.Record, l *line) {
	job, err := DecodeJob(r.Data)
	if err != nil {
		q.p.log.Error("parked job cannot be read", "sensor", q.ref.Sensor, "trigger", q.ref.Trigger, "parked_seq", r.Seq, "error", err)
		job = &Job{Key: fmt.Sprintf("unreadable-%d", r.Seq), Sensor: q.ref.Sensor, Trigger: q.ref.Trigger, Rendered: r.Data, Fault: err.Error()}
	}
	job.Order = cmp.Or(job.Order, r.Seq) // of engines that did not note it
	t := &task{job: job, q: q, parked: r.Seq, called: l != nil}
	if q.turns != nil { // whatever is fetched has the turn
		t.held = true
	}
	if job.Fault != "" {
		q.leaveLine(l)
		q.p.bury(t, job.Fault)
		return
	}
	q.push(t)
}

// mask applies a masker that may be nil.
func mask(m func([]byte) []byte, b []byte) []byte {
	if m == nil || len(b) == 0 {
		return b
	}
	return m(b)
}
