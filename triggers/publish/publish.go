// Package publish owns the function kind `publish`: it puts an event onto the
// bus and stops loops. It must not know queues, retries or sensors.
package publish

import (
	"context"
	_ "embed" // for the example
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Config is the config of a `publish` function.
type Config struct {
	Type        specs.Text            `yaml:"type" required:"true" doc:"CloudEvents type of the new event." example:"com.example.order.paid"`
	Source      specs.Text            `yaml:"source" doc:"CloudEvents source; default: /sensors/<sensor>."`
	Subject     specs.Text            `yaml:"subject" doc:"CloudEvents subject; default: none." example:"${ data.orderId }"`
	Data        specs.Template        `yaml:"data" doc:"Data of the new event; default: the trigger's input if there is one, else the data of the event, untouched."`
	ContentType string                `yaml:"contentType" doc:"Media type of the data; default: application/json, or the event's for its untouched data."`
	Extensions  map[string]specs.Text `yaml:"extensions" doc:"CloudEvents extension attributes; traceparent and tracestate of the event are passed on by default."`
	MaxHops     int                   `yaml:"maxHops" doc:"Most functions an event and its causes may have passed through; beyond it the call fails, which ends loops. Default 16."`
}

//go:embed example.yaml
var example string

// Factory returns the kind `publish`.
func Factory() triggers.Factory {
	return triggers.Factory{
		Type: specs.Type{
			Name: "publish",
			Doc:  "Publishes an event on the engine's bus, once per firing however often the call is repeated.",
			New:  func() any { return &Config{MaxHops: bus.MaxHops} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env)
		},
	}
}

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	for _, name := range slices.Sorted(maps.Keys(c.Extensions)) {
		if err := triggers.ExtensionName(name); err != nil {
			ck.Errorf("extensions."+name, specs.CodeInvalidValue, "lower-case letters and digits only", "%v", err)
		}
	}
	if c.MaxHops < 0 {
		ck.Errorf("maxHops", specs.CodeInvalidValue, "", "maxHops must be positive")
	}
	if c.Data.Set && !bus.IsJSON(c.ContentType) && structuredData(c.Data.Root) {
		ck.Errorf("data", specs.CodeInvalidValue, "write text, or leave contentType out", "an object or list cannot be %s", c.ContentType)
	}
}

func structuredData(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return true
	}
	return false
}

type function struct {
	cfg     *Config
	host    triggers.Host
	maxHops int
}

func newFunction(cfg *Config, env triggers.Env) (*function, error) {
	if env.Host == nil {
		return nil, errors.New("publish needs a bus")
	}
	for name := range cfg.Extensions {
		if err := triggers.ExtensionName(name); err != nil {
			return nil, err
		}
	}
	f := &function{cfg: cfg, host: env.Host, maxHops: cfg.MaxHops}
	if f.maxHops <= 0 {
		f.maxHops = bus.MaxHops
	}
	return f, nil
}

// Invoke stores the event. Its id follows from the call's key, so that the bus
// recognises a repeated call.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	ev, err := f.event(c)
	if err != nil {
		return triggers.Result{}, err
	}
	if err := f.host.Publish(ctx, ev); err != nil {
		if errors.Is(err, bus.ErrTooLarge) {
			return triggers.Result{}, triggers.Permanentf("event %s: %w", ev.Type, err)
		}
		return triggers.Result{}, err
	}
	out, err := json.Marshal(map[string]string{"id": ev.ID, "type": ev.Type, "source": ev.Source})
	if err != nil {
		return triggers.Result{}, err
	}
	return triggers.Result{Output: out, ContentType: "application/json", Status: "published"}, nil
}

func (f *function) event(c *triggers.Call) (*bus.Event, error) {
	var e triggers.Emission
	var err error
	if e.Type, err = text(f.cfg.Type, c); err != nil {
		return nil, err
	}
	if e.Source, err = text(f.cfg.Source, c); err != nil {
		return nil, err
	}
	if e.Subject, err = text(f.cfg.Subject, c); err != nil {
		return nil, err
	}
	if len(f.cfg.Extensions) > 0 {
		e.Extensions = make(map[string]string, len(f.cfg.Extensions))
	}
	for _, name := range slices.Sorted(maps.Keys(f.cfg.Extensions)) {
		if e.Extensions[name], err = text(f.cfg.Extensions[name], c); err != nil {
			return nil, err
		}
	}
	ev, err := c.Derive(0, e, f.maxHops)
	if err != nil {
		return nil, err
	}
	return ev, f.data(ev, c)
}

// data fills data and content type in.
func (f *function) data(ev *bus.Event, c *triggers.Call) error {
	var v any
	switch {
	case f.cfg.Data.Set:
		var err error
		if v, err = c.Values.Template(f.cfg.Data); err != nil {
			return err
		}
		if v == nil {
			return nil
		}
	case c.HasInput && (f.cfg.ContentType == "" || bus.IsJSON(f.cfg.ContentType)):
		b, err := c.InputJSON()
		if ev.Data, ev.DataContentType = b, f.cfg.ContentType; ev.DataContentType == "" {
			ev.DataContentType = "application/json"
		}
		return err
	case c.HasInput:
		var err error
		if v, err = c.InputValue(); err != nil {
			return err
		}
	case c.Event != nil:
		ev.Data, ev.DataContentType, ev.DataSchema = c.Event.Data, c.Event.DataContentType, c.Event.DataSchema
		if f.cfg.ContentType != "" {
			ev.DataContentType = f.cfg.ContentType
		}
		return nil
	default:
		return nil
	}
	if ev.DataContentType = f.cfg.ContentType; ev.DataContentType == "" {
		ev.DataContentType = "application/json"
	}
	if !bus.IsJSON(ev.DataContentType) {
		s, ok := v.(string)
		if !ok {
			return triggers.Permanentf("data is no text, it cannot be %s; leave contentType out for JSON", ev.DataContentType)
		}
		ev.Data = []byte(s)
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return triggers.Permanentf("data is not JSON: %w", err)
	}
	ev.Data = b
	return nil
}

func text(t specs.Text, c *triggers.Call) (string, error) {
	if s, ok := triggers.Literal(t); ok {
		return s, nil
	}
	return c.Values.Text(t)
}
