package engine_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/calendar"
	triggersall "github.com/sensor-engine/engine/triggers/all"
)

// freezer is a calendar of one engine that can be frozen between being woken
// and looking at its schedule, and whose ids the bus does not remember: as if
// it had been frozen for longer than the bus does.
type freezer struct {
	sources.Timed
	frozen *atomic.Bool
	stored *atomic.Int64
}

func (f freezer) Run(ctx context.Context, h sources.Host) error { return sources.RunTimed(ctx, h, f) }

func (f freezer) Wake(ctx context.Context, h sources.Host, now time.Time) (time.Time, error) {
	for f.frozen.Load() {
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return f.Timed.Wake(ctx, forgetful{h, f.stored}, now)
}

type forgetful struct {
	sources.Host
	stored *atomic.Int64
}

func (f forgetful) Emit(ctx context.Context, evs ...*bus.Event) error {
	for _, ev := range evs {
		ev.ProducerID = false // no id for the bus to remember
	}
	err := f.Host.Emit(ctx, evs...)
	if err == nil {
		f.stored.Add(int64(len(evs)))
	}
	return err
}

// oneLog is a bus with the events of another one: the two engines fold them
// apart.
type oneLog struct {
	bus.Bus
	events bus.Log
}

func (o oneLog) Events() bus.Log { return o.events }

// TestCalendarOnTwoEngines: two engines on one bus make each occurrence happen
// once, also when one of them was frozen in between and goes on with what it
// knew before.
func TestCalendarOnTwoEngines(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "s.yaml"), []byte(head+"kind: EventSource\nmetadata: {name: s}\nspec: {calendar: {e: {schedule: '@every 1s', catchup: {mode: all}}}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var frozen [2]atomic.Bool
	var stored [2]atomic.Int64
	wrapped := func(i int) engine.Catalog {
		f := calendar.Factory()
		inner := f.Make
		f.Make = func(config any, env sources.Env) (sources.Source, error) {
			s, err := inner(config, env)
			if err != nil {
				return nil, err
			}
			return freezer{s.(sources.Timed), &frozen[i], &stored[i]}, nil
		}
		return engine.Catalog{Sources: sources.Registry{f}, Functions: triggersall.All()}
	}
	r := launch(t, wrapped(0), dir, t.TempDir())
	own, err := jetstream.Open(t.Context(), jetstream.Options{Dir: t.TempDir(), MinFree: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close(context.Background())
	second := engine.New(engine.Options{
		Bus: oneLog{own, r.bus.Events()}, Catalog: wrapped(1), Paths: []string{dir}, Listen: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)), LookupEnv: os.LookupEnv,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- second.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	for i := range 2 {
		frozen[i].Store(true)
		was := stored[1-i].Load()
		r.until("the other engine to go on", func() bool { return stored[1-i].Load() >= was+2 })
		frozen[i].Store(false)
	}
	was := stored[0].Load() + stored[1].Load()
	r.until("some more", func() bool { return stored[0].Load()+stored[1].Load() > was+1 })
	list := scheduled(t, r.bus.Events())
	for i, at := range list {
		if i > 0 && at.Sub(list[i-1]) != time.Second {
			t.Errorf("the occurrence of %v follows that of %v", at, list[i-1])
		}
	}
	if int64(len(list)) < was || stored[0].Load() == 0 || stored[1].Load() == 0 {
		t.Errorf("%d events in the log, %d by one engine, %d by the other", len(list), stored[0].Load(), stored[1].Load())
	}
}

// scheduled are the times of the events of a log, in its order.
func scheduled(t *testing.T, l bus.Log) (out []time.Time) {
	t.Helper()
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for seq := info.First; seq <= info.Last; seq++ {
		rec, err := l.Get(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := bus.DecodeEvent(rec)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(ev.ID, "s/e/") {
			out = append(out, ev.Time)
		}
	}
	return out
}
