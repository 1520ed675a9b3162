package driver

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

const (
	pPID     = 1
	wExited  = 4
	wNoWait  = 0x1000000
	siginfoT = 128 // sizeof(siginfo_t)
)

// attributes make a process group, and the process end with the engine.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitExit blocks until the process has ended and leaves it to be reaped, so
// that its pid is not free yet. It reports whether it could.
func awaitExit(pid int) bool {
	var info [siginfoT / 8]uint64
	for {
		_, _, e := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), wExited|wNoWait, 0, 0)
		if !errors.Is(e, syscall.EINTR) {
			return e == 0
		}
	}
}

// killStrays kills processes that left the group: those that inherited mark,
// an entry of the environment.
func killStrays(mark string) {
	for range 10 { // one may fork while we look
		procs, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		found := false
		for _, p := range procs {
			pid, err := strconv.Atoi(p.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			env, err := os.ReadFile("/proc/" + p.Name() + "/environ")
			if err == nil && bytes.Contains(env, []byte(mark)) && syscall.Kill(pid, syscall.SIGKILL) == nil {
				found = true
			}
		}
		if !found {
			return
		}
	}
}
