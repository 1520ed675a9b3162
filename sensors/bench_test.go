package sensors

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// payload is about 300 bytes of JSON.
const payload = `{"orderId":"ord-2026-000123456","customer":{"id":73219,"name":"Ada Lovelace","email":"ada@example.com","vip":true},` +
	`"items":[{"sku":"B-100","qty":2,"price":19.95},{"sku":"K-7","qty":1,"price":110.5}],"total":150.4,"currency":"EUR","note":"leave at the door",` +
	`"address":{"city":"London","zip":"N1 9GU","country":"GB"}}`

func benchEvent(name string, seq uint64) *bus.Event {
	return &bus.Event{
		ID: "0192f0c1-7a30-7c35-b8a5", Source: "/shop", Type: "order.created", EventSource: "src", EventName: name,
		DataContentType: "application/json", Data: []byte(payload), Seq: seq, StoredAt: t0,
	}
}

// BenchmarkFilter is the whole way of one event past one sensor with a filter,
// parsing included.
func BenchmarkFilter(b *testing.B) {
	for _, bb := range []struct{ name, when string }{{"fires", "data.total > 100"}, {"no", "data.total > 1000"}, {"missing", "data.sum > 100"}, {"attribute", "type == 'order.created'"}} {
		b.Run(bb.name, func(b *testing.B) {
			s := sensor("a", "t=a")
			s.Dependencies[0].When = expr(bb.when)
			p := compileOK(b, s)
			deps := []int{0}
			n := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				n++
				ev := benchEvent("a", n)
				routing := p.Route(NewView(ev))
				if len(routing.Matches) == 0 {
					continue
				}
				st, fs, _ := p.Step(KeyState{}, Input{LogID: "log", Event: ev, Deps: deps, Time: t0})
				if len(fs) != 1 || !st.Empty() {
					b.Fatal("not fired")
				}
			}
		})
	}
}

// BenchmarkCorrelated is one event of a pair that is correlated by key: half
// of them wait, half of them fire with the rendered input.
func BenchmarkCorrelated(b *testing.B) {
	s := sensor("a b", "t=a && b")
	s.Correlate = expr("data.orderId")
	s.Within = specs.Duration(10 * time.Minute)
	s.Triggers[0].Input = specs.Template{Set: true, Path: "in", Root: map[string]any{"order": text("in.o", "${ a.data }"), "total": text("in.t", "${ b.data.total }")}}
	p := compileOK(b, s)
	var st KeyState
	n := uint64(0)
	deps := [][]int{{0}, {1}}
	names := []string{"a", "b"}
	var waits *bus.Event
	kept := func(uint64) *bus.Event { return waits }
	b.ReportAllocs()
	for b.Loop() {
		n++
		ev := benchEvent(names[n%2], n)
		m := p.Route(NewView(ev)).Matches[0]
		var fs []Firing
		st, fs, _ = p.Step(st, Input{LogID: "log", Key: m.Key, Event: ev, Deps: deps[m.Dep], Time: t0, Kept: kept})
		if len(fs) == 1 != (n%2 == 0) || len(fs) == 1 && fs[0].Err != nil {
			b.Fatal("fired", n, len(fs))
		}
		waits = ev
	}
}

// BenchmarkDependencies is one event of a sensor that waits for one of each of
// its dependencies.
func BenchmarkDependencies(b *testing.B) {
	for _, count := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			all := make([]string, count)
			for i := range all {
				all[i] = string(rune('a' + i))
			}
			p := compileOK(b, sensor(strings.Join(all, " "), "t="+strings.Join(all, " && ")))
			var st KeyState
			v, n, fired := NewView(nil), uint64(0), 0
			deps := []int{0}
			b.ReportAllocs()
			for b.Loop() {
				ev := benchEvent(all[n%uint64(count)], n+1)
				n++
				v.Reset(ev)
				deps[0] = p.Route(v).Matches[0].Dep
				var fs []Firing
				st, fs, _ = p.Step(st, Input{LogID: "log", Event: ev, Deps: deps, Time: t0})
				fired += len(fs)
			}
			if uint64(fired) != n/uint64(count) {
				b.Fatal(fired, n)
			}
		})
	}
}

// BenchmarkManySensors is one event past sensors on one event, each with its
// own filter, of which one fires.
func BenchmarkManySensors(b *testing.B) {
	for name, filter := range map[string]string{
		"guard":   "data.customer.id == %d",
		"guard+":  "data.total > 1 && data.customer.id == %d && data.total < 1e9",
		"noguard": "data.customer.id - %d == 0",
	} {
		for _, count := range []int{1, 10, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, count), func(b *testing.B) { manySensors(b, filter, count) })
		}
	}
}

func manySensors(b *testing.B, filter string, count int) {
	var ps []*Program
	for i := range count {
		s := sensor("a", "t=a")
		s.Dependencies[0].When = expr(fmt.Sprintf(filter, 73219+i))
		ps = append(ps, compileOK(b, s))
	}
	x := NewIndex(ps)
	var found []*Program
	v := NewView(nil)
	deps := []int{0}
	n := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		ev := benchEvent("a", n)
		v.Reset(ev)
		fired := 0
		found, _ = x.Lookup(v, found[:0])
		for _, p := range found {
			if len(p.Route(v).Matches) > 0 {
				_, fs, _ := p.Step(KeyState{}, Input{LogID: "log", Event: ev, Deps: deps, Time: t0})
				fired += len(fs)
			}
		}
		if fired != 1 {
			b.Fatal(fired)
		}
	}
}

// BenchmarkLookup finds one sensor of 10,000 on different events.
func BenchmarkLookup(b *testing.B) {
	var ps []*Program
	for i := range 10_000 {
		s := sensor("a", "t=a")
		s.Dependencies[0].Event = fmt.Sprintf("e%d", i)
		ps = append(ps, compileOK(b, s))
	}
	x := NewIndex(ps)
	ev := benchEvent("e77", 1)
	var found []*Program
	v := NewView(ev)
	b.ReportAllocs()
	for b.Loop() {
		v.Reset(ev)
		if found, _ = x.Lookup(v, found[:0]); len(found) != 1 {
			b.Fatal(len(found))
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	s := sensor("a b", "t=a && b")
	s.Dependencies[0].When = expr("data.total > 100")
	s.Correlate = expr("data.orderId")
	s.Triggers[0].Input = specs.Template{Set: true, Path: "in", Root: map[string]any{"order": text("in.o", "${ a.data }")}}
	b.ReportAllocs()
	for b.Loop() {
		if _, ds := Compile("s", s); ds.HasErrors() {
			b.Fatal(ds)
		}
	}
}

func BenchmarkState(b *testing.B) {
	r := newRun(b, compileOK(b, sensor("a b", "t=a && b")))
	r.play("a")
	st := r.states[""]
	buf := st.Append(nil)
	b.ReportAllocs()
	for b.Loop() {
		buf = st.Append(buf[:0])
		if _, err := DecodeKeyState(buf); err != nil {
			b.Fatal(err)
		}
	}
}
