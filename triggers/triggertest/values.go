package triggertest

import (
	"errors"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Values gives the configs of calls their values in tests: templates are
// rendered as in a function called by name, secrets come from a map.
type Values struct {
	compiled *triggers.Compiled
	secrets  map[string]string
}

// NewValues compiles config. secrets are by "name/key".
func NewValues(config any, secrets map[string]string) (*Values, error) {
	c, ds := triggers.CompileConfig(config)
	if err := ds.Err(); err != nil {
		return nil, err
	}
	return &Values{c, secrets}, nil
}

// Of returns the values of one call.
func (v *Values) Of(c *triggers.Call) triggers.Values {
	return v.compiled.Values(c, func(ref specs.SecretRef) (string, error) {
		if s, ok := v.secrets[ref.Name+"/"+ref.Key]; ok {
			return s, nil
		}
		return "", errors.New("secret " + ref.Name + ", key " + ref.Key + " is not set")
	})
}
