package python

import (
	"os/exec"
	"testing"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// needPython skips a test where there is no Python.
func needPython(t testing.TB) {
	t.Helper()
	triggertest.Need(t, exec.Command("python3", "-c", "import sys"), "python3")
}

func TestContract(t *testing.T) {
	needPython(t)
	triggertest.Run(t, triggertest.Suite{
		Factory:   Factory(),
		OK:        "file: testdata/probe.py",
		Slow:      "source: |\n  import time\n  def handle(c, p): time.sleep(1000)",
		Permanent: "source: |\n  def handle(c, p): raise ValueError('no')",
		Retryable: "source: |\n  def handle(c, p): raise RuntimeError('no')",
		Key:       "source: |\n  def handle(c, p): return c.key",
		Env:       triggers.Env{Dir: ".", Concurrency: 2},
		Worker:    &triggertest.Worker{Factory: Factory(), Config: "file: testdata/probe.py", Env: triggers.Env{Dir: "."}},
	})
}
