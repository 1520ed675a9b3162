package jetstream

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sensor-engine/engine/bus"
)

// publisher sends records and matches their acknowledgements: a fixed number
// of slots, each with its own reply subject below one subscription. It costs
// about half of jetstream.PublishMsgAsync, which makes a future, a timer and a
// JSON decoding for each message.
type publisher struct {
	b      *Bus
	nc     *nats.Conn
	sub    *nats.Subscription
	prefix string // of the reply subjects
	slots  []slot
	free   chan uint32
	start  time.Time
}

// slot is one write under way.
type slot struct {
	mu       sync.Mutex
	reply    string // the reply subject of this use; changed when it is given up
	gen      uint32
	busy     bool
	acked    bool // and waits for the disk
	ack      bus.Ack
	log      *stream
	deadline time.Duration // since publisher.start
	done     func(bus.Ack, error)
	wait     *waiter // instead of done
}

// waiter is where Append waits; pooled.
type waiter struct{ ch chan result }

type result struct {
	ack bus.Ack
	err error
}

var (
	waiters  = sync.Pool{New: func() any { return &waiter{make(chan result, 1)} }}
	messages = sync.Pool{New: func() any { return &nats.Msg{} }}
)

func newPublisher(b *Bus, nc *nats.Conn) (*publisher, error) {
	p := &publisher{b: b, nc: nc, prefix: nats.NewInbox() + ".", start: time.Now()}
	p.slots = make([]slot, b.o.MaxOutstanding)
	p.free = make(chan uint32, len(p.slots))
	for i := range p.slots {
		p.slots[i].reply = p.subject(uint32(i), 0)
		p.free <- uint32(i)
	}
	var err error
	if p.sub, err = nc.Subscribe(p.prefix+"*.*", p.receive); err != nil {
		return nil, err
	}
	return p, p.sub.SetPendingLimits(-1, -1)
}

func (p *publisher) subject(i, gen uint32) string {
	return p.prefix + strconv.FormatUint(uint64(i), 36) + "." + strconv.FormatUint(uint64(gen), 36)
}

// send publishes one record. Exactly one of done and w is set and learns the
// outcome exactly once, unless send returns an error. header is the
// record's plus what JetStream shall see; it may be reused after the return.
func (p *publisher) send(ctx context.Context, lg *stream, subject string, header nats.Header, data []byte, done func(bus.Ack, error), w *waiter) error {
	var i uint32
	select {
	case i = <-p.free:
	default:
		select {
		case i = <-p.free:
		case <-ctx.Done():
			return fmt.Errorf("append to %s: %d writes wait for acknowledgement: %w", lg.name, len(p.slots), ctx.Err())
		case <-p.b.closed:
			return fmt.Errorf("append to %s: the bus is %w", lg.name, bus.ErrClosed)
		}
	}
	s := &p.slots[i]
	s.mu.Lock()
	s.busy, s.log, s.done, s.wait = true, lg, done, w
	s.deadline = time.Since(p.start) + p.b.o.AckTimeout
	gen, reply := s.gen, s.reply
	s.mu.Unlock()

	m := messages.Get().(*nats.Msg)
	m.Subject, m.Reply, m.Header, m.Data = subject, reply, header, data
	err := p.nc.PublishMsg(m)
	m.Header, m.Data = nil, nil
	messages.Put(m)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	mine := s.busy && s.gen == gen
	if mine {
		s.clear()
		s.gen++
		s.reply = p.subject(i, s.gen)
	}
	s.mu.Unlock()
	if !mine {
		return nil // given up in between: the outcome was told
	}
	p.free <- i
	return connError("append to "+lg.name, err)
}

func (s *slot) clear() { s.busy, s.acked, s.log, s.done, s.wait = false, false, nil, nil, nil }

// receive handles an acknowledgement. It runs on one goroutine.
func (p *publisher) receive(m *nats.Msg) {
	rest := m.Subject[len(p.prefix):]
	before, _, ok := strings.Cut(rest, ".")
	if !ok {
		return
	}
	n, err := strconv.ParseUint(before, 36, 32)
	if err != nil || n >= uint64(len(p.slots)) {
		return
	}
	s := &p.slots[n]
	s.mu.Lock()
	if !s.busy || s.acked || s.reply != m.Subject {
		s.mu.Unlock()
		return // an answer to what was given up
	}
	lg, done, w := s.log, s.done, s.wait
	ack, err := lg.parseAck(m)
	if err == nil && lg.syncer != nil && lg.syncer.eager {
		s.acked, s.ack = true, ack
		t := ticket{uint32(n), s.gen}
		s.mu.Unlock()
		lg.syncer.join(t, ack.Seq)
		return
	}
	s.clear()
	s.mu.Unlock()
	p.free <- uint32(n)
	lg.note(err)
	tell(done, w, ack, err)
}

// synced ends a write that was acknowledged, after its sync.
func (p *publisher) synced(t ticket, err error) {
	s := &p.slots[t.slot]
	s.mu.Lock()
	if !s.busy || !s.acked || s.gen != t.gen {
		s.mu.Unlock()
		return // given up in between
	}
	lg, done, w, ack := s.log, s.done, s.wait, s.ack
	s.clear()
	s.mu.Unlock()
	p.free <- t.slot
	if err != nil {
		ack, err = bus.Ack{}, fmt.Errorf("%s: %w", lg.appendWhat, err)
	}
	lg.note(err)
	tell(done, w, ack, err)
}

func tell(done func(bus.Ack, error), w *waiter, ack bus.Ack, err error) {
	if w != nil {
		w.ch <- result{ack, err}
		return
	}
	done(ack, err)
}

// parseAck reads `{"stream":"NAME","seq":N}` by hand and everything else as
// JSON.
func (lg *stream) parseAck(m *nats.Msg) (bus.Ack, error) {
	what := lg.appendWhat
	if len(m.Data) == 0 {
		if m.Header.Get("Status") == "503" {
			lg.b.suspect.Store(true)
			return bus.Ack{}, connError(what, nats.ErrNoResponders)
		}
		return bus.Ack{}, fmt.Errorf("%s: empty acknowledgement: %w", what, bus.ErrUnavailable)
	}
	if d, ok := bytes.CutPrefix(m.Data, lg.ackPrefix); ok {
		seq, rest := uint64(0), d
		for len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
			seq = seq*10 + uint64(rest[0]-'0')
			rest = rest[1:]
		}
		if seq > 0 && len(rest) == 1 && rest[0] == '}' {
			return bus.Ack{Seq: seq}, nil
		}
	}
	r, err := decodeReply(what, m.Data)
	if err != nil {
		return bus.Ack{}, err
	}
	if r.Seq == 0 {
		return bus.Ack{}, fmt.Errorf("%s: unexpected answer %.80q: %w", what, m.Data, bus.ErrUnavailable)
	}
	return bus.Ack{Seq: r.Seq, Duplicate: r.Duplicate}, nil
}

// giveUp ends the writes that match with an error: their outcome is unknown.
func (p *publisher) giveUp(match func(*slot) bool, err func(*stream) error) {
	for i := range p.slots {
		s := &p.slots[i]
		s.mu.Lock()
		if !s.busy || !match(s) {
			s.mu.Unlock()
			continue
		}
		lg, done, w := s.log, s.done, s.wait
		s.clear()
		s.gen++
		s.reply = p.subject(uint32(i), s.gen)
		s.mu.Unlock()
		p.free <- uint32(i)
		e := err(lg)
		lg.note(e)
		tell(done, w, bus.Ack{}, e)
	}
}

// expire gives up the writes that were not acknowledged in time.
func (p *publisher) expire() {
	if len(p.free) == len(p.slots) {
		return
	}
	now := time.Since(p.start)
	p.giveUp(func(s *slot) bool { return now > s.deadline }, func(lg *stream) error {
		lg.timeouts.Add(1)
		return fmt.Errorf("append to %s: no acknowledgement within %v: %w", lg.name, p.b.o.AckTimeout, bus.ErrUnavailable)
	})
}

// disconnected gives up what was not acknowledged: acknowledgements do not
// survive the connection.
func (p *publisher) disconnected(err error) {
	p.giveUp(func(s *slot) bool { return !s.acked }, func(lg *stream) error {
		return fmt.Errorf("append to %s: %w", lg.name, err)
	})
}

// idle reports whether nothing is outstanding.
func (p *publisher) idle() bool { return len(p.free) == len(p.slots) }

// headers are maps for the few headers we add, reused.
var headers = sync.Pool{New: func() any { return make(nats.Header, 16) }}

// stream is one JetStream stream: the common part of logs, queue and store.
type stream struct {
	b    *Bus
	name string // with prefix
	// guarded streams refuse records while the disk is below its watermark.
	guarded bool
	// direct streams answer direct gets.
	direct bool

	appendWhat string
	ackPrefix  []byte
	syncer     *syncer // nil where nothing is synced

	id       atomic.Pointer[string]
	timeouts atomic.Int64 // acknowledgements that did not come since the last that did
	full     atomic.Bool  // the last answer was "full"
}

// note keeps what the last outcome says about the stream.
func (lg *stream) note(err error) {
	if err == nil {
		if lg.timeouts.Load() != 0 {
			lg.timeouts.Store(0)
		}
		if lg.full.Load() {
			lg.full.Store(false)
		}
		return
	}
	lg.failed(err)
}
