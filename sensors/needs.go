package sensors

import "slices"

// NeedsRequest reports whether the sensor may read an event's HTTP request, so
// that it is worth storing.
func (p *Program) NeedsRequest() bool {
	if p.routeNeed.has("request") {
		return true
	}
	return slices.ContainsFunc(p.deps, func(d dependency) bool { return d.need.has("request") || d.distinctNeed.has("request") }) ||
		slices.ContainsFunc(p.triggers, func(t trigger) bool {
			return t.condNeed.has("request") || t.need.has("request") || t.deadLetter != nil && t.deadLetter.need.has("request")
		})
}

func (n *need) has(name string) bool { return n.all || slices.Contains(n.names, name) }
