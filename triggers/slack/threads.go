package slack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// maxThreads is how many threads are in memory.
	maxThreads = 4096
	// forgotten is how long a thread is kept that gets no more messages.
	forgotten = 90 * 24 * time.Hour
	// lookEvery is how often is looked for threads to forget.
	lookEvery = time.Hour
)

// threads knows the first messages of threads by key. They are kept in files,
// so that threads go on after a restart. It is safe for concurrent use.
type threads struct {
	dir    string // "" for memory alone
	logger *slog.Logger

	mu     sync.Mutex
	known  map[string]*thread
	looked time.Time
}

type thread struct {
	// turn holds a token while somebody posts the first message.
	turn chan struct{}
	ts   string // "" until then; guarded by threads.mu
}

func newThreads(data string, logger *slog.Logger) *threads {
	t := &threads{logger: logger, known: map[string]*thread{}}
	if t.logger == nil {
		t.logger = slog.New(slog.DiscardHandler)
	}
	if data != "" {
		t.dir = filepath.Join(data, "slack", "threads")
	}
	return t
}

// post calls send with the thread of a key, or with "" when there is none: then
// the message that send posts, and whose ts it returns, begins the thread.
// Others wait for it meanwhile, so that there is only one.
func (t *threads) post(ctx context.Context, key string, send func(ts string) (string, error)) error {
	sum := sha256.Sum256([]byte(key))
	name := hex.EncodeToString(sum[:16])
	th, ts := t.open(name)
	if ts != "" {
		_, err := send(ts)
		if !noThread(err) {
			return err
		}
		// Somebody has deleted it. Nothing was posted.
	}
	select {
	case th.turn <- struct{}{}:
		defer func() { <-th.turn }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the first message of the thread: %w", ctx.Err())
	}
	if now := t.ts(th); now != ts {
		_, err := send(now)
		return err
	}
	made, err := send("")
	if err == nil && made != "" {
		t.set(name, th, made)
	}
	return err
}

// open returns the thread with its ts.
func (t *threads) open(name string) (*thread, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	th := t.known[name]
	if th == nil {
		for n, other := range t.known {
			if len(t.known) < maxThreads {
				break
			}
			if len(other.turn) == 0 {
				delete(t.known, n)
			}
		}
		th = &thread{turn: make(chan struct{}, 1), ts: t.load(name)}
		t.known[name] = th
	}
	return th, th.ts
}

func (t *threads) ts(th *thread) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return th.ts
}

// load reads the ts of a thread, and notes that it is used.
func (t *threads) load(name string) string {
	if t.dir == "" {
		return ""
	}
	path := filepath.Join(t.dir, name)
	b, err := os.ReadFile(path)
	if err != nil || len(b) > 64 || strings.Trim(string(b), "0123456789.") != "" {
		return ""
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now)
	return string(b)
}

// set keeps the ts of a thread. The message is posted, so that failing now does
// not make the call fail: only the thread would be another one after a restart.
func (t *threads) set(name string, th *thread, ts string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	th.ts = ts
	if t.dir == "" {
		return
	}
	if err := t.write(name, ts); err != nil {
		t.logger.Warn("a thread of Slack is not kept: after a restart its messages begin another one", "error", err.Error())
	}
	if time.Since(t.looked) >= lookEvery {
		t.looked = time.Now()
		t.forget()
	}
}

func (t *threads) write(name, ts string) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(t.dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(ts)
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(t.dir, name))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// forget removes threads that got no message for a long time.
func (t *threads) forget() {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > forgotten {
			_ = os.Remove(filepath.Join(t.dir, e.Name()))
		}
	}
}
