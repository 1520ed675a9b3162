package webhook

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/ingress"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config returns a config with the defaults and changes applied.
func config(change func(*Config)) *Config {
	c := Factory().New().(*Config)
	c.Path = "/in"
	if change != nil {
		change(c)
	}
	return c
}

// start runs a webhook and returns its host.
func start(t testing.TB, c *Config, prepare func(*sourcetest.Host)) *sourcetest.Host {
	t.Helper()
	s, err := Factory().Make(c, sources.Env{Resource: func(specs.Ref) *specs.Resource {
		return &specs.Resource{Spec: &specs.Secret{Env: map[string]string{"token": "A"}, Files: map[string]string{"partner": "b"}}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := sourcetest.NewHost(t, DefaultType)
	h.Secrets = map[string]string{"shop/token": "s3cret", "shop/partner": "t0ken"}
	if prepare != nil {
		prepare(h)
	}
	h.Start(s)
	return h
}

func post(h http.Handler, body string, headers ...string) *httptest.ResponseRecorder {
	return do(h, http.MethodPost, "/in", strings.NewReader(body), headers...)
}

func do(h http.Handler, method, target string, body io.Reader, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, body)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// only returns the one event stored, whose id the answer names.
func only(t *testing.T, h *sourcetest.Host, w *httptest.ResponseRecorder) *bus.Event {
	t.Helper()
	if w.Code != http.StatusAccepted {
		t.Fatalf("answer %d %s, want 202", w.Code, w.Body)
	}
	evs := h.Events()
	if len(evs) != 1 {
		t.Fatalf("%d events stored, want 1", len(evs))
	}
	var answer struct{ ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.ID != evs[0].ID {
		t.Fatalf("answer %s does not name the id %q (%v)", w.Body, evs[0].ID, err)
	}
	return evs[0]
}

func refused(t *testing.T, h *sourcetest.Host, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	var answer struct{ Error string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Error == "" {
		t.Errorf("answer %s has no error text (%v)", w.Body, err)
	}
	if w.Code != status {
		t.Errorf("answer %d %s, want %d", w.Code, w.Body, status)
	}
	if n := len(h.Events()); n != 0 {
		t.Errorf("%d events stored, want none", n)
	}
}

func TestBodies(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, body   string
		wantData, wantContentType string
	}{
		{"json", "application/json", `{"a": 1}`, `{"a": 1}`, "application/json"},
		{"json with charset", "application/json; charset=utf-8", `[1]`, `[1]`, "application/json; charset=utf-8"},
		{"json suffix", "application/vnd.x+json", `1`, `1`, "application/vnd.x+json"},
		{"text", "text/plain", "héllo", "héllo", "text/plain"},
		{"xml", "application/xml", "<a/>", "<a/>", "application/xml"},
		{"bytes", "application/octet-stream", "\x00\xff", "\x00\xff", "application/octet-stream"},
		{"no type", "", "{not json", "{not json", ""},
		{"empty", "application/json", "", "", ""},
		{"form", "application/x-www-form-urlencoded", "a=1&b=x+y&b=%C3%A4", `{"a":"1","b":["x y","ä"]}`, "application/json"},
		{"curl -d without a type", "application/x-www-form-urlencoded", `{"total": 120}`, `{"total": 120}`, "application/json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, config(nil), nil)
			var hdr []string
			if tt.contentType != "" {
				hdr = []string{"Content-Type", tt.contentType}
			}
			ev := only(t, h, post(h, tt.body, hdr...))
			if string(ev.Data) != tt.wantData || ev.DataContentType != tt.wantContentType {
				t.Errorf("stored %q as %q, want %q as %q", ev.Data, ev.DataContentType, tt.wantData, tt.wantContentType)
			}
			if ev.Type != "webhook" || ev.ProducerID || ev.Request != nil {
				t.Errorf("type %q, producer id %v, request %q; want webhook, false, none", ev.Type, ev.ProducerID, ev.Request)
			}
		})
	}
}

func TestRefusedBodies(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, body string
		headers                 []string
		status                  int
	}{
		{name: "broken json", contentType: "application/json", body: `{"a":`, status: 400},
		{name: "two json values", contentType: "application/json", body: `{} {}`, status: 400},
		{name: "multipart", contentType: "multipart/form-data; boundary=x", body: "--x--", status: 415},
		{name: "broken form", contentType: "application/x-www-form-urlencoded", body: "%zz", status: 400},
		{name: "form not utf-8", contentType: "application/x-www-form-urlencoded", body: "a=%ff", status: 400},
		{name: "content type not utf-8", contentType: "text/\xff", body: "x", status: 400},
		{name: "unknown encoding", contentType: "text/plain", body: "x", headers: []string{"Content-Encoding", "br"}, status: 415},
		{name: "no gzip", contentType: "text/plain", body: "x", headers: []string{"Content-Encoding", "gzip"}, status: 400},
		{name: "cloudevents xml", contentType: "application/cloudevents+xml", body: "<e/>", status: 415},
		{name: "too large", contentType: "text/plain", body: strings.Repeat("x", 1<<20+1), status: 413},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, config(nil), nil)
			w := post(h, tt.body, append(tt.headers, "Content-Type", tt.contentType)...)
			refused(t, h, w, tt.status)
		})
	}
}

// counting counts what is read of it.
type counting struct {
	io.Reader
	n int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSizes(t *testing.T) {
	const limit = 200 << 10
	for _, size := range []int{0, 1, 4095, 4096, 4097, 64 << 10, 64<<10 + 1, limit - 1, limit} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d chunked=%v", size, chunked), func(t *testing.T) {
				h := start(t, config(func(c *Config) { c.MaxBody = limit }), nil)
				body := bytes.Repeat([]byte("x"), size)
				r := httptest.NewRequest(http.MethodPost, "/in", iotest.HalfReader(bytes.NewReader(body)))
				r.ContentLength = int64(size)
				if chunked {
					r.ContentLength = -1
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if ev := only(t, h, w); !bytes.Equal(ev.Data, body) {
					t.Errorf("stored %d bytes that differ", len(ev.Data))
				}
			})
		}
	}
	t.Run("endless", func(t *testing.T) {
		h := start(t, config(func(c *Config) { c.MaxBody = limit }), nil)
		body := &counting{Reader: zeros{}}
		r := httptest.NewRequest(http.MethodPost, "/in", body)
		r.ContentLength = -1
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		refused(t, h, w, http.StatusRequestEntityTooLarge)
		if body.n > limit+1 {
			t.Errorf("read %d bytes, want at most %d", body.n, limit+1)
		}
	})
	t.Run("declared too large", func(t *testing.T) {
		h := start(t, config(func(c *Config) { c.MaxBody = limit }), nil)
		body := &counting{Reader: zeros{}}
		r := httptest.NewRequest(http.MethodPost, "/in", body)
		r.ContentLength = limit + 1
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		refused(t, h, w, http.StatusRequestEntityTooLarge)
		if body.n != 0 {
			t.Errorf("read %d bytes of a body that is too large as it says", body.n)
		}
	})
	t.Run("cut", func(t *testing.T) {
		for _, size := range []int64{10, 64<<10 + 10} {
			h := start(t, config(nil), nil)
			r := httptest.NewRequest(http.MethodPost, "/in", iotest.ErrReader(io.ErrUnexpectedEOF))
			r.ContentLength = size
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			refused(t, h, w, http.StatusBadRequest)
		}
	})
}

func compress(t *testing.T, data []byte) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestGzip(t *testing.T) {
	t.Run("decompressed", func(t *testing.T) {
		h := start(t, config(nil), nil)
		for i := range 3 { // the reader is used again
			body := fmt.Sprintf(`{"n":%d}`, i)
			w := post(h, compress(t, []byte(body)), "Content-Type", "application/json", "Content-Encoding", "gzip")
			if w.Code != http.StatusAccepted || string(h.Events()[i].Data) != body {
				t.Fatalf("answer %d %s, events %v", w.Code, w.Body, h.Events())
			}
		}
	})
	t.Run("bomb", func(t *testing.T) {
		h := start(t, config(nil), nil)
		bomb := compress(t, make([]byte, 8<<20))
		refused(t, h, post(h, bomb, "Content-Encoding", "gzip"), http.StatusRequestEntityTooLarge)
	})
	t.Run("cut", func(t *testing.T) {
		h := start(t, config(nil), nil)
		z := compress(t, []byte("hello"))
		refused(t, h, post(h, z[:len(z)-4], "Content-Encoding", "gzip"), http.StatusBadRequest)
	})
}

func sign(key, text string) []byte {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(text))
	return m.Sum(nil)
}

func TestAuth(t *testing.T) {
	ref := specs.SecretRef{Name: "shop", Key: "token"}
	now := time.Now()
	unix := strconv.FormatInt(now.Unix(), 10)
	old := strconv.FormatInt(now.Add(-6*time.Minute).Unix(), 10)
	future := strconv.FormatInt(now.Add(6*time.Minute).Unix(), 10)
	hexOf := func(key, text string) string { return hex.EncodeToString(sign(key, text)) }
	bearer := &specs.Auth{Bearer: &ref}
	basic := &specs.Auth{Basic: &specs.BasicAuth{Username: "joe", Password: ref}}
	github := &specs.Auth{HMAC: &specs.HMACAuth{Header: "x-hub-signature-256", Secret: ref, Prefix: "sha256="}}
	b64 := &specs.Auth{HMAC: &specs.HMACAuth{Header: "X-Sig", Secret: ref, Encoding: "base64"}}
	legacy := &specs.Auth{HMAC: &specs.HMACAuth{Header: "X-Sig", Secret: ref, Algorithm: "sha1"}}
	slack := &specs.Auth{HMAC: &specs.HMACAuth{
		Header: "X-Slack-Signature", Secret: ref, Prefix: "v0=",
		Timestamp: &specs.SignedTime{Header: "X-Slack-Request-Timestamp", Format: "v0:{timestamp}:{body}"},
	}}
	stripe := &specs.Auth{HMAC: &specs.HMACAuth{
		Header: "Stripe-Signature", Secret: ref, Prefix: "v1=",
		Timestamp: &specs.SignedTime{Header: "Stripe-Signature", Prefix: "t=", Tolerance: specs.Duration(time.Minute)},
	}}
	bodyFirst := &specs.Auth{HMAC: &specs.HMACAuth{
		Header: "X-Sig", Secret: ref, Timestamp: &specs.SignedTime{Header: "X-Time", Format: "{body}|{timestamp}"},
	}}
	keys := &specs.Auth{APIKeys: &specs.APIKeys{Header: "x-api-key", Secret: "shop"}}
	sha1mac := hmac.New(sha1.New, []byte("s3cret"))
	sha1mac.Write([]byte("body"))
	basicOf := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }

	for _, tt := range []struct {
		name    string
		auth    *specs.Auth
		headers []string
		ok      bool
	}{
		{"bearer", bearer, []string{"Authorization", "Bearer s3cret"}, true},
		{"bearer in small letters", bearer, []string{"Authorization", "bearer s3cret"}, true},
		{"bearer wrong", bearer, []string{"Authorization", "Bearer s3cres"}, false},
		{"bearer empty", bearer, []string{"Authorization", "Bearer "}, false},
		{"bearer missing", bearer, nil, false},
		{"bearer of another scheme", bearer, []string{"Authorization", "Basic s3cret"}, false},
		{"basic", basic, []string{"Authorization", basicOf("joe:s3cret")}, true},
		{"basic wrong user", basic, []string{"Authorization", basicOf("jim:s3cret")}, false},
		{"basic wrong password", basic, []string{"Authorization", basicOf("joe:x")}, false},
		{"basic missing", basic, nil, false},
		{"github", github, []string{"X-Hub-Signature-256", "sha256=" + hexOf("s3cret", "body")}, true},
		{"github in capitals", github, []string{"X-Hub-Signature-256", "sha256=" + strings.ToUpper(hexOf("s3cret", "body"))}, true},
		{"github, rotated: second fits", github, []string{"X-Hub-Signature-256", "sha256=" + hexOf("old", "body") + ",sha256=" + hexOf("s3cret", "body")}, true},
		{"github, wrong key", github, []string{"X-Hub-Signature-256", "sha256=" + hexOf("other", "body")}, false},
		{"github, wrong body", github, []string{"X-Hub-Signature-256", "sha256=" + hexOf("s3cret", "bodY")}, false},
		{"github, no prefix", github, []string{"X-Hub-Signature-256", hexOf("s3cret", "body")}, false},
		{"github, wrong algorithm", github, []string{"X-Hub-Signature-256", "sha1=" + hex.EncodeToString(sha1mac.Sum(nil))}, false},
		{"github, cut", github, []string{"X-Hub-Signature-256", "sha256=" + hexOf("s3cret", "body")[:32]}, false},
		{"github, no hex", github, []string{"X-Hub-Signature-256", "sha256=zz"}, false},
		{"github, very long", github, []string{"X-Hub-Signature-256", "sha256=" + strings.Repeat("a", 5000)}, false},
		{"github, empty", github, []string{"X-Hub-Signature-256", ""}, false},
		{"github missing", github, nil, false},
		{"base64", b64, []string{"X-Sig", base64.StdEncoding.EncodeToString(sign("s3cret", "body"))}, true},
		{"base64 for URLs", b64, []string{"X-Sig", base64.RawURLEncoding.EncodeToString(sign("s3cret", "body"))}, true},
		{"base64 wrong", b64, []string{"X-Sig", base64.StdEncoding.EncodeToString(sign("x", "body"))}, false},
		{"sha1", legacy, []string{"X-Sig", hex.EncodeToString(sha1mac.Sum(nil))}, true},
		{"slack", slack, []string{"X-Slack-Signature", "v0=" + hexOf("s3cret", "v0:"+unix+":body"), "X-Slack-Request-Timestamp", unix}, true},
		{"slack replayed late", slack, []string{"X-Slack-Signature", "v0=" + hexOf("s3cret", "v0:"+old+":body"), "X-Slack-Request-Timestamp", old}, false},
		{"slack from the future", slack, []string{"X-Slack-Signature", "v0=" + hexOf("s3cret", "v0:"+future+":body"), "X-Slack-Request-Timestamp", future}, false},
		{"slack, time exchanged", slack, []string{"X-Slack-Signature", "v0=" + hexOf("s3cret", "v0:"+old+":body"), "X-Slack-Request-Timestamp", unix}, false},
		{"slack, no time", slack, []string{"X-Slack-Signature", "v0=" + hexOf("s3cret", "v0::body")}, false},
		{"stripe", stripe, []string{"Stripe-Signature", "t=" + unix + ",v1=" + hexOf("s3cret", unix+".body") + ",v0=00"}, true},
		{"stripe, other scheme", stripe, []string{"Stripe-Signature", "t=" + unix + ",v0=" + hexOf("s3cret", unix+".body")}, false},
		{"body first", bodyFirst, []string{"X-Sig", hexOf("s3cret", "body|"+unix), "X-Time", unix}, true},
		{"body first, RFC 3339", bodyFirst, []string{"X-Sig", hexOf("s3cret", "body|"+now.Format(time.RFC3339)), "X-Time", now.Format(time.RFC3339)}, true},
		{"api key", keys, []string{"X-API-Key", "s3cret"}, true},
		{"api key of another client", keys, []string{"X-Api-Key", "t0ken"}, true},
		{"api key wrong", keys, []string{"X-Api-Key", "s3cre"}, false},
		{"api key empty", keys, []string{"X-Api-Key", ""}, false},
		{"api key in another header", keys, []string{"Authorization", "s3cret"}, false},
		{"api keys, two", keys, []string{"X-Api-Key", "x", "X-Api-Key", "s3cret"}, false},
		{"api key missing", keys, nil, false},
		{"none asked for", nil, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, config(func(c *Config) { c.Auth = tt.auth }), nil)
			w := post(h, "body", append(tt.headers, "Content-Type", "text/plain")...)
			if tt.ok {
				only(t, h, w)
				return
			}
			refused(t, h, w, http.StatusUnauthorized)
			if w.Header().Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
			if strings.Contains(w.Body.String(), "s3cret") {
				t.Error("the answer has the secret")
			}
		})
	}
}

func TestSecretRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := start(t, config(func(c *Config) { c.Auth = &specs.Auth{Bearer: &specs.SecretRef{Name: "shop", Key: "token"}} }), nil)
		try := func(token string) int { return post(h, "x", "Authorization", "Bearer "+token).Code }
		h.SetSecret("shop/token", "new")
		time.Sleep(11 * time.Second)
		if a, b := try("new"), try("s3cret"); a != 202 || b != 401 {
			t.Errorf("after a rotation: new %d, old %d; want 202, 401", a, b)
		}
		h.SetSecret("shop/token", "") // for the moment unreadable
		time.Sleep(11 * time.Second)
		if a, b := try("new"), try(""); a != 202 || b != 401 {
			t.Errorf("after the secret went away: last %d, empty %d; want 202, 401", a, b)
		}
	})
}

func TestSecretMissing(t *testing.T) {
	for _, value := range []string{"-", ""} {
		s, err := Factory().Make(config(func(c *Config) { c.Auth = &specs.Auth{Bearer: &specs.SecretRef{Name: "shop", Key: "none"}} }), sources.Env{})
		if err != nil {
			t.Fatal(err)
		}
		h := sourcetest.NewHost(t, DefaultType)
		if value == "" {
			h.SetSecret("shop/none", value)
		}
		err = s.Run(t.Context(), h)
		if err == nil || !strings.Contains(err.Error(), "shop") || len(h.Routes()) != 0 {
			t.Errorf("Run = %v with routes %v, want an error that names the secret and no route", err, h.Routes())
		}
	}
}

func TestCloudEventBinary(t *testing.T) {
	h := start(t, config(func(c *Config) { c.Type, c.Source = specs.Text{Value: "configured"}, specs.Text{Value: "/configured"} }), nil)
	w := post(h, `{"a":1}`, "Content-Type", "application/json", "ce-specversion", "1.0", "ce-id", "A-1", "ce-source", "//x/y",
		"ce-type", "com.example", "ce-subject", "Euro%20%E2%82%AC", "ce-time", "2026-01-02T03:04:05.6Z",
		"ce-dataschema", "https://x/schema", "ce-traceparent", "00-1-2-01")
	ev := only(t, h, w)
	if ev.ID != "A-1" || ev.Source != "//x/y" || ev.Type != "com.example" || ev.Subject != "Euro €" || !ev.ProducerID ||
		ev.DataSchema != "https://x/schema" || ev.Extensions["traceparent"] != "00-1-2-01" || string(ev.Data) != `{"a":1}` ||
		!ev.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)) {
		t.Errorf("stored %+v", ev)
	}
	// A retry is not a second event.
	if w := post(h, `{"a":1}`, "ce-specversion", "1.0", "ce-id", "A-1", "ce-source", "//x/y", "ce-type", "com.example"); w.Code != 202 || len(h.Events()) != 1 {
		t.Errorf("retry answered %d, %d events stored; want 202 and 1", w.Code, len(h.Events()))
	}
}

func TestCloudEventRefused(t *testing.T) {
	base := map[string]string{"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
	for _, change := range [][2]string{
		{"ce-specversion", "0.3"},
		{"ce-specversion", ""},
		{"ce-id", ""},
		{"ce-source", ""},
		{"ce-type", ""},
		{"ce-source", ":"},
		{"ce-time", "yesterday"},
		{"ce-dataschema", "not absolute"},
		{"ce-data", "x"},
		{"ce-a_b", "x"},
		{"ce-subject", ""},
		{"ce-subject", "%ff"},
		{"ce-subject", "%zz"},
		{"Content-Type", "a/b/c;;"},
		{"ce-datacontenttype", "text/plain"},
	} {
		t.Run(change[0]+"="+change[1], func(t *testing.T) {
			h := start(t, config(nil), nil)
			var hdr []string
			for k, v := range base {
				if k != change[0] {
					hdr = append(hdr, k, v)
				}
			}
			refused(t, h, post(h, "x", append(hdr, change[0], change[1])...), http.StatusBadRequest)
		})
	}
}

func TestCloudEventStructured(t *testing.T) {
	const head = `{"specversion":"1.0","id":"1","source":"/s","type":"t"`
	for _, tt := range []struct{ name, body, data, contentType string }{
		{"object", head + `,"data":{"n":1234567890123456789,"f":1.50}}`, `{"n":1234567890123456789,"f":1.50}`, "application/json"},
		{"text", head + `,"datacontenttype":"text/plain","data":"a\nb"}`, "a\nb", "text/plain"},
		{"json string", head + `,"data":"a"}`, `"a"`, "application/json"},
		{"base64", head + `,"datacontenttype":"image/png","data_base64":"AP8="}`, "\x00\xff", "image/png"},
		{"null", head + `,"data":null}`, "", ""},
		{"none", head + `}`, "", ""},
		{"data after an empty extension", `{"data":1,"x":null,` + head[1:] + `}`, "1", "application/json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, config(nil), nil)
			ev := only(t, h, post(h, tt.body, "Content-Type", "application/cloudevents+json; charset=UTF-8"))
			if string(ev.Data) != tt.data || ev.DataContentType != tt.contentType || ev.ID != "1" || !ev.ProducerID {
				t.Errorf("stored %q as %q (%+v), want %q as %q", ev.Data, ev.DataContentType, ev, tt.data, tt.contentType)
			}
		})
	}
	for _, body := range []string{
		"", "{", "[]", "null", "1", head + `} {}`, head + `,"data":1,"data_base64":""}`, head + `,"data_base64":"?"}`, head + `,"data_base64":1}`,
		head + `,"ext":{}}`, head + `,"ext":1.5}`, head + `,"Ext":1}`, head + `,"":1}`, head + `,"subject":1}`, `{"specversion":1.0}`,
		`{"id":"1","source":"/s","type":"t"}`, head + `,"time":"x"}`, head + `,"ext":"` + strings.Repeat("x", maxAttributes) + `"}`,
		head + `,"datacontenttype":"application/json","data_base64":"AP8="}`,
	} {
		h := start(t, config(nil), nil)
		refused(t, h, post(h, body, "Content-Type", "application/cloudevents+json"), http.StatusBadRequest)
	}
}

func TestCloudEventBatch(t *testing.T) {
	const batch = `[{"specversion":"1.0","id":"1","source":"/s","type":"t","ext":7,"flag":true},{"specversion":"1.0","id":"a\"<ä","source":"/s","type":"t","data":[]}]`
	h := start(t, config(nil), func(h *sourcetest.Host) {
		h.Fault = func(n int, _ *bus.Event) sourcetest.Fault {
			if n == 1 {
				return sourcetest.Fault{Err: bus.ErrUnavailable}
			}
			return sourcetest.Fault{}
		}
	})
	w := post(h, batch, "Content-Type", "application/cloudevents-batch+json")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Fatalf("answer %d %s, want 503 with Retry-After", w.Code, w.Body)
	}
	w = post(h, batch, "Content-Type", "application/cloudevents-batch+json")
	var answer struct{ IDs []string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || !slices.Equal(answer.IDs, []string{"1", `a"<ä`}) {
		t.Errorf("answer %s (%v)", w.Body, err)
	}
	evs := h.Events()
	if len(evs) != 2 || evs[0].Extensions["ext"] != "7" || evs[0].Extensions["flag"] != "true" || evs[1].ID != `a"<ä` {
		t.Errorf("stored %v after a repeated batch, want the two", evs)
	}

	h = start(t, config(nil), nil)
	if w := post(h, `[]`, "Content-Type", "application/cloudevents-batch+json"); w.Code != 202 || strings.TrimSpace(w.Body.String()) != `{"ids":[]}` {
		t.Errorf("empty batch: %d %s", w.Code, w.Body)
	}
	w = post(h, batch[:len(batch)-1]+`,{}]`, "Content-Type", "application/cloudevents-batch+json")
	refused(t, h, w, http.StatusBadRequest)
	if !strings.Contains(w.Body.String(), "event 2") {
		t.Errorf("answer %s does not say which event is wrong", w.Body)
	}
	for _, body := range []string{"", "{}", "null", "[1]", "[null]"} {
		refused(t, h, post(h, body, "Content-Type", "application/cloudevents-batch+json"), http.StatusBadRequest)
	}
}

func TestEmitFails(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
	}{
		{bus.ErrFull, 503}, {bus.ErrUnavailable, 503}, {bus.ErrTooLarge, 413}, {errors.New("secret internals"), 503},
	} {
		h := start(t, config(nil), func(h *sourcetest.Host) {
			h.Fault = func(int, *bus.Event) sourcetest.Fault { return sourcetest.Fault{Err: fmt.Errorf("deep: %w", tt.err)} }
		})
		w := post(h, "x")
		refused(t, h, w, tt.status)
		if strings.Contains(w.Body.String(), "deep") {
			t.Errorf("answer %s tells internals", w.Body)
		}
		if got := w.Header().Get("Retry-After"); (got != "") != (tt.status == 503) {
			t.Errorf("%d with Retry-After %q", tt.status, got)
		}
	}
}

func TestProducerID(t *testing.T) {
	h := start(t, config(func(c *Config) { c.ID = &ID{Header: "idempotency-key"} }), nil)
	for range 2 {
		if w := post(h, "x", "Idempotency-Key", "k1"); w.Code != 202 || !strings.Contains(w.Body.String(), `"k1"`) {
			t.Fatalf("answer %d %s", w.Code, w.Body)
		}
	}
	post(h, "x")
	post(h, "x")
	if evs := h.Events(); len(evs) != 3 || !evs[0].ProducerID || evs[1].ProducerID || evs[1].ID == evs[2].ID {
		t.Errorf("stored %v, want k1 once and two with ids of their own", evs)
	}
}

func TestAttributes(t *testing.T) {
	c := func() *Config {
		return config(func(c *Config) {
			c.Type = specs.Text{Value: `github.${ request.headers["x-github-event"] }`}
			c.Source = specs.Text{Value: "/shops/${ request.params.shop }"}
			c.Subject = specs.Text{Value: "${ data.order }"}
			c.ID = &ID{Expression: specs.Expr{Source: "data.id"}}
			c.Path = "/in/{shop}"
		})
	}
	for _, tt := range []struct {
		name, body, event             string
		id, typ, subject, contentType string
		status                        int
	}{
		{"all there", `{"id":1234567890123456789,"order":"o1"}`, "push", "1234567890123456789", "github.push", "o1", "application/json", 202},
		{"text id", `{"id":"x","order":7}`, "push", "x", "github.push", "7", "application/json", 202},
		{"missing parts", `{}`, "", "", "webhook", "", "application/json", 202},
		{"null id", `{"id":null,"order":"o1"}`, "push", "", "github.push", "o1", "application/json", 202},
		{"empty body", ``, "push", "", "github.push", "", "application/json", 202},
		{"object as id", `{"id":{},"order":"o1"}`, "push", "", "", "", "application/json", 400},
		{"number out of range", `{"id":1e999}`, "push", "", "", "", "application/json", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, c(), nil)
			hdr := []string{"Content-Type", tt.contentType}
			if tt.event != "" {
				hdr = append(hdr, "X-GitHub-Event", tt.event)
			}
			w := do(h, "POST", "/in/ams", strings.NewReader(tt.body), hdr...)
			// The same outside of a request.
			again := &bus.Event{Source: "/shop/orders", DataContentType: tt.contentType, Data: []byte(tt.body), Request: []byte(`{"params":{"shop":"ams"},"headers":{}}`)}
			if tt.event != "" {
				again.Request = []byte(`{"params":{"shop":"ams"},"headers":{"x-github-event":"` + tt.event + `"}}`)
			}
			err := Factory().Attributes(c())(again)
			if tt.status != 202 {
				refused(t, h, w, tt.status)
				if err == nil {
					t.Errorf("outside of a request it is %+v", again)
				}
				return
			}
			if err != nil || again.ID != tt.id || again.ProducerID != (tt.id != "") || again.Type != tt.typ || again.Subject != tt.subject || again.Source != "/shops/ams" {
				t.Errorf("outside of a request: %+v, %v", again, err)
			}
			ev := only(t, h, w)
			if tt.id != "" && ev.ID != tt.id || ev.ProducerID != (tt.id != "") || ev.Type != tt.typ || ev.Subject != tt.subject || ev.Source != "/shops/ams" {
				t.Errorf("stored id %q (producer's: %v) type %q source %q subject %q", ev.ID, ev.ProducerID, ev.Type, ev.Source, ev.Subject)
			}
			if ev.Request != nil {
				t.Error("request stored although no spec wants it")
			}
		})
	}
	if _, err := newSource(config(func(c *Config) { c.ID = &ID{Expression: specs.Expr{Source: "data."}} }), sources.Env{}); err == nil {
		t.Error("a broken expression was taken")
	}
}

func TestRequest(t *testing.T) {
	c := config(func(c *Config) {
		c.Path, c.Request = "/shops/{shop}/{rest...}", "always"
		c.Methods = []string{"GET", "POST"}
		c.Auth = &specs.Auth{HMAC: &specs.HMACAuth{Header: "X-Sum", Secret: specs.SecretRef{Name: "shop", Key: "token"}}}
	})
	h := start(t, c, nil)
	w := do(h, "GET", "/shops/ams/a/b?q=1&tag=x&tag=y%22", nil, "X-Sum", hex.EncodeToString(sign("s3cret", "")),
		"Authorization", "Bearer canary", "Cookie", "canary", "X-Gitlab-Token", "canary", "X-Event", "push", "X-Multi", "1", "X-Multi", "2")
	ev := only(t, h, w)
	env, err := ev.Attributes(true, true)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(env["request"])
	const want = `{"headers":{"host":"example.com","x-event":"push","x-multi":"1, 2"},"method":"GET","params":{"rest":"a/b","shop":"ams"},"path":"/shops/ams/a/b","query":{"q":"1","tag":["x","y\""]}}`
	if string(got) != want {
		t.Errorf("request\n got %s\nwant %s", got, want)
	}
	if env["data"] != nil {
		t.Errorf("data = %v, want nil", env["data"])
	}

	h = start(t, config(nil), func(h *sourcetest.Host) { h.Requests = true })
	if ev := only(t, h, post(h, "x")); ev.Request == nil {
		t.Error("request wanted by a spec, but not stored")
	}
	h = start(t, config(func(c *Config) { c.Request = "always" }), nil)
	refused(t, h, post(h, "x", "X-Long", strings.Repeat("x", maxAttributes)), http.StatusRequestHeaderFieldsTooLarge)
}

func TestHeadIsSafe(t *testing.T) {
	h := start(t, config(func(c *Config) { c.Methods = []string{"GET"} }), nil)
	if w := do(h, "HEAD", "/in", nil); w.Code != 200 || len(h.Events()) != 0 {
		t.Errorf("HEAD answered %d and stored %d events, want 200 and none", w.Code, len(h.Events()))
	}
	h = start(t, config(func(c *Config) { c.Methods = []string{"HEAD"} }), nil)
	if w := do(h, "HEAD", "/in", nil); w.Code != 202 || len(h.Events()) != 1 {
		t.Errorf("HEAD asked for answered %d and stored %d events, want 202 and 1", w.Code, len(h.Events()))
	}
}

func TestTooManyInFlight(t *testing.T) {
	var h *sourcetest.Host
	entered, leave := make(chan bool), make(chan bool)
	h = start(t, config(func(c *Config) { c.MaxInFlight = 1 }), func(h *sourcetest.Host) {
		h.Fault = func(int, *bus.Event) sourcetest.Fault {
			entered <- true
			<-leave
			return sourcetest.Fault{}
		}
	})
	first := make(chan int)
	go func() { first <- post(h, "x").Code }()
	<-entered
	w := post(h, "x")
	refused(t, h, w, http.StatusTooManyRequests)
	if w.Header().Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	close(leave)
	if code := <-first; code != 202 {
		t.Errorf("the first request got %d, want 202", code)
	}
}

func TestLargeBodiesAreBounded(t *testing.T) {
	s, err := newSource(config(nil), sources.Env{})
	if err != nil {
		t.Fatal(err)
	}
	s.bodies.Limit = 300 << 10
	h := sourcetest.NewHost(t, DefaultType)
	h.Start(s)
	refused(t, h, post(h, strings.Repeat("x", 500<<10)), http.StatusTooManyRequests)
	if n := s.bodies.Held(); n != 0 {
		t.Errorf("%d bytes still accounted for after the answer", n)
	}
	if w := post(h, strings.Repeat("x", 100<<10)); w.Code != 202 {
		t.Errorf("a smaller one got %d", w.Code)
	}
}

// TestAnnouncedBodies: those who announce a large body and do not send it hold
// a quarter of what there is, and no one else is refused for them.
func TestAnnouncedBodies(t *testing.T) {
	const size = 100 << 10
	s, err := newSource(config(nil), sources.Env{})
	if err != nil {
		t.Fatal(err)
	}
	s.bodies.Limit = 10 * size
	h := sourcetest.NewHost(t, DefaultType)
	h.Start(s)
	read, leave, answered := make(chan bool), make(chan bool), make(chan int, 20)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			r := httptest.NewRequest(http.MethodPost, "/in", io.MultiReader(hook(func() { read <- true; <-leave }), strings.NewReader(strings.Repeat("x", size))))
			r.ContentLength = size
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			answered <- w.Code
		})
		select {
		case <-read:
		case code := <-answered:
			t.Errorf("one who announces got %d before anything was read", code)
		}
	}
	if n := s.bodies.Held(); n == 0 || n > s.bodies.Limit/4 {
		t.Errorf("%d bytes are held for bodies that were only announced", n)
	}
	if w := post(h, strings.Repeat("y", size)); w.Code != http.StatusAccepted {
		t.Errorf("one who sends got %d", w.Code)
	}
	close(leave)
	wg.Wait()
	if n := s.bodies.Held(); n != 0 {
		t.Errorf("%d bytes still accounted for", n)
	}
}

// hook is called when a body is read, which is empty.
type hook func()

func (h hook) Read([]byte) (int, error) { h(); return 0, io.EOF }

// TestOverTheWire looks at what only a real connection shows: a body that is
// too large is refused before it was sent.
func TestOverTheWire(t *testing.T) {
	h := start(t, config(func(c *Config) { c.MaxBody = 1 << 10 }), nil)
	server := httptest.NewServer(h)
	defer server.Close()
	for name, text := range map[string]string{
		"declared":     "POST /in HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n",
		"100-continue": "POST /in HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\nExpect: 100-continue\r\n\r\n",
		"chunked":      "POST /in HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + strings.Repeat("x", 1100),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusRequestEntityTooLarge || len(h.Events()) != 0 {
				t.Errorf("answer %s, %d events stored; want 413 and none", res.Status, len(h.Events()))
			}
		})
	}
}

func TestStopRemovesRoute(t *testing.T) {
	s, err := Factory().Make(config(nil), sources.Env{})
	if err != nil {
		t.Fatal(err)
	}
	h := sourcetest.NewHost(t, DefaultType)
	for range 2 {
		stop := h.Start(s)
		if err := stop(); err != nil || len(h.Routes()) != 0 {
			t.Errorf("stopped with %v and routes %v", err, h.Routes())
		}
	}
}

// quiet answers requests without what httptest's recorder costs.
type quiet struct {
	h    http.Header
	code int
}

func (q *quiet) Header() http.Header         { return q.h }
func (q *quiet) WriteHeader(c int)           { q.code = c }
func (q *quiet) Write(p []byte) (int, error) { return len(p), nil }

type rewinding struct{ bytes.Reader }

func (*rewinding) Close() error { return nil }

// discard is a host that stores nothing.
type discard struct{ *sourcetest.Host }

func (discard) Emit(ctx context.Context, evs ...*bus.Event) error { return nil }

func BenchmarkHandler(b *testing.B) {
	payload := []byte(`{"orderId":"` + strings.Repeat("o", 270) + `","total":120}`)
	sum := hex.EncodeToString(sign("s3cret", string(payload)))
	for _, bb := range []struct {
		name    string
		auth    *specs.Auth
		request string
		headers []string
	}{
		{"json", nil, "", nil},
		{"cloudevent", nil, "", []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t"}},
		{"hmac", &specs.Auth{HMAC: &specs.HMACAuth{Header: "X-Sig", Secret: specs.SecretRef{Name: "shop", Key: "token"}}}, "", []string{"X-Sig", sum}},
		{"request", nil, "always", nil},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s, err := newSource(config(func(c *Config) { c.Auth, c.Request = bb.auth, bb.request }), sources.Env{})
			if err != nil {
				b.Fatal(err)
			}
			host := discard{sourcetest.NewHost(b, DefaultType)}
			host.SetSecret("shop/token", "s3cret")
			auth, err := ingress.NewAuth(bb.auth, nil, host)
			if err != nil {
				b.Fatal(err)
			}
			h := &handler{source: s, host: host, auth: auth}
			r := httptest.NewRequest("POST", "/in", nil)
			r.Header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"bench"}, "Accept": {"*/*"}}
			for i := 0; i < len(bb.headers); i += 2 {
				r.Header.Set(bb.headers[i], bb.headers[i+1])
			}
			r.ContentLength = int64(len(payload))
			var body rewinding
			r.Body = &body
			w := &quiet{h: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(payload)
				h.ServeHTTP(w, r)
			}
			if w.code != 202 {
				b.Fatalf("answer %d", w.code)
			}
		})
	}
}
