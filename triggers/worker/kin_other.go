//go:build !linux

package worker

import "os"

// kin sees nothing where there is no /proc.
type kin struct{}

func watchKin(int) *kin { return nil }

func (*kin) grown() bool { return false }

func (*kin) close() {}

// unread says no where a pipe does not tell what is in it.
func unread(*os.File, int) bool { return false }
