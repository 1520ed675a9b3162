package lock_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus/lock"
)

// holdEnv makes the test binary a second engine that holds a lock.
const holdEnv = "LOCK_TEST_HOLD"

// heirEnv lets it start a process that inherits the lock, for 0.3 s.
const heirEnv = "LOCK_TEST_HEIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(holdEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	if _, err := lock.Acquire(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if os.Getenv(heirEnv) != "" {
		fds, _ := filepath.Glob("/proc/self/fd/*")
		for _, fd := range fds {
			if path, _ := os.Readlink(fd); strings.HasPrefix(path, dir) {
				n, _ := strconv.Atoi(filepath.Base(fd))
				child := exec.Command("sleep", "0.3")
				child.ExtraFiles = []*os.File{os.NewFile(uintptr(n), path)}
				if err := child.Start(); err != nil {
					panic(err)
				}
			}
		}
	}
	fmt.Println("held")
	select {} // until killed
}

// hold starts a process that holds the lock of dir.
func hold(t *testing.T, dir string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), holdEnv+"="+dir), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("the other process: %q, %v", line, err)
	}
	return cmd
}

// TestInherited: what an engine was just starting when it was killed may hold
// the lock for a moment longer.
func TestInherited(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("descriptors are found in /proc")
	}
	dir := t.TempDir()
	cmd := hold(t, dir, heirEnv+"=1")
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	l, err := lock.Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

func TestSecondProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	cmd := hold(t, dir)
	began := time.Now()
	_, err := lock.Acquire(dir)
	if !errors.Is(err, lock.ErrHeld) {
		t.Fatalf("Acquire: %v, want ErrHeld", err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("refused after %v", d)
	}
	for _, want := range []string{fmt.Sprintf("pid %d", cmd.Process.Pid), dir} {
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q does not name %q in one line", err, want)
		}
	}
	// However the other one ends, the lock is free.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l, err := lock.Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(l.Path())
	if err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(os.Getpid()) {
		t.Errorf("%s holds %q, %v", l.Path(), b, err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

func TestSameProcess(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		l, err := lock.Acquire(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lock.Acquire(dir); !errors.Is(err, lock.ErrHeld) {
			t.Errorf("Acquire twice: %v, want ErrHeld", err)
		}
		for range 2 {
			if err := l.Release(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestUnusable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ro := filepath.Join(dir, "ro")
	if err := os.Mkdir(ro, 0o500); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{"": "no path", file: "choose another --data", filepath.Join(file, "x"): "choose another --data"}
	if os.Getuid() > 0 {
		cases[ro] = "right to write"
		cases[filepath.Join(ro, "x")] = "right to write"
	}
	if d := readOnly(t); d != "" {
		cases[d] = "remount it writable"
	}
	for path, want := range cases {
		_, err := lock.Acquire(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
}

// readOnly mounts a read-only file system, where that is allowed.
func readOnly(t *testing.T) string {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		return ""
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k,ro", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Logf("no read-only file system: %v: %s", err, out)
		return ""
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	return dir
}
