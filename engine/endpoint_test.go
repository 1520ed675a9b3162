package engine_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// debugConfig is the config of the kind debug.
type debugConfig struct {
	Version string `yaml:"version" doc:"Told in the answer."`
}

// debug is the echo of Dispatch's examples, debug.js: it gives its context and
// its payload, or what the payload asks for.
type debug struct {
	mu    sync.Mutex
	calls int
	gate  chan struct{}
}

func (d *debug) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

func (d *debug) factory() triggers.Factory {
	return triggers.Factory{
		Type:   specs.Type{Name: "debug", Doc: "Echoes.", New: func() any { return &debugConfig{} }},
		Make:   func(c any, _ triggers.Env) (triggers.Function, error) { return made{d, c.(*debugConfig).Version}, nil },
		Grants: true,
	}
}

type made struct {
	*debug
	version string
}

func (d made) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	d.mu.Lock()
	d.calls++
	d.mu.Unlock()
	in, err := c.Payload()
	if err != nil {
		return triggers.Result{}, err
	}
	var ask struct {
		Fail, Type, Raw string
		Wait, Hang      bool
		Give            json.RawMessage
	}
	_ = json.Unmarshal(in, &ask)
	switch {
	case ask.Fail != "":
		return triggers.Result{}, &triggers.Error{Class: triggers.Class(ask.Fail), Message: "as asked", Stacktrace: []string{"line 1", "line 2"}}
	case ask.Wait:
		select {
		case <-d.gate:
		case <-ctx.Done():
			return triggers.Result{}, ctx.Err()
		}
	case ask.Hang:
		<-ctx.Done()
		return triggers.Result{}, triggers.Errorf(triggers.FunctionError, "Function execution exceeded the timeout: %w", ctx.Err())
	case ask.Give != nil:
		return triggers.Result{Output: ask.Give, ContentType: "application/json"}, nil
	case ask.Type != "":
		return triggers.Result{Output: []byte(ask.Raw), ContentType: ask.Type}, nil
	}
	out := append([]byte(`{"version":"`+d.version+`","context":`), c.AppendContext(ctx, nil)...)
	out = append(append(out, `,"params":`...), in...)
	return triggers.Result{Output: append(out, '}'), ContentType: "application/json"}, nil
}

const debugFunction = head + "kind: Function\nmetadata: {name: debug}\nspec: {debug: {}, retry: {attempts: 2, backoff: 10ms}}\n---\n"

// endpoint is the document of one.
func endpoint(name, spec string) string {
	return fmt.Sprintf("%skind: Endpoint\nmetadata: {name: %s}\nspec: {%s}\n---\n", head, name, spec)
}

// serve starts an engine with the kind debug and the given documents.
func serve(t *testing.T, docs ...string) (*running, *debug) {
	t.Helper()
	d := &debug{gate: make(chan struct{})}
	cat := catalog()
	cat.Functions = append(slices.Clone(cat.Functions), d.factory())
	dir := written(t, "f.yaml", debugFunction+strings.Join(docs, ""))
	r := launch(t, cat, dir, t.TempDir())
	r.until("the engine to be ready", func() bool { ok, _ := r.e.Ready(t.Context()); return ok })
	return r, d
}

// ask is one request and its answer.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %v %s", a.status, a.header, a.body) }

// of is the member of the JSON body at a path.
func (a answer) of(path ...string) any {
	var v any
	if json.Unmarshal([]byte(a.body), &v) != nil {
		return nil
	}
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

func (r *running) ask(method, path, body string, header ...string) answer {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.e.Addr()+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// The mapping of requests, rows 38 and 39 of the features of Dispatch.
func TestEndpointInput(t *testing.T) {
	var form bytes.Buffer
	mw := multipart.NewWriter(&form)
	_ = mw.WriteField("a", "1")
	_ = mw.WriteField("b", "x")
	_ = mw.WriteField("b", "y")
	file, _ := mw.CreateFormFile("f", "n.bin")
	_, _ = file.Write([]byte{0, 0xff})
	_ = mw.Close()
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte(`{"z": 1}`))
	_ = z.Close()

	r, d := serve(t, endpoint("hello", "path: /hello, methods: [GET, POST, DELETE], function: debug, maxBody: 4KiB"))
	const urlencoded = "application/x-www-form-urlencoded"
	for _, c := range []struct {
		name, method, query, contentType, body string
		want                                   string // params, or the message of a refusal
		status                                 int
	}{
		{"query", "GET", "?a=1&b=x+y&a=2", "", "", `{"a":["1","2"],"b":"x y"}`, 200},
		{"no query", "GET", "", "", "", `{}`, 200},
		{"bad query", "GET", "?a=%zz", "", "", "the query is not valid", 400},
		{"nothing", "POST", "?q=1", "", "", `{}`, 200},
		{"nothing as JSON", "POST", "", "application/json", "", `{}`, 200},
		{"JSON as it came", "POST", "?q=1", "application/json", `{"n": 12345678901234567890, "s": "<"}`, `{"n": 12345678901234567890, "s": "<"}`, 200},
		{"any JSON", "POST", "", "application/json; charset=utf-8", `42`, `42`, 200},
		{"JSON of another name", "DELETE", "", "application/merge-patch+json", `null`, `null`, 200},
		{"bad JSON", "POST", "", "application/json", `{"a":`, "request body is not json", 400},
		{"JSON that is not UTF-8", "POST", "", "application/json", "\"\xff\"", "request body is not json", 400},
		{"form", "POST", "?a=3&q=1", urlencoded, "a=1&a=2&b=%C3%A4", `{"a":["1","2","3"],"b":"ä","q":"1"}`, 200},
		{"what curl -d sends", "POST", "", urlencoded, `{"a": 1}`, `{"a": 1}`, 200},
		{"bad form", "POST", "", urlencoded, "a=%zz", "request body is not a form", 400},
		{"form that is not UTF-8", "POST", "", urlencoded, "a=%ff", "request body is not UTF-8", 400},
		{"multipart", "POST", "?a=2", mw.FormDataContentType(), form.String(), `{"a":["1","2"],"b":["x","y"],"f":{"contentType":"application/octet-stream","data":"AP8=","filename":"n.bin"}}`, 200},
		{"bad multipart", "POST", "", "multipart/form-data", "x", "request body is not a form", 400},
		{"text", "POST", "", "text/plain", "hé", `"hé"`, 200},
		{"bytes", "POST", "", "application/octet-stream", "\x00\xff", `"AP8="`, 200},
		{"no content type", "POST", "", "-", "abc", `"YWJj"`, 200},
		{"another type", "POST", "", "application/xml", "<a/>", "request body type is not supported: application/xml", 415},
		{"no type at all", "POST", "", "a b", "<a/>", "request body type is not supported: a b", 415},
		{"too large", "POST", "", "application/json", `"` + strings.Repeat("x", 5000) + `"`, "the body is larger than 4096 bytes", 413},
	} {
		header := []string{"Content-Type", c.contentType}
		if c.contentType == "-" || c.contentType == "" {
			header = nil
		}
		calls := d.count()
		a := r.ask(c.method, "/hello"+c.query, c.body, header...)
		got := fmt.Sprint(a.of("message"))
		if c.status == 200 {
			got = a.body[strings.LastIndex(a.body, `"params":`)+9 : len(a.body)-1]
		}
		if a.status != c.status || got != c.want || (d.count() > calls) != (c.status == 200) {
			t.Errorf("%s: %d %s, want %d %s", c.name, a.status, a.body, c.status, c.want)
		}
		if c.status != 200 && a.of("type") != "InputError" {
			t.Errorf("%s: the error is no error object: %s", c.name, a.body)
		}
	}
	if a := r.ask("POST", "/hello", zipped.String(), "Content-Encoding", "gzip", "Content-Type", "application/json"); a.status != 200 || !strings.Contains(a.body, `"params":{"z": 1}`) {
		t.Errorf("gzip: %v", a)
	}
	if a := r.ask("HEAD", "/hello", ""); a.status != 200 || a.body != "" {
		t.Errorf("HEAD: %v", a)
	}

	a := r.ask("POST", "/hello?a=1&a=2", "{}", "Content-Type", "application/json", "X-Trace", "t1", "X-Method", "m", "Method", "evil", "Authorization", "Bearer s3cret", "Cookie", "a=s3cret", "X-Api-Key", "s3cret", "X-Forwarded-Proto", "https", "X-Dispatch-Org", "other")
	for path, want := range map[string]any{
		"method": "POST", "uri": "/hello", "path": "/hello", "args": "a=1&a=2", "request_uri": "/hello?a=1&a=2", "request-uri": "/hello?a=1&a=2",
		"request": "POST /hello?a=1&a=2 HTTP/1.1", "scheme": "https", "server_protocol": "HTTP/1.1", "server-protocol": "HTTP/1.1",
		"upstream_uri": "debug", "upstream-uri": "debug", "x-trace": "t1",
	} {
		if got := a.of("context", "httpContext", path); got != want {
			t.Errorf("httpContext.%s is %v, want %v", path, got, want)
		}
	}
	if a.of("context", "httpContext", "headers", "x-trace") != "t1" || strings.Contains(a.body, "s3cret") {
		t.Errorf("httpContext: %s", a.body)
	}
}

// Status codes of failures, row 43: the caller is told.
func TestEndpointErrors(t *testing.T) {
	r, d := serve(t, endpoint("f", "path: /f, function: debug, timeout: 10s, errors: full"), endpoint("short", "path: /short, function: debug, timeout: 50ms"),
		head+"kind: Function\nmetadata: {name: strict}\nspec: {debug: {}, input: {schema: {type: object, required: [name]}}, output: {schema: {type: string}}}\n---\n",
		endpoint("strict", "path: /strict, function: strict"))
	for _, c := range []struct {
		name, path, body string
		status           int
		class, message   string
	}{
		{"input", "/f", `{"fail":"InputError"}`, 422, "InputError", "as asked"},
		{"function", "/f", `{"fail":"FunctionError"}`, 502, "FunctionError", "as asked"},
		{"system", "/f", `{"fail":"SystemError"}`, 500, "SystemError", "as asked"},
		{"timeout", "/short", `{"hang":true}`, 504, "FunctionError", "Function execution exceeded the timeout"},
		{"timeout of a kind that does not say it", "/short", `{"wait":true}`, 504, "FunctionError", "no answer within the timeout of 50ms"},
		{"schema-in", "/strict", `{}`, 422, "InputError", "Input invalid against schema: "},
		{"schema-out", "/strict", `{"name":1}`, 502, "FunctionError", "Output invalid against schema: "},
	} {
		a := r.ask("POST", c.path, c.body, "Content-Type", "application/json")
		if a.status != c.status || a.of("type") != c.class || !strings.HasPrefix(fmt.Sprint(a.of("message")), c.message) {
			t.Errorf("%s: %v", c.name, a)
		}
		if trace, _ := a.of("stacktrace").([]any); c.message == "as asked" && len(trace) != 2 {
			t.Errorf("%s: no stack trace: %s", c.name, a.body)
		}
	}
	if a := r.ask("POST", "/short", "{}"); a.status != 200 { // the next call works
		t.Errorf("after a timeout: %v", a)
	}
	// Each is a run, none is repeated or a dead letter.
	r.until("the runs", func() bool {
		runs, err := jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{Sensor: "_endpoint", Status: jobs.StatusFailed})
		return err == nil && len(runs) == 7
	})
	if info, err := r.bus.DeadLetters().Info(t.Context()); err != nil || info.Records != 0 {
		t.Errorf("%d dead letters, %v", info.Records, err)
	}
	if n := d.count(); n != 7 {
		t.Errorf("%d calls, want 7", n)
	}
}

// What clients are told of a failure, now and at the address of its run.
func TestEndpointErrorsTold(t *testing.T) {
	r, _ := serve(t, endpoint("plain", "path: /plain, function: debug"), endpoint("full", "path: /full, function: debug, errors: full"),
		endpoint("class", `path: /class, function: debug, errors: class, response: {status: "${ output.code }"}`),
		endpoint("later", "path: /later, function: once, async: true"), endpoint("hidden", "path: /hidden, function: once, async: true, errors: class"),
		head+"kind: Function\nmetadata: {name: once}\nspec: {debug: {}, retry: {attempts: 1}}\n---\n")
	ask := func(path, class string) answer {
		return r.ask("POST", path, fmt.Sprintf(`{"fail":%q}`, class), "Content-Type", "application/json")
	}
	for _, c := range []struct{ path, class, want string }{
		{"/plain", "FunctionError", `{"type":"FunctionError","message":"as asked","stacktrace":null}`},
		{"/full", "FunctionError", `{"type":"FunctionError","message":"as asked","stacktrace":["line 1","line 2"]}`},
		{"/class", "FunctionError", `{"type":"FunctionError","message":"the function failed","stacktrace":null}`},
		{"/class", "SystemError", `{"type":"SystemError","message":"the function could not be called","stacktrace":null}`},
		{"/class", "InputError", `{"type":"InputError","message":"as asked","stacktrace":null}`},
		{"/class", "", `{"type":"FunctionError","message":"the function failed","stacktrace":null}`}, // the response cannot be made
	} {
		a := ask(c.path, c.class)
		if strings.TrimSpace(a.body) != c.want {
			t.Errorf("%s, %s: %s, want %s", c.path, c.class, a.body, c.want)
		}
		// All of it is in its run.
		id := a.header.Get("Engine-Run")
		r.until("run "+id+" of "+c.path, func() bool {
			runs, err := jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{ID: id})
			return err == nil && len(runs) == 1 && (c.class == "" || strings.Contains(string(runs[0].JSON), "line 2"))
		})
	}
	for path, want := range map[string]string{"/later": `"message":"as asked","stacktrace":null`, "/hidden": `"message":"the function failed","stacktrace":null`} {
		where := ask(path, "FunctionError").header.Get("Location")
		r.until("the run of "+path, func() bool {
			a := r.ask("GET", where, "")
			return a.status == 200 && strings.Contains(a.body, want)
		})
	}
}

func TestEndpointAnswer(t *testing.T) {
	r, _ := serve(t, endpoint("f", "path: /f, function: debug"),
		endpoint("mapped", `path: "/mapped/{id}", methods: [POST, GET], function: debug,
  input: {give: "${ data.give ?? request.params.id }"},
  response: {status: "${ output == 'new' ? 201 : 200 }", headers: {X-Id: "${ request.params.id }", X-None: "", Content-Type: "${ output == 'html' ? 'text/html' : '' }"}, body: "${ {got: output} }"}`),
		endpoint("text", `path: /text, function: debug, response: {body: "got ${ output.a }"}`),
		endpoint("code", `path: /code, function: debug, response: {status: "${ output.code }", headers: {X-A: "${ output.a ?? '' }"}}`))
	post := func(path, body string) answer { return r.ask("POST", path, body, "Content-Type", "application/json") }
	for _, c := range []struct {
		path, body  string
		status      int
		contentType string
		want        string
	}{
		{"/f", `{"give":{"a":"<1>","n":12345678901234567890}}`, 200, "application/json", `{"a":"<1>","n":12345678901234567890}`},
		{"/f", `{"give":null}`, 200, "", ""},
		{"/f", `{"give":""}`, 200, "", ""},
		{"/f", `{"give":0}`, 200, "application/json", "0"},
		{"/f", `{"type":"text/html; charset=utf-8","raw":"<p>"}`, 200, "text/html; charset=utf-8", "<p>"},
		{"/f", `{"type":"application/json","raw":"no json"}`, 200, "application/octet-stream", "no json"},
		{"/mapped/7", `{"give":"new"}`, 201, "application/json", `{"got":"new"}`},
		{"/mapped/7", `{}`, 200, "application/json", `{"got":"7"}`},
		{"/mapped/7", `{"give":"html"}`, 200, "text/html", `{"got":"html"}`},
		{"/text", `{"give":{"a":1}}`, 200, "text/plain; charset=utf-8", "got 1"},
		{"/text", `{"give":{"b":1}}`, 502, "application/json", "the answer cannot be made of the output: spec.response.body: missing `output.a`"},
		{"/code", `{"give":{"code":404}}`, 404, "application/json", `{"code":404}`},
		{"/code", `{"give":{"code":99}}`, 502, "application/json", "status is 99, which is no HTTP status"},
		{"/code", `{"give":{"code":"ok"}}`, 502, "application/json", `status is \"ok\", which is no HTTP status`},
		{"/code", `{"give":{"code":200,"a":"x\r\nSet-Cookie: y"}}`, 502, "application/json", "the header X-A would have a control character in it"},
	} {
		a := post(c.path, c.body)
		if a.status != c.status || a.header.Get("Content-Type") != c.contentType || (c.status == 502 && !strings.Contains(a.body, c.want)) || c.status != 502 && a.body != c.want {
			t.Errorf("%s %s: %v, want %d %s %s", c.path, c.body, a, c.status, c.contentType, c.want)
		}
		if a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: browsers may guess the type", c.path)
		}
	}
	a := r.ask("GET", "/mapped/7?give=x", "")
	if _, has := a.header["X-None"]; a.header.Get("X-Id") != "7" || has || a.body != `{"got":"x"}` {
		t.Errorf("mapped: %v", a)
	}
}

func TestEndpointInputTemplateMisses(t *testing.T) {
	r, d := serve(t, endpoint("f", `path: /f, function: debug, input: {name: "${ data.name + '' }", host: "${ request.headers.host }"}`))
	a := r.ask("POST", "/f", `{}`, "Content-Type", "application/json")
	if a.status != 400 || a.of("type") != "InputError" || !strings.Contains(a.body, "missing `data.name`") || d.count() != 0 {
		t.Errorf("%v after %d calls", a, d.count())
	}
	if a := r.ask("POST", "/f", `{"name":"Jon"}`, "Content-Type", "application/json"); a.of("params", "name") != "Jon" || a.of("params", "host") != r.e.Addr() {
		t.Errorf("%v", a)
	}
}

func TestEndpointAuth(t *testing.T) {
	t.Setenv("TOKEN", "s3cret")
	t.Setenv("ACME", "acme-key")
	r, d := serve(t, head+"kind: Secret\nmetadata: {name: keys}\nspec: {env: {token: TOKEN, acme: ACME}}\n---\n",
		endpoint("bearer", "path: /bearer, function: debug, auth: {bearer: {name: keys, key: token}}"),
		endpoint("basic", "path: /basic, function: debug, auth: {basic: {username: jon, password: {name: keys, key: token}}}"),
		endpoint("hmac", "path: /hmac, function: debug, auth: {hmac: {header: X-Signature, secret: {name: keys, key: token}}}"),
		endpoint("keys", "path: /keys, function: debug, async: false, auth: {apiKeys: {header: X-Partner, secret: keys}}"),
		head+"kind: Secret\nmetadata: {name: more}\nspec: {files: {token: token.txt}}\n---\n")
	mac := hmac.New(sha256.New, []byte("s3cret"))
	mac.Write([]byte("{}"))
	for _, c := range []struct {
		path   string
		header []string
		status int
		client any
	}{
		{"/bearer", []string{"Authorization", "Bearer s3cret"}, 200, nil},
		{"/bearer", []string{"Authorization", "Bearer no"}, 401, nil},
		{"/bearer", nil, 401, nil},
		{"/basic", []string{"Authorization", "Basic am9uOnMzY3JldA=="}, 200, "jon"},
		{"/basic", []string{"Authorization", "Basic am9uOm5v"}, 401, nil},
		{"/hmac", []string{"X-Signature", hex.EncodeToString(mac.Sum(nil))}, 200, nil},
		{"/hmac", []string{"X-Signature", "00"}, 401, nil},
		{"/keys", []string{"X-Partner", "acme-key"}, 200, "acme"},
		{"/keys", []string{"X-Partner", "s3cret"}, 200, "token"},
		{"/keys", []string{"X-Partner", "no"}, 401, nil},
		{"/keys", []string{"Authorization", "Bearer acme-key"}, 401, nil},
	} {
		calls := d.count()
		a := r.ask("POST", c.path, "{}", append(c.header, "Content-Type", "application/json")...)
		if a.status != c.status || a.of("context", "httpContext", "client") != c.client || d.count()-calls != map[int]int{200: 1}[c.status] {
			t.Errorf("%s %v: %v", c.path, c.header, a)
		}
		if strings.Contains(a.body, "s3cret") || strings.Contains(a.body, "acme-key") {
			t.Errorf("%s: the answer has a credential: %s", c.path, a.body)
		}
		if (c.status == 401) != (a.header.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %v", c.path, a.header)
		}
	}
	// Without its secret an endpoint is not served, rather than open.
	r.write("more.yaml", endpoint("missing", "path: /missing, function: debug, auth: {bearer: {name: more, key: token}}"))
	if _, err := r.e.Reload(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if a := r.ask("POST", "/missing", "{}"); a.status != 404 {
		t.Errorf("an endpoint without its secret: %v", a)
	}
	r.until("the endpoint to be tried again", func() bool {
		ok, why := r.e.Ready(t.Context())
		return !ok && strings.Contains(strings.Join(why, ";"), "endpoint Endpoint/missing is Retrying")
	})
	r.write("token.txt", "now\n")
	r.until("the endpoint with its secret", func() bool {
		return r.ask("POST", "/missing", "{}", "Authorization", "Bearer now").status == 200
	})
}

// Row 42: https-only is not run over HTTP; CORS.
func TestEndpointHTTPSOnlyAndCORS(t *testing.T) {
	r, d := serve(t, endpoint("tls", "path: /tls, function: debug, httpsOnly: true"),
		endpoint("open", "path: /open, methods: [POST], function: debug, cors: true"),
		endpoint("open-get", "path: /open, methods: [GET], function: debug, cors: {any: true, headers: [X-A, X-B], maxAge: 1h}"),
		endpoint("shop", "path: /shop, function: debug, cors: {origins: [https://shop.test], credentials: true}"),
		endpoint("closed", "path: /closed, function: debug"))
	if a := r.ask("POST", "/tls", "{}"); a.status != 400 || a.of("message") != "Please use HTTPS protocol" || d.count() != 0 {
		t.Errorf("over HTTP: %v after %d calls", a, d.count())
	}
	if a := r.ask("POST", "/tls", "{}", "X-Forwarded-Proto", "https"); a.status != 200 {
		t.Errorf("over HTTPS: %v", a)
	}

	for _, c := range []struct {
		name, method, path string
		header             []string
		want               map[string]string
		status             int
	}{
		{
			"preflight", "OPTIONS", "/open",
			[]string{"Origin", "https://a.test", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,x-own"},
			map[string]string{"Origin": "*", "Methods": "POST", "Headers": "content-type,x-own", "Max-Age": "", "Credentials": ""},
			200,
		},
		{
			"preflight of another method", "OPTIONS", "/open",
			[]string{"Origin", "https://a.test", "Access-Control-Request-Method", "GET"},
			map[string]string{"Origin": "*", "Methods": "GET", "Headers": "X-A, X-B", "Max-Age": "3600"},
			200,
		},
		{"plain OPTIONS", "OPTIONS", "/open", nil, map[string]string{"Origin": "*", "Headers": "*"}, 200},
		{"request", "POST", "/open", []string{"Origin", "https://a.test"}, map[string]string{"Origin": "*"}, 200},
		{"failed request", "POST", "/open", []string{"Origin", "https://a.test", "Content-Type", "a/b"}, map[string]string{"Origin": "*"}, 415},
		{
			"named origin", "OPTIONS", "/shop",
			[]string{"Origin", "https://shop.test", "Access-Control-Request-Method", "POST"},
			map[string]string{"Origin": "https://shop.test", "Methods": "POST", "Credentials": "true"},
			200,
		},
		{
			"other origin", "OPTIONS", "/shop",
			[]string{"Origin", "https://evil.test", "Access-Control-Request-Method", "POST"},
			map[string]string{"Origin": "", "Methods": "", "Headers": "", "Credentials": ""},
			200,
		},
		{"request of another origin", "POST", "/shop", []string{"Origin", "https://evil.test"}, map[string]string{"Origin": "", "Credentials": ""}, 200},
		{"none", "OPTIONS", "/closed", []string{"Origin", "https://a.test", "Access-Control-Request-Method", "POST"}, map[string]string{"Origin": ""}, 405},
	} {
		calls := d.count()
		a := r.ask(c.method, c.path, map[string]string{"POST": "{}"}[c.method], c.header...)
		if a.status != c.status {
			t.Errorf("%s: %v, want %d", c.name, a, c.status)
		}
		for name, want := range c.want {
			full := "Access-Control-Allow-" + name
			if name == "Max-Age" {
				full = "Access-Control-Max-Age"
			}
			if got := a.header.Get(full); got != want {
				t.Errorf("%s: %s is %q, want %q", c.name, full, got, want)
			}
		}
		if c.method == "OPTIONS" && (d.count() != calls || a.status == 200 && a.body != "") {
			t.Errorf("%s: %d calls, body %q", c.name, d.count()-calls, a.body)
		}
	}
}

// Row 41: paths as they are, hosts, disabled ones, and a changed path.
func TestEndpointRoutes(t *testing.T) {
	r, _ := serve(t, endpoint("all", "path: /hello, function: debug"), endpoint("host", "path: /hello, hosts: [api.test], function: v2"),
		endpoint("off", "path: /off, function: debug, enabled: false"),
		endpoint("rest", `path: "/files/{path...}", methods: [GET], function: debug`),
		head+"kind: Function\nmetadata: {name: v2}\nspec: {debug: {version: v2}}\n---\n")
	if a := r.ask("POST", "/hello", ""); a.of("version") != "" {
		t.Errorf("any host: %v", a)
	}
	if a := r.ask("POST", "/hello", "", "Host", "API.test:8080"); a.of("version") != "v2" {
		t.Errorf("its host: %v", a)
	}
	for path, want := range map[string]int{"/off": 404, "/hello/": 404, "/nothing": 404, "/dispatch/hello": 404} {
		if a := r.ask("POST", path, ""); a.status != want {
			t.Errorf("%s: %v, want %d", path, a, want)
		}
	}
	if a := r.ask("GET", "/hello", ""); a.status != 405 || a.header.Get("Allow") != "POST" {
		t.Errorf("another method: %v", a)
	}
	if a := r.ask("GET", "/files/a/b%20c", ""); a.of("context", "httpContext", "params", "path") != "a/b c" {
		t.Errorf("rest: %v", a)
	}
	if ok, why := r.e.Ready(t.Context()); !ok {
		t.Errorf("not ready: %v", why)
	}
}

// A change of the path, of the function and of other things leaves no gap.
func TestEndpointReloadsWithoutAGap(t *testing.T) {
	r, _ := serve(t, endpoint("f", "path: /f, function: debug"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if a := r.ask("POST", "/f", "{}"); a.status != 200 {
					t.Errorf("while it is reloaded: %v", a)
					return
				}
			}
		})
	}
	for i := range 20 {
		r.write("f.yaml", strings.Replace(debugFunction, "debug: {}", fmt.Sprintf("debug: {version: v%d}", i), 1)+endpoint("f", fmt.Sprintf("path: /f, function: debug, maxInFlight: %d", 100+i)))
		if _, err := r.e.Reload(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if a := r.ask("POST", "/f", "{}"); a.of("version") != "v19" {
		t.Errorf("the last function: %v", a)
	}
	r.write("f.yaml", debugFunction+endpoint("f", "path: /g, function: debug"))
	if _, err := r.e.Reload(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if a := r.ask("POST", "/g", "{}"); a.status != 200 {
		t.Errorf("the new path: %v", a)
	}
	if a := r.ask("POST", "/f", "{}"); a.status != 404 {
		t.Errorf("the old path: %v", a)
	}
	// A path that a webhook had.
	r.write("f.yaml", debugFunction+shop("g")+"---\n"+endpoint("f", "path: /h, function: debug"))
	if _, err := r.e.Reload(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	r.until("the webhook", func() bool { return r.ask("POST", "/g", "{}").status == 202 })
	r.write("f.yaml", debugFunction+shop("other")+"---\n"+endpoint("f", "path: /g, function: debug"))
	if _, err := r.e.Reload(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	r.until("the endpoint", func() bool { return r.ask("POST", "/g", "{}").status == 200 })
}

func TestEndpointLimits(t *testing.T) {
	r, d := serve(t, endpoint("few", "path: /few, function: debug, maxInFlight: 2"),
		head+"kind: Function\nmetadata: {name: one}\nspec: {debug: {}, concurrency: 1}\n---\n", endpoint("one", "path: /one, function: one, timeout: 300ms"),
		head+"kind: Function\nmetadata: {name: seldom}\nspec: {log: {message: hi}, rateLimit: {calls: 1, per: 1h}}\n---\n", endpoint("seldom", "path: /seldom, function: seldom"))
	const wait = `{"wait":true}`
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if a := r.ask("POST", "/few", wait, "Content-Type", "application/json"); a.status != 200 {
				t.Errorf("one of those served: %v", a)
			}
		})
	}
	r.until("two calls", func() bool { return d.count() == 2 })
	if a := r.ask("POST", "/few", "{}"); a.status != 429 || a.header.Get("Retry-After") != "1" {
		t.Errorf("a third request: %v", a)
	}
	// A function without a free slot: who waits for too long is told.
	done := make(chan error, 1)
	go func() {
		_, err := r.e.Call(context.Background(), "one", jobs.Request{Input: json.RawMessage(wait), Timeout: time.Minute})
		done <- err
	}()
	r.until("the third call", func() bool { return d.count() == 3 })
	if a := r.ask("POST", "/one", "{}"); a.status != 503 || a.header.Get("Retry-After") != "1" || a.of("message") != "the function is busy, try again later" {
		t.Errorf("a busy function: %v", a)
	}
	if r.ask("POST", "/seldom", "{}").status != 200 {
		t.Error("the first call of a function with a rate limit")
	}
	if a := r.ask("POST", "/seldom", "{}"); a.status != 503 {
		t.Errorf("one call more than the function's rate limit allows: %v", a)
	}
	// Who goes away while he waits is not called; who goes while the call runs
	// does not end it.
	conn, err := net.Dial("tcp", r.e.Addr())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	conn.Close()
	for range 3 {
		d.gate <- struct{}{}
	}
	wg.Wait()
	if err := <-done; err != nil {
		t.Error(err)
	}
	es := r.endpoint("few")
	if es.Answers[200] != 2 || es.Answers[429] != 1 || es.InFlight != 0 {
		t.Errorf("counters %+v", es)
	}
}

func (r *running) endpoint(name string) engine.EndpointStatus {
	r.t.Helper()
	for _, rs := range r.e.Status(r.t.Context()).Resources {
		if rs.Kind == specs.KindEndpoint && rs.Name == name {
			return *rs.Endpoint
		}
	}
	r.t.Fatalf("there is no endpoint %s", name)
	return engine.EndpointStatus{}
}

// async: a durable job, whose run is asked for at the endpoint, with its auth.
func TestEndpointAsync(t *testing.T) {
	t.Setenv("ACME", "acme-key")
	t.Setenv("OTHER", "other-key")
	r, d := serve(t, head+"kind: Secret\nmetadata: {name: keys}\nspec: {env: {acme: ACME, other: OTHER}}\n---\n",
		endpoint("later", "path: /later, function: debug, async: true, cors: true, auth: {apiKeys: {header: X-Key, secret: keys}}"),
		endpoint("now", "path: /now, function: debug"))
	key := []string{"X-Key", "acme-key", "Content-Type", "application/json"}
	a := r.ask("POST", "/later", `{"wait":true}`, key...)
	where := a.header.Get("Location")
	if a.status != 202 || a.of("status") != "queued" || !strings.HasPrefix(where, "/_runs/later/") || a.of("location") != where || where != "/_runs/later/"+fmt.Sprint(a.of("id")) {
		t.Fatalf("submitted: %v", a)
	}
	r.until("the call", func() bool { return d.count() == 1 })
	r.until("the run to run", func() bool { return r.ask("GET", where, "", key...).of("status") == "running" })
	if a := r.ask("GET", where, "", key...); a.status != 202 || a.header.Get("Retry-After") == "" {
		t.Errorf("while it runs: %v", a)
	}
	if a := r.ask("GET", where, ""); a.status != 401 {
		t.Errorf("without the key: %v", a)
	}
	if a := r.ask("OPTIONS", where, "", "Origin", "https://a.test", "Access-Control-Request-Method", "GET"); a.status != 200 || a.header.Get("Access-Control-Allow-Methods") != "GET" {
		t.Errorf("preflight: %v", a)
	}
	d.gate <- struct{}{}
	r.until("its end", func() bool { return r.ask("GET", where, "", key...).status == 200 })
	done := r.ask("GET", where, "", key...)
	if done.of("status") != "succeeded" || done.of("attempts") != 1.0 || done.of("output", "params", "wait") != true || done.of("output", "context", "httpContext", "client") != "acme" || strings.Contains(done.body, "acme-key") {
		t.Errorf("in the end: %v", done)
	}

	// What fails is repeated, then a dead letter; its client learns that.
	a = r.ask("POST", "/later", `{"fail":"FunctionError"}`, key...)
	r.until("the dead letter", func() bool { return r.ask("GET", a.header.Get("Location"), "", key...).of("status") == "dead" })
	if end := r.ask("GET", a.header.Get("Location"), "", key...); end.status != 200 || end.of("attempts") != 2.0 || end.of("error", "type") != "FunctionError" || end.of("error", "message") != "as asked" {
		t.Errorf("a dead one: %v", end)
	}
	letters, err := r.e.Jobs().DeadLetters(t.Context())
	if err != nil || letters[jobs.TriggerRef{Sensor: "_endpoint", Trigger: "later"}] != 1 {
		t.Errorf("dead letters %v, %v", letters, err)
	}

	// The same request of the same client is one call; of another client two.
	calls := d.count()
	once := append(slices.Clone(key), "Idempotency-Key", "order-7")
	first, second := r.ask("POST", "/later", `{}`, once...), r.ask("POST", "/later", `{}`, once...)
	other := r.ask("POST", "/later", `{}`, "X-Key", "other-key", "Idempotency-Key", "order-7")
	if first.status != 202 || first.of("id") != second.of("id") || first.of("id") == other.of("id") {
		t.Errorf("repeated: %v %v %v", first, second, other)
	}
	r.until("both calls", func() bool { return d.count() == calls+2 })

	// Runs of others are not told.
	for _, path := range []string{"/_runs/later/nobody", "/_runs/later/" + strings.Repeat("A", 24)} {
		if a := r.ask("GET", path, "", key...); a.status != 404 {
			t.Errorf("%s: %v", path, a)
		}
	}
	sub, err := r.e.Submit(t.Context(), "debug", jobs.Request{Input: json.RawMessage("{}")})
	if err != nil {
		t.Fatal(err)
	}
	if a := r.ask("GET", "/_runs/later/"+sub.Key, "", key...); a.status != 404 {
		t.Errorf("a run by hand: %v", a)
	}

	// Row 40: a client of Dispatch that does not wait.
	calls = d.count()
	if a := r.ask("POST", "/now", "{}", "X-Dispatch-Blocking", "false"); a.status != 200 || a.body != "" {
		t.Errorf("x-dispatch-blocking: %v", a)
	}
	r.until("its run", func() bool {
		runs, err := jobs.ReadRuns(t.Context(), r.bus, jobs.RunFilter{Sensor: "_endpoint", Trigger: "now", Status: jobs.StatusSucceeded})
		return err == nil && len(runs) == 1 && d.count() > calls
	})
}

// A submitted call survives a restart, and so does what is known of it.
func TestEndpointAsyncSurvivesARestart(t *testing.T) {
	data := t.TempDir()
	d := &debug{gate: make(chan struct{})}
	cat := catalog()
	cat.Functions = append(slices.Clone(cat.Functions), d.factory())
	dir := written(t, "f.yaml", debugFunction+endpoint("later", "path: /later, function: debug, async: true"))
	up := func() *running {
		r := launch(t, cat, dir, data, func(o *engine.Options) { o.Grace = 100 * time.Millisecond })
		r.until("the engine to be ready", func() bool { ok, _ := r.e.Ready(t.Context()); return ok })
		return r
	}
	r := up()
	done := r.ask("POST", "/later", `{"give":"done"}`, "Content-Type", "application/json").header.Get("Location")
	r.until("the first run", func() bool { return r.ask("GET", done, "").status == 200 })
	waiting := r.ask("POST", "/later", `{"wait":true}`, "Content-Type", "application/json").header.Get("Location")
	r.until("the second call", func() bool { return d.count() == 2 })
	r.stop() // in mid-call

	r = up()
	r.until("the call to be made again", func() bool { return d.count() == 3 })
	if a := r.ask("GET", done, ""); a.status != 200 || a.of("output") != "done" {
		t.Errorf("what had ended: %v", a)
	}
	if a := r.ask("GET", waiting, ""); a.status != 202 {
		t.Errorf("what had not: %v", a)
	}
	d.gate <- struct{}{}
	r.until("the end of the second", func() bool { return r.ask("GET", waiting, "").status == 200 })
}

func TestEndpointDiagnostics(t *testing.T) {
	dir := written(t, "s.yaml", shop("orders")+"---\n"+head+"kind: Function\nmetadata: {name: f}\nspec: {log: {}}\n---\n"+
		endpoint("a", "path: /orders, function: f")+
		endpoint("b", "path: /b, function: f")+
		endpoint("c", `path: "/{any}", methods: [GET], function: f`)+
		endpoint("d", `path: "/{any}", methods: [GET], hosts: [d.test], function: f`)+
		endpoint("e", `path: /b, methods: [PUT, POST], function: f`)+
		endpoint("g", `path: g, function: f, secrets: [s], input: "${ dat.x }", response: {body: "${ output.a + }", headers: {X-A: "${ nothing }"}}`)+
		endpoint("h", `path: "/_runs/i/{x}", methods: [GET], function: f`)+
		endpoint("i", `path: /i, function: f, async: true`)+
		endpoint("j", `path: /i, function: f, enabled: false`)+
		head+"kind: Secret\nmetadata: {name: s}\nspec: {env: {k: K}}\n")
	loaded, err := catalog().Loader().Load(t.Context(), dir)
	if err != nil || loaded.Diagnostics.HasErrors() {
		t.Fatal(err, loaded.Diagnostics)
	}
	var got []string
	for _, diag := range engine.NewCompiler(catalog()).Check(loaded.Set()) {
		got = append(got, strings.ReplaceAll(diag.String(), dir+"/", ""))
	}
	want := []string{
		"s.yaml:16:14: error[route-conflict] spec.path: its route /orders meets the route /orders of EventSource/shop, event orders, at s.yaml:6:5 (give one of them another path or other methods)",
		"s.yaml:36:14: error[route-conflict] spec.path: its route /b meets the route /b of Endpoint/b, at s.yaml:21:14 (give one of them another path or other methods)",
		"s.yaml:41:14: error[invalid-value] spec.path: path \"g\" does not begin with / (write it as /hello, /hello/{name} or /files/{path...})",
		"s.yaml:41:39: error[invalid-value] spec.secrets: functions of kind log are not handed secrets by name (write {secret: {name, key}} where a value belongs)",
		"s.yaml:41:55: error[expr-unknown-name] spec.input: unknown name dat (did you mean data?)",
		"s.yaml:41:96: error[expr-syntax] spec.response.body: the expression ends too early",
		"s.yaml:41:120: error[expr-unknown-name] spec.response.headers.X-A: unknown name nothing (the payload is `data`: write data.nothing)",
		"s.yaml:51:14: error[route-conflict] spec.path: its route /_runs/i/{run} meets the route /_runs/i/{x} of Endpoint/h, at s.yaml:46:14 (give one of them another path or other methods)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The status tells of endpoints, and of calls by hand.
func TestEndpointStatus(t *testing.T) {
	r, _ := serve(t, endpoint("f", "path: /f, methods: [GET, POST], function: debug"))
	for range 3 {
		r.ask("GET", "/f", "")
	}
	r.ask("POST", "/f", "{", "Content-Type", "application/json")
	es := r.endpoint("f")
	want := map[int]uint64{200: 3, 400: 1}
	if es.State != engine.UnitRunning || es.Detail != "listening on /f" || es.Auth != "none" || !slices.Equal(es.Methods, []string{"GET", "POST"}) || !maps.Equal(es.Answers, want) {
		t.Errorf("status %+v", es)
	}
}

// BenchmarkEndpoint is a request through an endpoint to an HTTP function next
// to the same request to the function itself.
func BenchmarkEndpoint(b *testing.B) {
	fn := newBenchServer(b)
	dir := written(b, "f.yaml", head+"kind: Function\nmetadata: {name: f}\nspec: {http: {url: \""+fn+"\"}}\n---\n"+endpoint("f", "path: /f, function: f"))
	r := start(b, dir, b.TempDir())
	for _, c := range []struct{ name, addr string }{{"direct", strings.TrimPrefix(fn, "http://")}, {"endpoint", r.e.Addr()}} {
		b.Run(c.name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				r, err := newRequester(c.addr)
				if err != nil {
					b.Error(err)
					return
				}
				defer r.Close()
				for pb.Next() {
					if err := r.post(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// newBenchServer is an HTTP function that answers with what it got.
func newBenchServer(b *testing.B) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(ln) }()
	b.Cleanup(func() { _ = s.Close() })
	return "http://" + ln.Addr().String()
}
