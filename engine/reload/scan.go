package reload

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// maxHashed bounds what is read of one file to fingerprint it; larger files
// are refused when they are loaded.
const maxHashed = 8 << 20

// racy is the age below which a modification time proves nothing: a file may
// be written twice within the resolution of its clock.
const racy = 2 * time.Second

// fingerprint identifies the content of everything below the roots.
type fingerprint [sha256.Size]byte

// scanner fingerprints the roots. Between scans it remembers the hash of each
// file, so that a file whose stat did not change is not read again.
type scanner struct {
	roots []string
	// more are files and directories that the specs refer to.
	more  []string
	files map[string]fileStamp
}

type fileStamp struct {
	info   fs.FileInfo
	hashed time.Time
	sum    fingerprint
}

// scan is one walk over the roots.
type scan struct {
	*scanner
	hash  hash.Hash
	files map[string]fileStamp
	// dirs are the directories to watch, by real path.
	dirs map[string]*watchedDir
}

// watchedDir says which entries of a directory matter.
type watchedDir struct {
	info fs.FileInfo
	// tree is true below a root: then all spec files and directories matter,
	// otherwise only names.
	tree bool
	// all is true where everything matters but what is made by tools.
	all   bool
	names map[string]bool
}

// run fingerprints the roots and lists the directories to watch. It follows
// links as the loader does: within their root.
func (s *scanner) run() (fingerprint, map[string]*watchedDir) {
	sc := &scan{scanner: s, hash: sha256.New(), files: make(map[string]fileStamp, len(s.files)), dirs: map[string]*watchedDir{}}
	for _, root := range s.roots {
		sc.root(root)
	}
	for _, path := range s.more {
		sc.other(path, 0)
	}
	s.files = sc.files
	var fp fingerprint
	sc.hash.Sum(fp[:0])
	return fp, sc.dirs
}

func (s *scan) root(root string) {
	s.watchParent(root)
	real, err := realPath(root)
	if err != nil {
		s.record("error", root, []byte(errorClass(err)))
		return
	}
	info, err := os.Stat(real)
	switch {
	case err != nil:
		s.record("error", root, []byte(errorClass(err)))
	case info.IsDir():
		s.dir(root, real, real, map[string]bool{})
	default:
		s.watchName(real)
		s.file(root, info)
	}
}

// realPath is the absolute path without links, so that a directory has one
// name however it is reached.
func realPath(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if real, err = filepath.Abs(real); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(real) // the working directory may be a link
}

// watchParent makes sure that the root itself is noticed when it appears, is
// exchanged or is a link that changes.
func (s *scan) watchParent(path string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return
	}
	for {
		if s.watchName(path) {
			return
		}
		parent := filepath.Dir(path)
		if parent == path {
			return
		}
		path = parent
	}
}

// watchName watches one entry of a directory; false if that does not exist.
func (s *scan) watchName(path string) bool {
	dir, err := realPath(filepath.Dir(path))
	if err != nil {
		return false
	}
	w := s.watch(dir)
	if w == nil {
		return false
	}
	w.names[filepath.Base(path)] = true
	return true
}

func (s *scan) watch(dir string) *watchedDir {
	if w := s.dirs[dir]; w != nil {
		return w
	}
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return nil
	}
	w := &watchedDir{info: info, names: map[string]bool{}}
	s.dirs[dir] = w
	return w
}

// dir records a directory: path as the user sees it, real where it is, below
// the real path of its root. Open holds the real paths above, against loops.
func (s *scan) dir(path, real, root string, open map[string]bool) {
	if open[real] {
		return
	}
	open[real] = true
	defer delete(open, real)
	if w := s.watch(real); w != nil {
		w.tree = true
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		s.record("error", path, []byte(errorClass(err)))
	}
	s.record("dir", path, nil)
	for _, e := range entries {
		name := e.Name()
		if ignored(name) {
			continue
		}
		path, real := filepath.Join(path, name), filepath.Join(real, name)
		if e.Type()&fs.ModeSymlink != 0 {
			s.link(path, real, root, open)
		} else if e.IsDir() {
			s.dir(path, real, root, open)
		} else if specs.IsSpecFile(name) {
			if info, err := e.Info(); err == nil {
				s.file(path, info)
			}
		}
	}
}

// maxDepth bounds how deep directories that specs refer to are looked into.
const maxDepth = 32

// other records a file or directory that is no spec. Of a directory everything
// counts but hidden entries and what interpreters and package managers put
// there; links in it are not followed.
func (s *scan) other(path string, depth int) {
	if depth == 0 {
		s.watchParent(path)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		s.record("error", path, []byte(errorClass(err)))
		return
	case !info.IsDir():
		s.file(path, info)
		return
	}
	if real, err := realPath(path); err == nil {
		if w := s.watch(real); w != nil {
			w.all = true
		}
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		s.record("error", path, []byte(errorClass(err)))
	}
	s.record("dir", path, nil)
	for _, e := range entries {
		name := e.Name()
		if ignored(name) || madeByTools(name) || depth == maxDepth {
			continue
		}
		child := filepath.Join(path, name)
		if e.IsDir() {
			s.other(child, depth+1)
		} else if info, err := os.Stat(child); err == nil && !info.IsDir() {
			s.file(child, info)
		}
	}
}

// madeByTools reports whether an entry beside the code of a function is made
// from it.
func madeByTools(name string) bool {
	return name == "__pycache__" || name == "node_modules" || strings.HasSuffix(name, ".pyc")
}

// Stamper tells whether files and directories that specs refer to changed. It
// remembers the hashes of files that did not. It is not safe for concurrent
// use; the zero Stamper is ready.
type Stamper struct{ scanner scanner }

// Stamp identifies the content of paths, "" when there are none. It reads what
// changed since the last time.
func (s *Stamper) Stamp(paths []string) string {
	if len(paths) == 0 {
		return ""
	}
	known := s.scanner.files
	if known == nil {
		known = map[string]fileStamp{}
	}
	one := scanner{more: paths, files: known}
	fp, _ := one.run()
	maps.Copy(known, one.files)
	s.scanner.files = known
	return hex.EncodeToString(fp[:8])
}

func (s *scan) link(path, link, root string, open map[string]bool) {
	real, err := realPath(link)
	if err != nil {
		if specs.IsSpecFile(path) {
			s.record("error", path, []byte(errorClass(err)))
		}
		return
	}
	if !within(real, root) {
		s.record("outside", path, []byte(real))
		return
	}
	info, err := os.Stat(real)
	if err != nil {
		return
	}
	if info.IsDir() {
		s.dir(path, real, root, open)
	} else if specs.IsSpecFile(path) {
		s.watchName(real)
		s.file(path, info)
	}
}

func (s *scan) file(path string, info fs.FileInfo) {
	if !info.Mode().IsRegular() {
		s.record("irregular", path, nil) // reading a pipe would block
		return
	}
	old, ok := s.scanner.files[path]
	if ok && os.SameFile(old.info, info) && old.info.Size() == info.Size() && old.info.Mode() == info.Mode() &&
		old.info.ModTime().Equal(info.ModTime()) && old.hashed.Sub(info.ModTime()) > racy {
		s.files[path] = old
		s.record("file", path, old.sum[:])
		return
	}
	stamp := fileStamp{info: info, hashed: time.Now()}
	if err := hashFile(path, &stamp.sum); err != nil {
		s.record("error", path, []byte(errorClass(err)))
		return
	}
	s.files[path] = stamp
	s.record("file", path, stamp.sum[:])
}

func hashFile(path string, sum *fingerprint) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxHashed)); err != nil {
		return err
	}
	h.Sum(sum[:0])
	return nil
}

// record adds one fact; lengths keep neighbouring facts apart.
func (s *scan) record(kind, path string, data []byte) {
	var n [8]byte
	for _, part := range [][]byte{[]byte(kind), []byte(path), data} {
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		s.hash.Write(n[:])
		s.hash.Write(part)
	}
}

func errorClass(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "missing"
	case errors.Is(err, fs.ErrPermission):
		return "permission"
	}
	return err.Error()
}

// ignored reports whether an entry of a directory never counts: hidden ones
// (swap files, .git) as well as the backups of editors.
func ignored(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") || strings.HasPrefix(name, "#")
}
