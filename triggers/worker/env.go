package worker

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// CheckEnv reports what is wrong with the variables of a worker, given at
// field of a config. They are set when it starts, so they cannot depend on a
// call.
func CheckEnv(ck *specs.Checker, field string, env map[string]specs.TextOrSecret) {
	for _, name := range slices.Sorted(maps.Keys(env)) {
		_, constant := triggers.Literal(env[name].Text)
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			ck.Errorf(field+"."+name, specs.CodeInvalidValue, "letters, digits and '_'", "%q is no name of a variable", name)
		case env[name].Secret == nil && !constant:
			ck.Errorf(field+"."+name, specs.CodeInvalidValue, "what depends on the call is in its context and payload", "variables are set when a worker starts, before any call: no ${ } here")
		}
	}
}

// Environ returns the variables as entries of an environment.
func Environ(env map[string]specs.TextOrSecret, secret func(specs.SecretRef) (string, error)) ([]string, error) {
	out := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		t := env[name]
		value, ok := triggers.Constant(t)
		if t.Secret != nil {
			if secret == nil {
				return nil, errors.New("there are no secrets here")
			}
			v, err := secret(*t.Secret)
			if err != nil {
				return nil, err
			}
			value, ok = t.Prefix+v, true
		}
		if !ok || strings.IndexByte(value, 0) >= 0 {
			return nil, fmt.Errorf("variable %s cannot have this value", name)
		}
		out = append(out, name+"="+value)
	}
	return out, nil
}
