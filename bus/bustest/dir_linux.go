package bustest

import (
	"os"
	"syscall"
	"testing"
)

// Dir is a new directory for a bus that ends with the test. It is in memory
// where there is room: tests open and drop buses by the hundred, which takes
// files more time than anything else, and what they show does not depend on a
// disk.
func Dir(t testing.TB) string {
	t.Helper()
	const memory, room = "/dev/shm", 1 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < room {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "bus-test-") //nolint:usetesting // that of t is on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
