package fold_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/engine/fold"
)

// stalled is a bus whose JOBS are read with a pause, as after a reconnect, and
// whose checkpoint cannot be written.
type stalled struct {
	bus.Bus
	pauses atomic.Int64
	fixed  atomic.Bool
}

func (s *stalled) Jobs() bus.Queue  { return &stalledQueue{s.Bus.Jobs(), s} }
func (s *stalled) State() bus.Store { return &fixedStore{s.Bus.State(), s} }

type stalledQueue struct {
	bus.Queue
	s *stalled
}

func (q *stalledQueue) Read(ctx context.Context, from uint64, filter string) (bus.Reader, error) {
	rd, err := q.Queue.Read(ctx, from, filter)
	return &stalledReader{Reader: rd, s: q.s}, err
}

type stalledReader struct {
	bus.Reader
	s    *stalled
	done bool
}

func (r *stalledReader) Next(ctx context.Context, limit int) ([]bus.Record, error) {
	if !r.done {
		r.done = true
		r.s.pauses.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return r.Reader.Next(ctx, limit)
}

type fixedStore struct {
	bus.Store
	s *stalled
}

func (s *fixedStore) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	if !s.s.fixed.Load() {
		return 0, errors.New("the checkpoint is not stored")
	}
	return s.Store.Update(ctx, key, v, rev)
}

// A bus that is silent for a while is not a queue that is worked off: the
// firings beyond the checkpoint are found all the same.
func TestRecoveryWaitsForSilentJobs(t *testing.T) {
	t.Parallel()
	b := &stalled{Bus: open(t, bustest.Dir(t))}
	d := fold.New(fold.Options{Bus: b, Cache: fold.NewCache(b.Events(), 100, 1<<20), Logger: quiet(), Rules: twoSensors(t, "1")})
	defer run(d)()
	last := publish(t, b, "orders", 1)
	until(t, "two recoveries", func() bool { return b.pauses.Load() >= 2 })
	b.fixed.Store(true)
	until(t, "the checkpoint", covered(d, last))
	if n := len(allJobs(t, b.Bus)); n != 1 {
		t.Errorf("%d jobs for one firing", n)
	}
}
