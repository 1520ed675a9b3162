package webhook

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"testing"

	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

func TestContract(t *testing.T) {
	sourcetest.Run(t, sourcetest.Case{
		Factory: Factory(),
		Config: func() any {
			return config(func(c *Config) {
				c.ID = &ID{Header: "Idempotency-Key"}
				c.Auth = &specs.Auth{Bearer: &specs.SecretRef{Name: "shop", Key: "token"}}
			})
		},
		Secrets: map[string]string{"shop/token": "s3cret"},
		Virtual: true,
		Drive: func(t *testing.T, h *sourcetest.Host) (acknowledged []string) {
			for i := range 200 {
				hdr := []string{"Authorization", "Bearer s3cret", "Content-Type", "application/json"}
				if i%2 == 0 {
					hdr = append(hdr, "Idempotency-Key", fmt.Sprint("key-", i))
				}
				for try := 0; ; try++ {
					w := post(h, fmt.Sprintf(`{"n":%d}`, i), hdr...)
					if w.Code == http.StatusAccepted {
						var answer struct{ ID string }
						if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
							t.Fatal(err)
						}
						acknowledged = append(acknowledged, answer.ID)
						break
					}
					if w.Code != http.StatusServiceUnavailable || try == 50 {
						t.Fatalf("event %d: answer %d %s after %d tries, want 202 or 503", i, w.Code, w.Body, try)
					}
				}
			}
			return acknowledged
		},
	})
}

var update = flag.Bool("update", false, "write the golden files")

func TestDiagnostics(t *testing.T) { sourcetest.Diagnostics(t, Factory(), *update) }
