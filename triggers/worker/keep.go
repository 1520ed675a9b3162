package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// complete is the file that says that a kept directory is whole.
	complete = ".complete"
	// forgotten is how long a kept directory stays that nobody uses.
	forgotten = 30 * 24 * time.Hour
	lockPoll  = 20 * time.Millisecond
)

// Kept is a directory that was made once, for everybody who wants what is in
// it, such as installed dependencies. It stays as long as somebody has it open
// and a month longer.
type Kept struct {
	// Dir is where it is.
	Dir  string
	lock *os.File
}

// Keep opens dir, which must be below a directory that holds nothing else. When
// it is not there, fill makes its content, alone among all processes; when
// that fails, nothing stays. It blocks until that is done or ctx ends. The
// caller closes the result.
func Keep(ctx context.Context, dir string, fill func(ctx context.Context, dir string) error) (*Kept, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	k := &Kept{Dir: dir, lock: lock}
	if err := k.open(ctx, fill); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return k, nil
}

func (k *Kept) open(ctx context.Context, fill func(ctx context.Context, dir string) error) error {
	for {
		if err := k.flock(ctx, unix.LOCK_SH); err != nil {
			return err
		}
		if k.whole() {
			return nil
		}
		if err := k.flock(ctx, unix.LOCK_EX); err != nil { // others may come in between
			return err
		}
		if k.whole() {
			continue
		}
		if err := os.RemoveAll(k.Dir); err != nil {
			return err
		}
		if err := os.Mkdir(k.Dir, 0o700); err != nil {
			return err
		}
		if err := fill(ctx, k.Dir); err != nil {
			return errors.Join(err, os.RemoveAll(k.Dir))
		}
		if err := os.WriteFile(filepath.Join(k.Dir, complete), nil, 0o600); err != nil {
			return err
		}
		forget(filepath.Dir(k.Dir))
	}
}

// whole reports whether the directory is complete, and notes that it is used.
func (k *Kept) whole() bool {
	now := time.Now()
	return os.Chtimes(filepath.Join(k.Dir, complete), now, now) == nil
}

// flock waits for a lock.
func (k *Kept) flock(ctx context.Context, how int) error {
	for {
		err := unix.Flock(int(k.lock.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock of %s: %w", k.Dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process makes %s: %w", k.Dir, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// forget removes what nobody has used for a long time.
func forget(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		info, err := os.Stat(filepath.Join(dir, complete))
		if err != nil || time.Since(info.ModTime()) < forgotten {
			continue
		}
		lock, err := os.OpenFile(dir+".lock", os.O_RDWR, 0o600)
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}

// Close lets the directory be removed one day.
func (k *Kept) Close() error { return k.lock.Close() }
