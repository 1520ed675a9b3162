package jetstream

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// options are small and quick ones for tests.
func options(t testing.TB) Options {
	return Options{Dir: t.TempDir(), MaxPayload: mib, RedeliverAfter: time.Second, MinFree: -1, Reserve: -1, CheckInterval: 20 * time.Millisecond}
}

func mustOpen(t testing.TB, o Options) *Bus {
	t.Helper()
	b, err := Open(context.Background(), o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := b.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

func TestEmbedded(t *testing.T) {
	bustest.Run(t, bustest.Config{
		Open: func(t *testing.T) bus.Bus { return mustOpen(t, options(t)) },
		Small: func(t *testing.T) bus.Bus {
			o := options(t)
			o.Limits.Events, o.Limits.Runs = mib, mib
			return mustOpen(t, o)
		},
		Redeliver: time.Second,
	})
}
