package exec

import (
	"slices"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/worker"
)

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	if len(c.Command) > 0 && c.Command[0] == "" {
		ck.Errorf("command[0]", specs.CodeInvalidValue, "the program to run", "the program is empty")
	}
	for _, arg := range c.Command {
		// `${x}` may well be meant for `sh -c`; `${ x }` can only be ours.
		if strings.Contains(arg, "${ ") {
			ck.Errorf("command", specs.CodeInvalidValue, "read data on stdin or from a variable of env", "command has no templates, %q would reach the program as it is", arg)
			break
		}
	}
	if c.Mode == modeWorker {
		if c.Stdin != "" {
			ck.Errorf("stdin", specs.CodeInvalidValue, "remove it", "a worker reads lines of JSON with context and payload")
		}
		worker.CheckEnv(ck, c.Env, c.InheritEnv)
		return
	}
	if c.Workers > 0 {
		ck.Errorf("workers", specs.CodeInvalidValue, "add mode: worker, or use the function's concurrency", "the program is started for each call")
	}
	if c.Idle > 0 {
		ck.Errorf("idle", specs.CodeInvalidValue, "add mode: worker", "the program is started for each call, it never waits")
	}
	names := make([]string, 0, len(c.Env))
	for name := range c.Env {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		_, constant := triggers.Literal(c.Env[name].Text)
		switch {
		case name == "" || strings.ContainsAny(name, "=\x00"):
			ck.Errorf("env."+name, specs.CodeInvalidValue, "letters, digits and '_'", "%q is no name of a variable", name)
		case !constant && sensitive(name):
			ck.Errorf("env."+name, specs.CodeInvalidValue, "", sensitiveText)
		}
	}
}
