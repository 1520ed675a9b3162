package exec

import (
	"errors"
	"syscall"
	"unsafe"
)

const (
	pPID     = 1
	wExited  = 4
	wNoWait  = 0x1000000
	siginfoT = 128 // sizeof(siginfo_t)
)

// awaitExit blocks until the process has ended and leaves it to be reaped, so
// that its pid is not free yet. It reports whether it could.
func awaitExit(pid int) bool {
	var info [siginfoT / 8]uint64
	for {
		_, _, e := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), wExited|wNoWait, 0, 0) //nolint:gosec // the kernel's interface
		if !errors.Is(e, syscall.EINTR) {
			return e == 0
		}
	}
}
