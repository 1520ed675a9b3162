package driver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
)

const (
	// idle is how long output is awaited after the process has ended: one
	// that left the process group may hold the pipe.
	idle = 500 * time.Millisecond
	// leftover bounds what such a process can add to the output: no pipe
	// holds more.
	leftover = 1 << 20
)

// process is one run of a driver's program, in a process group of its own that
// does not outlive it.
type process struct {
	cmd *exec.Cmd
	// mark is an entry of the environment that nothing else has, by which what
	// left the group is found.
	mark string
	// stdout and stderr end with the process.
	stdout, stderr *pipe
	stdin          *os.File
	// done is closed when the process and its group are gone; state is set then.
	done  chan struct{}
	state *os.ProcessState

	mu    sync.Mutex
	ended bool
}

// start starts cmd. The stdin of the process is a pipe that nobody writes to:
// it ends with the engine, however that ends.
func start(cmd *exec.Cmd, mark string) (*process, error) {
	p := &process{cmd: cmd, mark: mark, done: make(chan struct{})}
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll()
			return nil, err
		}
		files = append(files, r, w)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[3], files[5]
	p.stdin, p.stdout, p.stderr = files[1], &pipe{f: files[2]}, &pipe{f: files[4]}
	cmd.SysProcAttr = attributes()
	started := make(chan error, 1)
	go func() {
		// Where the kernel ends the process with its parent, the parent is
		// the thread that started it: this goroutine keeps it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.await()
		}
	}()
	err := <-started
	if err != nil {
		closeAll()
		return nil, err
	}
	for _, i := range []int{0, 3, 5} { // the process has its own
		_ = files[i].Close()
	}
	return p, nil
}

// await waits for the end of the process and ends what it leaves behind.
func (p *process) await() {
	if awaitExit(p.cmd.Process.Pid) {
		// What is left of the group ends before the pid, and with it the
		// group's number, can be given to another process.
		p.end()
	}
	_ = p.cmd.Wait() // state tells
	p.end()
	killStrays(p.mark)
	p.state = p.cmd.ProcessState
	_ = p.stdin.Close()
	p.stdout.end()
	p.stderr.end()
	close(p.done)
}

// end kills the group. No signal is sent after the first call.
func (p *process) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		p.ended = true
	}
}

// stop asks the group to end and, after the grace, makes it. It returns when
// the process has ended.
func (p *process) stop(grace time.Duration) {
	// One that was stopped hears of it only when it goes on.
	p.signal(syscall.SIGTERM)
	p.signal(syscall.SIGCONT)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.signal(syscall.SIGKILL)
		<-p.done
	}
}

func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		_ = syscall.Kill(-p.cmd.Process.Pid, s)
	}
}

// outcome tells how the process ended.
func (p *process) outcome() string {
	if ws, ok := p.state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return "killed by " + signalName(ws.Signal())
	}
	return "exited with code " + strconv.Itoa(p.state.ExitCode())
}

func signalName(s syscall.Signal) string {
	switch s {
	case syscall.SIGKILL:
		return "SIGKILL"
	case syscall.SIGTERM:
		return "SIGTERM"
	case syscall.SIGSEGV:
		return "SIGSEGV"
	case syscall.SIGABRT:
		return "SIGABRT"
	case syscall.SIGBUS:
		return "SIGBUS"
	case syscall.SIGINT:
		return "SIGINT"
	case syscall.SIGHUP:
		return "SIGHUP"
	case syscall.SIGPIPE:
		return "SIGPIPE"
	}
	return fmt.Sprintf("signal %d (%s)", int(s), s)
}

// pipe reads what a process writes until it has ended.
type pipe struct {
	f     *os.File
	ended atomic.Bool
	left  int // of leftover; used by the reader only
}

// end makes Read end soon. It is called once.
func (p *pipe) end() {
	_ = p.f.SetReadDeadline(time.Unix(1, 0)) // wakes a reader that waits
	p.ended.Store(true)
}

// Read reads as a file does, and ends at the latest a moment after the process.
func (p *pipe) Read(b []byte) (int, error) {
	for {
		ended := p.ended.Load()
		if ended {
			if err := p.f.SetReadDeadline(time.Now().Add(idle)); err != nil {
				return 0, err
			}
		}
		n, err := p.f.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) && !ended {
			runtime.Gosched()
			continue
		}
		if ended {
			if p.left += n; p.left > leftover {
				return n, os.ErrDeadlineExceeded
			}
		}
		return n, err
	}
}

// excerpt is the beginning of what a driver wrote, fit for one line.
func excerpt(line []byte, limit int) string {
	line = bytes.TrimSpace(line)
	more := ""
	if len(line) > limit {
		// Cut between words: half a secret could not be masked any more.
		cut := max(bytes.LastIndexAny(line[:limit], " \t,"), 0)
		line, more = line[:cut], "…"
	}
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(line), "?"))
	return strings.TrimSpace(s) + more
}

// closeOutput closes the output of a process that has ended, when nobody reads
// it any more.
func (p *process) closeOutput() {
	_ = p.stdout.f.Close()
	_ = p.stderr.f.Close()
}
