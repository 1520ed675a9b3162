package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Exec asks for a call of a function.
type Exec struct {
	// Function is the name of the Function.
	Function string `json:"function"`
	// Input is what it gets, any JSON; nothing is null.
	Input json.RawMessage `json:"input,omitempty"`
	// Secrets are names of Secrets that are added to those of the function.
	Secrets []string `json:"secrets,omitempty"`
	// Timeout, such as 10s, takes the place of the function's.
	Timeout string `json:"timeout,omitempty"`
	// Async stores the call as a job instead of waiting for its end.
	Async bool `json:"async,omitempty"`
}

// Executed is what a call gave. The answer is 200 also when the function
// failed: Context.Error tells.
type Executed struct {
	// ID is the id of the run and Key its idempotency key.
	ID         string    `json:"id"`
	Key        string    `json:"key"`
	Function   string    `json:"function"`
	Status     string    `json:"status"`
	Started    time.Time `json:"started"`
	DurationMs float64   `json:"durationMs"`
	QueuedMs   float64   `json:"queuedMs"`
	Answer
}

// Answer is what a function gave, in the form that Dispatch gave it.
type Answer struct {
	Context AnswerContext `json:"context"`
	// Payload is the output: JSON as it came, other text as a string, other
	// bytes as a string in base64; null when there is none.
	Payload json.RawMessage `json:"payload"`
	// Truncated is true when the function gave more than is kept.
	Truncated bool `json:"truncated,omitempty"`
}

// AnswerContext is what a call gave beside its payload.
type AnswerContext struct {
	Logs  AnswerLogs        `json:"logs"`
	Error *jobs.ErrorObject `json:"error,omitempty"`
}

// AnswerLogs are the lines a function wrote, null for none.
type AnswerLogs struct {
	Stdout []string `json:"stdout"`
	Stderr []string `json:"stderr"`
}

// ExecutedOf tells what a call gave.
func ExecutedOf(o *jobs.Outcome) Executed {
	res := &o.Result
	out := Executed{
		ID: o.ID, Key: o.Key, Function: o.Function, Status: jobs.StatusSucceeded, Started: o.Started, DurationMs: ms(o.Duration), QueuedMs: ms(o.Queued),
		Answer: Answer{
			Context: AnswerContext{Logs: AnswerLogs{jobs.Lines(res.Logs.Stdout), jobs.Lines(res.Logs.Stderr)}},
			Payload: payload(res), Truncated: res.Truncated || res.Logs.Truncated,
		},
	}
	if o.Err != nil {
		e := jobs.ErrorOf(o.Err)
		out.Status, out.Context.Error, out.Payload = jobs.StatusFailed, &e, json.RawMessage("null")
	}
	return out
}

func payload(res *triggers.Result) json.RawMessage {
	switch out := res.Output; {
	case len(out) == 0:
		return json.RawMessage("null")
	case bus.IsJSON(res.ContentType) && !res.Truncated && bus.ValidJSON(out):
		return out
	case utf8.Valid(out):
		return bus.AppendJSONString(nil, string(out))
	default:
		return bus.AppendJSONString(nil, base64.StdEncoding.EncodeToString(out))
	}
}

// maxTimeout bounds the timeout that a caller may ask for.
const maxTimeout = 24 * time.Hour

func (s *server) exec(w http.ResponseWriter, r *http.Request) error {
	in, req, err := s.received(w, r)
	if err != nil {
		return err
	}
	if in.Async {
		ctx, cancel := within(r)
		defer cancel()
		sub, err := s.e.Submit(ctx, in.Function, req)
		if err != nil {
			return execError(in.Function, err)
		}
		w.Header().Set("Location", "/api/v1/runs/"+url.PathEscape(sub.Key))
		reply(w, http.StatusAccepted, map[string]string{"id": sub.Key, "function": in.Function, "status": jobs.StatusQueued})
		return nil
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // the request was read; the call takes its time
	out, err := s.e.Call(r.Context(), in.Function, req)
	_ = rc.SetWriteDeadline(time.Now().Add(answerTimeout))
	if err != nil {
		return execError(in.Function, err)
	}
	// Not masked: logs and errors are already, and the payload is the caller's,
	// as it came.
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(ExecutedOf(out)); err != nil {
		return err
	}
	write(w, http.StatusOK, "application/json", b.Bytes())
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// received reads what is asked for.
func (s *server) received(w http.ResponseWriter, r *http.Request) (in Exec, req jobs.Request, err error) {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, int64(s.e.Bus().MaxPayload())))
	dec.DisallowUnknownFields()
	if err = dec.Decode(&in); err == nil && dec.More() {
		err = errors.New("something follows the JSON object")
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return in, req, err
	case errors.Is(err, io.EOF):
		return in, req, badRequest("the body is empty; send {\"function\": \"name\", \"input\": …}")
	case err != nil:
		return in, req, badRequest("the body is not what is asked for, {\"function\": \"name\", \"input\": …}: %v", err)
	case in.Function == "":
		return in, req, badRequest("function is missing")
	}
	req = jobs.Request{Input: in.Input, Grants: in.Secrets}
	if len(req.Input) == 0 {
		req.Input = json.RawMessage("null")
	}
	if in.Timeout != "" {
		d, err := specs.ParseDuration(in.Timeout)
		if err != nil || d < 1 || d.D() > maxTimeout {
			return in, req, badRequest("timeout must be a duration up to 24h, such as 10s, not %q", in.Timeout)
		}
		req.Timeout = d.D()
	}
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		req.Key = jobs.DeriveKey(jobs.SensorExec, in.Function, key)
	}
	return in, req, nil
}

// execError is the answer to a call that was not made.
func execError(function string, err error) error {
	if errors.Is(err, jobs.ErrNotCallable) {
		return notFound("there is no function %s", function)
	}
	return err
}
