package main

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// respectMemory tells the garbage collector of the limit that a container gives
// the process, so that it collects in time instead of being killed. GOMEMLIMIT
// has precedence.
func respectMemory(lookup func(string) (string, bool)) {
	if _, ok := lookup("GOMEMLIMIT"); ok {
		return
	}
	if limit := cgroupMemory("/"); limit > 0 {
		// The rest is for what the collector does not count: the binary itself,
		// and what the kernel keeps for the process.
		debug.SetMemoryLimit(limit - limit/5)
	}
}

// cgroupMemory is the least limit of the control groups this process is in,
// version 1 or 2, in bytes; 0 for none. root is the root of the file system.
func cgroupMemory(root string) int64 {
	b, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0
	}
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(b)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		dir, file := "", ""
		switch {
		case fields[1] == "":
			dir, file = "sys/fs/cgroup", "memory.max"
		case strings.Contains(","+fields[1]+",", ",memory,"):
			dir, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// A limit of a parent counts too. In a container the path may be that
		// of the host, while the root of the mount is the container's own.
		for at := filepath.Clean("/" + fields[2]); ; at = filepath.Dir(at) {
			if b, err := os.ReadFile(filepath.Join(root, dir, at, file)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 {
					least = min(least, n)
				}
			}
			if at == "/" {
				break
			}
		}
	}
	if least > 1<<50 { // how version 1 writes "none"
		return 0
	}
	return least
}
