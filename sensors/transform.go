package sensors

import (
	"maps"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/specs/jq"
)

// transformer is what makes the data of a dependency: an expression or a jq
// program.
type transformer interface {
	// Eval gives the data for an event whose attributes are in env.
	Eval(env map[string]any) (any, error)
	Attributes() (names []string, all bool)
	DataFields() (names []string, whole bool)
	FieldReads() []expression.FieldRead
	Source() string
}

// transform compiles what makes the data of a dependency, nil for nothing or
// when there are errors.
func (c *compilation) transform(d *specs.Dependency, path string) transformer {
	switch {
	case !d.Transform.JQ.IsZero():
		p, found := jq.Compile(d.Transform.JQ, path+".jq")
		if c.found = append(c.found, found...); p != nil {
			return p
		}
	case !d.Transform.Expr.IsZero():
		if p := c.expr(d.Transform.Expr, path, expression.EventScope(d.Name), expression.WantAny); p != nil {
			return p
		}
	}
	return nil
}

// transformed is an environment with the data that the transform gives.
func (d *dependency) transformed(env map[string]any) (map[string]any, error) {
	data, err := d.transform.Eval(env)
	if err != nil {
		return nil, err
	}
	env = maps.Clone(env)
	env["data"] = data
	return env, nil
}
