//go:build !linux

package jetstream

import "os"

// allocate makes a file whose blocks are really taken.
func allocate(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = fill(f, size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
