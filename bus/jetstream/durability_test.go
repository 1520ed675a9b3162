package jetstream

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
)

// TestEmbeddedFsync runs the contract with durability fsync.
func TestEmbeddedFsync(t *testing.T) {
	if testing.Short() {
		t.Skip("the contract runs without syncs already")
	}
	t.Parallel()
	fsync := func(t *testing.T) Options {
		o := options(t)
		o.Durability = DurabilityFsync
		return o
	}
	bustest.Run(t, bustest.Config{
		Open: func(t *testing.T) bus.Bus { return mustOpen(t, fsync(t)) },
		Small: func(t *testing.T) bus.Bus {
			o := fsync(t)
			o.Limits.Events, o.Limits.Runs = mib, mib
			return mustOpen(t, o)
		},
		Redeliver: time.Second,
	})
}

// TestServerWritesBeforeAck is what durability fsync rests on: when the server
// acknowledges a record it has written it to the last block of the stream, at
// the place where we look. A server that gathers writes would fail here.
func TestServerWritesBeforeAck(t *testing.T) {
	b := mustOpen(t, options(t))
	for i := range 200 {
		data := bytes.Repeat([]byte{byte('a' + i%26)}, 100+i)
		for name, l := range map[string]bus.Log{"EVENTS": b.Events(), "PARKED": b.Parked(), "DLQ": b.DeadLetters(), "JOBS": b.Jobs()} {
			subject := map[string]string{"EVENTS": bus.EventsPrefix, "PARKED": bus.ParkedPrefix, "DLQ": bus.DLQPrefix, "JOBS": bus.JobsPrefix + "0."}[name] + "a.b"
			if _, err := l.Append(t.Context(), bus.Record{Subject: subject, Data: data}); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(b.o.Dir, "jetstream", "$G", "streams", name, "msgs", "1.blk")
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(file[max(0, len(file)-len(data)-100):], data) {
				t.Fatalf("record %d of %s was acknowledged and is not in %s: the server does not write before it acknowledges any more", i, name, path)
			}
		}
	}
}

// failing fails syncs of blocks while it is told to.
type failing struct {
	diskSyncs
	on     atomic.Bool
	failed atomic.Int64
}

func (f *failing) File(path string) (fs.FileInfo, error) {
	if f.on.Load() && strings.Contains(path, "EVENTS") {
		f.failed.Add(1)
		return nil, &os.PathError{Op: "fdatasync", Path: path, Err: errors.New("input/output error")}
	}
	return f.diskSyncs.File(path)
}

// TestSyncFails: a record whose sync failed is not acknowledged, nor is any
// after it, until the server runs again on files that were written anew.
func TestSyncFails(t *testing.T) {
	f := &failing{}
	o := options(t)
	o.Durability, o.syncs = DurabilityFsync, f
	b := mustOpen(t, o)
	r := event()
	if _, err := b.Events().Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	rd, err := b.Events().Read(t.Context(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rd.Close() }()
	if recs, err := rd.Next(t.Context(), 10); err != nil || len(recs) != 1 {
		t.Fatalf("read %d records, %v", len(recs), err)
	}
	f.on.Store(true)
	if ack, err := b.Events().Append(t.Context(), r); !errors.Is(err, bus.ErrUnavailable) {
		t.Fatalf("append returned %v, %v; want ErrUnavailable", ack, err)
	}
	if h := b.Health(); h.OK {
		t.Fatal("the bus is healthy after a failed sync")
	}
	if recs, err := rd.Next(t.Context(), 10); err == nil {
		t.Fatalf("a reader got %d records that could not be synced", len(recs))
	}
	f.on.Store(false)
	eventually(t, "the bus to be well", func() bool { return b.Health().OK && b.syncFailure() == "" })
	eventually(t, "an append", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := b.Events().Append(ctx, r)
		return err == nil
	})
	if f.failed.Load() == 0 {
		t.Fatal("no sync failed")
	}
}

// counting counts the syncs of blocks.
type counting struct {
	diskSyncs
	n atomic.Int64
}

func (c *counting) File(path string) (fs.FileInfo, error) {
	c.n.Add(1)
	return c.diskSyncs.File(path)
}

// TestSyncsWhatChanged follows blocks that fill up, are worked off, replaced
// by the server and purged: each append is synced, wherever it went, and
// nothing is synced twice.
func TestSyncsWhatChanged(t *testing.T) {
	c := &counting{}
	o := options(t)
	o.Durability, o.syncs = DurabilityFsync, c
	b := mustOpen(t, o)
	l := b.Events()
	r := bus.Record{Subject: bus.EventsPrefix + "a.b", Data: bytes.Repeat([]byte("x"), 512*kib)}
	synced := func(what string) {
		t.Helper()
		tr := b.events.syncer.tree
		tr.mu.Lock()
		defer tr.mu.Unlock()
		paths, _ := filepath.Glob(filepath.Join(tr.dir, "msgs", "*.blk"))
		for _, p := range paths {
			if st, err := os.Lstat(p); err == nil && !same(tr.blocks[p], st) {
				t.Fatalf("%s: %s is not synced", what, p)
			}
		}
	}
	var last uint64
	for range 60 { // several blocks
		a, err := l.Append(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		last = a.Seq
		synced("append")
	}
	if err := l.PurgeTo(t.Context(), last-1); err != nil {
		t.Fatal(err)
	}
	synced("purge")
	if err := l.PurgeTo(t.Context(), last+1); err != nil {
		t.Fatal(err)
	}
	synced("purge of everything")
	if _, err := l.Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	synced("append to the purged")
	before := c.n.Load()
	for range 3 {
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.n.Load() - before; n != 0 {
		t.Fatalf("%d files were synced again that had not changed", n)
	}
}

func TestFsyncIsEmbedded(t *testing.T) {
	_, err := Open(t.Context(), Options{URL: "nats://127.0.0.1:1", Durability: DurabilityFsync})
	if err == nil || !strings.Contains(err.Error(), "durability fsync is for the embedded bus") {
		t.Fatalf("Open returned %v", err)
	}
}
