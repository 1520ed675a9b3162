package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/specs"
)

// openBus opens the bus. An external one is waited for, for a while.
func (f *runFlags) openBus(ctx context.Context, log *slog.Logger) (*jetstream.Bus, error) {
	o := jetstream.Options{
		URL: f.bus, Credentials: f.busCreds, TLS: jetstream.TLS{CA: f.busCA, Cert: f.busCert, Key: f.busKey},
		Prefix: f.prefix, Replicas: f.replicas, Durability: jetstream.Durability(f.durability), MaxPayload: int(f.payload), Logger: log,
		RunsAge: time.Duration(f.runsAge), FailedRunsAge: time.Duration(f.failedAge),
		Limits: jetstream.Limits{
			Events: int64(f.events), Jobs: int64(f.jobs), Parked: int64(f.parked), DeadLetters: int64(f.dead),
			Runs: int64(f.runs), FailedRuns: int64(f.failedRuns), State: int64(f.state),
		},
	}
	if f.bus == "" {
		o.Dir = filepath.Join(f.data, "bus")
		return jetstream.Open(ctx, o)
	}
	// The server may start at the same time as we do.
	ctx, cancel := context.WithTimeout(ctx, max(time.Duration(f.busWait), time.Second))
	defer cancel()
	for told := false; ; told = true {
		b, err := jetstream.Open(ctx, o)
		if err == nil || !errors.Is(err, nats.ErrNoServers) && !errors.Is(err, bus.ErrUnavailable) {
			return b, err
		}
		if !told {
			log.Warn("waiting for the bus", "error", err, "at_most", time.Duration(f.busWait))
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

const (
	defaultPayload  = 8 << 20
	maxPayload      = 64 << 20
	payloadHeadroom = 64 << 10 // attributes and the stored request
)

// fitPayload makes the limit of the embedded bus follow the largest event that
// a source takes, and the largest request that becomes a job, as far as the bus
// can. What is larger still is a diagnostic
// of its source and keeps nothing else from starting.
func (f *runFlags) fitPayload(cat engine.Catalog, l *specs.Loaded) {
	if f.payload != 0 || f.bus != "" {
		return
	}
	largest := int64(0)
	for _, r := range l.Resources {
		if ep, ok := r.Spec.(*specs.Endpoint); ok && ep.Async {
			largest = max(largest, 4*int64(ep.MaxBody)/3) // in base64
		}
		es, ok := r.Spec.(*specs.EventSource)
		if !ok {
			continue
		}
		for _, ev := range es.Events {
			if t := cat.Sources.Lookup(ev.Type); t != nil && t.MaxEvent != nil {
				largest = max(largest, t.MaxEvent(ev.Config))
			}
		}
	}
	if largest <= maxPayload-payloadHeadroom {
		f.payload = sizeFlag(max(largest+payloadHeadroom, defaultPayload))
	} else {
		f.payload = maxPayload
	}
}
