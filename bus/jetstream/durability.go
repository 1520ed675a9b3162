package jetstream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sensor-engine/engine/bus"
)

// Durability says what an acknowledged record survives.
type Durability string

// The durabilities.
const (
	// DurabilityOS leaves it to the operating system when a record comes from
	// its memory to the disk, at the latest after two minutes: it survives a
	// crash of the process, not of the machine.
	DurabilityOS Durability = "os"
	// DurabilityFsync brings a record of EVENTS, PARKED and DLQ to the disk
	// before it is acknowledged, and JOBS and STATE when [bus.Log.Sync] asks
	// for it. RUNS, the history, is left to the operating system.
	DurabilityFsync Durability = "fsync"
)

// syncer is the group commit of one stream of the embedded server.
//
// The server writes a record to its file before it acknowledges it, and
// leaves the rest to the operating system. What was acknowledged joins the
// group that waits; one sync runs at a time, for the group as it was when the
// sync began. So a lone record is synced at once and never waits for others,
// and what comes during a sync shares the next one.
//
// A failed sync makes the stream unusable until the server was restarted on
// files written anew: which of the records are on the disk is not known, and
// no later sync would tell.
type syncer struct {
	b     *Bus
	tree  *tree
	name  string
	eager bool // appends wait for their sync

	durable atomic.Uint64 // the last sequence known to be synced
	heals   atomic.Uint64 // how often records may have been lost
	kick    chan struct{}
	ended   chan struct{}

	mu      sync.Mutex
	tickets []ticket
	calls   []syncCall
	last    uint64 // the last sequence acknowledged or read
	epoch   int    // of the numbering
	failure error
	closed  bool
}

// ticket is a write that waits in its slot of the publisher.
type ticket struct{ slot, gen uint32 }

// syncCall waits for a sync, of one sequence or (0) of everything.
type syncCall struct {
	seq uint64
	ch  chan error
}

func newSyncer(b *Bus, lg *stream, eager bool) *syncer {
	s := &syncer{
		b: b, tree: newTree(b.o, lg.name), name: lg.name, eager: eager,
		kick: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	go s.run()
	return s
}

// join adds an acknowledged write to the group that waits.
func (s *syncer) join(t ticket, seq uint64) {
	s.mu.Lock()
	s.tickets = append(s.tickets, t)
	s.last = max(s.last, seq)
	s.mu.Unlock()
	s.wake()
}

// nudge has what no append will sync brought to the disk: records that were
// removed, blocks that the server has replaced. It does not wait.
func (s *syncer) nudge() {
	s.mu.Lock()
	s.calls = append(s.calls, syncCall{0, make(chan error, 1)})
	s.mu.Unlock()
	s.wake()
}

// wait returns when the record seq (0: everything acknowledged) is synced.
func (s *syncer) wait(ctx context.Context, seq uint64) error {
	c := syncCall{seq, make(chan error, 1)}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("sync of %s: the bus is %w", s.name, bus.ErrClosed)
	}
	s.calls = append(s.calls, c)
	s.last = max(s.last, seq)
	s.mu.Unlock()
	s.wake()
	select {
	case err := <-c.ch:
		return err
	case <-ctx.Done():
		return fmt.Errorf("sync of %s: %w", s.name, ctx.Err())
	}
}

func (s *syncer) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// run syncs group after group, until close.
func (s *syncer) run() {
	defer close(s.ended)
	var tickets []ticket
	var calls []syncCall
	for range s.kick {
		for {
			// Under load others are ready to run and about to join; a lone
			// record finds nobody and goes on at once.
			runtime.Gosched()
			s.mu.Lock()
			tickets, s.tickets = s.tickets, tickets[:0]
			calls, s.calls = s.calls, calls[:0]
			last, epoch, err, closed := s.last, s.epoch, s.failure, s.closed
			s.mu.Unlock()
			if len(tickets) == 0 && len(calls) == 0 {
				if closed {
					return
				}
				break
			}
			if err == nil && !closed {
				err = s.sync()
			} else if err == nil {
				err = fmt.Errorf("sync of %s: the bus is %w", s.name, bus.ErrClosed)
			}
			if err == nil {
				calls = s.release(calls, last, epoch)
			}
			for _, t := range tickets {
				s.b.pub.synced(t, err)
			}
			for _, c := range calls {
				c.ch <- err
			}
			clear(calls)
		}
	}
}

// release notes that everything up to last is synced, and adds those to calls
// that came during the sync and waited for no more than that.
func (s *syncer) release(calls []syncCall, last uint64, epoch int) []syncCall {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch != s.epoch {
		return calls
	}
	s.durable.Store(last)
	s.calls = slices.DeleteFunc(s.calls, func(c syncCall) bool {
		if c.seq == 0 || c.seq > last {
			return false
		}
		calls = append(calls, c)
		return true
	})
	return calls
}

// sync brings what was written so far to the disk.
func (s *syncer) sync() error {
	err := s.tree.sync()
	if err == nil {
		return nil
	}
	s.b.suspect.Store(true)
	if errors.Is(err, fs.ErrNotExist) {
		s.b.wake()
		return fmt.Errorf("sync of %s: the stream was removed: %w: %w", s.name, bus.ErrUnavailable, err)
	}
	err = fmt.Errorf("sync of %s failed, so its last records may not be on the disk: %w: %w", s.name, bus.ErrUnavailable, err)
	s.mu.Lock()
	s.failure = err
	s.mu.Unlock()
	s.b.o.Logger.Error("sync failed", "stream", s.name, "error", err)
	s.b.refresh()
	s.b.wake()
	return err
}

// failed is the error of a sync, until reset.
func (s *syncer) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// renumber forgets what is synced: the log may have other records under the
// same sequences.
func (s *syncer) renumber() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.last = 0
	s.durable.Store(0)
}

// heal writes anew what a failed sync has left uncertain. The server is down.
func (s *syncer) heal() error {
	s.renumber()
	if s.failed() == nil {
		return nil
	}
	if err := s.tree.rewrite(); err != nil {
		return fmt.Errorf("writing the blocks of %s anew: %w", s.name, err)
	}
	s.heals.Add(1)
	s.mu.Lock()
	s.failure = nil
	s.mu.Unlock()
	return nil
}

// close ends the syncer; what waits gets [bus.ErrClosed].
func (s *syncer) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wake()
	<-s.ended
}

// durably makes the syncers, where there is something to sync.
func (b *Bus) durably() {
	if b.o.Durability != DurabilityFsync {
		return
	}
	for _, lg := range []*stream{b.events, b.parked, b.dlq} {
		lg.syncer = newSyncer(b, lg, true)
	}
	for _, lg := range []*stream{b.jobs, b.state} {
		lg.syncer = newSyncer(b, lg, false)
	}
}

// restore repairs what a power loss has left of the store, before the embedded
// server starts for the first time.
func (b *Bus) restore() error {
	for _, lg := range b.logs {
		if err := restoreBlocks(b.o, lg.name); err != nil {
			return storeError(b.o.Dir, err)
		}
		if b.o.Durability == DurabilityFsync {
			continue
		}
		if err := os.RemoveAll(filepath.Join(streamDir(b.o, lg.name), heldDir)); err != nil {
			return storeError(b.o.Dir, err)
		}
	}
	return nil
}

// nudge has everything synced that is not, soon.
func (b *Bus) nudge() {
	for _, lg := range b.logs {
		if lg.syncer != nil {
			lg.syncer.nudge()
		}
	}
}

// settle brings what the server wrote last to the disk, after its end.
func (b *Bus) settle() {
	for _, lg := range b.logs {
		if lg.syncer == nil {
			continue
		}
		if err := lg.syncer.tree.sync(); err != nil {
			b.o.Logger.Warn("last sync failed", "stream", lg.name, "error", err)
		}
	}
}

// syncAll brings the whole store to the disk.
func (b *Bus) syncAll() error {
	if b.o.Durability != DurabilityFsync {
		return nil
	}
	if err := syncStore(b.o); err != nil {
		return err
	}
	for _, lg := range b.logs {
		if lg.syncer == nil {
			continue
		}
		lg.syncer.tree.look()
		if err := lg.syncer.sync(); err != nil {
			return err
		}
	}
	return nil
}

// syncFailure says which sync failed, or "".
func (b *Bus) syncFailure() string {
	for _, lg := range b.logs {
		if lg.syncer == nil {
			continue
		}
		if err := lg.syncer.failed(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// heal prepares the store for the next start of the embedded server.
func (b *Bus) heal() error {
	for _, lg := range b.logs {
		if lg.syncer == nil {
			continue
		}
		if err := lg.syncer.heal(); err != nil {
			return err
		}
	}
	return nil
}

// Sync implements [bus.Log] and [bus.Store].
func (lg *stream) Sync(ctx context.Context) error {
	if lg.syncer == nil {
		return nil
	}
	return lg.syncer.wait(ctx, 0)
}
