package fold

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// silence is how long a reader of a queue may have nothing before it is asked
// whether there is still something: the end of a queue can be worked off while
// it is read.
const silence = 2 * time.Second

// readThrough calls fn for each record of a queue from sequence from to to that
// is still there. Only the queue itself says that the rest is gone: a bus that
// is away for a while does not.
func readThrough(ctx context.Context, log bus.Log, from, to uint64, fn func(bus.Record) error) error {
	rd, err := log.Read(ctx, from, "")
	if err != nil {
		return err
	}
	defer rd.Close()
	for at := from; at <= to; {
		wait, cancel := context.WithTimeout(ctx, silence)
		recs, err := rd.Next(wait, 1024)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			next, err := log.Next(ctx, "", at)
			if errors.Is(err, bus.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			if next.Seq > to {
				return nil
			}
			continue
		default:
			return err
		}
		for _, r := range recs {
			if at = r.Seq + 1; r.Seq > to {
				return nil
			}
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// settleJobs waits until everything published to JOBS before is stored or
// refused: a bus takes what one connection sends in its order, so that what it
// answers to now comes after all of that. It asks for what cannot be stored.
func settleJobs(ctx context.Context, jobs bus.Log) error {
	never := uint64(math.MaxInt64)
	_, err := jobs.Append(ctx, bus.Record{Subject: bus.JobsPrefix + "fence", Fence: &never})
	switch {
	case err == nil:
		return errors.New("JOBS stored a record that it must refuse")
	case errors.Is(err, bus.ErrConflict), errors.Is(err, bus.ErrFull):
		return nil
	}
	return fmt.Errorf("waiting for earlier writes to JOBS: %w", err)
}
