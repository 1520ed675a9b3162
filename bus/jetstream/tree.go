package jetstream

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// syncs is what can be synced.
type syncs interface {
	// File brings a file to the disk and returns how it was when that began.
	File(path string) (fs.FileInfo, error)
	// Dir brings the entries of a directory to the disk.
	Dir(path string) error
}

// diskSyncs syncs for real. The server has its own descriptors of the files;
// a sync works on the file, whoever wrote it.
type diskSyncs struct{}

func (diskSyncs) File(path string) (_ fs.FileInfo, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0) // not to read: Windows asks for it
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return st, syncData(f)
}

func (diskSyncs) Dir(path string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be synced, and need not be, on NTFS
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// tree is the directory of one stream, and how it was when it was last synced.
//
// The server appends to the last block, msgs/<n>.blk, and begins block n+1
// when that is full. Older blocks change only when they are removed or, to
// compact them, replaced by a new file of the same name: both change the
// directory. So while the directory is the same, only the last block has to be
// looked at. A purge of everything and a stream made again have another
// directory.
//
// A block is removed or replaced once what it had is written elsewhere, but the
// disk may be told of that before it has the other place. So each block that is
// synced has a second name in a directory of ours, until a later sync; what a
// power loss left without its first name gets it back, see [restoreBlocks].
type tree struct {
	root  string // the store directory
	dir   string // of the stream
	held  string // directory of the second names
	syncs syncs

	mu      sync.Mutex
	msgs    fs.FileInfo            // of the directory of blocks
	settled bool                   // a later change of it has another time
	path    bool                   // what leads to it is synced too
	blocks  map[string]fs.FileInfo // by path
	last    string                 // path of the last block
	names   map[string]fs.FileInfo // in held; nil: not looked at yet
}

const (
	blockDir    = "msgs"
	blockSuffix = ".blk"
	heldDir     = "synced"
	// The server makes its index of the blocks anew when there is none, and
	// ends a purge of everything that has got as far as purgedDir.
	indexFile = "index.db"
	purgedDir = "__new_msgs__"
)

func newTree(o Options, stream string) *tree {
	return &tree{root: o.Dir, dir: streamDir(o, stream), held: filepath.Join(streamDir(o, stream), heldDir), syncs: o.syncs}
}

// streamDir is where the server keeps a stream.
func streamDir(o Options, stream string) string {
	return filepath.Join(o.Dir, "jetstream", "$G", "streams", stream)
}

// sync brings what the server wrote so far to the disk.
func (t *tree) sync() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir := filepath.Join(t.dir, blockDir)
	for try := 0; ; try++ {
		st, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && try < 50 {
			time.Sleep(time.Millisecond) // a purge exchanges the directory
			continue
		}
		if err != nil {
			return err
		}
		if t.settled && same(t.msgs, st) {
			err = t.syncBlock(t.last)
		} else {
			err = t.scan(dir, st)
		}
		if errors.Is(err, fs.ErrNotExist) && try < 50 {
			t.settled = false // removed or exchanged under our hands
			continue
		}
		if err != nil {
			return err
		}
		// What came in between, a new block that was begun or one that was
		// replaced, is not synced while its entry may be.
		if now, err := os.Stat(dir); err == nil && same(st, now) {
			return nil
		}
	}
}

// same reports whether two looks at a path saw the same.
func same(a, b fs.FileInfo) bool {
	return a != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// scan syncs all blocks that changed, and the directory if its entries did.
func (t *tree) scan(dir string, st fs.FileInfo) error {
	if t.msgs == nil || !os.SameFile(t.msgs, st) {
		t.blocks, t.names, t.path = nil, nil, false
	}
	t.msgs, t.settled, t.last = st, false, ""
	// The time of a change is that of the last tick, or second.
	grain := 20 * time.Millisecond
	if st.ModTime().Nanosecond() == 0 {
		grain = 2 * time.Second
	}
	age := time.Since(st.ModTime()).Abs()
	blocks, last, err := readBlocks(dir)
	if err != nil {
		return err
	}
	// All are looked at before the first is synced: what one of them no longer
	// has was written to another before, which is synced now.
	changed := len(t.blocks) == 0
	for path, now := range blocks {
		was := t.blocks[path]
		if same(was, now) {
			blocks[path] = was
			continue
		}
		if was == nil || !os.SameFile(was, now) {
			changed = true
		}
		if blocks[path], err = t.syncs.File(path); err != nil {
			return err
		}
		if !os.SameFile(now, blocks[path]) {
			return fmt.Errorf("%s was replaced: %w", path, fs.ErrNotExist)
		}
	}
	if changed {
		if err := t.syncs.Dir(dir); err != nil {
			return err
		}
	}
	if !t.path {
		if err := t.syncPath(); err != nil {
			return err
		}
	}
	if err := t.hold(blocks); err != nil {
		return err
	}
	t.last, t.path, t.blocks, t.settled = last, true, blocks, age > grain
	return nil
}

// readBlocks returns the blocks in a directory by path, and which is the last.
func readBlocks(dir string) (blocks map[string]fs.FileInfo, last string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, "", err
	}
	blocks = make(map[string]fs.FileInfo, len(entries))
	index := uint64(0)
	for _, e := range entries {
		n, ok := blockIndex(e.Name())
		if !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // worked off
		}
		if err != nil {
			return nil, "", err
		}
		blocks[path] = st
		if n >= index {
			index, last = n, path
		}
	}
	return blocks, last, nil
}

// hold makes the second names those of blocks, which are synced.
func (t *tree) hold(blocks map[string]fs.FileInfo) error {
	if t.names == nil {
		if err := os.MkdirAll(t.held, 0o750); err != nil {
			return err
		}
		names, _, err := readBlocks(t.held)
		if err != nil {
			return err
		}
		if err := t.syncs.Dir(t.dir); err != nil {
			return err
		}
		t.names = names
	}
	changed := false
	for path, st := range blocks {
		name := filepath.Join(t.held, filepath.Base(path))
		was := t.names[name]
		if was != nil && os.SameFile(was, st) {
			continue
		}
		tmp := name + ".tmp"
		_ = os.Remove(tmp)
		if err := os.Link(path, tmp); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return fmt.Errorf("durability fsync needs a file system with hard links: %w", err)
		}
		now, err := os.Lstat(tmp)
		if err != nil {
			return err
		}
		if !os.SameFile(now, st) {
			return errors.Join(fmt.Errorf("%s was replaced: %w", path, fs.ErrNotExist), os.Remove(tmp))
		}
		if err := os.Rename(tmp, name); err != nil {
			return err
		}
		t.names[name], changed = now, true
	}
	for name := range t.names {
		if _, there := blocks[filepath.Join(t.dir, blockDir, filepath.Base(name))]; there {
			continue
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		delete(t.names, name)
		changed = true
	}
	if !changed {
		return nil
	}
	return t.syncs.Dir(t.held)
}

// blockIndex is the number in the name of a block.
func blockIndex(name string) (n uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, blockSuffix)
	if !ok || digits == "" {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// syncBlock syncs a block, if it changed.
func (t *tree) syncBlock(path string) error {
	if path == "" {
		return nil // the directory holds none
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if same(t.blocks[path], st) {
		return nil
	}
	if st, err = t.syncs.File(path); err != nil {
		return err
	}
	t.blocks[path] = st
	return nil
}

// syncPath syncs the description of the stream and the entries on the way to
// it.
func (t *tree) syncPath() error {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if _, err := t.syncs.File(filepath.Join(t.dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for d := t.dir; ; d = filepath.Dir(d) {
		if err := t.syncs.Dir(d); err != nil {
			return err
		}
		if d == t.root || len(d) <= len(t.root) {
			return nil
		}
	}
}

// restoreBlocks gives blocks that were synced their names back, where a power
// loss has taken those away, or has left less under them. What was removed in
// truth is removed again by what is written of that in later blocks, by the
// limits of the stream, or by the next purge. No server may run.
func restoreBlocks(o Options, stream string) error {
	stream = streamDir(o, stream)
	names, _, err := readBlocks(filepath.Join(stream, heldDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, restored := filepath.Join(stream, blockDir), false
	for name, st := range names {
		path := filepath.Join(dir, filepath.Base(name))
		now, err := os.Lstat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && now.Size() >= st.Size() {
			continue
		}
		if !restored {
			restored = true
			if err := errors.Join(os.RemoveAll(filepath.Join(stream, purgedDir)), os.MkdirAll(dir, 0o750), os.RemoveAll(filepath.Join(dir, indexFile))); err != nil {
				return err
			}
		}
		tmp := path + ".tmp" // the server removes what is left of it
		_ = os.Remove(tmp)
		if err := errors.Join(os.Link(name, tmp), os.Rename(tmp, path)); err != nil {
			return err
		}
	}
	return nil
}

// look makes the next sync look at all blocks and the way to them.
func (t *tree) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled, t.path = false, false
}

// rewrite writes the blocks anew that may not be on the disk. After a failed
// sync the system takes the pages for clean: to sync them again would succeed
// without writing them. The server must be down.
func (t *tree) rewrite() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir := filepath.Join(t.dir, blockDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if _, ok := blockIndex(e.Name()); !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if same(t.blocks[path], st) {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		tmp := path + ".tmp" // the server removes what is left of it
		if err := os.WriteFile(tmp, b, st.Mode().Perm()); err != nil {
			return errors.Join(err, os.Remove(tmp))
		}
		if _, err := t.syncs.File(tmp); err != nil {
			return errors.Join(err, os.Remove(tmp))
		}
		if err := os.Rename(tmp, path); err != nil {
			return errors.Join(err, os.Remove(tmp))
		}
	}
	t.settled, t.path, t.blocks = false, false, nil
	return t.syncs.Dir(dir)
}

// syncStore brings everything below the store directory to the disk, except
// blocks, which the trees sync.
func syncStore(o Options) error {
	var dirs []string
	err := filepath.WalkDir(o.Dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case e.IsDir():
			dirs = append(dirs, path)
			return nil
		case !e.Type().IsRegular() || strings.HasSuffix(path, blockSuffix):
			return nil
		}
		if _, err := o.syncs.File(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sync of %s: %w", o.Dir, err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := o.syncs.Dir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sync of %s: %w", dir, err)
		}
	}
	// The data directory and its entry may be new; they need not be ours.
	parent := filepath.Dir(o.Dir)
	_ = o.syncs.Dir(parent)
	_ = o.syncs.Dir(filepath.Dir(parent))
	return nil
}
