package sensors

import (
	"slices"

	"github.com/sensor-engine/engine/specs/expression"
)

// FieldReads calls yield for each place where an expression of the sensor
// reads a field of the data that a dependency's events come with: not of what
// a transform makes of it. dep is the index of the dependency. A place shared
// by several triggers, or a correlation that several dependencies share, comes
// once for each.
func (p *Program) FieldReads(yield func(dep int, r expression.FieldRead)) {
	all := func(dep int, rs []expression.FieldRead) {
		for _, r := range rs {
			yield(dep, r)
		}
	}
	byName := make(map[string]int, len(p.deps))
	for i := range p.deps {
		d := &p.deps[i]
		if d.transform != nil {
			all(i, d.transform.FieldReads())
			continue
		}
		byName[d.name] = i
		if d.when != nil {
			all(i, d.when.FieldReads())
		}
		if d.distinct != nil {
			all(i, d.distinct.FieldReads())
		}
		if p.correlate != nil && plainField(p.correlate) {
			all(i, p.correlate.FieldReads())
		}
	}
	firing := func(rs []expression.FieldRead) {
		for _, r := range rs {
			if dep, ok := byName[r.Dependency]; ok {
				yield(dep, r)
			}
		}
	}
	for i := range p.triggers {
		t := &p.triggers[i]
		if t.cond != nil {
			firing(t.cond.FieldReads())
		}
		if t.fan != nil {
			firing(t.fan.in.FieldReads())
			if t.fan.key != nil {
				firing(t.fan.key.FieldReads())
			}
		}
		for _, tmpl := range t.templates {
			if tmpl.tmpl != nil {
				firing(tmpl.tmpl.FieldReads())
			}
		}
		if t.deadLetter != nil {
			for _, tmpl := range t.deadLetter.templates {
				firing(tmpl.tmpl.FieldReads())
			}
		}
	}
}

// plainField reports whether an expression reads one field of data and nothing
// else. One that tells the dependencies apart may read what only some have.
func plainField(p *expression.Program) bool {
	names, all := p.Attributes()
	rs := p.FieldReads()
	return !all && slices.Equal(names, []string{"data"}) && len(rs) == 1 && !rs[0].Optional
}
