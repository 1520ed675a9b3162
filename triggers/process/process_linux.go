package process

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

// Sweep kills processes that left their group: those that inherited all marks,
// which are entries of the environment. It costs a look at all processes of
// the machine. It does nothing where there is no /proc.
func Sweep(marks ...string) {
	for range 10 { // one may fork while we look
		found := false
		procs, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		for _, p := range procs {
			pid, err := strconv.Atoi(p.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			env, err := os.ReadFile("/proc/" + p.Name() + "/environ")
			if err == nil && marked(env, marks) && syscall.Kill(pid, syscall.SIGKILL) == nil {
				found = true
			}
		}
		if !found {
			return
		}
	}
}

// marked reports whether an environment has all marks as entries.
func marked(env []byte, marks []string) bool {
	env = append([]byte{0}, env...)
	for _, m := range marks {
		if !bytes.Contains(env, []byte("\x00"+m+"\x00")) {
			return false
		}
	}
	return len(env) > 1
}
