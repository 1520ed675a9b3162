package fold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

const (
	// maxBacklogs is how many lanes are read for at the same time.
	maxBacklogs = 4
	// backlogEvents and backlogBytes bound what is read at once. Three times
	// that is in memory for each lane.
	backlogEvents = 256
	backlogBytes  = 512 << 10
	// roomEvery is the time between two looks at how full JOBS is.
	roomEvery = 100 * time.Millisecond
	// readRetry is the wait after a failure.
	readRetry = time.Second
)

// read is an event that was read for a lane behind.
type read struct {
	seq uint64
	at  time.Time
	ev  *bus.Event
	err error // why it cannot be decoded
}

// backlog reads events for one lane on a goroutine of its own, so that the fold
// never waits for them. It ends where the main lane was, for what is newer is
// in memory.
type backlog struct {
	chunks chan chunk
	stop   context.CancelFunc
}

// chunk is what a backlog has read. The last one may be an error.
type chunk struct {
	start  *uint64 // the position where the lane begins
	events []read
	err    error
}

// await takes what was read for a lane, and begins to read when nobody does. It
// reports whether there was something.
func (s *session) await(l *lane) bool {
	if l.failed != nil {
		return true
	}
	if l.backlog != nil {
		select {
		case c, more := <-l.backlog.chunks:
			if !more {
				l.stopReading()
				break
			}
			l.read, l.start, l.failed = c.events, c.start, c.err
			return true
		default:
			return false
		}
	}
	if time.Now().Before(l.retry) {
		return false
	}
	n := 0
	for _, o := range s.lanes {
		if o.backlog != nil {
			n++
		}
	}
	if n < maxBacklogs {
		s.startReading(l)
	}
	return false
}

// startReading reads for a lane.
func (s *session) startReading(l *lane) {
	ctx, cancel := context.WithCancel(s.readCtx)
	b := &backlog{chunks: make(chan chunk, 1), stop: cancel}
	l.backlog = b
	log, from, next, throttled := s.d.o.Bus.Events(), l.from, l.pos+1, s.recovered
	s.readers.Go(func() {
		defer s.poke()
		defer close(b.chunks)
		send := func(c chunk) bool {
			select {
			case b.chunks <- c:
				s.poke()
				return true
			case <-ctx.Done():
				return false
			}
		}
		if from != "" {
			start, err := positionOf(ctx, log, from)
			send(chunk{start: &start, err: err})
			return
		}
		var looked time.Time
		for {
			if throttled && time.Since(looked) > roomEvery {
				if err := s.awaitRoom(ctx); err != nil {
					send(chunk{err: err})
					return
				}
				looked = time.Now()
			}
			recs, err := log.GetBatch(ctx, next, backlogEvents, backlogBytes)
			if errors.Is(err, bus.ErrNotFound) {
				return
			}
			if err != nil {
				send(chunk{err: err})
				return
			}
			c := chunk{events: make([]read, len(recs))}
			for i := range recs {
				r := &c.events[i]
				r.seq, r.at = recs[i].Seq, recs[i].Time
				r.ev, r.err = bus.DecodeEvent(recs[i])
			}
			next = recs[len(recs)-1].Seq + 1
			if !send(c) || next > s.d.position.Load() {
				return
			}
		}
	})
}

// stopReading lets go of what reads for a lane.
func (l *lane) stopReading() {
	if l.backlog != nil {
		l.backlog.stop()
	}
	l.backlog = nil
}

// readFailed takes notice that reading for a lane failed; it goes on later.
func (s *session) readFailed(l *lane) error {
	err := l.failed
	l.failed, l.start = nil, nil
	l.stopReading()
	if !s.recovered {
		return fmt.Errorf("reading EVENTS from %d: %w", l.pos+1, err)
	}
	now := time.Now()
	l.retry = now.Add(readRetry)
	time.AfterFunc(readRetry, s.poke)
	if now.Sub(l.told) > time.Minute {
		l.told = now
		s.d.log.Warn("events for a sensor that is behind cannot be read; trying on", "sensor", l.names[0], "from", l.pos+1, "error", err)
	}
	return nil
}

// poke wakes the fold up.
func (s *session) poke() {
	select {
	case s.pokes <- struct{}{}:
	default:
	}
}

// awaitRoom waits while JOBS is more than half full: whoever is in time needs
// the other half.
func (s *session) awaitRoom(ctx context.Context) error {
	for {
		info, err := s.d.o.Bus.Jobs().Info(ctx)
		if err != nil {
			return fmt.Errorf("asking for the state of JOBS: %w", err)
		}
		if info.MaxBytes == 0 || info.Bytes <= info.MaxBytes/2 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(roomEvery):
		}
	}
}

// positionOf is the position before the first event that from names.
func positionOf(ctx context.Context, log bus.Log, from specs.From) (uint64, error) {
	info, err := log.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("asking for the state of EVENTS: %w", err)
	}
	first := info.First
	if at, ok := from.Time(); ok {
		if first, err = FirstAfter(ctx, log, info, at.Add(-1)); err != nil {
			return 0, fmt.Errorf("looking for the first event from %s: %w", from, err)
		}
	}
	return max(first, 1) - 1, nil
}
