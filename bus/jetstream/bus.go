package jetstream

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

// embeddedConnect is how long a connection to the embedded server may take.
const embeddedConnect = 30 * time.Second

// Bus is a [bus.Bus] over NATS JetStream. It survives the loss of its
// connection, of its consumers, and, when the server is embedded, of its disk
// space, without help.
//
// Lifecycle: Open starts the server, connects and reconciles the streams. Two
// goroutines then look after it: tend, which never blocks, gives up what is
// not answered and watches the disk; repair looks at server and streams when
// there is a sign of trouble. Close ends everything in reverse.
type Bus struct {
	o      Options
	prefix string    // of every subject
	emb    *embedded // nil on an external server
	disk   *disk     // nil on an external server

	nc  *nats.Conn // records, acknowledgements of them, requests
	rc  *nats.Conn // what consumers deliver
	js  jetstream.JetStream
	pub *publisher

	events, parked, dlq, runs *stream
	failed                    *stream
	jobs, state               *stream
	logs                      []*stream // in the order of definitions
	partitions                int

	diskLow atomic.Pointer[string] // why guarded streams refuse, nil when they do not
	suspect atomic.Bool            // something is wrong with the streams: look
	kick    chan struct{}          // wakes repair
	health  atomic.Pointer[bus.Health]
	link    atomic.Pointer[link] // of nc

	mu      sync.Mutex
	pullers map[*puller]struct{}
	down    string // why the server is unreachable
	broken  string // why the server does not store

	restarts int       // of the embedded server, one after the other
	started  time.Time // the last of them

	closing sync.Once
	closed  <-chan struct{} // of life
	life    context.Context // until Close
	end     context.CancelFunc
	wg      sync.WaitGroup
	ended   sync.WaitGroup // the connections' last callbacks
}

// Open starts or connects to a server and makes the streams what o says. It
// blocks until events can be stored, or ctx ends. Errors tell in one line what
// is wrong, where, and what to do.
func Open(ctx context.Context, o Options) (_ *Bus, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	b := &Bus{o: o, kick: make(chan struct{}, 1), pullers: map[*puller]struct{}{}}
	b.life, b.end = context.WithCancel(context.WithoutCancel(ctx))
	b.closed = b.life.Done()
	b.link.Store(newLink(b.life))
	if o.Prefix != "" {
		b.prefix = o.Prefix + "."
	}
	b.events, b.jobs = b.newStream("EVENTS", true, false), b.newStream("JOBS", true, true)
	b.parked, b.dlq = b.newStream("PARKED", false, true), b.newStream("DLQ", false, false)
	b.runs, b.state = b.newStream("RUNS", true, false), b.newStream("STATE", false, true)
	b.failed = b.newStream("FAILED", true, false)
	b.logs = []*stream{b.events, b.jobs, b.parked, b.dlq, b.runs, b.failed, b.state}
	b.health.Store(&bus.Health{OK: true, Since: time.Now()})
	defer func() {
		if err != nil {
			b.end()
			b.release()
		}
	}()

	if o.URL == "" {
		b.emb = &embedded{o: o}
		b.disk = newDisk(o)
		if err := b.restore(); err != nil {
			return nil, err
		}
		if err := b.emb.start(); err != nil {
			if b.disk.enough() {
				return nil, err
			}
			b.disk.release()
			if err := b.emb.start(); err != nil {
				return nil, err
			}
		}
		if b.disk.low() == "" {
			b.disk.reserve()
		}
	}
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	if b.pub, err = newPublisher(b, b.nc); err != nil {
		return nil, connError("subscribe to acknowledgements", err)
	}
	b.durably()
	if err := b.reconcile(ctx); err != nil {
		return nil, err
	}
	if err := b.syncAll(); err != nil {
		return nil, err
	}
	b.look()
	b.wg.Go(b.tend)
	b.wg.Go(b.repair)
	return b, nil
}

func (b *Bus) connect(ctx context.Context) error {
	opts := []nats.Option{
		nats.Name("engine"),
		nats.MaxReconnects(-1),
		// What was not acknowledged fails at once and is not sent twice.
		nats.ReconnectBufSize(-1),
		// Credentials may be repaired while we try.
		nats.IgnoreAuthErrorAbort(),
		nats.CustomReconnectDelay(func(n int) time.Duration { return backoff(min(n, 7)) }),
		nats.DisconnectErrHandler(b.onDisconnect),
		nats.ReconnectHandler(b.onReconnect),
		nats.ErrorHandler(b.onError),
		nats.ClosedHandler(func(*nats.Conn) { b.ended.Done() }),
	}
	where := "the embedded bus"
	if b.emb != nil {
		// Nothing is on the way to it but a busy machine.
		opts = append(opts, nats.InProcessServer(b.emb), nats.Timeout(embeddedConnect))
	} else {
		where = "bus " + redact(b.o.URL)
		if b.o.Credentials != "" {
			opts = append(opts, nats.UserCredentials(b.o.Credentials))
		}
		if b.o.TLS.CA != "" {
			opts = append(opts, nats.RootCAs(b.o.TLS.CA))
		}
		if b.o.TLS.Cert != "" {
			opts = append(opts, nats.ClientCert(b.o.TLS.Cert, b.o.TLS.Key))
		}
		timeout := 5 * time.Second
		if d, ok := ctx.Deadline(); ok {
			timeout = min(timeout, time.Until(d))
		}
		opts = append(opts, nats.Timeout(max(timeout, time.Millisecond)))
	}
	for _, c := range []**nats.Conn{&b.nc, &b.rc} {
		nc, err := nats.Connect(b.o.URL, opts...)
		if err != nil {
			return fmt.Errorf("cannot connect to %s: %w; is a NATS server with JetStream reachable there, and are credentials and TLS right?", where, err)
		}
		b.ended.Add(1)
		*c = nc
	}
	if b.emb == nil {
		if have := int(b.nc.MaxPayload()); have < b.o.MaxPayload {
			return fmt.Errorf("%s takes at most %d bytes in a message, %d are needed: raise its max_payload or lower maxBody", where, have, b.o.MaxPayload)
		}
	}
	var err error
	if b.js, err = jetstream.New(b.nc, jetstream.WithDefaultTimeout(b.o.AckTimeout)); err != nil {
		return connError("use "+where, err)
	}
	if _, err := b.js.AccountInfo(ctx); err != nil {
		return fmt.Errorf("%s has no JetStream for this account: %w; enable it there", where, err)
	}
	return nil
}

// redact removes the password from URLs.
func redact(urls string) string {
	parts := strings.Split(urls, ",")
	for i, p := range parts {
		u, err := url.Parse(strings.TrimSpace(p))
		switch {
		case err != nil:
			parts[i] = "(unreadable URL)"
		case u.User != nil:
			u.User = nil
			parts[i] = u.String()
		}
	}
	return strings.Join(parts, ",")
}

func (b *Bus) onDisconnect(nc *nats.Conn, err error) {
	if b.isClosed() {
		return
	}
	b.mu.Lock()
	if b.down == "" {
		b.down = "not connected"
		if err != nil {
			b.down += ": " + err.Error()
		}
	}
	b.mu.Unlock()
	if nc == b.nc {
		b.link.Swap(newLink(b.life)).cancel()
	}
	if nc == b.nc && b.pub != nil {
		b.pub.disconnected(fmt.Errorf("the connection was lost before the acknowledgement: %w", bus.ErrUnavailable))
	}
	b.refresh()
	b.wake()
}

func (b *Bus) onReconnect(nc *nats.Conn) {
	b.suspect.Store(true) // the streams may be others now
	if nc == b.rc {
		b.restartPullers()
	}
	b.wake()
}

// onError gets what the library cannot return to anybody. Slow consumers are
// found by their gaps, everything else by its effect.
func (b *Bus) onError(_ *nats.Conn, _ *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrSlowConsumer) {
		b.restartPullers()
		return
	}
	b.o.Logger.Debug("bus connection", "error", err)
}

func (b *Bus) addPuller(p *puller) {
	b.mu.Lock()
	b.pullers[p] = struct{}{}
	b.mu.Unlock()
}

func (b *Bus) removePuller(p *puller) {
	b.mu.Lock()
	delete(b.pullers, p)
	b.mu.Unlock()
}

func (b *Bus) restartPullers() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.pullers {
		p.restart()
	}
}

// wake makes repair look now.
func (b *Bus) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// tend does what must be done in time, until the bus is closed.
func (b *Bus) tend() {
	t := time.NewTicker(min(b.o.CheckInterval, max(b.o.AckTimeout/4, 10*time.Millisecond)))
	defer t.Stop()
	for {
		select {
		case <-b.closed:
			return
		case <-t.C:
		}
		b.look()
	}
}

// look finds out how the bus is. It does not block.
func (b *Bus) look() {
	b.pub.expire()
	now := time.Now()
	b.mu.Lock()
	for p := range b.pullers {
		p.check(now)
	}
	b.mu.Unlock()
	b.lookDisk()
	b.nudge()
	b.refresh()
}

// repair looks at server and streams, until the bus is closed.
func (b *Bus) repair() {
	t := time.NewTicker(b.o.CheckInterval)
	defer t.Stop()
	for {
		select {
		case <-b.closed:
			return
		case <-b.kick:
		case <-t.C:
		}
		b.lookServer()
		b.refresh()
	}
}

func (b *Bus) lookDisk() {
	if b.disk == nil {
		return
	}
	why := b.disk.low()
	old := b.diskLow.Load()
	switch {
	case why != "" && old == nil:
		b.diskLow.Store(&why)
		b.o.Logger.Error("intake stopped", "reason", why)
	case why != "":
		b.diskLow.Store(&why)
	case old != nil:
		b.diskLow.Store(nil)
		b.o.Logger.Info("intake resumed: there is disk space again")
	}
}

// lookServer checks, when there is a sign of trouble, that the streams are
// there and take records; it makes missing streams again, and restarts an
// embedded server that cannot write any more.
func (b *Bus) lookServer() {
	if b.emb != nil && (b.suspect.Load() || b.timeouts() > 0 || !b.nc.IsConnected()) {
		why := b.emb.broken()
		if why == "" {
			why = b.syncFailure()
		}
		if why != "" {
			b.setBroken(why)
			if !b.restart(why) {
				return
			}
		}
	}
	connected := b.nc.IsConnected() && b.rc.IsConnected()
	b.mu.Lock()
	if connected {
		b.down = ""
	} else if b.down == "" {
		b.down = "not connected"
	}
	b.mu.Unlock()
	full := b.events.full.Load()
	if !connected || !full && !b.suspect.Load() {
		return
	}
	c := b.call(b.life)
	ctx := c.ctx
	defer func() { _ = c.end(nil) }()
	if b.suspect.Swap(false) {
		err := b.reconcile(ctx)
		if err == nil {
			err = b.syncAll()
		}
		if err != nil {
			if b.isClosed() {
				return
			}
			b.suspect.Store(true)
			b.setBroken(err.Error())
			return
		}
		b.setBroken("")
	}
	if full {
		// Nobody may write while we are full: look whether there is room again.
		if i, err := b.events.Info(ctx); err == nil && (i.MaxBytes == 0 || i.Bytes < i.MaxBytes-i.MaxBytes/20) {
			b.events.full.Store(false)
		}
	}
}

func (b *Bus) timeouts() (n int64) {
	for _, lg := range b.logs {
		n += lg.timeouts.Load()
	}
	return n
}

// restart exchanges the embedded server for a fresh one, once there is disk
// space for it, and reports whether it did. The connections find the new one
// by themselves. Each restart soon after another waits longer, up to 10 s.
func (b *Bus) restart(why string) bool {
	since := time.Since(b.started)
	if since > time.Minute {
		b.restarts = 0
	}
	if b.restarts > 0 && since < min(time.Second<<min(b.restarts-1, 5), 10*time.Second) {
		return false
	}
	if !b.disk.enough() {
		b.disk.release()
		if !b.disk.enough() {
			return false
		}
	}
	b.restarts++
	b.started = time.Now()
	b.o.Logger.Warn("restarting the embedded bus", "reason", why)
	b.emb.stop()
	if err := b.heal(); err != nil {
		b.o.Logger.Error("the store cannot be written, trying on", "error", err)
		return false
	}
	if err := b.emb.start(); err != nil {
		b.o.Logger.Error("the embedded bus does not start, trying on", "error", err)
		return false
	}
	for _, lg := range b.logs {
		lg.timeouts.Store(0)
	}
	b.suspect.Store(true)
	return true
}

func (b *Bus) setBroken(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = why
}

// refresh computes what Health returns and logs when it changes.
func (b *Bus) refresh() {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := bus.Health{OK: true}
	switch {
	case b.isClosed():
		h = bus.Health{Reason: "the bus is closed"}
	case b.diskLow.Load() != nil:
		h = bus.Health{Reason: *b.diskLow.Load(), RetryAfter: 10 * time.Second}
	case b.down != "":
		h = bus.Health{Reason: b.down, RetryAfter: 2 * time.Second}
	case b.syncFailure() != "":
		h = bus.Health{Reason: b.syncFailure(), RetryAfter: 5 * time.Second}
	case b.broken != "":
		h = bus.Health{Reason: b.broken, RetryAfter: 5 * time.Second}
	case b.events.timeouts.Load() > 0:
		h = bus.Health{Reason: "the bus does not acknowledge events", RetryAfter: 5 * time.Second}
	case b.events.full.Load():
		h = bus.Health{Reason: "the event log is full: it holds as much as its limit allows", RetryAfter: 30 * time.Second}
	}
	old := b.health.Load()
	if old.OK == h.OK {
		h.Since = old.Since
	} else {
		h.Since = time.Now()
		if h.OK {
			b.o.Logger.Info("bus is well again", "after", h.Since.Sub(old.Since).Round(time.Millisecond))
		} else if !b.isClosed() {
			b.o.Logger.Warn("bus cannot store events", "reason", h.Reason)
		}
	}
	b.health.Store(&h)
}

// link is one life of the connection nc: an answer does not survive it.
type link struct {
	ctx    context.Context
	cancel context.CancelFunc
}

func newLink(life context.Context) *link {
	ctx, cancel := context.WithCancel(life)
	return &link{ctx, cancel}
}

// call bounds a request by AckTimeout and by the connection it was sent on.
type call struct {
	ctx    context.Context
	parent context.Context
	link   *link
	cancel context.CancelFunc
	stop   func() bool
}

func (b *Bus) call(parent context.Context) call {
	ctx, cancel := context.WithTimeout(parent, b.o.AckTimeout)
	l := b.link.Load()
	return call{ctx, parent, l, cancel, context.AfterFunc(l.ctx, cancel)}
}

// end frees what the call holds and says what err really is.
func (c call) end(err error) error {
	c.stop()
	c.cancel()
	if err != nil && c.parent.Err() == nil && c.link.ctx.Err() != nil {
		return nats.ErrDisconnected
	}
	return err
}

// request asks the server, within AckTimeout if ctx has no earlier end.
func (b *Bus) request(ctx context.Context, subject string, data []byte) (*nats.Msg, error) {
	if b.isClosed() {
		return nil, bus.ErrClosed
	}
	c := b.call(ctx)
	m, err := b.nc.RequestWithContext(c.ctx, subject, data)
	err = c.end(err)
	if errors.Is(err, nats.ErrNoResponders) {
		b.suspect.Store(true)
		b.wake()
	}
	return m, err
}

// Events implements [bus.Bus].
func (b *Bus) Events() bus.Log { return b.events }

// Jobs implements [bus.Bus].
func (b *Bus) Jobs() bus.Queue { return &queue{b.jobs} }

// Parked implements [bus.Bus].
func (b *Bus) Parked() bus.Log { return b.parked }

// DeadLetters implements [bus.Bus].
func (b *Bus) DeadLetters() bus.Log { return b.dlq }

// Runs implements [bus.Bus].
func (b *Bus) Runs() bus.Log { return b.runs }

// FailedRuns implements [bus.Bus].
func (b *Bus) FailedRuns() bus.Log { return b.failed }

// State implements [bus.Bus].
func (b *Bus) State() bus.Store { return &store{b.state} }

// MaxPayload implements [bus.Bus].
func (b *Bus) MaxPayload() int {
	if b.emb != nil {
		return b.o.MaxPayload
	}
	return int(b.nc.MaxPayload())
}

// Health implements [bus.Bus].
func (b *Bus) Health() bus.Health { return *b.health.Load() }

// ClientURL is where other clients reach the bus: the URL of the external
// server without credentials, that of the embedded one if it listens, or "".
func (b *Bus) ClientURL() string {
	if b.emb == nil {
		return redact(b.o.URL)
	}
	if s := b.emb.server(); s != nil && b.o.ListenPort != 0 {
		return s.ClientURL()
	}
	return ""
}

func (b *Bus) isClosed() bool { return b.life.Err() != nil }

// Close implements [bus.Bus]. Writes under way get their acknowledgement,
// within ctx; readers and consumers end with [bus.ErrClosed].
func (b *Bus) Close(ctx context.Context) error {
	var err error
	b.closing.Do(func() {
		b.end()
		b.wg.Wait()
		for !b.pub.idle() {
			b.pub.expire()
			select {
			case <-ctx.Done():
				err = fmt.Errorf("close the bus: writes were under way: %w", ctx.Err())
			case <-time.After(2 * time.Millisecond):
				continue
			}
			break
		}
		b.pub.disconnected(fmt.Errorf("the bus is %w", bus.ErrClosed))
		if b.rc.IsConnected() {
			_ = b.rc.FlushTimeout(time.Second) // finished jobs
		}
		b.release()
		// Nothing can be sent any more: what slipped in between ends here.
		b.pub.disconnected(fmt.Errorf("the bus is %w", bus.ErrClosed))
		b.refresh()
	})
	return err
}

// release ends connections and server.
func (b *Bus) release() {
	for _, nc := range []*nats.Conn{b.rc, b.nc} {
		if nc != nil {
			nc.Close()
		}
	}
	b.ended.Wait()
	if b.emb != nil {
		b.emb.stop()
	}
	for _, lg := range b.logs {
		if lg.syncer != nil {
			lg.syncer.close()
		}
	}
	b.settle()
}
