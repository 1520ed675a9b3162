package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

// Options are the workers of one function.
type Options struct {
	// Command makes the command of a worker; it is asked before each start. It
	// may block until ctx ends, for what has to be installed first.
	Command func(ctx context.Context) (*exec.Cmd, error)
	// Hello gives what is sent to a worker before anything else, which then
	// answers that it is ready; it is asked before each start. Nil is for workers
	// that are ready when they run.
	Hello func() ([][]byte, error)
	// Lines is true for workers that read and write lines of JSON on stdin and
	// stdout; others have the protocol on descriptors 3 and 4.
	Lines bool
	// Size is the most workers, at least 1.
	Size int
	// Idle is how long a worker waits for a call before it is stopped, default
	// 5 min, and StartLimit how long one may take to be ready, default 2 min.
	Idle, StartLimit time.Duration
	// Gate, unless nil, bounds what the workers of all pools that have it take.
	Gate   *Gate
	Logger *slog.Logger
}

// Gate is what pools share: it bounds how many workers start at the same time,
// and how many stay that have started to see whether they do, and that nobody has
// called.
type Gate struct{ starting, uncalled chan struct{} }

// NewGate returns a gate that lets as many workers start as there are
// processors, and [Uncalled] stay.
func NewGate() *Gate {
	return &Gate{starting: make(chan struct{}, runtime.NumCPU()), uncalled: make(chan struct{}, Uncalled)}
}

// Uncalled is how many workers behind one [Gate] wait for a first call: a
// thousand functions that are never called take no thousand processes.
const Uncalled = 8

const (
	defaultIdle  = 5 * time.Minute
	defaultStart = 2 * time.Minute
	// patience is how long a call waits for one of the workers that exist
	// before another is started, once there is one for each processor.
	patience = 10 * time.Millisecond
	// proof is how long a worker has to run that does not say that it is ready.
	proof = 500 * time.Millisecond
	// firstBackoff and maxBackoff bound the wait after failed starts.
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 30 * time.Second
)

// Pool is the workers of one function, and as such a [triggers.Function]. Make it
// with [NewPool]; the owner closes it. It is safe for concurrent use.
type Pool struct {
	o    Options
	log  *slog.Logger
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // starts and stops

	mu       sync.Mutex
	closed   bool
	tried    bool          // a start has succeeded or failed
	ended    chan struct{} // closed, and made anew, when a start has
	idle     []*worker     // those that wait, the warmest last
	count    int           // those that live or start
	starting int
	waiters  []*waiter
	timer    *time.Timer // of the next look at idle workers, nil for none

	failure error // why the last start failed, nil when it did not
	fails   int
	again   time.Time // no start before
	warned  bool
}

// waiter is a call that waits for a worker. given has room for one.
type waiter struct{ given chan grant }

type grant struct {
	w   *worker
	err error
}

// NewPool returns a pool that has started nothing.
func NewPool(o Options) *Pool {
	o.Size = max(o.Size, 1)
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	if o.StartLimit <= 0 {
		o.StartLimit = defaultStart
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pool{o: o, log: o.Logger, ended: make(chan struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// errClosed is what calls of a closed pool get.
var errClosed = triggers.Errorf(triggers.SystemError, "the function is closed")

// Invoke makes the call c, as [triggers.Function] says. It blocks until the
// answer is there or ctx has ended; then the process of the worker has ended
// too.
func (p *Pool) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	payload, err := c.Payload()
	if err != nil {
		return triggers.Result{}, err
	}
	a, err := p.call(ctx, &request{ctx, c, payload})
	res := triggers.Result{Logs: a.Logs, Status: "failed"}
	if err == nil {
		res.Output, res.ContentType, res.Events, res.Status = a.Payload, "application/json", a.Events, "answered"
	}
	return res, err
}

// takers is how many workers are tried that end before they take a call.
const takers = 3

func (p *Pool) call(ctx context.Context, r *request) (reply, error) {
	for n := 1; ; n++ {
		w, err := p.acquire(ctx)
		if err != nil {
			return reply{}, err
		}
		a, usable, err := w.call(ctx, r)
		if usable {
			p.release(w)
		} else {
			p.replace(w, err == nil)
		}
		if !errors.Is(err, errNotTaken) {
			return a, err
		}
		if n == takers {
			return a, triggers.Errorf(triggers.SystemError, "%d workers in a row ended before they took the call%s", n, excerpt(a.Logs.Stderr))
		}
	}
}

// Warm starts a worker, unless there is one, so that what is wrong is known
// before the first call. It does not wait.
func (p *Pool) Warm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count == 0 && !p.closed {
		p.startLocked()
	}
}

// Prepare implements [triggers.Preparer]: it waits until a first worker is ready
// or is known not to be. Where the last start failed and no worker lives, it
// begins another one when the time for that has come, and waits for it.
func (p *Pool) Prepare(ctx context.Context) error {
	p.mu.Lock()
	if p.closed || p.tried && (p.failureLocked() == nil || p.starting == 0 && time.Now().Before(p.again)) {
		p.mu.Unlock()
		return nil
	}
	if p.count == 0 {
		p.startLocked()
	}
	ended := p.ended
	p.mu.Unlock()
	select {
	case <-ended:
		return nil
	case <-p.ctx.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Prove implements [triggers.Prover]: it waits until a worker is ready. One that
// does not say so has to run for a moment, in which a program that cannot start
// ends.
func (p *Pool) Prove(ctx context.Context) error {
	if err := p.Prepare(ctx); err != nil {
		return err
	}
	if err := p.Ready(); err != nil || p.o.Hello != nil {
		return err
	}
	w, err := p.acquire(ctx)
	if err != nil {
		return err
	}
	timer := time.NewTimer(proof)
	defer timer.Stop()
	select {
	case <-w.proc.Done():
		err = w.died(ctx, nil)
		p.replace(w, false)
		return err
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.release(w)
	return err
}

// Ready tells why no call can be made: why the last start of a worker failed,
// while none lives. It is nil when calls can be made, and as long as nobody knows.
func (p *Pool) Ready() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failureLocked()
}

// failureLocked is Ready. mu is held.
func (p *Pool) failureLocked() error {
	if p.count > p.starting {
		return nil
	}
	return p.failure
}

// Processes is how many processes live or start.
func (p *Pool) Processes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// acquire returns a worker that is the caller's alone.
func (p *Pool) acquire(ctx context.Context) (*worker, error) {
	p.mu.Lock()
	for n := len(p.idle); n > 0; n = len(p.idle) {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.calledLocked(w)
		if w.alive() {
			p.mu.Unlock()
			return w, nil
		}
		p.dropLocked(w)
	}
	switch {
	case p.closed:
		p.mu.Unlock()
		return nil, errClosed
	case p.count == 0 && time.Now().Before(p.again):
		defer p.mu.Unlock()
		return nil, notReady(p.failure, time.Until(p.again))
	}
	me := &waiter{make(chan grant, 1)}
	p.waiters = append(p.waiters, me)
	if p.starting < len(p.waiters) && p.count < runtime.NumCPU() {
		p.startLocked()
	}
	p.mu.Unlock()

	grow := time.NewTimer(patience)
	defer grow.Stop()
	for {
		select {
		case g := <-me.given:
			return g.w, g.err
		case <-grow.C:
			p.mu.Lock()
			if p.starting == 0 {
				p.startLocked()
			}
			p.mu.Unlock()
			grow.Reset(patience)
		case <-ctx.Done():
			p.mu.Lock()
			if i := slices.Index(p.waiters, me); i >= 0 {
				p.waiters = slices.Delete(p.waiters, i, i+1)
			}
			starting := p.starting > 0
			p.mu.Unlock()
			select {
			case g := <-me.given:
				if g.w != nil {
					p.release(g.w)
				}
			default:
			}
			return nil, waited(ctx, starting)
		}
	}
}

// waited is the error of a call that got no worker in time.
func waited(ctx context.Context, starting bool) error {
	err := interruption(ctx)
	if e, ok := errors.AsType[*triggers.Error](err); ok && e.Class == triggers.FunctionError {
		if starting {
			e.Message += ": its worker was still starting"
		} else {
			e.Message += ": all workers were busy"
		}
	}
	return err
}

// notReady is the error of a call that no worker can take.
func notReady(reason error, after time.Duration) error {
	if triggers.Permanent(reason) {
		return reason
	}
	return &triggers.RetryAfterError{After: after, Err: triggers.Errorf(triggers.SystemError, "the function is not ready: %w", reason)}
}

// release gives a worker back.
func (p *Pool) release(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		p.dropLocked(w)
	case len(p.waiters) > 0:
		p.giveLocked(grant{w: w})
	case !p.staysLocked(w):
		p.dropLocked(w)
	default:
		w.idleSince = time.Now()
		p.idle = append(p.idle, w)
		if p.timer == nil {
			p.timer = time.AfterFunc(p.o.Idle, p.reap)
		}
	}
}

// staysLocked reports whether a worker may wait for a call: one that was called
// may, of others only so many. mu is held.
func (p *Pool) staysLocked(w *worker) bool {
	if w.calls > 0 || p.o.Gate == nil {
		return true
	}
	select {
	case p.o.Gate.uncalled <- struct{}{}:
		w.uncalled = true
		return true
	default:
		return false
	}
}

// calledLocked ends that a worker waits for its first call. mu is held.
func (p *Pool) calledLocked(w *worker) {
	if w.uncalled {
		w.uncalled = false
		<-p.o.Gate.uncalled
	}
}

// giveLocked hands something to the call that waits longest. mu is held.
func (p *Pool) giveLocked(g grant) {
	p.waiters[0].given <- g
	p.waiters[0] = nil
	p.waiters = p.waiters[1:]
}

// replace ends a worker that must not be used again. left is true when its call
// was fine and left processes behind.
func (p *Pool) replace(w *worker, left bool) {
	p.mu.Lock()
	warn := left && !p.warned && !p.closed
	p.warned = p.warned || warn
	p.dropLocked(w)
	if p.starting < len(p.waiters) {
		p.startLocked()
	}
	p.mu.Unlock()
	if warn {
		p.log.Warn("a call of the function left processes running; they are ended and the worker is replaced, each time: a process that shall outlive calls is started when the function is loaded")
	}
}

// dropLocked ends a worker without waiting for it. mu is held.
func (p *Pool) dropLocked(w *worker) {
	p.count--
	p.calledLocked(w)
	p.work.Go(w.end)
}

// startLocked starts one more worker when there may be one. mu is held.
func (p *Pool) startLocked() {
	if p.closed || p.count >= p.o.Size || time.Now().Before(p.again) {
		return
	}
	p.count++
	p.starting++
	p.work.Go(p.start)
}

func (p *Pool) start() {
	begin := time.Now()
	w, err := p.launch()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting--
	p.tried = true
	defer func() {
		close(p.ended)
		p.ended = make(chan struct{})
	}()
	if err == nil {
		p.failure, p.fails, p.again = nil, 0, time.Time{}
		p.log.Debug("worker started", "pid", w.proc.Pid(), "took", time.Since(begin).Round(time.Millisecond))
		p.mu.Unlock()
		p.release(w)
		p.mu.Lock()
		return
	}
	p.count--
	if p.closed {
		return
	}
	wait := min(firstBackoff<<min(p.fails, 20), maxBackoff)
	if later, ok := errors.AsType[*triggers.RetryAfterError](err); ok {
		wait = max(wait, later.After)
	}
	if e, ok := err.(*triggers.Error); ok { //nolint:errorlint // its own text, without the class of what follows from it
		err = errors.New(e.Message)
	}
	p.fails++
	p.again = time.Now().Add(wait)
	if p.failure == nil || p.failure.Error() != err.Error() {
		p.log.Warn("the function is not ready", "reason", err)
	}
	p.failure = err
	if p.count == 0 { // nobody is left who could take their calls
		for len(p.waiters) > 0 {
			p.giveLocked(grant{err: notReady(err, wait)})
		}
	}
}

func (p *Pool) launch() (*worker, error) {
	cmd, err := p.o.Command(p.ctx)
	if err != nil {
		return nil, err
	}
	if p.o.Gate != nil {
		select {
		case p.o.Gate.starting <- struct{}{}:
			defer func() { <-p.o.Gate.starting }()
		case <-p.ctx.Done():
			return nil, errClosed
		}
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.o.StartLimit)
	defer cancel()
	var hello [][]byte
	if p.o.Hello != nil {
		if hello, err = p.o.Hello(); err != nil {
			return nil, err
		}
	}
	return launch(ctx, cmd, hello, p.o.Lines, "ENGINE_WORKER="+rand.Text())
}

// reap stops the workers that were idle for long enough.
func (p *Pool) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	if p.closed {
		return
	}
	old := time.Now().Add(-p.o.Idle)
	n := 0
	for n < len(p.idle) && !p.idle[n].idleSince.After(old) { // the longest idle come first
		p.dropLocked(p.idle[n])
		n++
	}
	p.idle = slices.Delete(p.idle, 0, n)
	if len(p.idle) > 0 {
		p.timer = time.AfterFunc(max(time.Until(p.idle[0].idleSince.Add(p.o.Idle)), time.Millisecond), p.reap)
	}
}

// Close ends all workers and waits until they are gone. Calls that wait for a
// worker get an error, those that run end as they would.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.stop()
	if p.timer != nil {
		p.timer.Stop()
	}
	for len(p.waiters) > 0 {
		p.giveLocked(grant{err: errClosed})
	}
	for _, w := range p.idle {
		p.dropLocked(w)
	}
	p.idle = nil
	p.mu.Unlock()
	p.work.Wait()
	return nil
}
