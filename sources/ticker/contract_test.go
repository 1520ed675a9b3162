package ticker

import (
	"flag"
	"testing"
	"time"

	"github.com/sensor-engine/engine/sources/sourcetest"
)

func TestContract(t *testing.T) {
	sourcetest.Run(t, sourcetest.Case{
		Factory: Factory(),
		Config:  func() any { return &Config{Seconds: 1, Immediate: true} },
		Virtual: true,
		Drive: func(t *testing.T, h *sourcetest.Host) []string {
			time.Sleep(time.Minute + time.Second/2)
			next := 1
			for _, ev := range h.Events() {
				// Every tick is there, or counted as missed by the next one.
				tick := decode(t, ev)
				if tick.Count != next+tick.Missed {
					t.Errorf("tick %d with %d missed follows tick %d", tick.Count, tick.Missed, next-1)
				}
				next = tick.Count + 1
			}
			return nil
		},
	})
}

var update = flag.Bool("update", false, "write the golden files")

func TestDiagnostics(t *testing.T) { sourcetest.Diagnostics(t, Factory(), *update) }
