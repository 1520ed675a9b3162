package exec

import (
	"sync"
	"syscall"
	"time"
)

// group is the process group of one call.
type group struct {
	pid   int
	mu    sync.Mutex
	ended bool
	timer *time.Timer
}

// terminate asks the group to end and, after the grace, makes it.
func (g *group) terminate() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return
	}
	_ = syscall.Kill(-g.pid, syscall.SIGTERM)
	g.timer = time.AfterFunc(grace, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.ended {
			_ = syscall.Kill(-g.pid, syscall.SIGKILL)
		}
	})
}

// end kills what is left of the group. No signal is sent after the first call.
func (g *group) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return
	}
	_ = syscall.Kill(-g.pid, syscall.SIGKILL)
	g.ended = true
	if g.timer != nil {
		g.timer.Stop()
	}
}
