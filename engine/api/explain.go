package api

import (
	"context"
	"net/http"
	"time"

	"github.com/sensor-engine/engine/engine"
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
