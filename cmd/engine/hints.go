package main

import (
	"context"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/listen"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// maxHints is the most that are printed at the start.
const maxHints = 10

// hints logs how to reach webhooks and endpoints, as soon as they can be reached.
func hints(ctx context.Context, eng *engine.Engine, cat engine.Catalog, l *specs.Loaded, log *slog.Logger) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for len(eng.Routes()) == 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	urls := append(webhookURLs(cat, l, eng.Addr()), endpointURLs(l, eng.Addr())...)
	for i, u := range urls {
		if i == maxHints {
			log.Info("there are more: engine get eventsource, engine get endpoint", "more", len(urls)-i)
			break
		}
		if u.endpoint {
			log.Info("endpoint", "name", u.name, "try", u.curl())
		} else {
			log.Info("webhook", "event", u.name, "try", u.curl())
		}
	}
}

// tryURL is where something can be sent.
type tryURL struct {
	endpoint          bool
	name, method, url string
}

func (u tryURL) curl() string {
	if u.method == http.MethodGet {
		return "curl " + u.url
	}
	if u.method == http.MethodPost {
		return "curl -d '{}' " + u.url
	}
	return "curl -X " + u.method + " " + u.url
}

// webhookURLs lists where events can be sent to a listener on addr.
func webhookURLs(cat engine.Catalog, l *specs.Loaded, addr string) (out []tryURL) {
	resource := func(ref specs.Ref) *specs.Resource { return l.Set().Resources[ref] }
	for _, r := range l.Resources {
		es, ok := r.Spec.(*specs.EventSource)
		if !ok {
			continue
		}
		for _, ev := range es.Events {
			t := cat.Sources.Lookup(ev.Type)
			if t == nil || t.Routes == nil {
				continue
			}
			for _, route := range t.Routes(ev.Config, sources.Env{Source: r.Metadata.Name, Event: ev.Name, Dir: filepath.Dir(r.Pos.File), Resource: resource}) {
				method := http.MethodPost
				if len(route.Methods) > 0 && !slices.Contains(route.Methods, method) {
					method = route.Methods[0]
				}
				out = append(out, tryURL{false, r.Metadata.Name + "/" + ev.Name, method, "http://" + listen.Reachable(addr) + route.Path})
			}
		}
	}
	return out
}

// endpointURLs lists where a listener on addr answers for functions.
func endpointURLs(l *specs.Loaded, addr string) (out []tryURL) {
	for _, r := range l.Resources {
		ep, ok := r.Spec.(*specs.Endpoint)
		if !ok || !ep.On() || len(ep.Hosts) > 0 {
			continue
		}
		method := http.MethodPost
		if len(ep.Methods) > 0 && !slices.Contains(ep.Methods, method) {
			method = ep.Methods[0]
		}
		out = append(out, tryURL{true, r.Metadata.Name, method, "http://" + listen.Reachable(addr) + ep.Path})
	}
	return out
}
