package driver

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func TestContract(t *testing.T) {
	const n = 25
	dir := t.TempDir()
	sourcetest.Run(t, sourcetest.Case{
		Factory: Factory(),
		Config: func() any {
			return config(specs.Settings{"dir": dir, "n": strconv.Itoa(n)}, func(c *Config) { c.Secrets = []string{"shop"} })
		},
		Env:     environment(probe("work"), map[string]*specs.Secret{"shop": {Env: map[string]string{"pass-word": "X"}}}),
		Secrets: map[string]string{"shop/pass-word": "s3cret"},
		Drive: func(t *testing.T, h *sourcetest.Host) []string {
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			acknowledged := strings.Fields(content(t, filepath.Join(dir, "acknowledged")))
			if len(acknowledged) != n {
				t.Errorf("%d events acknowledged, want %d", len(acknowledged), n)
			}
			// What is on stdout is stored without an answer.
			eventually(t, "all of stdout is stored", func() bool {
				out := 0
				for _, ev := range h.Events() {
					if strings.HasPrefix(ev.ID, "out-") {
						out++
					}
				}
				return out == n
			})
			return acknowledged
		},
	})
}

var update = flag.Bool("update", false, "write the golden files")

func TestDiagnostics(t *testing.T) { sourcetest.Diagnostics(t, Factory(), *update) }
