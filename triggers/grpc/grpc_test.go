package grpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/grpc/trigger"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// fake is a server whose answers depend on the field `do` of its spec.
type fake struct {
	trigger.UnimplementedTriggerServer
	addr  string
	conns atomic.Int64

	mu   sync.Mutex
	seen []string // methods and what they got
	md   metadata.MD
}

func (f *fake) note(ctx context.Context, s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, s)
	f.md, _ = metadata.FromIncomingContext(ctx)
}

func (f *fake) take() ([]string, metadata.MD) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.seen
	f.seen = nil
	return s, f.md
}

// do is what the resource asks for in one method.
func (f *fake) do(ctx context.Context, method string, resource []byte) error {
	var r struct{ Do string }
	_ = json.Unmarshal(resource, &r)
	what, in, _ := strings.Cut(r.Do, "@")
	if in != method {
		return nil
	}
	switch what {
	case "slow":
		<-ctx.Done()
		return ctx.Err()
	case "plain":
		return errors.New("it broke\nbadly")
	case "later":
		st, _ := status.New(codes.ResourceExhausted, "full").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
		return st.Err()
	}
	var code codes.Code
	if code.UnmarshalJSON([]byte(`"`+what+`"`)) == nil {
		return status.Error(code, "as asked")
	}
	return nil
}

func (f *fake) FetchResource(ctx context.Context, r *trigger.FetchResourceRequest) (*trigger.FetchResourceResponse, error) {
	f.note(ctx, "FetchResource "+string(r.GetResource()))
	return &trigger.FetchResourceResponse{Resource: r.GetResource()}, f.do(ctx, "FetchResource", r.GetResource())
}

func (f *fake) Execute(ctx context.Context, r *trigger.ExecuteRequest) (*trigger.ExecuteResponse, error) {
	f.note(ctx, "Execute "+string(r.GetResource())+" "+string(r.GetPayload()))
	var what struct{ Do string }
	_ = json.Unmarshal(r.GetResource(), &what)
	response := r.GetResource()
	switch what.Do {
	case "key":
		md, _ := metadata.FromIncomingContext(ctx)
		response = []byte(md.Get(hdrKey)[0])
	case "length":
		response = fmt.Append(nil, len(r.GetPayload()))
	case "huge":
		response = make([]byte, 64<<20)
	case "text":
		response = r.GetPayload()
	}
	return &trigger.ExecuteResponse{Response: response}, f.do(ctx, "Execute", r.GetResource())
}

func (f *fake) ApplyPolicy(ctx context.Context, r *trigger.ApplyPolicyRequest) (*trigger.ApplyPolicyResponse, error) {
	f.note(ctx, "ApplyPolicy "+string(r.GetRequest()))
	if strings.Contains(string(r.GetRequest()), `"refuse"`) {
		return &trigger.ApplyPolicyResponse{Message: "two of three\nreplicas"}, nil
	}
	return &trigger.ApplyPolicyResponse{Success: true, Message: "fine"}, f.do(ctx, "ApplyPolicy", r.GetRequest())
}

type countingListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// serve starts a server that ends with the test, or when stop is called.
func serve(t testing.TB, addr string, o ...grpc.ServerOption) (f *fake, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f = &fake{addr: ln.Addr().String()}
	s := grpc.NewServer(o...)
	trigger.RegisterTriggerServer(s, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(countingListener{ln, &f.conns})
	}()
	stop = sync.OnceFunc(func() { s.Stop(); <-done })
	t.Cleanup(stop)
	return f, stop
}

// invoke makes a function of a config and one call.
func invoke(t *testing.T, ctx context.Context, config string, c *triggers.Call, env triggers.Env) (triggers.Result, error) {
	t.Helper()
	f, v := triggertest.Make(t, Factory(), config, map[string]string{"a/b": "canary", "a/bad": "two words"}, env)
	c.Values = v.Of(c)
	return f.Invoke(ctx, c)
}

func TestContract(t *testing.T) {
	f, _ := serve(t, "127.0.0.1:0", grpc.MaxRecvMsgSize(64<<20))
	at := func(addr, do string) string {
		return fmt.Sprintf("url: %s\ninsecure: true\nauth: {bearer: {name: a, key: b}}\nspec: {do: '%s', type: '${ type }', password: {secret: {name: a, key: c}}}", addr, do)
	}
	config := func(do string) string { return at(f.addr, do) }
	triggertest.Run(t, triggertest.Suite{
		Factory: Factory(), OK: config(""), Slow: config("slow@Execute"), Permanent: config("NOT_FOUND@Execute"), Retryable: config("UNAVAILABLE@Execute"),
		Key: config("key"), Length: config("length"), Huge: config("huge"), Text: config("text"),
		Addr: f.addr, Server: func(addr string) string { return at(addr, "") },
		Secrets: map[string]string{"a/b": "canary-token", "a/c": "canary-password"},
	})
}

func TestFlow(t *testing.T) {
	f, _ := serve(t, "127.0.0.1:0")
	c := triggertest.NewCall("k")
	c.Attempt = 3
	res, err := invoke(t, t.Context(), "url: "+f.addr+"\ninsecure: true\nauth: {bearer: {name: a, key: b}}\n"+
		"spec: {b: 'x ${ data.id }', a: '1', c: {secret: {name: a, key: b}}}\nresource: {a: null, n: {id: '${ data.id }'}, list: [1]}", c, triggers.Env{})
	if err != nil || res.ContentType != "application/json" || res.Status != "executed" {
		t.Errorf("%+v, %v", res, err)
	}
	resource := `{"b":"x 1234567890123456789","c":"canary","list":[1],"n":{"id":1234567890123456789}}`
	seen, md := f.take()
	want := []string{
		`FetchResource {"a":"1","b":"x 1234567890123456789","c":"canary"}`,
		`Execute ` + resource + ` {"id":1234567890123456789}`,
		`ApplyPolicy ` + resource,
	}
	if strings.Join(seen, "\n") != strings.Join(want, "\n") || string(res.Output) != resource {
		t.Errorf("%s\nwant %s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
	for name, want := range map[string]string{hdrKey: "k", hdrAttempt: "3", hdrAuth: "Bearer canary", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"} {
		if got := strings.Join(md.Get(name), "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	// An input is the payload, and without a spec there is an empty one.
	c = triggertest.NewInputCall(map[string]any{"x": int64(1)})
	if _, err := invoke(t, t.Context(), "url: "+f.addr+"\ninsecure: true", c, triggers.Env{}); err != nil {
		t.Error(err)
	}
	if seen, _ := f.take(); seen[0] != "FetchResource {}" || seen[1] != `Execute {} {"x":1}` {
		t.Errorf("%q", seen)
	}
}

func TestFailures(t *testing.T) {
	f, _ := serve(t, "127.0.0.1:0")
	for do, want := range map[string]string{
		"INVALID_ARGUMENT@FetchResource": "InputError permanent: FetchResource failed with InvalidArgument: as asked",
		"OUT_OF_RANGE@Execute":           "InputError permanent",
		"NOT_FOUND@ApplyPolicy":          "FunctionError permanent: ApplyPolicy failed with NotFound",
		"ALREADY_EXISTS@Execute":         "FunctionError permanent",
		"PERMISSION_DENIED@Execute":      "FunctionError permanent",
		"UNAUTHENTICATED@Execute":        "FunctionError permanent",
		"FAILED_PRECONDITION@Execute":    "FunctionError permanent",
		"UNIMPLEMENTED@Execute":          "FunctionError permanent: Execute failed with Unimplemented: as asked; register the service of trigger.proto",
		"UNAVAILABLE@Execute":            "SystemError retry: Execute failed with Unavailable",
		"RESOURCE_EXHAUSTED@Execute":     "FunctionError retry",
		"ABORTED@Execute":                "FunctionError retry",
		"INTERNAL@Execute":               "FunctionError retry",
		"DATA_LOSS@Execute":              "FunctionError retry",
		"DEADLINE_EXCEEDED@Execute":      "FunctionError retry",
		"CANCELLED@Execute":              "FunctionError retry",
		"plain@Execute":                  "FunctionError retry: Execute failed with Unknown: it broke badly",
		"later@Execute":                  "FunctionError after 7s: Execute failed with ResourceExhausted: full",
		"refuse@Execute":                 "FunctionError retry: ApplyPolicy refused the result: two of three replicas",
	} {
		res, err := invoke(t, t.Context(), "url: "+f.addr+"\ninsecure: true\nspec: {do: "+do+"}", triggertest.NewCall("k"), triggers.Env{})
		if do == "refuse@Execute" {
			res, err = invoke(t, t.Context(), "url: "+f.addr+"\ninsecure: true\nspec: {do: refuse}", triggertest.NewCall("k"), triggers.Env{})
			if res.Status != "refused" || len(res.Output) == 0 {
				t.Errorf("%+v", res)
			}
		}
		if err == nil {
			t.Errorf("%s: no error", do)
			continue
		}
		how := "retry"
		if after, ok := errors.AsType[*triggers.RetryAfterError](err); ok {
			how = "after " + after.After.String()
		}
		if triggers.Permanent(err) {
			how = "permanent"
		}
		text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), string(triggers.ClassOf(err))+": "), f.addr+": ")
		if got := fmt.Sprintf("%s %s: %s", triggers.ClassOf(err), how, text); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", do, got, want)
		}
	}
	for config, want := range map[string]string{
		"resource: '${ data.id }'":               "resource is no object",
		"auth: {bearer: {name: a, key: bad}}":    "is no token",
		"auth: {bearer: {name: a, key: absent}}": "secret a, key absent is not set",
	} {
		_, err := invoke(t, t.Context(), "url: "+f.addr+"\ninsecure: true\n"+config, triggertest.NewCall("k"), triggers.Env{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "two words") {
			t.Errorf("%s: %v", config, err)
		}
	}
}

// TestConnection: one for all functions with the same settings, made again when
// the server comes back.
func TestConnection(t *testing.T) {
	f, stop := serve(t, "127.0.0.1:0")
	configs := make([]string, 20)
	for i := range configs {
		configs[i] = fmt.Sprintf("url: %s\ninsecure: true\nspec: {i: '%d'}", f.addr, i)
	}
	_, call := triggertest.Together(t, Factory(), configs...)
	if err := call(); err != nil {
		t.Fatal(err)
	}
	if n := f.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	stop()
	err := call()
	if err == nil || triggers.Permanent(err) || triggers.ClassOf(err) != triggers.SystemError || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("%v", err)
	}
	serve(t, f.addr)
	deadline := time.Now().Add(20 * time.Second)
	for call() != nil {
		if time.Now().After(deadline) {
			t.Fatal("it does not connect again")
		}
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert := triggertest.Certificate(t, dir)
	f, _ := serve(t, "127.0.0.1:0", grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	_, port, _ := net.SplitHostPort(f.addr)
	for config, want := range map[string]string{
		"url: " + f.addr + "\ntls: {ca: ca.pem}":                                  "",
		"url: localhost:" + port + "\ntls: {ca: ca.pem, serverName: example.com}": "",
		"url: localhost:" + port + "\ntls: {ca: ca.pem}":                          "certificate is valid for",
		"url: localhost:" + port + "\ntls: {insecureSkipVerify: true}":            "",
		"url: " + f.addr: "unknown authority",
		"url: " + f.addr + "\ntls: {ca: absent.pem}": "tls.ca: absent.pem",
		"url: " + f.addr + "\ninsecure: true":        "Unavailable",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := invoke(t, ctx, config, triggertest.NewCall("k"), triggers.Env{Dir: dir})
		cancel()
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || triggers.Permanent(err)) {
			t.Errorf("%s: %v, want %s", config, err, want)
		}
	}
}

func TestLimits(t *testing.T) {
	f, _ := serve(t, "127.0.0.1:0", grpc.MaxRecvMsgSize(64<<20))
	c := func(n int) *triggers.Call {
		c := triggertest.NewInputCall(strings.Repeat("x", n))
		return c
	}
	res, err := invoke(t, t.Context(), "url: "+f.addr+"\ninsecure: true\nspec: {a: '${ input }'}", c(triggers.MaxOutput+10), triggers.Env{})
	if err != nil || !res.Truncated || len(res.Output) != triggers.MaxOutput {
		t.Errorf("%d bytes, %v, %v", len(res.Output), res.Truncated, err)
	}
	if _, err := invoke(t, t.Context(), "url: "+f.addr+"\ninsecure: true\nmaxMessage: 1KiB\nspec: {a: '${ input }'}", c(5000), triggers.Env{}); err == nil {
		t.Error("a message larger than the limit was taken")
	}
}

func TestValidate(t *testing.T) {
	triggertest.Validate(t, Factory(), map[string]string{
		"{}":                                 "missing-key",
		"url: http://a:1":                    "http:// is no address of a gRPC server (write a:1, and insecure: true for a connection without TLS)",
		"url: a":                             "\"a\" is not host:port",
		"url: ':80'":                         "is not host:port",
		"url: a:80\nspec: {a: [b]}":          "wrong-type",
		"url: a:80\nresource: [1]":           "resource is no object",
		"url: a:80\ninsecure: true\ntls: {}": "a plain text connection has no tls",
		"url: a:80\ninsecure: true\nauth: {bearer: {name: a, key: b}}": "warning[invalid-value] spec.grpc.insecure",
		"url: a:80\ntls: {cert: a}":                                    "needs cert and key",
		"url: a:80\nkeepalive: {time: 1s}":                             "spec.grpc.keepalive.time",
		"url: unix:/run/x\ninsecure: true":                             "",
		"url: a:80\nresource: '${ data.x }'":                           "",
	})
}

// BenchmarkInvoke compares the three calls of a function with one bare call.
func BenchmarkInvoke(b *testing.B) {
	f, _ := serve(b, "127.0.0.1:0")
	cfg := triggertest.Config(b, Factory(), "url: "+f.addr+"\ninsecure: true\nspec: {a: b}")
	fn, err := Factory().Make(cfg, triggers.Env{})
	if err != nil {
		b.Fatal(err)
	}
	defer fn.(interface{ Close() error }).Close()
	c := triggertest.NewCall("k")
	c.Values = triggers.NewValues(nil, nil)
	b.Run("function", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fn.Invoke(b.Context(), c); err != nil {
				b.Fatal(err)
			}
		}
	})
	client, err := fn.(*function).server.client()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("one bare call", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := client.Execute(b.Context(), &trigger.ExecuteRequest{Payload: c.Event.Data}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
