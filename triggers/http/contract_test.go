package http

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

func TestContract(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/echo" {
			w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
			_, _ = io.Copy(w, r.Body)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/key":
			_, _ = io.WriteString(w, r.Header.Get("Idempotency-Key"))
		case "/length":
			_, _ = fmt.Fprint(w, n)
		case "/huge":
			_, _ = io.CopyN(w, zeros{}, 64<<20) // fails when nobody reads it
		case "/slow":
			<-r.Context().Done()
		case "/404":
			w.WriteHeader(http.StatusNotFound)
		case "/503":
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	authority := strings.TrimPrefix(srv.URL, "http://")
	at := func(authority, path string) string {
		return "url: http://user:canary-password@" + authority + path + "?q=${ data.id }\nheaders: {Authorization: {secret: {name: a, key: b}, prefix: 'Bearer '}, X-Type: '${ type }'}"
	}
	url := func(path string) string { return at(authority, path) }
	triggertest.Run(t, triggertest.Suite{
		Factory: Factory(),
		OK:      url("/ok"), Slow: url("/slow"), Permanent: url("/404"), Retryable: url("/503"),
		Key: url("/key"), Length: url("/length"), Huge: url("/huge"), Text: url("/echo"),
		Addr: authority, Server: func(addr string) string { return at(addr, "/ok") },
		Secrets: map[string]string{"a/b": "canary-token", "password/of-the-url": "canary-password"},
	})
}

// zeros is an endless answer.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestValidate(t *testing.T) {
	triggertest.Validate(t, Factory(), map[string]string{
		"url: ftp://a/b":                                                                     "test.yaml:6:10: error[invalid-value] spec.http.url: url must begin with http:// or https:// (for example https://example.com/hook)",
		"url: http:///b":                                                                     "test.yaml:6:10: error[invalid-value] spec.http.url: url has no host (for example https://example.com/hook)",
		"url: \"http://u:hidden@h:x/\"":                                                      "test.yaml:6:10: error[invalid-value] spec.http.url: url is not a valid URL (for example https://example.com/hook)",
		"url: ${ data.url }\nmethod: put":                                                    "unknown-value",
		"url: http://a\nheaders: {'a b': c}":                                                 "is no header name",
		"url: http://a\nheaders: {content-length: '1'}":                                      "set by the connection itself",
		"url: http://a\nheaders: {X-A: b, x-a: c}":                                           "given twice",
		"url: http://a\nheaders: {X-A: \"a\\nb\"}":                                           "control characters",
		"url: http://a\ntls: {cert: a.pem}":                                                  "needs cert and key",
		"url: http://a\ntls: {ca: '${ data.x }'}":                                            "ca has no templates",
		"url: http://a\nallow: [10.0.0.0/8]":                                                 "no expression decides about the host of url",
		"url: http://${ data.h }\nallow: [10.0.0.0/8, 'a b']":                                "spec.http.allow[1]: \"a b\" is no address, network or name of a host",
		"url: http://${ data.h }\nallow: ['*.internal', fd00::/8]":                           "",
		"url: http://a\nsuccess: status == 200 && body.ok\nretryable: status >= 500":         "",
		"url: http://a\nsuccess: body.ok &&":                                                 "spec.http.success",
		"url: http://a\nsuccess: data.ok":                                                    "test.yaml:7:14: error[expr-unknown-name] spec.http.success: unknown name data (the names are body, headers, status)",
		"url: http://a\nretryable: status":                                                   "spec.http.retryable",
		"url: http://a\ncloudevents: batch":                                                  "unknown-value",
		"url: http://a\noauth2: {tokenUrl: https://b, clientId: c}":                          "missing-key",
		"url: http://a\noauth2: {tokenUrl: b, clientId: c, clientSecret: {name: d, key: e}}": "this is no URL of a token server",
		"url: http://a\noauth2: {tokenUrl: https://b, clientId: '${ data.c }', clientSecret: {name: d, key: e}}":                  "clientId has no templates",
		"url: http://a\nheaders: {authorization: x}\noauth2: {tokenUrl: https://b, clientId: c, clientSecret: {name: d, key: e}}": "spec.http.headers.authorization: oauth2 sets this header",
		"url: http://a\noauth2: {tokenUrl: https://b, clientId: c, clientSecret: {name: d, key: e}, scopes: [f]}":                 "",
		"method: GET":                                       "missing-key",
		"url: {secret: {name: a, key: b}}":                  "",
		"url: https://${ data.host }/x\nheaders: {Host: a}": "",
	})
}

// TestURLsAreNotRepeated: one that cannot be read may have a password in it.
func TestURLsAreNotRepeated(t *testing.T) {
	if got := strings.Join(triggertest.Diagnostics(Factory(), "url: \"http://u:hidden@h:x/\""), "\n"); got == "" || strings.Contains(got, "hidden") {
		t.Error(got)
	}
}

func TestCheck(t *testing.T) {
	for config, want := range map[string]string{
		"url: https://a\ntls: {ca: absent.pem}":                  "error[unreadable] tls.ca: absent.pem: no such file or directory",
		"url: https://a\ntls: {ca: http.go}":                     "error[invalid-value] tls.ca: http.go holds no PEM certificate",
		"url: https://a\ntls: {cert: http.go, key: pool.go}":     "error[invalid-value] tls.cert: cert and key: tls: failed to find any PEM data",
		"url: https://a\ntls: {ca: {secret: {name: a, key: b}}}": "",
		"url: https://a": "",
	} {
		ck := specs.NewChecker(specs.Ref{}, "", nil)
		Factory().Check(triggertest.Config(t, Factory(), config), ".", ck)
		got := ""
		for _, d := range ck.Found() {
			got += d.String()
		}
		if !strings.Contains(strings.ReplaceAll(got, " .tls", " tls"), want) || (want == "") != (got == "") {
			t.Errorf("%s: %s, want %s", config, got, want)
		}
	}
}
