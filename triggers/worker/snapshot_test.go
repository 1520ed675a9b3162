package worker

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	isCode := func(name string) bool { return strings.HasSuffix(name, ".py") }
	write("a/f.py", "one")
	write("a/sub/g.py", "\xff")
	write("a/data.txt", "x")
	write("a/.git/h.py", "x")
	write("a/node_modules/i.py", "x")
	write("real/j.py", "linked")
	link("../real/j.py", "a/k.py")
	link("a", "b")
	names := func(texts map[string][]byte) []string {
		var out []string
		for _, path := range slices.Sorted(maps.Keys(texts)) {
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, rel+"="+string(texts[path]))
		}
		return out
	}
	for _, root := range []string{"a", "b"} {
		s := (&Library{}).Take([]string{filepath.Join(dir, root)}, isCode, "node_modules")
		if got := s.Changed(); got != nil {
			t.Errorf("%s: nothing has changed: %v", root, names(got))
		}
		write("a/f.py", "two")
		want := []string{root + "/f.py=one", root + "/k.py=linked", root + "/sub/g.py=\xff"}
		if got := names(s.Changed()); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		write("a/f.py", "one")
	}
	// Functions of one directory have one snapshot, as long as its files are the same.
	library := &Library{}
	f, g := filepath.Join(dir, "a/f.py"), filepath.Join(dir, "a/k.py")
	first, second := library.Take([]string{f, g}, isCode), library.Take([]string{g, f, g}, isCode)
	write("a/f.py", "three")
	if third := library.Take([]string{f, g}, isCode); first == nil || first != second || third == first || string(third.files[f].text) != "three" {
		t.Error("a snapshot is not shared, or is not up to date")
	}
	write("a/f.py", "one")
	// One file; what is gone has changed, too.
	file := filepath.Join(dir, "a/f.py")
	s := library.Take([]string{file, filepath.Join(dir, "none.py")}, isCode)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := names(s.Changed()); !slices.Equal(got, []string{"a/f.py=one"}) {
		t.Errorf("%q", got)
	}
	write("a/f.py", strings.Repeat("x", maxSnapshotBytes+1))
	if s := library.Take([]string{dir}, isCode); s != nil {
		t.Error("more than code is kept")
	}
	if s := library.Take(nil, isCode); s != nil || s.Changed() != nil {
		t.Error("nothing is something")
	}
}
