package calendar

import (
	"flag"
	"testing"
	"time"

	"github.com/sensor-engine/engine/sources/sourcetest"
)

func TestContract(t *testing.T) {
	sourcetest.Run(t, sourcetest.Case{
		Factory: Factory(),
		Config:  func() any { return &Config{Schedule: "* * * * * *"} },
		Virtual: true,
		Drive: func(t *testing.T, h *sourcetest.Host) []string {
			time.Sleep(2*time.Minute + time.Second/2)
			var last time.Time
			for _, ev := range h.Events() {
				if !last.IsZero() && ev.Time.Sub(last) != time.Second {
					t.Errorf("the occurrence of %v follows that of %v", ev.Time, last)
				}
				last = ev.Time
			}
			if late := time.Since(last); late > 20*time.Second {
				t.Errorf("the last occurrence is %v ago", late)
			}
			return nil
		},
	})
}

var update = flag.Bool("update", false, "write the golden files")

func TestDiagnostics(t *testing.T) { sourcetest.Diagnostics(t, Factory(), *update) }
