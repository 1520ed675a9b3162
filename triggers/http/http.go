// Package http owns the function kind `http`: it sends the event, or the
// input of the trigger, to a URL. It must not know queues, retries or sensors;
// it only tells failures apart.
package http

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Config is the config of an `http` function.
type Config struct {
	URL     specs.TextOrSecret            `yaml:"url" required:"true" doc:"Address to call; text with ${ expr }, or a secret as a whole. Redirects are not followed." example:"https://example.com/orders/${ data.id }"`
	Method  string                        `yaml:"method" enum:"POST,PUT,PATCH,DELETE,GET,HEAD,OPTIONS" doc:"HTTP method; default POST. GET and HEAD carry a body only when the trigger has an input."`
	Headers map[string]specs.TextOrSecret `yaml:"headers" doc:"Further request headers; they win over those the engine sets. A value is text with ${ expr } or a secret."`
	TLS     *TLS                          `yaml:"tls" doc:"How the server is verified and this client proves itself."`
}

// TLS says how TLS connections are made.
type TLS struct {
	CA                 string `yaml:"ca" doc:"PEM file with the authorities to trust instead of the system's, relative to this file."`
	Cert               string `yaml:"cert" doc:"PEM file with the client's certificate; read again for every new connection."`
	Key                string `yaml:"key" doc:"PEM file with the key of the client's certificate."`
	ServerName         string `yaml:"serverName" doc:"Name the server's certificate must have, when it is not that of the URL."`
	InsecureSkipVerify bool   `yaml:"insecureSkipVerify" doc:"Accept any certificate. For experiments only."`
}

// Factory returns the kind `http`.
func Factory() triggers.Factory {
	return triggers.Factory{
		Type: specs.Type{
			Name: "http",
			Doc:  "Calls a URL with the event's data (CloudEvents binary mode) or the trigger's input as JSON.",
			New:  func() any { return &Config{Method: http.MethodPost} },
		},
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env)
		},
	}
}

// Names of request headers. CloudEvents' are case-insensitive; these are the
// canonical forms of net/http.
const (
	hdrKey         = "Idempotency-Key"
	hdrAttempt     = "Engine-Attempt"
	hdrAgent       = "User-Agent"
	hdrAuth        = "Authorization"
	hdrContentType = "Content-Type"
	hdrSpec        = "Ce-Specversion"
	hdrID          = "Ce-Id"
	hdrSource      = "Ce-Source"
	hdrType        = "Ce-Type"
	hdrSubject     = "Ce-Subject"
	hdrTime        = "Ce-Time"
	hdrSchema      = "Ce-Dataschema"

	// maxHeaders is the most headers the engine itself sets, extensions apart.
	maxHeaders = 12
	// maxDrain is how much of an answer beyond [triggers.MaxOutput] is read to
	// keep the connection, in bytes; a longer answer costs the connection.
	maxDrain = 256 << 10
	// maxRetryAfter bounds what a callee may ask for.
	maxRetryAfter = 24 * time.Hour
)

type function struct {
	cfg       *Config
	transport *http.Transport
	// target is nil when the URL is known only at the time of a call.
	target *target
	host   *specs.TextOrSecret
	// fixed are the headers whose values are the same for every call; shared
	// by all requests, which only read them.
	fixed    []fixedHeader
	rendered []renderedHeader
	v1       []string
}

type fixedHeader struct {
	name  string
	value []string
}

type renderedHeader struct {
	name  string
	value specs.TextOrSecret
}

// target is a URL made ready to be called.
type target struct {
	req   http.Request
	basic string // Authorization of the URL's user, "" for none
	// label names the call in errors: method and URL without user and query.
	label string
}

func newFunction(cfg *Config, env triggers.Env) (*function, error) {
	if cfg.Method == "" {
		c := *cfg
		c.Method = http.MethodPost
		cfg = &c
	}
	tr, err := newTransport(cfg.TLS, env)
	if err != nil {
		return nil, err
	}
	f := &function{cfg: cfg, transport: tr, v1: []string{"1.0"}}
	agent := true
	for _, name := range sortedKeys(cfg.Headers) {
		v, key := cfg.Headers[name], http.CanonicalHeaderKey(name)
		value, constant := triggers.Constant(v)
		switch {
		case key == "Host":
			f.host = &v
		case constant:
			f.fixed = append(f.fixed, fixedHeader{key, []string{value}})
		default:
			f.rendered = append(f.rendered, renderedHeader{key, v})
		}
		agent = agent && key != hdrAgent
	}
	if agent {
		f.fixed = append(f.fixed, fixedHeader{hdrAgent, []string{"sensor-engine"}})
	}
	if raw, ok := triggers.Constant(cfg.URL); ok {
		if f.target, err = newTarget(cfg.Method, raw, true); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Close closes the connections that are idle.
func (f *function) Close() error {
	f.transport.CloseIdleConnections()
	return nil
}

// newTarget prepares a URL. Its errors do not contain the URL, which may hold
// a password; showPath says that the path is no secret either.
func newTarget(method, raw string, showPath bool) (*target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errors.New("url is not a valid URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("url must begin with http:// or https://")
	}
	if u.Hostname() == "" {
		return nil, errors.New("url has no host")
	}
	t := &target{label: method + " " + u.Scheme + "://" + u.Host}
	if showPath {
		t.label += u.EscapedPath()
	}
	if u.User != nil {
		// The transport ignores the user of a URL; its errors must not see it.
		pass, _ := u.User.Password()
		t.basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+pass))
		u.User = nil
	}
	u.Fragment, u.RawFragment = "", ""
	t.req = http.Request{Method: method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	return t, nil
}

// exchange holds what one request needs besides the header map, in one
// allocation.
type exchange struct {
	body bytes.Reader
	vals [maxHeaders]string
}

// Invoke sends the request and reads the answer.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	t := f.target
	if t == nil {
		raw, err := c.Values.TextOrSecret(f.cfg.URL)
		if err != nil {
			return triggers.Result{}, err
		}
		if t, err = newTarget(f.cfg.Method, raw, f.cfg.URL.Secret == nil); err != nil {
			return triggers.Result{}, &triggers.PermanentError{Err: fmt.Errorf("rendered %w", err)}
		}
	}
	req, err := f.request(ctx, t, c)
	if err != nil {
		return triggers.Result{}, err
	}
	// RoundTrip rather than Client.Do: neither redirects nor cookies are
	// wanted, and Client's errors repeat the whole URL.
	resp, err := f.transport.RoundTrip(req)
	if err != nil {
		return triggers.Result{}, fmt.Errorf("%s: %w", t.label, cause(ctx, err))
	}
	res := triggers.Result{Status: statusText(resp.StatusCode)}
	if v := resp.Header[hdrContentType]; len(v) > 0 {
		res.ContentType = v[0]
	}
	res.Output, res.Truncated, err = readBody(resp)
	_ = resp.Body.Close()
	if failure := statusError(t.label, res.Status, resp); failure != nil {
		return res, failure
	}
	if err != nil {
		return res, fmt.Errorf("%s answered %s, but reading the answer failed: %w", t.label, res.Status, cause(ctx, err))
	}
	return res, nil
}

// cause prefers the deadline to the symptom it leaves in the transport.
func cause(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil && !errors.Is(err, e) {
		return fmt.Errorf("%w (%w)", err, e)
	}
	return err
}

// request builds the request of one call.
func (f *function) request(ctx context.Context, t *target, c *triggers.Call) (*http.Request, error) {
	x := new(exchange)
	next := 0
	extensions := 0
	if c.Event != nil {
		extensions = len(c.Event.Extensions)
	}
	h := make(http.Header, maxHeaders+len(f.fixed)+len(f.rendered)+extensions)
	set := func(name, value string) {
		if value != "" {
			x.vals[next] = value
			h[name] = x.vals[next : next+1 : next+1]
			next++
		}
	}

	var data []byte
	if ev := c.Event; ev != nil {
		h[hdrSpec] = f.v1
		set(hdrID, bus.EscapeHeader(ev.ID))
		set(hdrSource, bus.EscapeHeader(ev.Source))
		set(hdrType, bus.EscapeHeader(ev.Type))
		set(hdrSubject, bus.EscapeHeader(ev.Subject))
		set(hdrSchema, bus.EscapeHeader(ev.DataSchema))
		if !ev.Time.IsZero() {
			set(hdrTime, ev.Time.Format(time.RFC3339Nano))
		}
		for k, v := range ev.Extensions {
			h[http.CanonicalHeaderKey("ce-"+k)] = []string{bus.EscapeHeader(v)}
		}
		if !c.HasInput && f.cfg.Method != http.MethodGet && f.cfg.Method != http.MethodHead {
			data = ev.Data
			set(hdrContentType, headerText(ev.DataContentType))
		}
	}
	if c.HasInput {
		var err error
		if data, err = json.Marshal(c.Input); err != nil {
			return nil, triggers.Permanentf("input is not JSON: %w", err)
		}
		set(hdrContentType, "application/json")
	}
	set(hdrKey, headerText(c.Key))
	set(hdrAttempt, strconv.Itoa(c.Attempt))
	set(hdrAuth, t.basic)
	for i := range f.fixed {
		h[f.fixed[i].name] = f.fixed[i].value
	}
	for i := range f.rendered {
		r := &f.rendered[i]
		v, err := headerValue(r.name, r.value, c.Values)
		if err != nil {
			return nil, err
		}
		h[r.name] = []string{v}
	}

	req := t.req.WithContext(ctx)
	req.Header = h
	if f.host != nil {
		v, err := headerValue("Host", *f.host, c.Values)
		if err != nil {
			return nil, err
		}
		req.Host = v
	}
	if len(data) > 0 {
		x.body.Reset(data)
		// net/http knows this type as one in memory and sends headers and body
		// in one write; with a type of our own it would flush in between.
		req.Body, req.ContentLength = io.NopCloser(&x.body), int64(len(data))
		// With GetBody and an idempotency key the transport itself repeats a
		// request that met a connection the server had just closed.
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	}
	return req, nil
}

func headerValue(name string, v specs.TextOrSecret, values triggers.Values) (string, error) {
	s, err := values.TextOrSecret(v)
	if err != nil {
		return "", err
	}
	if s = strings.TrimSpace(s); !validValue(s) {
		return "", triggers.Permanentf("header %s: the value has control characters", name)
	}
	return s, nil
}

// validValue reports whether s may be a header value.
func validValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// headerText escapes a value only when it could not be sent as it is.
func headerText(s string) string {
	if validValue(s) {
		return s
	}
	return bus.EscapeHeader(s)
}

// readBody keeps up to MaxOutput of the answer and drains a little more.
func readBody(resp *http.Response) (data []byte, truncated bool, err error) {
	n := resp.ContentLength
	switch {
	case n == 0 || resp.Body == http.NoBody || resp.StatusCode == http.StatusSwitchingProtocols:
		return nil, false, nil
	case n > 0 && n <= triggers.MaxOutput:
		data = make([]byte, n)
		got, err := io.ReadFull(resp.Body, data)
		return data[:got], false, err
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, triggers.MaxOutput))
	if err != nil || len(data) < triggers.MaxOutput {
		return data, false, err
	}
	// What does not fit is no failure: it only decides about the connection.
	rest, _ := io.CopyN(io.Discard, resp.Body, maxDrain)
	return data, rest > 0, nil
}

// statusText is "200 OK" from our own table: a server's words are not trusted
// to be printable.
func statusText(code int) string {
	switch code {
	case http.StatusOK:
		return "200 OK"
	case http.StatusAccepted:
		return "202 Accepted"
	case http.StatusNoContent:
		return "204 No Content"
	}
	if s := http.StatusText(code); s != "" {
		return strconv.Itoa(code) + " " + s
	}
	return strconv.Itoa(code)
}

// statusError returns nil for 2xx and the right sort of failure for the rest.
func statusError(label, status string, resp *http.Response) error {
	code := resp.StatusCode
	switch {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		return triggers.Permanentf("%s answered %s; redirects are not followed, put the final address into url", label, status)
	case code >= 400 && code < 500 && code != http.StatusRequestTimeout && code != http.StatusTooEarly && code != http.StatusTooManyRequests:
		return triggers.Permanentf("%s answered %s", label, status)
	}
	err := fmt.Errorf("%s answered %s", label, status)
	if after, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok {
		return &triggers.RetryAfterError{After: after, Err: err}
	}
	return err
}

// retryAfter reads seconds or an HTTP date.
func retryAfter(v string, now time.Time) (time.Duration, bool) {
	v = strings.TrimSpace(v)
	if v == "" {
		return 0, false
	}
	if n, err := strconv.ParseUint(v, 10, 64); err == nil {
		return time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return min(max(at.Sub(now), 0), maxRetryAfter), true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
