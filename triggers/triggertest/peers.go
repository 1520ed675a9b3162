package triggertest

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

// Certificate returns a certificate of 127.0.0.1 and example.com for a server,
// and writes the authority that vouches for it as ca.pem into dir.
func Certificate(t testing.TB, dir string) tls.Certificate {
	t.Helper()
	web := httptest.NewTLSServer(nil) // has one
	defer web.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return web.TLS.Certificates[0]
}

// Together makes a function of each config, by one Factory; call makes a call of
// all of them at the same time.
func Together(t testing.TB, f triggers.Factory, configs ...string) (fs []triggers.Function, call func() error) {
	t.Helper()
	var values []*Values
	for _, c := range configs {
		fn, v := Make(t, f, c, nil, triggers.Env{})
		fs, values = append(fs, fn), append(values, v)
	}
	return fs, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		errs := make([]error, len(fs))
		for i, fn := range fs {
			wg.Go(func() {
				c := NewCall("k")
				c.Values = values[i].Of(c)
				_, errs[i] = fn.Invoke(ctx, c)
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}
