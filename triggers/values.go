package triggers

import (
	"strings"

	"github.com/sensor-engine/engine/specs"
)

// Constant reports whether t has no templates, so that its value is its text.
func Constant(t specs.Text) bool { return !strings.Contains(t.Value, "${") }
