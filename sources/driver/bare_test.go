package driver

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// bareHost stores nothing and says that it did.
type bareHost struct{ sources.Host }

func (*bareHost) Emit(context.Context, ...*bus.Event) error { return nil }

func (*bareHost) EmitAsync(_ context.Context, _ *bus.Event, done func(error)) error {
	done(nil)
	return nil
}
func (*bareHost) Report(sources.Progress) {}
func (*bareHost) Ready(string)            {}
func (*bareHost) Logger() *slog.Logger    { return slog.New(slog.DiscardHandler) }

func (*bareHost) Secret(specs.SecretRef) (string, error) { return "", nil }

func (*bareHost) Handle(sources.Route, http.Handler) (func(), error) { return func() {}, nil }
