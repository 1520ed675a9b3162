package process

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eventually waits until ok or the test has waited long enough.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func sh(script string) *exec.Cmd {
	return &exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", script}}
}

// start starts a script and returns the number it prints first.
func start(t *testing.T, cmd *exec.Cmd) (*Process, int) {
	t.Helper()
	// Not cmd.StdoutPipe, which is closed when the program has ended.
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = w
	p, err := Start(cmd, nil)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return p, n
}

func TestGroupEndsWithProgram(t *testing.T) {
	p, child := start(t, sh("sleep 1000 & echo $!; exit 3"))
	<-p.Done()
	eventually(t, "what the program left behind still runs", func() bool { return !alive(child) })
	if got := Ended(p.State()); got != "exited with code 3" || p.Err() == nil {
		t.Errorf("%s, %v", got, p.Err())
	}
}

func TestTerminate(t *testing.T) {
	for script, want := range map[string]string{
		"echo $$; exec sleep 1000":                                              "was killed by SIGTERM",
		"trap 'exit 7' TERM; echo $$; while :; do sleep 0.01; done":             "exited with code 7",
		"trap '' TERM; echo $$; while :; do sleep 0.01; done":                   "was killed by SIGKILL",
		"trap 'exit 7' TERM; echo $$; kill -STOP $$; while :; do sleep 1; done": "exited with code 7",
	} {
		p, _ := start(t, sh(script))
		p.Stop(500 * time.Millisecond)
		if got := Ended(p.State()); got != want {
			t.Errorf("%s: %s, want %s", script, got, want)
		}
		p.Kill() // its number may be another's by now
		p.Terminate(time.Second)
	}
}

func TestEndedIsCalledBeforeDone(t *testing.T) {
	called := false
	p, err := Start(sh(":"), func() { called = true })
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if !called {
		t.Error("Done came first")
	}
}

func TestSweep(t *testing.T) {
	if _, err := os.ReadDir("/proc/self"); err != nil {
		t.Skip("there is no /proc to find processes in")
	}
	// No exec behind the echo: while a program is replaced it has no environment.
	cmd := sh("setsid sh -c 'echo $$; while :; do sleep 1; done' & wait")
	cmd.Env = append(Environ(), "MARK=a", "OTHER=b")
	p, stray := start(t, cmd)
	p.Kill()
	<-p.Done()
	if !alive(stray) {
		t.Skip("nothing can leave a group here")
	}
	Sweep("MARK=a", "OTHER=c")
	if !alive(stray) {
		t.Error("a process without the marks was killed")
	}
	Sweep("MARK=a", "OTHER=b")
	eventually(t, "the stray still runs", func() bool { return !alive(stray) })
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("echo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"./absent": "relative to the file that names it (" + dir + ")", "./plain": "chmod +x"} {
		file, err := Find(path, dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = Start(&exec.Cmd{Path: file}, nil); err == nil {
			t.Fatal("it runs")
		}
		if text, final := StartError(err, dir); !strings.Contains(text, want) || !final {
			t.Errorf("%s: %s, want %s", path, text, want)
		}
	}
	if text, final := StartError(syscall.EAGAIN, dir); final || text == "" {
		t.Error(text)
	}
	if _, err := Find("no-such-program-anywhere", dir); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "PATH") {
		t.Error(err)
	}
	if got, err := Find("/bin/sh", dir); got != "/bin/sh" || err != nil {
		t.Error(got, err)
	}
	if _, err := os.Stat(plain); errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestEnviron(t *testing.T) {
	t.Setenv("PATH", "/bin")
	t.Setenv("SECRET", "s")
	t.Setenv("MINE", "m")
	got := strings.Join(Environ("MINE", "ABSENT"), " ")
	if !strings.Contains(got, "PATH=/bin") || !strings.Contains(got, "MINE=m") || strings.Contains(got, "SECRET") {
		t.Error(got)
	}
}
