package jobs

import (
	"container/list"
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// StatusRunning is that of a submitted call while an attempt runs. The history
// does not have it.
const StatusRunning = "running"

// recentBytes bounds what is remembered of submitted calls.
const recentBytes = 32 << 20

// recent remembers how the newest submitted calls stand, so that who asks for
// one often does not read the history each time. It has no part in correctness:
// what it forgets is in the history.
type recent struct {
	mu    sync.Mutex
	calls map[string]*list.Element // of *call, by key
	order *list.List               // the one that changed last is in front
	bytes int
	limit int
}

// call is how one submitted call stands.
type call struct {
	ref         TriggerRef
	key, status string
	run         json.RawMessage // its last run
}

func (c *call) size() int { return len(c.run) + 2*len(c.key) + 200 }

func newRecent() *recent {
	return &recent{calls: map[string]*list.Element{}, order: list.New(), limit: recentBytes}
}

// expect notes a call that is about to be submitted, and reports whether it was
// not known.
func (r *recent) expect(run *Run) bool {
	b := run.AppendJSON(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.calls[run.Key]; ok {
		return false
	}
	r.set(run, b)
	return true
}

// forget drops a call that was not submitted.
func (r *recent) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.calls[key]; ok && e.Value.(*call).status == StatusQueued {
		r.drop(e)
	}
}

// begin notes that an attempt runs.
func (r *recent) begin(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.calls[key]; ok {
		e.Value.(*call).status = StatusRunning
	}
}

// put notes the end of an attempt.
func (r *recent) put(run *Run) {
	b := run.AppendJSON(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(run, b)
}

// set notes a call and forgets the oldest beyond the limit. mu is held.
func (r *recent) set(run *Run, b []byte) {
	key := run.Key
	c := &call{TriggerRef{run.Sensor, run.Trigger}, key, run.Status, b}
	if e, ok := r.calls[key]; ok {
		r.bytes -= e.Value.(*call).size()
		e.Value = c
		r.order.MoveToFront(e)
	} else {
		r.calls[key] = r.order.PushFront(c)
	}
	r.bytes += c.size()
	for r.bytes > r.limit && r.order.Len() > 1 {
		r.drop(r.order.Back())
	}
}

func (r *recent) drop(e *list.Element) {
	c := r.order.Remove(e).(*call)
	delete(r.calls, c.key)
	r.bytes -= c.size()
}

// get returns how a call stands.
func (r *recent) get(key string) (call, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.calls[key]
	if !ok {
		return call{}, false
	}
	return *e.Value.(*call), true
}

// Submission tells how a submitted call stands and gives its last run, if it is
// one of the newest. The history has the others.
func (p *Pool) Submission(key string) (status string, run json.RawMessage, ok bool) {
	c, ok := p.recent.get(key)
	return c.status, c.run, ok
}

// Find is [Pool.Submission] for the calls of one trigger, which also looks into
// the history of the function. It blocks on the bus. It fails with
// [bus.ErrNotFound] when there is no such call, or not any more, and with
// [ErrBusy] when too many ask for calls that are not among the newest.
func (p *Pool) Find(ctx context.Context, ref TriggerRef, function, key string) (status string, run json.RawMessage, err error) {
	if c, ok := p.recent.get(key); ok {
		if c.ref != ref {
			return "", nil, bus.ErrNotFound
		}
		return c.status, c.run, nil
	}
	if len(key) != keyLen {
		return "", nil, bus.ErrNotFound
	}
	select {
	case p.searches <- struct{}{}:
		defer func() { <-p.searches }()
	default:
		return "", nil, ErrBusy
	}
	found, err := ReadRuns(ctx, p.o.Bus, RunFilter{Function: function, Key: key, Sensor: ref.Sensor, Trigger: ref.Trigger, Limit: 1000})
	if err != nil {
		return "", nil, err
	}
	var newest time.Time
	for _, r := range found {
		var head struct {
			Status  string
			Started time.Time
		}
		if json.Unmarshal(r.JSON, &head) == nil && !head.Started.Before(newest) {
			newest, status, run = head.Started, head.Status, r.JSON
		}
	}
	if run == nil {
		return "", nil, bus.ErrNotFound
	}
	return status, run, nil
}
