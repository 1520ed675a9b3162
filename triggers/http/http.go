// Package http owns the function kind `http`: it sends the event, or the
// input of the trigger, to a URL. It must not know queues, retries or sensors;
// it only tells failures apart.
package http

import (
	"bytes"
	"context"
	_ "embed" // for the example
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// Config is the config of an `http` function.
type Config struct {
	URL         specs.TextOrSecret            `yaml:"url" required:"true" doc:"Address to call; text with ${ expr }, or a secret as a whole. Redirects are not followed. When an expression decides about the host, only public addresses are called." example:"https://example.com/orders/${ data.id }"`
	Allow       []string                      `yaml:"allow" doc:"Exceptions, for a url whose host an expression decides about: addresses, networks and hosts that may be called though they are not public." example:"[10.1.0.0/16, hooks.internal, '*.svc.local']"`
	Method      string                        `yaml:"method" enum:"POST,PUT,PATCH,DELETE,GET,HEAD,OPTIONS" doc:"HTTP method; default POST. GET and HEAD carry a body only when the trigger has an input."`
	Headers     map[string]specs.TextOrSecret `yaml:"headers" doc:"Further request headers; they win over those the engine sets. A value is text with ${ expr } or a secret."`
	CloudEvents string                        `yaml:"cloudevents" enum:"binary,structured" doc:"How the event is sent when the trigger has no input: its data as the body and its attributes as ce-* headers (binary, default), or all of it as CloudEvents JSON (structured)."`
	OAuth2      *OAuth2                       `yaml:"oauth2" doc:"Where the token comes from that is sent as Authorization: Bearer (client credentials grant). It is kept until it expires, or is refused with 401."`
	TLS         *outbound.TLS                 `yaml:"tls" doc:"How the server is verified and this client proves itself."`
	Success     specs.Expr                    `yaml:"success" doc:"When a call has succeeded: an expression over the answer, with status, headers (names in lower case) and body (parsed when it is JSON). Default: any status from 200 to 299." example:"status == 200 && body.ok"`
	Retryable   specs.Expr                    `yaml:"retryable" doc:"Which failed answers are worth another call: an expression like success. Default: 408, 425, 429, 500 and above, and 2xx that are no success." example:"status == 409 || status >= 500"`
}

// OAuth2 says how tokens are had with the credentials of a client.
type OAuth2 struct {
	TokenURL     string             `yaml:"tokenUrl" required:"true" doc:"Where tokens are had." example:"https://login.example.com/oauth2/token"`
	ClientID     specs.TextOrSecret `yaml:"clientId" required:"true" doc:"Name of this client: text or a secret."`
	ClientSecret specs.SecretRef    `yaml:"clientSecret" required:"true" doc:"Its password."`
	Scopes       []string           `yaml:"scopes" doc:"What the token shall be good for." example:"[orders.write]"`
	Params       map[string]string  `yaml:"params" doc:"Further parameters of the request." example:"{audience: https://api.example.com}"`
	Credentials  string             `yaml:"credentials" enum:"header,body" doc:"Where the server wants to see name and password: in the header (basic authentication, default) or the body."`
}

// Choices of the config.
const (
	modeStructured  = "structured"
	credentialsBody = "body"
)

//go:embed example.yaml
var example string

// Factory returns the kind `http`. Functions of one Factory with the same
// settings share their connections.
func Factory() triggers.Factory {
	shared := &network{}
	return triggers.Factory{
		Type: specs.Type{
			Name: "http",
			Doc:  "Calls a URL with the event (CloudEvents binary or structured mode) or the trigger's input as JSON.",
			New:  func() any { return &Config{Method: http.MethodPost} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env, shared)
		},
		Check: func(config any, dir string, ck *specs.Checker) { config.(*Config).TLS.Check(ck, "tls", dir) },
		Files: func(config any, dir string) []string { return config.(*Config).TLS.Files(dir) },
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

	// defaultDirect is the default of function.maxDirect.
	defaultDirect = 64 << 10
	// maxDrain is how much of an answer beyond [triggers.MaxOutput] is read to
	// keep the connection, in bytes; a longer answer costs the connection.
	maxDrain = 256 << 10
)

type function struct {
	cfg   *Config
	links *links
	// Closer closes the connections that are idle and nobody else uses.
	io.Closer
	// maxDirect is the largest body sent over the pool, in bytes: a larger one
	// needs someone to listen for an early answer while it is written.
	maxDirect int
	// target is nil when the URL is known only at the time of a call.
	target *target
	host   *specs.TextOrSecret
	// fixed are the headers whose values are the same for every call.
	fixed    []fixedHeader
	rendered []renderedHeader
	// given are the names of both; the engine's own headers give way.
	given map[string]bool
	// success and retryable are nil when the status decides.
	success, retryable *expression.Program
	tokens             *tokens // nil without oauth2
}

type fixedHeader struct {
	name  string
	value string
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
	// addr and head are for the pool: the address to dial and the request
	// line and Host header; addr is "" when the transport must be used.
	addr string
	head []byte
}

func newFunction(cfg *Config, env triggers.Env, shared *network) (*function, error) {
	if cfg.Method == "" {
		c := *cfg
		c.Method = http.MethodPost
		cfg = &c
	}
	f := &function{cfg: cfg, maxDirect: defaultDirect}
	for _, name := range sortedKeys(cfg.Headers) {
		v, key := cfg.Headers[name], http.CanonicalHeaderKey(name)
		value, constant := triggers.Constant(v)
		switch {
		case key == "Host":
			f.host = &v
		case constant:
			f.fixed = append(f.fixed, fixedHeader{key, value})
		default:
			f.rendered = append(f.rendered, renderedHeader{key, v})
		}
		f.give(key)
	}
	if !f.given[hdrAgent] {
		f.fixed = append(f.fixed, fixedHeader{hdrAgent, "sensor-engine"})
	}
	var err error
	if raw, ok := triggers.Constant(cfg.URL); ok {
		if f.target, err = newTarget(cfg.Method, raw, true); err != nil {
			return nil, err
		}
	}
	for _, e := range []struct {
		source specs.Expr
		into   **expression.Program
	}{{cfg.Success, &f.success}, {cfg.Retryable, &f.retryable}} {
		if e.source.IsZero() {
			continue
		}
		p, found := expression.Compile(e.source, "", expression.ResponseScope(), expression.WantBool)
		if found.HasErrors() {
			return nil, found.Err()
		}
		*e.into = p
	}
	if cfg.OAuth2 != nil {
		f.tokens = &tokens{cfg: cfg.OAuth2, turn: make(chan struct{}, 1)}
		f.give(hdrAuth)
	}
	f.links, f.Closer, err = connect(shared, cfg, env)
	return f, err
}

func (f *function) give(header string) {
	if f.given == nil {
		f.given = map[string]bool{}
	}
	f.given[header] = true
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
	u.RawQuery = strings.ReplaceAll(u.RawQuery, " ", "%20")
	t.req = http.Request{Method: method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if proxy, err := http.ProxyFromEnvironment(&t.req); u.Scheme == "http" && proxy == nil && err == nil && plainHost(u.Host) {
		t.addr = u.Host
		if u.Port() == "" {
			t.addr = net.JoinHostPort(u.Hostname(), "80")
		}
		t.head = fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, u.RequestURI(), u.Host)
	}
	return t, nil
}

// plainHost reports whether a host can be sent and dialled as it is written.
func plainHost(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(".-_:[]", c) < 0 {
			return false
		}
	}
	return !strings.HasSuffix(s, ":")
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
			if f.cfg.URL.Secret != nil {
				return triggers.Result{}, triggers.Permanentf("the secret %w", err)
			}
			return triggers.Result{}, triggers.Errorf(triggers.InputError, "the rendered %w", err)
		}
	}
	m, err := f.message(c)
	if err != nil {
		return triggers.Result{}, err
	}
	if f.tokens == nil {
		return f.exchange(ctx, t, c, &m)
	}
	transport, err := f.links.other.Transport()
	if err != nil {
		return triggers.Result{}, err
	}
	var fresh bool
	if m.token, fresh, err = f.tokens.get(ctx, c.Values, transport, ""); err != nil {
		return triggers.Result{}, err
	}
	res, err := f.exchange(ctx, t, c, &m)
	if m.code != http.StatusUnauthorized || fresh {
		return res, err
	}
	// It may have been revoked before its time.
	if m.token, _, err = f.tokens.get(ctx, c.Values, transport, m.token); err != nil {
		return res, err
	}
	return f.exchange(ctx, t, c, &m)
}

// message is what one call sends, and the status of the answer.
type message struct {
	body        []byte
	contentType string
	// attributes is true when the headers tell those of the event.
	attributes bool
	token      string
	code       int
}

// exchange sends a message and reads the answer.
func (f *function) exchange(ctx context.Context, t *target, c *triggers.Call, m *message) (triggers.Result, error) {
	if t.addr != "" && f.host == nil && len(m.body) <= f.maxDirect {
		return f.direct(ctx, t, c, m)
	}
	transport, err := f.links.other.Transport()
	if err != nil {
		return triggers.Result{}, err
	}
	req, err := f.request(ctx, t, c, m)
	if err != nil {
		return triggers.Result{}, err
	}
	if err := f.links.behindProxy(req); err != nil {
		return triggers.Result{}, unreachable(ctx, t, err)
	}
	// RoundTrip rather than Client.Do: neither redirects nor cookies are
	// wanted, and Client's errors repeat the whole URL.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return triggers.Result{}, unreachable(ctx, t, err)
	}
	res, _, err := f.result(ctx, t.label, resp, m)
	_ = resp.Body.Close()
	return res, err
}

// direct makes the exchange over the pool.
func (f *function) direct(ctx context.Context, t *target, c *triggers.Call, m *message) (triggers.Result, error) {
	buffer := f.links.buffers.Get().(*[]byte)
	defer f.links.buffers.Put(buffer)
	b := append((*buffer)[:0], t.head...)
	err := f.headers(t, c, m, func(name, value string) {
		b = append(b, name...)
		b = append(b, ": "...)
		b = append(b, value...)
		b = append(b, "\r\n"...)
	})
	if err != nil {
		return triggers.Result{}, err
	}
	if len(m.body) > 0 || f.cfg.Method == http.MethodPost || f.cfg.Method == http.MethodPut || f.cfg.Method == http.MethodPatch {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(m.body)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	b = append(b, m.body...)
	*buffer = b

	resp, cn, err := f.links.pool.exchange(ctx, t.addr, b, &t.req)
	if err != nil {
		return triggers.Result{}, unreachable(ctx, t, err)
	}
	res, complete, err := f.result(ctx, t.label, resp, m)
	f.links.pool.release(cn, complete && !resp.Close)
	return res, err
}

// unreachable is the error of a call without an answer.
func unreachable(ctx context.Context, t *target, err error) error {
	if forbidden, ok := errors.AsType[*outbound.ForbiddenError](err); ok {
		return triggers.Errorf(triggers.InputError, "%s: %w", t.label, forbidden)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", t.label, outbound.Cause(ctx, err))
	}
	return triggers.Errorf(triggers.SystemError, "%s: %w", t.label, outbound.Advised(err))
}

// result reads an answer; complete tells that nothing of it is left unread.
func (f *function) result(ctx context.Context, label string, resp *http.Response, m *message) (res triggers.Result, complete bool, err error) {
	m.code = resp.StatusCode
	res.Status = outbound.StatusText(resp.StatusCode)
	if v := resp.Header[hdrContentType]; len(v) > 0 {
		res.ContentType = v[0]
	}
	res.Output, res.Truncated, complete, err = readBody(resp)
	if f.success != nil || f.retryable != nil {
		if err != nil { // the expressions need all of it
			return res, complete, fmt.Errorf("%s answered %s, but reading the answer failed: %w", label, res.Status, outbound.Cause(ctx, err))
		}
		return res, complete, f.judge(label, resp, &res)
	}
	if failure := statusError(label, res.Status, resp); failure != nil {
		return res, complete, failure
	}
	if err != nil {
		return res, complete, fmt.Errorf("%s answered %s, but reading the answer failed: %w", label, res.Status, outbound.Cause(ctx, err))
	}
	return res, complete, nil
}

// message returns what is sent.
func (f *function) message(c *triggers.Call) (m message, err error) {
	switch {
	case c.HasInput:
		// With an input the body is not the event: no attributes.
		m.contentType = "application/json"
		m.body, err = c.InputJSON()
	case c.Event == nil:
	case f.cfg.Method == http.MethodGet || f.cfg.Method == http.MethodHead:
		m.attributes = true
	case f.cfg.CloudEvents == modeStructured:
		m.body, m.contentType = c.Event.AppendStructured(nil), bus.StructuredType
	default:
		m.body, m.contentType, m.attributes = c.Event.Data, headerText(c.Event.DataContentType), true
	}
	return m, err
}

// headers calls add for each header of one call but Host and Content-Length.
func (f *function) headers(t *target, c *triggers.Call, m *message, add func(name, value string)) error {
	set := func(name, value string) {
		if value != "" && (len(f.given) == 0 || !f.given[name]) {
			add(name, value)
		}
	}
	if ev := c.Event; ev != nil && m.attributes {
		set(hdrSpec, "1.0")
		set(hdrID, bus.EscapeHeader(ev.ID))
		set(hdrSource, bus.EscapeHeader(ev.Source))
		set(hdrType, bus.EscapeHeader(ev.Type))
		set(hdrSubject, bus.EscapeHeader(ev.Subject))
		set(hdrSchema, bus.EscapeHeader(ev.DataSchema))
		if !ev.Time.IsZero() {
			set(hdrTime, ev.Time.Format(time.RFC3339Nano))
		}
		for k, v := range ev.Extensions {
			if validName(k) {
				set(extensionHeader(k), bus.EscapeHeader(v))
			}
		}
	}
	set(hdrContentType, m.contentType)
	set(hdrKey, headerText(c.Key))
	set(hdrAttempt, strconv.Itoa(c.Attempt))
	set(hdrAuth, t.basic)
	if m.token != "" {
		add(hdrAuth, m.token)
	}
	for i := range f.fixed {
		add(f.fixed[i].name, f.fixed[i].value)
	}
	for i := range f.rendered {
		r := &f.rendered[i]
		v, err := headerValue(r.name, r.value, c.Values)
		if err != nil {
			return err
		}
		add(r.name, v)
	}
	return nil
}

// extensionHeader is the header of an extension attribute, in canonical form.
func extensionHeader(name string) string {
	if name == "traceparent" {
		return "Ce-Traceparent"
	}
	return http.CanonicalHeaderKey("ce-" + name)
}

// request builds the request of one call for the transport.
func (f *function) request(ctx context.Context, t *target, c *triggers.Call, m *message) (*http.Request, error) {
	h, body := make(http.Header, 16), m.body
	if err := f.headers(t, c, m, func(name, value string) { h[name] = []string{value} }); err != nil {
		return nil, err
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
	if len(body) > 0 {
		// net/http knows these types as ones in memory and sends headers and
		// body in one write. With GetBody and an idempotency key it repeats a
		// request that met a connection the server had just closed.
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		req.Body, _ = req.GetBody()
		req.ContentLength = int64(len(body))
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

// readBody keeps up to MaxOutput of the answer and drains a little more;
// complete tells that the end was reached.
func readBody(resp *http.Response) (data []byte, truncated, complete bool, err error) {
	n := resp.ContentLength
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		return nil, false, false, nil
	case n == 0 || resp.Body == http.NoBody:
		return nil, false, true, nil
	case n > 0 && n <= triggers.MaxOutput:
		data = make([]byte, n)
		got, err := io.ReadFull(resp.Body, data)
		return data[:got], false, err == nil, err
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, triggers.MaxOutput))
	if err != nil || len(data) < triggers.MaxOutput {
		return data, false, err == nil, err
	}
	// What does not fit is no failure: it only decides about the connection.
	rest, err := io.CopyN(io.Discard, resp.Body, maxDrain)
	return data, rest > 0, errors.Is(err, io.EOF), nil
}

// statusError returns nil for 2xx and the right sort of failure for the rest.
func statusError(label, status string, resp *http.Response) error {
	code := resp.StatusCode
	switch {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		return triggers.Permanentf("%s answered %s; redirects are not followed, put the final address into url", label, status)
	case !outbound.Worthwhile(code):
		return triggers.Permanentf("%s answered %s", label, status)
	}
	return outbound.Later(fmt.Errorf("%s answered %s", label, status), resp.Header)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
