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

// maxHints is the most webhooks that are printed at the start.
const maxHints = 10

// hints logs how to reach the webhooks, as soon as they can be reached.
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
	urls := webhookURLs(cat, l, eng.Addr())
	for i, u := range urls {
		if i == maxHints {
			log.Info("there are more webhooks: engine get eventsource", "more", len(urls)-i)
			break
		}
		log.Info("webhook", "event", u.event, "try", u.curl())
	}
}

// webhookURL is where an event can be sent.
type webhookURL struct{ event, method, url string }

func (u webhookURL) curl() string {
	if u.method == http.MethodPost {
		return "curl -d '{}' " + u.url
	}
	return "curl -X " + u.method + " " + u.url
}

// webhookURLs lists where events can be sent to a listener on addr.
func webhookURLs(cat engine.Catalog, l *specs.Loaded, addr string) (out []webhookURL) {
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
				out = append(out, webhookURL{r.Metadata.Name + "/" + ev.Name, method, "http://" + listen.Reachable(addr) + route.Path})
			}
		}
	}
	return out
}
