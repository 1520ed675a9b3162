package node

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/sensor-engine/engine/triggers/triggertest"
)

const benched = "source: module.exports = (context, payload) => payload"

// BenchmarkCall is a call with everything of the contract, logs included, next
// to the echo, by as many callers as there are workers.
func BenchmarkCall(b *testing.B) {
	needNode(b)
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", n), func(b *testing.B) {
			triggertest.BenchRatio(b, Factory(), benched, func() *exec.Cmd { return exec.Command("node", "-e", triggertest.EchoNode) }, n)
		})
	}
}

// BenchmarkProcessPerCall starts an interpreter for each call, next to calls.
func BenchmarkProcessPerCall(b *testing.B) {
	needNode(b)
	triggertest.BenchPerCall(b, Factory(), benched, func() *exec.Cmd { return exec.Command("node", "-e", triggertest.EchoNode) })
}

// BenchmarkMemory is a worker after many calls.
func BenchmarkMemory(b *testing.B) {
	needNode(b)
	triggertest.BenchMemory(b, Factory(), benched)
}

// BenchmarkColdStart is a first call, with the start of its process.
func BenchmarkColdStart(b *testing.B) {
	needNode(b)
	f := Factory()
	for b.Loop() {
		triggertest.BenchFirstCall(b, f, benched)
	}
}
