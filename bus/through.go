package bus

import (
	"context"
	"errors"
	"time"
)

// silence is how long a reader may have nothing before the log is asked whether
// there is still something: the end of a queue can be worked off while it is
// read, and that of a log removed.
const silence = 2 * time.Second

// ReadThrough calls fn for each record of a log from sequence from to to that
// is still there, in their order, and returns the first error. Only the log
// itself says that the rest is gone: one that is away for a while does not.
func ReadThrough(ctx context.Context, log Log, from, to uint64, fn func(Record) error) error {
	if from > to {
		return nil
	}
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
			if errors.Is(err, ErrNotFound) {
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
