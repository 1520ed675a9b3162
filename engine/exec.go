package engine

import (
	"context"
	"fmt"

	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/specs"
)

// RequestError says that something was asked for in a way that can never work.
type RequestError struct{ text string }

// Error says what is wrong.
func (e *RequestError) Error() string { return e.text }

// Call calls a Function by hand, at once, and waits for its end; see
// [jobs.Pool.Call]. Of r, Ref is set.
func (e *Engine) Call(ctx context.Context, function string, r jobs.Request) (*jobs.Outcome, error) {
	if err := e.byHand(function, &r); err != nil {
		return nil, err
	}
	return e.pool.Call(ctx, r)
}

// Submit stores a call of a Function by hand as a job; see [jobs.Pool.Submit].
// Of r, Ref is set.
func (e *Engine) Submit(ctx context.Context, function string, r jobs.Request) (jobs.Submitted, error) {
	if err := e.byHand(function, &r); err != nil {
		return jobs.Submitted{}, err
	}
	return e.pool.Submit(ctx, r)
}

func (e *Engine) byHand(function string, r *jobs.Request) error {
	r.Ref = jobs.TriggerRef{Sensor: jobs.SensorExec, Trigger: function}
	if len(r.Grants) == 0 {
		return nil
	}
	if res := e.Resource(specs.Ref{Kind: specs.KindFunction, Name: function}); res != nil {
		return e.o.Catalog.canGrant(res.Spec.(*specs.Function))
	}
	return nil // said by the pool
}

// canGrant reports an error when a function has no use for granted secrets.
func (c Catalog) canGrant(fn *specs.Function) error {
	if f := c.Functions.Lookup(fn.Call.Kind); f != nil && !f.Grants {
		return &RequestError{fmt.Sprintf("functions of kind %s are not handed secrets by name; write {secret: {name, key}} in the spec where a value belongs", fn.Call.Kind)}
	}
	return nil
}
