package generic

import (
	"flag"
	"testing"

	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func TestContract(t *testing.T) {
	s := newServer(t, "", count(200))
	sourcetest.Run(t, sourcetest.Case{
		Factory: Factory(),
		Config: func() any {
			return config(s.addr, func(c *Config) {
				c.Auth = &Auth{Bearer: specs.SecretRef{Name: "shop", Key: "token"}}
			})
		},
		Secrets: map[string]string{"shop/token": "s3cret"},
		Drive: func(t *testing.T, h *sourcetest.Host) []string {
			eventually(t, "all events are stored", func() bool { return len(h.Events()) >= 200 })
			numbers(t, h, 200)
			return nil
		},
	})
}

var update = flag.Bool("update", false, "write the golden files")

func TestDiagnostics(t *testing.T) { sourcetest.Diagnostics(t, Factory(), *update) }
