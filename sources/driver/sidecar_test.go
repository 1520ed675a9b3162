package driver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
)

const testToken = "0123456789abcdef"

func newSidecar(t testing.TB, h *host) *sidecar {
	st := newStatus(h, testToken)
	t.Cleanup(func() { st.end() })
	return &sidecar{
		ctx: t.Context(), host: h, status: st, token: sha256.Sum256([]byte(testToken)),
		limit: 4096, slots: make(chan struct{}, 1),
	}
}

// send sends a request with the token.
func send(s http.Handler, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:1"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+testToken)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

const (
	event01 = `{"eventType":"ticker.tick","cloudEventsVersion":"0.1","source":"6c1f","eventID":"a","eventTime":"2018-03-02T23:31:35.818-08:00",
 "eventTypeVersion":"1","schemaURL":"https://example.com/s","contentType":"application/json","extensions":{"callback-url":"http://x"},"tags":[],"data":{"any":"JSON"}}`
	event02 = `{"specversion":"0.2","type":"t","source":"s","id":"b","time":"2019-01-01T00:00:00Z","schemaurl":"https://example.com/s","contenttype":"text/plain","data":"hello","Trace-Id":"7","depth":3}`
	event03 = `{"specversion":"0.3","type":"t","source":"s","id":"c","subject":"x","datacontenttype":"application/octet-stream","datacontentencoding":"base64","schemaurl":"https://example.com/s","data":"AAEC"}`
	event10 = `{"specversion":"1.0","type":"t","source":"s","id":"d","subject":"x","dataschema":"https://example.com/s","datacontenttype":"application/json","traceparent":"00-1","n":5,"data":{"n":12345678901234567890}}`
)

// TestIngest: what a request is answered, and what is stored of it (rows 13,
// 15, 16, 17 and 18).
func TestIngest(t *testing.T) {
	long := strings.Repeat("x", 128)
	typed := func(version, typ string) string {
		return `{"cloudEventsVersion":"` + version + `","eventType":"` + typ + `","eventID":"1","source":"s"}`
	}
	for _, tt := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		text                     string
		ids                      []string
	}{
		{name: "one 0.1", body: event01, status: 201, ids: []string{"a"}},
		{name: "one 0.2", body: event02, status: 201, ids: []string{"b"}},
		{name: "one 0.3", body: event03, status: 201, ids: []string{"c"}},
		{name: "one 1.0", body: event10, status: 201, ids: []string{"d"}},
		{name: "any path", path: "/any/path", body: event10, status: 201, ids: []string{"d"}},
		{name: "text/plain", body: event10, headers: []string{"Content-Type", "text/plain"}, status: 201, ids: []string{"d"}},
		{name: "structured", body: event10, headers: []string{"Content-Type", "application/cloudevents+json", "Ce-Specversion", "1.0"}, status: 201, ids: []string{"d"}},
		{name: "array", body: " \n[" + event01 + "," + event02 + " , " + event10 + "]\n", status: 201, ids: []string{"a", "b", "d"}},
		{name: "concatenated", body: event01 + event02 + event03, status: 201, ids: []string{"a", "b", "c"}},
		{name: "one a line", body: event10 + "\r\n" + event03 + "\n\n", status: 201, ids: []string{"d", "c"}},
		{name: "binary 1.0", body: `{"n":1}`, headers: []string{"Ce-Specversion", "1.0", "Ce-Id", "e", "Ce-Type", "t", "Ce-Source", "s", "Content-Type", "application/json"}, status: 201, ids: []string{"e"}},
		{name: "binary 0.3", body: `x`, headers: []string{"Ce-Specversion", "0.3", "Ce-Id", "e", "Ce-Type", "t", "Ce-Source", "s", "Ce-Schemaurl", "http://x", "Content-Type", "text/plain"}, status: 201, ids: []string{"e"}},
		{name: "binary 0.2", headers: []string{"Ce-Specversion", "0.2", "Ce-Id", "e", "Ce-Type", "t", "Ce-Source", "s"}, status: 201, ids: []string{"e"}},
		{name: "binary 0.1", headers: []string{"Ce-Cloudeventsversion", "0.1", "Ce-Eventid", "e", "Ce-Eventtype", "t", "Ce-Source", "s", "Ce-X-Callback-Url", "u"}, status: 201, ids: []string{"e"}},
		{name: "gateway", path: gatewayPath, body: event01, status: 200, text: `{"eventType":"ticker.tick"`, ids: []string{"a"}},
		{name: "gateway array", path: gatewayPath, body: "[" + event01 + "," + event10 + "]", status: 200, ids: []string{"a", "d"}},
		{name: "gateway invalid", path: gatewayPath, body: typed("0.1", "a/b"), status: 400, text: `{"code":400,"message":"Error validating event with ID 1: eventType`},

		{name: "health", method: "GET", status: 200},
		{name: "health without token", method: "GET", headers: []string{"Authorization", ""}, status: 200},
		{name: "put", method: "PUT", body: event10, status: 405, text: "Incorrect method PUT, POST must be used\n"},
		{name: "empty", status: 400, text: "Error parsing input: "},
		{name: "white space", body: " \n", status: 400, text: "Error parsing input: "},
		{name: "empty array", body: " [ ]", status: 400, text: "No events parsed\n"},
		{name: "html", body: "<html></html>", status: 400, text: `Error parsing input: begins with "<"`},
		{name: "cut off", body: event10[:40], status: 400, text: "Error parsing input: "},
		{name: "cut off array", body: "[" + event10, status: 400, text: "Error parsing input: "},
		{name: "a number", body: "42", status: 400, text: "Error parsing input: "},
		{name: "array of numbers", body: "[42]", status: 400, text: "Error parsing input: element 0 of the array is not an object"},
		{name: "garbage behind", body: event10 + "garbage", status: 400, text: "Error parsing input: "},
		{name: "invalid in a batch", body: "[" + event01 + "," + typed("0.9", "t") + "]", status: 400, text: "Error validating event with ID 1: cloudEventsVersion must be 0.1"},
		{name: "invalid at the end of lines", body: event01 + "\n" + typed("0.1", "a/b"), status: 400, text: "Error validating event with ID 1: "},
		{name: "type of 128", body: typed("0.1", long), status: 201, ids: []string{"1"}},
		{name: "type of 129", body: typed("0.1", long+"x"), status: 400, text: "Error validating event with ID 1: eventType must not be longer"},
		{name: "type a/b", body: typed("0.1", "a/b"), status: 400, text: "Error validating event with ID 1: eventType"},
		{name: "type a/b in 1.0", body: strings.Replace(event10, `"t"`, `"a/b"`, 1), status: 201, ids: []string{"d"}},
		{name: "version 2.0", body: strings.Replace(event10, "1.0", "2.0", 1), status: 400, text: "Error validating event with ID d: specversion must be 1.0, 0.3 or 0.2"},
		{name: "no version", body: `{"id":"1","type":"t","source":"s"}`, status: 400, text: "specversion or cloudEventsVersion is missing"},
		{name: "no id", body: `{"specversion":"1.0","type":"t","source":"s"}`, status: 400, text: "id is missing"},
		{name: "no source", body: `{"specversion":"1.0","type":"t","id":"1"}`, status: 400, text: "source is missing"},
		{name: "bad time", body: strings.Replace(event02, "2019-01-01T00:00:00Z", "yesterday", 1), status: 400, text: "RFC 3339"},
		{name: "bad schema", body: strings.Replace(event01, "https://example.com/s", ":", 1), status: 400, text: "schemaURL is not a URI"},
		{name: "bad name", body: strings.Replace(event10, "traceparent", "Trace-Parent", 1), status: 400, text: "small letters"},
		{name: "bad base64", body: strings.Replace(event03, "AAEC", "****", 1), status: 400, text: "not base64"},
		{name: "binary without id", headers: []string{"Ce-Specversion", "1.0", "Ce-Type", "t", "Ce-Source", "s"}, status: 400, text: "id is missing"},
		{name: "binary no JSON", body: "{", headers: []string{"Ce-Specversion", "1.0", "Ce-Id", "e", "Ce-Type", "t", "Ce-Source", "s", "Content-Type", "application/json"}, status: 400, text: "not the JSON"},
		{name: "attributes too long", headers: []string{"Ce-Specversion", "1.0", "Ce-Id", "e", "Ce-Type", "t", "Ce-Source", "s", "Ce-Long", strings.Repeat("x", 61<<10)}, status: 400, text: "attributes are longer"},
		{name: "too large", body: `{"data":"` + strings.Repeat("x", 5000) + `"}`, status: 413, text: "raise maxMessage"},
		{name: "gzip", body: "x", headers: []string{"Content-Encoding", "gzip"}, status: 415},

		{name: "no token", headers: []string{"Authorization", ""}, body: event10, status: 401, text: "token not recognized\n"},
		{name: "wrong token", headers: []string{"Authorization", "Bearer x"}, body: event10, status: 401},
		{name: "wrong scheme", headers: []string{"Authorization", "Basic " + testToken}, body: event10, status: 401},
		{name: "token in the query", path: "/?authToken=" + testToken, headers: []string{"Authorization", ""}, body: event10, status: 201, ids: []string{"d"}},
		{name: "wrong token in the query", path: gatewayPath + "?authToken=x", headers: []string{"Authorization", ""}, body: event10, status: 401, text: `{"code":401,"message":"token not recognized"}` + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			if tt.method == "" {
				tt.method = http.MethodPost
			}
			if tt.path == "" {
				tt.path = "/"
			}
			w := send(newSidecar(t, h), tt.method, tt.path, tt.body, tt.headers...)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.text) || tt.text == "" && tt.status == 201 && w.Body.Len() > 0 {
				t.Errorf("answer %d %q, want %d %q", w.Code, w.Body, tt.status, tt.text)
			}
			if got := h.ids(); !slices.Equal(got, tt.ids) {
				t.Errorf("stored %v, want %v", got, tt.ids)
			}
			if tt.status == 400 && !strings.Contains(h.logged(), "refused") {
				t.Errorf("not in the log: %s", h.logged())
			}
		})
	}
}

// TestTranslation: events of every version as those of 1.0.
func TestTranslation(t *testing.T) {
	for _, tt := range []struct {
		body    string
		headers []string
		want    *bus.Event
	}{
		{body: event01, want: &bus.Event{
			ID: "a", Type: "ticker.tick", Source: "6c1f", Time: time.Date(2018, 3, 3, 7, 31, 35, 818e6, time.UTC),
			DataSchema: "https://example.com/s", DataContentType: "application/json", Data: []byte(`{"any":"JSON"}`),
			Extensions: map[string]string{"eventtypeversion": "1", "callbackurl": "http://x", bus.ExtensionsAttribute: `{"callback-url":"http://x"}`},
		}},
		{body: event02, want: &bus.Event{
			ID: "b", Type: "t", Source: "s", Time: time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC),
			DataSchema: "https://example.com/s", DataContentType: "text/plain", Data: []byte("hello"),
			Extensions: map[string]string{"traceid": "7", "depth": "3", bus.ExtensionsAttribute: `{"Trace-Id":"7","depth":3}`},
		}},
		{body: event03, want: &bus.Event{
			ID: "c", Type: "t", Source: "s", Subject: "x", DataSchema: "https://example.com/s",
			DataContentType: "application/octet-stream", Data: []byte{0, 1, 2},
		}},
		{body: event10, want: &bus.Event{
			ID: "d", Type: "t", Source: "s", Subject: "x", DataSchema: "https://example.com/s",
			DataContentType: "application/json", Data: []byte(`{"n":12345678901234567890}`),
			Extensions: map[string]string{"traceparent": "00-1", "n": "5"},
		}},
		{body: `{"specversion":"0.2","type":"t","source":"s","id":"1","good":"yes","data":[1]}`, want: &bus.Event{
			ID: "1", Type: "t", Source: "s", DataContentType: "application/json", Data: []byte("[1]"),
			Extensions: map[string]string{"good": "yes"},
		}},
		{body: `{"cloudEventsVersion":"0.1","eventType":"t","source":"s","eventID":"1","data":null,"extensions":{"a-b":"1","ab":"2","o":{"x":[1]},"id":"3"}}`, want: &bus.Event{
			ID: "1", Type: "t", Source: "s",
			Extensions: map[string]string{"ab": "2", bus.ExtensionsAttribute: `{"a-b":"1","ab":"2","id":"3","o":{"x":[1]}}`},
		}},
		{body: `{"specversion":"1.0","type":"t","source":"s","id":"\u00e9\"1","data_base64":"AAEC","datacontenttype":"image/png"}`, want: &bus.Event{
			ID: `é"1`, Type: "t", Source: "s", DataContentType: "image/png", Data: []byte{0, 1, 2},
		}},
		{body: "x", headers: []string{
			"Ce-Specversion", "1.0", "Ce-Id", "%C3%A9", "Ce-Type", "t", "Ce-Source", "s", "Ce-Subject", `"q\"q"`,
			"Ce-Time", "2020-01-01T00:00:00Z", "Ce-Dataschema", "http://x", "Ce-Traceparent", "00", "Content-Type", "text/plain",
		}, want: &bus.Event{
			ID: "é", Type: "t", Source: "s", Subject: `q"q`, Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), DataSchema: "http://x",
			DataContentType: "text/plain", Data: []byte("x"), Extensions: map[string]string{"traceparent": "00"},
		}},
		{body: "{}", headers: []string{
			"Ce-Cloudeventsversion", "0.1", "Ce-Eventid", "1", "Ce-Eventtype", "t", "Ce-Source", "s", "Ce-Eventtypeversion", "2",
			"Ce-Eventtime", "2020-01-01T00:00:00Z", "Ce-Schemaurl", "http://x", "Ce-X-Callback-Url", "u", "Content-Type", "application/json",
		}, want: &bus.Event{
			ID: "1", Type: "t", Source: "s", Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), DataSchema: "http://x",
			DataContentType: "application/json", Data: []byte("{}"),
			Extensions: map[string]string{"eventtypeversion": "2", "callbackurl": "u", bus.ExtensionsAttribute: `{"callback-url":"u"}`},
		}},
	} {
		h := newHost(t)
		w := send(newSidecar(t, h), http.MethodPost, "/", tt.body, tt.headers...)
		evs := h.Events()
		if w.Code != http.StatusCreated || len(evs) != 1 {
			t.Errorf("%s: %d %s", tt.body, w.Code, w.Body)
			continue
		}
		got, want := evs[0], tt.want
		if got.ID != want.ID || got.Type != want.Type || got.Source != want.Source || got.Subject != want.Subject ||
			got.DataSchema != want.DataSchema || got.DataContentType != want.DataContentType || string(got.Data) != string(want.Data) ||
			!want.Time.IsZero() && !got.Time.Equal(want.Time) || !maps.Equal(got.Extensions, want.Extensions) || !got.ProducerID {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.body, got, want)
		}
	}
}

// TestRefusedByTheBus: what the bus refuses can be sent again, and is one event.
func TestRefusedByTheBus(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		retry  string
	}{
		{bus.ErrFull, 503, "5"},
		{bus.ErrUnavailable, 503, "1"},
		{errors.New("boom"), 503, "1"},
		{bus.ErrTooLarge, 413, ""},
		{&sources.LimitError{RetryAfter: 1500 * time.Millisecond}, 429, "2"},
	} {
		for _, body := range []string{event10, "[" + event10 + "," + event03 + "," + event02 + "]"} {
			h := newHost(t)
			fail := true
			h.Fault = func(n int, ev *bus.Event) sourcetest.Fault {
				if fail && (ev.ID == "d" && len(body) == len(event10) || ev.ID == "c" && !errors.As(tt.err, new(*sources.LimitError))) {
					return sourcetest.Fault{Err: tt.err}
				}
				return sourcetest.Fault{}
			}
			s := newSidecar(t, h)
			w := send(s, http.MethodPost, "/", body)
			if len(body) > len(event10) && errors.As(tt.err, new(*sources.LimitError)) {
				continue // see TestRateLimit
			}
			if w.Code != tt.status || w.Header().Get("Retry-After") != tt.retry || !strings.HasPrefix(w.Body.String(), "Error publishing event with ID ") {
				t.Errorf("%v: answer %d %q, Retry-After %q", tt.err, w.Code, w.Body, w.Header().Get("Retry-After"))
			}
			fail = false
			if w := send(s, http.MethodPost, "/", body); w.Code != http.StatusCreated {
				t.Errorf("%v: answer %d the second time", tt.err, w.Code)
			}
			want := []string{"d"}
			if len(body) > len(event10) {
				want = []string{"b", "c", "d"}
			}
			if got := slices.Sorted(slices.Values(h.ids())); !slices.Equal(got, want) {
				t.Errorf("%v: stored %v, want %v", tt.err, got, want)
			}
		}
	}
}

// limited refuses every other event.
type limited struct {
	*host
	mu sync.Mutex
	n  int
}

func (l *limited) EmitAsync(ctx context.Context, ev *bus.Event, done func(error)) error {
	l.mu.Lock()
	l.n++
	odd := l.n%2 == 0
	l.mu.Unlock()
	if odd {
		return &sources.LimitError{RetryAfter: time.Millisecond}
	}
	return l.host.EmitAsync(ctx, ev, done)
}

// TestRateLimit: a batch that began is stored to its end, one that did not is
// refused as a whole.
func TestRateLimit(t *testing.T) {
	l := &limited{host: newHost(t)}
	s := newSidecar(t, l.host)
	s.host = l
	batch := "[" + event01 + "," + event02 + "," + event03 + "," + event10 + "]"
	if w := send(s, http.MethodPost, "/", batch); w.Code != http.StatusCreated || len(l.ids()) != 4 {
		t.Errorf("answer %d %s, stored %v", w.Code, w.Body, l.ids())
	}
	l.n = 1
	if w := send(s, http.MethodPost, "/", batch); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
		t.Errorf("answer %d %s", w.Code, w.Body)
	}
}

// TestLegacyPort: the fixed address needs no token, but is not for browsers.
func TestLegacyPort(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		headers   []string
		status    int
	}{
		{"local", "http://127.0.0.1:8080/v1/event/ingest", nil, 201},
		{"localhost", "http://localhost:8080/", nil, 201},
		{"IPv6", "http://[::1]:8080/", nil, 201},
		{"right token", "http://localhost:8080/?authToken=" + testToken, nil, 201},
		{"wrong token", "http://localhost:8080/?authToken=x", nil, 401},
		{"rebound name", "http://evil.example.com:8080/", nil, 401},
		{"page", "http://localhost:8080/", []string{"Origin", "http://evil.example.com"}, 401},
		{"form", "http://localhost:8080/", []string{"Sec-Fetch-Site", "cross-site"}, 401},
	} {
		h := newHost(t)
		s := newSidecar(t, h)
		s.open = true
		r := httptest.NewRequest(http.MethodPost, tt.url, strings.NewReader(event10))
		for i := 0; i < len(tt.headers); i += 2 {
			r.Header.Set(tt.headers[i], tt.headers[i+1])
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != tt.status || (w.Code == 201) != (len(h.Events()) == 1) {
			t.Errorf("%s: answer %d, %d events", tt.name, w.Code, len(h.Events()))
		}
	}
}

// FuzzParse: no input makes it panic, and what it takes can be stored.
func FuzzParse(f *testing.F) {
	for _, s := range []string{event01, event02, event03, event10, event01 + event02, "[" + event03 + "]", "[]", "{", `{"a":`, `{"\u0069d":"x"}`, "[1,", `{"specversion":"1.0","data":"\"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		evs, err := parse(msg)
		if (err == nil) != (len(evs) > 0) {
			t.Fatalf("%d events, %v", len(evs), err)
		}
		for _, ev := range evs {
			ev.EventSource, ev.EventName = "test", "event"
			back, err := bus.DecodeEvent(ev.Record())
			if err != nil {
				t.Fatal(err)
			}
			if back.ID != ev.ID || back.Source != ev.Source || back.Type != ev.Type || back.DataContentType != ev.DataContentType {
				t.Fatalf("%+v is read back as %+v", ev, back)
			}
			if old, ok := ev.Extensions[bus.ExtensionsAttribute]; ok && !json.Valid([]byte(old)) {
				// A producer may use the name itself, in 1.0.
				if !strings.Contains(string(msg), bus.ExtensionsAttribute) {
					t.Fatalf("%s is not JSON", old)
				}
			}
		}
	})
}

// FuzzLines: lines are those of the input, cut at the limit.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nbb\n\nccc"), uint8(2))
	f.Add([]byte(strings.Repeat("x", 70<<10)+"\ny\n"), uint8(255))
	f.Fuzz(func(t *testing.T, input []byte, limit uint8) {
		in := newLines(strings.NewReader(string(input)), int(limit))
		want := strings.SplitAfter(string(input), "\n")
		for _, w := range want {
			full := strings.TrimSuffix(w, "\n")
			line, cut, err := in.next()
			if w == "" || err != nil { // the end
				if w != "" && !(full == "" || limit == 0) {
					t.Fatalf("%v instead of %q", err, w)
				}
				return
			}
			if cut != (len(full) > int(limit)) || string(line) != full[:min(len(full), int(limit))] {
				t.Fatalf("line %q, cut %v, want %q cut at %d", line, cut, full, limit)
			}
		}
	})
}
