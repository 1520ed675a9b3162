package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/specs"
)

// maxShadows bounds how much of the log is evaluated again at the same time,
// and shadowTimeout how long one of that may take.
const (
	maxShadows    = 2
	shadowTimeout = 50 * time.Second
)

// shadow takes one of the places of those who evaluate the log again; done
// gives it back.
func (s *server) shadow(r *http.Request) (ctx context.Context, done func(), err error) {
	select {
	case s.shadows <- struct{}{}:
	default:
		return nil, nil, &statusError{http.StatusTooManyRequests, "the log is being evaluated for others; ask again in a moment"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), shadowTimeout)
	return ctx, func() { cancel(); <-s.shadows }, nil
}

// explain tells what sensors said of events.
func (s *server) explain(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	last, err := number(r, "last", 1, 1, 100)
	if err != nil {
		return err
	}
	ctx, done, err := s.shadow(r)
	if err != nil {
		return err
	}
	defer done()
	out, err := s.e.Explain(ctx, engine.ExplainQuery{Event: q.Get("event"), Sensor: q.Get("sensor"), Last: last, From: q.Get("from")})
	if err != nil {
		return err
	}
	return s.reply(w, out)
}

// maxReplay bounds the specs and patches that a replay is sent.
const maxReplay = 8 << 20

// Refused is the answer to a replay whose specs, or whose expression, have
// errors.
type Refused struct {
	Error       string            `json:"error"`
	Diagnostics specs.Diagnostics `json:"diagnostics"`
}

// replay tells what events make fire now, and calls it when that is asked for.
func (s *server) replay(w http.ResponseWriter, r *http.Request) error {
	var q engine.ReplayQuery
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxReplay))
	dec.DisallowUnknownFields()
	dec.UseNumber() // patches keep their numbers as they are
	err := dec.Decode(&q)
	if err == nil && dec.More() {
		err = errors.New("something follows the JSON object")
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return err
	case errors.Is(err, io.EOF):
		return badRequest("the body is empty; send {\"sensor\": \"name\", …}")
	case err != nil:
		return badRequest("the body is not what is asked for, {\"sensor\": \"name\", …}: %v", err)
	}
	ctx, done, err := s.shadow(r)
	if err != nil {
		return err
	}
	defer done()
	out, err := s.e.Replay(ctx, q)
	if wrong, ok := errors.AsType[*engine.SpecsError](err); ok {
		reply(w, http.StatusUnprocessableEntity, Refused{wrong.Error(), wrong.Diagnostics})
		return nil
	}
	if err != nil {
		return err
	}
	return s.reply(w, out)
}
