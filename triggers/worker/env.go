package worker

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// CheckEnv reports what is wrong with the variables of a worker, the fields env
// and inheritEnv of a config. They are set when it starts, so they cannot depend
// on a call.
func CheckEnv(ck *specs.Checker, env map[string]specs.TextOrSecret, inherit []string) {
	for i, name := range inherit {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			ck.Errorf(fmt.Sprintf("inheritEnv[%d]", i), specs.CodeInvalidValue, "for example HTTPS_PROXY", "%q is no name of a variable", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		_, constant := triggers.Literal(env[name].Text)
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			ck.Errorf("env."+name, specs.CodeInvalidValue, "letters, digits and '_'", "%q is no name of a variable", name)
		case env[name].Secret == nil && !constant:
			ck.Errorf("env."+name, specs.CodeInvalidValue, "what depends on the call is in its context and payload", "variables are set when a worker starts, before any call: no ${ } here")
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

// near returns the files beside a file that match one of the patterns.
func near(file string, patterns ...string) []string {
	dir := strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(filepath.Dir(file))
	var files []string
	for _, p := range patterns {
		found, _ := filepath.Glob(filepath.Join(dir, p))
		files = append(files, found...)
	}
	return files
}
