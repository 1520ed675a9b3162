package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/replay"
)

// statusError is an answer other than success.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func badRequest(format string, args ...any) error {
	return &statusError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &statusError{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

// fail answers with {"error": …}.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if se, ok := errors.AsType[*statusError](err); ok {
		status = se.status
	}
	reply(w, status, map[string]string{"error": err.Error()})
}

// fail answers to an error of a handler with the status it means.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var se *statusError
	var tooLarge *http.MaxBytesError
	var request *engine.RequestError
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, fold.ErrNoSensor):
		status = http.StatusNotFound
	case errors.Is(err, fold.ErrNotPaused), errors.Is(err, fold.ErrTooManyBehind):
		status = http.StatusConflict
	case errors.As(err, &request):
		status = http.StatusBadRequest
	case errors.Is(err, replay.ErrTooMuch):
		status = http.StatusUnprocessableEntity
	case errors.Is(err, jobs.ErrBusy), errors.Is(err, jobs.ErrStopping):
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	case errors.As(err, &se):
		status = se.status
	case errors.As(err, &tooLarge):
		status = http.StatusRequestEntityTooLarge
		err = fmt.Errorf("the body is larger than %d bytes", tooLarge.Limit)
	case errors.Is(err, bus.ErrTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, bus.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, bus.ErrFull), errors.Is(err, bus.ErrUnavailable), errors.Is(err, bus.ErrClosed), errors.Is(err, context.DeadlineExceeded):
		status = http.StatusServiceUnavailable
		wait := max(s.e.Bus().Health().RetryAfter, time.Second)
		w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	case r.Context().Err() != nil:
		return // nobody is there any more
	default:
		s.log.Error("API request failed", "path", r.URL.Path, "error", err)
	}
	reply(w, status, map[string]string{"error": string(s.e.Mask([]byte(err.Error())))})
}

// reply answers with JSON that cannot hold secrets.
func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // none of the answers can fail
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer is no JSON"}`)
	}
	write(w, status, "application/json", append(b, '\n'))
}

// reply answers with masked JSON.
func (s *server) reply(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	write(w, http.StatusOK, "application/json", append(s.e.Mask(b), '\n'))
	return nil
}

func write(w http.ResponseWriter, status int, contentType string, b []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(b) //nolint:gosec // not HTML, and browsers are told not to guess
}

// requestTimeout bounds how long an ordinary request may ask the bus.
const requestTimeout = 15 * time.Second

func within(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), requestTimeout)
}

// number reads a whole number from the query.
func number(r *http.Request, name string, def, least, most int) (int, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, badRequest("%s must be a number from %d to %d, not %q", name, least, most, v)
	}
	return n, nil
}

// flag reads true or false from the query; an empty value means true.
func flag(r *http.Request, name string) (bool, error) {
	q := r.URL.Query()
	if !q.Has(name) {
		return false, nil
	}
	v := q.Get(name)
	if v == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, badRequest("%s must be true or false, not %q", name, v)
	}
	return b, nil
}
