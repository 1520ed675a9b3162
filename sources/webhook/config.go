// Package webhook owns the source type "webhook": HTTP requests on the
// engine's shared listener become events, and the producer gets 202 only after
// the event was stored. It owns what a request must look like to become events
// (forms, CloudEvents, ids) and nothing of the listener, the bus or what
// becomes of the event.
package webhook

import (
	"net/http"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// DefaultType is the CloudEvents type of events whose request and spec name
// none.
const DefaultType = "webhook"

// Config is one webhook of an EventSource.
type Config struct {
	Path        string      `yaml:"path" required:"true" doc:"Path on the engine's listener; {name} matches one segment, a final {name...} the rest." example:"/orders/{shop}"`
	Methods     []string    `yaml:"methods" doc:"HTTP methods that are accepted; default POST." example:"[POST, PUT]"`
	MaxBody     specs.Size  `yaml:"maxBody" min:"1" doc:"Largest body, also after decompression; default 1MiB." example:"256KiB"`
	MaxInFlight int         `yaml:"maxInFlight" min:"1" doc:"Most requests served at the same time, more are answered 429; default 1024."`
	Auth        *specs.Auth `yaml:"auth" doc:"How producers prove who they are; default: no proof."`
	ID          *ID         `yaml:"id" doc:"Where the producer's own id of an event is, so that a repeated request is not a second event. CloudEvents bring theirs."`
	Type        specs.Text  `yaml:"type" doc:"CloudEvents type of requests that are no CloudEvent; may contain ${ expr } over the event; default webhook." example:"com.github.${ request.headers[\"x-github-event\"] }"`
	Source      specs.Text  `yaml:"source" doc:"CloudEvents source of requests that are no CloudEvent; may contain ${ expr }; default /<eventsource>/<event>." example:"https://shop.example.com"`
	Subject     specs.Text  `yaml:"subject" doc:"CloudEvents subject of requests that are no CloudEvent; may contain ${ expr }." example:"${ data.orderId }"`
	Request     string      `yaml:"request" enum:"auto,always" doc:"Whether method, path, parameters, query and headers are stored with the event: auto (default) when an expression reads request, or always."`
}

// ID says where the producer's id of an event is.
type ID struct {
	Header     string     `yaml:"header" doc:"Header that holds the id." example:"Idempotency-Key"`
	Expression specs.Expr `yaml:"expression" doc:"Expression over the event whose value is the id." example:"data.id"`
}

const (
	defaultMaxBody     = 1 << 20
	defaultMaxInFlight = 1024
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
		Attributes:  func(config any) func(*bus.Event) error { return attributesOf(config.(*Config)) },
		Routes:      func(config any, _ sources.Env) []sources.Route { return []sources.Route{config.(*Config).route()} },
		MaxEvent:    func(config any) int64 { return int64(config.(*Config).MaxBody) },
		Make:        func(config any, env sources.Env) (sources.Source, error) { return newSource(config.(*Config), env) },
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
	specs.CheckMethods(ck, "methods", c.Methods)
	if c.Auth != nil {
		c.Auth.Validate(ck, "auth")
	}
	if c.ID != nil {
		switch {
		case (c.ID.Header == "") == c.ID.Expression.IsZero():
			ck.Errorf("id", specs.CodeInvalidValue, "for example {header: Idempotency-Key}", "needs exactly one of header and expression")
		case c.ID.Header != "" && !specs.IsToken(c.ID.Header):
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
