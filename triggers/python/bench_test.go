package python

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"testing"

	"github.com/sensor-engine/engine/triggers/triggertest"
)

const benched = "source: |\n  def handle(ctx, payload):\n      return payload"

// BenchmarkCall is a call with everything of the contract, logs included, next
// to the echo, by as many callers as there are workers.
func BenchmarkCall(b *testing.B) {
	needPython(b)
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", n), func(b *testing.B) {
			triggertest.BenchRatio(b, Factory(), benched, func() *exec.Cmd { return exec.Command(realPython(b), "-c", triggertest.EchoPython) }, n)
		})
	}
}

// BenchmarkProcessPerCall starts an interpreter for each call, next to calls.
func BenchmarkProcessPerCall(b *testing.B) {
	needPython(b)
	triggertest.BenchPerCall(b, Factory(), benched, func() *exec.Cmd { return exec.Command(realPython(b), "-c", triggertest.EchoPython) })
}

// BenchmarkMemory is a worker after many calls.
func BenchmarkMemory(b *testing.B) {
	needPython(b)
	triggertest.BenchMemory(b, Factory(), benched)
}

// BenchmarkColdStart is a first call, with the start of its process.
func BenchmarkColdStart(b *testing.B) {
	needPython(b)
	f := Factory()
	for b.Loop() {
		triggertest.BenchFirstCall(b, f, benched)
	}
}

var realPython = func() func(testing.TB) string {
	find := sync.OnceValues(func() (string, error) {
		is, err := (&interpreters{known: map[string]interpreter{}}).find(context.Background(), "", "")
		return is.Executable, err
	})
	return func(t testing.TB) string {
		t.Helper()
		path, err := find()
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
}()
