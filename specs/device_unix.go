//go:build unix

package specs

import (
	"io/fs"
	"syscall"
)

// device is the number of the file system a file is on.
func device(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev) //nolint:unconvert // The width differs between systems.
	}
	return 0
}
