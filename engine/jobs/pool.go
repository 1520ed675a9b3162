package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/triggers"
)

// TriggerRef names a trigger.
type TriggerRef struct{ Sensor, Trigger string }

// String is "sensor/trigger".
func (r TriggerRef) String() string { return r.Sensor + "/" + r.Trigger }

// Trigger is what the pool knows of one trigger. It is not changed after it
// was handed to [Pool.Apply].
type Trigger struct {
	Ref TriggerRef
	// Callee is the function it calls.
	Callee *Callee
	// Timeout bounds one call, Concurrency how many run at once.
	Timeout     time.Duration
	Concurrency int
	Policy      triggers.Policy
	// Block is true for `overflow: block`.
	Block bool
	// Ordered is true for `order: key`: calls of one correlation key are made
	// one after the other, in the order of their firings.
	Ordered bool
	// Spread is true when its jobs may be in any partition.
	Spread bool
	// Limits bound its calls in a time, with those of others that have the same
	// ones: its own first.
	Limits []*rate.Limiter
	// KeyLimits bound the calls of each correlation key in the same way.
	KeyLimits []*KeyLimit
	// Breaker pauses it while its function fails.
	Breaker Breaker
	// Direct is true when no sensor fires it: its calls are those of [Pool.Call]
	// and [Pool.Submit], and Hash is that of its resource.
	Direct bool
	Hash   string
	// Tell is true when something depends on the results of the function, so
	// that they become events. Those of jobs with a Flow always do.
	Tell bool
	// Secrets are the names of Secrets that the trigger adds to its calls.
	Secrets []string
	// InputPath is the path of the trigger's input among the rendered values,
	// "" when it has none.
	InputPath string
	// Render renders the templates again for a job that is Late.
	Render func(events []sensors.Contributing, item int) (map[string]any, error)
	// DeadLetter is called for its dead letters, nil for nothing.
	DeadLetter *DeadLetter
}

// Callee is a function that is ready to be called. The pool closes Function
// (when it is an io.Closer) after no table names it any more and its last
// call has ended.
type Callee struct {
	// Name is the function's name, or "<sensor>.<trigger>" of an inline one.
	Name     string
	Function triggers.Function
	// Values makes the values of one call.
	Values func(c *triggers.Call, rendered map[string]any) triggers.Values
	// Mask hides secrets in what is kept of a call.
	Mask func([]byte) []byte
	// Slots bounds the calls at the same time, whoever makes them; nil leaves
	// that to the triggers. Versions of one function have the same.
	Slots *Slots

	users atomic.Int64
	dead  atomic.Bool
}

// Events gives workers the events their jobs refer to.
type Events interface {
	// Event returns the event with this sequence, from memory or the bus.
	Event(ctx context.Context, seq uint64) (*bus.Event, error)
}

// Options configures a [Pool].
type Options struct {
	Bus    bus.Bus
	Events Events
	Logger *slog.Logger
	// MaxOutstanding is the number of unfinished jobs per partition in
	// memory, default 1024.
	MaxOutstanding int
	// ParkLimit is the number of parked overflow jobs per trigger, default
	// 1,000,000.
	ParkLimit uint64
	// OrphanTTL is how long jobs of a vanished trigger wait for its return,
	// default 24 h.
	OrphanTTL time.Duration
	// MaxWait is how long a direct call waits for a free slot of its function,
	// default 5 s.
	MaxWait time.Duration
	// Alarm is told what needs a person; default: the log is.
	Alarm func(code, message string)
	// KeepAlive is how often unfinished jobs are kept alive, default 10 s.
	KeepAlive time.Duration
}

// Pool calls functions for jobs. Make it with [NewPool], hand it a table with
// Apply, and let Run work until its context ends.
type Pool struct {
	o      Options
	log    *slog.Logger
	gate   gate
	runs   *recorder
	recent *recent
	// searches has a place for each look into the history at the same time.
	searches chan struct{}
	parts    []*partition
	mu       sync.RWMutex
	queues   map[TriggerRef]*queue
	away     map[TriggerRef]time.Time // since when a trigger with parked jobs is missing; the janitor's
	untold   chan struct{}            // a result was parked

	callCtx  context.Context // ends when the grace of a shutdown is over
	cancel   context.CancelFunc
	stopping context.Context // ends when no more calls begin
	stop     context.CancelFunc
	doors    sync.RWMutex // what begins passes them: closing is set under it
	closing  atomic.Bool
	running  atomic.Bool
	work     sync.WaitGroup
	closers  sync.WaitGroup // functions that are being closed
}

// partition is the in-memory side of one partition of JOBS.
type partition struct {
	index    int
	mu       sync.Mutex
	inflight map[uint64]*task
	active   map[*queue]int
	last     uint64       // highest sequence delivered
	triggers atomic.Int32 // triggers whose jobs live here
}

// task is one job in the hands of the pool.
type task struct {
	job    *Job
	q      *queue
	parked uint64 // its sequence in PARKED, 0 when it came from JOBS

	// For a task from JOBS: its partition, its sequence there and whether it
	// counts in part.active. part.mu guards the newest delivery, nil as long
	// as an offered job was not delivered, and whether the task has ended.
	part     *partition
	seq      uint64
	counted  bool
	delivery bus.Delivery
	ended    bool

	// held is true while the task has the turn of its key. The queue's mu
	// guards it.
	held bool
	// probe is true for the one call of a paused trigger.
	probe bool
	// holds are the limits of which it holds a call of its key, and called is
	// true from when it got its chance to do so to the beginning of its call.
	// The queue's mu guards them until a worker has the task.
	holds  keyLimits
	called bool
}

// order is the place of the task's firing among those of its trigger.
func (t *task) order() uint64 {
	if t.parked != 0 {
		return t.job.Order
	}
	return t.seq
}

// NewPool returns a pool that does nothing yet.
func NewPool(o Options) *Pool {
	if o.MaxOutstanding == 0 {
		o.MaxOutstanding = 1024
	}
	if o.ParkLimit == 0 {
		o.ParkLimit = 1_000_000
	}
	if o.OrphanTTL == 0 {
		o.OrphanTTL = 24 * time.Hour
	}
	if o.MaxWait == 0 {
		o.MaxWait = 5 * time.Second
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = 10 * time.Second
	}
	if o.Alarm == nil {
		o.Alarm = func(code, message string) { o.Logger.Error("alarm", "code", code, "what", message) }
	}
	p := &Pool{o: o, log: o.Logger, queues: map[TriggerRef]*queue{}, away: map[TriggerRef]time.Time{}, untold: make(chan struct{}, 1)}
	p.runs = newRecorder(o.Bus, o.Logger)
	p.recent, p.searches = newRecent(), make(chan struct{}, 2)
	p.callCtx, p.cancel = context.WithCancel(context.Background())
	p.stopping, p.stop = context.WithCancel(p.callCtx)
	p.parts = make([]*partition, o.Bus.Jobs().Partitions())
	for i := range p.parts {
		p.parts[i] = &partition{index: i, inflight: map[uint64]*task{}, active: map[*queue]int{}}
	}
	return p
}

// Apply makes table the set of triggers. Jobs that run keep the function they
// started with; waiting ones get the new one. It does not block.
func (p *Pool) Apply(table map[TriggerRef]*Trigger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var added []*queue
	var moved []*task // of queues that another one replaces
	defer func() {
		if len(added) > 0 || len(moved) > 0 { // a trigger that returned finds its jobs parked
			p.spawn(func() {
				for _, t := range moved {
					p.readmit(t)
				}
				if err := p.loadParked(p.callCtx, added); err != nil && p.callCtx.Err() == nil {
					p.log.Warn("parked jobs of new triggers could not be counted; they are found at the next start", "error", err)
				}
			})
		}
	}()
	kept := map[*Callee]bool{}
	for _, t := range table {
		kept[t.Callee] = true
	}
	var orphans []*task
	replaced := map[TriggerRef]*queue{}
	for ref, q := range p.queues {
		old := q.spec.Load()
		if t, ok := table[ref]; ok && q.fits(t) {
			q.setSpec(t)
			if !t.Direct {
				q.countAll(t)
			}
		} else {
			if ok {
				replaced[ref] = q
				moved = append(moved, q.remove()...)
			} else {
				orphans = append(orphans, q.remove()...)
			}
			q.uncount()
			delete(p.queues, ref)
		}
		if !kept[old.Callee] {
			p.retire(old.Callee)
		}
	}
	for _, t := range orphans {
		p.orphan(t)
	}
	for ref, t := range table {
		if _, ok := p.queues[ref]; !ok {
			q := newQueue(p, t)
			if old := replaced[ref]; old != nil {
				q.stats = old.stats
			}
			if !t.Direct { // of those many may never have a job
				q.countAll(t)
			}
			q.setSpec(t)
			p.queues[ref] = q
			if p.running.Load() {
				added = append(added, q)
			}
		}
	}
}

// retire closes a callee as soon as nobody calls it.
func (p *Pool) retire(c *Callee) {
	c.dead.Store(true)
	if c.users.Load() == 0 {
		p.closeCallee(c)
	}
}

// closeCallee closes a function nobody calls. It does not wait for that: a
// function may have processes to end.
func (p *Pool) closeCallee(c *Callee) {
	if !c.users.CompareAndSwap(0, -1<<40) {
		return
	}
	if cl, ok := c.Function.(interface{ Close() error }); ok {
		p.closers.Go(func() {
			if err := cl.Close(); err != nil {
				p.log.Warn("function did not close cleanly", "function", c.Name, "error", err)
			}
		})
	}
}

// begin counts what begins in work, unless the pool is closing; whoever begins
// calls work.Done. What is counted otherwise may come when Run waits for the last
// one already.
func (p *Pool) begin() bool {
	p.doors.RLock()
	defer p.doors.RUnlock()
	if p.closing.Load() {
		return false
	}
	p.work.Add(1)
	return true
}

// shut ends that anything begins.
func (p *Pool) shut() {
	p.doors.Lock()
	p.closing.Store(true)
	p.doors.Unlock()
}

// spawn runs f beside, unless the pool is closing: then what f would do is left
// to the next start.
func (p *Pool) spawn(f func()) {
	if p.begin() {
		go func() {
			defer p.work.Done()
			f()
		}()
	}
}

// Run works off the jobs until ctx ends, then lets running calls end within
// grace, and returns. What was not started stays in the queue of the bus.
func (p *Pool) Run(ctx context.Context, grace time.Duration) error {
	p.mu.RLock()
	queues := slices.Collect(maps.Values(p.queues))
	p.mu.RUnlock()
	p.running.Store(true)
	runsCtx, stopRuns := context.WithCancel(context.Background())
	var wg, rec sync.WaitGroup
	rec.Go(func() { p.runs.run(runsCtx) })
	err := p.load(ctx, queues)
	if err == nil {
		for _, part := range p.parts {
			wg.Go(func() { p.consume(ctx, part) })
		}
		wg.Go(func() { p.keepAlive(ctx) })
		wg.Go(func() { p.janitor(ctx) })
		wg.Go(func() { p.tellParked(ctx) })
		<-ctx.Done()
	}
	p.shut()
	p.stop()
	wg.Wait()
	done := make(chan struct{})
	go func() {
		p.work.Wait()
		close(done)
	}()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		p.cancel()
		<-done
	}
	p.cancel()
	stopRuns()
	rec.Wait()
	p.mu.Lock()
	closed := map[*Callee]bool{}
	for _, q := range p.queues {
		if c := q.spec.Load().Callee; !closed[c] {
			closed[c] = true
			p.retire(c)
		}
	}
	p.mu.Unlock()
	p.closers.Wait()
	return err
}

// load finds out what the bus holds for the queues.
func (p *Pool) load(ctx context.Context, queues []*queue) error {
	if err := p.loadParked(ctx, queues); err != nil {
		return fmt.Errorf("reading parked jobs: %w", err)
	}
	if err := p.countStored(ctx); err != nil {
		return fmt.Errorf("counting jobs: %w", err)
	}
	return nil
}

// Covered tells the pool that the checkpoint covers all events up to and
// including position, and the deadlines whose firings are in JOBS up to
// sequence job: their finished jobs may leave JOBS.
func (p *Pool) Covered(position, job uint64) { p.gate.open(position, job, p.release) }

func (p *Pool) consume(ctx context.Context, part *partition) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		start := time.Now()
		err := p.o.Bus.Jobs().Consume(ctx, part.index, p.o.MaxOutstanding, func(d bus.Delivery) { p.deliver(part, d) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > time.Minute {
			wait = 0
		}
		wait = min(max(2*wait, 100*time.Millisecond), 10*time.Second)
		p.log.Warn("job consumer stopped, starting it again", "partition", part.index, "error", err, "in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// deliver takes one record from JOBS into memory.
func (p *Pool) deliver(part *partition, d bus.Delivery) {
	if p.closing.Load() {
		return
	}
	rec := d.Record()
	part.mu.Lock()
	part.last = max(part.last, rec.Seq)
	if old, there := part.inflight[rec.Seq]; there {
		old.delivery = d // the newest delivery is the one to answer
		ended := old.ended
		part.mu.Unlock()
		if ended {
			p.release(old)
		}
		return
	}
	t := &task{part: part, seq: rec.Seq, delivery: d}
	part.inflight[rec.Seq] = t
	part.mu.Unlock()
	job, err := DecodeJob(rec.Data)
	if err != nil {
		p.log.Error("job record cannot be read; it goes to the dead letters as it is", "jobs_seq", rec.Seq, "error", err)
		t.job = &Job{Key: fmt.Sprintf("unreadable-%d", rec.Seq), Sensor: "_unreadable", Trigger: "_unreadable", Rendered: rec.Data, Fault: err.Error()}
		p.spawn(func() { p.bury(t, t.job.Fault) })
		return
	}
	t.job = job
	p.admit(t)
}

// Offer hands over a job at the moment JOBS acknowledged it under seq, so that
// its call need not wait for the delivery. It is taken only when a slot is free
// and nothing waits before it; what is not taken is delivered in its turn. It
// does not block. The job belongs to the pool.
func (p *Pool) Offer(j *Job, seq uint64) {
	if p.closing.Load() || !p.running.Load() || j.Fault != "" {
		return
	}
	p.mu.RLock()
	q := p.queues[TriggerRef{j.Sensor, j.Trigger}]
	p.mu.RUnlock()
	if q == nil {
		return
	}
	part := q.part
	if j.Spread {
		part = p.parts[j.Partition(len(p.parts))]
	}
	part.mu.Lock()
	defer part.mu.Unlock()
	// Deliveries come in order: what is not above the last was delivered, and
	// may have ended already.
	if seq <= part.last || len(part.inflight) >= p.o.MaxOutstanding/2 {
		return
	}
	t := &task{job: j, q: q, part: part, seq: seq, counted: true}
	if q.tryStart(t) {
		part.inflight[seq] = t
		part.active[q]++
	}
}

// admit puts a task into its trigger's queue, or parks it.
func (p *Pool) admit(t *task) {
	ref := TriggerRef{t.job.Sensor, t.job.Trigger}
	p.mu.RLock()
	q := p.queues[ref]
	p.mu.RUnlock()
	if q == nil {
		p.orphan(t)
		return
	}
	t.q = q
	q.count(t.part)
	if q.turns != nil && t.parked == 0 {
		defer q.reached(t.part, t.seq)
	}
	if t.job.Fault != "" {
		p.spawn(func() { p.bury(t, t.job.Fault) })
		return
	}
	if t.parked == 0 && q.parksAtOnce(t) {
		p.park(t, q, WhyRetry)
		return
	}
	if t.parked == 0 && q.overflows(t) {
		if q.parkedOverflow() >= p.o.ParkLimit {
			if spec := q.spec.Load(); spec == nil || !spec.Block {
				p.spawn(func() { p.bury(t, p.tooMany()) })
			} else if q.turns != nil { // it takes its place in line
				q.push(t)
			} else { // stays outstanding until there is room
				time.AfterFunc(time.Second, func() { p.admit(t) })
			}
			return
		}
		if q.parkTurn(t) {
			p.park(t, q, WhyOverflow)
		} else {
			p.finish(t) // it is parked already
		}
		return
	}
	q.push(t)
}

// tooMany is the reason why a job beyond the parking limit is given up.
func (p *Pool) tooMany() string {
	return fmt.Sprintf("more than %d jobs of this trigger are waiting", p.o.ParkLimit)
}

// readmit takes in a task whose queue was replaced. The new queue finds what is
// parked itself.
func (p *Pool) readmit(t *task) {
	if t.parked != 0 {
		return
	}
	t.part.mu.Lock()
	t.part.uncount(t)
	t.part.mu.Unlock()
	t.held, t.called = false, false
	p.admit(t)
}

// uncount ends that a task counts as one its queue holds. mu is held.
func (part *partition) uncount(t *task) {
	if !t.counted {
		return
	}
	t.counted = false
	if n := part.active[t.q] - 1; n > 0 {
		part.active[t.q] = n
	} else {
		delete(part.active, t.q)
	}
}

// orphan makes a job wait, parked, for its trigger to come back.
func (p *Pool) orphan(t *task) {
	if t.parked == 0 { // else it is parked already
		p.park(t, nil, WhyOverflow)
	}
}

// park stores the task's job in PARKED and lets it leave where it came from.
// When the bus refuses, it is tried again later: the job is still in JOBS.
func (p *Pool) park(t *task, q *queue, why Why) {
	if t.job.Since.IsZero() {
		t.job.Since = time.Now()
	}
	if t.seq != 0 {
		t.job.Order = t.seq
	}
	counted := q
	if q != nil && why == WhyOverflow {
		q.parking()
	}
	r := bus.Record{Subject: parkedSubject(t.job.Sensor, t.job.Trigger, why), Data: t.job.Encode(nil)}
	again := func(err error) {
		if p.closing.Load() || p.callCtx.Err() != nil {
			return
		}
		if counted != nil && why == WhyOverflow {
			counted.unparked()
		}
		p.log.Warn("job cannot be parked, trying again", "sensor", t.job.Sensor, "trigger", t.job.Trigger, "error", err)
		time.AfterFunc(time.Second, func() { p.park(t, nil, why) })
	}
	err := p.o.Bus.Parked().AppendAsync(p.callCtx, r, func(a bus.Ack, err error) {
		if err != nil {
			again(err)
			return
		}
		if q == nil || q.spec.Load() == nil { // it may have come into being meanwhile
			p.mu.RLock()
			q = p.queues[TriggerRef{t.job.Sensor, t.job.Trigger}]
			p.mu.RUnlock()
			if q != nil && why == WhyOverflow {
				q.parking()
			}
		}
		if q != nil {
			q.parkedAt(why, a.Seq, t.job)
		}
		p.finish(t)
	})
	if err != nil {
		again(err)
	}
}

// finish ends a task: its job leaves JOBS once the checkpoint covers it, or
// PARKED at once.
func (p *Pool) finish(t *task) {
	if t.parked != 0 {
		if err := p.o.Bus.Parked().Delete(context.WithoutCancel(p.callCtx), t.parked); err != nil {
			p.log.Warn("finished job stays parked and will be called again", "sensor", t.job.Sensor, "trigger", t.job.Trigger, "error", err)
		}
		return
	}
	if p.gate.pass(t) {
		p.release(t)
	}
}

// release removes a task's job from JOBS. A task that cannot be answered now,
// since it was offered and not yet delivered or since the bus is away, is kept
// until its job is delivered (again).
func (p *Pool) release(t *task) {
	part := t.part
	part.mu.Lock()
	d := t.delivery
	t.delivery, t.ended = nil, true
	part.mu.Unlock()
	if d == nil {
		return
	}
	if err := d.Done(); err != nil {
		if !errors.Is(err, bus.ErrClosed) {
			p.log.Debug("finished job is answered at its next delivery", "jobs_seq", t.seq, "error", err)
		}
		return
	}
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.inflight[t.seq] != t {
		return
	}
	delete(part.inflight, t.seq)
	part.uncount(t)
}

// keepAlive tells the bus which jobs are still being worked on.
func (p *Pool) keepAlive(ctx context.Context) {
	tick := time.NewTicker(p.o.KeepAlive)
	defer tick.Stop()
	var due []bus.Delivery
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, part := range p.parts {
			due = due[:0]
			part.mu.Lock()
			for _, t := range part.inflight {
				if t.delivery != nil {
					due = append(due, t.delivery)
				}
			}
			part.mu.Unlock()
			for _, d := range due {
				if err := d.InProgress(); err != nil {
					break // the bus is away; what is delivered again is recognised
				}
			}
		}
	}
}

// gate holds finished tasks back until the checkpoint covers them.
type gate struct {
	covered, jobs atomic.Uint64
	mu            sync.Mutex
	waiting       []*task
}

// covers reports whether the checkpoint covers t's firing.
func (g *gate) covers(t *task) bool {
	return g.covered.Load() >= t.job.Position && (!t.job.Trailing || g.jobs.Load() >= t.seq)
}

// pass reports whether t may leave now; otherwise it is kept.
func (g *gate) pass(t *task) bool {
	if g.covers(t) {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.covers(t) {
		return true
	}
	g.waiting = append(g.waiting, t)
	return false
}

// open lets what a checkpoint at position and job covers leave.
func (g *gate) open(position, job uint64, release func(*task)) {
	g.mu.Lock()
	g.covered.Store(position)
	g.jobs.Store(job)
	var out []*task
	keep := g.waiting[:0]
	for _, t := range g.waiting {
		if g.covers(t) {
			out = append(out, t)
		} else {
			keep = append(keep, t)
		}
	}
	clear(g.waiting[len(keep):])
	g.waiting = keep
	g.mu.Unlock()
	for _, t := range out {
		release(t)
	}
}
