package worker

import (
	"crypto/sha256"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"
)

// Limits of a snapshot: code that is written by hand is far below.
const (
	maxSnapshotFiles = 4096
	maxSnapshotBytes = 16 << 20
)

// Snapshot is what files with code were when it was taken, so that a function
// that has begun with them can start more workers whatever becomes of the files.
// It is not changed any more.
type Snapshot struct {
	files map[string]fileText // by path
}

type fileText struct {
	info os.FileInfo
	text []byte
}

// Library takes snapshots, and the same one for all functions that are made of
// the same files as they are: those of one directory are made of all of its files.
// The zero value is empty. It is safe for concurrent use.
type Library struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]weak.Pointer[Snapshot] // by the paths of the files
}

// Take reads the files among paths, and those below the directories among them,
// whose base names is accepts; directories that are hidden or in skip are left
// out. What cannot be read is left out too. It is nil when there is nothing, or
// more than a function's code.
func (l *Library) Take(paths []string, is func(name string) bool, skip ...string) *Snapshot {
	found := find(paths, is, skip)
	if len(found) == 0 || len(found) > maxSnapshotFiles {
		return nil
	}
	key := sha256.Sum256([]byte(strings.Join(found, "\x00")))
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.known[key].Value(); s != nil && !s.changed() {
		return s
	}
	s := read(found)
	if s == nil {
		return nil
	}
	maps.DeleteFunc(l.known, func(_ [sha256.Size]byte, p weak.Pointer[Snapshot]) bool { return p.Value() == nil })
	if l.known == nil {
		l.known = map[[sha256.Size]byte]weak.Pointer[Snapshot]{}
	}
	l.known[key] = weak.Make(s)
	return s
}

// find returns the paths of files, sorted; it ends when they are too many.
func find(paths []string, is func(name string) bool, skip []string) []string {
	var found []string
	for _, root := range paths {
		if info, err := os.Stat(root); err == nil && info.IsDir() {
			root += string(filepath.Separator) // through a link
		}
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil: // what cannot be read is left out
			case !d.IsDir() && is(d.Name()):
				found = append(found, path)
			case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || slices.Contains(skip, d.Name())):
				return fs.SkipDir
			}
			if len(found) > 2*maxSnapshotFiles {
				return fs.SkipAll
			}
			return nil
		})
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// read reads files, nil when there are none or too much is in them.
func read(paths []string) *Snapshot {
	s, size := &Snapshot{files: map[string]fileText{}}, int64(0)
	for _, path := range paths {
		info, err := os.Stat(path) // through links
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if size += info.Size(); size > maxSnapshotBytes {
			return nil
		}
		if text, err := os.ReadFile(path); err == nil {
			s.files[path] = fileText{info, text}
		}
	}
	if len(s.files) == 0 {
		return nil
	}
	return s
}

// changed reports whether one of the files is not what it was.
func (s *Snapshot) changed() bool {
	for path, f := range s.files {
		info, err := os.Stat(path)
		if err != nil || !os.SameFile(info, f.info) || info.Size() != f.info.Size() || !info.ModTime().Equal(f.info.ModTime()) {
			return true
		}
	}
	return false
}

// Newest is when the last of the files was changed, zero for none.
func (s *Snapshot) Newest() (at time.Time) {
	if s == nil {
		return at
	}
	for _, f := range s.files {
		if m := f.info.ModTime(); m.After(at) {
			at = m
		}
	}
	return at
}

// Changed returns all texts by the path of their file when one of the files is
// not what it was, else nil: then they can be read where they are.
func (s *Snapshot) Changed() map[string][]byte {
	if s == nil || !s.changed() {
		return nil
	}
	texts := make(map[string][]byte, len(s.files))
	for path, f := range s.files {
		texts[path] = f.text
	}
	return texts
}
