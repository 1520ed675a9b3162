package calendar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func newTest(t testing.TB, c *Config) *calendar {
	t.Helper()
	s, err := newCalendar(c, sources.Env{Source: "test", Event: "event"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// data is what an event says.
type data struct {
	Time      time.Time `json:"time"`
	EventTime string    `json:"eventTime"`
	Missed    int       `json:"missed"`
	Late      bool      `json:"late"`
}

// said returns what happened, one a word: the time, "+n" for missed ones
// before it and "!" when it was late.
func said(t testing.TB, evs []*bus.Event, layout string) string {
	t.Helper()
	var out []string
	for _, ev := range evs {
		var d data
		if err := json.Unmarshal(ev.Data, &d); err != nil {
			t.Fatalf("data %s: %v", ev.Data, err)
		}
		if want := "test/event/" + ev.Time.UTC().Format(time.RFC3339); ev.ID != want || !ev.ProducerID || ev.Cursor != ev.Time.UTC().Format(time.RFC3339) {
			t.Errorf("event %s with cursor %s, want id %s", ev.ID, ev.Cursor, want)
		}
		if !d.Time.Equal(ev.Time) || !strings.HasPrefix(d.EventTime, d.Time.Format(time.DateTime+" -0700 ")) {
			t.Errorf("data %s of the event of %v", ev.Data, ev.Time)
		}
		word := d.Time.Format(layout)
		if d.Missed > 0 {
			word = fmt.Sprintf("+%d %s", d.Missed, word)
		}
		if d.Late {
			word += "!"
		}
		out = append(out, word)
	}
	return strings.Join(out, " ")
}

// runFor runs a new calendar on the host for a time.
func runFor(t *testing.T, h *sourcetest.Host, c *Config, d time.Duration) {
	t.Helper()
	stop := h.Start(newTest(t, c))
	time.Sleep(d)
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

// TestCatchup restarts a calendar of every hour after some were missed.
// Virtual time begins at midnight.
func TestCatchup(t *testing.T) {
	for _, tt := range []struct {
		name          string
		c             Config
		run, away, on time.Duration
		want          string
	}{
		{"short restart", Config{}, 3*time.Hour - 10*time.Second, 30 * time.Second, 30 * time.Minute, "01:00 02:00 03:00"},
		{"none", Config{}, 150 * time.Minute, 5 * time.Hour, time.Hour, "01:00 02:00 +5 08:00"},
		{"last", Config{Catchup: Catchup{Mode: "last"}}, 150 * time.Minute, 5 * time.Hour, time.Hour, "01:00 02:00 +4 07:00! 08:00"},
		{"last, one on time", Config{Catchup: Catchup{Mode: "last"}}, 150 * time.Minute, 330*time.Minute + 20*time.Second, 30 * time.Minute, "01:00 02:00 +5 08:00"},
		{"all", Config{Catchup: Catchup{Mode: "all"}}, 150 * time.Minute, 5 * time.Hour, time.Hour, "01:00 02:00 03:00! 04:00! 05:00! 06:00! 07:00! 08:00"},
		{"all, some too old", Config{Catchup: Catchup{Mode: "all", MaxAge: specs.Duration(2 * time.Hour)}}, 150 * time.Minute, 5 * time.Hour, time.Hour, "01:00 02:00 +3 06:00! 07:00! 08:00"},
		{"all, all too old", Config{Catchup: Catchup{Mode: "all", MaxAge: specs.Duration(10 * time.Minute)}}, 150 * time.Minute, 5 * time.Hour, time.Hour, "01:00 02:00 +5 08:00"},
		{"last is too old", Config{Catchup: Catchup{Mode: "last", MaxAge: specs.Duration(10 * time.Minute)}}, 150 * time.Minute, 5 * time.Hour, time.Hour, "01:00 02:00 +5 08:00"},
		{"crash before the first", Config{Catchup: Catchup{Mode: "all"}}, time.Minute, 150 * time.Minute, 30 * time.Minute, "01:00! 02:00! 03:00"},
		{"all, with exclusions", Config{Catchup: Catchup{Mode: "all"}, Exclude: []string{"2000-01-01T04:00", "2000-01-01T05:00:00Z"}}, 150 * time.Minute, 5 * time.Hour, 10 * time.Minute, "01:00 02:00 03:00! 06:00! 07:00!"},
		{"nothing is left", Config{Catchup: Catchup{Mode: "all"}, End: "2000-01-01T04:30"}, 150 * time.Minute, 5 * time.Hour, 10 * time.Minute, "01:00 02:00 03:00! 04:00!"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := sourcetest.NewHost(t, DefaultType)
				tt.c.Schedule = "0 * * * *"
				runFor(t, h, &tt.c, tt.run)
				time.Sleep(tt.away)
				runFor(t, h, &tt.c, tt.on)
				if got := said(t, h.Events(), "15:04"); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
			})
		})
	}
}

// TestCatchupOfMany: a long list is caught up on without being held in memory,
// and missed ones are counted up to a limit.
func TestCatchupOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sourcetest.NewHost(t, DefaultType)
		runFor(t, h, &Config{Schedule: "@every 1s"}, 1500*time.Millisecond)
		time.Sleep(time.Hour)
		runFor(t, h, &Config{Schedule: "@every 1s", Catchup: Catchup{Mode: "all"}}, time.Second)
		if n := len(h.Events()); n != 3602 {
			t.Errorf("%d events, want 3602", n)
		}
		time.Sleep(10 * 24 * time.Hour)
		runFor(t, h, &Config{Schedule: "@every 1h", Catchup: Catchup{Mode: "last"}}, time.Second)
		time.Sleep(30 * 24 * time.Hour)
		runFor(t, h, &Config{Schedule: "@every 1s"}, time.Millisecond)
		evs := h.Events()
		// Of the last minute, all are on time.
		if got := said(t, evs[3602:3605], "02T15:04:05"); got != "+239 11T01:00:00 +10000 10T00:59:03 10T00:59:04" {
			t.Errorf("got %s", got)
		}
	})
}

// TestBusAway: what was begun is not left out, however long the bus is away.
func TestBusAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sourcetest.NewHost(t, DefaultType)
		begin := time.Now()
		h.Fault = func(int, *bus.Event) sourcetest.Fault {
			if since := time.Since(begin); since > 90*time.Minute && since < 290*time.Minute {
				return sourcetest.Fault{Err: bus.ErrUnavailable}
			}
			return sourcetest.Fault{}
		}
		runFor(t, h, &Config{Schedule: "0 * * * *"}, 370*time.Minute)
		if got, want := said(t, h.Events(), "15:04"), "01:00 02:00 +2 05:00 06:00"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// TestClockSteps wakes a calendar at whatever time the clock shows.
func TestClockSteps(t *testing.T) {
	for _, tt := range []struct{ name, mode, clock, want string }{
		{"put back over an occurrence", "all", "00:30 01:00 00:10 00:59 01:00 02:00", "01:00 02:00"},
		{"put back many", "all", "00:30 01:00 02:00 03:00 00:15 01:00 02:00 03:00 04:00", "01:00 02:00 03:00 04:00"},
		{"put forward, none", "none", "00:30 01:00 05:30 06:00", "01:00 +4 06:00"},
		{"put forward, last", "last", "00:30 01:00 05:30 06:00", "01:00 +3 05:00! 06:00"},
		{"put forward, all", "all", "00:30 01:00 05:30 06:00", "01:00 02:00! 03:00! 04:00! 05:00! 06:00"},
		{"put forward and back", "all", "00:30 03:30 01:00 02:00 03:00 04:00", "01:00! 02:00! 03:00! 04:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := sourcetest.NewHost(t, DefaultType)
			c := newTest(t, &Config{Schedule: "0 * * * *", Catchup: Catchup{Mode: tt.mode}})
			for clock := range strings.FieldsSeq(tt.clock) {
				now, err := time.Parse("2006-01-02 15:04", "2026-05-05 "+clock)
				if err != nil {
					t.Fatal(err)
				}
				next, err := c.Wake(t.Context(), h, now)
				if err != nil {
					t.Fatal(err)
				}
				if !next.After(now) {
					t.Errorf("at %s it is to be woken at %v", clock, next)
				}
			}
			if got := said(t, h.Events(), "15:04"); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestJitter: it is the same in every engine, within its bounds and spread,
// and the event keeps the scheduled time.
func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sourcetest.NewHost(t, DefaultType)
		begin := time.Now()
		c := &Config{Schedule: "* * * * *", Jitter: specs.Duration(40 * time.Second)}
		runFor(t, h, c, 6*time.Hour+40*time.Second)
		evs := h.Events()
		if len(evs) != 360 {
			t.Fatalf("%d events, want 360", len(evs))
		}
		a, b := newTest(t, c), newTest(t, c)
		other, _ := newCalendar(c, sources.Env{Source: "test", Event: "other"})
		var sum time.Duration
		equal := 0
		for i, ev := range evs {
			due := begin.Add(time.Duration(i+1) * time.Minute)
			if !ev.Time.Equal(due) {
				t.Fatalf("event %d is of %v, want %v", i, ev.Time, due)
			}
			at := a.delayed(due.Unix())
			// Timers look again after a second, so that is how late one can be.
			if late := ev.StoredAt.Sub(at); late < 0 || late > sources.WakeAtLeast {
				t.Errorf("event of %v stored %v after its time", due, late)
			}
			if !at.Equal(b.delayed(due.Unix())) || at.Before(due) || at.After(due.Add(40*time.Second)) {
				t.Errorf("occurrence of %v is delayed to %v", due, at)
			}
			if at.Equal(other.delayed(due.Unix())) {
				equal++
			}
			sum += at.Sub(due)
		}
		if mean := sum / 360; mean < 17*time.Second || mean > 23*time.Second || equal > 2 {
			t.Errorf("the mean delay is %v, want about 20s; %d like those of another calendar", mean, equal)
		}
	})
}

// sharedLog is a bus that forgets ids at once: only its fence keeps events
// from being stored twice. The engines on it are hosts of their own.
type sharedLog struct {
	events []*bus.Event
	cursor string
}

type engineHost struct {
	*sourcetest.Host
	log   *sharedLog
	known int
	fault func() (stored bool, err error)
}

func (h *engineHost) Emit(_ context.Context, evs ...*bus.Event) error {
	for i, ev := range evs {
		stored, err := h.fault()
		if err == nil || stored {
			if h.known != len(h.log.events) {
				return &sources.EmitError{Stored: i, Err: fmt.Errorf("%w: another was faster", bus.ErrConflict)}
			}
			h.log.events, h.log.cursor = append(h.log.events, ev), ev.Cursor
		}
		if err != nil {
			return &sources.EmitError{Stored: i, Err: err}
		}
		h.known = len(h.log.events)
	}
	return nil
}

func (h *engineHost) Cursor() sources.Cursor { return (*engineCursor)(h) }

type engineCursor engineHost

func (c *engineCursor) Load(context.Context) (string, error) {
	c.known = len(c.log.events)
	return c.log.cursor, nil
}

func (c *engineCursor) Store(_ context.Context, value string) error {
	c.log.cursor = value
	return nil
}

// TestEngines: several engines on one bus, of which one or another is frozen
// for any time, restarted, or not told that its event was stored, make each
// occurrence happen once and none be left out.
func TestEngines(t *testing.T) {
	host := sourcetest.NewHost(t, DefaultType)
	begin := time.Date(2026, 10, 24, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(r *rapid.T) {
		config := &Config{
			Schedule: rapid.SampledFrom([]string{"*/10 * * * *", "@every 7m", "0 1-3 * * *"}).Draw(r, "schedule"), Timezone: "Europe/Amsterdam",
			Catchup: Catchup{Mode: "all"}, Jitter: specs.Duration(rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(r, "jitter")),
		}
		log := &sharedLog{cursor: begin.Format(time.RFC3339)}
		fault := func() (bool, error) {
			switch rapid.IntRange(0, 9).Draw(r, "fault") {
			case 0:
				return false, bus.ErrUnavailable
			case 1:
				return true, bus.ErrUnavailable
			}
			return false, nil
		}
		engines := make([]*calendar, 3)
		hosts := make([]*engineHost, len(engines))
		now := begin
		for range rapid.IntRange(5, 60).Draw(r, "wakes") {
			now = now.Add(time.Duration(rapid.IntRange(1, 7200).Draw(r, "seconds")) * time.Second)
			i := rapid.IntRange(0, len(engines)-1).Draw(r, "engine")
			if engines[i] == nil || rapid.IntRange(0, 9).Draw(r, "restart") == 0 {
				engines[i], hosts[i] = newTest(t, config), &engineHost{Host: host, log: log, fault: fault}
			}
			if _, err := engines[i].Wake(t.Context(), hosts[i], now); err != nil && !errors.Is(err, bus.ErrUnavailable) {
				r.Fatal(err)
			}
		}
		for _, h := range hosts { // in the end all works
			if h != nil {
				h.fault = func() (bool, error) { return false, nil }
			}
		}
		for i, c := range engines {
			if c == nil {
				continue
			}
			for next := now; !next.After(now); {
				var err error
				if next, err = c.Wake(t.Context(), hosts[i], now); err != nil {
					r.Fatal(err)
				}
			}
		}
		at := begin.Unix()
		for i, ev := range log.events {
			next, ok := engines0(engines).schedule.Next(at)
			if !ok || ev.Time.Unix() != next {
				r.Fatalf("event %d is of %v, want %v", i, ev.Time, time.Unix(next, 0).UTC())
			}
			at = next
		}
		if next, _ := engines0(engines).schedule.Next(at); time.Unix(next, 0).Add(time.Minute).Before(now) {
			r.Fatalf("at %v the occurrence of %v has not happened", now, time.Unix(next, 0).UTC())
		}
	})
}

func engines0(engines []*calendar) *calendar {
	for _, c := range engines {
		if c != nil {
			return c
		}
	}
	return nil
}

// TestDescribe: the next ten occurrences are shown, or that there is none.
func TestDescribe(t *testing.T) {
	f := Factory()
	now := time.Date(2026, 10, 24, 12, 0, 0, 0, time.UTC)
	c := f.New().(*Config)
	c.Schedule, c.Timezone = "30 2 * * *", "Europe/Amsterdam"
	d := f.Describe(c, sources.Env{}, now)
	if len(d) != 2 || d[0].Values[0] != "Europe/Amsterdam" || len(d[1].Values) != 10 ||
		d[1].Values[0] != "Sun 2026-10-25T02:30:00+02:00" || d[1].Values[1] != "Mon 2026-10-26T02:30:00+01:00" {
		t.Errorf("Describe = %v", d)
	}
	c.End = "2026-10-24"
	if d := f.Describe(c, sources.Env{}, now); len(d) != 2 || len(d[1].Values) != 1 || d[1].Values[0] != "none is left" {
		t.Errorf("Describe = %v", d)
	}
}

// TestDataInZone: the data shows the time of the zone, the event UTC.
func TestDataInZone(t *testing.T) {
	h := sourcetest.NewHost(t, DefaultType)
	c := newTest(t, &Config{Schedule: "30 2 * * *", Timezone: "Europe/Amsterdam"})
	for _, now := range []string{"2026-03-28T00:00:00Z", "2026-03-29T01:30:00Z"} {
		at, _ := time.Parse(time.RFC3339, now)
		if _, err := c.Wake(t.Context(), h, at); err != nil {
			t.Fatal(err)
		}
	}
	evs := h.Events()
	if len(evs) != 1 {
		t.Fatalf("%d events", len(evs))
	}
	want := `{"time":"2026-03-29T03:30:00+02:00","eventTime":"2026-03-29 03:30:00 +0200 CEST","missed":1}`
	if string(evs[0].Data) != want || evs[0].Time.Location() != time.UTC || evs[0].Type != "calendar" {
		t.Errorf("event %+v with data %s, want %s", evs[0], evs[0].Data, want)
	}
	if p := h.Progress(); p.Position != "2026-03-29T03:30:00+02:00" || p.Lag != 0 {
		t.Errorf("progress %+v", p)
	}
}

// TestPositionOfSomethingElse: a position that is no time is not guessed at.
func TestPositionOfSomethingElse(t *testing.T) {
	h := sourcetest.NewHost(t, DefaultType)
	if err := h.Cursor().Store(t.Context(), "sequence 5"); err != nil {
		t.Fatal(err)
	}
	_, err := newTest(t, &Config{Schedule: "@hourly"}).Wake(t.Context(), h, time.Now())
	if _, ok := errors.AsType[*sources.Permanent](err); !ok || !strings.Contains(err.Error(), "sequence 5") {
		t.Errorf("Wake = %v", err)
	}
}

// TestTooLarge: an event the bus can never take is not tried for ever.
func TestTooLarge(t *testing.T) {
	h := sourcetest.NewHost(t, DefaultType)
	h.Fault = func(int, *bus.Event) sourcetest.Fault { return sourcetest.Fault{Err: bus.ErrTooLarge} }
	c := newTest(t, &Config{Schedule: "* * * * *"})
	now := time.Now()
	if _, err := c.Wake(t.Context(), h, now); err != nil {
		t.Fatal(err)
	}
	_, err := c.Wake(t.Context(), h, now.Add(time.Minute))
	if _, ok := errors.AsType[*sources.Permanent](err); !ok {
		t.Errorf("Wake = %v, want a permanent error", err)
	}
}
