package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/test/load"
)

// lane is one stream of events and the function they end at.
type lane struct {
	column string        // its name in the table
	paths  []string      // where the requests of one event go, in this order
	conns  int           // connections that post
	warmup int           // events before the measurement
	events int           // events of the measurement
	size   int           // bytes of a body
	rate   float64       // events per second; 0: closed loop
	kinds  int           // how many values data.kind takes
	delay  time.Duration // how long the function takes
	hold   bool          // the function hangs until every event is accepted
}

// ledger knows of every event of a lane when it was sent, whether it was
// accepted and how often its call arrived. Events are numbered from 0. An
// event's entries are written by the connection that sends it and by the sink,
// so they are atomic where both look.
type ledger struct {
	lane
	start    time.Time
	sent     []atomic.Int64 // nanoseconds after start, of the event's last request
	answered []int64        // nanoseconds after sent; 0: refused
	latency  []int64        // nanoseconds after sent, of the first arrival
	arrivals []atomic.Int32
	accepted atomic.Int64
	distinct atomic.Int64 // events with an arrival
	lastAt   atomic.Int64 // nanoseconds after start of the last first arrival
	foreign  atomic.Int64
	busy     atomic.Int64 // nanoseconds the function took in all
	calls    atomic.Int64
	late     atomic.Int64                  // nanoseconds by which timers were late of late
	gate     atomic.Pointer[chan struct{}] // while not nil, calls hang until it is closed
}

func newLedger(l lane) *ledger {
	n := l.warmup + l.events
	return &ledger{
		lane: l, start: time.Now(), sent: make([]atomic.Int64, n), answered: make([]int64, n),
		latency: make([]int64, n), arrivals: make([]atomic.Int32, n),
	}
}

const (
	bodyStart = `{"n":"`
	numWidth  = 10
	bodyKind  = `","total":150,"kind":"k`
	kindWidth = 5
	bodyPad   = `","pad":"`
	bodyEnd   = `"}`
	kindAt    = len(bodyStart) + numWidth + len(bodyKind)
	minSize   = kindAt + kindWidth + len(bodyPad) + len(bodyEnd)
)

// newBody returns the body of an event of size bytes; setNumber fills its
// number and kind in.
func newBody(size int) []byte {
	b := []byte(bodyStart + "0000000000" + bodyKind + "00000" + bodyPad)
	b = append(b, bytes.Repeat([]byte("x"), size-minSize)...)
	return append(b, bodyEnd...)
}

func setNumber(body []byte, n, kinds int) {
	setDigits(body[len(bodyStart):][:numWidth], n)
	setDigits(body[kindAt:][:kindWidth], n%max(kinds, 1))
}

func setDigits(b []byte, n int) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

// number reverses setNumber; false if the body is not one of ours, unchanged.
func number(body []byte) (int, bool) {
	if len(body) < minSize || string(body[:len(bodyStart)]) != bodyStart ||
		string(body[len(bodyStart)+numWidth:kindAt]) != bodyKind ||
		string(body[kindAt+kindWidth:][:len(bodyPad)]) != bodyPad || string(body[len(body)-len(bodyEnd):]) != bodyEnd {
		return 0, false
	}
	n, err := strconv.Atoi(string(body[len(bodyStart):][:numWidth]))
	return n, err == nil
}

// holdCalls makes the calls from now on hang; the function it returns lets them
// go and may be called again.
func (l *ledger) holdCalls() (open func()) {
	gate := make(chan struct{})
	l.gate.Store(&gate)
	return sync.OnceFunc(func() {
		l.gate.Store(nil)
		close(gate)
	})
}

// listen starts the sink.
func (l *ledger) listen() (*load.Sink, error) {
	return load.Listen(func(r load.Request) (int, string) {
		if gate := l.gate.Load(); gate != nil {
			<-*gate
		}
		at := time.Since(l.start)
		now := int64(at)
		n, ok := number(r.Body())
		if !ok || n >= len(l.sent) || len(r.Body()) != l.size || l.sent[n].Load() == 0 {
			l.foreign.Add(1)
			return http.StatusBadRequest, ""
		}
		if l.arrivals[n].Add(1) == 1 {
			l.latency[n] = now - l.sent[n].Load()
			l.lastAt.Store(now)
			l.distinct.Add(1)
		}
		if l.delay > 0 {
			l.work(at)
		}
		return http.StatusOK, ""
	})
}

// work makes a call that came at take l.delay in the mean: timers are late, by
// up to 1 ms and by more on a busy machine, so they are set that much earlier.
func (l *ledger) work(at time.Duration) {
	time.Sleep(l.delay - time.Duration(l.late.Load()))
	took := time.Since(l.start) - at
	l.busy.Add(int64(took))
	l.calls.Add(1)
	// A small part of the error, for many calls at once see the same one.
	late := l.late.Load() + int64(took-l.delay)/256
	l.late.Store(min(max(late, 0), int64(l.delay/2)))
}

// span is when the events of one drive were sent and answered, in nanoseconds
// after the ledger's start.
type span struct{ from, to int64 }

// drive sends n events, numbered from first. With rate 0 each connection posts
// again as soon as it was answered. Otherwise events are due at fixed times;
// one that had to wait for its connection counts from when it was due, so that
// a stalled target does not hide its own latency.
func (l *ledger) drive(ctx context.Context, addr string, first, n int, rate float64) (span, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begin := time.Since(l.start)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range l.conns {
		wg.Go(func() {
			c, err := load.Dial(addr)
			if err != nil {
				cancel(err)
				return
			}
			defer c.Close()
			body := newBody(l.size)
			timer := time.NewTimer(0)
			defer timer.Stop()
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				sent := time.Since(l.start)
				if rate > 0 {
					due := begin + time.Duration(float64(i)/rate*float64(time.Second))
					if sent < due {
						timer.Reset(due - sent)
						select {
						case <-timer.C:
						case <-ctx.Done():
							return
						}
						// Late waking is the generator's, not the target's.
						sent = time.Since(l.start)
					} else {
						sent = due
					}
				}
				if err := l.post(c, body, first+i, sent); err != nil {
					cancel(fmt.Errorf("event %d: %w", first+i, err))
					return
				}
			}
		})
	}
	wg.Wait()
	return span{int64(begin), int64(time.Since(l.start))}, context.Cause(ctx)
}

// post sends the requests of one event. The latency of one that has several
// counts from its last request, the one that completes it.
func (l *ledger) post(c *load.Conn, body []byte, num int, sent time.Duration) error {
	setNumber(body, num, l.kinds)
	all := true
	for i, path := range l.paths {
		if i > 0 {
			sent = time.Since(l.start)
		}
		l.sent[num].Store(max(int64(sent), 1))
		status, _, err := c.Post(path, "Content-Type: application/json\r\n", body)
		if err != nil {
			return err
		}
		all = all && status/100 == 2
	}
	if all {
		l.answered[num] = int64(time.Since(l.start) - sent)
		l.accepted.Add(1)
	}
	return nil
}

// settle waits until every accepted event has arrived, or none has for patience.
func (l *ledger) settle(ctx context.Context, patience time.Duration) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	seen, since := int64(-1), time.Now()
	for {
		d := l.distinct.Load()
		if d >= l.accepted.Load() {
			return nil
		}
		if d != seen {
			seen, since = d, time.Now()
		} else if time.Since(since) > patience {
			return nil // the result says how many are missing
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// result sums the measured events, whose calls could be made from opened on,
// in nanoseconds after the ledger's start. The target has ended.
func (l *ledger) result(sp span, opened int64) (r result) {
	var latency, answer []int64
	for i := l.warmup; i < len(l.sent); i++ {
		arrived := int(l.arrivals[i].Load())
		if arrived > 0 {
			latency = append(latency, l.latency[i])
			r.Duplicated += arrived - 1
		}
		if l.answered[i] > 0 {
			answer = append(answer, l.answered[i])
			if arrived == 0 {
				r.Lost++
			}
		} else {
			r.Refused++
		}
	}
	r.Foreign = int(l.foreign.Load())
	r.Accepted = float64(len(answer)) / time.Duration(sp.to-sp.from).Seconds()
	if took := l.lastAt.Load() - opened; took > 0 {
		r.EndToEnd = float64(len(latency)) / time.Duration(took).Seconds()
	}
	if n := l.calls.Load(); n > 0 {
		r.Function = time.Duration(l.busy.Load()/n).Seconds() * 1000
	}
	r.Latency, r.Answer = timesOf(latency), timesOf(answer)
	return r
}
