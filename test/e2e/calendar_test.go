package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestCalendarExample: the clock of the example runs, and describe shows the
// next ten occurrences of each event.
func TestCalendarExample(t *testing.T) {
	e := example(t, "calendar")
	e.start()
	e.says("it is 20")
	out, stderr, code := e.verb("describe", "eventsource/office")
	if code != 0 || !strings.Contains(out, "Time zone:         America/New_York") {
		t.Errorf("describe: %d\n%s%s", code, out, stderr)
	}
	if n := len(regexp.MustCompile(`(?m) [A-Z][a-z]{2} 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\S+$`).FindAllString(out, -1)); n != 4*10 {
		t.Errorf("describe shows %d occurrences, want 10 of each of 4 events\n%s", n, out)
	}
	e.stop()
}

// TestCalendarKilled: an engine that is killed again and again makes every
// second happen once.
func TestCalendarKilled(t *testing.T) {
	e := newEngine(t, map[string]string{"c.yaml": `apiVersion: engine/v1
kind: EventSource
metadata: {name: clock}
spec: {calendar: {seconds: {schedule: "* * * * * *", catchup: all}}}
---
apiVersion: engine/v1
kind: Sensor
metadata: {name: seconds}
spec:
  dependencies: [{name: tick, source: clock}]
  triggers: [{name: say, log: {message: "second ${ tick.id }"}}]
`})
	said := regexp.MustCompile(`second clock/seconds/(\S+?)"`)
	for range 3 {
		e.start()
		from := len(e.log())
		eventually(t, readyTimeout, "two seconds", func() error {
			if n := len(said.FindAllString(e.log()[from:], -1)); n < 2 {
				return fmt.Errorf("only %d", n)
			}
			return nil
		})
		e.kill()
	}
	e.start()
	defer e.stop()
	events, stderr, code := e.verb("events", "--output", "json")
	if code != 0 {
		t.Fatalf("events: %d %s", code, stderr)
	}
	var last time.Time
	n := 0
	for _, m := range regexp.MustCompile(`"clock/seconds/([^"]+)"`).FindAllStringSubmatch(events, -1) {
		at, err := time.Parse(time.RFC3339, m[1])
		if err != nil {
			t.Fatal(err)
		}
		if gap := at.Sub(last).Abs(); !last.IsZero() && gap != time.Second {
			t.Errorf("%v and %v follow each other", last, at)
		}
		last = at
		n++
	}
	if n < 6 {
		t.Errorf("only %d events\n%s", n, events)
	}
}
