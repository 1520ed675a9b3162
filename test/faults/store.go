package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// helper lets this program be a NATS server of its own process: the external
// bus. It reports whether it was.
func helper() bool {
	dir := os.Getenv("FAULTS_NATS_DIR")
	if dir == "" {
		return false
	}
	port, _ := strconv.Atoi(os.Getenv("FAULTS_NATS_PORT"))
	s, err := natsServer(dir, port)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.WaitForShutdown()
	return true
}

// natsServer starts a server on a store; port 0 does not listen.
func natsServer(dir string, port int) (*server.Server, error) {
	s, err := server.NewServer(&server.Options{
		JetStream: true, StoreDir: dir, Host: "127.0.0.1", Port: port, DontListen: port == 0, NoSigs: true, NoLog: true,
		JetStreamMaxStore: 1 << 50, MaxPayload: 8 << 20,
	})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(30*time.Second) || !s.JetStreamEnabled() {
		s.Shutdown()
		return nil, fmt.Errorf("no NATS server on %s", dir)
	}
	return s, nil
}

// open gives fn the streams in a data directory on which no engine runs.
func (t *trial) open(bus string, fn func(context.Context, jetstream.JetStream)) {
	s, err := natsServer(bus, 0)
	t.must(err)
	defer func() {
		s.Shutdown()
		s.WaitForShutdown()
	}()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	t.must(err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	t.must(err)
	ctx, cancel := context.WithTimeout(t.ctx, time.Minute)
	defer cancel()
	fn(ctx, js)
}

// checkpoint is where the fold stands, as STATE has it.
type checkpoint struct {
	Log        string
	Event, Job uint64
}

func (t *trial) checkpoint(ctx context.Context, js jetstream.JetStream) (cp checkpoint) {
	s, err := js.Stream(ctx, "STATE")
	t.must(err)
	m, err := s.GetLastMsgForSubject(ctx, "engine.state.fold.checkpoint")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return cp
	}
	t.must(err)
	t.must(json.Unmarshal(m.Data, &cp))
	return cp
}

func (t *trial) state(ctx context.Context, js jetstream.JetStream, name string) jetstream.StreamState {
	s, err := js.Stream(ctx, name)
	t.must(err)
	info, err := s.Info(ctx)
	t.must(err)
	return info.State
}

// uncovered tells how many jobs are stored beyond the checkpoint of an engine
// that was killed. The store is looked at in a copy, so that the engine finds
// it as the kill left it.
func (t *trial) uncovered(e *engine) (jobs uint64) {
	at := filepath.Join(t.dir, "copy")
	t.must(os.RemoveAll(at))
	t.must(os.CopyFS(at, os.DirFS(filepath.Join(e.data, "bus"))))
	t.open(at, func(ctx context.Context, js jetstream.JetStream) {
		cp := t.checkpoint(ctx, js)
		jobs = t.state(ctx, js, "JOBS").LastSeq - cp.Job
	})
	t.must(os.RemoveAll(at))
	return jobs
}

// audit reads the streams of a stopped engine that began with an empty
// directory and runs [spec]: every event is stored once, and every firing of
// the events under the checkpoint was enqueued once, neither less nor more.
func (t *trial) audit(e *engine) {
	t.open(filepath.Join(e.data, "bus"), func(ctx context.Context, js jetstream.JetStream) { t.auditStreams(ctx, js) })
}

func (t *trial) auditStreams(ctx context.Context, js jetstream.JetStream) {
	cp := t.checkpoint(ctx, js)
	events := t.state(ctx, js, "EVENTS")
	enqueued := t.state(ctx, js, "JOBS").LastSeq
	if cp.Event != events.LastSeq {
		t.failf("the checkpoint of the stopped engine covers %d of %d events", cp.Event, events.LastSeq)
	}
	seen := map[string]bool{}
	sides := map[int]int{}
	firings := uint64(0)
	for _, ev := range t.stored(ctx, js) {
		id := ev.id
		if seen[id] {
			t.failf("event %s is stored twice", id)
		}
		seen[id] = true
		firings++
		if !strings.HasPrefix(ev.subject, "engine.events.load.") {
			continue // one call for each
		}
		num := numberOf(id)
		if sides[num/2] |= 1 << (num % 2); sides[num/2] == 3 {
			firings++
			sides[num/2] = 0
		}
	}
	switch {
	case enqueued > firings:
		t.Twice += int(enqueued - firings)
		t.failf("%d firings were enqueued for %d decisions: %d of them twice", enqueued, firings, enqueued-firings)
	case enqueued < firings:
		t.Lost += int(firings - enqueued)
		t.failf("%d firings were enqueued for %d decisions: %d are lost", enqueued, firings, firings-enqueued)
	}
}

// numberOf is the number in an event's id.
func numberOf(id string) int {
	n, _ := strconv.Atoi(strings.TrimLeft(id, "abcdefghijklmnopqrstuvwxyz"))
	return n
}

// storedEvent is an event in EVENTS.
type storedEvent struct{ subject, id string }

// stored returns what EVENTS holds, in order.
func (t *trial) stored(ctx context.Context, js jetstream.JetStream) (all []storedEvent) {
	s, err := js.Stream(ctx, "EVENTS")
	t.must(err)
	info, err := s.Info(ctx)
	t.must(err)
	if info.State.Msgs == 0 {
		return nil
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	t.must(err)
	it, err := c.Messages()
	t.must(err)
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		t.must(err)
		all = append(all, storedEvent{m.Subject(), m.Headers()["ce-id"][0]})
		meta, err := m.Metadata()
		t.must(err)
		if meta.Sequence.Stream == info.State.LastSeq {
			return all
		}
	}
}
