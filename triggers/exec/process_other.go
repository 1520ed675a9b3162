//go:build !linux

package exec

// awaitExit does nothing where a process cannot be awaited without reaping it:
// a group is then ended only after its program was reaped.
func awaitExit(int) bool { return false }

// killStrays does nothing where there is no /proc to find them in.
func killStrays(...string) {}
