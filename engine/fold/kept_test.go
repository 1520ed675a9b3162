package fold_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/specs"
)

// readLog is a bus that counts the events read one by one or ahead, and fails
// some of these reads.
type readLog struct {
	bus.Bus
	reads, fails atomic.Int32
}

func (b *readLog) Events() bus.Log { return &countedLog{b.Bus.Events(), b} }

type countedLog struct {
	bus.Log
	b *readLog
}

func (l *countedLog) read() error {
	l.b.reads.Add(1)
	if l.b.fails.Add(-1) >= 0 {
		return fmt.Errorf("%w: injected", bus.ErrUnavailable)
	}
	return nil
}

func (l *countedLog) Get(ctx context.Context, seq uint64) (bus.Record, error) {
	if err := l.read(); err != nil {
		return bus.Record{}, err
	}
	return l.Log.Get(ctx, seq)
}

func (l *countedLog) GetBatch(ctx context.Context, from uint64, limit, maxBytes int) ([]bus.Record, error) {
	if err := l.read(); err != nil {
		return nil, err
	}
	return l.Log.GetBatch(ctx, from, limit, maxBytes)
}

// readers: order and payment of one id fire when the condition, which reads
// both, holds.
func readers(t testing.TB) *fold.Rules {
	return compile(t, "1", map[string]*specs.Sensor{"pair": {
		Dependencies: []specs.Dependency{{Name: "order", Source: "shop", Event: "orders"}, {Name: "payment", Source: "shop", Event: "payments"}},
		Correlate:    expr("data.id"), Condition: expr("order && payment && order.data.id == payment.data.id"), Triggers: trigger(),
	}})
}

// TestWaitingEventsAreReadWhenNeeded: a recovery reads none of the events that
// wait; what a condition reads is read then. An outage meanwhile decides
// nothing, and nothing twice.
func TestWaitingEventsAreReadWhenNeeded(t *testing.T) {
	b := &readLog{Bus: open(t, bustest.Dir(t))}
	options := func(resident int) fold.Options {
		return fold.Options{
			Bus: b, Cache: fold.NewCache(b.Events(), 4, 1), Logger: quiet(), Rules: readers(t), Resident: resident, BatchSize: 7,
			Alarm: func(code, message string) { t.Error(code, message) },
		}
	}
	d := fold.New(options(1))
	stop := run(d)
	var last uint64
	for id := range 40 {
		last = publish(t, b, "orders", id)
	}
	until(t, "the checkpoint", covered(d, last))
	stop()
	d = fold.New(options(1))
	stop = run(d)
	if p, err := d.Pending(t.Context(), "pair", 100); err != nil || len(p) != 40 || b.reads.Load() != 0 {
		t.Errorf("%d keys wait after the recovery, for which %d events were read (%v)", len(p), b.reads.Load(), err)
	}
	b.fails.Store(5)
	for id := range 40 {
		last = publish(t, b, "payments", id)
	}
	until(t, "the checkpoint", covered(d, last))
	if n := b.reads.Load(); n < 5+40/2 {
		t.Errorf("%d reads for events that are not in memory", n)
	}
	stop()
	keys := map[string]bool{}
	for _, j := range allJobs(t, b) {
		if keys[j.Key] || len(j.Events) != 2 {
			t.Errorf("%s fires with %v", j.Key, j.Events)
		}
		keys[j.Key] = true
	}
	if len(keys) != 40 {
		t.Errorf("%d firings", len(keys))
	}
	// What is in memory is not read.
	d = fold.New(options(0))
	defer run(d)()
	b.reads.Store(0)
	for id := range 40 {
		publish(t, b, "orders", 100+id)
	}
	for id := range 40 {
		last = publish(t, b, "payments", 100+id)
	}
	until(t, "the checkpoint", covered(d, last))
	if n := b.reads.Load(); n > 0 {
		t.Errorf("%d reads of events that are in memory", n)
	}
}

// TestLostEventsAreAnAlarm: what waits and is no longer stored is told once
// after a start, or when it is needed.
func TestLostEventsAreAnAlarm(t *testing.T) {
	b := open(t, bustest.Dir(t))
	alarms := make(chan string, 10)
	start := func() (*fold.Dispatcher, func()) {
		d := fold.New(fold.Options{
			Bus: b, Cache: fold.NewCache(b.Events(), 1, 1), Logger: quiet(), Rules: readers(t), Resident: 1,
			Alarm: func(code, message string) { alarms <- code + ": " + message },
		})
		return d, run(d)
	}
	d, stop := start()
	var last uint64
	for id := range 5 {
		last = publish(t, b, "orders", id)
	}
	until(t, "the checkpoint", covered(d, last))
	stop()
	if err := b.Events().PurgeTo(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if err := b.Events().Delete(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	d, stop = start()
	for id := range 5 {
		publish(t, b, "payments", id)
		last = publish(t, b, "orders", id)
	}
	until(t, "the checkpoint", covered(d, last))
	fired := map[string]string{}
	for _, j := range allJobs(t, b) {
		fired[j.Correlation] += fmt.Sprint(j.Events)
	}
	if len(fired) != 5 || strings.Contains(fired["#0"]+fired["#3"], " 1 ") {
		t.Errorf("fired %v", fired)
	}
	stop()
	close(alarms)
	var got []string
	for a := range alarms {
		got = append(got, a)
	}
	want := "state-events-lost: sensor pair: 2 waiting events before event 3 are no longer stored\nstate-events-lost: sensor pair: event 4, which is needed, is no longer stored"
	if strings.Join(got, "\n") != want {
		t.Errorf("alarms\n%s", strings.Join(got, "\n"))
	}
}
