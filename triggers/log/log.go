// Package log owns the function kind `log`: it writes one line to the
// engine's log. It must not know queues, retries or sensors.
package log

import (
	"context"
	_ "embed" // for the example
	"fmt"
	"log/slog"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Config is the config of a `log` function.
type Config struct {
	Message specs.Text `yaml:"message" doc:"What is written; default: type, source, subject and size of the event." example:"order ${ data.id } was paid"`
	Level   string     `yaml:"level" enum:"debug,info,warn,error" doc:"Level of the line; default info."`
}

// maxMessage is the longest message, in bytes; a log is no place for payloads.
const maxMessage = 16 << 10

//go:embed example.yaml
var example string

// Factory returns the kind `log`.
func Factory() triggers.Factory {
	return triggers.Factory{
		Type: specs.Type{
			Name: "log",
			Doc:  "Writes one line to the engine's log.",
			New:  func() any { return &Config{Level: "info"} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env)
		},
	}
}

type function struct {
	cfg    *Config
	level  slog.Level
	logger *slog.Logger
}

func newFunction(cfg *Config, env triggers.Env) (*function, error) {
	f := &function{cfg: cfg, logger: env.Logger}
	if f.logger == nil {
		f.logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Level != "" {
		if err := f.level.UnmarshalText([]byte(cfg.Level)); err != nil {
			return nil, fmt.Errorf("level: %w", err)
		}
	}
	return f, nil
}

// Invoke writes the line; it is also the output.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	msg := f.cfg.Message.Value
	switch {
	case msg == "":
		msg = summary(c.Event)
	default:
		var err error
		if msg, err = text(f.cfg.Message, c); err != nil {
			return triggers.Result{}, err
		}
	}
	truncated := len(msg) > maxMessage
	if truncated {
		msg = strings.ToValidUTF8(msg[:maxMessage], "") + "…"
	}
	if f.logger.Enabled(ctx, f.level) {
		attrs := make([]slog.Attr, 0, 4)
		if c.Sensor != "" {
			attrs = append(attrs, slog.String("sensor", c.Sensor), slog.String("trigger", c.Trigger))
		}
		if c.Event != nil {
			attrs = append(attrs, slog.String("event", c.Event.ID))
		}
		attrs = append(attrs, slog.String("key", c.Key))
		f.logger.LogAttrs(ctx, f.level, msg, attrs...)
	}
	return triggers.Result{Output: []byte(msg), ContentType: "text/plain; charset=utf-8", Truncated: truncated, Status: "logged"}, nil
}

func text(t specs.Text, c *triggers.Call) (string, error) {
	if s, ok := triggers.Literal(t); ok {
		return s, nil
	}
	return c.Values.Text(t)
}

func summary(ev *bus.Event) string {
	if ev == nil {
		return "fired without an event"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "event %s from %s", ev.Type, ev.Source)
	if ev.Subject != "" {
		fmt.Fprintf(&b, " about %s", ev.Subject)
	}
	fmt.Fprintf(&b, ", %d bytes", len(ev.Data))
	return b.String()
}
