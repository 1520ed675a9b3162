package python

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/sensor-engine/engine/triggers/triggertest"
)

// echo is the least there is between two processes: a line of JSON in, a line
// out, read and written by the same interpreter.
const echo = `import json, sys
out = sys.stdout
for line in sys.stdin:
    out.write(json.dumps(json.loads(line)) + "\n")
    out.flush()
`

const benched = "source: |\n  def handle(ctx, payload):\n      return payload"

func benchWorkers(b *testing.B, what func(b *testing.B, workers int)) {
	needPython(b)
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", n), func(b *testing.B) { what(b, n) })
	}
}

// BenchmarkCall is a call with everything of the contract, logs included.
func BenchmarkCall(b *testing.B) {
	benchWorkers(b, func(b *testing.B, workers int) {
		triggertest.BenchCalls(b, Factory(), benched, workers)
	})
}

// BenchmarkRawPipe is the ceiling: the echo over pipes, by as many callers.
func BenchmarkRawPipe(b *testing.B) {
	benchWorkers(b, func(b *testing.B, workers int) {
		triggertest.BenchPipes(b, func() *exec.Cmd { return exec.Command(realPython(b), "-c", echo) }, workers)
	})
}

// BenchmarkProcessPerCall starts an interpreter for each call.
func BenchmarkProcessPerCall(b *testing.B) {
	needPython(b)
	for b.Loop() {
		cmd := exec.Command(realPython(b), "-c", echo)
		cmd.Stdin = strings.NewReader(triggertest.BenchPayload + "\n")
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
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
