package engine_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/engine/jobs"
)

// BenchmarkFunctionLatency posts 500 events a second to a webhook and tells how
// long it takes from there to the end of the call they lead to: stored, folded,
// the job stored, called. The kind log is what the engine takes alone.
func BenchmarkFunctionLatency(b *testing.B) {
	for _, kind := range []struct{ name, spec string }{
		{"log", "log: {message: '${ data.at }', level: debug}"},
		{"python", "python: {source: 'def handle(context, payload): return str(payload[\"at\"])'}"},
		{"node", "node: {source: 'module.exports = (context, payload) => String(payload.at)'}"},
	} {
		b.Run(kind.name, func(b *testing.B) {
			needPython(b)
			r := start(b, written(b, "f.yaml", shop("orders")+"---\n"+head+"kind: Function\nmetadata: {name: f}\nspec:\n  "+kind.spec+"\n---\n"+head+`kind: Sensor
metadata: {name: s}
spec:
  dependencies: [{name: order, source: shop, event: orders}]
  triggers: [{name: call, function: f}]
`), b.TempDir())
			r.post("/orders", `{"at":"0"}`)
			r.until("the first call", func() bool { return r.callsDone() == 1 })
			const rate = 500
			n := max(b.N, rate)
			b.ResetTimer()
			begin := time.Now()
			var wg sync.WaitGroup
			for i := range n {
				time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / rate)))
				wg.Go(func() { r.post("/orders", fmt.Sprintf(`{"at":"%d"}`, time.Now().UnixNano())) })
			}
			wg.Wait()
			r.until("all calls", func() bool { return r.callsDone() == uint64(n)+1 })
			b.StopTimer()
			b.ReportMetric(0, "ns/op")
			took := r.latencies(n)
			for _, p := range []int{50, 90, 99} {
				b.ReportMetric(float64(took[len(took)*p/100].Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
			}
		})
	}
}

// callsDone counts the calls that did.
func (r *running) callsDone() (n uint64) {
	for _, t := range r.e.Jobs().Status() {
		n += t.Stats.Succeeded.Load()
	}
	return n
}

// latencies are the times from when a call's output says its event was sent to
// the end of the call, sorted.
func (r *running) latencies(n int) (out []time.Duration) {
	r.t.Helper()
	r.until("the history", func() bool {
		runs, err := jobs.ReadRuns(r.t.Context(), r.bus, jobs.RunFilter{Limit: n})
		if err != nil {
			r.t.Fatal(err)
		}
		out = out[:0]
		for _, run := range runs {
			var of struct {
				Output     string
				Started    time.Time
				DurationMs float64
			}
			if err := json.Unmarshal(run.JSON, &of); err != nil {
				r.t.Fatal(err)
			}
			var at int64
			if _, err := fmt.Sscan(strings.Trim(of.Output, `"`), &at); err != nil {
				r.t.Fatal(err)
			}
			if at > 0 {
				out = append(out, of.Started.Add(time.Duration(of.DurationMs*float64(time.Millisecond))).Sub(time.Unix(0, at)))
			}
		}
		return len(out) >= n*9/10
	})
	slices.Sort(out)
	return out
}
