package endpoints

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sensor-engine/engine/specs"
)

// FuzzRequest maps anything: the result is JSON in UTF-8, or a refusal that is
// the client's fault; what functions are told of the request is JSON, too.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "a=1&b=x&a=2", "", "")
	f.Add("POST", "q=1", "application/json; charset=utf-8", `{"a": [1, "x"]}`)
	f.Add("PUT", "%zz", "application/x-www-form-urlencoded", "a=%C3%A4&b")
	f.Add("POST", "", "multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"a\"; filename=\"f\"\r\n\r\nx\r\n--b--\r\n")
	f.Add("POST", "a=%ff", "text/plain", "\xff")
	f.Add("DELETE", "", "a/b/c", "\x00")
	h := &handler{endpoint: &endpoint{spec: &specs.Endpoint{Function: "f"}, params: []string{"p"}}}
	f.Fuzz(func(t *testing.T, method, query, contentType, body string) {
		r := httptest.NewRequest(http.MethodPost, "/x", strings.NewReader(body))
		r.Method, r.URL.RawQuery = method, query
		r.Header["Content-Type"] = []string{contentType}
		r.Header["X-\xff"] = []string{body}
		r.SetPathValue("p", query)
		data, ref := payload(r, []byte(body))
		switch {
		case ref != nil && ref.Status != http.StatusBadRequest && ref.Status != http.StatusUnsupportedMediaType:
			t.Errorf("refused with %d", ref.Status)
		case ref != nil && !utf8.ValidString(ref.Text):
			t.Errorf("refused with %q", ref.Text)
		case ref == nil && (!json.Valid(data) || !utf8.Valid(data)):
			t.Errorf("mapped to %q", data)
		}
		var told map[string]any
		if err := json.Unmarshal(h.httpContext(r, query), &told); err != nil || told["upstream_uri"] != "f" || told["method"] == nil {
			t.Errorf("httpContext %v, %v", told, err)
		}
	})
}

// What the engine says of a request is not what a header of the same name says.
func TestHeadersDoNotPassForTheRequest(t *testing.T) {
	h := &handler{endpoint: &endpoint{spec: &specs.Endpoint{Function: "f"}}}
	r := httptest.NewRequest(http.MethodGet, "/real", nil)
	for _, name := range []string{"Method", "Path", "Params", "Query", "Headers", "Uri", "Args", "Request", "Request-Uri", "Request_uri", "Scheme", "Server-Protocol", "Upstream-Uri", "Client"} {
		r.Header[name] = []string{"evil"}
	}
	var order []string
	dec := json.NewDecoder(strings.NewReader(string(h.httpContext(r, "me"))))
	depth := 0
	for key := true; ; {
		tok, err := dec.Token()
		if err != nil {
			break
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
			key = true
			continue
		case json.Delim('}'), json.Delim(']'):
			depth--
			key = true
			continue
		}
		if depth == 1 {
			if key {
				order = append(order, tok.(string))
			} else if tok == "evil" {
				t.Errorf("%s is what a header says", order[len(order)-1])
			}
			key = !key
		}
	}
	slices.Sort(order)
	if all := slices.Clone(order); len(slices.Compact(order)) != len(all) {
		t.Errorf("a name is there twice: %v", all)
	}
}
