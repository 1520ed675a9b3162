package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

// store is STATE: the last message of a subject is the value of its key.
//
// Delete writes a tombstone that the server removes after tombstoneTTL: it
// goes the same way as a write, so the order of writes and deletes of one
// goroutine is kept and it is as fast, which a purge by subject is not.
type store struct{ *stream }

const (
	hdrTombstone = "Engine-Deleted"
	tombstoneTTL = "10s"
)

var tombstone = bus.Header{hdrTombstone: {"1"}}

func keyError(key string) error {
	if key == "" || strings.ContainsAny(key, " \t\r\n*>") || strings.HasPrefix(key, ".") ||
		strings.HasSuffix(key, ".") || strings.Contains(key, "..") {
		return fmt.Errorf("key %q is not made of encoded tokens joined with '.'", key)
	}
	return nil
}

func record(key string, value []byte) bus.Record {
	return bus.Record{Subject: statePrefix + key, Data: value}
}

// last returns the last message of key, tombstones too.
func (s *store) last(ctx context.Context, key string) (bus.Record, error) {
	return s.get(ctx, getRequest{LastFor: s.b.prefix + statePrefix + key})
}

// Get implements [bus.Store].
func (s *store) Get(ctx context.Context, key string) (bus.Entry, error) {
	if err := keyError(key); err != nil {
		return bus.Entry{}, err
	}
	r, err := s.last(ctx, key)
	if err == nil && r.Header.Get(hdrTombstone) != "" {
		err = fmt.Errorf("get from %s: %w", s.name, bus.ErrNotFound)
	}
	if err != nil {
		return bus.Entry{}, fmt.Errorf("key %s: %w", key, err)
	}
	return bus.Entry{Key: key, Value: r.Data, Revision: r.Seq}, nil
}

// Put implements [bus.Store].
func (s *store) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	if err := keyError(key); err != nil {
		return 0, err
	}
	ack, err := s.publishWait(ctx, record(key, value), "", "")
	return ack.Seq, err
}

// Update implements [bus.Store].
func (s *store) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if err := keyError(key); err != nil {
		return 0, err
	}
	update := func(rev uint64) (uint64, error) {
		ack, err := s.publishWait(ctx, record(key, value), hdrExpectedSeq, strconv.FormatUint(rev, 10))
		return ack.Seq, err
	}
	seq, err := update(revision)
	if revision == 0 && errors.Is(err, bus.ErrConflict) {
		// A tombstone is as good as nothing.
		last, lerr := s.last(ctx, key)
		if lerr == nil && last.Header.Get(hdrTombstone) != "" {
			seq, err = update(last.Seq)
		} else if errors.Is(lerr, bus.ErrNotFound) {
			seq, err = update(0)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("key %s: %w", key, err)
	}
	return seq, nil
}

// PutAsync implements [bus.Store].
func (s *store) PutAsync(ctx context.Context, key string, value []byte, done func(uint64, error)) error {
	if err := keyError(key); err != nil {
		return err
	}
	return s.publish(ctx, record(key, value), "", "", func(a bus.Ack, err error) { done(a.Seq, err) }, nil)
}

// Delete implements [bus.Store].
func (s *store) Delete(ctx context.Context, key string) error {
	if err := keyError(key); err != nil {
		return err
	}
	_, err := s.publishWait(ctx, bus.Record{Subject: statePrefix + key, Header: tombstone}, hdrTTL, tombstoneTTL)
	return err
}

// DeleteAsync implements [bus.Store].
func (s *store) DeleteAsync(ctx context.Context, key string, done func(uint64, error)) error {
	if err := keyError(key); err != nil {
		return err
	}
	return s.publish(ctx, bus.Record{Subject: statePrefix + key, Header: tombstone}, hdrTTL, tombstoneTTL,
		func(a bus.Ack, err error) { done(a.Seq, err) }, nil)
}

// scanStall is how long a scan waits for a message it was promised; the
// message may have been removed in the meantime.
const scanStall = time.Second

// Scan implements [bus.Store]. A key that is written during the scan may come
// twice, the newer value last.
func (s *store) Scan(ctx context.Context, prefix string, fn func(bus.Entry) error) error {
	// Whole tokens can be filtered by the server, the rest here. Subjects hold
	// one message each, so reading them in log order needs no list of keys;
	// what is written again meanwhile comes again at the end.
	filter := statePrefix + prefix[:strings.LastIndexByte(prefix, '.')+1] + ">"
	next, pending := uint64(1), uint64(0)
	p := puller{
		b: s.b, what: "scan " + s.name, stream: s.name, ordered: true, batch: readBatch,
		maxBytes: max(readBytes, s.b.MaxPayload()+64*kib),
	}
	p.create = func(ctx context.Context) (string, error) {
		c, err := s.b.js.CreateConsumer(ctx, s.name, jetstream.ConsumerConfig{
			AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: next,
			FilterSubject: s.filter(filter), MemoryStorage: true, Replicas: 1, InactiveThreshold: 2 * pullExpires,
		})
		if err != nil {
			return "", connError("scan "+s.name, err)
		}
		pending = c.CachedInfo().NumPending
		return c.CachedInfo().Name, nil
	}
	p.init()
	defer p.close()
	if err := p.openFirst(ctx); err != nil {
		return err
	}
	for {
		if pending == 0 {
			// The count may be short of what is being written: look.
			_, err := s.get(ctx, getRequest{Seq: next, NextFor: s.filter(filter)})
			if errors.Is(err, bus.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		m, ok, err := p.next(ctx, false)
		if err == nil && !ok {
			wait, cancel := context.WithTimeout(ctx, scanStall)
			m, _, err = p.next(wait, true)
			stalled := wait.Err() != nil && ctx.Err() == nil
			cancel()
			if err != nil && stalled {
				p.drop()
				err = p.open(ctx)
				if err == nil {
					continue
				}
			}
		}
		if err != nil {
			return err
		}
		next, pending = m.seq+1, m.pending
		key := m.Subject[len(s.b.prefix)+len(statePrefix):]
		if !strings.HasPrefix(key, prefix) || m.Header.Get(hdrTombstone) != "" {
			continue
		}
		if err := fn(bus.Entry{Key: key, Value: m.Data, Revision: m.seq}); err != nil {
			return err
		}
	}
}
