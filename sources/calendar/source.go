package calendar

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs/schedule"
)

const (
	// grace is how late an occurrence may be and still be on time: what a
	// restart or a busy moment takes is not a reason to leave it out.
	grace = time.Minute
	// batch is how many occurrences one wake-up catches up on, so that others
	// get their turn.
	batch = 64
	// mostMissed is where missed occurrences are no longer counted.
	mostMissed = 10_000
	// conflicts is how often in a row another engine may be faster before the
	// engine's backoff is waited for.
	conflicts = 8
	// retry is the wait after an error where there is no engine to choose it.
	retry = time.Second
)

// calendar is a running calendar. Its position is the scheduled time up to
// which every occurrence happened or was left out; it only moves forward, so a
// clock that is put back repeats nothing.
type calendar struct {
	schedule *schedule.Schedule
	prefix   string // of ids
	mode     string
	maxAge   time.Duration
	jitter   time.Duration

	loaded   bool
	position int64
	// begun is the occurrence whose event was tried to be stored: it is not
	// left out any more, however long the bus is away.
	begun occurrence
}

var (
	_ sources.Source = (*calendar)(nil)
	_ sources.Timed  = (*calendar)(nil)
)

func newCalendar(c *Config, env sources.Env) (*calendar, error) {
	var wrong error
	s := c.compile(func(p problem) { wrong = errors.Join(wrong, fmt.Errorf("%s: %s", p.field, p.text)) })
	if wrong != nil {
		return nil, wrong
	}
	return &calendar{
		schedule: s, prefix: env.Source + "/" + env.Event + "/",
		mode: c.Catchup.mode(), maxAge: c.Catchup.MaxAge.D(), jitter: c.Jitter.D(),
	}, nil
}

// Run runs the calendar without the engine's heap, but like that: after an
// error it goes on.
func (c *calendar) Run(ctx context.Context, h sources.Host) error {
	c.loaded = false
	for {
		err := sources.RunTimed(ctx, h, c)
		if _, permanent := errors.AsType[*sources.Permanent](err); err == nil || permanent {
			return err
		}
		h.Logger().Warn("trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// Wake stores the events of the occurrences that are due, each with the
// position after it in one write.
func (c *calendar) Wake(ctx context.Context, h sources.Host, now time.Time) (time.Time, error) {
	if !c.loaded {
		if err := c.load(ctx, h, now); err != nil {
			return time.Time{}, err
		}
		c.loaded = true
		c.ready(h, c.position)
	}
	lost := 0
	for range batch {
		o, next := c.due(now)
		if o == (occurrence{}) {
			c.report(h, 0)
			c.ready(h, max(c.position, now.Unix()))
			return next, nil
		}
		c.begun = o
		switch err := h.Emit(ctx, c.event(o)); {
		case err == nil:
			lost = 0
			c.position = o.at
			c.report(h, now.Sub(c.schedule.Time(o.at)))
		case errors.Is(err, bus.ErrConflict) && lost < conflicts:
			lost++
			if err := c.load(ctx, h, now); err != nil {
				return time.Time{}, err
			}
		case errors.Is(err, bus.ErrTooLarge):
			return time.Time{}, &sources.Permanent{Err: fmt.Errorf("occurrence of %s: %w", c.schedule.Time(o.at).Format(time.RFC3339), err)}
		default:
			return time.Time{}, fmt.Errorf("occurrence of %s not stored: %w", c.schedule.Time(o.at).Format(time.RFC3339), err)
		}
	}
	return now, nil
}

// ready shows the first occurrence after an instant as what is waited for.
func (c *calendar) ready(h sources.Host, after int64) {
	if next, ok := c.schedule.Next(after); ok {
		h.Ready("next at " + c.schedule.Time(next).Format(time.RFC3339))
	} else {
		h.Ready("no occurrence is left")
	}
}

func (c *calendar) report(h sources.Host, lag time.Duration) {
	h.Report(sources.Progress{Position: c.schedule.Time(c.position).Format(time.RFC3339), Lag: max(lag, 0)})
}

// load takes over the durable position. Without one, the calendar begins now;
// that is stored, so that a crash before the first occurrence leaves something
// to catch up from.
func (c *calendar) load(ctx context.Context, h sources.Host, now time.Time) error {
	text, err := h.Cursor().Load(ctx)
	if err != nil {
		return fmt.Errorf("loading the position: %w", err)
	}
	if text == "" {
		c.position = max(c.position, now.Unix())
		if err := h.Cursor().Store(ctx, time.Unix(c.position, 0).UTC().Format(time.RFC3339)); err != nil {
			return fmt.Errorf("storing the position: %w", err)
		}
		return nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return &sources.Permanent{Err: fmt.Errorf("the stored position %q is not a time; give the event another name to begin anew", text)}
	}
	if !c.loaded && at.After(now.Add(grace)) {
		h.Logger().Warn("the last occurrence is later than the clock, waiting for the time after it", "position", text)
	}
	c.position = max(c.position, at.Unix())
	return nil
}

// occurrence is one that is due. missed counts those left out before it.
type occurrence struct {
	at     int64
	missed int
	late   bool
}

// due returns the occurrence to store now, or, if there is none, when there
// may be one (zero: never).
func (c *calendar) due(now time.Time) (occurrence, time.Time) {
	if c.begun.at > c.position {
		return c.begun, time.Time{}
	}
	first, ok := c.schedule.Next(c.position)
	if !ok {
		return occurrence{}, time.Time{}
	}
	if at := c.delayed(first); at.After(now) {
		return occurrence{}, at
	}
	// on is the earliest time that is not late.
	on := now.Add(-grace - c.jitter).Unix()
	if first >= on {
		return occurrence{at: first}, time.Time{}
	}
	oldest := c.position + 1
	if c.maxAge > 0 {
		oldest = max(oldest, now.Add(-c.maxAge).Unix())
	}
	at, found := int64(0), false
	switch c.mode {
	case catchupAll:
		at, found = c.schedule.Next(oldest - 1)
		found = found && at < on
	case catchupLast:
		if next, ok := c.schedule.Next(on - 1); !ok || c.delayed(next).After(now) {
			at, found = c.schedule.Latest(oldest-1, on-1)
		}
	}
	if found {
		return occurrence{at, c.missed(at), true}, time.Time{}
	}
	// Everything late is left out.
	next, ok := c.schedule.Next(on - 1)
	if !ok {
		return occurrence{}, time.Time{}
	}
	if at := c.delayed(next); at.After(now) {
		return occurrence{}, at
	}
	return occurrence{at: next, missed: c.missed(next)}, time.Time{}
}

func (c *calendar) missed(at int64) int { return c.schedule.Count(c.position, at-1, mostMissed) }

// delayed is when an occurrence is to be stored: its time and its own part of
// the jitter.
func (c *calendar) delayed(at int64) time.Time {
	t := time.Unix(at, 0)
	if c.jitter == 0 {
		return t
	}
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(c.id(at))) // never fails
	// FNV spreads its last bytes over the low bits only.
	x := hash.Sum64()
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	return t.Add(time.Duration(x % uint64(c.jitter+1)))
}

// id names an occurrence the same way in every engine and at every time.
func (c *calendar) id(at int64) string {
	b := make([]byte, 0, len(c.prefix)+len("2006-01-02T15:04:05Z"))
	return string(time.Unix(at, 0).UTC().AppendFormat(append(b, c.prefix...), time.RFC3339))
}

func (c *calendar) event(o occurrence) *bus.Event {
	t := c.schedule.Time(o.at)
	return &bus.Event{
		ID: c.id(o.at), ProducerID: true, Time: t.UTC(), Cursor: t.UTC().Format(time.RFC3339),
		DataContentType: "application/json", Data: payload(t, o),
	}
}

// payload is the data of an event. eventTime is what Argo Events calls it, in
// the form it has there.
func payload(t time.Time, o occurrence) []byte {
	b := append(make([]byte, 0, 128), `{"time":"`...)
	b = t.AppendFormat(b, time.RFC3339)
	b = append(b, `","eventTime":"`...)
	b = t.AppendFormat(b, "2006-01-02 15:04:05 -0700 MST")
	b = append(b, '"')
	if o.missed > 0 {
		b = append(b, `,"missed":`...)
		b = strconv.AppendInt(b, int64(o.missed), 10)
	}
	if o.late {
		b = append(b, `,"late":true`...)
	}
	return append(b, '}')
}
