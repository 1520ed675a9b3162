package specs

import (
	"fmt"
	"strings"
)

// Checker collects what the Validate method of a config finds. A config type
// takes part by having the method `Validate(c *specs.Checker)` on its pointer.
type Checker struct {
	ref    Ref
	prefix string
	place  func(field string) Pos
	found  Diagnostics
}

// NewChecker returns a checker for a config at path in the resource ref, with
// the places of its fields; see [SourceEvent.Places].
func NewChecker(ref Ref, path string, places map[string]Pos) *Checker {
	return &Checker{ref: ref, prefix: path, place: func(field string) Pos {
		for {
			if pos, ok := places[field]; ok || field == "" {
				return pos
			}
			field = field[:max(strings.LastIndexAny(field, ".["), 0)]
		}
	}}
}

// Found returns what was reported so far.
func (c *Checker) Found() Diagnostics { return c.found }

// Errorf reports an error at field, a path below the config such as
// "auth.hmac.header" or "items[2]" ("" for the config itself). When the field
// is absent from the file, the nearest parent present is the place.
func (c *Checker) Errorf(field string, code Code, hint, format string, args ...any) {
	c.report(Error, field, code, hint, fmt.Sprintf(format, args...))
}

// Warnf is Errorf for what is allowed and probably not meant, or risky.
func (c *Checker) Warnf(field string, code Code, hint, format string, args ...any) {
	c.report(Warning, field, code, hint, fmt.Sprintf(format, args...))
}

func (c *Checker) report(s Severity, field string, code Code, hint, text string) {
	c.found = append(c.found, Diagnostic{
		Pos: c.place(field), Severity: s, Code: code, Ref: c.ref, Path: c.Path(field), Message: text, Hint: hint,
	})
}

// Add reports diagnostics found elsewhere, for example by an expression compiler.
func (c *Checker) Add(ds ...Diagnostic) {
	for _, d := range ds {
		if d.Ref == (Ref{}) {
			d.Ref = c.ref
		}
		c.found = append(c.found, d)
	}
}

// Path returns the full path of a field below the config.
func (c *Checker) Path(field string) string {
	if field == "" {
		return c.prefix
	}
	return c.prefix + "." + field
}
