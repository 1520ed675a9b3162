package http

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

func expr(s string) specs.Expr { return specs.Expr{Source: s} }

func TestSuccess(t *testing.T) { paths(t, testSuccess) }

func testSuccess(t *testing.T, newTest maker) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		q := r.URL.Query()
		w.Header().Set("Content-Type", "application/json")
		if typ := q.Get("type"); typ != "" {
			w.Header().Set("Content-Type", typ)
		}
		w.Header()["X-Two"] = []string{"a", "b"}
		if after := q.Get("after"); after != "" {
			w.Header().Set("Retry-After", after)
		}
		code, err := strconv.Atoi(q.Get("code"))
		if err != nil {
			code = 200
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, q.Get("body"))
	}))
	defer srv.Close()
	for _, tc := range []struct {
		query, success, retryable string
		want                      string // ok, permanent, retry or after …
		text                      string
	}{
		{`body={"ok":true}`, "body.ok", "", "ok", ""},
		{`body={"ok":false}`, "body.ok", "", "retry", "answered 200 OK, which is no success: body.ok is false"},
		{`body={}`, "body.ok", "", "retry", "which is no success: missing `body.ok`"},
		{`body={"id":1234567890123456789}`, "body.id == 1234567890123456789", "", "ok", ""},
		{`body={"ok":true}&code=500`, "body.ok", "", "ok", ""},
		{`body={"ok":false}&code=500`, "body.ok", "", "retry", "500 Internal"},
		{`code=404`, "status == 404 || status < 300", "", "ok", ""},
		{`code=400`, "status == 404 || status < 300", "", "permanent", "answered 400 Bad Request, which is no success"},
		{`code=302`, "status < 300", "", "permanent", "302 Found"},
		{`body=done&type=text/plain`, `body == "done"`, "", "ok", ""},
		{`body=done&type=application/json`, `body == "done"`, "", "ok", ""},
		{`type=text/plain`, `body == nil`, "", "ok", ""},
		{`body=%ff`, `body == nil`, "", "ok", ""},
		{``, `headers["content-type"] == "application/json" && headers["x-two"] == ["a", "b"]`, "", "ok", ""},
		{``, `headers["x-none"] == nil`, "", "ok", ""},
		{`code=409`, "", "status == 409", "retry", "answered 409 Conflict"},
		{`code=404`, "", "status == 409", "permanent", "answered 404"},
		{`code=500`, "", "status == 409", "permanent", "answered 500"},
		{`code=503&after=7`, "", "status == 503", "after 7s", "answered 503"},
		{`code=409&after=7`, "", "status == 409", "after 7s", "answered 409"},
		{`code=200`, "", "status == 409", "ok", ""},
		{`body={"again":false}`, "body.ok ?? false", "body.again", "permanent", "which is no success"},
		{`body={"again":true}&after=9`, "body.ok ?? false", "body.again", "after 9s", "which is no success"},
		{`body={}`, "false", "body.again", "permanent", "which is no success: false is false"},
	} {
		f := newTest(t, &Config{URL: secret(), Success: expr(tc.success), Retryable: expr(tc.retryable)}, 1)
		res, err := f.Invoke(t.Context(), &triggers.Call{Event: event(), Values: fixed{value: srv.URL + "/?" + tc.query}})
		got := "ok"
		if err != nil {
			got = sort(err)
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%+v: %v", tc, err)
			}
		}
		if got != tc.want || res.Status == "" {
			t.Errorf("%+v: %s (%v)", tc, got, err)
		}
	}
}

// TestSuccessOfHugeAnswer: an answer that is not kept in full is not judged by
// a part of it.
func TestSuccessOfHugeAnswer(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`"` + strings.Repeat("x", triggers.MaxOutput+10) + `"`))
	}))
	defer srv.Close()
	f := newTest(t, &Config{URL: text(srv.URL), Success: expr("body != nil")}, 1)
	if res, err := f.Invoke(t.Context(), &triggers.Call{Event: event()}); err == nil || !res.Truncated {
		t.Error(res.Truncated, err)
	}
}

func TestStructured(t *testing.T) { paths(t, testStructured) }

func testStructured(t *testing.T, newTest maker) {
	type seen struct {
		typ, id string
		body    string
	}
	got := make(chan seen, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- seen{r.Header.Get("Content-Type"), r.Header.Get("Ce-Id"), string(b)}
	}))
	defer srv.Close()
	call := func(c *triggers.Call, method string) seen {
		t.Helper()
		f := newTest(t, &Config{URL: text(srv.URL), CloudEvents: modeStructured, Method: method}, 1)
		if _, err := f.Invoke(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		return <-got
	}
	s := call(&triggers.Call{Event: event()}, "")
	var e struct {
		ID   string
		Time time.Time
		Data json.RawMessage
	}
	if err := json.Unmarshal([]byte(s.body), &e); err != nil || s.typ != "application/cloudevents+json" || s.id != "" || e.ID != "id 1" || string(e.Data) != `{"id":1234567890123456789}` {
		t.Errorf("%+v, %v", s, err)
	}
	if s := call(&triggers.Call{Event: event(), Input: "x", HasInput: true}, ""); s != (seen{"application/json", "", `"x"`}) {
		t.Errorf("%+v", s)
	}
	if s := call(&triggers.Call{Event: event()}, http.MethodGet); s.id != "id%201" || s.body != "" {
		t.Errorf("%+v", s)
	}
	if s := call(&triggers.Call{}, ""); s != (seen{}) {
		t.Errorf("%+v", s)
	}
}
