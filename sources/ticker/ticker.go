// Package ticker owns the source type "ticker": events at a fixed interval. It
// owns when a tick is due and what it carries, nothing of what it causes.
package ticker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// DefaultType is the CloudEvents type of ticks.
const DefaultType = "ticker.tick"

const (
	// firstRetry and lastRetry bound the wait between two tries to store a tick.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	// clockStep is the difference from which on the wall clock was set, not
	// merely adjusted.
	clockStep = time.Second
)

// Config is one ticker of an EventSource.
type Config struct {
	Every     specs.Duration `yaml:"every" min:"10ms" doc:"Time between two ticks." example:"10s"`
	Seconds   int            `yaml:"seconds" min:"1" doc:"Time between two ticks in seconds, instead of every."`
	Immediate bool           `yaml:"immediate" doc:"Whether the first tick comes at the start and not one interval later."`
	Jitter    specs.Duration `yaml:"jitter" doc:"Each tick comes late by a random time up to this; the next one is not moved by it." example:"500ms"`
}

// Factory makes tickers. With several replicas, only one runs each.
func Factory() sources.Factory {
	return sources.Factory{
		Type: specs.Type{
			Name: "ticker",
			Doc:  "Events at a fixed interval; their data has time, count and, when ticks were left out, missed.",
			New:  func() any { return &Config{} },
		},
		DefaultType: DefaultType,
		Payload:     []string{"time", "count", "missed"},
		Single:      true,
		Make:        func(config any, _ sources.Env) (sources.Source, error) { return newTicker(config.(*Config)) },
	}
}

// Validate reports what the types of the fields cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	switch {
	case (c.Every == 0) == (c.Seconds == 0):
		ck.Errorf("", specs.CodeInvalidValue, "for example every: 10s", "needs exactly one of every and seconds")
	case c.Jitter.D() > c.interval():
		ck.Errorf("jitter", specs.CodeInvalidValue, "", "must be between 0 and the interval, %v", c.interval())
	}
}

func (c *Config) interval() time.Duration {
	if c.Every != 0 {
		return c.Every.D()
	}
	return time.Duration(c.Seconds) * time.Second
}

type ticker struct {
	cfg   *Config
	every time.Duration
}

func newTicker(c *Config) (*ticker, error) {
	t := &ticker{cfg: c, every: c.interval()}
	if t.every <= 0 {
		return nil, errors.New("a ticker needs an interval")
	}
	return t, nil
}

// Run ticks until ctx ends. Ticks lie on a grid that begins with Run and is
// measured by the monotonic clock, so that neither the time an event takes nor
// a change of the wall clock moves them. When ticks could not be made in time
// (a stopped process, a bus that is away), the latest one comes at once and
// says how many were left out; they do not come in a burst. A tick that the
// bus does not take is tried again until it does, with the same id, so that it
// is stored once; only the end of ctx gives it up.
func (t *ticker) Run(ctx context.Context, h sources.Host) error {
	start := time.Now()
	// Round drops the monotonic reading: wall is what the clock showed at the
	// start, corrected when somebody sets it.
	wall := start.Round(0)
	series := strconv.FormatInt(start.UnixNano(), 36) + "-"
	first := int64(1)
	if t.cfg.Immediate {
		first = 0
	}
	h.Ready("every " + t.every.String())
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for n := first; ; n++ {
		missed := int64(0)
		now := time.Now()
		if latest := int64(now.Sub(start) / t.every); latest > n {
			missed, n = latest-n, latest
		}
		wait := start.Add(time.Duration(n) * t.every).Sub(now)
		if t.cfg.Jitter > 0 {
			wait += rand.N(t.cfg.Jitter.D() + 1)
		}
		timer.Reset(max(wait, 0))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		now = time.Now()
		due := wall.Add(time.Duration(n) * t.every)
		late := now.Sub(start) - time.Duration(n)*t.every
		if step := now.Round(0).Sub(due) - late; step.Abs() > clockStep {
			wall, due = wall.Add(step), due.Add(step)
		}
		ev := &bus.Event{
			ID: series + strconv.FormatInt(n, 10), ProducerID: true, Time: due.UTC(),
			DataContentType: "application/json", Data: payload(due.UTC(), n-first+1, missed),
		}
		if err := store(ctx, h, ev); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// payload is an object with time, count and, when ticks were left out, missed.
func payload(due time.Time, count, missed int64) []byte {
	b := append(make([]byte, 0, 96), `{"time":"`...)
	b = due.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","count":`...)
	b = strconv.AppendInt(b, count, 10)
	if missed > 0 {
		b = append(b, `,"missed":`...)
		b = strconv.AppendInt(b, missed, 10)
	}
	return append(b, '}')
}

// store emits ev until it is stored, ctx ends, or no repetition can help.
func store(ctx context.Context, h sources.Host, ev *bus.Event) error {
	failed := false
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := h.Emit(ctx, ev)
		switch {
		case err == nil:
			if failed {
				h.Logger().Info("tick stored after all", "id", ev.ID)
			}
			return nil
		case ctx.Err() != nil:
			return err
		case errors.Is(err, bus.ErrTooLarge):
			return &sources.Permanent{Err: fmt.Errorf("data of a ticker: %w", err)}
		case !failed:
			failed = true
			h.Logger().Warn("tick not stored, trying again", "id", ev.ID, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
