package exec

import (
	"slices"
	"strings"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/program"
)

// environ is the environment of one call.
func (f *function) environ(c *triggers.Call) ([]string, error) {
	own, err := program.Environ(c, f.cfg.Env, func(name string) string {
		if sensitive(name) {
			return "which decides what code runs"
		}
		return ""
	})
	if err != nil {
		return nil, err
	}
	return slices.Concat(f.base, own), nil
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
