package reload

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Files and directories that specs refer to count like specs, within and
// outside of the roots.
func TestIncludedFiles(t *testing.T) {
	for _, notify := range []bool{true, false} {
		dir, other := t.TempDir(), t.TempDir()
		write(t, filepath.Join(dir, "f.yaml"), "a: 1\n")
		write(t, filepath.Join(dir, "f.py"), "1")
		write(t, filepath.Join(dir, "g.py"), "1")
		code := filepath.Join(other, "code")
		for _, d := range []string{"sub", "__pycache__", ".git"} {
			if err := os.MkdirAll(filepath.Join(code, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		o := WatchOptions{Paths: []string{dir}, Quiet: 10 * time.Millisecond, Poll: time.Hour}
		if !notify {
			o.NoNotify, o.Poll = true, 20*time.Millisecond
		}
		w := watch(t, o)
		included := []string{filepath.Join(dir, "f.py"), filepath.Join(dir, "absent.py"), code}
		w.Include(included)
		expect(t, w) // what is to be watched has changed
		w.Include(included)
		expectNone(t, w)
		for _, path := range []string{
			filepath.Join(dir, "f.py"), filepath.Join(dir, "absent.py"), filepath.Join(code, "new.py"), filepath.Join(code, "sub", "new.txt"), filepath.Join(code, "new.py"),
		} {
			write(t, path, path+time.Now().String())
			expect(t, w)
		}
		if err := os.Remove(filepath.Join(code, "new.py")); err != nil {
			t.Fatal(err)
		}
		expect(t, w)
		write(t, filepath.Join(dir, "g.py"), "2")
		write(t, filepath.Join(code, "__pycache__", "x.pyc"), "2")
		write(t, filepath.Join(code, ".git", "x"), "2")
		expectNone(t, w)
		w.Include(nil)
		expect(t, w)
		write(t, filepath.Join(dir, "f.py"), "3")
		expectNone(t, w)
	}
}

func TestStamp(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a", "f.py")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	var s Stamper
	if s.Stamp(nil) != "" {
		t.Error("nothing has a stamp")
	}
	seen := map[string]string{}
	note := func(what string, paths ...string) {
		t.Helper()
		stamp := s.Stamp(paths)
		if was, ok := seen[stamp]; ok {
			t.Errorf("%s has the stamp of %s", what, was)
		}
		if stamp != s.Stamp(paths) {
			t.Errorf("%s has two stamps", what)
		}
		seen[stamp] = what
	}
	note("a missing file", file)
	note("an empty directory", filepath.Dir(file))
	write(t, file, "1")
	note("the file", file)
	note("the directory", filepath.Dir(file))
	note("both", file, filepath.Dir(file))
	write(t, file, "2")
	note("another content", file)
}
