package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sensors"
)

// Letter is a dead letter: a job that was given up.
type Letter struct {
	// ID is its sequence among the dead letters.
	ID      uint64 `json:"id"`
	Sensor  string `json:"sensor"`
	Trigger string `json:"trigger"`
	// Died is when it was given up, Fired the log time of the firing.
	Died  time.Time `json:"died"`
	Fired time.Time `json:"fired"`
	// Error is the last failure.
	Error string `json:"error"`
	// Attempts counts the calls, Redrives how often it came back before.
	Attempts int `json:"attempts"`
	Redrives int `json:"redrives,omitempty"`
	// Redrivable is false when it could not even be rendered.
	Redrivable  bool   `json:"redrivable"`
	Key         string `json:"key"`
	Correlation string `json:"correlation,omitempty"`
	Spec        string `json:"spec"`
	// Events are the events that contributed.
	Events []sensors.Contribution `json:"events"`
	// Event is the last of them and Rendered the rendered values; both only
	// when one letter is asked for.
	Event    json.RawMessage `json:"event,omitempty"`
	Rendered json.RawMessage `json:"rendered,omitempty"`
	// Input is the input somebody edited at a redrive, instead of those; only
	// when one letter is asked for.
	Input json.RawMessage `json:"input,omitempty"`
}

func letterOf(l jobs.Letter) Letter {
	j := l.Job
	out := Letter{
		ID: l.Seq, Sensor: j.Sensor, Trigger: j.Trigger, Died: l.Time, Fired: j.Time, Error: j.Error, Attempts: j.Attempt, Redrives: j.Redrive,
		Redrivable: j.Fault == "", Key: j.Key, Correlation: j.Correlation, Spec: j.SpecHash, Events: j.Events,
	}
	if out.Error == "" {
		out.Error = j.Fault
	}
	return out
}

// selected reads whose letters are meant.
func selected(r *http.Request) jobs.TriggerRef {
	q := r.URL.Query()
	return jobs.TriggerRef{Sensor: q.Get("sensor"), Trigger: q.Get("trigger")}
}

func (s *server) letters(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	limit, err := number(r, "limit", 100, 1, 10_000)
	if err != nil {
		return err
	}
	from, err := strconv.ParseUint(r.URL.Query().Get("from"), 10, 64)
	if err != nil && r.URL.Query().Get("from") != "" {
		return badRequest("from must be the id of a dead letter")
	}
	found, err := jobs.Letters(ctx, s.e.Bus(), selected(r), from, limit)
	if err != nil {
		return err
	}
	out := make([]Letter, len(found))
	for i, l := range found {
		out[i] = letterOf(l)
	}
	return s.reply(w, map[string]any{"letters": out})
}

// letterAt finds the letter the path names.
func (s *server) letterAt(ctx context.Context, r *http.Request) (jobs.Letter, error) {
	id := r.PathValue("id")
	seq, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return jobs.Letter{}, badRequest("%q is not the id of a dead letter; it is a number", id)
	}
	l, err := jobs.LetterAt(ctx, s.e.Bus(), seq)
	if errors.Is(err, bus.ErrNotFound) {
		return l, notFound("there is no dead letter %d", seq)
	}
	return l, err
}

func (s *server) letter(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	l, err := s.letterAt(ctx, r)
	if err != nil {
		return err
	}
	out := letterOf(l)
	if bus.ValidJSON(l.Job.Input) {
		out.Input = l.Job.Input
	}
	if bus.ValidJSON(l.Job.Rendered) {
		out.Rendered = l.Job.Rendered
	}
	if l.Job.Event != nil {
		if ev, err := bus.DecodeEvent(*l.Job.Event); err == nil {
			out.Event = EncodeEvent(ev)
		}
	}
	return s.reply(w, out)
}

func (s *server) redrive(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	l, err := s.letterAt(ctx, r)
	if err != nil {
		return err
	}
	if l.Job.Fault != "" {
		return &statusError{http.StatusConflict, "it cannot be redriven: " + l.Job.Fault}
	}
	input, err := s.editedInput(w, r)
	if err != nil {
		return err
	}
	if err := jobs.Redrive(ctx, s.e.Bus(), l, input); err != nil {
		return err
	}
	return s.reply(w, map[string]int{"redriven": 1})
}

// Redrive says how a dead letter is redriven.
type Redrive struct {
	// Input is what the function gets, absent for what it got before.
	Input json.RawMessage `json:"input,omitempty"`
}

// editedInput reads what a redriven job gets, nil for what it got before.
func (s *server) editedInput(w http.ResponseWriter, r *http.Request) (json.RawMessage, error) {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, int64(s.e.Bus().MaxPayload())))
	dec.DisallowUnknownFields()
	var in Redrive
	err := dec.Decode(&in)
	if err == nil && dec.More() {
		err = errors.New("something follows the JSON object")
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, io.EOF): // no body
		return nil, nil
	case errors.As(err, &tooLarge):
		return nil, err
	case err != nil:
		return nil, badRequest("the body is not what is asked for, {\"input\": …} or nothing: %v", err)
	}
	return in.Input, nil
}

func (s *server) drop(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	l, err := s.letterAt(ctx, r)
	if err != nil {
		return err
	}
	if err := s.e.Bus().DeadLetters().Delete(ctx, l.Seq); err != nil {
		return err
	}
	return s.reply(w, map[string]int{"dropped": 1})
}

// Many is the answer to an operation on many dead letters. Error says why it
// ended early; what was done before stays done.
type Many struct {
	Redriven int `json:"redriven,omitempty"`
	Dropped  int `json:"dropped,omitempty"`
	// Skipped counts those that cannot be redriven.
	Skipped int    `json:"skipped,omitempty"`
	Error   string `json:"error,omitempty"`
}

// each calls fn for the letters selected that are there now; a redriven one
// that dies again is not looked at again.
func (s *server) each(w http.ResponseWriter, r *http.Request, fn func(context.Context, jobs.Letter) error) error {
	ref := selected(r)
	all, err := flag(r, "all")
	if err != nil {
		return err
	}
	if ref == (jobs.TriggerRef{}) && !all {
		return badRequest("say which: sensor, trigger, or all=true")
	}
	info, err := s.e.Bus().DeadLetters().Info(r.Context())
	if err != nil {
		return err
	}
	rc := http.NewResponseController(w) // it may take longer than others
	_, _ = rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{})
	for from := uint64(0); ; {
		found, err := jobs.Letters(r.Context(), s.e.Bus(), ref, from, 256)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, l := range found {
			if l.Seq > info.Last {
				return nil
			}
			if err := fn(r.Context(), l); err != nil {
				return err
			}
			from = l.Seq + 1
		}
	}
}

func (s *server) redriveAll(w http.ResponseWriter, r *http.Request) error {
	var done Many
	err := s.each(w, r, func(ctx context.Context, l jobs.Letter) error {
		if l.Job.Fault != "" {
			done.Skipped++
			return nil
		}
		err := jobs.Redrive(ctx, s.e.Bus(), l, nil)
		if err == nil {
			done.Redriven++
		}
		return err
	})
	return s.many(w, done, err, done.Redriven)
}

func (s *server) dropAll(w http.ResponseWriter, r *http.Request) error {
	var done Many
	err := s.each(w, r, func(ctx context.Context, l jobs.Letter) error {
		err := s.e.Bus().DeadLetters().Delete(ctx, l.Seq)
		if err == nil {
			done.Dropped++
		}
		return err
	})
	return s.many(w, done, err, done.Dropped)
}

func (s *server) many(w http.ResponseWriter, done Many, err error, n int) error {
	if err != nil && n == 0 {
		return err
	}
	if err != nil {
		done.Error = string(s.e.Mask([]byte(err.Error())))
		reply(w, http.StatusServiceUnavailable, done)
		return nil
	}
	return s.reply(w, done)
}
