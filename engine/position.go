package engine

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/sources"
)

// maxCursor is the longest cursor in bytes: it travels as a header.
const maxCursor = 4 << 10

// cursorEvery is how long a cursor waits that is not written with its event.
const cursorEvery = time.Second

// position is the durable position of one source, a [sources.Cursor].
//
// An event that is emitted while all before it are stored carries its cursor
// itself: one write. The cursors of events on their way together, and of
// those a filter dropped, are stored a little later, when everything before
// them is stored: a crash repeats some events, whose ids tell, and never
// skips one.
type position struct {
	key unitKey
	bus bus.Bus
	log func(context.Context) (string, error) // identity of EVENTS
	out *slog.Logger

	mu     sync.Mutex
	loaded bool
	id     string // of the log when it was loaded
	last   uint64 // the source's last event in the log, 0 when none is left
	seq    uint64 // the last event that the cursor is known to be after
	value  string // the newest cursor that is stored

	// Events since it was loaded, numbered from 1. All up to low are stored;
	// early are those beyond it. After a failure none counts until the source
	// loads its cursor again.
	sent, low uint64
	early     map[uint64]struct{}
	broken    bool
	epoch     uint64
	due       string // cursor to store when low reaches dueAt
	dueAt     uint64
	timer     *time.Timer
}

var _ sources.Cursor = (*position)(nil)

// Load returns the newest cursor.
func (p *position) Load(ctx context.Context) (string, error) {
	id, err := p.log(ctx)
	if err != nil {
		return "", err
	}
	c, last, err := fold.ReadCursor(ctx, p.bus, id, p.key.source, p.key.event)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loaded, p.id, p.last, p.value = true, id, last, c.Value
	if p.seq = last; c.Log == id {
		p.seq = max(last, c.Seq)
	}
	p.sent, p.low, p.early, p.broken, p.due, p.dueAt = 0, 0, nil, false, "", 0
	p.epoch++
	return c.Value, nil
}

// Store moves the cursor without an event.
func (p *position) Store(ctx context.Context, value string) error {
	if len(value) > maxCursor {
		return fmt.Errorf("a cursor of %d bytes is too long: at most %d", len(value), maxCursor)
	}
	p.mu.Lock()
	id, seq := p.id, p.seq
	p.mu.Unlock()
	if id == "" {
		var err error
		if id, err = p.log(ctx); err != nil {
			return err
		}
	}
	if err := fold.StoreCursor(ctx, p.bus.State(), p.key.source, p.key.event, fold.Cursor{Log: id, Seq: seq, Value: value}); err != nil {
		return err
	}
	p.mu.Lock()
	p.value = value
	p.mu.Unlock()
	return nil
}

// ticket is one event on its way.
type ticket struct{ n, epoch uint64 }

// begin notes that an event is handed over. It returns the cursor the event
// itself carries and, when it is fenced, the sequence of the one before it.
func (p *position) begin(cursor string, fenced bool) (t ticket, carried string, fence *uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.loaded {
		return ticket{}, cursor, nil
	}
	idle := p.sent == p.low
	p.sent++
	t = ticket{p.sent, p.epoch}
	switch {
	case cursor == "":
		carried = p.value // so that the last event has it
	case fenced:
		last := p.last
		return t, cursor, &last
	case idle && !p.broken:
		carried = cursor
	default:
		carried = p.value
		p.mark(cursor)
	}
	return t, carried, nil
}

// end notes what became of an event.
func (p *position) end(t ticket, cursor string, ack bus.Ack, err error) {
	if t.n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.epoch != p.epoch {
		return
	}
	if err != nil {
		p.broken, p.due = true, ""
		return
	}
	p.last, p.seq = max(p.last, ack.Seq), max(p.seq, ack.Seq)
	if !ack.Duplicate {
		p.value = cursor
	}
	if t.n != p.low+1 {
		if p.early == nil {
			p.early = map[uint64]struct{}{}
		}
		p.early[t.n] = struct{}{}
		return
	}
	p.low++
	for len(p.early) > 0 {
		if _, ok := p.early[p.low+1]; !ok {
			break
		}
		delete(p.early, p.low+1)
		p.low++
	}
}

// forgive takes a failed event back that was alone: the source emits it again.
func (p *position) forgive(t ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.epoch == p.epoch && t.n > 0 && t.n == p.sent && p.low+1 == t.n {
		p.sent--
		p.broken = false
	}
}

// skip notes the cursor of an event that is not stored.
func (p *position) skip(cursor string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.loaded && cursor != "" {
		p.mark(cursor)
	}
}

// mark has a cursor stored when everything handed over so far is. mu is held.
func (p *position) mark(cursor string) {
	if p.broken {
		return
	}
	p.due, p.dueAt = cursor, p.sent
	if p.timer == nil {
		p.timer = time.AfterFunc(cursorEvery, func() { p.flush(context.Background(), true) })
	}
}

// flush stores the cursor that is due, and looks again later when it is not
// yet time for it.
func (p *position) flush(ctx context.Context, again bool) {
	p.mu.Lock()
	due, ready := p.due, p.low >= p.dueAt
	p.timer = nil
	if due != "" && ready {
		p.due = ""
	}
	if due != "" && !ready && again {
		p.timer = time.AfterFunc(cursorEvery, func() { p.flush(context.Background(), true) })
	}
	p.mu.Unlock()
	if due == "" || !ready {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := p.Store(ctx, due); err != nil {
		p.out.Warn("the source's position could not be stored; after a crash some events come again", "error", err)
	}
}

// close stores what is due and ends.
func (p *position) close() {
	p.mu.Lock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	p.flush(context.Background(), false)
}
