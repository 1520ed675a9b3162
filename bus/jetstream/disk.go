package jetstream

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// disk watches the free space of the store directory and holds a reserve.
type disk struct {
	dir     string
	minFree int64 // 0: by default, < 0: none
	size    int64 // of the reserve

	mu    sync.Mutex
	held  bool
	isLow bool

	free func(dir string) (free, total int64, err error)
}

func newDisk(o Options) *disk {
	return &disk{dir: o.Dir, minFree: o.MinFree, size: o.Reserve, free: o.disk}
}

func (d *disk) path() string { return filepath.Join(d.dir, "reserve") }

// watermark is the free space that must be left.
func (d *disk) watermark(total int64) int64 {
	switch {
	case d.minFree > 0:
		return d.minFree
	case d.minFree < 0:
		return 0
	}
	return min(max(256*mib, total/20), total/4)
}

// low says why nothing more should be stored, or "". When the space comes to
// an end it gives the reserve up; when there is enough, takes it again. There
// is a tenth between stopping and resuming.
func (d *disk) low() string {
	free, total, err := d.free(d.dir)
	if err != nil {
		return "" // no figures, no watermark: the server's own errors remain
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	mark := d.watermark(total)
	if d.isLow {
		mark += mark / 10
	}
	if mark == 0 || free >= mark {
		d.isLow = false
		if !d.held {
			d.unsyncedReserve()
		}
		return ""
	}
	d.isLow = true
	if free < mark/4 {
		d.unsyncedRelease()
	}
	return fmt.Sprintf("disk of %s is almost full: %s free, %s must be left; remove files or shrink the streams", d.dir, size(free), size(mark))
}

// enough reports whether a server can start on what is left.
func (d *disk) enough() bool {
	free, total, err := d.free(d.dir)
	return err != nil || free >= max(d.watermark(total)/2, 8*mib)
}

// reserve takes the reserve.
func (d *disk) reserve() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsyncedReserve()
}

// unsyncedReserve takes the reserve, if the disk has twice as much.
func (d *disk) unsyncedReserve() {
	if d.size <= 0 {
		return
	}
	free, _, err := d.free(d.dir)
	if err != nil {
		return
	}
	if st, err := os.Stat(d.path()); err == nil && st.Size() == d.size {
		d.held = true
		return
	}
	if free < 2*d.size {
		return
	}
	if err := allocate(d.path(), d.size); err != nil {
		_ = os.Remove(d.path())
		return
	}
	d.held = true
}

// release gives the reserve up.
func (d *disk) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsyncedRelease()
}

func (d *disk) unsyncedRelease() {
	_ = os.Remove(d.path())
	d.held = false
}

func size(n int64) string {
	if n < gib {
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/gib)
}

// fill writes zeros: a sparse file would reserve nothing.
func fill(f *os.File, size int64) error {
	zeros := make([]byte, 256*kib)
	for left := size; left > 0; left -= int64(len(zeros)) {
		if _, err := f.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
			return err
		}
	}
	return nil
}
