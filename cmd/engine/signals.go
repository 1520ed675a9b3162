package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sensor-engine/engine/engine"
)

// signals are those an engine listens to, from its first moment on.
type signals struct{ end, hangup chan os.Signal }

func listenToSignals() *signals {
	s := &signals{make(chan os.Signal, 2), make(chan os.Signal, 1)}
	signal.Notify(s.end, os.Interrupt, syscall.SIGTERM)
	signal.Notify(s.hangup, syscall.SIGHUP)
	return s
}

func (s *signals) ignore() {
	signal.Stop(s.end)
	signal.Stop(s.hangup)
}

// sameSignal is the time within which two signals are one: a terminal or a
// supervisor may send it to the process and to its group.
const sameSignal = 300 * time.Millisecond

// await calls stop at the first signal and exit at the second, until ended is
// closed.
func (s *signals) await(log *slog.Logger, stop func(), exit func(code int), ended <-chan struct{}) {
	var first time.Time
	for {
		select {
		case sig := <-s.end:
			switch {
			case first.IsZero():
				first = time.Now()
				log.Info("stopping; another signal ends at once", "signal", sig.String())
				stop()
			case time.Since(first) > sameSignal:
				log.Warn("second signal: ending at once", "signal", sig.String())
				exit(exitFailure)
				return
			}
		case <-ended:
			return
		}
	}
}

// reload reads the files again at each SIGHUP, until ctx ends.
func (s *signals) reload(ctx context.Context, eng *engine.Engine, log *slog.Logger) {
	for {
		select {
		case <-s.hangup:
			if _, err := eng.Reload(ctx, false); err != nil && ctx.Err() == nil {
				log.Error("reload failed", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
