package http

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/triggers/triggertest"
)

func TestContract(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
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
	url := func(path string) string {
		return "url: http://user:canary-password@" + authority + path + "?q=${ data.id }\nheaders: {Authorization: {secret: {name: a, key: b}, prefix: 'Bearer '}, X-Type: '${ type }'}"
	}
	triggertest.Run(t, triggertest.Suite{
		Factory: Factory(),
		OK:      url("/ok"), Slow: url("/slow"), Permanent: url("/404"), Retryable: url("/503"),
		Secrets: map[string]string{"a/b": "canary-token", "password/of-the-url": "canary-password"},
	})
}

func TestValidate(t *testing.T) {
	for config, want := range map[string]string{
		"url: ftp://a/b":                                    "test.yaml:6:10: error[invalid-value] spec.http.url: url must begin with http:// or https:// (for example https://example.com/hook)",
		"url: http:///b":                                    "test.yaml:6:10: error[invalid-value] spec.http.url: url has no host (for example https://example.com/hook)",
		"url: \"http://u:hidden@h:x/\"":                     "test.yaml:6:10: error[invalid-value] spec.http.url: url is not a valid URL (for example https://example.com/hook)",
		"url: ${ data.url }\nmethod: put":                   "unknown-value",
		"url: http://a\nheaders: {'a b': c}":                "is no header name",
		"url: http://a\nheaders: {content-length: '1'}":     "set by the connection itself",
		"url: http://a\nheaders: {X-A: b, x-a: c}":          "given twice",
		"url: http://a\nheaders: {X-A: \"a\\nb\"}":          "control characters",
		"url: http://a\ntls: {cert: a.pem}":                 "needs cert and key",
		"method: GET":                                       "missing-key",
		"url: {secret: {name: a, key: b}}":                  "",
		"url: https://${ data.host }/x\nheaders: {Host: a}": "",
	} {
		got := strings.Join(triggertest.Diagnostics(Factory(), config), "\n")
		if !strings.Contains(got, want) || (want == "") != (got == "") || strings.Contains(got, "hidden") {
			t.Errorf("%s\n got %s\nwant %s", config, got, want)
		}
	}
}
