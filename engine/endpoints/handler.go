package endpoints

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sources/ingress"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/triggers"
)

// handler serves the requests of one run of an endpoint.
type handler struct {
	*endpoint
	auth *ingress.Auth
}

// exchange is one request and its answer.
type exchange struct {
	*handler
	w http.ResponseWriter
	r *http.Request
}

// ServeHTTP calls the function and answers with what it gave, or says why it
// did not.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := exchange{h, w, r}
	if x.begin(h.methods) {
		defer h.env.Stats.InFlight.Add(-1)
		x.serve()
	}
}

// begin does what comes first for every request. It reports whether there is
// more to do; InFlight counts it then.
func (x *exchange) begin(methods string) bool {
	h := x.w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	if x.cors(methods) {
		x.answer(http.StatusOK, "", nil)
		return false
	}
	stats := x.env.Stats
	if stats.InFlight.Add(1) > int64(x.spec.MaxInFlight) {
		stats.InFlight.Add(-1)
		x.refuse(&ingress.Refusal{Status: http.StatusTooManyRequests, Text: "too many requests at the same time", Retry: "1"})
		return false
	}
	if x.spec.HTTPSOnly && !secure(x.r) {
		stats.InFlight.Add(-1)
		x.refuse(ingress.Refuse(http.StatusBadRequest, "Please use HTTPS protocol"))
		return false
	}
	return true
}

// cors sets the headers that browsers look at before they let a page of
// another origin read the answer. It reports whether the request is a preflight,
// which only asks for them.
func (x *exchange) cors(methods string) bool {
	c, hdr := x.spec.CORS, x.w.Header()
	if c == nil {
		return false
	}
	origin := x.r.Header.Get("Origin")
	allowed := c.All()
	switch {
	case allowed && !c.Credentials:
		hdr.Set("Access-Control-Allow-Origin", "*")
	default:
		hdr.Add("Vary", "Origin")
		for _, o := range c.Origins {
			if origin != "" && strings.EqualFold(o, origin) {
				allowed = true
				hdr.Set("Access-Control-Allow-Origin", origin)
			}
		}
	}
	if allowed && c.Credentials {
		hdr.Set("Access-Control-Allow-Credentials", "true")
	}
	if x.r.Method != http.MethodOptions {
		return false
	}
	hdr.Set("Allow", methods+", OPTIONS")
	if !allowed {
		return true
	}
	hdr.Set("Access-Control-Allow-Methods", methods)
	headers := strings.Join(c.Headers, ", ")
	if headers == "" {
		hdr.Add("Vary", "Access-Control-Request-Headers")
		if headers = x.r.Header.Get("Access-Control-Request-Headers"); headers == "" {
			headers = "*"
		}
	}
	hdr.Set("Access-Control-Allow-Headers", headers)
	if c.MaxAge > 0 {
		hdr.Set("Access-Control-Max-Age", strconv.Itoa(int(c.MaxAge.D().Seconds())))
	}
	return true
}

// refuse answers that the request is not served, as a function would say it.
func (x *exchange) refuse(ref *ingress.Refusal) {
	class := triggers.InputError
	if ref.Status >= http.StatusInternalServerError {
		class = triggers.SystemError
	}
	ref.Headers(x.w.Header(), x.auth)
	if ref.Status == http.StatusUnsupportedMediaType && x.r.Header.Get("Content-Encoding") == "" {
		x.w.Header().Del("Accept-Encoding") // that was not the reason
	}
	x.fail(ref.Status, jobs.ErrorObject{Type: class, Message: ref.Text})
}

func (x *exchange) fail(status int, e jobs.ErrorObject) {
	b, _ := json.Marshal(e) // of texts
	x.answer(status, "application/json", append(b, '\n'))
}

func (x *exchange) answer(status int, contentType string, body []byte) {
	x.env.Stats.answers[status].Add(1)
	hdr := x.w.Header()
	if contentType != "" && hdr.Get("Content-Type") == "" {
		hdr.Set("Content-Type", contentType)
	}
	if len(body) == 0 && contentType == "" {
		hdr["Content-Type"] = nil // none is guessed
	}
	x.w.WriteHeader(status)
	_, _ = x.w.Write(body) // the client may be gone
}

func (x *exchange) serve() {
	var body ingress.Body
	defer body.Release()
	client, ref := x.bodies.Receive(x.r, x.auth, &body)
	if ref != nil {
		if ref.Status == http.StatusRequestEntityTooLarge && x.r.Close {
			ingress.Half(x.w, x.r)
		}
		x.refuse(ref)
		return
	}
	data, ref := payload(x.r, body.Data)
	if ref != nil {
		x.refuse(ref)
		return
	}
	env := &environment{x: x, data: data}
	req := jobs.Request{
		Ref: x.ref, Input: data, Grants: x.spec.Secrets, HTTPContext: x.httpContext(x.r, client), Timeout: x.spec.Timeout.D(),
	}
	if x.compiled.input != nil {
		v, err := env.render(x.compiled.input, nil)
		if err == nil {
			req.Input, err = json.Marshal(v)
		}
		if err != nil {
			x.refuse(ingress.Refuse(http.StatusBadRequest, "the input cannot be made of this request: %v", err))
			return
		}
	}
	if key := x.r.Header.Get("Idempotency-Key"); key != "" {
		req.Key = jobs.DeriveKey(jobs.SensorEndpoint, x.env.Name, client, key)
	}
	// The request was read; how long the call takes is not the listener's.
	_ = http.NewResponseController(x.w).SetReadDeadline(time.Time{})
	if x.spec.Async || strings.EqualFold(x.r.Header.Get("X-Dispatch-Blocking"), "false") {
		x.submit(req)
		return
	}
	out, err := x.env.Calls.Call(x.r.Context(), req)
	if err != nil {
		x.notCalled(err)
		return
	}
	x.w.Header().Set(HeaderRun, out.ID)
	if out.Err != nil {
		x.failed(out)
		return
	}
	x.succeeded(env, &out.Result)
}

// notCalled answers why no call was made.
func (x *exchange) notCalled(err error) {
	switch {
	case x.r.Context().Err() != nil: // nobody is there any more
		x.env.Stats.answers[statusGone].Add(1)
	case errors.Is(err, bus.ErrTooLarge):
		x.refuse(ingress.Refuse(http.StatusRequestEntityTooLarge, "the request is larger than the bus allows"))
	case errors.Is(err, jobs.ErrBusy), errors.Is(err, jobs.ErrStopping), errors.Is(err, jobs.ErrNotCallable):
		x.refuse(&ingress.Refusal{Status: http.StatusServiceUnavailable, Text: err.Error() + ", try again later", Retry: "1"})
	default:
		x.refuse(&ingress.Refusal{Status: http.StatusServiceUnavailable, Text: "the call could not be stored, try again later", Retry: "5"})
	}
}

// statusGone counts requests whose client went away before they were served.
const statusGone = 499

// failed answers how a call failed.
func (x *exchange) failed(out *jobs.Outcome) {
	e := jobs.ErrorOf(out.Err)
	status := http.StatusBadGateway
	switch {
	case out.TimedOut:
		status = http.StatusGatewayTimeout
	case e.Type == triggers.InputError:
		status = http.StatusUnprocessableEntity
	case e.Type == triggers.SystemError:
		status = http.StatusInternalServerError
	}
	if later, ok := errors.AsType[*triggers.RetryAfterError](out.Err); ok {
		x.w.Header().Set("Retry-After", strconv.Itoa(int((later.After+time.Second-1)/time.Second)))
	}
	x.fail(status, x.told(e))
}

// told is what clients may know of a failed call. Of its class alone they learn
// why their input was wrong all the same.
func (ep *endpoint) told(e jobs.ErrorObject) jobs.ErrorObject {
	if ep.spec.Errors == specs.ErrorsFull {
		return e
	}
	e.Stacktrace = nil
	if ep.spec.Errors == specs.ErrorsClass {
		if e.Type == triggers.FunctionError {
			e.Message = "the function failed"
		} else if e.Type == triggers.SystemError {
			e.Message = "the function could not be called"
		}
	}
	return e
}

// environment is what templates see of an exchange, made when it is needed.
type environment struct {
	x    *exchange
	data json.RawMessage
	vars map[string]any
}

// render renders a template over data, request and, unless it is nil, output.
func (e *environment) render(t *expression.Template, output func() (any, error)) (any, error) {
	if t.Constant() {
		return t.Render(nil)
	}
	if e.vars == nil {
		e.vars = map[string]any{}
		c := e.x.compiled
		var err error
		if c.data {
			if e.vars["data"], err = bus.ParseJSON(e.data); err != nil {
				return nil, err
			}
		}
		if c.request {
			if e.vars["request"], err = bus.ParseJSON(ingress.AppendRequest(nil, e.x.r, e.x.params, e.x.auth)); err != nil {
				return nil, err
			}
		}
	}
	if _, ok := e.vars["output"]; !ok && output != nil {
		v, err := output()
		if err != nil {
			return nil, err
		}
		e.vars["output"] = v
	}
	return t.Render(e.vars)
}

// succeeded answers with what the function gave.
func (x *exchange) succeeded(env *environment, res *triggers.Result) {
	if res.Truncated {
		x.fail(http.StatusBadGateway, jobs.ErrorObject{
			Type: triggers.FunctionError, Message: fmt.Sprintf("the output is larger than %d bytes", triggers.MaxOutput),
		})
		return
	}
	status, contentType, body, err := x.respond(env, res)
	if err != nil {
		x.w.Header().Del("Content-Type")
		x.fail(http.StatusBadGateway, x.told(jobs.ErrorObject{Type: triggers.FunctionError, Message: "the answer cannot be made of the output: " + err.Error()}))
		return
	}
	x.answer(status, contentType, body)
}

// respond makes the answer: by default 200 with the output, and without a body
// when that is null or empty text.
func (x *exchange) respond(env *environment, res *triggers.Result) (status int, contentType string, body []byte, err error) {
	c := x.compiled
	output := func() (any, error) { return value(res) }
	status = http.StatusOK
	if c.status != nil {
		v, err := env.render(c.status, output)
		if err != nil {
			return 0, "", nil, err
		}
		if status, err = statusOf(v); err != nil {
			return 0, "", nil, err
		}
	}
	headers := make([]string, len(c.headers)) // none is set unless all can be
	for i, h := range c.headers {
		v, err := env.render(h.text, output)
		if err != nil {
			return 0, "", nil, err
		}
		if headers[i], err = headerOf(h.name, v); err != nil {
			return 0, "", nil, err
		}
	}
	if c.body == nil {
		contentType, body = plain(res)
	} else {
		v, err := env.render(c.body, output)
		if err != nil {
			return 0, "", nil, err
		}
		if contentType, body, err = bodyOf(v); err != nil {
			return 0, "", nil, err
		}
	}
	for i, h := range c.headers {
		if headers[i] != "" {
			x.w.Header().Set(h.name, headers[i])
		}
	}
	return status, contentType, body, nil
}

// value is an output as expressions see it: JSON as what it says, other text as
// a string, nothing as nil.
func value(res *triggers.Result) (any, error) {
	switch {
	case len(res.Output) == 0:
		return nil, nil
	case bus.IsJSON(res.ContentType) && bus.ValidJSON(res.Output):
		return bus.ParseJSON(res.Output)
	case utf8.Valid(res.Output):
		return string(res.Output), nil
	}
	return nil, errors.New("it is neither JSON nor text")
}

// plain is the answer when the spec does not say more.
func plain(res *triggers.Result) (contentType string, body []byte) {
	out := res.Output
	if !bus.IsJSON(res.ContentType) {
		return res.ContentType, out
	}
	if !bus.ValidJSON(out) {
		return "application/octet-stream", out
	}
	switch string(bytes.TrimSpace(out)) {
	case "", "null", `""`:
		return "", nil
	}
	if contentType = res.ContentType; contentType == "" {
		contentType = "application/json"
	}
	return contentType, out
}

func statusOf(v any) (int, error) {
	n, ok := v.(int64)
	if f, isFloat := v.(float64); isFloat && f == float64(int64(f)) {
		n, ok = int64(f), true
	}
	if !ok || n < 200 || n > 599 {
		return 0, fmt.Errorf("status is %s, which is no HTTP status", short(v))
	}
	return int(n), nil
}

// headerOf is the text of a header.
func headerOf(name string, v any) (string, error) {
	s, ok := v.(string)
	if !ok && v != nil {
		b, err := json.Marshal(v)
		if err != nil {
			return "", err
		}
		s = string(b)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", fmt.Errorf("the header %s would have a control character in it", name)
	}
	return strings.TrimSpace(s), nil
}

func bodyOf(v any) (contentType string, body []byte, err error) {
	switch v := v.(type) {
	case nil:
		return "", nil, nil
	case string:
		return "text/plain; charset=utf-8", []byte(v), nil
	}
	b, err := json.Marshal(v)
	return "application/json", b, err
}

func short(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "not JSON"
	}
	return printable(string(b))
}

// submit stores the call and says where its run can be asked for.
func (x *exchange) submit(req jobs.Request) {
	sub, err := x.env.Calls.Submit(x.r.Context(), req)
	if err != nil {
		x.notCalled(err)
		return
	}
	if !x.spec.Async { // a client of Dispatch that does not want to wait
		x.answer(http.StatusOK, "", nil)
		return
	}
	location := RunsPath + url.PathEscape(x.env.Name) + "/" + sub.Key
	x.w.Header().Set("Location", location)
	b, _ := json.Marshal(struct { // of texts
		ID       string `json:"id"`
		Status   string `json:"status"`
		Location string `json:"location"`
	}{sub.Key, jobs.StatusQueued, location})
	x.answer(http.StatusAccepted, "application/json", append(b, '\n'))
}

// Run is how a submitted call stands, for its client.
type Run struct {
	ID string `json:"id"`
	// Status is queued, running, retrying, succeeded or dead.
	Status string `json:"status"`
	// Attempts counts the calls that have ended.
	Attempts int `json:"attempts"`
	// Output is what it gave, as far as the history keeps it, with secrets
	// masked; Truncated tells that this is not all.
	Output    json.RawMessage `json:"output,omitempty"`
	Truncated bool            `json:"truncated,omitempty"`
	// Error is the last failure.
	Error *jobs.ErrorObject `json:"error,omitempty"`
}

// findTimeout bounds how long the history is looked through.
const findTimeout = 10 * time.Second

// serveRun answers how a submitted call stands: 202 while more is to come, 200
// in the end.
func (h *handler) serveRun(w http.ResponseWriter, r *http.Request) {
	x := exchange{h, w, r}
	if !x.begin(http.MethodGet) {
		return
	}
	defer h.env.Stats.InFlight.Add(-1)
	var body ingress.Body
	defer body.Release()
	if _, ref := h.bodies.Receive(r, h.auth, &body); ref != nil {
		x.refuse(ref)
		return
	}
	key := r.PathValue("run")
	ctx, cancel := context.WithTimeout(r.Context(), findTimeout)
	defer cancel()
	status, run, err := h.env.Calls.Find(ctx, h.ref, h.spec.Function, key)
	switch {
	case errors.Is(err, bus.ErrNotFound):
		x.refuse(ingress.Refuse(http.StatusNotFound, "there is no such run, or it is no longer known"))
		return
	case err != nil:
		x.notCalled(err)
		return
	}
	out, err := runOf(key, status, run)
	if err != nil {
		x.fail(http.StatusInternalServerError, jobs.ErrorObject{Type: triggers.SystemError, Message: "the run cannot be read"})
		return
	}
	if out.Error != nil {
		*out.Error = h.told(*out.Error)
	}
	code := http.StatusOK
	switch out.Status {
	case jobs.StatusQueued, jobs.StatusRunning, jobs.StatusRetrying:
		code = http.StatusAccepted
		w.Header().Set("Retry-After", "1")
	}
	b, _ := json.Marshal(out) // of JSON
	w.Header().Set("Cache-Control", "no-store")
	x.answer(code, "application/json", append(b, '\n'))
}

// runOf is what a client is told of a run of the history.
func runOf(key, status string, run json.RawMessage) (Run, error) {
	var in struct {
		Attempt    int
		Output     json.RawMessage
		Truncated  bool
		Error      string
		Class      triggers.Class
		Stacktrace []string
	}
	if err := json.Unmarshal(run, &in); err != nil {
		return Run{}, err
	}
	out := Run{ID: key, Status: status, Attempts: in.Attempt}
	switch {
	case status == jobs.StatusSucceeded:
		out.Output, out.Truncated = in.Output, in.Truncated
	case in.Error != "":
		out.Error = &jobs.ErrorObject{Type: in.Class, Message: strings.TrimPrefix(in.Error, string(in.Class)+": "), Stacktrace: in.Stacktrace}
	}
	return out, nil
}
