package worker

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unique"
)

// Limits of a snapshot: code that is written by hand is far below.
const (
	maxSnapshotFiles = 4096
	maxSnapshotBytes = 16 << 20
)

// Snapshot is what files with code were when it was taken, so that a function
// that has begun with them can start more workers whatever becomes of the files.
// Equal texts are in memory once. It is not changed any more.
type Snapshot struct {
	files map[string]fileText // by path
}

type fileText struct {
	info os.FileInfo
	text unique.Handle[string]
}

// Take reads the files among paths, and those below the directories among them,
// whose base names is accepts; directories that are hidden or in skip are left
// out. What cannot be read is left out too. It is nil when there is nothing, or
// more than a function's code.
func Take(paths []string, is func(name string) bool, skip ...string) *Snapshot {
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
			if len(found) > maxSnapshotFiles {
				return fs.SkipAll
			}
			return nil
		})
	}
	s, size := &Snapshot{files: map[string]fileText{}}, int64(0)
	for _, path := range found {
		info, err := os.Stat(path) // through links
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if size += info.Size(); size > maxSnapshotBytes {
			break
		}
		if text, err := os.ReadFile(path); err == nil {
			s.files[path] = fileText{info, unique.Make(string(text))}
		}
	}
	if len(s.files) == 0 || size > maxSnapshotBytes || len(found) > maxSnapshotFiles {
		return nil
	}
	return s
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
	if s == nil {
		return nil
	}
	same := true
	for path, f := range s.files {
		info, err := os.Stat(path)
		if same = err == nil && os.SameFile(info, f.info) && info.Size() == f.info.Size() && info.ModTime().Equal(f.info.ModTime()); !same {
			break
		}
	}
	if same {
		return nil
	}
	texts := make(map[string][]byte, len(s.files))
	for path, f := range s.files {
		texts[path] = []byte(f.text.Value())
	}
	return texts
}
