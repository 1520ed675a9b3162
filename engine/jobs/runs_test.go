package jobs

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestStringsBecomeTheirJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "s")
		var got string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if want := strings.ToValidUTF8(s, "\uFFFD"); utf8.ValidString(s) && got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

func TestRunIsOneLineOfJSON(t *testing.T) {
	r := Run{
		ID: "k-1", Key: "k", Function: "f", Sensor: "s", Trigger: "t", Attempt: 1, Status: StatusSucceeded, EventSeq: 7, EventID: "e\n", EventType: "x",
		Started: time.Unix(0, 0), Duration: 1500 * time.Microsecond, Output: []byte("{\n \"a\": \"b\"\n}"), ContentType: "application/json", Logs: []byte("line\n\x00\xff"),
		Error: `say "no"`,
	}
	b := r.AppendJSON(nil)
	if strings.ContainsAny(string(b), "\n\r") {
		t.Fatalf("more than one line: %s", b)
	}
	var got struct {
		Output struct{ A string }
		Logs   string
		Error  string
		Event  struct{ ID string }
		MS     float64 `json:"durationMs"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if got.Output.A != "b" || got.Error != r.Error || got.Event.ID != "e\n" || got.MS != 1.5 || got.Logs != "line\n\x00\uFFFD" {
		t.Fatalf("%+v", got)
	}
}

func BenchmarkRunJSON(b *testing.B) {
	r := Run{
		ID: "0123456789abcdef01234567-1", Key: "0123456789abcdef01234567", Function: "sensor.trigger", Sensor: "sensor", Trigger: "trigger", Attempt: 1,
		Status: StatusSucceeded, Spec: "0123456789abcdef", EventSeq: 123456, EventID: "06gzsjf689a2szatapsv96ta6c", EventType: "webhook", Started: time.Now(),
		Duration: 1234 * time.Microsecond, Queued: 99 * time.Microsecond, Result: "200 OK",
	}
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = r.AppendJSON(buf[:0])
	}
}
