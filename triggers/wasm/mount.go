package wasm

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/sys"

	"github.com/sensor-engine/engine/triggers"
)

// maxOpen is how many files one call may have open.
const maxOpen = 128

// mounts opens the directories of one call. The caller closes them when the
// call has ended.
func mounts(all []Mount, dir string) (cfg wazero.FSConfig, closeAll func(), err error) {
	cfg = wazero.NewFSConfig()
	var roots []*os.Root
	closeAll = func() {
		for _, r := range roots {
			_ = r.Close()
		}
	}
	left := maxOpen
	for _, m := range all {
		root, err := os.OpenRoot(triggers.Join(dir, m.Host))
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		roots = append(roots, root)
		cfg = cfg.(sysfs.FSConfig).WithSysFSMount(&tree{root: root, readOnly: m.readOnly(), left: &left}, m.Guest)
	}
	return cfg, closeAll, nil
}

// tree is a directory as a module sees it: nothing outside can be reached,
// neither with .. nor by links, and nothing but files and directories be
// opened. It belongs to one call.
type tree struct {
	experimentalsys.UnimplementedFS
	root     *os.Root
	readOnly bool
	left     *int // how many files may still be opened
}

// name is the path below the root.
func name(p string) string {
	return path.Clean(strings.TrimLeft(p, "/"))
}

// errno is what a module gets to know of an error.
func errno(err error) experimentalsys.Errno {
	if err == nil {
		return 0
	}
	var pe *fs.PathError
	var no syscall.Errno
	if errors.As(err, &pe) && !errors.As(err, &no) { // the path leads out of the root
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrClosed):
		default:
			return experimentalsys.EPERM
		}
	}
	return experimentalsys.UnwrapOSError(err)
}

// writes are the flags of an open that changes something.
const writes = experimentalsys.O_WRONLY | experimentalsys.O_RDWR | experimentalsys.O_CREAT | experimentalsys.O_TRUNC | experimentalsys.O_APPEND

// OpenFile implements experimentalsys.FS.
func (t *tree) OpenFile(p string, flag experimentalsys.Oflag, perm fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	if t.readOnly && flag&writes != 0 {
		return nil, experimentalsys.EROFS
	}
	if *t.left == 0 {
		return nil, experimentalsys.EAGAIN
	}
	p = name(p)
	// A pipe would wait for its other end and a device may do anything.
	look := t.root.Stat
	if flag&experimentalsys.O_NOFOLLOW != 0 {
		look = t.root.Lstat
	}
	switch info, err := look(p); {
	case errors.Is(err, fs.ErrNotExist) && flag&experimentalsys.O_CREAT != 0:
	case err != nil:
		return nil, errno(err)
	case info.Mode()&fs.ModeSymlink != 0:
		return nil, experimentalsys.ELOOP
	case info.IsDir() && flag&(experimentalsys.O_WRONLY|experimentalsys.O_RDWR) != 0:
		return nil, experimentalsys.EISDIR
	case !info.IsDir() && flag&experimentalsys.O_DIRECTORY != 0:
		return nil, experimentalsys.ENOTDIR
	case !info.IsDir() && !info.Mode().IsRegular():
		return nil, experimentalsys.EACCES
	}
	var opened *os.File
	again := false
	// What follows reads, writes and lists by the rules of WASI; it opens a
	// directory again to list it from its beginning.
	f, no := (&sysfs.AdaptFS{FS: opener(func(string) (fs.File, error) {
		how := osFlags(flag)
		if again {
			how = os.O_RDONLY
		}
		again = true
		var err error
		opened, err = t.root.OpenFile(p, how|syscall.O_NONBLOCK, perm&0o777)
		if err != nil {
			return nil, err
		}
		return opened, nil
	})}).OpenFile(p, flag, perm)
	if no != 0 {
		return nil, no
	}
	*t.left--
	return &file{File: f, os: opened, tree: t, flag: flag}, 0
}

type opener func(string) (fs.File, error)

// Open implements fs.FS.
func (o opener) Open(name string) (fs.File, error) { return o(name) }

// osFlags are the flags of package os.
func osFlags(flag experimentalsys.Oflag) int {
	how := os.O_RDONLY
	switch {
	case flag&experimentalsys.O_RDWR != 0:
		how = os.O_RDWR
	case flag&experimentalsys.O_WRONLY != 0:
		how = os.O_WRONLY
	}
	for _, f := range [...]struct {
		theirs experimentalsys.Oflag
		ours   int
	}{
		{experimentalsys.O_APPEND, os.O_APPEND},
		{experimentalsys.O_CREAT, os.O_CREATE},
		{experimentalsys.O_EXCL, os.O_EXCL},
		{experimentalsys.O_TRUNC, os.O_TRUNC},
		{experimentalsys.O_SYNC | experimentalsys.O_DSYNC, os.O_SYNC},
	} {
		if flag&f.theirs != 0 {
			how |= f.ours
		}
	}
	return how
}

// Lstat implements experimentalsys.FS.
func (t *tree) Lstat(p string) (sys.Stat_t, experimentalsys.Errno) {
	return stat(t.root.Lstat(name(p)))
}

// Stat implements experimentalsys.FS.
func (t *tree) Stat(p string) (sys.Stat_t, experimentalsys.Errno) { return stat(t.root.Stat(name(p))) }

func stat(info fs.FileInfo, err error) (sys.Stat_t, experimentalsys.Errno) {
	if err != nil {
		return sys.Stat_t{}, errno(err)
	}
	return sys.NewStat_t(info), 0
}

// Readlink implements experimentalsys.FS.
func (t *tree) Readlink(p string) (string, experimentalsys.Errno) {
	target, err := t.root.Readlink(name(p))
	return target, errno(err)
}

// change makes a change unless the tree may only be read.
func (t *tree) change(do func() error) experimentalsys.Errno {
	if t.readOnly {
		return experimentalsys.EROFS
	}
	return errno(do())
}

// Mkdir implements experimentalsys.FS.
func (t *tree) Mkdir(p string, perm fs.FileMode) experimentalsys.Errno {
	return t.change(func() error { return t.root.Mkdir(name(p), perm&0o777) })
}

// Rename implements experimentalsys.FS.
func (t *tree) Rename(from, to string) experimentalsys.Errno {
	return t.change(func() error { return t.root.Rename(name(from), name(to)) })
}

// Rmdir implements experimentalsys.FS.
func (t *tree) Rmdir(p string) experimentalsys.Errno {
	if st, no := t.Lstat(p); no != 0 {
		return no
	} else if !st.Mode.IsDir() {
		return experimentalsys.ENOTDIR
	}
	return t.change(func() error { return t.root.Remove(name(p)) })
}

// Unlink implements experimentalsys.FS.
func (t *tree) Unlink(p string) experimentalsys.Errno {
	if st, no := t.Lstat(p); no != 0 {
		return no
	} else if st.Mode.IsDir() {
		return experimentalsys.EISDIR
	}
	return t.change(func() error { return t.root.Remove(name(p)) })
}

// Link implements experimentalsys.FS. Symbolic links are not made: who follows
// one from outside is not confined.
func (t *tree) Link(from, to string) experimentalsys.Errno {
	return t.change(func() error { return t.root.Link(name(from), name(to)) })
}

// Utimens implements experimentalsys.FS.
func (t *tree) Utimens(p string, access, modified int64) experimentalsys.Errno {
	return t.change(func() error { return t.touch(name(p), access, modified) })
}

// touch sets times given in nanoseconds; UTIME_OMIT leaves one as it is.
func (t *tree) touch(p string, access, modified int64) error {
	at := func(ns int64) time.Time {
		if ns == experimentalsys.UTIME_OMIT {
			return time.Time{}
		}
		return time.Unix(0, ns)
	}
	return t.root.Chtimes(p, at(access), at(modified))
}

// file is an open file or directory.
type file struct {
	experimentalsys.File
	os     *os.File
	tree   *tree
	flag   experimentalsys.Oflag
	closed bool
}

// IsAppend implements experimentalsys.File.
func (f *file) IsAppend() bool { return f.flag&experimentalsys.O_APPEND != 0 }

// Truncate implements experimentalsys.File.
func (f *file) Truncate(size int64) experimentalsys.Errno {
	if f.flag&(experimentalsys.O_WRONLY|experimentalsys.O_RDWR) == 0 {
		return experimentalsys.EBADF
	}
	if size < 0 {
		return experimentalsys.EINVAL
	}
	return errno(f.os.Truncate(size))
}

// Sync implements experimentalsys.File.
func (f *file) Sync() experimentalsys.Errno {
	if f.tree.readOnly {
		return 0
	}
	return errno(f.os.Sync())
}

// Datasync implements experimentalsys.File.
func (f *file) Datasync() experimentalsys.Errno { return f.Sync() }

// Close implements experimentalsys.File.
func (f *file) Close() experimentalsys.Errno {
	if !f.closed {
		f.closed = true
		*f.tree.left++
	}
	return f.File.Close()
}
