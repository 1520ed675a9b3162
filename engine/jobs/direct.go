package jobs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// The pseudo sensors of calls that no sensor decided: by hand, where the
// trigger is the function's name, and through an endpoint, where it is the
// endpoint's.
const (
	SensorExec     = "_exec"
	SensorEndpoint = "_endpoint"
)

// Request is a call that no sensor decided.
type Request struct {
	// Ref says whose call it is: [SensorExec] and a function, [SensorEndpoint]
	// and an endpoint.
	Ref TriggerRef
	// Key is the idempotency key, see [DeriveKey]; "" makes one.
	Key string
	// Input is JSON, nil for none.
	Input json.RawMessage
	// Grants are names of Secrets that are added to those of the function.
	Grants []string
	// HTTPContext is the JSON object that tells of the HTTP request, or nil.
	HTTPContext json.RawMessage
	// Timeout is the longest time the call may take, waiting for a free slot
	// of the function included; 0 is what the trigger says.
	Timeout time.Duration
}

// Outcome is what became of a call that was made at once.
type Outcome struct {
	// ID is the id of its run and Key its idempotency key.
	ID, Key string
	// Function is the function's name.
	Function string
	Started  time.Time
	// Duration is how long the call took and Queued how long it waited before.
	Duration, Queued time.Duration
	// Result is what it gave. Its logs are masked, its output is as it came:
	// it belongs to who called.
	Result triggers.Result
	// Err is why it failed, masked, nil when it did not.
	Err error
	// TimedOut is true when it failed because its time was over.
	TimedOut bool
}

// Errors of calls that were not made.
var (
	// ErrNotCallable says that nothing is called under the reference.
	ErrNotCallable = errors.New("there is no such function or endpoint")
	// ErrStopping says that the engine starts or stops.
	ErrStopping = errors.New("the engine is starting or stopping")
	// ErrBusy says that the function had no free slot, or its rate limit no free
	// call, for too long.
	ErrBusy = errors.New("the function is busy")
)

// keyLen is the length of keys.
const keyLen = 24

// newKey makes an idempotency key that nobody can guess.
func newKey() string {
	var b [18]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// DeriveKey makes an idempotency key of what identifies a call, such as what a
// client sent for the purpose: the same of the same parts.
func DeriveKey(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return base64.RawURLEncoding.EncodeToString(sum[:18])
}

// enter counts one more user of the callee. It reports false when a newer
// version is there.
func (p *Pool) enter(c *Callee) bool {
	if c.users.Add(1) <= 0 { // closed
		c.users.Add(-1)
		return false
	}
	if c.dead.Load() {
		p.leave(c)
		return false
	}
	return true
}

// leave counts one user less. The last one of a retired callee closes it.
func (p *Pool) leave(c *Callee) {
	if c.users.Add(-1) == 0 && c.dead.Load() {
		p.closeCallee(c)
	}
}

// begin waits for a slot of the function a queue calls now and enters it. The
// caller ends it with end. It fails when ctx ends, and returns nil when the
// trigger was removed meanwhile.
func (q *queue) begin(ctx context.Context) (*Trigger, error) {
	for {
		spec := q.spec.Load()
		if spec == nil {
			return nil, nil
		}
		slots := spec.Callee.Slots
		if err := slots.take(ctx); err != nil {
			return nil, err
		}
		// While it waited, another version may have come.
		if now := q.spec.Load(); now != nil && now.Callee.Slots == slots && q.p.enter(now.Callee) {
			return now, nil
		}
		slots.give()
	}
}

// end ends a call that begin began.
func (q *queue) end(spec *Trigger) {
	q.p.leave(spec.Callee)
	spec.Callee.Slots.give()
}

// invoke makes a call. A panic in the function is its failure.
func invoke(ctx context.Context, log *slog.Logger, callee *Callee, c *triggers.Call, timeout time.Duration) (res triggers.Result, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("function panicked: %v", r)
			log.Error("function panicked", "function", callee.Name, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	res, err = callee.Function.Invoke(ctx, c)
	if _, told := errors.AsType[*triggers.Error](err); err != nil && !told && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within the timeout of %v: %w", timeout, err)
	}
	return res, err
}

// prepare waits until the function can be called; it fails when ctx ends.
func (c *Callee) prepare(ctx context.Context) error {
	if p, ok := c.Function.(triggers.Preparer); ok {
		return p.Prepare(ctx)
	}
	return nil
}

// Invoke makes one call of a function outside of any pool, within timeout, and
// waits for its end. The caller closes the function.
func Invoke(ctx context.Context, log *slog.Logger, callee *Callee, r Request) Outcome {
	key := newKey()
	_ = callee.prepare(ctx) // when ctx ends, the call tells
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	out := Outcome{ID: key + "-1", Key: key, Function: callee.Name, Started: time.Now()}
	out.Result, out.Err = invoke(ctx, log, callee, r.call(callee, key, 1), r.Timeout)
	out.finish(ctx, callee)
	return out
}

// call is the call of a function for a request.
func (r *Request) call(callee *Callee, key string, attempt int) *triggers.Call {
	c := &triggers.Call{
		Key: key, Attempt: attempt, Function: callee.Name, HasInput: len(r.Input) > 0, Grants: r.Grants, HTTPContext: r.HTTPContext,
	}
	if c.HasInput {
		c.Input = r.Input
	}
	c.Values = callee.Values(c, nil)
	return c
}

// finish notes the end of a call and masks what others than its caller see.
func (o *Outcome) finish(ctx context.Context, callee *Callee) {
	o.Duration = time.Since(o.Started)
	logs := &o.Result.Logs
	logs.Stdout, logs.Stderr = mask(callee.Mask, logs.Stdout), mask(callee.Mask, logs.Stderr)
	if o.Err != nil {
		o.TimedOut = errors.Is(ctx.Err(), context.DeadlineExceeded)
		e := ErrorOf(o.Err)
		if masked := string(mask(callee.Mask, []byte(e.Message))); masked != e.Message {
			o.Err = &triggers.Error{Class: e.Type, Message: masked, Stacktrace: e.Stacktrace}
		}
	}
}

// open lets a direct call in, unless the pool does not run. The caller calls
// p.work.Done.
func (p *Pool) open() error {
	if !p.running.Load() || !p.begin() {
		return ErrStopping
	}
	return nil
}

func (p *Pool) direct(ref TriggerRef) (*queue, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	q := p.queues[ref]
	if q == nil {
		return nil, ErrNotCallable
	}
	return q, nil
}

// Call makes a call at once, and waits for its end. It waits at most
// Options.MaxWait for a free slot of the function, and not longer than ctx; a
// call that has begun goes on when ctx ends, up to its timeout. It leaves a run
// in the history, is not repeated and does not become a dead letter. An error
// says that no call was made: [ErrNotCallable], [ErrStopping], [ErrBusy], or
// that of ctx.
func (p *Pool) Call(ctx context.Context, r Request) (*Outcome, error) {
	if err := p.open(); err != nil {
		return nil, err
	}
	defer p.work.Done()
	q, err := p.direct(r.Ref)
	if err != nil {
		return nil, err
	}
	q.used.Store(true)
	spec := q.spec.Load()
	if spec == nil {
		return nil, ErrNotCallable
	}
	came, timeout := time.Now(), r.Timeout
	if timeout == 0 {
		timeout = spec.Timeout
	}
	if spec, err = p.beginDirect(ctx, q, min(timeout, p.o.MaxWait)); err != nil {
		return nil, err
	}
	defer q.end(spec)
	callee := spec.Callee
	id := newKey()
	if r.Key == "" {
		r.Key = id
	}
	callCtx, cancel := context.WithDeadline(p.callCtx, came.Add(timeout))
	defer cancel()
	out := &Outcome{ID: id + "-1", Key: r.Key, Function: callee.Name, Started: time.Now()}
	out.Queued = out.Started.Sub(came)
	out.Result, out.Err = invoke(callCtx, p.log, callee, r.call(callee, r.Key, 1), timeout)
	out.finish(callCtx, callee)

	q.stats.observe(out.Duration)
	run := Run{
		ID: out.ID, Key: out.Key, Function: callee.Name, Sensor: r.Ref.Sensor, Trigger: r.Ref.Trigger, Attempt: 1, Spec: spec.Hash,
		Started: out.Started, Duration: out.Duration, Queued: out.Queued, Status: StatusSucceeded, Input: r.Input,
	}
	run.fill(out.Result, callee.Mask)
	if out.Err == nil {
		q.stats.Succeeded.Add(1)
	} else {
		q.stats.Failed.Add(1)
		run.Status = StatusFailed
		run.fail(out.Err, out.Err.Error())
	}
	p.runs.record(&run)
	return out, nil
}

// beginDirect is begin for a caller who waits.
func (p *Pool) beginDirect(ctx context.Context, q *queue, atMost time.Duration) (*Trigger, error) {
	wait, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	defer context.AfterFunc(p.stopping, cancel)()
	var err error
	var spec *Trigger
	var holds keyLimits // of the key of direct calls, which is none
	if spec = q.spec.Load(); spec != nil {
		holds = spec.KeyLimits
		if err = holds.take(wait, ""); err != nil { // at once when the time is not enough
			holds = nil
		}
		for _, l := range spec.Limits {
			if err == nil {
				err = l.Wait(wait) // likewise
			}
		}
	}
	if err == nil {
		spec, err = q.begin(wait)
	}
	if err == nil && spec != nil {
		holds.use("", time.Now())
	} else {
		holds.drop("")
	}
	switch {
	case err == nil && spec == nil:
		return nil, ErrNotCallable
	case err == nil:
		return spec, nil
	case p.closing.Load():
		return nil, ErrStopping
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, ErrBusy
}

// Submitted is a call that will be made.
type Submitted struct {
	// Key is its idempotency key, by which its runs are found.
	Key string
	// Known is true when a call with this key was submitted within the last
	// 30 s: there is no second one.
	Known bool
}

// Submit stores a call as a job, and returns when it is durable. It is then
// made like that of any trigger: repeated by the function's policy, and a dead
// letter in the end. Errors are [ErrNotCallable], [ErrStopping], and those of
// [bus.Log.Append].
func (p *Pool) Submit(ctx context.Context, r Request) (Submitted, error) {
	if err := p.open(); err != nil {
		return Submitted{}, err
	}
	defer p.work.Done()
	q, err := p.direct(r.Ref)
	if err != nil {
		return Submitted{}, err
	}
	spec := q.spec.Load()
	if spec == nil {
		return Submitted{}, ErrNotCallable
	}
	q.count(q.part)
	if r.Key == "" {
		r.Key = newKey()
	}
	j := &Job{Key: r.Key, Sensor: r.Ref.Sensor, Trigger: r.Ref.Trigger, SpecHash: spec.Hash, Time: time.Now()}
	var rendered bytes.Buffer
	enc := json.NewEncoder(&rendered)
	enc.SetEscapeHTML(false) // as it came
	if err := enc.Encode(directJob{r.Input, r.Grants, r.HTTPContext, r.Timeout.Milliseconds()}); err != nil {
		return Submitted{}, err
	}
	j.Rendered = rendered.Bytes()
	run := Run{
		ID: j.Key, Key: j.Key, Function: spec.Callee.Name, Sensor: j.Sensor, Trigger: j.Trigger, Spec: j.SpecHash,
		Status: StatusQueued, Started: j.Time,
	}
	run.Input = run.keep(r.Input, spec.Callee.Mask)
	rec := bus.Record{Subject: j.Subject(len(p.parts)), Data: j.Encode(nil), MsgID: j.Key}
	first := p.recent.expect(&run)
	ack, err := p.o.Bus.Jobs().Append(ctx, rec)
	if err == nil {
		err = p.o.Bus.Jobs().Sync(ctx)
	}
	if err != nil || ack.Duplicate {
		if first {
			p.recent.forget(r.Key)
		}
		return Submitted{Key: r.Key, Known: err == nil}, err
	}
	p.runs.record(&run)
	p.Offer(j, ack.Seq)
	return Submitted{Key: r.Key}, nil
}

// directJob is what a job of a direct call has in place of rendered values.
type directJob struct {
	Input       json.RawMessage `json:"input,omitempty"`
	Secrets     []string        `json:"secrets,omitempty"`
	HTTPContext json.RawMessage `json:"httpContext,omitempty"`
	TimeoutMs   int64           `json:"timeoutMs,omitempty"`
}

// request is the request a job was made of.
func (j *Job) request() (r Request, err error) {
	var d directJob
	if err := json.Unmarshal(j.Rendered, &d); err != nil {
		return r, triggers.Permanentf("the request of the job: %v", err)
	}
	if len(j.Input) > 0 {
		d.Input = j.Input
	}
	return Request{Key: j.Key, Input: d.Input, Grants: d.Secrets, HTTPContext: d.HTTPContext, Timeout: time.Duration(d.TimeoutMs) * time.Millisecond}, nil
}

// ErrorObject is how a failure is told to who called, as functions tell it.
type ErrorObject struct {
	Type       triggers.Class `json:"type"`
	Message    string         `json:"message"`
	Stacktrace []string       `json:"stacktrace"`
}

// ErrorOf tells a failure.
func ErrorOf(err error) ErrorObject {
	o := ErrorObject{Type: triggers.ClassOf(err), Message: err.Error()}
	if e, ok := errors.AsType[*triggers.Error](err); ok {
		o.Message, o.Stacktrace = e.Message, e.Stacktrace
	}
	return o
}
