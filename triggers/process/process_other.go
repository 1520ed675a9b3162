//go:build !linux

package process

import "syscall"

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitExit does nothing where a process cannot be awaited without reaping it:
// a group is then ended only after its program was reaped.
func awaitExit(int) bool { return false }

// Sweep does nothing where there is no /proc to find processes in.
func Sweep(...string) {}
