//go:build !linux

package driver

import "syscall"

// attributes make a process group. A process that shall end with an engine
// that was killed must watch its stdin.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitExit does nothing where a process cannot be awaited without reaping it:
// the group is then ended only after its program was reaped.
func awaitExit(int) bool { return false }

// killStrays does nothing where there is no /proc to find them in.
func killStrays(string) {}
