package wasm

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	if c.Memory < pageSize || c.Memory > maxMemory {
		ck.Errorf("memory", specs.CodeInvalidValue, "for example 64MiB", "memory is from 64KiB to 4GiB")
	}
	if c.Mode == modeWorker && c.Stdin != "" {
		ck.Errorf("stdin", specs.CodeInvalidValue, "leave one of them out", "with mode worker, stdin has the call")
	}
	for _, arg := range c.Args {
		if strings.Contains(arg, "${ ") {
			ck.Errorf("args", specs.CodeInvalidValue, "read data on stdin or from a variable of env", "args have no templates, %q would reach the program as it is", arg)
			break
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			ck.Errorf("env."+name, specs.CodeInvalidValue, "letters, digits and '_'", "%q is no name of a variable", name)
		}
	}
	seen := map[string]bool{}
	for i, m := range c.Mounts {
		field := "mounts[" + strconv.Itoa(i) + "]"
		switch {
		case m.Host == "" || m.Guest == "": // required
		case !strings.HasPrefix(m.Guest, "/") || path.Clean(m.Guest) != m.Guest:
			ck.Errorf(field+".guest", specs.CodeInvalidValue, "for example /data", "%q is no absolute path without . and ..", m.Guest)
		case seen[m.Guest]:
			ck.Errorf(field+".guest", specs.CodeInvalidValue, "", "%s is mounted twice", m.Guest)
		}
		seen[m.Guest] = true
	}
}

// check reports what is wrong with the module a config names.
func check(config any, dir string, ck *specs.Checker) {
	c := config.(*Config)
	if c.File == "" {
		return // it is required
	}
	r, err := open(triggers.Join(dir, c.File))
	if err != nil {
		triggers.Unreadable(ck, "file", c.File, err)
		return
	}
	defer r.Close()
	o, err := readOutline(r)
	if err == nil {
		err = o.check(c.limit())
	}
	if err != nil {
		ck.Errorf("file", specs.CodeInvalidValue, "", "%s: %v", c.File, err)
	}
}
