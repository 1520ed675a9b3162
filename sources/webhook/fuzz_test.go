package webhook

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

// FuzzRequest sends anything and holds the answer against what is stored.
func FuzzRequest(f *testing.F) {
	const event = `{"specversion":"1.0","id":"1","source":"/s","type":"t","ext":1,"data":{"a":[1,"x"]}}`
	for _, seed := range []struct{ contentType, encoding, version, id, query, body string }{
		{"application/cloudevents+json", "", "", "", "", event},
		{"application/cloudevents+json", "", "", "", "", `{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"a/b","data_base64":"AP8="}`},
		{"application/cloudevents-batch+json", "", "", "", "", "[" + event + "," + event + "]"},
		{"application/json; charset=utf-8", "", "1.0", "%C3%A4\"", "a=1&a=2", `{"a":1}`},
		{"application/x-www-form-urlencoded", "identity", "", "", "", "a=1&b=x+y&b=%C3%A4"},
		{"text/plain", "gzip", "", "", "", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xffK\x04\x00C\xbe\xb7\xe8\x01\x00\x00\x00"},
		{"", "", "", "", "%zz", "\x00"},
	} {
		f.Add(seed.contentType, seed.encoding, seed.version, seed.id, seed.query, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, contentType, encoding, version, id, query string, body []byte) {
		s, err := newSource(config(func(c *Config) {
			c.MaxBody, c.Request = 4<<10, "always"
			c.ID = &ID{Expression: specs.Expr{Source: "data.id"}}
			c.Subject = specs.Text{Value: "${ data.order }"}
		}), sources.Env{})
		if err != nil {
			t.Fatal(err)
		}
		host := sourcetest.NewHost(t, DefaultType)
		h := &handler{source: s, host: host}
		r := httptest.NewRequest(http.MethodPost, "/in", bytes.NewReader(body))
		r.URL.RawQuery = query
		for name, v := range map[string]string{"Content-Type": contentType, "Content-Encoding": encoding, "Ce-Specversion": version, "Ce-Id": id} {
			if v != "" {
				r.Header[name] = []string{v}
			}
		}
		if version != "" {
			r.Header["Ce-Source"], r.Header["Ce-Type"] = []string{"/s"}, []string{"t"}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var answer struct {
			ID, Error string
			IDs       []string
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("answer %d %q is not JSON: %v", w.Code, w.Body, err)
		}
		if !slices.Contains([]int{202, 400, 413, 415, 431}, w.Code) || (w.Code == 202) != (answer.Error == "") {
			t.Errorf("answer %d %s", w.Code, w.Body)
		}
		if answer.ID != "" {
			answer.IDs = append(answer.IDs, answer.ID)
		}
		stored := map[string]bool{}
		for _, ev := range host.Events() {
			stored[ev.ID] = true
			if _, err := bus.ParseJSON(ev.Request); err != nil {
				t.Errorf("request %s: %v", ev.Request, err)
			}
		}
		distinct := map[string]bool{}
		for _, id := range answer.IDs {
			distinct[id] = true
		}
		if len(stored) > len(distinct) || w.Code != 202 && len(stored) > 0 {
			t.Errorf("answer %d %s, stored %v", w.Code, w.Body, stored)
		}
		for id := range distinct {
			if !stored[id] && bytes.IndexByte([]byte(id), 0xef) < 0 { // U+FFFD stands for what JSON cannot say
				t.Errorf("answered %q, stored %v", id, stored)
			}
		}
		if n := s.bodies.Held() + s.inFlight.Load(); n != 0 {
			t.Errorf("%d bytes or requests still accounted for", n)
		}
	})
}
