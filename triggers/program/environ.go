package program

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Environ is the environment of one call, as NAME=value: ENGINE_* for the call
// itself, CE_* for the attributes of the event, CE_EXT_* for its extensions,
// one variable per granted secret, then those of own, which is the config's.
// Names never come from the event: its extensions are prefixed, all others are
// the spec's. refuse, unless nil, tells why a secret must not become a variable
// of a name; "" lets it.
func Environ(c *triggers.Call, own map[string]specs.TextOrSecret, refuse func(name string) string) ([]string, error) {
	env := make([]string, 0, 16+len(c.Secrets)+len(own))
	var bad string
	set := func(name, value string) {
		if strings.IndexByte(value, 0) >= 0 {
			bad = name
		}
		env = append(env, name+"="+value)
	}
	known := func(name, value string) {
		if value != "" {
			set(name, value)
		}
	}
	known("ENGINE_KEY", c.Key)
	known("ENGINE_ATTEMPT", strconv.Itoa(c.Attempt))
	known("ENGINE_SENSOR", c.Sensor)
	known("ENGINE_TRIGGER", c.Trigger)
	known("ENGINE_FUNCTION", c.Function)
	if ev := c.Event; ev != nil {
		known("CE_SPECVERSION", "1.0")
		known("CE_ID", ev.ID)
		known("CE_SOURCE", ev.Source)
		known("CE_TYPE", ev.Type)
		known("CE_SUBJECT", ev.Subject)
		known("CE_DATACONTENTTYPE", ev.DataContentType)
		known("CE_DATASCHEMA", ev.DataSchema)
		if !ev.Time.IsZero() {
			known("CE_TIME", ev.Time.Format(time.RFC3339Nano))
		}
		for k, v := range ev.Extensions {
			known("CE_EXT_"+variable(k), v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.Secrets)) {
		name := variable(key)
		if refuse != nil {
			if why := refuse(name); why != "" {
				return nil, triggers.Permanentf("the key %s of a secret would become the variable %s, %s; rename the key", key, name, why)
			}
		}
		known(name, c.Secrets[key])
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		v, err := c.Values.TextOrSecret(own[name])
		if err != nil {
			return nil, err
		}
		set(name, v)
	}
	if bad != "" {
		return nil, triggers.Permanentf("variable %s would contain a NUL byte; pass such data on stdin", bad)
	}
	return env, nil
}

// variable makes the name of an extension or a key that of a variable.
func variable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, s)
}
