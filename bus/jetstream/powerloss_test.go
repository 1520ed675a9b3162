//go:build unix

package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/bus/jetstream"
	"github.com/sensor-engine/engine/engine/fold"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/sensors"
	"github.com/sensor-engine/engine/specs"
)

// model is what is on the disk for sure: the content of a file up to its size
// when its last sync began, the entries of a directory as they were when its
// last sync began. Files are known by inode and kept alive by a link.
type model struct {
	jetstream.DiskSyncs
	root, links string
	// before is told of a file that is about to be synced, if set.
	before atomic.Pointer[func(path string)]

	mu      sync.Mutex // a cut is between two syncs
	sizes   map[uint64]int64
	entries map[uint64]map[string]node
}

type node struct {
	ino uint64
	dir bool
}

func newModel(t *testing.T) *model {
	m := &model{root: filepath.Join(t.TempDir(), "data", "bus"), links: t.TempDir(), sizes: map[uint64]int64{}, entries: map[uint64]map[string]node{}}
	if err := os.MkdirAll(m.root, 0o750); err != nil {
		t.Fatal(err)
	}
	return m
}

func inode(st fs.FileInfo) uint64 { return st.Sys().(*syscall.Stat_t).Ino }

func (m *model) link(ino uint64) string { return filepath.Join(m.links, strconv.FormatUint(ino, 10)) }

// File syncs a file.
func (m *model) sync(path string) (fs.FileInfo, error) {
	st, err := m.DiskSyncs.File(path)
	if err != nil {
		return st, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ino := inode(st)
	if _, known := m.sizes[ino]; !known {
		tmp := filepath.Join(m.links, "new")
		if err := os.Link(path, tmp); err != nil {
			return st, nil // replaced or removed since
		}
		if now, err := os.Lstat(tmp); err != nil || inode(now) != ino {
			return st, os.Remove(tmp)
		}
		if err := os.Rename(tmp, m.link(ino)); err != nil {
			return st, err
		}
	}
	m.sizes[ino] = st.Size()
	return st, nil
}

// list returns the entries of a directory as they are now.
func list(path string) (map[string]node, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	out := make(map[string]node, len(entries))
	for _, e := range entries {
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[e.Name()] = node{inode(st), e.IsDir()}
	}
	return out, nil
}

func (m *model) syncDir(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	entries, err := list(path)
	if err != nil {
		return err
	}
	if err := m.DiskSyncs.Dir(path); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[inode(st)] = entries
	return nil
}

// File implements [jetstream.Syncs].
func (m *model) File(path string) (fs.FileInfo, error) {
	if fn := m.before.Load(); fn != nil {
		(*fn)(path)
	}
	return m.sync(path)
}

// Dir implements [jetstream.Syncs].
func (m *model) Dir(path string) error { return m.syncDir(path) }

// all takes everything that is there for synced.
func (m *model) all(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(m.root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return m.syncDir(path)
		}
		_, err = m.sync(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// luck is what the system happened to write of what nobody asked it to.
type luck interface {
	// entries says whether the entries of a directory are on the disk as they
	// are now.
	entries(dir string) bool
	// size is how much of a file is on the disk, of which synced bytes were
	// asked for and now are there.
	size(path string, synced, now int64) int64
}

// random is luck that anything may have.
type random struct{ *rand.Rand }

func (r random) entries(string) bool { return r.IntN(2) == 0 }

func (r random) size(_ string, synced, now int64) int64 {
	switch r.IntN(3) {
	case 0:
		return now
	case 1:
		return synced + r.Int64N(now-synced)
	}
	return synced
}

// ahead is the luck of some files alone: those have reached the disk, nothing
// else that was not synced has.
type ahead func(path string) bool

func (a ahead) entries(dir string) bool { return a(dir + string(filepath.Separator)) }

func (a ahead) size(path string, synced, now int64) int64 {
	if a(path) {
		return now
	}
	return synced
}

// cut makes dst what a power loss at this moment leaves; nothing that was not
// synced, if lucky is nil.
func (m *model) cut(t *testing.T, dst string, lucky luck) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	st, err := os.Stat(m.root)
	if err != nil {
		t.Fatal(err)
	}
	m.restore(t, m.root, dst, inode(st), lucky)
}

func (m *model) restore(t *testing.T, live, dst string, ino uint64, lucky luck) {
	t.Helper()
	if err := os.MkdirAll(dst, 0o750); err != nil {
		t.Fatal(err)
	}
	entries := m.entries[ino]
	if lucky != nil && lucky.entries(live) {
		if st, err := os.Stat(live); err == nil && inode(st) == ino {
			if now, err := list(live); err == nil {
				entries = now
			}
		}
	}
	for name, n := range entries {
		live, dst := filepath.Join(live, name), filepath.Join(dst, name)
		if n.dir {
			m.restore(t, live, dst, n.ino, lucky)
			continue
		}
		size, known := m.sizes[n.ino]
		src := m.link(n.ino)
		if lucky != nil {
			if st, err := os.Stat(live); err == nil && inode(st) == n.ino && st.Size() > size {
				if !known {
					src = live
				}
				known = true
				size = lucky.size(live, size, st.Size())
			}
		}
		r := io.LimitReader(eof{}, 0)
		if known {
			f, err := os.Open(src)
			if errors.Is(err, fs.ErrNotExist) && src == live {
				continue // removed right now
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			r = io.LimitReader(f, size)
		}
		f, err := os.Create(dst)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, r); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// world is an engine's spine under load, with the ledger of what it promised.
type world struct {
	// load is held by who lets nothing new in, for example while a cut is
	// looked at: else the log grows faster than it can be folded again.
	load sync.RWMutex
	b    *jetstream.Bus
	d    *fold.Dispatcher
	work chan done
	keys int // of each producer, reused; 0: a new one for each order

	mu     sync.Mutex
	acked  map[string]uint64 // event id → sequence
	worked map[string]uint64 // firing key → sequence in JOBS
	queued []done
}

// done is a job that may be worked off.
type done struct {
	key           string
	position, seq uint64
}

func options(dir string, d jetstream.Durability) jetstream.Options {
	return jetstream.Options{Dir: dir, MaxPayload: 1 << 20, MinFree: -1, Reserve: -1, Durability: d}
}

func open(t *testing.T, o jetstream.Options) *jetstream.Bus {
	t.Helper()
	b, err := jetstream.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rules: every order fires each; order and payment of one id fire pair.
func rules(t *testing.T) *fold.Rules {
	trigger := []specs.Trigger{{Name: "t", Function: "f"}}
	order := specs.Dependency{Name: "order", Source: "shop", Event: "orders"}
	out := &fold.Rules{Hash: "h"}
	for name, s := range map[string]*specs.Sensor{
		"each": {Dependencies: []specs.Dependency{order}, Correlate: specs.Expr{Source: "data.id"}, Triggers: trigger},
		"pair": {
			Dependencies: []specs.Dependency{order, {Name: "payment", Source: "shop", Event: "payments"}},
			Correlate:    specs.Expr{Source: "data.id"}, Triggers: trigger,
		},
	} {
		p, found := sensors.Compile(name, s)
		if err := found.Err(); err != nil {
			t.Fatal(err)
		}
		out.Sensors = append(out.Sensors, fold.Sensor{Name: name, Hash: "h", Program: p})
	}
	return out
}

func (w *world) dispatcher(t *testing.T) {
	w.d = fold.New(fold.Options{
		Bus: w.b, Cache: fold.NewCache(w.b.Events(), 1<<10, 1<<20), Rules: rules(t), Alarm: func(string, string) {},
		Enqueued: func(j *jobs.Job, seq uint64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.queued = append(w.queued, done{j.Key, j.Position, seq})
		},
		Covered: func(position, _ uint64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			rest := w.queued[:0]
			for _, q := range w.queued {
				if q.position > position {
					rest = append(rest, q)
				} else if w.work != nil && q.seq%2 == 0 {
					w.worked[q.key] = q.seq
					w.work <- q
				}
			}
			w.queued = rest
		},
	})
}

// event appends one event and notes that it was acknowledged.
func (w *world) event(ctx context.Context, name string, id, round int) error {
	key := fmt.Sprintf("%s/%d#%d", name, id, round)
	ev := &bus.Event{ID: key, Source: "/t", Type: "t", EventSource: "shop", EventName: name, Data: fmt.Appendf(nil, `{"id":%d}`, id)}
	a, err := w.b.Events().Append(ctx, ev.Record())
	if err == nil {
		w.mu.Lock()
		w.acked[key] = a.Seq
		w.mu.Unlock()
	}
	return err
}

// run runs everything until stop is called.
func (w *world) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w.acked, w.worked, w.work = map[string]uint64{}, map[string]uint64{}, make(chan done, 1<<16)
	w.dispatcher(t)
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.d.Run(ctx) })
	wg.Go(func() {
		for {
			select {
			case q := <-w.work:
				_ = w.b.Jobs().Delete(context.Background(), q.seq)
			case <-ctx.Done():
				return
			}
		}
	})
	for g := range 8 {
		wg.Go(func() {
			for i := g; ctx.Err() == nil; i += 8 {
				w.load.RLock()
				switch n := i / 8; {
				case w.keys > 0: // each is paid when half of the others are ordered
					_ = w.event(ctx, "orders", n%w.keys*8+g, n/w.keys)
					if n -= w.keys / 2; n >= 0 {
						_ = w.event(ctx, "payments", n%w.keys*8+g, n/w.keys)
					}
				case w.event(ctx, "orders", i, 0) == nil && i%3 > 0:
					_ = w.event(ctx, "payments", i-i%2*8*((i/8)%2), 0)
				}
				w.load.RUnlock()
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
		_ = w.b.Close(context.Background())
	}
}

// lost starts again on what is left and returns what is missing or twice.
func lost(t *testing.T, dir string, acked, worked map[string]uint64) (bad []string) {
	t.Helper()
	ctx := context.Background()
	w := &world{b: open(t, options(dir, jetstream.DurabilityOS)), acked: map[string]uint64{}}
	defer func() { _ = w.b.Close(ctx) }()

	// What comes next gets the next sequences: it must be taken for new.
	before, err := w.b.Events().Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		for _, name := range []string{"orders", "payments"} {
			if err := w.event(ctx, name, -1-i, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	info, err := w.b.Events().Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[uint64]string{}
	rd, err := w.b.Events().Read(ctx, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(0); seq < info.Last; {
		recs, err := rd.Next(ctx, 512)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			ev, err := bus.DecodeEvent(r)
			if err != nil {
				t.Fatal(err)
			}
			seq = r.Seq
			stored[seq] = ev.ID
		}
	}
	_ = rd.Close()
	orders, payments := map[string]int{}, map[string]int{}
	count := func(id string) {
		name, key, _ := strings.Cut(id, "/")
		key, _, _ = strings.Cut(key, "#")
		if name == "orders" {
			orders[key]++
		} else {
			payments[key]++
		}
	}
	for _, id := range stored {
		count(id)
	}
	maps.Copy(acked, w.acked)
	for id, seq := range acked {
		if stored[seq] != id {
			bad = append(bad, fmt.Sprintf("event %s at %d is lost, there is %q", id, seq, stored[seq]))
		}
	}
	if len(bad) > 0 {
		return bad
	}
	// Orders that wait must be waited for still: the last of them are paid now.
	paid := 0
	for seq := info.Last; seq > 0 && paid < 200; seq-- {
		name, key, _ := strings.Cut(stored[seq], "/")
		key, _, _ = strings.Cut(key, "#")
		id, err := strconv.Atoi(key)
		if err != nil || name != "orders" || orders[key] <= payments[key] {
			continue
		}
		if err := w.event(ctx, "payments", id, math.MaxInt); err != nil {
			t.Fatal(err)
		}
		paid++
		payments[key]++
	}
	for id, seq := range w.acked {
		stored[seq] = id
		info.Last = max(info.Last, seq)
	}

	w.dispatcher(t)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = w.d.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	for end := time.Now().Add(30 * time.Second); ; <-time.After(time.Millisecond) {
		if _, covered := w.d.Position(); covered >= info.Last {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the fold does not come to the end")
		}
	}

	// Firings by sensor and correlation key.
	fired, seen := map[string]int{}, map[string]bool{}
	for seq := uint64(0); ; {
		r, err := w.b.Jobs().Next(ctx, "", seq)
		if errors.Is(err, bus.ErrNotFound) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seq = r.Seq + 1
		j, err := jobs.DecodeJob(r.Data)
		if err != nil {
			t.Fatal(err)
		}
		if was, ok := worked[j.Key]; ok && was != r.Seq {
			bad = append(bad, fmt.Sprintf("%s %s was worked off at %d and is queued again at %d", j.Sensor, j.Correlation, was, r.Seq))
		}
		if seen[j.Key] {
			bad = append(bad, fmt.Sprintf("%s %s is queued twice", j.Sensor, j.Correlation))
		}
		seen[j.Key] = true
		for _, c := range j.Events {
			if _, ok := stored[c.Seq]; !ok {
				bad = append(bad, fmt.Sprintf("%s %s was fired by event %d, which is not there", j.Sensor, j.Correlation, c.Seq))
			}
		}
		fired[j.Sensor]++
	}
	for key := range worked {
		if !seen[key] {
			fired["worked"]++
		}
	}
	want := 0
	for id, n := range orders {
		want += n + min(n, payments[id])
	}
	if got := fired["each"] + fired["pair"] + fired["worked"]; got != want {
		bad = append(bad, fmt.Sprintf("%d firings (%v), want %d; %d events were stored before", got, fired, want, before.Last))
	}
	return bad
}

// TestPowerLoss cuts the power at random moments under load. What was
// acknowledged is there, and each firing is enqueued once across the cut.
func TestPowerLoss(t *testing.T) {
	cuts := 24
	if testing.Short() {
		cuts = 6
	}
	if n, err := strconv.Atoi(os.Getenv("POWER_CUTS")); err == nil {
		cuts = n
	}
	for _, tc := range []struct {
		name    string
		d       jetstream.Durability
		written bool // some of what was not synced is written too
		safe    bool
	}{
		{"fsync", jetstream.DurabilityFsync, false, true},
		{"fsync, some more written", jetstream.DurabilityFsync, true, true},
		{"os", jetstream.DurabilityOS, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newModel(t)
			w := &world{b: open(t, jetstream.WithSyncs(options(m.root, tc.d), m))}
			if !tc.safe {
				m.all(t)
			}
			stop := w.run(t)
			defer stop()
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 0))
			n := 0
			for i := range cuts {
				<-time.After(time.Duration(r.IntN(30_000)) * time.Microsecond)
				var lucky luck
				if tc.written {
					lucky = random{r}
				}
				dir := filepath.Join(t.TempDir(), "bus")
				w.mu.Lock() // the ledger of this very moment
				acked, worked := maps.Clone(w.acked), maps.Clone(w.worked)
				m.cut(t, dir, lucky)
				w.mu.Unlock()
				n = len(acked)
				bad := func() []string {
					w.load.Lock()
					defer w.load.Unlock()
					return lost(t, dir, acked, worked)
				}()
				_ = os.RemoveAll(dir)
				if tc.safe && len(bad) > 0 {
					t.Fatalf("cut %d (seed %d) after %d events: %d promises are broken, first: %v", i, seed, n, len(bad), bad[:min(len(bad), 5)])
				}
				if !tc.safe && n > 0 && len(bad) == 0 {
					t.Fatalf("cut %d lost nothing: the test has no teeth", i)
				}
			}
			t.Logf("%d cuts, %d events acknowledged before the last", cuts, n)
		})
	}
}

// unsynced returns the last block of a directory if it and others are not
// synced.
func (m *model) unsynced(t *testing.T, dir string) string {
	t.Helper()
	now, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	last, highest, n := "", 0, 0
	for name, nd := range now {
		digits, isBlock := strings.CutSuffix(name, ".blk")
		st, err := os.Lstat(filepath.Join(dir, name))
		if !isBlock || err != nil || inode(st) != nd.ino {
			continue
		}
		if size, known := m.sizes[nd.ino]; !known || size < st.Size() {
			n++
			if i, _ := strconv.Atoi(digits); i > highest {
				last, highest = filepath.Join(dir, name), i
			}
		}
	}
	if n < 2 {
		return ""
	}
	return last
}

// removed reports whether a file was removed from a directory since that was
// synced.
func (m *model) removed(t *testing.T, dir string) bool {
	t.Helper()
	now, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.entries[inode(st)] {
		if _, there := now[name]; !there {
			return true
		}
	}
	return false
}

// TestPowerLossAtCheckpoint cuts the power when a sync of STATE is about to
// begin. Of what was not synced, the disk has just that part which needs
// another that it has not: each case fails without one of the three syncs of a
// checkpoint, or without the second names of blocks.
func TestPowerLossAtCheckpoint(t *testing.T) {
	cuts := 6
	if testing.Short() {
		cuts = 2
	}
	if n, err := strconv.Atoi(os.Getenv("POWER_CUTS")); err == nil {
		cuts = max(n/4, 1)
	}
	blocks := func(stream string) string { return filepath.Join("/", stream, "msgs") + "/" }
	in := func(stream string) ahead {
		return func(path string) bool { return strings.Contains(path, blocks(stream)) }
	}
	state := func(m *model) string { return filepath.Join(m.root, "jetstream", "$G", "streams", "STATE", "msgs") }
	for _, tc := range []struct {
		name string
		keys int
		luck func(t *testing.T, m *model) luck // nil: not now
	}{
		{"state without its jobs", 24, func(*testing.T, *model) luck { return in("STATE") }},
		{"jobs removed without the checkpoint", 24, func(*testing.T, *model) luck { return in("JOBS") }},
		// They are in one file, except where a block ends.
		{"checkpoint without the state of keys", 24, func(t *testing.T, m *model) luck {
			last := m.unsynced(t, state(m))
			if last == "" {
				return nil
			}
			return ahead(func(path string) bool { return path == last || strings.HasSuffix(path, blocks("STATE")) })
		}},
		{"a block removed without what replaced it", 1, func(t *testing.T, m *model) luck {
			if !m.removed(t, state(m)) {
				return nil
			}
			return ahead(func(path string) bool { return strings.HasSuffix(path, blocks("STATE")) })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newModel(t)
			o := options(m.root, jetstream.DurabilityFsync)
			o.Limits.State = 120 << 10 // the smallest blocks
			w := &world{b: open(t, jetstream.WithSyncs(o, m)), keys: tc.keys}
			stop := w.run(t)
			moments, over := make(chan chan struct{}), make(chan struct{})
			defer func() { close(over); stop() }()
			fn := func(path string) {
				if !in("STATE")(path) {
					return
				}
				resume := make(chan struct{})
				select {
				case moments <- resume:
					<-resume
				case <-over:
				}
			}
			m.before.Store(&fn)
			events := 0
			for i, end := 0, time.After(5*time.Minute); i < cuts; {
				var resume chan struct{}
				select {
				case resume = <-moments:
				case <-end:
					t.Fatalf("the moment came %d times, want %d", i, cuts)
				}
				func() {
					defer close(resume)
					w.mu.Lock()
					acked, worked := maps.Clone(w.acked), maps.Clone(w.worked)
					lucky := tc.luck(t, m)
					if lucky == nil || len(worked) == 0 {
						w.mu.Unlock()
						return
					}
					dir := filepath.Join(t.TempDir(), "bus")
					m.cut(t, dir, lucky)
					w.mu.Unlock()
					i++
					events = len(acked)
					w.load.Lock()
					defer w.load.Unlock()
					if bad := lost(t, dir, acked, worked); len(bad) > 0 {
						t.Fatalf("cut %d after %d events: %d promises are broken, first: %v", i, len(acked), len(bad), bad[:min(len(bad), 5)])
					}
					_ = os.RemoveAll(dir)
				}()
			}
			t.Logf("%d cuts, %d events acknowledged before the last", cuts, events)
		})
	}
}
