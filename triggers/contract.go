package triggers

import (
	"context"
	"errors"
	"io"
	"maps"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs/jsonschema"
)

// Contract is a function together with what its spec promises about it: it
// refuses input before the call and output after it, gives the call its
// secrets, and stores what the call emitted before the call counts as
// succeeded. It is itself a [Function]; closing it closes the function.
type Contract struct {
	Function Function
	// Input and Output are what the function takes and gives; nil is anything.
	Input, Output *jsonschema.Schema
	// Secrets are the names of the Secrets granted to every call.
	Secrets []string
	// Resolve returns all values of a Secret by key.
	Resolve func(name string) (map[string]string, error)
	// Mask hides secrets in texts; nil hides nothing. What a call gave is masked
	// by who shows or stores it, errors and emitted events are masked here.
	Mask func([]byte) []byte
	Host Host
	// MaxHops ends loops of emitted events.
	MaxHops int
}

// Invoke makes a call that keeps the contract. c.Secrets is set for it. An
// error has a class, see [ClassOf].
func (f *Contract) Invoke(ctx context.Context, c *Call) (Result, error) {
	if err := ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
		return Result{}, Errorf(FunctionError, "Did not invoke, already exceeded timeout: %w", err)
	} else if err != nil {
		return Result{}, err
	}
	res, err := f.invoke(ctx, c)
	if err != nil {
		err = f.maskError(err)
	}
	return res, err
}

func (f *Contract) invoke(ctx context.Context, c *Call) (Result, error) {
	if f.Input != nil {
		in, err := c.Payload()
		if err != nil {
			return Result{}, err
		}
		if wrong := f.Input.ValidateJSON(in); wrong != nil {
			return Result{}, Errorf(InputError, "Input invalid against schema: %s", jsonschema.Text(wrong))
		}
	}
	if len(f.Secrets)+len(c.Grants) > 0 {
		c.Secrets = map[string]string{}
		for _, names := range [...][]string{f.Secrets, c.Grants} {
			for _, name := range names {
				values, err := f.Resolve(name)
				if err != nil {
					return Result{}, Errorf(InputError, "error when retrieving secrets from secret store: %w", err)
				}
				maps.Copy(c.Secrets, values)
			}
		}
	}
	res, err := f.Function.Invoke(ctx, c)
	if err != nil {
		return res, err
	}
	if f.Output != nil {
		if wrong := f.output(&res); wrong != nil {
			return res, Errorf(FunctionError, "Output invalid against schema: %s", jsonschema.Text(wrong))
		}
	}
	if f.Mask != nil {
		for i := range res.Events {
			f.maskEvent(&res.Events[i])
		}
	}
	return res, c.Emit(ctx, f.Host, res.Events, f.MaxHops)
}

// output holds what a call gave against the schema; what is no JSON counts as
// text.
func (f *Contract) output(res *Result) []jsonschema.Violation {
	switch {
	case res.Truncated:
		return []jsonschema.Violation{{Text: "it is too large to be looked at"}}
	case len(res.Output) == 0 || bus.IsJSON(res.ContentType):
		return f.Output.ValidateJSON(res.Output)
	}
	return f.Output.Validate(string(res.Output))
}

func (f *Contract) mask(s string) string {
	if f.Mask == nil || s == "" {
		return s
	}
	return string(f.Mask([]byte(s)))
}

func (f *Contract) maskEvent(e *Emission) {
	e.Data = f.Mask(e.Data)
	e.Source, e.Subject = f.mask(e.Source), f.mask(e.Subject)
	for k, v := range e.Extensions {
		e.Extensions[k] = f.mask(v)
	}
}

// maskError hides secrets in an error. The [*Error] in it, which belongs to
// this call, is changed; other errors are wrapped.
func (f *Contract) maskError(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		e.Message = f.mask(e.Message)
		for i, line := range e.Stacktrace {
			e.Stacktrace[i] = f.mask(line)
		}
	}
	text := err.Error()
	if masked := f.mask(text); masked != text {
		return &maskedError{masked, err}
	}
	return err
}

type maskedError struct {
	text string
	err  error
}

func (e *maskedError) Error() string { return e.text }
func (e *maskedError) Unwrap() error { return e.err }

// Prepare implements [Preparer]; most functions need no preparation.
func (f *Contract) Prepare(ctx context.Context) error {
	if p, ok := f.Function.(Preparer); ok {
		return p.Prepare(ctx)
	}
	return nil
}

// Prove waits until the function is prepared and known to have started, and tells
// why it does not start. It fails when ctx ends.
func (f *Contract) Prove(ctx context.Context) error {
	if err := f.Prepare(ctx); err != nil {
		return err
	}
	if err := f.Ready(); err != nil {
		return err
	}
	if p, ok := f.Function.(Prover); ok {
		if err := p.Prove(ctx); err != nil {
			return f.maskError(err)
		}
	}
	return nil
}

// Ready tells why the function cannot be called at the moment, nil when it can
// or nobody knows: what a function with a method Ready says.
func (f *Contract) Ready() error {
	r, ok := f.Function.(interface{ Ready() error })
	if !ok {
		return nil
	}
	err := r.Ready()
	if err != nil {
		err = f.maskError(err)
	}
	return err
}

// Processes is how many processes the function keeps, 0 when it has no method of
// this name.
func (f *Contract) Processes() int {
	if w, ok := f.Function.(interface{ Processes() int }); ok {
		return w.Processes()
	}
	return 0
}

// Close closes the function when it is an io.Closer.
func (f *Contract) Close() error {
	if c, ok := f.Function.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
