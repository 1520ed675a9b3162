// Package webhook owns the source type "webhook": HTTP requests on the
// engine's shared listener become events, and the producer gets 202 only after
// the event was stored. It owns what a request must look like (methods, size,
// encoding, authentication, CloudEvents) and nothing of the listener, the bus
// or what becomes of the event.
package webhook

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// DefaultType is the CloudEvents type of events whose request and spec name
// none.
const DefaultType = "webhook"

// Config is one webhook of an EventSource.
type Config struct {
	Path        string     `yaml:"path" required:"true" doc:"Path on the engine's listener; {name} matches one segment, a final {name...} the rest." example:"/orders/{shop}"`
	Methods     []string   `yaml:"methods" doc:"HTTP methods that are accepted; default POST." example:"[POST, PUT]"`
	MaxBody     specs.Size `yaml:"maxBody" min:"1" doc:"Largest body, also after decompression; default 1MiB." example:"256KiB"`
	MaxInFlight int        `yaml:"maxInFlight" min:"1" doc:"Most requests served at the same time, more are answered 429; default 1024."`
	Auth        *Auth      `yaml:"auth" doc:"How producers prove who they are; default: no proof."`
	ID          *ID        `yaml:"id" doc:"Where the producer's own id of an event is, so that a repeated request is not a second event. CloudEvents bring theirs."`
	Type        specs.Text `yaml:"type" doc:"CloudEvents type of requests that are no CloudEvent; may contain ${ expr } over the event; default webhook." example:"com.github.${ request.headers[\"x-github-event\"] }"`
	Source      specs.Text `yaml:"source" doc:"CloudEvents source of requests that are no CloudEvent; may contain ${ expr }; default /<eventsource>/<event>." example:"https://shop.example.com"`
	Subject     specs.Text `yaml:"subject" doc:"CloudEvents subject of requests that are no CloudEvent; may contain ${ expr }." example:"${ data.orderId }"`
	Request     string     `yaml:"request" enum:"auto,always" doc:"Whether method, path, parameters, query and headers are stored with the event: auto (default) when an expression reads request, or always."`
}

// Auth is exactly one way of authentication.
type Auth struct {
	Bearer *specs.SecretRef `yaml:"bearer" doc:"Token expected as Authorization: Bearer."`
	Basic  *Basic           `yaml:"basic" doc:"User name and password expected as Authorization: Basic."`
	HMAC   *HMAC            `yaml:"hmac" doc:"Signature over the body as it was sent, expected in a header."`
}

// Basic is HTTP basic authentication.
type Basic struct {
	Username string          `yaml:"username" required:"true" doc:"User name."`
	Password specs.SecretRef `yaml:"password" required:"true" doc:"Secret that holds the password."`
}

// HMAC is a keyed hash over the raw body.
type HMAC struct {
	Algorithm string          `yaml:"algorithm" enum:"sha256,sha1,sha512" doc:"Hash function; default sha256."`
	Header    string          `yaml:"header" required:"true" doc:"Header that holds the signature." example:"X-Hub-Signature-256"`
	Secret    specs.SecretRef `yaml:"secret" required:"true" doc:"Secret that holds the key."`
	Encoding  string          `yaml:"encoding" enum:"hex,base64" doc:"How the signature is written; default hex."`
	Prefix    string          `yaml:"prefix" doc:"What stands before the signature. With a prefix, the header may hold several values separated by commas or spaces, of which one must fit." example:"sha256="`
	Timestamp *Timestamp      `yaml:"timestamp" doc:"The time of the request is signed too, and old requests are refused."`
}

// Timestamp is the signed time of a request.
type Timestamp struct {
	Header    string         `yaml:"header" required:"true" doc:"Header that holds the time: Unix seconds or milliseconds, or RFC 3339." example:"X-Slack-Request-Timestamp"`
	Prefix    string         `yaml:"prefix" doc:"What stands before the time, in a header of several values." example:"t="`
	Tolerance specs.Duration `yaml:"tolerance" min:"1s" doc:"Largest difference to the engine's clock; default 5m."`
	Format    string         `yaml:"format" doc:"The text that is signed, with {timestamp} and {body}; default {timestamp}.{body}." example:"v0:{timestamp}:{body}"`
}

// ID says where the producer's id of an event is.
type ID struct {
	Header     string     `yaml:"header" doc:"Header that holds the id." example:"Idempotency-Key"`
	Expression specs.Expr `yaml:"expression" doc:"Expression over the event whose value is the id." example:"data.id"`
}

const (
	defaultMaxBody     = 1 << 20
	defaultMaxInFlight = 1024
	defaultTolerance   = specs.Duration(5 * 60e9)
	defaultFormat      = "{timestamp}.{body}"
)

// Factory makes webhooks.
func Factory() sources.Factory {
	return sources.Factory{
		Type: specs.Type{
			Name: "webhook",
			Doc:  "Events from HTTP requests on the engine's listener: plain bodies and CloudEvents.",
			New: func() any {
				return &Config{MaxBody: defaultMaxBody, MaxInFlight: defaultMaxInFlight}
			},
		},
		DefaultType: DefaultType,
		Routes:      func(config any, _ sources.Env) []sources.Route { return []sources.Route{config.(*Config).route()} },
		MaxEvent:    func(config any) int64 { return int64(config.(*Config).MaxBody) },
		Make:        func(config any, _ sources.Env) (sources.Source, error) { return newSource(config.(*Config)) },
		Push:        true,
	}
}

func (c *Config) route() sources.Route {
	methods := c.Methods
	if len(methods) == 0 {
		methods = []string{http.MethodPost}
	}
	return sources.Route{Methods: methods, Path: c.Path}
}

// Validate reports what the types of the fields cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	if _, err := sources.ParsePath(c.Path); err != nil {
		ck.Errorf("path", specs.CodeInvalidValue, "write it as /orders, /orders/{shop} or /files/{path...}", "%v", err)
	}
	for i, m := range c.Methods {
		field := fmt.Sprintf("methods[%d]", i)
		switch {
		case !token(m):
			ck.Errorf(field, specs.CodeInvalidValue, "for example POST", "%q is no HTTP method", m)
		case m != strings.ToUpper(m):
			ck.Errorf(field, specs.CodeInvalidValue, "write "+strings.ToUpper(m), "HTTP methods are in capitals, not %q", m)
		case m == http.MethodConnect || m == http.MethodTrace:
			ck.Errorf(field, specs.CodeInvalidValue, "", "the method %s cannot carry an event", m)
		case slices.Index(c.Methods, m) < i:
			ck.Errorf(field, specs.CodeInvalidValue, "", "the method %s is there twice", m)
		}
	}
	if c.Auth != nil {
		c.Auth.validate(ck)
	}
	if c.ID != nil {
		switch {
		case (c.ID.Header == "") == c.ID.Expression.IsZero():
			ck.Errorf("id", specs.CodeInvalidValue, "for example {header: Idempotency-Key}", "needs exactly one of header and expression")
		case c.ID.Header != "" && !token(c.ID.Header):
			ck.Errorf("id.header", specs.CodeInvalidValue, "", "%q is no header name", c.ID.Header)
		}
	}
	attrs, found := compileAttributes(c, ck.Path)
	ck.Add(found...)
	for field, a := range map[string]attribute{"type": attrs.typ, "source": attrs.source, "subject": attrs.subject} {
		if len(a.text) > maxAttribute {
			ck.Errorf(field, specs.CodeInvalidValue, "", "must not be longer than %d bytes", maxAttribute)
		}
	}
}

func (a *Auth) validate(ck *specs.Checker) {
	n := 0
	for _, given := range []bool{a.Bearer != nil, a.Basic != nil, a.HMAC != nil} {
		if given {
			n++
		}
	}
	if n != 1 {
		ck.Errorf("auth", specs.CodeInvalidValue, "leave auth out for no authentication", "needs exactly one of bearer, basic and hmac, has %d", n)
	}
	if a.Basic != nil && strings.Contains(a.Basic.Username, ":") {
		ck.Errorf("auth.basic.username", specs.CodeInvalidValue, "", "a user name of basic authentication cannot have a colon")
	}
	h := a.HMAC
	if h == nil {
		return
	}
	if !token(h.Header) {
		ck.Errorf("auth.hmac.header", specs.CodeInvalidValue, "for example X-Signature", "%q is no header name", h.Header)
	}
	t := h.Timestamp
	if t == nil {
		return
	}
	if !token(t.Header) {
		ck.Errorf("auth.hmac.timestamp.header", specs.CodeInvalidValue, "for example X-Timestamp", "%q is no header name", t.Header)
	}
	if f := t.Format; f != "" && (strings.Count(f, "{body}") != 1 || strings.Count(f, "{timestamp}") != 1) {
		ck.Errorf("auth.hmac.timestamp.format", specs.CodeInvalidValue, "for example v0:{timestamp}:{body}", "must have {timestamp} and {body}, each once")
	}
}

// token reports whether s is a token of RFC 9110, which header names and
// methods are.
func token(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}
