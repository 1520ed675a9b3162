// Package generic owns the source type "generic": a gRPC server that the user
// runs streams events, and the engine stores them. It owns the call and its
// connection, what a message becomes, how far the stream is read ahead of the
// bus, and what happens when either of the two goes away. It must not know what
// becomes of the events. The wire contract is package eventing.
package generic

import (
	"encoding/json"
	"fmt"
	"mime"
	"net"
	"strings"
	"time"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// DefaultType is the CloudEvents type of events to which the server gives none.
const DefaultType = "generic"

// Config is one stream of an EventSource.
type Config struct {
	URL         string         `yaml:"url" required:"true" doc:"Address of the gRPC server: host:port, unix:///path or another gRPC target." example:"orders.example.com:8443"`
	Config      specs.Value    `yaml:"config" doc:"What the server gets as its config: text as it is, anything else as JSON." example:"{topic: orders}"`
	Insecure    bool           `yaml:"insecure" doc:"Whether the connection is plain text; default: TLS."`
	TLS         *TLS           `yaml:"tls" doc:"How the server is verified and this client proves itself."`
	Auth        *Auth          `yaml:"auth" doc:"How this client proves who it is, besides tls."`
	ContentType string         `yaml:"contentType" doc:"Media type of payloads to which the server gives none; auto (default) looks at each: JSON objects and arrays, text, or bytes." example:"application/json"`
	MaxMessage  specs.Size     `yaml:"maxMessage" min:"1KiB" max:"60MiB" doc:"Largest message of the server; default 4MiB." example:"16MiB"`
	Keepalive   Keepalive      `yaml:"keepalive" doc:"How a server that no longer answers is found out."`
	OnEnd       string         `yaml:"onEnd" enum:"reconnect,done" doc:"What follows a stream the server ended without an error: the next one (reconnect, default) or nothing until the engine or the spec changes (done)."`
	Reconnect   specs.Duration `yaml:"reconnect" min:"1ms" doc:"Wait before the next stream, at random down to half of it; doubled up to 30s, or to this if it is more, while streams bring nothing; default 250ms." example:"10s"`
}

// TLS says how TLS connections are made.
type TLS struct {
	CA                 string `yaml:"ca" doc:"PEM file with the authorities to trust instead of the system's, relative to this file."`
	Cert               string `yaml:"cert" doc:"PEM file with the client's certificate; read again for every new connection, as all these files."`
	Key                string `yaml:"key" doc:"PEM file with the key of the client's certificate."`
	ServerName         string `yaml:"serverName" doc:"Name the server's certificate must have, when it is not that of the URL."`
	InsecureSkipVerify bool   `yaml:"insecureSkipVerify" doc:"Accept any certificate. For experiments only."`
}

// Auth is how the client proves who it is.
type Auth struct {
	Bearer specs.SecretRef `yaml:"bearer" required:"true" doc:"Token sent as authorization: Bearer; read again for every new connection."`
}

// Keepalive are the pings of HTTP/2 on a connection on which nothing comes.
type Keepalive struct {
	Time    specs.Duration `yaml:"time" min:"10s" doc:"Silence after which the server is asked for a sign of life; default 6m, because servers that are not told otherwise break connections which are asked more than once in 5m." example:"30s"`
	Timeout specs.Duration `yaml:"timeout" min:"100ms" doc:"How long its answer may take; default 20s."`
}

const (
	defaultMaxMessage       = 4 << 20
	defaultKeepaliveTime    = specs.Duration(6 * time.Minute)
	defaultKeepaliveTimeout = specs.Duration(20 * time.Second)
	defaultReconnect        = specs.Duration(250 * time.Millisecond)

	onEndDone = "done"
	autoType  = "auto"
)

// Factory makes streams. With several replicas, only one runs each.
func Factory() sources.Factory {
	return sources.Factory{
		Type: specs.Type{
			Name: "generic",
			Doc:  "Events that a gRPC server of yours streams, as in Argo Events; it may be resumed where it stopped.",
			New: func() any {
				return &Config{
					MaxMessage: defaultMaxMessage, Reconnect: defaultReconnect,
					Keepalive: Keepalive{Time: defaultKeepaliveTime, Timeout: defaultKeepaliveTimeout},
				}
			},
		},
		DefaultType: DefaultType,
		Single:      true,
		MaxEvent:    func(config any) int64 { return int64(config.(*Config).MaxMessage) },
		Make: func(config any, env sources.Env) (sources.Source, error) {
			return newSource(config.(*Config), env)
		},
	}
}

// Validate reports what the types of the fields cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	if hint, err := checkURL(c.URL); err != nil {
		ck.Errorf("url", specs.CodeInvalidValue, hint, "%v", err)
	}
	if _, err := c.text(); err != nil {
		ck.Errorf("config", specs.CodeInvalidValue, "", "cannot be written as JSON: %v", err)
	}
	if c.Insecure && c.TLS != nil {
		ck.Errorf("insecure", specs.CodeInvalidValue, "remove one of the two", "a plain text connection has no tls")
	}
	if t := c.TLS; t != nil && (t.Cert == "") != (t.Key == "") {
		ck.Errorf("tls", specs.CodeInvalidValue, "give both or neither", "a client certificate needs cert and key")
	}
	if c.ContentType != "" && c.ContentType != autoType {
		if mt, _, err := mime.ParseMediaType(c.ContentType); err != nil || !strings.Contains(mt, "/") {
			ck.Errorf("contentType", specs.CodeInvalidValue, "for example application/json", "%q is no media type", c.ContentType)
		}
	}
}

// checkURL tells what is wrong with an address, and what to do about it.
func checkURL(url string) (hint string, err error) {
	scheme, rest, found := strings.Cut(url, "://")
	switch {
	case !found && strings.HasPrefix(url, "unix:"), scheme == "unix", scheme == "dns", scheme == "passthrough":
		return "", nil
	case found:
		return "write " + strings.TrimRight(rest, "/") + ", and insecure: true for a connection without TLS",
			fmt.Errorf("%s:// is no address of a gRPC server", scheme)
	}
	_, port, err := net.SplitHostPort(url)
	switch {
	case err != nil:
		return "for example " + strings.Trim(url, ":/") + ":8080", fmt.Errorf("%q is not host:port", url)
	case port == "" || strings.Contains(port, "/"):
		return "for example localhost:8080", fmt.Errorf("%q has no port", url)
	}
	return "", nil
}

// text is what the server gets.
func (c *Config) text() ([]byte, error) {
	if s, ok := c.Config.Root.(string); ok {
		return []byte(s), nil
	}
	if !c.Config.Set || c.Config.Root == nil {
		return nil, nil
	}
	return json.Marshal(c.Config.Root)
}
