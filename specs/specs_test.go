package specs_test

import (
	"strings"

	"github.com/sensor-engine/engine/specs"
)

// The types of the tests resemble real ones.

type tickerConfig struct {
	Every     specs.Duration `yaml:"every" required:"true" min:"1ms" doc:"Time between two events." example:"10s"`
	Immediate bool           `yaml:"immediate" doc:"Whether the first event comes at once."`
	Data      specs.Value    `yaml:"data" doc:"Data of the events."`
}

type authConfig struct {
	Bearer *specs.SecretRef `yaml:"bearer" doc:"Token the caller must send."`
	HMAC   *hmacConfig      `yaml:"hmac" doc:"Signature over the body."`
}

type hmacConfig struct {
	Header string          `yaml:"header" required:"true" doc:"Header with the signature." example:"X-Signature"`
	Secret specs.SecretRef `yaml:"secret" required:"true" doc:"Key of the signature."`
}

type webhookConfig struct {
	Path    string      `yaml:"path" required:"true" doc:"Path of the route." example:"/orders"`
	Methods []string    `yaml:"methods" enum:"GET,POST,PUT" doc:"Methods accepted; default POST."`
	MaxBody specs.Size  `yaml:"maxBody" min:"1" max:"16MiB" doc:"Largest body accepted."`
	Auth    *authConfig `yaml:"auth" doc:"How callers prove who they are."`
	ID      specs.Expr  `yaml:"id" doc:"Expression for the id of the event."`
}

func (c *webhookConfig) Validate(k *specs.Checker) {
	if !strings.HasPrefix(c.Path, "/") {
		k.Errorf("path", specs.CodeInvalidValue, "write /"+c.Path, "the path must begin with /")
	}
	if c.Auth != nil && c.Auth.Bearer != nil && c.Auth.HMAC != nil {
		k.Errorf("auth.hmac.header", specs.CodeInvalidValue, "", "bearer and hmac exclude each other")
	}
}

type httpConfig struct {
	URL     specs.Text                    `yaml:"url" required:"true" doc:"Where the request goes." example:"https://example.com/"`
	Method  string                        `yaml:"method" enum:"GET,POST,PUT,DELETE" doc:"Method; default POST."`
	Headers map[string]specs.TextOrSecret `yaml:"headers" doc:"Headers of the request."`
	Common  `yaml:",inline"`
}

// Common is embedded by configs.
type Common struct {
	Insecure bool    `yaml:"insecure" doc:"Whether certificates are not checked."`
	Rate     float64 `yaml:"rate" min:"0" doc:"Calls per second."`
	Port     uint16  `yaml:"port" doc:"Port number."`
}

type logConfig struct {
	Message specs.Text     `yaml:"message" doc:"What is logged."`
	Fields  specs.Template `yaml:"fields" doc:"More fields."`
}

func loader() specs.Loader {
	return specs.Loader{Types: specs.Types{
		Sources: []specs.Type{
			{Name: "ticker", Doc: "Emits events at regular intervals.", New: func() any { return &tickerConfig{} }},
			{Name: "webhook", Doc: "Emits an event for each HTTP request.", New: func() any { return &webhookConfig{MaxBody: 1 << 20} }},
		},
		Functions: []specs.Type{
			{Name: "http", Doc: "Sends an HTTP request.", New: func() any { return &httpConfig{Method: "POST"} }},
			{Name: "log", Doc: "Writes a line to the log.", New: func() any { return &logConfig{} }},
		},
	}}
}
