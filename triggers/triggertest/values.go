package triggertest

import (
	"errors"
	"io"
	"testing"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Make makes a function of the YAML below a kind's key, which is closed when the
// test ends, and the values of its config. secrets are by "name/key"; env
// resolves them too when it does not say how.
func Make(t testing.TB, f triggers.Factory, config string, secrets map[string]string, env triggers.Env) (triggers.Function, *Values) {
	t.Helper()
	c := Config(t, f, config)
	v, err := NewValues(c, secrets)
	if err != nil {
		t.Fatal(err)
	}
	if env.Secret == nil {
		env.Secret = Secrets(secrets)
	}
	fn, err := f.Make(c, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c, ok := fn.(io.Closer); ok {
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	return fn, v
}

// Values gives the configs of calls their values in tests: templates are
// rendered as in a function called by name, secrets come from a map.
type Values struct {
	compiled *triggers.Compiled
	secrets  func(specs.SecretRef) (string, error)
}

// NewValues compiles config. secrets are by "name/key".
func NewValues(config any, secrets map[string]string) (*Values, error) {
	c, ds := triggers.CompileConfig(config)
	if err := ds.Err(); err != nil {
		return nil, err
	}
	return &Values{c, Secrets(secrets)}, nil
}

// Of returns the values of one call.
func (v *Values) Of(c *triggers.Call) triggers.Values { return v.compiled.Values(c, v.secrets) }

// Secrets resolves secrets from a map by "name/key".
func Secrets(m map[string]string) func(specs.SecretRef) (string, error) {
	return func(ref specs.SecretRef) (string, error) {
		if s, ok := m[ref.Name+"/"+ref.Key]; ok {
			return s, nil
		}
		return "", errors.New("secret " + ref.Name + ", key " + ref.Key + " is not set")
	}
}
