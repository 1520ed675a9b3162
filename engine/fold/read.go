package fold

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/sensor-engine/engine/bus"
)

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
