package bus

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
)

func TestStructured(t *testing.T) {
	for name, tc := range map[string]struct {
		ev   *Event
		want string
	}{
		"json": {
			&Event{ID: "1", Source: "/s", Type: "t", DataContentType: "application/json", Data: []byte("{\"n\":\n 1234567890123456789}"), Time: time.Unix(1, 5).UTC(), Extensions: map[string]string{"b": "2", "a": "\"", "id": "no"}},
			`{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"1970-01-01T00:00:01.000000005Z","datacontenttype":"application/json","a":"\"","b":"2","data":{"n":1234567890123456789}}`,
		},
		"no type": {&Event{ID: "1", Source: "s", Type: "t", Data: []byte(`[1]`)}, `{"specversion":"1.0","id":"1","source":"s","type":"t","data":[1]}`},
		"no data": {&Event{ID: "1", Source: "s", Type: "t", Subject: "x", DataSchema: "y"}, `{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"x","dataschema":"y"}`},
		"text":    {&Event{ID: "1", Source: "s", Type: "t", DataContentType: "text/plain", Data: []byte("a\nb")}, `{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"text/plain","data":"a\u000ab"}`},
		"broken":  {&Event{ID: "1", Source: "s", Type: "t", DataContentType: "application/json", Data: []byte("{")}, `{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"application/json","data_base64":"ew=="}`},
		"bare":    {&Event{ID: "1", Source: "s", Type: "t", Data: []byte("{")}, `{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"ew=="}`},
		"bytes":   {&Event{ID: "1", Source: "s", Type: "t", DataContentType: "a/b", Data: []byte("\xff")}, `{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"a/b","data_base64":"/w=="}`},
		"not utf8": {
			&Event{ID: "\xff", Source: "s", Type: "t", DataContentType: "application/json", Data: []byte("\"\xff\"")},
			`{"specversion":"1.0","id":"` + "\ufffd" + `","source":"s","type":"t","datacontenttype":"application/json","data":"` + "\ufffd" + `"}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.ev.AppendStructured(nil)
			if string(got) != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			// The SDK reads it, too.
			var e event.Event
			if err := json.Unmarshal(got, &e); err != nil {
				t.Error(err)
			}
			if !ValidJSON(tc.ev.Data) && string(e.Data()) != string(tc.ev.Data) {
				t.Errorf("data %q", e.Data())
			}
		})
	}
}
