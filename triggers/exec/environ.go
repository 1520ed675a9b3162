package exec

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// environ is the environment of one call. Names never come from the event:
// its extensions are prefixed, all others are the spec's.
func (f *function) environ(c *triggers.Call) ([]string, error) {
	env := slices.Grow(slices.Clone(f.base), 16+len(f.vars))
	var bad string
	set := func(name, value string) {
		if strings.IndexByte(value, 0) >= 0 {
			bad = name
		}
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	set("ENGINE_KEY", c.Key)
	set("ENGINE_ATTEMPT", strconv.Itoa(c.Attempt))
	set("ENGINE_SENSOR", c.Sensor)
	set("ENGINE_TRIGGER", c.Trigger)
	set("ENGINE_FUNCTION", c.Function)
	if ev := c.Event; ev != nil {
		set("CE_SPECVERSION", "1.0")
		set("CE_ID", ev.ID)
		set("CE_SOURCE", ev.Source)
		set("CE_TYPE", ev.Type)
		set("CE_SUBJECT", ev.Subject)
		set("CE_DATACONTENTTYPE", ev.DataContentType)
		set("CE_DATASCHEMA", ev.DataSchema)
		if !ev.Time.IsZero() {
			set("CE_TIME", ev.Time.Format(time.RFC3339Nano))
		}
		for k, v := range ev.Extensions {
			set("CE_EXT_"+variable(k), v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.Secrets)) {
		name := variable(key)
		if sensitive(name) {
			return nil, triggers.Permanentf("%s: the key %s of a secret would become the variable %s, which decides what code runs; rename the key", f.cfg.Command[0], key, name)
		}
		set(name, c.Secrets[key])
	}
	for _, name := range f.vars {
		v, err := c.Values.TextOrSecret(f.cfg.Env[name])
		if err != nil {
			return nil, err
		}
		if strings.IndexByte(v, 0) >= 0 {
			bad = name
		}
		env = append(env, name+"="+v)
	}
	if bad != "" {
		return nil, triggers.Permanentf("%s: variable %s would contain a NUL byte; pass such data on stdin", f.cfg.Command[0], bad)
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

const sensitiveText = "this variable decides what code runs, so its value must not come from an event; write it without ${ }"

// sensitive reports whether a variable lets its value run code.
func sensitive(name string) bool {
	if strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "DYLD_") || strings.HasPrefix(name, "BASH_FUNC_") {
		return true
	}
	return slices.Contains([]string{
		"PATH", "IFS", "ENV", "BASH_ENV", "SHELLOPTS", "GCONV_PATH",
		"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PERL5LIB", "PERL5OPT", "RUBYLIB", "RUBYOPT",
		"NODE_OPTIONS", "NODE_PATH", "JAVA_TOOL_OPTIONS", "GIT_SSH_COMMAND", "GIT_EXEC_PATH",
	}, name)
}

// structured is the event in the JSON format of CloudEvents. JSON data is
// embedded as it is, so that its numbers keep all their digits.
func structured(ev *bus.Event) ([]byte, error) {
	m := map[string]any{"specversion": "1.0", "id": ev.ID, "source": ev.Source, "type": ev.Type}
	for k, v := range ev.Extensions {
		if _, taken := m[k]; !taken {
			m[k] = v
		}
	}
	set := func(k, v string) {
		if v != "" {
			m[k] = v
		}
	}
	set("subject", ev.Subject)
	set("datacontenttype", ev.DataContentType)
	set("dataschema", ev.DataSchema)
	if !ev.Time.IsZero() {
		m["time"] = ev.Time
	}
	switch {
	case len(ev.Data) == 0:
	case bus.IsJSON(ev.DataContentType) && bus.ValidJSON(ev.Data):
		m["data"] = json.RawMessage(ev.Data)
	case utf8.Valid(ev.Data):
		m["data"] = string(ev.Data)
		// Without a content type, data would be read as JSON; a JSON string is.
	default:
		m["data_base64"] = base64.StdEncoding.EncodeToString(ev.Data)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, triggers.Permanentf("event is not JSON: %w", err)
	}
	return b, nil
}
