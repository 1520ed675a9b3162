package specs

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Endpoint answers HTTP requests with what a function gives.
type Endpoint struct {
	Path        string    `yaml:"path" required:"true" doc:"Path on the engine's listener; {name} matches one segment, a final {name...} the rest." example:"/hello/{name}"`
	Methods     []string  `yaml:"methods" doc:"HTTP methods that are answered; default POST." example:"[GET, POST]"`
	Hosts       []string  `yaml:"hosts" doc:"Host names under which it answers; default: all. An endpoint that names the host of a request wins over one that names none." example:"[api.example.com]"`
	Function    string    `yaml:"function" required:"true" ref:"Function" doc:"Name of the Function to call."`
	Input       Template  `yaml:"input" doc:"What the function gets instead of what the request is mapped to; strings may contain ${ expr } over data, which is that, and request."`
	Secrets     []string  `yaml:"secrets" ref:"Secret" doc:"Names of Secrets whose values are added to those of the function in this call." example:"[slack]"`
	Timeout     Duration  `yaml:"timeout" min:"1ms" doc:"Longest time one call may take; default: that of the function." example:"10s"`
	Async       bool      `yaml:"async" doc:"Whether the call is stored as a job and answered at once with 202 and where its run can be asked for."`
	Response    *Response `yaml:"response" doc:"What the answer is made of when the function succeeded; default: 200 with its output."`
	Errors      string    `yaml:"errors" enum:"class,message,full" doc:"What clients are told of a failed call: its class (and why, when the input was wrong), also the message (default), or also the stack trace."`
	Auth        *Auth     `yaml:"auth" doc:"How clients prove who they are; default: no proof."`
	CORS        *CORS     `yaml:"cors" short:"any" doc:"Which pages of other origins may ask; true for all. Default: none."`
	HTTPSOnly   bool      `yaml:"httpsOnly" doc:"Whether requests that did not come by HTTPS are refused with 400. A proxy in front says with X-Forwarded-Proto how they came."`
	Enabled     *bool     `yaml:"enabled" doc:"Whether it answers at all; default true."`
	MaxBody     Size      `yaml:"maxBody" min:"1" doc:"Largest body, also after decompression; default 1MiB." example:"10MB"`
	MaxInFlight int       `yaml:"maxInFlight" min:"1" doc:"Most requests served at the same time, more are answered 429; default 1024."`

	// Places are those of the spec and its fields, by their path below it, as in
	// [SourceEvent].
	Places map[string]Pos `yaml:"-"`
}

// The defaults of an Endpoint.
const (
	DefaultMaxBody     Size = 1 << 20
	DefaultMaxInFlight      = 1024
)

// The levels of Errors.
const (
	ErrorsClass = "class"
	ErrorsFull  = "full"
)

// Response says what the answer to a request is made of.
type Response struct {
	Status  Template        `yaml:"status" doc:"HTTP status, 200 to 599: a number or ${ expr } over output, data and request; default 200." example:"${ output.created ? 201 : 200 }"`
	Headers map[string]Text `yaml:"headers" doc:"Further headers; text with ${ expr } over the same. One whose value is empty is left out."`
	Body    Template        `yaml:"body" doc:"Body: text as it is, with text/plain where headers do not say more, anything else as JSON; default: the output." example:"${ output.html }"`
}

// CORS says which pages of other origins may ask.
type CORS struct {
	Any         bool     `yaml:"any" doc:"Pages of all origins."`
	Origins     []string `yaml:"origins" doc:"Origins of the pages, or * for all." example:"[https://shop.example.com]"`
	Headers     []string `yaml:"headers" doc:"Request headers that pages may set; default: those they ask for."`
	Credentials bool     `yaml:"credentials" doc:"Whether browsers send cookies and Authorization along; the origins must be named then."`
	MaxAge      Duration `yaml:"maxAge" doc:"How long browsers remember the answer; default: as long as they like." example:"1h"`
}

// All reports whether pages of all origins may ask.
func (c *CORS) All() bool { return c.Any || slices.Contains(c.Origins, "*") }

// On reports whether the endpoint answers.
func (e *Endpoint) On() bool { return e.Enabled == nil || *e.Enabled }

var hostName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

var origin = regexp.MustCompile(`^https?://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]+)?$`)

// managed are the headers of an answer that the engine sets itself.
var managed = []string{"connection", "content-length", "date", "keep-alive", "trailer", "transfer-encoding", "upgrade"}

// Validate reports what the types of the fields cannot say.
func (e *Endpoint) Validate(ck *Checker) {
	CheckMethods(ck, "methods", e.Methods)
	for i, h := range e.Hosts {
		if !hostName.MatchString(h) {
			ck.Errorf("hosts"+"["+strconv.Itoa(i)+"]", CodeInvalidValue, "for example api.example.com, in small letters and without a port", "%q is no host name", h)
		}
	}
	if e.Auth != nil {
		e.Auth.Validate(ck, "auth")
	}
	if c := e.CORS; c != nil {
		e.validateCORS(c, ck)
	}
	if r := e.Response; r != nil {
		if e.Async {
			ck.Errorf("response", CodeInvalidValue, "remove one of them", "an endpoint with async answers before there is an output")
		}
		if n, ok := r.Status.Root.(int64); r.Status.Set && (ok && (n < 200 || n > 599) || !ok && !isText(r.Status.Root)) {
			ck.Errorf("response.status", CodeOutOfRange, "200 to 599", "this is no status an answer can have")
		}
		for name := range r.Headers {
			switch {
			case !IsToken(name):
				ck.Errorf("response.headers."+name, CodeInvalidValue, "for example X-Version", "%q is no header name", name)
			case slices.Contains(managed, strings.ToLower(name)):
				ck.Errorf("response.headers."+name, CodeInvalidValue, "remove it", "the header %s is set by the engine", name)
			}
		}
	}
}

func (e *Endpoint) validateCORS(c *CORS, ck *Checker) {
	if slices.Contains(e.Methods, "OPTIONS") {
		ck.Errorf("methods", CodeInvalidValue, "remove OPTIONS, or cors", "with cors, OPTIONS is answered by the engine")
	}
	for i, o := range c.Origins {
		if o != "*" && !origin.MatchString(o) {
			ck.Errorf("cors.origins"+"["+strconv.Itoa(i)+"]", CodeInvalidValue, "for example https://shop.example.com, in small letters and without a path", "%q is no origin", o)
		}
	}
	for i, h := range c.Headers {
		if !IsToken(h) {
			ck.Errorf("cors.headers"+"["+strconv.Itoa(i)+"]", CodeInvalidValue, "for example X-Version", "%q is no header name", h)
		}
	}
	if c.Credentials && c.All() {
		ck.Errorf("cors.credentials", CodeInvalidValue, "name the origins", "with credentials for all origins, every page could act for its visitor")
	}
	if !c.All() && len(c.Origins) == 0 && (c.Credentials || len(c.Headers) > 0 || c.MaxAge > 0) {
		ck.Errorf("cors", CodeMissingKey, "for example origins: [https://shop.example.com]", "no origin is named")
	}
}

// isText reports whether a template may give anything.
func isText(root any) bool {
	t, ok := root.(Text)
	return ok && strings.Contains(t.Value, "${")
}
