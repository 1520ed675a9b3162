package engine

import (
	"context"
	"time"
)

// Lag is how long the oldest event that is not yet evaluated has been stored,
// 0 when there is none. It blocks on the bus.
func (e *Engine) Lag(ctx context.Context) (time.Duration, error) { return e.fold.Lag(ctx) }
