package specs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// walker finds and reads the files below roots. It reads each file once, even
// when several roots or links lead to it.
type walker struct {
	limit  int
	tests  bool            // read spec tests, not specs
	seen   map[string]bool // real paths of files and directories
	found  Diagnostics
	broken []File

	// The rest is about the root being read.
	base   string // its real path
	dir    *os.Root
	result *Root
	visit  func(name string, data []byte)
	links  []link
}

// link is a symbolic link to look at when everything else was read, so that a
// file is known by its own name where it has one.
type link struct{ name, target string }

// root reads everything below path. The error is that of ctx alone.
func (w *walker) root(ctx context.Context, path string, visit func(name string, data []byte)) (Root, error) {
	r := Root{Path: path}
	w.result, w.visit, w.links = &r, visit, nil
	real, err := realPath(path)
	if err != nil {
		w.failed(path, err)
		return r, ctx.Err()
	}
	info, err := os.Stat(real)
	if err != nil {
		w.failed(path, err)
		return r, ctx.Err()
	}
	r.Device = device(info)
	w.base = real
	single := !info.IsDir()
	if single {
		w.base = filepath.Dir(real)
	}
	if w.dir, err = os.OpenRoot(w.base); err != nil {
		w.failed(path, err)
		return r, ctx.Err()
	}
	defer w.dir.Close()
	if single {
		switch {
		case IsTestFile(path) == w.tests:
			w.file(path, real)
		case w.tests:
			w.report(path, CodeTestFile, "their names end in _test.yaml", "this is no file of spec tests")
		default:
			w.report(path, CodeTestFile, "run it with engine test", "this is a file of spec tests")
		}
		return r, ctx.Err()
	}
	if err := w.directory(ctx, path, real); err != nil {
		return r, err
	}
	for len(w.links) > 0 {
		l := w.links[0]
		w.links = w.links[1:]
		if err := w.follow(ctx, l); err != nil {
			return r, err
		}
	}
	return r, nil
}

// realPath is the absolute path without symbolic links.
func realPath(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(real)
}

// failed reports something that could not be read: nothing is known of what
// is in it.
func (w *walker) failed(name string, err error) {
	w.result.Err = errors.Join(w.result.Err, err)
	w.unreadable(name, err)
}

func (w *walker) unreadable(name string, err error) {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	w.report(name, CodeUnreadable, "", "cannot be read: %v", err)
}

func (w *walker) report(name string, code Code, hint, format string, args ...any) {
	w.found = append(w.found, Diagnostic{
		Pos: Pos{File: name}, Severity: Error, Code: code, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// ignored tells hidden entries and editors' backups.
func ignored(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~")
}

// wants tells which files of a directory are read.
func (w *walker) wants(name string) bool {
	if w.tests {
		return IsTestFile(name)
	}
	return IsSpecFile(name)
}

// directory reads a directory: real is where it is, name how it is called.
func (w *walker) directory(ctx context.Context, name, real string) error {
	if w.seen[real] {
		return nil
	}
	w.seen[real] = true
	rel, err := filepath.Rel(w.base, real)
	if err != nil {
		w.failed(name, err)
		return nil
	}
	f, err := w.dir.Open(rel)
	if err != nil {
		w.failed(name, err)
		return nil
	}
	entries, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		w.failed(name, err)
		return nil
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if ignored(e.Name()) {
			continue
		}
		child, at := filepath.Join(name, e.Name()), filepath.Join(real, e.Name())
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			w.links = append(w.links, link{child, at})
		case e.IsDir():
			if err := w.directory(ctx, child, at); err != nil {
				return err
			}
		case w.wants(e.Name()) && e.Type().IsRegular():
			w.file(child, at)
		case w.wants(e.Name()):
			w.report(child, CodeUnreadable, "", "is no regular file")
		}
	}
	return nil
}

// follow reads what a link leads to, when that is below the root.
func (w *walker) follow(ctx context.Context, l link) error {
	real, err := realPath(l.target)
	if err != nil {
		// A broken link can only matter when it would be a spec; it may be
		// a directory that is just being replaced, too.
		if w.wants(l.name) {
			w.file(l.name, l.target)
		} else if filepath.Ext(l.name) == "" {
			w.failed(l.name, err)
		}
		return nil
	}
	if real != w.base && !strings.HasPrefix(real, strings.TrimSuffix(w.base, string(filepath.Separator))+string(filepath.Separator)) {
		info, err := os.Stat(real)
		if err == nil && !info.IsDir() && !w.wants(l.name) {
			return nil
		}
		w.report(l.name, CodeLinkOutside, "give the target as a path of its own",
			"the link leads out of its directory, to %s", real)
		return nil
	}
	info, err := os.Stat(real)
	switch {
	case err != nil:
		w.failed(l.name, err)
	case info.IsDir():
		return w.directory(ctx, l.name, real)
	case w.wants(l.name) && info.Mode().IsRegular():
		w.file(l.name, real)
	}
	return nil
}

// file reads a file below the root; the root makes sure that it still is one.
func (w *walker) file(name, real string) {
	if w.seen[real] {
		return
	}
	w.seen[real] = true
	data, err := w.read(real)
	if err != nil {
		w.unreadable(name, err)
		w.broken = append(w.broken, File{Path: name, Broken: true})
		return
	}
	w.visit(name, data)
}

func (w *walker) read(real string) ([]byte, error) {
	rel, err := filepath.Rel(w.base, real)
	if err != nil {
		return nil, err
	}
	f, err := w.dir.Open(rel)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is no regular file")
	}
	// One byte more than allowed shows that there is too much.
	data := make([]byte, 0, min(info.Size(), int64(w.limit))+1)
	for {
		n, err := f.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if errors.Is(err, io.EOF) || len(data) > w.limit {
			return data, nil
		}
		if err != nil {
			return nil, err
		}
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
	}
}
