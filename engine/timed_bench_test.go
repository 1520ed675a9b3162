package engine_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/calendar"
	triggersall "github.com/sensor-engine/engine/triggers/all"
)

// punctual measures how late a calendar is woken, and its events are stored.
type punctual struct {
	sources.Timed
	due    time.Time
	record *lateness
}

type lateness struct {
	mu            sync.Mutex
	started       int
	woken, stored []time.Duration
}

func (p *punctual) Run(ctx context.Context, h sources.Host) error { return sources.RunTimed(ctx, h, p) }

func (p *punctual) Wake(ctx context.Context, h sources.Host, now time.Time) (time.Time, error) {
	due, woken := p.due, time.Now()
	next, err := p.Timed.Wake(ctx, &storing{Host: h, due: due, record: p.record}, now)
	p.record.mu.Lock()
	defer p.record.mu.Unlock()
	if p.due = next; due.IsZero() {
		p.record.started++
	} else {
		p.record.woken = append(p.record.woken, woken.Sub(due))
	}
	return next, err
}

type storing struct {
	sources.Host
	due    time.Time
	record *lateness
}

func (s *storing) Emit(ctx context.Context, evs ...*bus.Event) error {
	err := s.Host.Emit(ctx, evs...)
	if late := time.Since(s.due); err == nil && !s.due.IsZero() {
		s.record.mu.Lock()
		s.record.stored = append(s.record.stored, late)
		s.record.mu.Unlock()
	}
	return err
}

// BenchmarkCalendars runs 10,000 calendars and reports how late each is woken
// and how late its event is stored, in milliseconds: spread over the time, at
// 500 a second, and all in the same second. What it calls the machine is how
// late a plain timer is in the meantime.
func BenchmarkCalendars(b *testing.B) {
	const calendars, perFile = 10_000, 100
	for name, keys := range map[string]string{
		"spread":  "{schedule: '*/20 * * * * *', jitter: 19990ms}",
		"at-once": "{schedule: '*/20 * * * * *'}",
	} {
		b.Run(name, func(b *testing.B) {
			record := &lateness{}
			f := calendar.Factory()
			inner := f.Make
			f.Make = func(config any, env sources.Env) (sources.Source, error) {
				s, err := inner(config, env)
				if err != nil {
					return nil, err
				}
				return &punctual{Timed: s.(sources.Timed), record: record}, nil
			}
			dir := b.TempDir()
			for i := range calendars / perFile {
				var text strings.Builder
				fmt.Fprintf(&text, head+"kind: EventSource\nmetadata: {name: s%d}\nspec:\n  calendar:\n", i)
				for k := range perFile {
					fmt.Fprintf(&text, "    e%d: %s\n", k, keys)
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("s%d.yaml", i)), []byte(text.String()), 0o600); err != nil {
					b.Fatal(err)
				}
			}
			goroutines := runtime.NumGoroutine()
			launch(b, engine.Catalog{Sources: sources.Registry{f}, Functions: triggersall.All()}, dir, b.TempDir()).
				until("the calendars to start", func() bool {
					record.mu.Lock()
					defer record.mu.Unlock()
					return record.started >= calendars
				})
			goroutines = runtime.NumGoroutine() - goroutines
			record.mu.Lock()
			record.woken, record.stored = nil, nil
			record.mu.Unlock()
			var machine []time.Duration
			for b.Loop() {
				for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
					due := time.Now().Add(10 * time.Millisecond)
					<-time.After(time.Until(due))
					machine = append(machine, time.Since(due))
				}
			}
			record.mu.Lock()
			defer record.mu.Unlock()
			if len(record.stored) < calendars/4 {
				b.Fatalf("only %d events stored", len(record.stored))
			}
			for what, list := range map[string][]time.Duration{"woken": record.woken, "stored": record.stored, "machine": machine} {
				slices.Sort(list)
				b.ReportMetric(float64(list[len(list)/2])/1e6, what+"-p50-ms")
				b.ReportMetric(float64(list[len(list)*99/100])/1e6, what+"-p99-ms")
			}
			b.ReportMetric(float64(goroutines), "goroutines")
		})
	}
}
