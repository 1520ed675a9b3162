// Package lock owns the lock of a data directory: one engine per directory,
// for as long as its process lives. It must not know what is stored there.
package lock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// name is the file inside the directory that is locked.
const name = "lock"

// ErrHeld says that another process has the lock.
var ErrHeld = errors.New("data directory is in use")

// errBusy is what the platform's tryLock returns for a lock that is held.
var errBusy = errors.New("busy")

// Lock is a held lock of a directory.
type Lock struct {
	f    *os.File
	path string
}

// patience is how long a lock is awaited whose process has ended: what it was
// just starting may hold the lock until it has become a program of its own.
const patience = 2 * time.Second

// Acquire creates dir if it is missing, checks that it can be written, and
// locks it, without waiting for another engine to end. The error tells in one line what is wrong, where
// and what to do: [ErrHeld] with the pid of the other engine, or a directory
// that cannot be created or written. The operating system gives the lock up
// when the process ends, however it ends.
func Acquire(dir string) (*Lock, error) {
	if dir == "" {
		return nil, errors.New("data directory: no path given")
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, explain(dir, "create", err)
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, explain(dir, "write to", err)
	}
	err = tryLock(f)
	for end := time.Now().Add(patience); errors.Is(err, errBusy) && ended(pid(f)) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		err = tryLock(f)
	}
	if err != nil {
		defer func() { _ = f.Close() }()
		if errors.Is(err, errBusy) {
			return nil, fmt.Errorf("%w: %s is locked by %s; stop it or choose another --data", ErrHeld, path, holder(f))
		}
		return nil, fmt.Errorf("lock %s: %w (the data directory must be on a local file system)", path, err)
	}
	l := &Lock{f: f, path: path}
	if err := l.write(); err != nil {
		_ = l.Release()
		return nil, explain(dir, "write to", err)
	}
	return l, nil
}

// Path is the file that is locked.
func (l *Lock) Path() string { return l.path }

// Release gives the lock up. The file stays: removing it would let two
// processes lock two files of one name.
func (l *Lock) Release() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	_ = f.Truncate(0)
	return f.Close()
}

func (l *Lock) write() error {
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err := l.f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// pid is that of the process that has the lock, as far as the file tells; 0 when
// it does not.
func pid(f *os.File) int {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return 0
	}
	return pid
}

// holder names the process that has the lock.
func holder(f *os.File) string {
	if pid := pid(f); pid > 0 {
		return fmt.Sprintf("the engine with pid %d", pid)
	}
	return "another engine"
}

func explain(dir, verb string, err error) error {
	abs, aerr := filepath.Abs(dir)
	if aerr != nil {
		abs = dir
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	fix := "choose another --data"
	switch {
	case errors.Is(err, fs.ErrPermission):
		fix = fmt.Sprintf("give the user with uid %d the right to write there, or choose another --data", os.Getuid())
	case isReadOnly(err):
		fix = "remount it writable or choose another --data"
	}
	return fmt.Errorf("data directory %s: cannot %s it: %w; %s", abs, verb, err, fix)
}
