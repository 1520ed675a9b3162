package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
)

func (s *server) runs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	f := jobs.RunFilter{Function: q.Get("function"), Status: q.Get("status"), Key: q.Get("key")}
	switch f.Status {
	case "", jobs.StatusSucceeded, jobs.StatusRetrying, jobs.StatusDead:
	default:
		return badRequest("unknown status %q; there are %s, %s, %s", f.Status, jobs.StatusSucceeded, jobs.StatusRetrying, jobs.StatusDead)
	}
	follow, err := flag(r, "follow")
	if err != nil {
		return err
	}
	def := 50
	if follow {
		def = 10
	}
	if f.Limit, err = number(r, "limit", def, 0, 10_000); err != nil {
		return err
	}
	ctx, cancel := within(r)
	defer cancel()
	info, err := s.e.Bus().Runs().Info(ctx)
	if err != nil {
		return err
	}
	var found []jobs.StoredRun
	if f.Limit > 0 {
		if found, err = jobs.ReadRuns(ctx, s.e.Bus(), f); err != nil {
			return err
		}
	}
	if follow {
		cancel()
		return s.followRuns(w, r, f, found, info.Last)
	}
	var b bytes.Buffer
	b.WriteString(`{"runs":[`)
	for i, run := range found {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(run.JSON)
	}
	b.WriteString("]}\n")
	write(w, http.StatusOK, "application/json", s.e.Mask(b.Bytes()))
	return nil
}

// followRuns writes the runs found and then those that come.
func (s *server) followRuns(w http.ResponseWriter, r *http.Request, f jobs.RunFilter, found []jobs.StoredRun, last uint64) error {
	filter := bus.RunsPrefix + ">"
	if f.Function != "" {
		filter = bus.RunsPrefix + bus.Token(f.Function)
	}
	return s.follow(w, r, s.e.Bus().Runs(), filter, last+1, func(st *stream) error {
		for _, run := range found {
			if run.Seq > last {
				continue // it comes again
			}
			if err := st.line(run.JSON); err != nil {
				return err
			}
		}
		return nil
	}, func(st *stream, rec bus.Record) error {
		for _, run := range jobs.SplitRuns(rec, f) {
			if err := st.line(run.JSON); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *server) run(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := within(r)
	defer cancel()
	id := r.PathValue("id")
	if status, run, ok := s.e.Jobs().Submission(id); ok {
		if status == jobs.StatusRunning {
			run = withStatus(run, status)
		}
		write(w, http.StatusOK, "application/json", append(bytes.Clone(s.e.Mask(run)), '\n'))
		return nil
	}
	for _, f := range []jobs.RunFilter{{ID: id, Limit: 1}, {Key: id, Limit: 1}} {
		found, err := jobs.ReadRuns(ctx, s.e.Bus(), f)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			write(w, http.StatusOK, "application/json", append(s.e.Mask(found[0].JSON), '\n'))
			return nil
		}
	}
	return notFound("there is no run %s in the last blocks of the history", id)
}

// withStatus is a run with another status.
func withStatus(run json.RawMessage, status string) json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal(run, &m) != nil {
		return run
	}
	m["status"] = bus.AppendJSONString(nil, status)
	b, err := json.Marshal(m)
	if err != nil {
		return run
	}
	return b
}

// stream is an answer without end, a JSON text a line.
type stream struct {
	s  *server
	w  http.ResponseWriter
	rc *http.ResponseController
}

// writeTimeout bounds how long one who follows may take for a line.
const writeTimeout = 10 * time.Second

func (st *stream) line(b json.RawMessage) error {
	_ = st.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := st.w.Write(append(bytes.Clone(st.s.e.Mask(b)), '\n'))
	return err
}

// heartbeat is the time after which an empty line shows that both sides live.
const heartbeat = 15 * time.Second

// follow writes what begin gives, then each record of a log from sequence from
// on, until the client or the engine goes.
func (s *server) follow(w http.ResponseWriter, r *http.Request, log bus.Log, filter string, from uint64, begin func(*stream) error, each func(*stream, bus.Record) error) error {
	select {
	case s.followers <- struct{}{}:
		defer func() { <-s.followers }()
	default:
		return &statusError{http.StatusTooManyRequests, "too many streams are being followed"}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if s.o.Done != nil {
		go func() {
			select {
			case <-s.o.Done:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	rd, err := log.Read(ctx, from, filter)
	if err != nil {
		return err
	}
	defer rd.Close()
	st := &stream{s, w, http.NewResponseController(w)}
	_ = st.rc.SetReadDeadline(time.Time{}) // the request has been read; the connection stays
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if begin(st) != nil || st.rc.Flush() != nil {
		return nil
	}
	for {
		wait, stop := context.WithTimeout(ctx, heartbeat)
		recs, err := rd.Next(wait, 256)
		stop()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, context.DeadlineExceeded):
			if st.line(nil) != nil {
				return nil
			}
		case err != nil:
			s.log.Warn("stream of the API ended", "path", r.URL.Path, "error", err)
			return nil
		}
		for _, rec := range recs {
			if each(st, rec) != nil {
				return nil
			}
		}
		if st.rc.Flush() != nil {
			return nil
		}
	}
}
