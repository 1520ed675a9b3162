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

// ledger knows of every event when it was sent, whether it was accepted and
// how often its call arrived. Events are numbered from 0. An event's entries
// are written by the connection that sends it and by the sink, so they are
// atomic where both look.
type ledger struct {
	start    time.Time
	sent     []atomic.Int64 // nanoseconds after start
	answered []int64        // nanoseconds after sent; 0: refused
	latency  []int64        // nanoseconds after sent, of the first arrival
	arrivals []atomic.Int32
	accepted atomic.Int64
	distinct atomic.Int64 // events with an arrival
	lastAt   atomic.Int64 // nanoseconds after start of the last first arrival
	foreign  atomic.Int64
}

func newLedger(n int) *ledger {
	return &ledger{
		start: time.Now(), sent: make([]atomic.Int64, n), answered: make([]int64, n),
		latency: make([]int64, n), arrivals: make([]atomic.Int32, n),
	}
}

const (
	bodyStart = `{"n":"`
	numWidth  = 10
	bodyRest  = `","total":150,"pad":"`
	bodyEnd   = `"}`
	minSize   = len(bodyStart) + numWidth + len(bodyRest) + len(bodyEnd)
)

// newBody returns the body of an event of size bytes; setNumber fills its
// number in.
func newBody(size int) []byte {
	b := []byte(bodyStart + "0000000000" + bodyRest)
	b = append(b, bytes.Repeat([]byte("x"), size-minSize)...)
	return append(b, bodyEnd...)
}

func setNumber(body []byte, n int) {
	digits := body[len(bodyStart) : len(bodyStart)+numWidth]
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
}

// number reverses setNumber; false if the body is not one of ours, unchanged.
func number(body []byte) (int, bool) {
	if len(body) < minSize || string(body[:len(bodyStart)]) != bodyStart ||
		string(body[len(bodyStart)+numWidth:][:len(bodyRest)]) != bodyRest || string(body[len(body)-len(bodyEnd):]) != bodyEnd {
		return 0, false
	}
	n, err := strconv.Atoi(string(body[len(bodyStart):][:numWidth]))
	return n, err == nil
}

// listen starts the sink.
func (l *ledger) listen() (*load.Sink, error) {
	return load.Listen(func(r load.Request) (int, string) {
		now := int64(time.Since(l.start))
		n, ok := number(r.Body())
		if !ok || n >= len(l.sent) || l.sent[n].Load() == 0 {
			l.foreign.Add(1)
			return http.StatusBadRequest, ""
		}
		if l.arrivals[n].Add(1) == 1 {
			l.latency[n] = now - l.sent[n].Load()
			l.lastAt.Store(now)
			l.distinct.Add(1)
		}
		return http.StatusOK, ""
	})
}

// span is when the events of one drive were sent and answered, in nanoseconds
// after the ledger's start.
type span struct{ from, to int64 }

// drive sends n events, numbered from first, over conns connections. With rate
// 0 each connection posts again as soon as it was answered. Otherwise events
// are due at fixed times; one that had to wait for its connection counts from
// when it was due, so that a stalled target does not hide its own latency.
func (l *ledger) drive(ctx context.Context, addr string, conns, size, first, n int, rate float64) (span, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begin := time.Since(l.start)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range conns {
		wg.Go(func() {
			c, err := load.Dial(addr)
			if err != nil {
				cancel(err)
				return
			}
			defer c.Close()
			body := newBody(size)
			timer := time.NewTimer(0)
			defer timer.Stop()
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= n {
					return
				}
				num := first + i
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
				setNumber(body, num)
				l.sent[num].Store(max(int64(sent), 1))
				status, _, err := c.Post("/in", "Content-Type: application/json\r\n", body)
				if err != nil {
					cancel(fmt.Errorf("event %d: %w", num, err))
					return
				}
				if status == http.StatusAccepted {
					l.answered[num] = int64(time.Since(l.start) - sent)
					l.accepted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return span{int64(begin), int64(time.Since(l.start))}, context.Cause(ctx)
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

// result sums the events from number first on up. The target has ended.
func (l *ledger) result(first int, sp span) (r result) {
	var latency, answer []int64
	for i := first; i < len(l.sent); i++ {
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
	if took := l.lastAt.Load() - sp.from; took > 0 {
		r.EndToEnd = float64(len(latency)) / time.Duration(took).Seconds()
	}
	r.Latency, r.Answer = timesOf(latency), timesOf(answer)
	return r
}
