package fold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
)

// Retention says when events may be forgotten.
type Retention struct {
	// MaxAge is the age after which an event is purged, 0 for never.
	MaxAge time.Duration
	// HighWater is the part of the log's byte limit, 0 to 1, above which the
	// oldest events are purged; 0 for never.
	HighWater float64
	// Every is the time between two looks for events that are too old, default
	// 1 minute. The size is looked at every second, or every Every if that is
	// less.
	Every time.Duration
}

// sizeEvery is the time between two looks at the size of the log: a burst fills
// a small one within seconds.
const sizeEvery = time.Second

// Purge removes old events from EVENTS until ctx ends: by age and above the
// high-water mark, oldest first, never past what is not yet folded or still
// referenced by sensor state or jobs.
func (d *Dispatcher) Purge(ctx context.Context, r Retention) error {
	if r.Every == 0 {
		r.Every = time.Minute
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var aged, told time.Time // when the age was looked at, and a failure logged
	missed := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		now, r := time.Now(), r
		if now.Sub(aged) < r.Every {
			r.MaxAge = 0
		} else {
			aged = now
		}
		switch err := d.purgeOnce(ctx, r); {
		case err == nil:
			told = time.Time{}
		case ctx.Err() == nil && now.Sub(told) >= r.Every:
			told = now
			d.log.Warn("old events could not be purged; the next look is soon", "error", err)
		}
		d.tellMissed(missed)
		// Finding out what is still needed may take long: at most a tenth of the time.
		timer.Reset(min(max(sizeEvery, 10*time.Since(now)), r.Every))
	}
}

func (d *Dispatcher) purgeOnce(ctx context.Context, r Retention) error {
	log := d.o.Bus.Events()
	info, err := log.Info(ctx)
	if err != nil || info.Records == 0 {
		return err
	}
	target := info.First
	// By age in steps of a hundredth: finding out what is still needed costs a
	// look at all waiting jobs.
	if r.MaxAge > 0 && time.Since(info.FirstTime) > r.MaxAge+r.MaxAge/100 {
		if target, err = FirstAfter(ctx, log, info, time.Now().Add(-r.MaxAge)); err != nil {
			return err
		}
	}
	over := r.HighWater > 0 && info.MaxBytes > 0 && float64(info.Bytes) > r.HighWater*float64(info.MaxBytes)
	if over {
		// Records differ in size: a tenth of the excess in count, then look again.
		target = max(target, info.First+max(1, info.Records/10))
	}
	if target <= info.First {
		return nil
	}
	// Those who catch up hold it, until it is halfway to the limit.
	held := d.floorBehind.Load()
	if over && float64(info.Bytes) > (1+r.HighWater)/2*float64(info.MaxBytes) {
		held = 0
	}
	floor, err := d.floor(ctx, held)
	if err != nil {
		return err
	}
	if floor <= info.First {
		if over {
			d.o.Alarm("purge-held", fmt.Sprintf("EVENTS is above its high-water mark (%d of %d bytes), but event %d and later ones are still needed by waiting jobs, sensor state, the fold or a sensor that catches up", info.Bytes, info.MaxBytes, floor))
		}
		return nil
	}
	if err := log.PurgeTo(ctx, min(target, floor)); err != nil {
		return err
	}
	d.first.Store(min(target, floor))
	if over && target < floor {
		return d.purgeOnce(ctx, r)
	}
	return nil
}

// FirstAfter returns the sequence of the first record of EVENTS stored after t,
// or the one after the last. info is what the log was told to be. It blocks on
// the bus.
func FirstAfter(ctx context.Context, log bus.Log, info bus.LogInfo, t time.Time) (uint64, error) {
	lo, hi := info.First, info.Last+1
	for lo < hi {
		mid := lo + (hi-lo)/2
		r, err := log.Next(ctx, bus.EventsPrefix+">", mid)
		if errors.Is(err, bus.ErrNotFound) {
			hi = mid
			continue
		}
		if err != nil {
			return 0, err
		}
		if r.Time.After(t) {
			hi = mid
		} else {
			lo = r.Seq + 1
		}
	}
	return lo, nil
}

// tellMissed raises an alarm, once for each pause, when events a paused sensor
// has not evaluated were purged. told has the pauses by sensor.
func (d *Dispatcher) tellMissed(told map[string]time.Time) {
	for name, b := range d.Behind() {
		if b.Pause != nil && b.Removed > 0 && !told[name].Equal(b.Pause.Since) {
			told[name] = b.Pause.Since
			d.o.Alarm("sensor-missed-events", fmt.Sprintf("sensor %s is paused behind event %d, and %d events after it were purged from EVENTS: it will not see them", name, b.Position, b.Removed))
		}
	}
}

// floor is the first event that must not be purged; held is one that somebody
// needs, 0 for none.
func (d *Dispatcher) floor(ctx context.Context, held uint64) (uint64, error) {
	_, covered := d.Position()
	floor := covered + 1
	if held > 0 {
		floor = min(floor, held)
	}
	err := d.do(ctx, func(s *session) error {
		// What states do not refer to any more because it fired must be in JOBS.
		if err := s.barrier(); err != nil {
			return err
		}
		for l := range s.all {
			if oldest := l.eval.Oldest(); oldest > 0 {
				floor = min(floor, oldest)
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for _, l := range []bus.Log{d.o.Bus.Jobs(), d.o.Bus.Parked()} {
		if floor, err = jobsFloor(ctx, l, floor); err != nil {
			return 0, err
		}
	}
	return floor, nil
}

// jobsFloor lowers floor to the first event a job of log refers to.
func jobsFloor(ctx context.Context, log bus.Log, floor uint64) (uint64, error) {
	info, err := log.Info(ctx)
	if err != nil || info.Records == 0 {
		return floor, err
	}
	err = bus.ReadThrough(ctx, log, 1, info.Last, func(r bus.Record) error {
		j, err := jobs.DecodeJob(r.Data)
		if err != nil || j.Event != nil && !j.Late {
			return nil
		}
		if n := j.MinSeq(); n > 0 {
			floor = min(floor, n)
		}
		return nil
	})
	return floor, err
}
