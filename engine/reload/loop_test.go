package reload

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// loop does what the engine does with this package: watch, load, decide,
// apply, accept.
type loop struct {
	t       *testing.T
	dir     string
	watcher *Watcher

	mu      sync.Mutex
	last    Decision
	reads   int
	applied []Plan
	told    specs.Diagnostics
	fixed   specs.Diagnostics
	stored  []byte
}

func loader() specs.Loader {
	return specs.Loader{Types: specs.Types{Functions: []specs.Type{{Name: "log", New: func() any {
		return &struct {
			Level string `yaml:"level" doc:"The level."`
		}{}
	}}}}}
}

// run starts a loop over dir with short times; stored is what a former one left.
func run(t *testing.T, dir string, o WatchOptions, grace time.Duration, stored []byte) *loop {
	t.Helper()
	l := &loop{t: t, dir: dir}
	r := New(Options{Check: loader().Check, Grace: grace, Settle: DefaultSettle})
	if stored != nil {
		if lost, err := r.Restore(stored, loader().LoadSource); err != nil || len(lost) > 0 {
			t.Fatal(lost, err)
		}
	}
	o.Paths = []string{dir}
	if o.Quiet == 0 {
		o.Quiet, o.MaxWait = calm/2, deadline
	}
	l.watcher = watch(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	again := l.read(ctx, r)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var timer <-chan time.Time
			if !again.IsZero() {
				timer = time.After(time.Until(again))
			}
			select {
			case <-ctx.Done():
				return
			case <-l.watcher.Changes():
			case <-timer:
			}
			again = l.read(ctx, r)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

func (l *loop) read(ctx context.Context, r *Reconciler) time.Time {
	loaded, err := loader().Load(ctx, l.dir)
	if err != nil {
		if ctx.Err() == nil {
			l.t.Error(err)
		}
		return time.Time{}
	}
	d, err := r.Next(loaded, time.Now(), false)
	if err != nil {
		l.t.Error(err)
		return time.Time{}
	}
	r.Accept(d)
	stored, err := r.Encode()
	if err != nil {
		l.t.Error(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.stored = d, stored
	l.reads++
	if !d.Plan.Empty() {
		l.applied = append(l.applied, d.Plan)
	}
	l.told = append(l.told, d.NewDiagnostics...)
	l.fixed = append(l.fixed, d.Recovered...)
	return d.Again
}

// state is a copy of what happened so far.
type state struct {
	last        Decision
	reads       int
	applied     []Plan
	told, fixed specs.Diagnostics
	stored      []byte
}

func (l *loop) state() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return state{l.last, l.reads, slices.Clone(l.applied), slices.Clone(l.told), slices.Clone(l.fixed), l.stored}
}

func (l *loop) await(what string, ok func(state) bool) {
	l.t.Helper()
	defer func() {
		l.t.Helper()
		if l.t.Failed() {
			s := l.state()
			l.t.Logf("%s: status\n%s\napplied %v\ntold %v", what, statuses(s.last), s.applied, s.told)
		}
	}()
	await(l.t, func() bool { return ok(l.state()) })
}

// calm waits as long as nothing more may come.
func (l *loop) calm() state {
	<-time.After(calm)
	return l.state()
}

// is tells that the resource has the state.
func (s state) is(name string, want State) bool {
	return slices.ContainsFunc(s.last.Statuses, func(st Status) bool { return st.Ref == ref(name) && st.State == want })
}

// level is the level of a function that runs, "" if none does.
func (s state) level(name string) string {
	res := s.last.Set.Resources[ref("Function/"+name)]
	if res == nil {
		return ""
	}
	_, level, _ := strings.Cut(res.Source, "level: ")
	level, _, _ = strings.Cut(level, "\n")
	level, _, _ = strings.Cut(level, "}")
	return level
}

func function(name, level string) string {
	return fmt.Sprintf("---\napiVersion: engine/v1\nkind: Function\nmetadata: {name: %s}\nspec:\n  log: {level: %s}\n", name, level)
}

// A file written in two parts, 500 ms apart, of which the first does not
// parse: what runs stays, nothing is told, one change is applied.
func TestLoopHalfWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	write(t, path, function("f", "one")+function("g", "one"))
	l := run(t, dir, WatchOptions{Poll: time.Hour, Quiet: DefaultQuiet}, 0, nil)

	text := function("f", "two") + function("g", "two")
	half := strings.LastIndex(text, "{level") + 3
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	_, err = f.WriteString(text[:half])
	must(t, err)
	second := time.After(500 * time.Millisecond)
	l.await("stale", func(s state) bool { return s.is("Function/f", Stale) && s.is("Function/g", Stale) })
	stale := time.Now()
	<-second
	_, err = f.WriteString(text[half:])
	must(t, err)
	l.await("whole", func(s state) bool { return s.level("g") == "two" })

	settled := time.Since(stale) > DefaultSettle // on a very slow machine it is news

	<-time.After(DefaultSettle + calm)
	if s := l.state(); len(s.applied) != 2 || len(s.told) > 0 && !settled || len(s.applied[1].Of(Changed)) != 2 {
		t.Errorf("applied %v, told %v", s.applied, s.told)
	}
}

// A file that stays broken is told once, keeps its last good version, also
// across a restart, and its repair is told, too.
func TestLoopBrokenEditAndRepair(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	write(t, path, function("f", "one"))
	l := run(t, dir, WatchOptions{Poll: 50 * time.Millisecond}, 0, nil)
	write(t, path, "kind: [")
	l.await("told", func(s state) bool { return len(s.told) == 1 && s.is("Function/f", Stale) })
	if !strings.HasPrefix(l.state().told[0].String(), path+":1:") {
		t.Errorf("told without a place: %v", l.state().told)
	}
	write(t, path, "\nkind: [")
	l.await("read", func(s state) bool { return s.reads >= 4 })
	if s := l.calm(); len(s.applied) != 1 || !s.is("Function/f", Stale) {
		t.Errorf("applied %v", s.applied)
	}

	after := run(t, dir, WatchOptions{Poll: time.Hour}, 0, l.state().stored)
	if s := after.state(); !s.is("Function/f", Stale) || s.level("f") != "one" || len(s.applied) > 0 || len(s.told) != 1 {
		t.Errorf("after a restart: %v, applied %v, told %v", s.last.Statuses, s.applied, s.told)
	}
	write(t, path, function("f", "two"))
	after.await("repaired", func(s state) bool { return s.level("f") == "two" && len(s.fixed) == 1 })
}

// 500 files changed by a checkout, one of them invalid: one apply, the invalid
// one keeps its last good version.
func TestLoopCheckout(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	git := gitIn(t, dir)
	git("init", "-q")
	for _, level := range []string{"one", "two"} {
		for i := range 500 {
			text := function(fmt.Sprintf("f%d", i), level)
			if i == 250 && level == "two" {
				text = strings.Replace(text, "level", "levle", 1)
			}
			write(t, filepath.Join(mkdir(t, dir, fmt.Sprintf("team%d", i%7)), fmt.Sprintf("f%d.yaml", i)), text)
		}
		git("add", ".")
		git("commit", "-qm", level)
		git("tag", level)
	}
	git("checkout", "-q", "one")
	l := run(t, dir, WatchOptions{Poll: time.Hour}, DefaultGrace, nil)
	git("checkout", "-q", "two")
	l.await("checked out", func(s state) bool { return s.level("f0") == "two" && s.level("f499") == "two" })
	s := l.calm()
	if len(s.applied) != 2 || len(s.applied[1].Of(Changed)) != 499 {
		t.Errorf("%d plans, the last:\n%v", len(s.applied), s.applied[len(s.applied)-1])
	}
	if !s.is("Function/f250", Stale) || s.level("f250") != "one" {
		t.Error("the invalid one did not keep its last good version")
	}
	l.await("told", func(s state) bool { return len(s.told) == 1 })
}

func gitIn(t *testing.T, dir string) func(args ...string) {
	return func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main", "-c", "advice.detachedHead=false"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
}

// The directory goes away and comes back; meanwhile everything runs.
func TestLoopDirectoryGone(t *testing.T) {
	for _, notify := range []bool{true, false} {
		t.Run(fmt.Sprintf("notify=%v", notify), func(t *testing.T) {
			t.Parallel()
			dir := mkdir(t, t.TempDir(), "specs")
			write(t, filepath.Join(dir, "a.yaml"), function("f", "one"))
			l := run(t, dir, WatchOptions{Poll: 100 * time.Millisecond, NoNotify: !notify}, time.Minute, nil)
			must(t, os.RemoveAll(dir))
			l.await("alarm", func(s state) bool { return len(s.last.Alarms) == 1 && s.is("Function/f", Stale) })
			write(t, filepath.Join(mkdir(t, dir), "a.yaml"), function("f", "two"))
			l.await("back", func(s state) bool { return s.level("f") == "two" && len(s.last.Alarms) == 0 })
			if s := l.state(); len(s.applied) != 2 {
				t.Errorf("applied %v", s.applied)
			}
		})
	}
}

// All specs vanish while the directory stays, as with an unmounted volume.
func TestLoopAllVanish(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		write(t, filepath.Join(dir, fmt.Sprintf("%d.yaml", i)), function(fmt.Sprintf("f%d", i), "one"))
	}
	l := run(t, dir, WatchOptions{Poll: time.Hour}, 100*time.Millisecond, nil)
	for i := range 20 {
		must(t, os.Remove(filepath.Join(dir, fmt.Sprintf("%d.yaml", i))))
	}
	l.await("alarm", func(s state) bool { return len(s.last.Alarms) == 1 })
	if s := l.calm(); len(s.applied) != 1 || len(s.last.Set.Resources) != 20 {
		t.Errorf("applied %v", s.applied)
	}
}

// A link that leads out of the root is refused, and told.
func TestLoopLinkOutside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "a.yaml")
	write(t, outside, function("f", "one"))
	dir := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(dir, "a.yaml")))
	l := run(t, dir, WatchOptions{Poll: time.Hour}, 0, nil)
	if s := l.state(); len(s.last.Set.Resources) > 0 || len(s.told) != 1 || s.told[0].Code != specs.CodeLinkOutside {
		t.Errorf("%v, told %v", s.last.Statuses, s.told)
	}
}

func TestRootMissingAtStart(t *testing.T) {
	dir := t.TempDir()
	r := New(Options{})
	for _, paths := range [][]string{{filepath.Join(dir, "nowhere")}, {dir, filepath.Join(dir, "no.yaml")}, nil} {
		loaded, err := loader().Load(t.Context(), paths...)
		must(t, err)
		if _, err := r.Next(loaded, start, false); err == nil {
			t.Errorf("%v: no error", paths)
		} else if len(paths) > 0 && !strings.Contains(err.Error(), paths[len(paths)-1]) {
			t.Errorf("the error does not name the path: %v", err)
		}
	}
	loaded, err := loader().Load(t.Context(), dir)
	must(t, err)
	if _, err := r.Next(loaded, start, false); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
}

// The watcher looks at exactly the files that the loader reads.
func TestScannerSeesWhatIsLoaded(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"a.yaml", "b.yml", "c.YAML", "d.json", "e.yaml~", "#f.yaml#", ".g.yaml", "h", "i.yaml.bak", "j.yaml.swp",
		"k~/a.yaml", ".l/a.yaml", "m.yaml/a.yaml", "n/o/p.yaml", "..q/a.yaml", "r b/ä.yml",
	} {
		mkdir(t, filepath.Dir(filepath.Join(dir, name)))
		write(t, filepath.Join(dir, name), function("f", "one"))
	}
	must(t, os.Symlink("..q/a.yaml", filepath.Join(dir, "linked.yaml")))
	must(t, os.Symlink(".l", filepath.Join(dir, "linked")))
	loaded, err := loader().Load(t.Context(), dir)
	must(t, err)
	var want []string
	for _, f := range loaded.Files {
		want = append(want, f.Path)
	}
	s := scanner{roots: []string{dir}}
	s.run()
	var got []string
	for path := range s.files {
		got = append(got, path)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the watcher sees\n%s\nthe loader reads\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(want) < 7 {
		t.Errorf("only %v are loaded", want)
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	write(t, path, "# a comment\n\n"+function("f", "one")+function("g", "two")+"# the end\n")
	loaded, err := loader().Load(t.Context(), dir)
	must(t, err)
	r := New(Options{})
	d, err := r.Next(loaded, start, false)
	must(t, err)
	r.Accept(d)
	data, err := r.Encode()
	must(t, err)

	if n := len(r.Accepted().Resources); n != 2 {
		t.Fatalf("%d resources: %v", n, d.Diagnostics)
	}
	after := New(Options{})
	lost, err := after.Restore(data, loader().LoadSource)
	if err != nil || len(lost) > 0 {
		t.Fatal(lost, err)
	}
	for ref, res := range r.Accepted().Resources {
		if got := after.Accepted().Resources[ref]; got == nil || got.Hash != res.Hash || got.Pos != res.Pos {
			t.Errorf("%v came back as %+v, was %+v", ref, got, res)
		}
	}
	if same, err := after.Encode(); err != nil || string(same) != string(data) {
		t.Errorf("encoded again it differs: %v", err)
	}

	// A program without the type loses the resource, and says so.
	lost, err = New(Options{}).Restore(data, specs.Loader{}.LoadSource)
	if err != nil || !lost.HasErrors() {
		t.Errorf("a lost type: %v %v", lost, err)
	}
	for _, damaged := range [][]byte{nil, []byte("x"), data[:len(data)/2], data[:len(data)-4]} {
		if _, err := after.Restore(damaged, loader().LoadSource); err == nil {
			t.Errorf("%d damaged bytes were restored", len(damaged))
		}
	}
	if len(after.Accepted().Resources) != 2 {
		t.Error("damaged bytes changed the accepted set")
	}
}

func BenchmarkReload(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.yaml", i)), []byte(function(fmt.Sprintf("f%d", i), "one")), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	loaded, err := loader().Load(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	r := New(Options{Check: loader().Check, Grace: DefaultGrace})
	other := *loaded.Resources[500]
	versions := []*specs.Resource{loaded.Resources[500], &other}
	other.Hash = "other"
	for i := 0; b.Loop(); i++ {
		loaded.Resources[500] = versions[i%2]
		d, err := r.Next(loaded, start, false)
		if err != nil || i > 0 && len(d.Plan.Of(Changed)) != 1 {
			b.Fatal(err, d.Plan)
		}
		r.Accept(d)
		if _, err := r.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}
