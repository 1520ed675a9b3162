package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/triggers"
)

func (s *server) runs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	f := jobs.RunFilter{Function: q.Get("function"), Status: q.Get("status"), Key: q.Get("key"), Sensor: q.Get("sensor"), Trigger: q.Get("trigger")}
	if f.Status != "" && !slices.Contains(jobs.Statuses(), f.Status) {
		return badRequest("unknown status %q; there are %s", f.Status, strings.Join(jobs.Statuses(), ", "))
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
		return s.wholeRun(ctx, w, run)
	}
	for _, f := range []jobs.RunFilter{{ID: id, Limit: 1}, {Key: id, Limit: 1}} {
		found, err := jobs.ReadRuns(ctx, s.e.Bus(), f)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return s.wholeRun(ctx, w, found[0].JSON)
		}
	}
	return notFound("there is no run %s in the last blocks of the history", id)
}

// attempt is one run of a job.
type attempt struct {
	run     json.RawMessage
	started time.Time
}

// wholeRun answers with a run, with the input that it has of its event, and
// with all attempts of its job.
func (s *server) wholeRun(ctx context.Context, w http.ResponseWriter, run json.RawMessage) error {
	var head struct {
		Key, Function string
		Input         json.RawMessage
		Event         struct{ Seq uint64 }
	}
	if err := json.Unmarshal(run, &head); err != nil {
		return err
	}
	out := bytes.Clone(bytes.TrimSuffix(bytes.TrimSpace(run), []byte("}")))
	if head.Input == nil && head.Event.Seq > 0 {
		if input := s.inputOf(ctx, head.Event.Seq); input != nil {
			out = append(append(out, `,"input":`...), input...)
		}
	}
	found, err := jobs.ReadRuns(ctx, s.e.Bus(), jobs.RunFilter{Function: head.Function, Key: head.Key, Limit: 1000})
	if err != nil {
		return err
	}
	out = append(out, `,"attempts":[`...)
	var attempts []attempt
	for _, f := range found {
		var at struct {
			Attempt int
			Started time.Time
		}
		if json.Unmarshal(f.JSON, &at) == nil && at.Attempt > 0 {
			attempts = append(attempts, attempt{f.JSON, at.Started})
		}
	}
	slices.SortStableFunc(attempts, func(a, b attempt) int { return a.started.Compare(b.started) })
	for i, a := range attempts {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, a.run...)
	}
	write(w, http.StatusOK, "application/json", append(bytes.Clone(s.e.Mask(append(out, "]}"...))), '\n'))
	return nil
}

// inputOf is the payload of an event as its function got it, as far as it is
// shown; nil when it is no longer stored.
func (s *server) inputOf(ctx context.Context, seq uint64) json.RawMessage {
	rec, err := s.e.Bus().Events().Get(ctx, seq)
	if err != nil {
		return nil
	}
	ev, err := bus.DecodeEvent(rec)
	if err != nil {
		return nil
	}
	data, err := (&triggers.Call{Event: ev}).Payload()
	if err != nil {
		return nil
	}
	if len(data) > jobs.MaxRunOutput {
		return bus.AppendJSONString(nil, string(data[:jobs.MaxRunOutput]))
	}
	return data
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
