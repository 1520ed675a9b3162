package reload

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline bounds every wait for something that must come; calm is how long
// nothing more may come.
const (
	deadline = 20 * time.Second
	calm     = 300 * time.Millisecond
)

// watch runs a watcher until the test ends and swallows its first signal.
func watch(t *testing.T, o WatchOptions) *Watcher {
	t.Helper()
	w := NewWatcher(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	expect(t, w)
	return w
}

// expect waits for one signal.
func expect(t *testing.T, w *Watcher) {
	t.Helper()
	select {
	case <-w.Changes():
	case <-time.After(deadline):
		t.Fatal("no change was signalled")
	}
}

// expectNone checks that no signal comes.
func expectNone(t *testing.T, w *Watcher) {
	t.Helper()
	select {
	case <-w.Changes():
		t.Fatal("a change was signalled, although nothing changed")
	case <-time.After(calm):
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	must(t, os.MkdirAll(dir, 0o755))
	return dir
}

// patient makes a watcher that counts what happens on a busy machine as one.
func patient(path string) WatchOptions {
	return WatchOptions{Paths: []string{path}, Quiet: calm / 2, MaxWait: deadline, Poll: time.Hour}
}

// drain takes signals until there are no more.
func drain(w *Watcher) {
	for {
		select {
		case <-w.Changes():
		case <-time.After(calm):
			return
		}
	}
}

// polling makes a watcher that finds things by polling alone.
func polling(dir string) WatchOptions {
	return WatchOptions{Paths: []string{dir}, NoNotify: true, Poll: 20 * time.Millisecond}
}

// Each way to change files is one signal, however many system calls it takes.
func TestWatcherSignalsOnce(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, dir string)
	}{
		{"write in place", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a.yaml"), "b") }},
		{"truncate and write", func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, "a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
			must(t, err)
			for range 5 {
				_, err = f.WriteString("part\n")
				must(t, err)
			}
			must(t, f.Close())
		}},
		{"vim with backup", func(t *testing.T, dir string) {
			a := filepath.Join(dir, "a.yaml")
			write(t, filepath.Join(dir, ".a.yaml.swp"), "swap")
			write(t, filepath.Join(dir, "4913"), "")
			must(t, os.Remove(filepath.Join(dir, "4913")))
			must(t, os.Rename(a, a+"~"))
			write(t, a, "b")
			must(t, os.Chmod(a, 0o644))
			must(t, os.Remove(a+"~"))
			must(t, os.Remove(filepath.Join(dir, ".a.yaml.swp")))
		}},
		{"emacs with lock and auto-save", func(t *testing.T, dir string) {
			a := filepath.Join(dir, "a.yaml")
			must(t, os.Symlink("user@host.1", filepath.Join(dir, ".#a.yaml")))
			write(t, filepath.Join(dir, "#a.yaml#"), "auto")
			must(t, os.Rename(a, a+"~"))
			write(t, a, "b")
			must(t, os.Remove(filepath.Join(dir, "#a.yaml#")))
			must(t, os.Remove(filepath.Join(dir, ".#a.yaml")))
		}},
		{"rename over", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "a.yaml.tmp123"), "b")
			must(t, os.Rename(filepath.Join(dir, "a.yaml.tmp123"), filepath.Join(dir, "a.yaml")))
		}},
		{"same size, same time", func(t *testing.T, dir string) {
			a := filepath.Join(dir, "a.yaml")
			info, err := os.Stat(a)
			must(t, err)
			write(t, a, "z")
			must(t, os.Chtimes(a, info.ModTime(), info.ModTime()))
		}},
		{"delete", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "a.yaml"))) }},
		{"new directory with files", func(t *testing.T, dir string) {
			write(t, filepath.Join(mkdir(t, dir, "x", "y", "z"), "b.yaml"), "b")
		}},
		{"directory moved in", func(t *testing.T, dir string) {
			other := mkdir(t, t.TempDir(), "team")
			write(t, filepath.Join(other, "b.yaml"), "b")
			must(t, os.Rename(other, filepath.Join(dir, "team")))
		}},
		{"directory moved out", func(t *testing.T, dir string) {
			must(t, os.Rename(filepath.Join(dir, "sub"), filepath.Join(t.TempDir(), "sub")))
		}},
		{"directory deleted and created again", func(t *testing.T, dir string) {
			must(t, os.RemoveAll(filepath.Join(dir, "sub")))
			write(t, filepath.Join(mkdir(t, dir, "sub"), "c.yaml"), "other")
		}},
		{"root deleted and created again", func(t *testing.T, dir string) {
			must(t, os.RemoveAll(dir))
			write(t, filepath.Join(mkdir(t, dir), "a.yaml"), "other")
		}},
		{"root gone", func(t *testing.T, dir string) { must(t, os.Rename(dir, dir+".old")) }},
	}
	for _, tt := range tests {
		for _, notify := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/notify=%v", tt.name, notify), func(t *testing.T) {
				t.Parallel()
				dir := mkdir(t, t.TempDir(), "specs")
				write(t, filepath.Join(dir, "a.yaml"), "a")
				write(t, filepath.Join(mkdir(t, dir, "sub"), "c.yaml"), "c")
				o := patient(dir)
				if !notify {
					o = polling(dir)
				}
				w := watch(t, o)
				tt.change(t, dir)
				expect(t, w)
				if notify {
					expectNone(t, w)
				} else {
					drain(w) // a poll may come in the middle of the change
				}
				// The watches are still complete.
				write(t, filepath.Join(mkdir(t, dir, "sub"), "last.yaml"), "last")
				expect(t, w)
			})
		}
	}
}

func TestWatcherIgnores(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, dir string)
	}{
		{"the same content written again", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a.yaml"), "a") }},
		{"touch", func(t *testing.T, dir string) {
			must(t, os.Chtimes(filepath.Join(dir, "a.yaml"), time.Now(), time.Now()))
		}},
		{"other files", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "run.log"), "b") }},
		{"hidden files and directories", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, ".b.yaml"), "b")
			write(t, filepath.Join(mkdir(t, dir, ".git"), "c.yaml"), "c")
		}},
		{"backups", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "a.yaml~"), "b")
			write(t, filepath.Join(dir, "#a.yaml#"), "b")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, filepath.Join(dir, "a.yaml"), "a")
			w := watch(t, WatchOptions{Paths: []string{dir}, Poll: 50 * time.Millisecond})
			tt.change(t, dir)
			expectNone(t, w)
		})
	}
}

// A ConfigMap volume: files are links into ..data, itself a link that is swapped.
func TestWatcherConfigMapSwap(t *testing.T) {
	for _, arg := range []string{".", "a.yaml"} {
		t.Run(arg, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, filepath.Join(mkdir(t, dir, "..2026_1"), "a.yaml"), "one")
			must(t, os.Symlink("..2026_1", filepath.Join(dir, "..data")))
			must(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))
			w := watch(t, patient(filepath.Join(dir, arg)))

			write(t, filepath.Join(mkdir(t, dir, "..2026_2"), "a.yaml"), "two")
			must(t, os.Symlink("..2026_2", filepath.Join(dir, "..data_tmp")))
			must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
			must(t, os.RemoveAll(filepath.Join(dir, "..2026_1")))
			expect(t, w)
			expectNone(t, w)
		})
	}
}

func TestWatcherFileArgument(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "only.conf")
	write(t, file, "a")
	w := watch(t, WatchOptions{Paths: []string{file}, Poll: time.Hour})
	write(t, filepath.Join(dir, "other.yaml"), "b")
	expectNone(t, w)
	write(t, file+".new", "b")
	must(t, os.Rename(file+".new", file))
	expect(t, w)
}

// A link as root, exchanged as deployment tools do it.
func TestWatcherLinkedRoot(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(mkdir(t, dir, "v1"), "a.yaml"), "one")
	write(t, filepath.Join(mkdir(t, dir, "v2"), "a.yaml"), "two")
	current := filepath.Join(dir, "current")
	must(t, os.Symlink("v1", current))
	w := watch(t, WatchOptions{Paths: []string{current}, Poll: time.Hour})
	must(t, os.Symlink("v2", current+".new"))
	must(t, os.Rename(current+".new", current))
	expect(t, w)
	write(t, filepath.Join(dir, "v2", "a.yaml"), "three")
	expect(t, w)
}

func TestWatcherRootAppearsDeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	w := watch(t, WatchOptions{Paths: []string{dir}, Poll: time.Hour})
	write(t, filepath.Join(mkdir(t, dir), "a.yaml"), "a")
	expect(t, w)
}

// Links that lead out of the root or in circles are not followed.
func TestWatcherLinksStayInside(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "a.yaml"), "a")
	dir := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(dir, "out")))
	must(t, os.Symlink(filepath.Join(outside, "a.yaml"), filepath.Join(dir, "b.yaml")))
	must(t, os.Symlink(".", filepath.Join(dir, "loop")))
	must(t, os.Symlink("self", filepath.Join(dir, "self")))
	w := watch(t, WatchOptions{Paths: []string{dir}, Poll: 50 * time.Millisecond})
	write(t, filepath.Join(outside, "a.yaml"), "changed")
	expectNone(t, w)
}

func TestWatcherTrigger(t *testing.T) {
	w := watch(t, WatchOptions{Paths: []string{t.TempDir()}, Poll: time.Hour})
	w.Trigger()
	expect(t, w)
	expectNone(t, w)
}

// Nobody takes the signals: the watcher goes on, and they become one.
func TestWatcherNeverWaits(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, polling(dir))
	a := filepath.Join(dir, "a.yaml")
	for i := range 5 {
		write(t, a, fmt.Sprint(i))
		await(t, func() bool { return len(w.Changes()) == 1 })
	}
	w.Trigger()
	await(t, func() bool { return len(w.trigger) == 0 })
	expect(t, w)
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(deadline)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal("it did not happen in time")
		}
	}
}

// 500 files changed by a checkout are one signal.
func TestWatcherCheckout(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	git := gitIn(t, dir)
	fill := func(version string) {
		for i := range 500 {
			write(t, filepath.Join(mkdir(t, dir, fmt.Sprintf("team%d", i%7)), fmt.Sprintf("f%d.yaml", i)), version)
		}
	}
	git("init", "-q")
	for _, version := range []string{"one", "two"} {
		fill(version)
		git("add", ".")
		git("commit", "-qm", version)
		git("tag", version)
	}
	w := watch(t, patient(dir))
	git("checkout", "-q", "one")
	expect(t, w)
	expectNone(t, w)
}

// Relative paths, one below the other, are one tree.
func TestWatcherRelativePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, filepath.Join(mkdir(t, "sub"), "a.yaml"), "a")
	w := watch(t, WatchOptions{Paths: []string{"sub/a.yaml", ".", "sub"}, Poll: time.Hour})
	write(t, filepath.Join("sub", "b.yaml"), "b")
	expect(t, w)
	write(t, "c.yaml", "c")
	expect(t, w)
}

// Events were lost: the watcher looks at everything, and watches again what
// it no longer does.
func TestWatcherOverflow(t *testing.T) {
	dir := t.TempDir()
	w := watch(t, WatchOptions{Paths: []string{dir}, Poll: time.Hour})
	must(t, w.notify.Remove(dir))
	write(t, filepath.Join(dir, "a.yaml"), "a")
	expectNone(t, w)
	w.notify.Errors <- fsnotify.ErrEventOverflow
	expect(t, w)
	write(t, filepath.Join(dir, "a.yaml"), "b")
	expect(t, w)
}

func TestBurst(t *testing.T) {
	var b burst
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	wait := func(name string, ms int) time.Duration {
		return b.add(name, at(ms), DefaultQuiet, DefaultMaxWait)
	}
	if got := wait("a", 0); got != DefaultQuiet {
		t.Errorf("one file waits %v", got)
	}
	for i := range 100 {
		wait(fmt.Sprint(i), 10)
	}
	if got := wait("z", 20); got != maxPatience*DefaultQuiet {
		t.Errorf("many files wait %v", got)
	}
	if got := wait("z", 1900); got != 100*time.Millisecond {
		t.Errorf("shortly before the limit it waits %v", got)
	}
	if got := wait("z", 2500); got != 0 {
		t.Errorf("after the limit it waits %v", got)
	}
}

func BenchmarkScan(b *testing.B) {
	dir := b.TempDir()
	old := time.Now().Add(-time.Hour)
	for i := range 1000 {
		path := filepath.Join(dir, fmt.Sprintf("f%d.yaml", i))
		if err := os.WriteFile(path, []byte("kind: Sensor\n"), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			b.Fatal(err)
		}
	}
	s := scanner{roots: []string{dir}}
	s.run()
	for b.Loop() {
		s.run()
	}
}
