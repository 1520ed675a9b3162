// Package grpc owns the function kind `grpc`: it calls a server by the contract
// of custom triggers of Argo Events, package trigger below it. It must not know
// queues, retries or sensors; it only tells failures apart.
package grpc

import (
	"bytes"
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
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/grpc/trigger"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// Config is the config of a `grpc` function.
type Config struct {
	URL        string                        `yaml:"url" required:"true" doc:"Address of the server, host:port or unix:path." example:"trigger-server:9000"`
	Spec       map[string]specs.TextOrSecret `yaml:"spec" doc:"What the server gets to make its resource from, a map of texts; a value is text with ${ expr } or a secret." example:"{repository: https://example.com/${ data.name }}"`
	Resource   specs.Template                `yaml:"resource" doc:"Changes to the resource that the server made, which must be a JSON object then: fields here replace its fields, null removes them." example:"{replicas: '${ data.replicas }'}"`
	Insecure   bool                          `yaml:"insecure" doc:"Whether the connection is plain text; default: TLS."`
	TLS        *outbound.TLS                 `yaml:"tls" doc:"How the server is verified and this client proves itself."`
	Auth       *Auth                         `yaml:"auth" doc:"How this client proves who it is, besides tls."`
	MaxMessage specs.Size                    `yaml:"maxMessage" min:"1KiB" max:"60MiB" doc:"Largest message of the server; default 4MiB."`
	Keepalive  Keepalive                     `yaml:"keepalive" doc:"How a server that no longer answers is found out before the timeout of a call."`
}

// Auth is how the client proves who it is.
type Auth struct {
	Bearer specs.SecretRef `yaml:"bearer" required:"true" doc:"Token sent as authorization: Bearer."`
}

// Keepalive are the pings of HTTP/2 while a call is made.
type Keepalive struct {
	Time    specs.Duration `yaml:"time" min:"10s" doc:"Silence after which the server is asked for a sign of life; default 6m, because servers that are not told otherwise break connections which are asked more than once in 5m."`
	Timeout specs.Duration `yaml:"timeout" min:"100ms" doc:"How long its answer may take; default 20s."`
}

const (
	defaultMaxMessage       = 4 << 20
	defaultKeepaliveTime    = specs.Duration(6 * time.Minute)
	defaultKeepaliveTimeout = specs.Duration(20 * time.Second)

	// Names of metadata.
	hdrKey     = "idempotency-key"
	hdrAttempt = "engine-attempt"
	hdrAuth    = "authorization"
)

//go:embed example.yaml
var example string

// Factory returns the kind `grpc`. Functions of one Factory that call the same
// server with the same settings share a connection.
func Factory() triggers.Factory {
	shared := &outbound.Shared[*server]{}
	return triggers.Factory{
		Type: specs.Type{
			Name: "grpc",
			Doc:  "Calls a gRPC server by the contract of custom triggers of Argo Events: FetchResource, Execute, ApplyPolicy.",
			New: func() any {
				return &Config{MaxMessage: defaultMaxMessage, Keepalive: Keepalive{Time: defaultKeepaliveTime, Timeout: defaultKeepaliveTimeout}}
			},
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env, shared), nil
		},
		Check: func(config any, dir string, ck *specs.Checker) { config.(*Config).TLS.Check(ck, "tls", dir) },
		Files: func(config any, dir string) []string { return config.(*Config).TLS.Files(dir) },
	}
}

// server is the connection to one server.
type server struct {
	cfg    *Config
	dir    string
	secret func(specs.SecretRef) (string, error)

	mu   sync.Mutex
	conn *grpc.ClientConn // nil until it is needed
}

// client returns the client, which connects with the first call. It fails while
// files or secrets of tls cannot be read.
func (s *server) client() (trigger.TriggerClient, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return trigger.NewTriggerClient(s.conn), nil
	}
	creds := insecure.NewCredentials()
	if !s.cfg.Insecure {
		c, err := s.cfg.TLS.Config(s.dir, s.secret)
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(c)
	}
	// Not long, because a call that meets a server which is away fails at once
	// and is repeated by its own policy.
	wait := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}
	conn, err := grpc.NewClient(s.cfg.URL,
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: s.cfg.Keepalive.Time.D(), Timeout: s.cfg.Keepalive.Timeout.D()}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(int(s.cfg.MaxMessage))),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: wait, MinConnectTimeout: 10 * time.Second}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // the retry policy of the trigger is the one there is
		grpc.WithUserAgent("sensor-engine"),
	)
	if err != nil {
		return nil, triggers.Permanentf("%s: %w", s.cfg.URL, err)
	}
	s.conn = conn
	return trigger.NewTriggerClient(conn), nil
}

func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

type function struct {
	cfg    *Config
	server *server
	// Closer closes the connection when nobody else uses it.
	io.Closer
}

func newFunction(cfg *Config, env triggers.Env, shared *outbound.Shared[*server]) *function {
	key := fmt.Sprintf("%s %v %v %v\n%s", cfg.URL, cfg.Insecure, cfg.MaxMessage, cfg.Keepalive, cfg.TLS.ID(env.Dir))
	f := &function{cfg: cfg}
	f.server, f.Closer = shared.Open(key, func() *server { return &server{cfg: cfg, dir: env.Dir, secret: env.Secret} }, (*server).end)
	return f
}

// Invoke makes the three calls, all of them within ctx.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	spec, err := f.spec(c)
	if err != nil {
		return triggers.Result{}, err
	}
	payload, err := c.Payload()
	if err != nil {
		return triggers.Result{}, err
	}
	md, err := f.metadata(c)
	if err != nil {
		return triggers.Result{}, err
	}
	client, err := f.server.client()
	if err != nil {
		return triggers.Result{}, err
	}
	callCtx := metadata.NewOutgoingContext(ctx, md)
	fetched, err := client.FetchResource(callCtx, &trigger.FetchResourceRequest{Resource: spec})
	if err != nil {
		return triggers.Result{}, f.failure(ctx, "FetchResource", err)
	}
	resource, err := f.change(fetched.GetResource(), c)
	if err != nil {
		return triggers.Result{}, err
	}
	done, err := client.Execute(callCtx, &trigger.ExecuteRequest{Resource: resource, Payload: payload})
	if err != nil {
		return triggers.Result{}, f.failure(ctx, "Execute", err)
	}
	out := done.GetResponse()
	res := triggers.Result{ContentType: triggers.MediaType(out), Status: "executed"}
	outbound.Output(&res, out)
	verdict, err := client.ApplyPolicy(callCtx, &trigger.ApplyPolicyRequest{Request: out})
	switch {
	case err != nil:
		return res, f.failure(ctx, "ApplyPolicy", err)
	case !verdict.GetSuccess():
		res.Status = "refused"
		return res, triggers.Errorf(triggers.FunctionError, "%s: ApplyPolicy refused the result%s", f.cfg.URL, said(verdict.GetMessage()))
	}
	return res, nil
}

// spec is the spec as the server gets it: a map of strings as JSON, which any
// reader of YAML takes.
func (f *function) spec(c *triggers.Call) ([]byte, error) {
	m := make(map[string]string, len(f.cfg.Spec))
	for _, name := range slices.Sorted(maps.Keys(f.cfg.Spec)) {
		v, err := c.Values.TextOrSecret(f.cfg.Spec[name])
		if err != nil {
			return nil, err
		}
		m[name] = v
	}
	return json.Marshal(m)
}

// metadata is what goes with the calls.
func (f *function) metadata(c *triggers.Call) (metadata.MD, error) {
	md := metadata.Pairs(hdrKey, bus.EscapeHeader(c.Key), hdrAttempt, strconv.Itoa(c.Attempt))
	if c.Event != nil {
		for _, name := range [...]string{"traceparent", "tracestate"} {
			if v := c.Event.Extensions[name]; v != "" {
				md.Set(name, bus.EscapeHeader(v))
			}
		}
	}
	if f.cfg.Auth == nil {
		return md, nil
	}
	ref := f.cfg.Auth.Bearer
	token, err := c.Values.Secret(ref)
	if err != nil {
		return nil, err
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, triggers.Permanentf("auth.bearer: key %s of Secret %s is no token: it is empty or has spaces or control characters", ref.Key, ref.Name)
	}
	md.Set(hdrAuth, "Bearer "+token)
	return md, nil
}

// change applies the changes of the config to a resource, as a JSON merge
// patch (RFC 7396). Numbers keep all their digits.
func (f *function) change(resource []byte, c *triggers.Call) ([]byte, error) {
	if !f.cfg.Resource.Set {
		return resource, nil
	}
	patch, err := c.Values.Template(f.cfg.Resource)
	if err != nil {
		return nil, err
	}
	changes, ok := patch.(map[string]any)
	if !ok {
		return nil, triggers.Permanentf("resource is no object; it has the fields to change")
	}
	dec := json.NewDecoder(bytes.NewReader(resource))
	dec.UseNumber()
	var fields map[string]any
	if err := dec.Decode(&fields); err != nil || fields == nil || dec.More() {
		return nil, triggers.Permanentf("%s: FetchResource gave no JSON object, whose fields could be changed", f.cfg.URL)
	}
	return json.Marshal(merge(fields, changes))
}

func merge(fields map[string]any, changes map[string]any) map[string]any {
	for name, v := range changes {
		switch v := v.(type) {
		case nil:
			delete(fields, name)
		case map[string]any:
			below, _ := fields[name].(map[string]any)
			if below == nil {
				below = map[string]any{}
			}
			fields[name] = merge(below, v)
		default:
			fields[name] = v
		}
	}
	return fields
}

// failure tells whether the call that failed is worth another one.
func (f *function) failure(ctx context.Context, method string, err error) error {
	st := status.Convert(err)
	if e := ctx.Err(); e != nil {
		return fmt.Errorf("%s: %s: %w", f.cfg.URL, method, e)
	}
	text := fmt.Sprintf("%s: %s failed with %s%s", f.cfg.URL, method, st.Code(), said(st.Message()))
	switch st.Code() {
	case codes.DeadlineExceeded:
		// The deadline travels with the call, so the server may tell first.
		return fmt.Errorf("%s: %w", text, context.DeadlineExceeded)
	case codes.InvalidArgument, codes.OutOfRange:
		return triggers.Errorf(triggers.InputError, "%s", text)
	case codes.Unimplemented:
		return triggers.Permanentf("%s; register the service of trigger.proto in it, or check url", text)
	case codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition:
		return triggers.Permanentf("%s", text)
	case codes.Unavailable:
		if strings.HasPrefix(st.Message(), "connection error") || strings.HasPrefix(st.Message(), "name resolver error") {
			text += "; start the server, or check url, insecure and tls"
		}
		return later(st, triggers.Errorf(triggers.SystemError, "%s", text))
	default:
		return later(st, errors.New(text))
	}
}

// later adds when the server wants to be asked again.
func later(st *status.Status, err error) error {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay() != nil {
			return outbound.RetryAfter(err, info.GetRetryDelay().AsDuration())
		}
	}
	return err
}

// said is what a server said, fit for one line.
func said(s string) string {
	if s = outbound.Clip(s); s == "" {
		return ""
	}
	return ": " + s
}
