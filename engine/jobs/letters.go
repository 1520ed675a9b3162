package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
)

func isNotFound(err error) bool { return errors.Is(err, bus.ErrNotFound) }

// loadParked tells the queues what is parked for them. It blocks on the bus.
func (p *Pool) loadParked(ctx context.Context, queues []*queue) error {
	if len(queues) == 0 {
		return nil
	}
	counts, err := p.o.Bus.Parked().Counts(ctx, bus.ParkedPrefix+">")
	if err != nil {
		return err
	}
	for _, q := range queues {
		overflow := parkedSubject(q.ref.Sensor, q.ref.Trigger, WhyOverflow)
		if n := counts[overflow]; n > 0 {
			q.count(q.part)
			if q.turns != nil {
				if err := q.load(ctx, overflow, n, q.loadTurn); err != nil {
					return err
				}
			} else {
				q.mu.Lock()
				q.overflow = max(q.overflow, n)
				q.mu.Unlock()
			}
		}
		subject := parkedSubject(q.ref.Sensor, q.ref.Trigger, WhyRetry)
		if counts[subject] > 0 {
			q.count(q.part)
			if err := q.loadRetries(ctx, subject, counts[subject]); err != nil {
				return err
			}
		}
		if q.turns != nil {
			if err := q.loaded(ctx); err != nil {
				return err
			}
		}
		q.mu.Lock()
		q.startLocked()
		q.feedLocked()
		q.mu.Unlock()
	}
	return nil
}

// countStored counts those queues that have jobs in a partition of JOBS where
// that is not known otherwise, such as those whose triggers are called directly
// or were spread once, so that jobs of others do not keep theirs from being
// delivered. It blocks on the bus.
func (p *Pool) countStored(ctx context.Context) error {
	counts, err := p.o.Bus.Jobs().Counts(ctx, bus.JobsPrefix+">")
	if err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	for subject := range counts {
		if ref, part := p.partOf(subject); part != nil && p.queues[ref] != nil {
			p.queues[ref].count(part)
		}
	}
	return nil
}

// partOf is the trigger and the partition of a subject in JOBS, nil if it is
// none.
func (p *Pool) partOf(subject string) (ref TriggerRef, part *partition) {
	tokens := strings.Split(strings.TrimPrefix(subject, bus.JobsPrefix), ".")
	if len(tokens) != 3 {
		return ref, nil
	}
	n, err := strconv.Atoi(tokens[0])
	sensor, err1 := bus.Untoken(tokens[1])
	trigger, err2 := bus.Untoken(tokens[2])
	if err != nil || err1 != nil || err2 != nil || n < 0 || n >= len(p.parts) {
		return ref, nil
	}
	return TriggerRef{sensor, trigger}, p.parts[n]
}

// loadTurn notes the turn of a job that is parked as overflow.
func (q *queue) loadTurn(r bus.Record, j *Job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.turns.stored(j.Correlation, j.Order, r.Seq) {
		q.turns.add(turn{key: j.Correlation, order: j.Order, parked: r.Seq})
	}
}

// loaded tells the turns that all parked jobs are known, and up to where JOBS
// holds earlier ones, in each partition.
func (q *queue) loaded(ctx context.Context) error {
	jobs := q.p.o.Bus.Jobs()
	counts, err := jobs.Counts(ctx, bus.JobsPrefix+"*."+bus.Token(q.ref.Sensor)+"."+bus.Token(q.ref.Trigger))
	if err != nil {
		return err
	}
	barriers := map[int]uint64{}
	for subject := range counts {
		last, err := jobs.Last(ctx, subject)
		if err != nil && !isNotFound(err) {
			return err
		}
		if _, part := q.p.partOf(subject); part != nil {
			barriers[part.index] = last.Seq
		}
	}
	q.mu.Lock()
	q.ready = append(q.ready, q.turns.load(barriers)...)
	q.startLocked()
	q.mu.Unlock()
	for _, part := range q.p.parts {
		part.mu.Lock()
		delivered := part.last
		part.mu.Unlock()
		q.reached(part, delivered)
	}
	return nil
}

func (q *queue) loadRetries(ctx context.Context, subject string, n uint64) error {
	q.mu.Lock()
	known := make(map[uint64]bool, len(q.retries))
	for _, r := range q.retries {
		known[r.seq] = true
	}
	q.lines.each(func(r parkedRetry) { known[r.seq] = true })
	q.mu.Unlock()
	return q.load(ctx, subject, n, func(r bus.Record, j *Job) {
		if known[r.Seq] {
			return
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		q.addRetryLocked(r.Seq, j)
	})
}

// load calls each for the n records of PARKED under a subject. Those that cannot
// be read are an empty job.
func (q *queue) load(ctx context.Context, subject string, n uint64, each func(bus.Record, *Job)) error {
	rd, err := q.p.o.Bus.Parked().Read(ctx, 0, subject)
	if err != nil {
		return err
	}
	defer rd.Close()
	for n > 0 {
		wait, cancel := context.WithTimeout(ctx, 5*time.Second)
		recs, err := rd.Next(wait, 512)
		cancel()
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil // fewer than counted: some were dropped meanwhile
			}
			return err
		}
		for _, r := range recs {
			n--
			j, err := DecodeJob(r.Data)
			if err != nil {
				j = &Job{}
			}
			j.Order = cmp.Or(j.Order, r.Seq) // of engines that did not note it
			each(r, j)
		}
	}
	return nil
}

// janitor buries parked jobs whose trigger stayed away for OrphanTTL. The
// time counts from when this process first missed the trigger.
func (p *Pool) janitor(ctx context.Context) {
	tick := time.NewTicker(min(10*time.Minute, max(p.o.OrphanTTL/4, time.Second)))
	defer tick.Stop()
	for {
		if err := p.buryOrphans(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("orphaned jobs could not be looked through", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *Pool) buryOrphans(ctx context.Context) error {
	orphans, err := p.Orphans(ctx)
	if err != nil {
		return err
	}
	for ref := range p.away {
		if orphans[ref] == 0 {
			delete(p.away, ref)
		}
	}
	for ref := range orphans {
		since, known := p.away[ref]
		if !known {
			since = time.Now()
			p.away[ref] = since
		}
		if time.Since(since) < p.o.OrphanTTL {
			continue
		}
		for _, why := range []Why{WhyOverflow, WhyRetry} {
			if err := p.buryParked(ctx, parkedSubject(ref.Sensor, ref.Trigger, why)); err != nil {
				return err
			}
		}
	}
	return nil
}

// buryParked moves everything parked under subject to the dead letters.
func (p *Pool) buryParked(ctx context.Context, subject string) error {
	for seq := uint64(0); ; {
		r, err := p.o.Bus.Parked().Next(ctx, subject, seq)
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		seq = r.Seq + 1
		j, err := DecodeJob(r.Data)
		if err != nil {
			return fmt.Errorf("parked job %d: %w", r.Seq, err)
		}
		p.bury(&task{job: j, parked: r.Seq}, fmt.Sprintf("its trigger was gone for more than %v", p.o.OrphanTTL))
	}
}

// Orphans returns how many parked jobs belong to triggers that do not exist.
func (p *Pool) Orphans(ctx context.Context) (map[TriggerRef]uint64, error) {
	parked, err := p.Parked(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	for ref := range parked {
		if _, ok := p.queues[ref]; ok {
			delete(parked, ref)
		}
	}
	return parked, nil
}

// Parked returns how many jobs are parked per trigger.
func (p *Pool) Parked(ctx context.Context) (map[TriggerRef]uint64, error) {
	return countByTrigger(ctx, p.o.Bus.Parked(), bus.ParkedPrefix)
}

// DeadLetters returns how many dead letters there are per trigger.
func (p *Pool) DeadLetters(ctx context.Context) (map[TriggerRef]uint64, error) {
	return countByTrigger(ctx, p.o.Bus.DeadLetters(), bus.DLQPrefix)
}

func countByTrigger(ctx context.Context, l bus.Log, prefix string) (map[TriggerRef]uint64, error) {
	counts, err := l.Counts(ctx, prefix+">")
	if err != nil {
		return nil, err
	}
	out := make(map[TriggerRef]uint64, len(counts))
	for subject, n := range counts {
		tokens := strings.Split(strings.TrimPrefix(subject, prefix), ".")
		if len(tokens) < 2 || len(tokens) == 3 && tokens[2] == string(WhyResult) { // that job has ended
			continue
		}
		s, err1 := bus.Untoken(tokens[0])
		t, err2 := bus.Untoken(tokens[1])
		if err1 == nil && err2 == nil {
			out[TriggerRef{s, t}] += n
		}
	}
	return out, nil
}

// Letter is one dead letter.
type Letter struct {
	Seq  uint64
	Time time.Time
	Job  *Job
}

// Letters returns up to limit dead letters from sequence from on, of one
// sensor and trigger where given.
func Letters(ctx context.Context, b bus.Bus, ref TriggerRef, from uint64, limit int) ([]Letter, error) {
	token := func(s string) string {
		if s == "" {
			return "*"
		}
		return bus.Token(s)
	}
	filter := bus.DLQPrefix + token(ref.Sensor) + "." + token(ref.Trigger)
	var out []Letter
	for len(out) < limit {
		r, err := b.DeadLetters().Next(ctx, filter, from)
		if isNotFound(err) {
			break
		}
		if err != nil {
			return nil, err
		}
		l, err := letter(r)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
		from = r.Seq + 1
	}
	return out, nil
}

// LetterAt returns the dead letter with this sequence, or [bus.ErrNotFound].
func LetterAt(ctx context.Context, b bus.Bus, seq uint64) (Letter, error) {
	r, err := b.DeadLetters().Get(ctx, seq)
	if err != nil {
		return Letter{}, err
	}
	return letter(r)
}

func letter(r bus.Record) (Letter, error) {
	j, err := DecodeJob(r.Data)
	if err != nil {
		return Letter{}, fmt.Errorf("dead letter %d: %w", r.Seq, err)
	}
	return Letter{Seq: r.Seq, Time: r.Time, Job: j}, nil
}

// Redrive puts a dead letter back into JOBS with fresh attempts and removes
// it. With input, which is JSON, the function gets that instead of what it got
// before. The idempotency key stays, so a call that did work is recognised. When
// it fails half way the letter is still there and a repetition is harmless
// within the dedup window of JOBS.
func Redrive(ctx context.Context, b bus.Bus, l Letter, input []byte) error {
	j := *l.Job
	if j.Fault != "" {
		return fmt.Errorf("dead letter %d cannot be redriven: %s", l.Seq, j.Fault)
	}
	j.Attempt, j.NotBefore, j.Error, j.Since, j.Position, j.Order, j.Limited = 0, time.Time{}, "", time.Time{}, 0, 0, false
	j.Redrive++
	if len(input) > 0 {
		j.Input = input
	}
	rec := bus.Record{Subject: j.Subject(b.Jobs().Partitions()), Data: j.Encode(nil), MsgID: fmt.Sprintf("%s/%d", j.Key, j.Redrive)}
	if _, err := b.Jobs().Append(ctx, rec); err != nil {
		return fmt.Errorf("dead letter %d not redriven: %w", l.Seq, err)
	}
	if err := b.Jobs().Sync(ctx); err != nil {
		return fmt.Errorf("dead letter %d may come twice: it was redriven, and stays: %w", l.Seq, err)
	}
	return b.DeadLetters().Delete(ctx, l.Seq)
}

// TriggerStatus is the state of one trigger's queue at one moment.
type TriggerStatus struct {
	Ref              TriggerRef
	Function         string
	Running, Waiting int
	Overflow         uint64
	Retries          int
	// Limited is how many more wait, in memory or parked, for the rate of their
	// key.
	Limited int
	// Breaker is the state of its breaker, "" when it has none, and RetryAt when
	// the next probe is made while that is open.
	Breaker string
	RetryAt time.Time
	Stats   *Stats
}

// FunctionStatus is the state of one function at one moment, whoever calls it.
type FunctionStatus struct {
	// NotReady is why it cannot be called, nil when it can or nobody knows.
	NotReady error
	// Limit is how many of its calls may run at the same time, Running how many
	// do, and Waiting how many are held up by that alone. All are 0 for one whose
	// only bound is that of its trigger.
	Limit, Running, Waiting int
	// Processes is how many processes it keeps, 0 for a kind that keeps none.
	Processes int
}

// Functions returns the state of all functions, by name.
func (p *Pool) Functions() map[string]FunctionStatus {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := map[string]FunctionStatus{}
	for _, q := range p.queues {
		t := q.spec.Load()
		if t == nil {
			continue
		}
		if _, known := out[t.Callee.Name]; known {
			continue
		}
		var s FunctionStatus
		if r, ok := t.Callee.Function.(interface{ Ready() error }); ok {
			s.NotReady = r.Ready()
		}
		if w, ok := t.Callee.Function.(interface{ Processes() int }); ok {
			s.Processes = w.Processes()
		}
		s.Limit, s.Running, s.Waiting = t.Callee.Slots.state()
		out[t.Callee.Name] = s
	}
	return out
}

// Status returns the state of all triggers, in no order; of those that are
// called directly, only of those that were.
func (p *Pool) Status() []TriggerStatus {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := make([]TriggerStatus, 0, len(p.queues))
	for ref, q := range p.queues {
		s := TriggerStatus{Ref: ref, Stats: q.stats}
		t := q.spec.Load()
		if t != nil && t.Direct && !q.used.Load() {
			continue
		}
		if t != nil {
			s.Function = t.Callee.Name
		}
		q.mu.Lock()
		s.Running, s.Waiting, s.Overflow, s.Retries = q.running, len(q.ready)-q.head+q.turns.inMemory(), q.parkedLocked(), len(q.retries)
		s.Limited = q.lines.inMemory() + q.lines.inParked()
		if t != nil && t.Breaker.Failures > 0 {
			s.Breaker = q.breaker.state()
			if s.Breaker == BreakerOpen {
				s.RetryAt = q.breaker.until
			}
		}
		q.mu.Unlock()
		out = append(out, s)
	}
	return out
}

// DroppedRuns is the number of runs the history could not take.
func (p *Pool) DroppedRuns() uint64 { return p.runs.dropped.Load() }
