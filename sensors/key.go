package sensors

import (
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/bus"
)

// KeyOf is the correlation key of a value, which is "" for nil, as of a sensor
// that does not correlate.
func KeyOf(value any) (string, error) {
	if value == nil {
		return "", nil
	}
	return correlationKey(value)
}

// KeyValue is the JSON value a correlation key stands for, nil for "", which is
// none; that of a key that is too long to be kept is the key itself.
func KeyValue(key string) any {
	text, ok := strings.CutPrefix(key, "#")
	switch {
	case key == "":
		return nil
	case !ok:
		return key
	case strings.HasPrefix(text, `"`):
		if s, err := strconv.Unquote(text); err == nil {
			return s
		}
	}
	if v, err := bus.ParseJSON([]byte(text)); err == nil {
		return v
	}
	return key
}
