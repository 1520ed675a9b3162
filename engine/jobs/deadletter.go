package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// DeadLetter is what a trigger has called for each of its dead letters: by a job
// of the trigger with its name and [specs.DeadLetterSuffix].
type DeadLetter struct {
	// SpecHash is the hash of the sensor.
	SpecHash string
	// Spread is true when its jobs live where their keys say.
	Spread bool
	// Render renders the templates, nil when there are none.
	Render func(sensors.Failure) (map[string]any, error)
}

// DeadLetterKey is the key of the job that is called for the dead letter of the
// job with a key, after it was redriven so often.
func DeadLetterKey(key string, redrive int) string {
	if redrive > 0 {
		key += "." + strconv.Itoa(redrive)
	}
	return key + specs.DeadLetterSuffix
}

// handler makes the job that is called for a dead letter. It holds all it needs,
// so it refers to no event. failed is the event that would tell the result of
// the job. The error says that the bus did not answer.
func (p *Pool) handler(ctx context.Context, d *DeadLetter, j *Job, failed *bus.Event) (*Job, error) {
	rec := failed.Record()
	h := &Job{
		Key: DeadLetterKey(j.Key, j.Redrive), Sensor: j.Sensor, Trigger: j.Trigger + specs.DeadLetterSuffix, SpecHash: d.SpecHash,
		Correlation: j.Correlation, Time: failed.Time, Event: &rec, Spread: d.Spread,
	}
	if d.Render == nil {
		return h, nil
	}
	var away error
	rendered, err := d.Render(sensors.Failure{Events: j.Events, Item: j.Item, Result: failed, Kept: func(seq uint64) *bus.Event {
		if j.Event != nil && j.Event.Seq == seq { // it may be purged
			if ev, err := bus.DecodeEvent(*j.Event); err == nil {
				return ev
			}
		}
		ev, err := p.event(ctx, j, seq)
		switch {
		case err == nil:
			return ev
		case !errors.Is(err, bus.ErrNotFound):
			away = fmt.Errorf("reading event %d: %w", seq, err)
		}
		return nil
	}})
	if away != nil {
		return nil, away
	}
	if err == nil && len(rendered) > 0 {
		h.Rendered, err = json.Marshal(rendered)
	}
	if limit := p.o.Bus.MaxPayload()/2 - resultRoom; err == nil && len(h.Rendered) > limit {
		err = fmt.Errorf("the rendered input has %d bytes, the limit is %d", len(h.Rendered), limit)
	}
	if err != nil {
		h.Fault, h.Rendered = err.Error(), nil
	}
	return h, nil
}

// handle enqueues what the deadLetter of a trigger calls for a job that is among
// the dead letters. It is stored when handle returns true; until the bus takes it,
// it is tried again. False says that the pool was stopped. What is enqueued again,
// since the dead job was not seen to leave, has the same key and id.
func (p *Pool) handle(d *DeadLetter, j *Job, failed *bus.Event) bool {
	return p.insist(j, "enqueuing what its deadLetter calls", func(ctx context.Context) error {
		h, err := p.handler(ctx, d, j, failed)
		if err != nil {
			return err
		}
		rec := bus.Record{Subject: h.Subject(p.o.Bus.Jobs().Partitions()), Data: h.Encode(nil), MsgID: h.Key}
		if _, err = p.o.Bus.Jobs().Append(ctx, rec); errors.Is(err, bus.ErrFull) {
			// The job that died may be one of those that JOBS is full of: it must
			// not wait for room there.
			return p.parkHandler(ctx, h)
		}
		if err != nil {
			return err
		}
		return p.o.Bus.Jobs().Sync(ctx)
	})
}

// parkHandler stores a job behind those of its trigger that are parked.
func (p *Pool) parkHandler(ctx context.Context, h *Job) error {
	h.Since = time.Now()
	h.Order = 1<<63 | uint64(h.Since.UnixNano()) // after those from JOBS, and unlike all of them
	rec := bus.Record{Subject: parkedSubject(h.Sensor, h.Trigger, WhyOverflow), Data: h.Encode(nil), MsgID: h.Key}
	ack, err := p.o.Bus.Parked().Append(ctx, rec)
	if err != nil || ack.Duplicate {
		return err
	}
	p.mu.RLock()
	q := p.queues[TriggerRef{h.Sensor, h.Trigger}]
	p.mu.RUnlock()
	if q != nil { // else it is found when the trigger is there
		q.parking()
		q.parkedAt(WhyOverflow, ack.Seq, h)
	}
	return nil
}

// insist does something that the bus must take before a job may leave, until it
// does: then it returns true. False says that the pool was stopped.
func (p *Pool) insist(j *Job, what string, do func(ctx context.Context) error) bool {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		ctx, cancel := context.WithTimeout(p.callCtx, 10*time.Second)
		err := do(ctx)
		cancel()
		if err == nil {
			return true
		}
		if p.callCtx.Err() != nil {
			return false
		}
		p.log.Warn("job that was given up cannot leave; its trigger waits", "sensor", j.Sensor, "trigger", j.Trigger, "doing", what, "error", err)
		select {
		case <-p.callCtx.Done():
			return false
		case <-time.After(wait):
		}
	}
}
