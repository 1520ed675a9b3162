package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// answering is a shell script that answers call after call, each after doing
// something.
func answering(do string) string {
	return `n=0; while read line; do n=$((n+1)); ` + do + `; echo "{\"id\":$n,\"payload\":$$}"; done`
}

func newPool(t *testing.T, script string, o Options) *Pool {
	t.Helper()
	if o.Command == nil {
		o.Command = func(context.Context) (*exec.Cmd, error) {
			return &exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: os.Environ()}, nil
		}
	}
	o.Lines = true
	p := NewPool(o)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if n := p.Processes(); n != 0 {
			t.Errorf("%d workers after Close", n)
		}
	})
	return p
}

func invoke(ctx context.Context, p *Pool) (triggers.Result, error) {
	return p.Invoke(ctx, &triggers.Call{Key: "k", Event: &bus.Event{ID: "e"}})
}

// Workers are started while calls wait, at most as many as allowed, and stopped
// when they are idle.
func TestGrowthAndIdle(t *testing.T) {
	size := runtime.NumCPU() + 2
	p := newPool(t, answering("sleep 0.3"), Options{Size: size, Idle: 300 * time.Millisecond})
	if p.Processes() != 0 {
		t.Error("something was started before the first call")
	}
	var wg sync.WaitGroup
	for range 3 * size {
		wg.Go(func() {
			if _, err := invoke(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "not all workers are started", func() bool { return p.Processes() == size })
	wg.Wait()
	eventually(t, "idle workers are not stopped", func() bool { return p.Processes() == 0 })
	if _, err := invoke(t.Context(), p); err != nil {
		t.Error(err)
	}
}

// Of workers that only showed that they start, a few stay; those that were called
// do, all of them.
func TestUncalledWorkersAreFew(t *testing.T) {
	gate := NewGate()
	pools := make([]*Pool, Uncalled+4)
	for i := range pools {
		pools[i] = newPool(t, answering(":"), Options{Gate: gate})
	}
	processes := func() (n int) {
		for _, p := range pools {
			n += p.Processes()
		}
		return n
	}
	for _, p := range pools {
		if err := p.Prepare(t.Context()); err != nil || p.Ready() != nil {
			t.Fatal(err, p.Ready())
		}
	}
	eventually(t, "the processes of functions that nobody calls are not ended", func() bool { return processes() == Uncalled })
	for i, p := range pools {
		if _, err := invoke(t.Context(), p); err != nil {
			t.Error(err)
		}
		if n := p.Processes(); n != 1 {
			t.Errorf("%d processes of function %d after its call", n, i)
		}
	}
	if n := processes(); n != len(pools) {
		t.Errorf("%d processes of %d functions that were called", n, len(pools))
	}
	late := newPool(t, answering(":"), Options{Gate: gate})
	if err := late.Prepare(t.Context()); err != nil || late.Processes() != 1 {
		t.Errorf("%d processes of a function whose process may stay, %v", late.Processes(), err)
	}
}

// A function that is quick enough for its callers has no more workers than
// there are processors.
func TestQuickCallsNeedFewWorkers(t *testing.T) {
	p := newPool(t, answering(":"), Options{Size: 100})
	var wg sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		wg.Go(func() {
			for range 20 {
				if _, err := invoke(t.Context(), p); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := p.Processes(); n > 2*runtime.NumCPU() {
		t.Errorf("%d workers", n)
	}
}

func TestFailedStarts(t *testing.T) {
	var starts atomic.Int64
	ready := make(chan struct{})
	p := newPool(t, "", Options{Size: 4, Command: func(context.Context) (*exec.Cmd, error) {
		starts.Add(1)
		select {
		case <-ready:
			return &exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", answering(":")}}, nil
		default:
			return nil, errors.New("not yet")
		}
	}})
	if err := p.Prepare(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Ready(); err == nil || err.Error() != "not yet" {
		t.Error(err)
	}
	for range 50 { // they do not start a process each
		_, err := invoke(t.Context(), p)
		later, _ := errors.AsType[*triggers.RetryAfterError](err)
		if later == nil || triggers.ClassOf(err) != triggers.SystemError || !strings.Contains(err.Error(), "the function is not ready: not yet") {
			t.Fatal(err)
		}
	}
	if n := starts.Load(); n > 10 {
		t.Errorf("%d starts", n)
	}
	if err := p.Prepare(t.Context()); err != nil || p.Ready() == nil { // not before its time
		t.Error(err, p.Ready())
	}
	close(ready)
	// Who prepares it again need not call it to find out.
	eventually(t, "it does not become ready", func() bool { return p.Prepare(t.Context()) == nil && p.Ready() == nil })
	if _, err := invoke(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := p.Ready(); err != nil {
		t.Error(err)
	}
}

// Calls that wait have their time, and a pool that is closed tells them.
func TestWaiting(t *testing.T) {
	p := newPool(t, answering("sleep 1000"), Options{Size: 1})
	long, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := invoke(long, p); first <- err }()
	eventually(t, "nothing runs", func() bool { return p.Processes() == 1 })
	short, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	_, err := invoke(short, p)
	if e, ok := errors.AsType[*triggers.Error](err); !ok || e.Class != triggers.FunctionError || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	third := make(chan error, 1)
	go func() { _, err := invoke(t.Context(), p); third <- err }()
	eventually(t, "the call does not wait", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.waiters) == 1 })
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	if err := <-third; err == nil {
		t.Error("a call of a closed pool was answered")
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// A worker that ends between calls costs no call.
func TestEndsBetweenCalls(t *testing.T) {
	p := newPool(t, `read line; echo '{"id":1,"payload":1}'`, Options{Size: 1})
	for range 5 {
		if _, err := invoke(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	// Nor does one that speaks when it was not asked.
	word := filepath.Join(t.TempDir(), "word")
	if err := unix.Mkfifo(word, 0o600); err != nil {
		t.Fatal(err)
	}
	p = newPool(t, `read line; echo '{"id":1}'; read word <`+word+`; echo late; read line`, Options{Size: 1})
	for range 5 {
		if _, err := invoke(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it does not wait for the word", func() bool {
			fd, err := unix.Open(word, unix.O_WRONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return false
			}
			_, err = unix.Write(fd, []byte("go\n"))
			return errors.Join(err, unix.Close(fd)) == nil
		})
		eventually(t, "it does not speak", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			if len(p.idle) == 0 {
				return false
			}
			spoke, _, _ := p.idle[0].look()
			return spoke
		})
	}
}

// One that ends before it takes any call is not started for ever.
func TestEndsAtOnce(t *testing.T) {
	p := newPool(t, "echo no use >&2", Options{Size: 1})
	if _, err := invoke(t.Context(), p); err == nil || triggers.ClassOf(err) != triggers.SystemError || !strings.Contains(err.Error(), "ended before they took the call") {
		t.Error(err)
	}
}

func TestKeep(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "kept")
	dir := filepath.Join(parent, "a")
	var made atomic.Int64
	fill := func(_ context.Context, dir string) error {
		made.Add(1)
		return os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600)
	}
	fails := func(_ context.Context, dir string) error {
		_ = os.WriteFile(filepath.Join(dir, "half"), nil, 0o600)
		return errors.New("no")
	}
	if _, err := Keep(t.Context(), dir, fails); err == nil || err.Error() != "no" {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("half a job stays")
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			k, err := Keep(t.Context(), dir, fill)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(k.Dir, "file")); err != nil {
				t.Error(err)
			}
			_ = k.Close()
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d times", made.Load())
	}
	// A crash leaves a directory that is not whole: it is made again.
	if err := os.Remove(filepath.Join(dir, complete)); err != nil {
		t.Fatal(err)
	}
	k, err := Keep(t.Context(), dir, fill)
	if err != nil || made.Load() != 2 {
		t.Fatal(err, made.Load())
	}
	// What nobody uses goes one day, what is used stays.
	old := time.Now().Add(-2 * forgotten)
	unused := filepath.Join(parent, "b")
	other, err := Keep(t.Context(), unused, fill)
	if err != nil {
		t.Fatal(err)
	}
	_ = other.Close()
	for _, d := range []string{dir, unused} {
		if err := os.Chtimes(filepath.Join(d, complete), old, old); err != nil {
			t.Fatal(err)
		}
	}
	third, err := Keep(t.Context(), filepath.Join(parent, "c"), fill)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(unused); !errors.Is(err, os.ErrNotExist) {
		t.Error("what nobody uses stays")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error("what is used was removed")
	}
	// Another process that makes it is awaited, not for ever.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := os.Remove(filepath.Join(dir, complete)); err != nil {
		t.Fatal(err)
	}
	if _, err := Keep(ctx, dir, fill); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_, _ = k.Close(), third.Close()
}

func frame(kind byte, n uint64, payload, meta string) []byte {
	b := binary.BigEndian.AppendUint64([]byte{kind}, n)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(meta)))
	return append(append(b, payload...), meta...)
}

// Whatever a worker writes, it is an answer or an error, and an answer is valid.
func FuzzFrames(f *testing.F) {
	for _, b := range [][]byte{
		frame('O', 7, `{"a":1}`, ""), frame('O', 7, `1`, `{"events":[{"type":"t","data":1}]}`), frame('E', 7, "", `{"error":{"type":"InputError","message":"m"}}`),
		frame('R', 0, "", ""), frame('D', 7, "", `{"error":{}}`), frame('O', 8, "1", ""), []byte("garbage that is long enough"), append(frame('O', 7, "1", ""), 'x'),
		{},
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkAnswer(t, frames{}, b) })
}

func FuzzLines(f *testing.F) {
	for _, s := range []string{
		`{"id": 7, "payload": [1, "}"]}`, `{"id":7,"payload":1,"payload":2}`, `{"id":77,"payload":1}`, `{"id":7,"payload":}`, ` { "id" :7 , "payload" : {} } `,
		`{"id":7,"payload":{"a":1}}`, `{"id":7,"events":[{"type":"t","extensions":{"a":"b"}}]}`, `{"id":7,"error":{"type":"SystemError","message":"m","stacktrace":["a"]}}`,
		`{"id":8}`, `[]`, ``, `{"id":7}{"id":7}`, "\n\n{\"id\":7}", `{"id":7,"payload":"` + "\xff" + `"}`,
	} {
		f.Add([]byte(s + "\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		checkAnswer(t, ndjson{}, b)
		// The short way says nothing else than the long one.
		var m struct {
			ID      *uint64
			Payload json.RawMessage
		}
		if payload, ok := plain(b, 7); ok && (json.Unmarshal(b, &m) != nil || m.ID == nil || *m.ID != 7 || !bytes.Equal(m.Payload, payload)) {
			t.Fatalf("%q: %q, want %q", b, payload, m.Payload)
		}
	})
}

func checkAnswer(t *testing.T, p protocol, b []byte) {
	a, err := p.read(bufio.NewReaderSize(bytes.NewReader(b), 64<<10), 7)
	switch {
	case err != nil:
	case a.err != nil:
		if c := a.err.Class; c != triggers.InputError && c != triggers.FunctionError && c != triggers.SystemError {
			t.Fatalf("class %q", c)
		}
	case !bus.ValidJSON(a.payload):
		t.Fatalf("payload %q", a.payload)
	}
}

// A request in lines is one line, whatever the payload looks like.
func TestRequestIsOneLine(t *testing.T) {
	r := &request{t.Context(), &triggers.Call{Key: "a\nb"}, []byte("{\n \"a\":\r\n 1}")}
	got := string(ndjson{}.request(nil, 3, r))
	if want := fmt.Sprintf(`{"id":3,"context":{"key":"a\u000ab","attempt":0,"secrets":{}},"payload":{  "a":   1}}%s`, "\n"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
