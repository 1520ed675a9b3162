package fold_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/specs"
)

// noState is a bus that does not store sensor state while it is told so.
type noState struct {
	bus.Bus
	refuse  atomic.Bool
	refused atomic.Int64
}

func (n *noState) State() bus.Store { return &noStore{n.Bus.State(), n} }

type noStore struct {
	bus.Store
	n *noState
}

func (s *noStore) PutAsync(ctx context.Context, key string, v []byte, done func(uint64, error)) error {
	if s.n.refuse.Load() && strings.HasPrefix(key, "sensor.") {
		s.n.refused.Add(1)
		return errors.New("the state is not stored")
	}
	return s.Store.PutAsync(ctx, key, v, done)
}

// A deadline after the last event fires once, however often the fold starts
// again before it could store that it did, and the job may not leave JOBS
// before that is stored: afterwards nothing would tell that it was there.
func TestDeadlineFiresOnceOverRestarts(t *testing.T) {
	b := &noState{Bus: open(t, bustest.Dir(t))}
	rules := compile(t, "1", map[string]*specs.Sensor{"watch": {
		Dependencies: []specs.Dependency{
			{Name: "order", Source: "shop", Event: "orders"},
			{Name: "payment", Source: "shop", Event: "payments", Absent: &specs.Absent{For: specs.Duration(300 * time.Millisecond), After: "order"}},
		},
		Correlate: expr("data.id"), Triggers: trigger(),
	}})
	var released atomic.Uint64
	d := fold.New(fold.Options{
		Bus: b, Cache: fold.NewCache(b.Events(), 100, 1<<20), Logger: quiet(), Rules: rules,
		Covered: func(_, job uint64) { released.Store(max(job, released.Load())) },
	})
	defer run(d)()
	until(t, "the wait", covered(d, publish(t, b, "orders", 1)))
	b.refuse.Store(true)
	until(t, "the firing", func() bool { return len(allJobs(t, b)) == 1 })
	if j := allJobs(t, b)[0]; !j.Trailing {
		t.Errorf("%+v is not said to trail the checkpoint", j)
	}
	until(t, "some restarts", func() bool { return b.refused.Load() >= 3 })
	info, err := b.Jobs().Info(t.Context())
	if err != nil || info.Records != 1 || released.Load() >= info.Last {
		t.Errorf("%d jobs up to %d, of which those up to %d may leave; %v", info.Records, info.Last, released.Load(), err)
	}
	b.refuse.Store(false)
	until(t, "the end of the wait", func() bool { p, err := d.Pending(t.Context(), "", 9); return err == nil && len(p) == 0 })
	until(t, "the release", func() bool { return released.Load() >= info.Last })
	if n := len(allJobs(t, b)); n != 1 {
		t.Errorf("%d jobs, want 1", n)
	}
}
