package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/sources/webhook"
	"github.com/sensor-engine/engine/specs"
)

// openBus opens the bus. An external one is waited for, for a while.
func (f *runFlags) openBus(ctx context.Context, log *slog.Logger) (*jetstream.Bus, error) {
	o := jetstream.Options{
		URL: f.bus, Credentials: f.busCreds, TLS: jetstream.TLS{CA: f.busCA, Cert: f.busCert, Key: f.busKey},
		Prefix: f.prefix, Replicas: f.replicas, SyncAlways: f.sync, MaxPayload: int(f.payload), Logger: log,
		Limits: jetstream.Limits{
			Events: int64(f.events), Jobs: int64(f.jobs), Parked: int64(f.parked), DeadLetters: int64(f.dead),
			Runs: int64(f.runs), State: int64(f.state),
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
	payloadHeadroom = 256 << 10 // attributes and the stored request
)

// largestBody returns the largest body that a webhook takes, in bytes.
func largestBody(l *specs.Loaded) (size int) {
	eachWebhook(l, func(_ specs.Ref, _ specs.SourceEvent, c *webhook.Config) { size = max(size, int(c.MaxBody)) })
	return size
}

func eachWebhook(l *specs.Loaded, fn func(specs.Ref, specs.SourceEvent, *webhook.Config)) {
	for _, r := range l.Resources {
		es, ok := r.Spec.(*specs.EventSource)
		if !ok {
			continue
		}
		for _, ev := range es.Events {
			if c, ok := ev.Config.(*webhook.Config); ok {
				fn(r.Ref(), ev, c)
			}
		}
	}
}

// fitPayload sets the limit of the embedded bus: what was asked for, or enough for
// every webhook as far as the bus can take it. A spec never keeps the engine
// from starting.
func (f *runFlags) fitPayload(l *specs.Loaded) {
	if f.payload == 0 && f.bus == "" {
		f.payload = sizeFlag(min(max(largestBody(l)+payloadHeadroom, defaultPayload), maxPayload))
	}
}

// codePayload marks a webhook that takes more than the bus.
const codePayload specs.Code = "payload-limit"

// checkPayload warns of webhooks that take larger bodies than a bus with this
// limit: what is larger will be answered with 413.
func checkPayload(l *specs.Loaded, limit int) (found specs.Diagnostics) {
	eachWebhook(l, func(ref specs.Ref, ev specs.SourceEvent, c *webhook.Config) {
		if int(c.MaxBody)+payloadHeadroom <= limit {
			return
		}
		found = append(found, specs.Diagnostic{
			Pos: ev.Pos, Severity: specs.Warning, Code: codePayload, Ref: ref, Path: "spec.webhook." + ev.Name + ".maxBody",
			Message: fmt.Sprintf("the bus takes events of at most %d bytes with their headers, so larger bodies are answered with 413 all the same", limit),
			Hint:    "lower it, or raise --max-payload or the limit of the external bus",
		})
	})
	return found
}
