package jetstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sensor-engine/engine/bus"
)

const (
	// pullExpires is how long a request for messages stays with the server.
	// Messages come at once; the expiry is also the sign of life.
	pullExpires = 30 * time.Second
	// pullLost is when a consumer that said nothing counts as lost.
	pullLost = pullExpires + 5*time.Second
)

// puller keeps one pull consumer fed with requests. It has no goroutine and
// no timer of its own: messages go from the connection straight into ch. It
// makes the consumer anew whenever messages may have been lost: after a
// reconnect, a gap, a deletion, or silence.
type puller struct {
	b      *Bus
	what   string
	stream string
	// create makes the consumer and returns its name.
	create func(ctx context.Context) (string, error)
	// ordered asks for consumer sequences without a gap.
	ordered  bool
	batch    int
	maxBytes int

	ch      chan *nats.Msg // nil while there is no consumer
	sub     *nats.Subscription
	name    string
	request string // subject of pull requests
	credit  int    // messages asked for and not yet received
	cseq    uint64

	again   chan struct{} // asks for a new consumer
	waiting atomic.Int64  // unix nanoseconds of the last request, 0 when none is out
	failing bool          // already logged
	tries   int
}

// message is a delivered message with the place its reply subject tells.
type message struct {
	*nats.Msg
	seq, cseq, pending uint64
	time               int64
}

// permanentError ends a puller: trying again would not help.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func (p *puller) init() {
	p.again = make(chan struct{}, 1)
	p.b.addPuller(p)
}

// restart asks the owner of the puller to make the consumer anew.
func (p *puller) restart() {
	select {
	case p.again <- struct{}{}:
	default:
	}
}

// check is called now and then, from another goroutine.
func (p *puller) check(now time.Time) {
	if w := p.waiting.Load(); w != 0 && now.Sub(time.Unix(0, w)) > pullLost {
		p.waiting.Store(0)
		p.restart()
	}
}

// next returns one message. With wait it blocks until there is one; without,
// ok is false when none is ready.
func (p *puller) next(ctx context.Context, wait bool) (m message, ok bool, err error) {
	for {
		if p.ch == nil {
			if !wait {
				return m, false, nil
			}
			if err := p.open(ctx); err != nil {
				return m, false, err
			}
		}
		var raw *nats.Msg
		select {
		case raw = <-p.ch:
		default:
			if !wait {
				return m, false, nil
			}
			select {
			case raw = <-p.ch:
			case <-p.again:
				p.drop()
				continue
			case <-ctx.Done():
				return m, false, ctx.Err()
			case <-p.b.closed:
				return m, false, fmt.Errorf("%s: the bus is %w", p.what, bus.ErrClosed)
			}
		}
		if len(raw.Reply) == 0 || !strings.HasPrefix(raw.Reply, "$JS.ACK.") {
			p.status(raw)
			continue
		}
		m.Msg = raw
		if !m.parse() {
			return m, false, fmt.Errorf("%s: unexpected reply subject %q", p.what, raw.Reply)
		}
		if p.ordered && m.cseq != p.cseq+1 {
			p.drop() // lost on the way: read again after the last one
			continue
		}
		p.cseq = m.cseq
		p.credit--
		p.refill()
		return m, true, nil
	}
}

// status handles a message without a record.
func (p *puller) status(m *nats.Msg) {
	switch m.Header.Get("Status") {
	case "408", "409", "404":
		if m.Header.Get("Status") == "409" {
			switch d := strings.ToLower(m.Header.Get("Description")); {
			case strings.Contains(d, "consumer deleted"), strings.Contains(d, "server shutdown"),
				strings.Contains(d, "leadership change"), strings.Contains(d, "push based"):
				p.drop()
				return
			}
		}
		n, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
		if err != nil {
			n = p.credit
		}
		p.credit = max(p.credit-n, 0)
		p.refill()
	case "503": // nobody has this consumer
		p.drop()
	}
}

// refill asks for more when half of what was asked for has come.
func (p *puller) refill() {
	if p.credit > p.batch/2 {
		return
	}
	n := p.batch - p.credit
	b := make([]byte, 0, 96)
	b = append(b, `{"batch":`...)
	b = strconv.AppendInt(b, int64(n), 10)
	b = append(b, `,"expires":`...)
	b = strconv.AppendInt(b, int64(pullExpires), 10)
	if p.maxBytes > 0 {
		b = append(b, `,"max_bytes":`...)
		b = strconv.AppendInt(b, int64(p.maxBytes), 10)
	}
	b = append(b, '}')
	if err := p.b.rc.PublishRequest(p.request, p.sub.Subject, b); err != nil {
		p.drop()
		return
	}
	p.credit += n
	p.waiting.Store(time.Now().UnixNano())
}

// open makes the consumer, trying until ctx ends or the error is permanent.
func (p *puller) open(ctx context.Context) error {
	for {
		select { // what follows is new anyway
		case <-p.again:
		default:
		}
		err := p.openOnce(ctx)
		if err == nil {
			if p.failing {
				p.failing = false
				p.b.o.Logger.Info("consumer is back", "stream", p.stream)
			}
			return nil
		}
		if perm, ok := errors.AsType[permanentError](err); ok {
			return perm.error
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// When the bus itself is unwell that was said already, once for all.
		if p.tries > 2 && !p.failing && p.b.Health().OK {
			p.failing = true
			p.b.o.Logger.Warn("consumer cannot be made, trying on", "stream", p.stream, "error", err)
		}
		select {
		case <-time.After(backoff(p.tries)):
		case <-p.again: // connected again
			p.tries = 1
		case <-ctx.Done():
			return ctx.Err()
		case <-p.b.closed:
			return fmt.Errorf("%s: the bus is %w", p.what, bus.ErrClosed)
		}
	}
}

func (p *puller) openOnce(ctx context.Context) error {
	if p.tries > 0 {
		p.b.suspect.Store(true)
	}
	p.tries++
	c := p.b.call(ctx)
	name, err := p.create(c.ctx)
	if err = c.end(err); err != nil {
		return err
	}
	ch := make(chan *nats.Msg, 2*p.batch+64)
	sub, err := p.b.rc.ChanSubscribe(nats.NewInbox(), ch)
	if err != nil {
		return err
	}
	p.tries = 0
	p.ch, p.sub, p.name, p.credit, p.cseq = ch, sub, name, 0, 0
	p.request = "$JS.API.CONSUMER.MSG.NEXT." + p.stream + "." + name
	p.refill()
	return nil
}

// drop forgets the consumer; the next call makes a new one.
func (p *puller) drop() {
	if p.sub != nil {
		_ = p.sub.Unsubscribe()
	}
	p.ch, p.sub = nil, nil
	p.waiting.Store(0)
}

// close removes the consumer.
func (p *puller) close() {
	p.b.removePuller(p)
	name := p.name
	open := p.sub != nil
	p.drop()
	if open && !p.b.isClosed() && p.b.rc.IsConnected() {
		ctx, cancel := context.WithTimeout(context.Background(), p.b.o.AckTimeout)
		defer cancel()
		_ = p.b.js.DeleteConsumer(ctx, p.stream, name)
	}
}

// backoff is 50 ms doubled to 5 s, with jitter.
func backoff(tries int) time.Duration {
	d := min(50*time.Millisecond<<min(tries, 10), 5*time.Second)
	return d/2 + rand.N(d/2)
}

// parse reads what the server wrote into the reply subject:
// $JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>
// or, newer, with <domain>.<account> before the stream and a token at the end.
func (m *message) parse() bool {
	s := m.Reply
	dots := strings.Count(s, ".")
	skip := 5
	switch {
	case dots == 8:
	case dots >= 10:
		skip = 7
	default:
		return false
	}
	for range skip {
		_, s, _ = strings.Cut(s, ".")
	}
	var n [4]uint64
	for i := range n {
		j := 0
		for ; j < len(s) && s[j] != '.'; j++ {
			c := s[j] - '0'
			if c > 9 {
				return false
			}
			n[i] = n[i]*10 + uint64(c)
		}
		if j == 0 {
			return false
		}
		s = s[min(j+1, len(s)):]
	}
	m.seq, m.cseq, m.time, m.pending = n[0], n[1], int64(n[2]), n[3]
	return true
}
