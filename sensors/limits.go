package sensors

import (
	"cmp"

	"github.com/sensor-engine/engine/specs"
)

// The limits of a sensor that does not say otherwise.
const (
	DefaultKeys  = 1_000_000
	DefaultBytes = 256 << 20
)

// Limits bound what one sensor keeps: correlation keys with state, events that
// wait for one dependency of one trigger under one key, and bytes of all states
// as [Program.Size] counts them. [Program.Step] sees to the events; who holds
// the states sees to the others.
type Limits struct{ Keys, Events, Bytes int }

// limits are those of a spec, defaults filled in.
func limits(s *specs.StateLimits) Limits {
	if s == nil {
		s = &specs.StateLimits{}
	}
	return Limits{Keys: cmp.Or(s.Keys, DefaultKeys), Events: cmp.Or(s.Events, MaxKept), Bytes: int(cmp.Or(s.Bytes, DefaultBytes))}
}

// Limits are those of the sensor.
func (p *Program) Limits() Limits { return p.limits }

// What a state counts in bytes: about what it takes in memory, but the same
// everywhere and in every version.
const (
	keyBytes  = 128
	refBytes  = 32
	flowBytes = 128
)

// Size is what a state counts in bytes, 0 when it is empty: 128 and the length
// of the correlation key, for each event that waits for a trigger or was
// gathered by one 32 and the length of the distinct value, and for each
// workflow under way 128 and 32 for each event it refers to. Payloads are not
// counted: states hold references.
func (p *Program) Size(key string, s *KeyState) int {
	if s.Empty() {
		return 0
	}
	n := keyBytes + len(key)
	for i := range s.triggers() {
		n += p.sizeOf(s.view(i))
	}
	for _, h := range s.holds() {
		n += p.sizeOf(h.kept)
	}
	for i := range s.flows() {
		f := &s.more.flows[i]
		n += flowBytes + p.sizeOf(f.kept)
		for j := range f.steps {
			n += refBytes * len(f.steps[j].answers)
		}
	}
	return n
}

func (p *Program) sizeOf(list []kept) int {
	n := refBytes * len(list)
	if p.distinct != 0 {
		for i := range list {
			n += len(list[i].marks().value)
		}
	}
	return n
}
