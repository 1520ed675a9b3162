package evaluate_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/evaluate"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

var million = flag.Bool("million", false, "benchmarks with a million keys, too")

// sizes are the numbers of live keys that are compared.
func sizes() []int {
	if *million {
		return []int{1000, 1_000_000}
	}
	return []int{1000, 50_000}
}

// sink lets what a benchmark decides go.
type sink struct {
	e              *evaluate.Evaluator
	fired, evicted int
}

func (s *sink) Undecided([]sensors.GroupVerdict) {}
func (s *sink) Routed(int, sensors.Routing)      {}
func (s *sink) Stepped(int, []sensors.Verdict)   {}
func (s *sink) Evicted(int, evaluate.Eviction)   { s.evicted++ }
func (s *sink) Fired(_ int, _ *sensors.Firing)   { s.fired++ }
func (s *sink) Changed(k evaluate.Key, en *evaluate.Entry) {
	if en.State.Empty() {
		s.e.Drop(k)
	}
}

// keyed is an evaluator with one sensor that pairs a and b by key, in which n
// keys wait for b.
type keyed struct {
	sink
	seq uint64
	now time.Time
}

func newKeyed(b testing.TB, n int, l specs.StateLimits, within time.Duration) *keyed {
	k := &keyed{now: began}
	k.e = evaluate.New(&k.sink, "log", 0, began, evaluate.Events{}.Load)
	k.e.Use([]evaluate.Sensor{limited(b, l, func(s *specs.Sensor) { s.Within = specs.Duration(within) })})
	for i := range n {
		k.send("a", i)
	}
	if keys, _ := k.e.Usage(0); keys != min(n, max(l.Keys, sensors.DefaultKeys)) && l.Keys == 0 {
		b.Fatal(keys)
	}
	return k
}

// send evaluates an event of about 300 bytes.
func (k *keyed) send(name string, key int) {
	k.seq++
	k.now = k.e.Now().Add(time.Microsecond)
	k.e.Advance(k.seq, k.now)
	k.e.Event(&bus.Event{
		ID: "0192f0c1-7a30-7c35-b8a5", Source: "/shop", Type: "order.created", EventSource: "s", EventName: name, DataContentType: "application/json",
		Data: fmt.Appendf(make([]byte, 0, 320), `{"key":"ord-2026-%09d","customer":{"id":73219,"name":"Ada Lovelace","email":"ada@example.com","vip":true},`+
			`"items":[{"sku":"B-100","qty":2,"price":19.95},{"sku":"K-7","qty":1,"price":110.5}],"total":150.4,"currency":"EUR","note":"leave at the door"}`, key),
		Seq: k.seq, StoredAt: k.now,
	})
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkLiveKeys is one event on a random key of many that wait, half of
// which fire while the others begin to wait again, and what a waiting key takes.
func BenchmarkLiveKeys(b *testing.B) {
	for _, within := range []time.Duration{0, time.Hour} {
		for _, n := range sizes() {
			b.Run(fmt.Sprintf("within=%s/keys=%d", within, n), func(b *testing.B) {
				before := heap()
				k := newKeyed(b, n, specs.StateLimits{Keys: 2 * n}, within)
				size := float64(heap()-before) / float64(n)
				rng := rand.New(rand.NewPCG(1, 2))
				waits := -1
				b.ReportAllocs()
				for b.Loop() {
					if waits >= 0 {
						k.send("a", waits)
						waits = -1
						continue
					}
					waits = rng.IntN(n)
					k.send("b", waits)
				}
				if k.fired < b.N/2 {
					b.Fatal(k.fired, b.N)
				}
				b.ReportMetric(size, "B/key")
			})
		}
	}
}

// BenchmarkEviction is one event on a new key when as many wait as may.
func BenchmarkEviction(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint("keys=", n), func(b *testing.B) {
			k := newKeyed(b, n+1, specs.StateLimits{Keys: n}, 0)
			next := n
			b.ReportAllocs()
			for b.Loop() {
				next++
				k.send("a", next)
			}
			if k.evicted != b.N+1 {
				b.Fatal(k.evicted, b.N)
			}
		})
	}
}

// BenchmarkExpiry is the deadline of one of many keys.
func BenchmarkExpiry(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint("keys=", n), func(b *testing.B) {
			k := newKeyed(b, n, specs.StateLimits{Keys: 2 * n}, time.Hour)
			next, left := n, n
			b.ReportAllocs()
			for b.Loop() {
				at, ok := k.e.NextWake()
				if !ok {
					b.Fatal("nothing expires")
				}
				k.e.Deadlines(at)
				if left--; left == 0 { // all over again
					b.StopTimer()
					for range n {
						next++
						k.send("a", next)
					}
					left = n
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deadlines/s")
		})
	}
}
