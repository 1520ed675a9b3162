package reload

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sensor-engine/engine/specs"
)

// Defaults of [WatchOptions].
const (
	DefaultQuiet   = 50 * time.Millisecond
	DefaultMaxWait = 2 * time.Second
	DefaultPoll    = 10 * time.Second
)

// A burst over many files is a checkout or a sync, which may pause: then the
// quiet time grows with the number of files, up to maxPatience times.
const (
	filesPerQuiet = 4
	maxPatience   = 10
)

// WatchOptions configure a [Watcher].
type WatchOptions struct {
	// Paths are the files and directories to watch; directories recursively.
	Paths []string
	// Quiet is how long nothing must happen before a change is signalled,
	// MaxWait how long it is put off at most while something always happens.
	// Zero means [DefaultQuiet] and [DefaultMaxWait].
	Quiet, MaxWait time.Duration
	// Poll is how often everything is looked at without a notification, for
	// file systems that send none; zero means [DefaultPoll].
	Poll time.Duration
	// NoNotify turns notifications off, so that only polling is left.
	NoNotify bool
	// Logger gets a line when notifications do not work; nil discards it.
	Logger *slog.Logger
}

// Watcher signals that the content of spec files changed. Notifications of the
// operating system make it quick, a slow poll makes it certain. What counts is
// content: an event without a change of what would be read is no signal.
type Watcher struct {
	o       WatchOptions
	changes chan struct{}
	trigger chan struct{}

	more atomic.Pointer[[]string]

	// The rest belongs to Run.
	scanner  scanner
	last     fingerprint
	notify   *fsnotify.Watcher
	watched  map[string]*watchedDir
	degraded bool
}

// NewWatcher returns a Watcher that begins with [Watcher.Run].
func NewWatcher(o WatchOptions) *Watcher {
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&o.Quiet, DefaultQuiet}, {&o.MaxWait, DefaultMaxWait}, {&o.Poll, DefaultPoll}} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Watcher{
		o:       o,
		changes: make(chan struct{}, 1),
		trigger: make(chan struct{}, 1),
		scanner: scanner{roots: o.Paths},
		watched: map[string]*watchedDir{},
	}
}

// Changes delivers a value when the files should be read. Signals that nobody
// took yet are one. The first comes when Run has begun to watch, so that no
// change between a read before and the watch is missed.
func (w *Watcher) Changes() <-chan struct{} { return w.changes }

// Trigger asks for a signal whether or not something changed. It does not
// block and may be called at any time, from any goroutine.
func (w *Watcher) Trigger() {
	select {
	case w.trigger <- struct{}{}:
	default:
	}
}

// Include makes files and directories that the specs refer to count as well,
// instead of those of the last Include. It does not block, and may be called
// from any goroutine.
func (w *Watcher) Include(paths []string) {
	paths = slices.Sorted(slices.Values(paths))
	paths = slices.Compact(paths)
	if old := w.more.Load(); old == nil && len(paths) == 0 || old != nil && slices.Equal(*old, paths) {
		return
	}
	w.more.Store(&paths)
	w.Trigger()
}

// Run watches until ctx ends; call it once. It never waits for the reader of
// Changes. Where notifications do not work, it goes on by polling.
func (w *Watcher) Run(ctx context.Context) {
	var events chan fsnotify.Event
	var errs chan error
	if !w.o.NoNotify {
		n, err := fsnotify.NewWatcher()
		if err != nil {
			w.degrade("no file notifications", err)
		} else {
			defer n.Close()
			w.notify, events, errs = n, n.Events, n.Errors
		}
	}
	w.look()
	w.signal()

	poll := time.NewTicker(w.o.Poll)
	defer poll.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	var b burst
	for {
		select {
		case <-ctx.Done():
			return
		case ev, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if w.relevant(ev) {
				quiet.Reset(b.add(ev.Name, time.Now(), w.o.Quiet, w.o.MaxWait))
			}
			continue
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				w.degrade("file notification failed", err)
			}
			quiet.Reset(b.add("", time.Now(), w.o.Quiet, w.o.MaxWait))
			continue
		case <-w.trigger:
			w.look()
			w.signal()
		case <-quiet.C:
			if w.look() {
				w.signal()
			}
		case <-poll.C:
			if len(b.names) > 0 {
				continue // something happens just now: that is looked at when it is over
			}
			if w.look() {
				w.signal()
			}
		}
		b = burst{}
		quiet.Stop()
	}
}

// burst is a run of events close to each other.
type burst struct {
	start time.Time
	names map[string]bool
}

// add counts an event and returns how long to wait for the next.
func (b *burst) add(name string, now time.Time, quiet, maxWait time.Duration) time.Duration {
	if b.names == nil {
		*b = burst{start: now, names: map[string]bool{}}
	}
	b.names[name] = true
	patience := min(maxPatience, 1+len(b.names)/filesPerQuiet)
	return max(0, min(quiet*time.Duration(patience), b.start.Add(maxWait).Sub(now)))
}

func (w *Watcher) signal() {
	select {
	case w.changes <- struct{}{}:
	default:
	}
}

// look scans the roots, watches what is new, and reports whether the content
// differs from what it was.
func (w *Watcher) look() bool {
	if more := w.more.Load(); more != nil {
		w.scanner.more = *more
	}
	fp, dirs := w.scanner.run()
	// What appeared in a directory before it was watched sent no event.
	for range 3 {
		if !w.watch(dirs) {
			break
		}
		fp, dirs = w.scanner.run()
	}
	changed := fp != w.last
	w.last = fp
	return changed
}

// watch makes the notifications cover dirs and reports whether some are new.
func (w *Watcher) watch(dirs map[string]*watchedDir) bool {
	if w.notify == nil {
		return false
	}
	// Deleting, moving or unmounting a directory ends its watch.
	listed := map[string]bool{}
	for _, path := range w.notify.WatchList() {
		listed[path] = true
	}
	added := false
	for path, dir := range dirs {
		old := w.watched[path]
		if old != nil && os.SameFile(old.info, dir.info) && listed[path] {
			continue
		}
		if old != nil {
			_ = w.notify.Remove(path) // it was deleted and created again
		}
		if err := w.notify.Add(path); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				w.degrade("cannot watch directory "+path, err)
			}
			delete(dirs, path)
			continue
		}
		added = true
	}
	for path := range w.watched {
		if dirs[path] == nil {
			_ = w.notify.Remove(path) // fails when it was deleted
		}
	}
	w.watched = dirs
	return added
}

// degrade tells once that changes may be found by polling only.
func (w *Watcher) degrade(what string, err error) {
	if !w.degraded {
		w.degraded = true
		w.o.Logger.Warn("changes of spec files may be noticed late", "why", what, "error", err, "poll", w.o.Poll)
	}
}

// relevant reports whether an event may mean that specs changed. It only saves
// scans, so in doubt the answer is yes.
func (w *Watcher) relevant(ev fsnotify.Event) bool {
	if w.watched[ev.Name] != nil {
		return true // a watched directory itself
	}
	dir, name := filepath.Split(ev.Name)
	d := w.watched[filepath.Clean(dir)]
	switch {
	case d == nil || d.names[name]:
		return true
	case strings.HasPrefix(name, ".."):
		return true // a ConfigMap swaps its link ..data
	case ignored(name):
		return false
	case d.all && !madeByTools(name):
		return true
	case !d.tree:
		return false
	case specs.IsSpecFile(name):
		return true
	case ev.Has(fsnotify.Create):
		info, err := os.Lstat(ev.Name)
		return err != nil || info.IsDir() || info.Mode()&fs.ModeSymlink != 0
	case ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename):
		return filepath.Ext(name) == "" // perhaps a link to a directory
	}
	return false
}
