// Package nats owns the function kind `nats`: it publishes to a subject of a
// NATS server, or asks one and waits for the reply. It must not know the bus,
// queues, retries or sensors; it only tells failures apart.
package nats

import (
	"context"
	_ "embed" // for the example
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// Config is the config of a `nats` function.
type Config struct {
	URL       string                        `yaml:"url" required:"true" doc:"Address of the server, or several of one cluster separated by commas; tls:// asks for TLS." example:"nats://nats.internal:4222"`
	Subject   specs.Text                    `yaml:"subject" required:"true" doc:"Subject to publish to; text with ${ expr }." example:"orders.${ data.id }"`
	Mode      string                        `yaml:"mode" enum:"publish,request" doc:"Publish a message (default), or make a request, whose reply is the output."`
	JetStream bool                          `yaml:"jetstream" doc:"Whether a stream of JetStream must have stored the message, once per firing within the duplicate window of the stream; default: it is enough that the server has taken it."`
	Headers   map[string]specs.TextOrSecret `yaml:"headers" doc:"Further headers of the message; they win over those the engine sets. A value is text with ${ expr } or a secret."`
	Auth      *Auth                         `yaml:"auth" doc:"How this client proves who it is, besides tls; one of the ways."`
	TLS       *outbound.TLS                 `yaml:"tls" doc:"How the server is verified and this client proves itself; TLS is asked for when this is given."`
}

// Auth is how the client proves who it is. Secrets are read again for every
// connection.
type Auth struct {
	User     specs.TextOrSecret `yaml:"user" doc:"Name of the user, with password: text or a secret."`
	Password *specs.SecretRef   `yaml:"password" doc:"Password of the user."`
	Token    *specs.SecretRef   `yaml:"token" doc:"Token."`
	NKey     *specs.SecretRef   `yaml:"nkey" doc:"Seed of an nkey of a user (SU…)."`
	Creds    *specs.SecretRef   `yaml:"creds" doc:"Content of a credentials file, JWT and seed."`
}

const (
	modePublish = "publish"
	modeRequest = "request"

	hdrKey     = "Idempotency-Key"
	hdrAttempt = "Engine-Attempt"
	// hdrErrorCode and hdrError are how services of NATS tell that they failed.
	hdrErrorCode = "Nats-Service-Error-Code"
	hdrError     = "Nats-Service-Error"
)

//go:embed example.yaml
var example string

// Factory returns the kind `nats`. Functions of one Factory with the same
// server and settings share a connection.
func Factory() triggers.Factory {
	shared := &outbound.Shared[*link]{}
	return triggers.Factory{
		Type: specs.Type{
			Name: "nats",
			Doc:  "Publishes a message to a subject of NATS or JetStream, or makes a request and waits for the reply.",
			New:  func() any { return &Config{Mode: modePublish} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env, shared), nil
		},
		Check: func(config any, dir string, ck *specs.Checker) { config.(*Config).TLS.Check(ck, "tls", dir) },
		Files: func(config any, dir string) []string { return config.(*Config).TLS.Files(dir) },
	}
}

type function struct {
	cfg   *Config
	label string // the server, for people
	link  *link
	// Closer closes the connection when nobody else uses it.
	io.Closer
	headers []string // names of cfg.Headers, sorted
}

func newFunction(cfg *Config, env triggers.Env, shared *outbound.Shared[*link]) *function {
	f := &function{cfg: cfg, label: label(cfg.URL), headers: slices.Sorted(maps.Keys(cfg.Headers))}
	key := strings.Join([]string{cfg.URL, cfg.Auth.id(), cfg.TLS.ID(env.Dir)}, "\n")
	f.link, f.Closer = shared.Open(key, func() *link {
		return &link{cfg: cfg, label: f.label, dir: env.Dir, secret: env.Secret, waiting: map[string]map[*waiter]bool{}}
	}, (*link).close)
	return f
}

// Invoke publishes the message and waits for what counts as success.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	msg, err := f.message(c)
	if err != nil {
		return triggers.Result{}, err
	}
	nc, err := f.link.connected(ctx)
	if err != nil {
		return triggers.Result{}, err
	}
	ctx, done := f.link.watch(ctx, msg.Subject)
	defer done()
	var res triggers.Result
	switch {
	case f.cfg.Mode == modeRequest:
		res, err = request(ctx, nc, msg)
	case f.cfg.JetStream:
		res, err = store(ctx, nc, msg)
	default:
		res, err = publish(ctx, nc, msg)
	}
	if err != nil {
		err = f.failure(ctx, msg.Subject, err)
	}
	return res, err
}

// message is the message of one call.
func (f *function) message(c *triggers.Call) (*nats.Msg, error) {
	subject, err := c.Values.Text(f.cfg.Subject)
	if err != nil {
		return nil, err
	}
	if err := checkSubject(subject); err != nil {
		return nil, triggers.Errorf(triggers.InputError, "subject %q %w", outbound.Clip(subject), err)
	}
	if before, _, templated := strings.Cut(f.cfg.Subject.Value, "${"); templated && before == "" && strings.ContainsAny(subject[:1], "$_") {
		return nil, triggers.Errorf(triggers.InputError, "subject %q is one of the server's own, and the event chose it; write the beginning of the subject into the spec", outbound.Clip(subject))
	}
	msg := &nats.Msg{Subject: subject, Header: nats.Header{}}
	switch {
	case c.HasInput:
		if msg.Data, err = c.InputJSON(); err != nil {
			return nil, err
		}
		msg.Header["Content-Type"] = []string{"application/json"}
	case c.Event != nil:
		msg.Data = c.Event.Data
		// The binary mode of the CloudEvents binding, without what is ours.
		for name, values := range c.Event.Record().Header {
			if strings.HasPrefix(name, "ce-") || name == "content-type" {
				msg.Header[name] = values
			}
		}
	}
	msg.Header[hdrKey] = []string{bus.EscapeHeader(c.Key)}
	msg.Header[hdrAttempt] = []string{strconv.Itoa(c.Attempt)}
	if f.cfg.JetStream && c.Key != "" {
		msg.Header[jetstream.MsgIDHeader] = []string{bus.EscapeHeader(c.Key)}
	}
	for _, name := range f.headers {
		v, err := c.Values.TextOrSecret(f.cfg.Headers[name])
		if err != nil {
			return nil, err
		}
		if strings.ContainsFunc(v, unicode.IsControl) {
			return nil, triggers.Permanentf("header %s: the value has control characters", name)
		}
		for known := range msg.Header {
			if strings.EqualFold(known, name) {
				delete(msg.Header, known)
			}
		}
		msg.Header[name] = []string{v}
	}
	return msg, nil
}

// checkSubject tells what keeps s from being published to.
func checkSubject(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return errors.New("has spaces or control characters")
	}
	for token := range strings.SplitSeq(s, ".") {
		switch token {
		case "":
			return errors.New("has an empty part")
		case "*", ">":
			return errors.New("has a wildcard; a message goes to one subject")
		}
	}
	return nil
}

// publish hands the message to the server and waits until it has it.
func publish(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (triggers.Result, error) {
	before := nc.LastError()
	if err := nc.PublishMsg(msg); err != nil {
		return triggers.Result{}, err
	}
	if err := nc.FlushWithContext(ctx); err != nil {
		return triggers.Result{}, err
	}
	// The server says what it thinks of a message before it answers the flush.
	if err := nc.LastError(); !errors.Is(err, before) && violates(err, msg.Subject) {
		return triggers.Result{}, err
	}
	return triggers.Result{Status: "published"}, nil
}

// store waits until a stream has stored the message.
func store(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (triggers.Result, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return triggers.Result{}, err
	}
	ack, err := js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	if err != nil {
		return triggers.Result{}, err
	}
	out, err := json.Marshal(map[string]any{"stream": ack.Stream, "sequence": ack.Sequence, "duplicate": ack.Duplicate})
	if err != nil {
		return triggers.Result{}, err
	}
	res := triggers.Result{Output: out, ContentType: "application/json", Status: "stored"}
	if ack.Duplicate {
		res.Status = "stored before"
	}
	return res, nil
}

// request waits for the reply.
func request(ctx context.Context, nc *nats.Conn, msg *nats.Msg) (triggers.Result, error) {
	reply, err := nc.RequestMsgWithContext(ctx, msg)
	if err != nil {
		return triggers.Result{}, err
	}
	res := triggers.Result{ContentType: reply.Header.Get("Content-Type"), Status: "replied"}
	outbound.Output(&res, reply.Data)
	for _, name := range []string{"content-type", "Content-Type"} {
		if v := reply.Header[name]; len(v) > 0 {
			res.ContentType = v[0]
		}
	}
	if res.ContentType == "" {
		res.ContentType = triggers.MediaType(reply.Data)
	}
	code, text := reply.Header.Get(hdrErrorCode), reply.Header.Get(hdrError)
	if code == "" && text == "" {
		return res, nil
	}
	res.Status = "failed"
	return res, &serviceError{code: outbound.Clip(code), text: outbound.Clip(text)}
}

// serviceError is what a service says in headers of its reply.
type serviceError struct{ code, text string }

func (e *serviceError) Error() string {
	return strings.TrimSpace("the service answered with error " + e.code + " " + e.text)
}

// failure tells whether what failed is worth another call.
func (f *function) failure(ctx context.Context, subject string, err error) error {
	what := f.label + ": subject " + outbound.Clip(subject) + ": "
	if cause := context.Cause(ctx); cause != nil && (errors.Is(cause, errLost) || violates(cause, subject)) {
		err = cause
	} else if ctx.Err() != nil {
		return fmt.Errorf("%s%w", what, ctx.Err())
	}
	if se, ok := errors.AsType[*serviceError](err); ok {
		switch se.code {
		case "400", "422":
			return triggers.Errorf(triggers.InputError, "%s%w", what, err)
		case "408", "425", "429":
		default:
			if strings.HasPrefix(se.code, "4") {
				return triggers.Permanentf("%s%w", what, err)
			}
		}
		return triggers.Errorf(triggers.FunctionError, "%s%w", what, err)
	}
	switch {
	case violates(err, subject):
		return triggers.Permanentf("%sthis client may not publish to it", what)
	case errors.Is(err, nats.ErrMaxPayload):
		return triggers.Permanentf("%s%w", what, err)
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return triggers.Errorf(triggers.SystemError, "%sno stream takes it, or JetStream is away; add it to the subjects of a stream", what)
	case errors.Is(err, nats.ErrNoResponders):
		return triggers.Errorf(triggers.SystemError, "%snobody answers it (no responders); start the service, or check the subject", what)
	case errors.Is(err, nats.ErrHeadersNotSupported):
		return triggers.Permanentf("%s%w", what, err)
	}
	return triggers.Errorf(triggers.SystemError, "%s%w", what, err)
}

// violates reports whether err says that the client may not publish to subject.
func violates(err error, subject string) bool {
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+subject+`"`)
}
