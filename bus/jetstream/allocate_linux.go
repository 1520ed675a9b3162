package jetstream

import (
	"os"
	"syscall"
)

// allocate makes a file whose blocks are really taken.
func allocate(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err = syscall.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		err = fill(f, size) // not every file system knows how
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
