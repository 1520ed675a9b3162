//go:build !linux

package jetstream

import "os"

// syncData brings what was written to a file, and its size, to the disk.
func syncData(f *os.File) error { return f.Sync() }
