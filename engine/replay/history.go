package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
)

// Call is what is known of the call of one firing.
type Call struct {
	// Status is that of its last run (succeeded, retrying, dead), "waiting" when
	// there was none, or "ended" when only earlier ones are known, which failed.
	// Attempts counts the runs that are known.
	Status   string `json:"status"`
	Attempts int    `json:"attempts"`
	// Run is the id of the last run, Started when it was, Result and Error what
	// came of it.
	Run     string    `json:"run,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Result  string    `json:"result,omitempty"`
	Error   string    `json:"error,omitempty"`
	// Letter is the number of the dead letter, 0 for none, and Redrive how often
	// the job had come back from there.
	Letter  uint64 `json:"letter,omitempty"`
	Redrive int    `json:"redrive,omitempty"`
	// DeadLetter is the call of what the trigger's deadLetter calls for it, nil
	// when nothing is known of one.
	DeadLetter *Call `json:"deadLetter,omitempty"`

	key, sensor, trigger string
	event                uint64 // the last that contributed
}

// History is what is known of the calls of firings, by their keys.
type History struct {
	Calls map[string]*Call
	// Oldest is when the oldest run was written that is known: whether there was
	// an earlier one is not. It is zero when nothing was ever forgotten.
	Oldest time.Time
}

// Trigger names a trigger and the function it calls.
type Trigger struct{ Sensor, Trigger, Function string }

// HistoryQuery says which calls are asked for.
type HistoryQuery struct {
	Triggers []Trigger
	// Keys are the firings asked for, nil for all.
	Keys map[string]bool
	// Since is the time before which no call is asked for, zero for none.
	Since time.Time
}

// Limits of one look at the history.
const (
	maxBlocks  = 4000
	blockStep  = 200
	maxWaiting = 10_000
)

// ReadHistory reads what is known of calls: of those that wait, the dead letters
// and the runs, the newest first. It blocks on the bus.
func ReadHistory(ctx context.Context, b bus.Bus, q HistoryQuery) (*History, error) {
	h := &History{Calls: map[string]*Call{}}
	functions := map[string]bool{}
	for _, t := range q.Triggers {
		functions[t.Function] = true
		for _, w := range []struct {
			log     bus.Log
			subject string
		}{
			{b.Jobs(), bus.JobsPrefix + "*." + bus.Token(t.Sensor) + "." + bus.Token(t.Trigger)},
			{b.Parked(), bus.ParkedPrefix + bus.Token(t.Sensor) + "." + bus.Token(t.Trigger) + ".>"},
			{b.DeadLetters(), bus.DLQPrefix + bus.Token(t.Sensor) + "." + bus.Token(t.Trigger)},
		} {
			if err := h.waiting(ctx, w.log, w.subject, q, w.log == b.DeadLetters()); err != nil {
				return nil, err
			}
		}
	}
	for function := range functions {
		if err := h.runs(ctx, b.Runs(), bus.RunsPrefix+bus.Token(function), q, nil); err != nil {
			return nil, err
		}
	}
	// What failed is kept for longer; it tells of calls of which nothing else is
	// known.
	oldest, known, told := h.Oldest, maps.Clone(h.Calls), map[string]bool{}
	for key, c := range known {
		told[key] = c.Run != ""
	}
	for function := range functions {
		if err := h.runs(ctx, b.FailedRuns(), bus.FailedPrefix+bus.Token(function), q, told); err != nil {
			return nil, err
		}
	}
	for key, c := range h.Calls {
		if known[key] == nil && c.Status == jobs.StatusRetrying {
			c.Status = statusEnded
		}
	}
	h.Oldest = oldest
	return h, nil
}

// statusEnded is of a call of which only failed runs are known and which does
// not wait any more.
const statusEnded = "ended"

// call is what is known of a firing so far, nil when it is not asked for.
func (h *History) call(q HistoryQuery, key, sensor, trigger string, event uint64) *Call {
	if q.Keys != nil && !q.Keys[key] {
		return nil
	}
	c := h.Calls[key]
	if c == nil {
		c = &Call{key: key, sensor: sensor, trigger: trigger, event: event}
		h.Calls[key] = c
	}
	return c
}

// waiting notes the jobs of a log.
func (h *History) waiting(ctx context.Context, log bus.Log, subject string, q HistoryQuery, dead bool) error {
	at := uint64(0)
	for n := 0; ; n++ {
		if n == maxWaiting {
			return fmt.Errorf("more than %d calls wait; name a trigger or a shorter time", maxWaiting)
		}
		r, err := log.Next(ctx, subject, at)
		if errors.Is(err, bus.ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for calls that wait: %w", err)
		}
		at = r.Seq + 1
		j, err := jobs.DecodeJob(r.Data)
		if err != nil || j.Time.Before(q.Since) {
			continue
		}
		c := h.call(q, j.Key, j.Sensor, j.Trigger, j.Last)
		if c == nil {
			continue
		}
		if c.Status == "" {
			c.Status = "waiting"
		}
		if dead {
			c.Status, c.Letter, c.Error, c.Redrive = jobs.StatusDead, r.Seq, j.Error, j.Redrive
			if j.Fault != "" {
				c.Error = j.Fault
			}
		}
	}
}

// runs notes the runs under a subject, from the newest block back, but for the
// calls that are told of already.
func (h *History) runs(ctx context.Context, log bus.Log, subject string, q HistoryQuery, told map[string]bool) error {
	info, err := log.Info(ctx)
	if err != nil || info.Records == 0 {
		return err
	}
	if info.First > 1 {
		h.forget(info.FirstTime)
	}
	blocks := 0
	for hi := info.Last + 1; hi > info.First; {
		lo := max(info.First, hi-min(hi, blockStep))
		var part []bus.Record
		for at := lo; at < hi; {
			r, err := log.Next(ctx, subject, at)
			if errors.Is(err, bus.ErrNotFound) || err == nil && r.Seq >= hi {
				break
			}
			if err != nil {
				return fmt.Errorf("looking through the history: %w", err)
			}
			at = r.Seq + 1
			part = append(part, r)
		}
		for _, r := range slices.Backward(part) {
			if r.Time.Before(q.Since) { // it was written after its runs ended
				return nil
			}
			h.block(r, q, told)
		}
		hi = lo
		if blocks += len(part); blocks > maxBlocks || q.Keys != nil && h.found(q) {
			if hi > info.First && blocks > maxBlocks {
				h.forget(part[0].Time)
			}
			return nil
		}
	}
	return nil
}

// forget notes that runs before a time are not known.
func (h *History) forget(before time.Time) {
	if before.After(h.Oldest) {
		h.Oldest = before
	}
}

// found reports whether a run of each firing that is asked for was found.
func (h *History) found(q HistoryQuery) bool {
	for key := range q.Keys {
		if c := h.Calls[key]; c == nil || c.Run == "" {
			return false
		}
	}
	return true
}

// block notes the runs of one block, the newest of which comes last.
func (h *History) block(r bus.Record, q HistoryQuery, told map[string]bool) {
	lines := strings.Split(strings.TrimSuffix(string(r.Data), "\n"), "\n")
	for _, line := range slices.Backward(lines) {
		var run struct {
			ID, Key, Sensor, Trigger, Status, Result, Error string
			Redrive                                         int
			Event                                           struct{ Seq uint64 }
			Started                                         time.Time
		}
		if json.Unmarshal([]byte(line), &run) != nil || run.Key == "" || told[run.Key] || !asked(q, run.Sensor, run.Trigger) {
			continue
		}
		c := h.call(q, run.Key, run.Sensor, run.Trigger, run.Event.Seq)
		if c == nil {
			continue
		}
		if c.Attempts++; c.Run != "" {
			continue // a later one was seen
		}
		c.Run, c.Started, c.Result, c.Error = run.ID, run.Started, run.Result, run.Error
		if c.Letter == 0 {
			c.Status, c.Redrive = run.Status, run.Redrive
		}
	}
}

func asked(q HistoryQuery, sensor, trigger string) bool {
	for _, t := range q.Triggers {
		if t.Sensor == sensor && t.Trigger == trigger {
			return true
		}
	}
	return false
}
