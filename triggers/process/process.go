// Package process owns programs that the engine starts: each in a process
// group of its own that does not outlive it, ended with the engine however
// that ends, and the search for what left the group. It must not know what
// the programs are for, nor touch their input and output.
package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a started program and its process group. It is safe for
// concurrent use.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	mu    sync.Mutex
	ended bool
	timer *time.Timer
}

// Start starts cmd in a process group of its own, which is killed when the
// program has ended. On Linux the program is killed when the engine ends; where
// the kernel does not do that, a program that shall end must watch its stdin.
// ended, unless nil, is called when nothing of the group is left, before Done
// is closed. Start sets cmd.SysProcAttr; cmd belongs to the Process.
func Start(cmd *exec.Cmd, ended func()) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
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
			p.await(ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// await waits for the end of the program and ends what it leaves behind.
func (p *Process) await(ended func()) {
	if awaitExit(p.cmd.Process.Pid) {
		// What is left of the group ends before the pid, and with it the
		// group's number, can be given to another process.
		p.end()
	}
	p.err = p.cmd.Wait()
	p.end()
	if ended != nil {
		ended()
	}
	close(p.done)
}

// end kills the group. No signal is sent after the first call.
func (p *Process) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	p.ended = true
	if p.timer != nil {
		p.timer.Stop()
	}
}

func (p *Process) signal(s syscall.Signal) {
	if !p.ended {
		_ = syscall.Kill(-p.cmd.Process.Pid, s)
	}
}

// Kill kills the group at once. It does not wait for its end.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signal(syscall.SIGKILL)
}

// Terminate asks the group to end and, after the grace, makes it. It does not
// wait for its end.
func (p *Process) Terminate(grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	// One that was stopped hears of it only when it goes on.
	p.signal(syscall.SIGTERM)
	p.signal(syscall.SIGCONT)
	if p.timer == nil {
		p.timer = time.AfterFunc(grace, p.Kill)
	}
}

// Stop is Terminate, and waits for the end.
func (p *Process) Stop(grace time.Duration) {
	p.Terminate(grace)
	<-p.done
}

// Done is closed when the program and its group are gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// Pid is the number of the process and of its group.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// State tells how the program ended and Err what [exec.Cmd.Wait] said of it,
// after Done was closed. The state is nil when that is not known.
func (p *Process) State() *os.ProcessState { return p.cmd.ProcessState }

// Err is what [exec.Cmd.Wait] returned, after Done was closed.
func (p *Process) Err() error { return p.err }

// Outcome tells how a program ended, for people: its exit code, and the name
// of the signal that killed it, "" when none did.
func Outcome(state *os.ProcessState) (code int, signal string) {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return state.ExitCode(), signalName(ws.Signal())
	}
	return state.ExitCode(), ""
}

// Ended is [Outcome] as words: "exited with code 1", "was killed by SIGKILL".
func Ended(state *os.ProcessState) string {
	if state == nil {
		return "ended"
	}
	code, signal := Outcome(state)
	if signal != "" {
		return "was killed by " + signal
	}
	return "exited with code " + strconv.Itoa(code)
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
	case syscall.SIGFPE:
		return "SIGFPE"
	case syscall.SIGILL:
		return "SIGILL"
	case syscall.SIGXCPU:
		return "SIGXCPU"
	}
	return fmt.Sprintf("signal %d (%s)", int(s), s)
}

// Environ returns the variables of the engine that every program gets, PATH,
// HOME, TZ and LANG, and those named, as far as they are set. The rest is not
// passed on, because it may hold secrets.
func Environ(names ...string) []string {
	var env []string
	for _, name := range append([]string{"PATH", "HOME", "TZ", "LANG"}, names...) {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// Find returns the file of a program: name itself when it is absolute, below
// dir when it has a '/', and what PATH says otherwise; an error wraps
// [fs.ErrNotExist] or [fs.ErrPermission] and says what to do.
func Find(name, dir string) (string, error) {
	switch {
	case filepath.IsAbs(name):
		return name, nil
	case strings.ContainsRune(name, filepath.Separator):
		return filepath.Join(dir, name), nil
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", &NotFoundError{name, err}
	}
	return p, nil
}

// NotFoundError says that PATH has no program of a name.
type NotFoundError struct {
	Name string
	Err  error
}

// Error says what to do.
func (e *NotFoundError) Error() string {
	return fmt.Sprintf("program %s not found in the engine's PATH; install it, or write a path such as ./%s", e.Name, e.Name)
}

// Unwrap returns what the search gave.
func (e *NotFoundError) Unwrap() error { return e.Err }

// StartError tells what the short answer of the kernel to the start of a
// program means for who wrote its name in a file of the directory root. final
// is true when another try would give the same.
func StartError(err error, root string) (text string, final bool) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("program not found; a path is relative to the file that names it (%s), and the interpreter of a script's first line must exist", root), true
	case errors.Is(err, fs.ErrPermission):
		return "not allowed to run it; is it an executable file (chmod +x)?", true
	case errors.Is(err, syscall.ENOEXEC):
		return "not a program of this machine; a script needs a first line such as #!/bin/sh", true
	case errors.Is(err, syscall.E2BIG):
		return "arguments and environment are too large", true
	}
	return err.Error(), false
}
