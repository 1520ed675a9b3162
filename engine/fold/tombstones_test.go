package fold_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine/fold"
)

// slowState lets a fold gather batches: every checkpoint takes its time.
type slowState struct{ bus.Bus }

func (s *slowState) State() bus.Store { return &slowStore{s.Bus.State()} }

type slowStore struct{ bus.Store }

func (s *slowStore) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	<-time.After(20 * time.Millisecond)
	return s.Store.Update(ctx, key, v, rev)
}

func stateKeys(t *testing.T, b bus.Bus) (n int) {
	t.Helper()
	if err := b.State().Scan(t.Context(), "sensor.", func(bus.Entry) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// A key that is emptied and used again at once is still stored afterwards.
func TestReusedKeyIsKept(t *testing.T) {
	b := open(t, bustest.Dir(t))
	d := fold.New(fold.Options{Bus: &slowState{b}, Cache: fold.NewCache(b.Events(), 100, 1<<20), Logger: quiet(), Rules: twoSensors(t, "1"), BatchSize: 1, Tombstones: 1})
	stop := run(d)
	var last uint64
	for range 3 {
		for id := range 20 {
			last = publish(t, b, "orders", id)
		}
		until(t, "the checkpoint", covered(d, last))
		for id := range 20 { // emptied, and waiting again right after it
			publish(t, b, "payments", id)
			last = publish(t, b, "orders", id)
		}
		until(t, "the checkpoint", covered(d, last))
		for id := range 20 {
			last = publish(t, b, "payments", id)
		}
		until(t, "the checkpoint", covered(d, last))
	}
	for id := range 20 {
		publish(t, b, "orders", id)
		publish(t, b, "payments", id)
		last = publish(t, b, "orders", id)
	}
	until(t, "the checkpoint", covered(d, last))
	stop()
	d = dispatcher(b, twoSensors(t, "1"), nil)
	defer run(d)()
	p, err := d.Pending(t.Context(), "pair", 100)
	if err != nil || len(p) != 20 {
		t.Fatalf("%d keys wait after a restart, want 20 (%v)", len(p), err)
	}
}

// Tombstones are removed together, when nothing older than they counts.
func TestTombstonesAreRemoved(t *testing.T) {
	b := open(t, bustest.Dir(t))
	options := func() fold.Options {
		return fold.Options{Bus: b, Cache: fold.NewCache(b.Events(), 100, 1<<20), Logger: quiet(), Rules: twoSensors(t, "1"), Tombstones: 50}
	}
	d := fold.New(options())
	stop := run(d)
	var last uint64
	for id := range 40 { // keys that wait all the time
		last = publish(t, b, "orders", 10_000+id)
	}
	most := 0
	for round := range 30 {
		for id := range 20 {
			last = publish(t, b, "orders", round*100+id)
		}
		until(t, "the checkpoint", covered(d, last))
		for id := range 20 {
			last = publish(t, b, "payments", round*100+id)
		}
		until(t, "the checkpoint", covered(d, last))
		most = max(most, stateKeys(t, b))
		if round == 10 {
			stop()
			d = fold.New(options())
			stop = run(d)
		}
	}
	stop()
	if most > 40+50+60 {
		t.Errorf("up to %d keys in STATE for 40 that wait", most)
	}
	var cp struct{ Epoch uint64 }
	e, err := b.State().Get(t.Context(), "fold.checkpoint")
	if err != nil || json.Unmarshal(e.Value, &cp) != nil || cp.Epoch < 3 {
		t.Errorf("the checkpoint says epoch %d, %v", cp.Epoch, err)
	}
	d = fold.New(options())
	defer run(d)()
	p, err := d.Pending(t.Context(), "pair", 100)
	if err != nil || len(p) != 40 {
		t.Errorf("%d keys wait after a restart, want 40 (%v)", len(p), err)
	}
}

// JetStream forgets that a value was replaced when the newer one is deleted: a
// store that is rebuilt after a crash can hold the older one again. It must
// not count.
func TestRevivedStateDoesNotCount(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the end of the server's tombstones")
	}
	t.Parallel()
	dir := bustest.Dir(t)
	b, err := jetstream.Open(t.Context(), jetstream.Options{Dir: dir, MinFree: -1, Reserve: -1, Limits: jetstream.Limits{State: 120 << 10}})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			_ = b.Close(context.Background())
		}
	}()
	rules := twoSensors(t, "1")
	d := fold.New(fold.Options{Bus: b, Cache: fold.NewCache(b.Events(), 100, 1<<20), Logger: quiet(), Rules: rules, Tombstones: 20})
	stop := run(d)
	pad := bytes.Repeat([]byte("x"), 3000)
	put := func(key string) {
		if _, err := b.State().Put(t.Context(), key, pad); err != nil {
			t.Fatal(err)
		}
	}
	// The waiting order 1 shares a block with keys that stay.
	for i := range 4 {
		put(fmt.Sprintf("live%d", i))
	}
	until(t, "the checkpoint", covered(d, publish(t, b, "orders", 1)))
	for i := range 4 {
		put(fmt.Sprintf("live1%d", i))
	}
	churn := func(n int) {
		for range n {
			put("filler")
		}
	}
	churn(30)
	until(t, "the checkpoint", covered(d, publish(t, b, "payments", 1))) // it is used
	churn(30)
	// Enough others come and go for an epoch to end.
	var last uint64
	for id := 100; id < 160; id++ {
		last = publish(t, b, "orders", id)
	}
	until(t, "the checkpoint", covered(d, last))
	for id := 100; id < 160; id++ {
		last = publish(t, b, "payments", id)
	}
	until(t, "the checkpoint", covered(d, last))
	for id := 200; id < 205; id++ {
		last = publish(t, b, "orders", id)
	}
	until(t, "the checkpoint", covered(d, last))
	// The server drops its own tombstones after ten seconds.
	for end := time.Now().Add(13 * time.Second); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		churn(1)
	}
	churn(60)
	crash := filepath.Join(bustest.Dir(t), "x")
	if err := os.CopyFS(crash, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	stop()
	closed = true
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	b = open(t, crash)
	d = dispatcher(b, rules, nil)
	defer run(d)()
	p, err := d.Pending(t.Context(), "pair", 100)
	if err != nil || len(p) != 5 {
		t.Errorf("%d keys wait after the crash, want 5: %+v (%v)", len(p), p, err)
	}
}
