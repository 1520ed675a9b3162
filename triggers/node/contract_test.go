package node

import (
	"os/exec"
	"testing"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// needNode skips a test where there is no Node.
func needNode(t testing.TB) {
	t.Helper()
	triggertest.Need(t, exec.Command("node", "-e", "0"), "nodejs")
}

func TestContract(t *testing.T) {
	needNode(t)
	triggertest.Run(t, triggertest.Suite{
		Factory:   Factory(),
		OK:        "file: testdata/probe.js",
		Slow:      "source: module.exports = () => new Promise(() => setTimeout(() => {}, 1e6))",
		Permanent: "source: module.exports = () => { throw new TypeError('no') }",
		Retryable: "source: module.exports = async () => { throw new Error('no') }",
		Key:       "source: module.exports = (c) => c.key",
		Env:       triggers.Env{Dir: ".", Concurrency: 2},
		Worker: &triggertest.Worker{
			Factory: Factory(), Config: "file: testdata/probe.js", Env: triggers.Env{Dir: "."},
			Cannot: map[string]string{"fork": "Node has no fork that shares code", "long": "JavaScript's numbers have 53 bits", "close": "its descriptors cannot be closed"},
		},
	})
}
