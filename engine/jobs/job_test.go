package jobs

import (
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sensors"
)

func genJob(t *rapid.T) *Job {
	when := func(name string) time.Time {
		n := rapid.Int64Range(0, 1<<60).Draw(t, name)
		return fromNanos(n)
	}
	str := rapid.StringN(0, 20, 60)
	j := &Job{
		Key: str.Draw(t, "key"), Sensor: str.Draw(t, "sensor"), Trigger: str.Draw(t, "trigger"), SpecHash: str.Draw(t, "hash"),
		Correlation: str.Draw(t, "correlation"), Position: rapid.Uint64().Draw(t, "position"), Last: rapid.Uint64().Draw(t, "last"),
		Time: when("time"), Late: rapid.Bool().Draw(t, "late"), Trailing: rapid.Bool().Draw(t, "trailing"), Limited: rapid.Bool().Draw(t, "limited"), Spread: rapid.Bool().Draw(t, "spread"), Fault: str.Draw(t, "fault"), Attempt: rapid.IntRange(0, 99).Draw(t, "attempt"),
		NotBefore: when("notBefore"), Error: str.Draw(t, "error"), Redrive: rapid.IntRange(0, 9).Draw(t, "redrive"), Since: when("since"), Order: rapid.Uint64().Draw(t, "order"),
	}
	if rapid.Bool().Draw(t, "flow") {
		j.Flow, j.Items = str.Draw(t, "identity"), rapid.IntRange(0, 9).Draw(t, "items")
		if j.Flow != "" || j.Items != 0 {
			j.Item = rapid.IntRange(0, 9).Draw(t, "item")
		}
	}
	for range rapid.IntRange(0, 4).Draw(t, "events") {
		j.Events = append(j.Events, sensors.Contribution{Dependency: str.Draw(t, "dep"), Seq: rapid.Uint64().Draw(t, "seq")})
	}
	if b := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "rendered"); len(b) > 0 {
		j.Rendered = b
	}
	if b := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "input"); len(b) > 0 {
		j.Input = b
	}
	if rapid.Bool().Draw(t, "embedded") {
		j.Event = &bus.Record{Subject: "engine.events.a.b", Seq: 7, Time: when("stored"), Header: bus.Header{"ce-id": {"1"}}, Data: []byte("{}")}
	}
	return j
}

func TestJobSurvivesItsStoredForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := genJob(t)
		got, err := DecodeJob(j.Encode(nil))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, j) {
			t.Fatalf("got %+v\nwant %+v", got, j)
		}
	})
}

func TestCutJobIsAnError(t *testing.T) {
	j := &Job{Key: "k", Sensor: "s", Trigger: "t", Events: []sensors.Contribution{{Dependency: "d", Seq: 1}}, Rendered: []byte("{}")}
	b := j.Encode(nil)
	for n := range b {
		if _, err := DecodeJob(b[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes decode", n, len(b))
		}
	}
}

// TestJobsOfOlderEngines: a job without a workflow has the form it always had,
// and one with it begins with that form, so that older engines read it.
func TestJobsOfOlderEngines(t *testing.T) {
	j := &Job{Key: "k", Sensor: "s", Trigger: "t", Position: 1, Events: []sensors.Contribution{{Dependency: "d", Seq: 1}}, Rendered: []byte("{}")}
	const old = "\x01\x00\x01\x01k\x01s\x01t\x00\x00\x01\x01d\x01\x00\x00\x02{}\x00\x00\x00\x00\x00\x00"
	if got := string(j.Encode(nil)); got != old {
		t.Errorf("got %q, want %q", got, old)
	}
	j.Flow, j.Item, j.Items = "f", 1, 3
	if got := string(j.Encode(nil)); got != "\x01\x08"+old[2:]+"\x01f\x01\x03" {
		t.Errorf("got %q", got)
	}
}

func FuzzDecodeJob(f *testing.F) {
	f.Add((&Job{Key: "k", Sensor: "s"}).Encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := DecodeJob(b)
		if err != nil {
			return
		}
		if again, err := DecodeJob(j.Encode(nil)); err != nil || again.Key != j.Key || again.Position != j.Position {
			t.Fatalf("%+v does not survive: %v", j, err)
		}
	})
}

func BenchmarkJobCodec(b *testing.B) {
	j := &Job{
		Key: "0123456789abcdef01234567", Sensor: "ship-paid-orders", Trigger: "ship", SpecHash: "0123456789abcdef", Position: 1 << 30,
		Events: []sensors.Contribution{{Dependency: "order", Seq: 1 << 30}}, Last: 1 << 30, Time: time.Now(),
	}
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		buf = j.Encode(buf[:0])
		if _, err := DecodeJob(buf); err != nil {
			b.Fatal(err)
		}
	}
}
