package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/triggers"
)

// resultRoom is what the record of a result may hold beside its data, in bytes,
// parked with its job too.
const resultRoom = 16 << 10

// tells reports whether the result of a trigger's job becomes an event.
func tells(spec *Trigger, j *Job) bool { return spec.Tell || j.Flow != "" }

// hopLimit begins the reason of a job that was given up because of its hops.
var hopLimit = fmt.Sprintf("hop limit %d reached", bus.MaxHops)

// beyondHops is the error of a job whose result could not be told, because what
// caused it passed through too many functions already. It ends loops before the
// call. ev is the job's last event, nil for none.
func beyondHops(spec *Trigger, j *Job, ev *bus.Event) error {
	r := sensors.Result{Flow: j.Flow, Last: ev}
	if !tells(spec, j) || r.Hops() <= bus.MaxHops {
		return nil
	}
	return triggers.Permanentf(
		"%s: trigger %s of sensor %s would call %s, whose result is an event, because of %s (event %s), which already passed through %d functions; this is a loop: narrow the dependency of the sensor that waits for the result",
		hopLimit, j.Trigger, j.Sensor, spec.Callee.Name, ev.Type, ev.ID, ev.Hops)
}

// lastEvent is the job's last event, nil when there is none or it cannot be had.
func (p *Pool) lastEvent(ctx context.Context, j *Job) (ev *bus.Event) {
	switch {
	case j.Event != nil:
		ev, _ = bus.DecodeEvent(*j.Event)
	case j.Last != 0:
		ev, _ = p.event(ctx, j, j.Last)
	}
	return ev
}

// tell appends the event of a result to EVENTS; then the task ends. When the job
// was given up, its Error says why. It does not wait for the bus.
func (p *Pool) tell(t *task, callee *Callee, ev *bus.Event, res triggers.Result, failed bool) {
	r := resultOf(t.job, callee, ev, res, failed)
	p.work.Add(1)
	p.store(t, r.Event(p.o.Bus.MaxPayload()-resultRoom).Record())
}

// resultOf is how a job ended, with secrets masked. ev is its last event, nil
// for none.
func resultOf(j *Job, callee *Callee, ev *bus.Event, res triggers.Result, failed bool) sensors.Result {
	return sensors.Result{
		Function: callee.Name, Sensor: j.Sensor, Trigger: j.Trigger, Firing: j.Key, Correlation: j.Correlation,
		Flow: j.Flow, Item: j.Item, Items: j.Items, Failed: failed, Error: string(mask(callee.Mask, []byte(j.Error))),
		Output: mask(callee.Mask, res.Output), ContentType: res.ContentType, Cut: res.Truncated,
		Attempts: j.Attempt, Redrive: j.Redrive, Last: ev, Time: time.Now(),
	}
}

// store appends the record of a result to EVENTS, or parks it when that does
// not take it: then the job is done with, and holds neither a place nor its
// events. When nothing takes it, it is tried again.
func (p *Pool) store(t *task, rec bus.Record) {
	leave := func() {
		defer p.work.Done()
		if t.parked != 0 { // its removal waits for the bus
			p.work.Go(func() { p.finish(t) })
			return
		}
		p.finish(t)
	}
	appendTo(p.callCtx, p.o.Bus.Events(), rec, func(err error) {
		if err == nil {
			leave()
			return
		}
		j := t.job
		parked := Job{
			Key: j.Key, Sensor: j.Sensor, Trigger: j.Trigger, SpecHash: j.SpecHash, Correlation: j.Correlation,
			Flow: j.Flow, Item: j.Item, Items: j.Items, Time: j.Time, Attempt: j.Attempt, Redrive: j.Redrive, Since: time.Now(), Event: &rec,
		}
		waiting := bus.Record{Subject: parkedSubject(j.Sensor, j.Trigger, WhyResult), Data: parked.Encode(nil)}
		appendTo(p.callCtx, p.o.Bus.Parked(), waiting, func(err error) {
			if err == nil {
				select {
				case p.untold <- struct{}{}:
				default:
				}
				leave()
				return
			}
			time.AfterFunc(time.Second, func() {
				if p.closing.Load() { // the job is still stored and comes back
					p.work.Done()
					return
				}
				p.log.Warn("the result of a job can be neither told nor parked, trying again", "sensor", j.Sensor, "trigger", j.Trigger, "error", err)
				p.store(t, rec)
			})
		})
	})
}

// appendTo is AppendAsync with one way to learn the outcome.
func appendTo(ctx context.Context, l bus.Log, r bus.Record, done func(error)) {
	if err := l.AppendAsync(ctx, r, func(_ bus.Ack, err error) { done(err) }); err != nil {
		done(err)
	}
}

// tellParked appends parked results to EVENTS, in their order, until ctx ends.
func (p *Pool) tellParked(ctx context.Context) {
	filter := bus.ParkedPrefix + "*.*." + string(WhyResult)
	var from uint64
	var wait time.Duration // before the next try, 0 while EVENTS takes them
	told := 0
	for {
		r, err := p.o.Bus.Parked().Next(ctx, filter, from)
		if isNotFound(err) {
			if told > 0 {
				p.log.Info("results that were parked are told", "results", told)
			}
			from, wait, told = 0, 0, 0
			select {
			case <-ctx.Done():
				return
			case <-p.untold:
			}
			continue
		}
		if err == nil {
			err = p.tellRecord(ctx, r)
		}
		if err == nil {
			from, wait, told = r.Seq+1, 0, told+1
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if wait == 0 {
			p.log.Warn("results of functions cannot be told; they are parked and tried again", "error", err)
		}
		wait = min(max(2*wait, 100*time.Millisecond), 10*time.Second)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// tellRecord appends one parked result to EVENTS and removes it from PARKED.
func (p *Pool) tellRecord(ctx context.Context, r bus.Record) error {
	j, err := DecodeJob(r.Data)
	if err == nil && j.Event == nil {
		err = errors.New("it has no event")
	}
	var ev *bus.Event
	if err == nil {
		ev, err = bus.DecodeEvent(*j.Event)
	}
	if err != nil {
		p.log.Error("parked result cannot be read; it goes to the dead letters as it is", "parked_seq", r.Seq, "error", err)
		j = &Job{Key: fmt.Sprintf("unreadable-%d", r.Seq), Sensor: "_unreadable", Trigger: "_unreadable", Rendered: r.Data, Fault: err.Error()}
		p.bury(&task{job: j, parked: r.Seq}, j.Fault)
		return nil
	}
	_, err = p.o.Bus.Events().Append(ctx, ev.Record())
	if errors.Is(err, bus.ErrTooLarge) { // the bus takes less than before
		j.Fault, j.Event = fmt.Sprintf("its call has ended, but the result cannot be told: %v", err), nil
		p.bury(&task{job: j, parked: r.Seq}, j.Fault)
		return nil
	}
	if err != nil {
		return err
	}
	return p.o.Bus.Parked().Delete(ctx, r.Seq)
}
