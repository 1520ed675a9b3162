package worker

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kin watches the children of a worker. What a call leaves running would write
// into the logs of later calls, so its worker is replaced.
type kin struct {
	tasks *os.File // the directory of its threads, each of which has children of its own
	first []string // children it had when it was ready
	last  *lastPID // nil where the kernel does not tell
	// seen is the last process that had been started when there was nothing new.
	seen uint64
	room [512]byte
}

// watchKin begins to watch; where the kernel does not tell, there is nothing to
// see.
func watchKin(pid int) *kin {
	id := strconv.Itoa(pid)
	if _, err := os.Stat("/proc/" + id + "/task/" + id + "/children"); err != nil {
		return nil
	}
	tasks, err := os.Open("/proc/" + id + "/task")
	if err != nil {
		return nil
	}
	k := &kin{tasks: tasks, last: openLastPID()}
	k.seen = k.last.read()
	k.first = k.children()
	return k
}

// children are those that any of its threads has started.
func (k *kin) children() (pids []string) {
	if _, err := k.tasks.Seek(0, io.SeekStart); err != nil {
		return nil
	}
	threads, err := k.tasks.Readdirnames(-1)
	if err != nil {
		return nil // it has ended
	}
	for _, thread := range threads {
		pids = append(pids, k.of(thread)...)
	}
	return pids
}

// of are the children that one thread has started.
func (k *kin) of(thread string) []string {
	f, err := unix.Openat(int(k.tasks.Fd()), thread+"/children", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	n, err := unix.Read(f, k.room[:])
	_ = unix.Close(f)
	if err != nil || n <= 0 {
		return nil
	}
	if n == len(k.room) { // more than its first ones do not matter
		n = bytes.LastIndexByte(k.room[:], ' ') + 1
	}
	return strings.Fields(string(k.room[:n]))
}

// grown reports whether there are children that run and were not there when
// the worker was ready. To look at all threads takes longer than many a call, so
// it looks only when any process or thread was started since it last found
// nothing.
func (k *kin) grown() bool {
	if k == nil {
		return false
	}
	now := k.last.read()
	if now != 0 && now == k.seen {
		return false
	}
	grown := slices.ContainsFunc(k.children(), func(pid string) bool {
		return !slices.Contains(k.first, pid) && !over(pid)
	})
	if !grown {
		k.seen = now
	}
	return grown
}

// lastPID tells which process or thread of the system was started last.
type lastPID struct {
	file *os.File
	fd   int
	room [64]byte
}

// openLastPID returns nil where the kernel does not tell. What looks like its
// file and is none of /proc, as in some containers, is not up to date.
func openLastPID() *lastPID {
	f, err := os.Open("/proc/loadavg")
	if err != nil {
		return nil
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &fs) != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		_ = f.Close()
		return nil
	}
	return &lastPID{file: f, fd: int(f.Fd())}
}

// read returns a number that is another one after each start; 0 when it is not
// known.
func (l *lastPID) read() uint64 {
	if l == nil {
		return 0
	}
	n, err := unix.Pread(l.fd, l.room[:], 0)
	if err != nil || n <= 0 {
		return 0
	}
	text := bytes.TrimRight(l.room[:n], "\n")
	pid, err := strconv.ParseUint(string(text[bytes.LastIndexByte(text, ' ')+1:]), 10, 64)
	if err != nil {
		return 0
	}
	return pid
}

func (l *lastPID) close() {
	if l != nil {
		_ = l.file.Close()
	}
}

// over reports whether a process is one that nobody has awaited yet.
func over(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return true
	}
	_, rest, ok := bytes.Cut(stat, []byte(") "))
	return !ok || len(rest) == 0 || rest[0] == 'Z' || rest[0] == 'X'
}

// unread reports whether n bytes, all that was last written to a pipe, are still
// in it.
func unread(pipe *os.File, n int) bool {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return false
	}
	left := 0
	_ = conn.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return err == nil && n > 0 && left >= n
}

func (k *kin) close() {
	if k != nil {
		_ = k.tasks.Close()
		k.last.close()
	}
}
