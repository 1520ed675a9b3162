package jobs

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

func TestRunIsOneLineOfJSON(t *testing.T) {
	r := Run{
		ID: "k-1", Key: "k", Function: "f", Sensor: "s", Trigger: "t", Attempt: 1, Status: StatusSucceeded, EventSeq: 7, EventID: "e\n", EventType: "x",
		Started: time.Unix(0, 0), Duration: 1500 * time.Microsecond, Output: []byte("{\n \"a\": \"b\"\n}"), ContentType: "application/json", Stdout: []byte("line\r\n\x00\xff"), Stderr: []byte("\n"),
		Error: `say "no"`, Class: triggers.FunctionError, Stacktrace: []string{"File \"a\"", "b"},
	}
	b := r.AppendJSON(nil)
	if strings.ContainsAny(string(b), "\n\r") {
		t.Fatalf("more than one line: %s", b)
	}
	var got struct {
		Output     struct{ A string }
		Logs       struct{ Stdout, Stderr []string }
		Class      string
		Stacktrace []string
		Error      string
		Event      struct{ ID string }
		MS         float64 `json:"durationMs"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if got.Output.A != "b" || got.Error != r.Error || got.Event.ID != "e\n" || got.MS != 1.5 || !slices.Equal(got.Logs.Stdout, []string{"line", "\x00\uFFFD"}) || !slices.Equal(got.Logs.Stderr, []string{""}) ||
		got.Class != "FunctionError" || !slices.Equal(got.Stacktrace, r.Stacktrace) {
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
