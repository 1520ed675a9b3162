package jobs

import (
	"container/list"
	"encoding/json"
	"sync"
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
	key, status string
	run         json.RawMessage // its last run
}

func (c *call) size() int { return len(c.run) + 2*len(c.key) + 200 }

func newRecent() *recent {
	return &recent{calls: map[string]*list.Element{}, order: list.New(), limit: recentBytes}
}

// expect notes a call that is about to be submitted.
func (r *recent) expect(run *Run) {
	b := run.AppendJSON(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.calls[run.Key]; !ok {
		r.set(run.Key, run.Status, b)
	}
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
	r.set(run.Key, run.Status, b)
}

// set notes a call and forgets the oldest beyond the limit. mu is held.
func (r *recent) set(key, status string, run []byte) {
	c := &call{key, status, run}
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

// Submission tells how a submitted call stands and gives its last run, if it is
// one of the newest. The history has the others.
func (p *Pool) Submission(key string) (status string, run json.RawMessage, ok bool) {
	r := p.recent
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.calls[key]
	if !ok {
		return "", nil, false
	}
	c := e.Value.(*call)
	return c.status, c.run, true
}
