package generic

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const pythonExample = "../../examples/generic/python"

// python returns a Python that has what the example needs, and its environment.
func python(t *testing.T) (program string, env []string) {
	t.Helper()
	p := findPython()
	if p.err != nil {
		t.Skipf("no Python with grpcio, and none can be had: %v", p.err)
	}
	return p.program, p.env
}

type interpreter struct {
	program string
	env     []string
	err     error
}

// findPython looks for a Python with grpcio. Where there is none it makes one in
// the user's cache: from the packages of Debian, without installing them, or
// with pip.
var findPython = sync.OnceValue(func() (p interpreter) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for _, candidate := range []string{"python3", "/usr/bin/python3"} {
		if hasGRPC(ctx, candidate, nil) == nil {
			return interpreter{program: candidate}
		}
	}
	wanted, err := os.ReadFile(filepath.Join(pythonExample, "requirements.txt"))
	if err != nil {
		return interpreter{err: err}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return interpreter{err: err}
	}
	sum := sha256.Sum256(wanted)
	for _, way := range []struct {
		name string
		make func(ctx context.Context, dir string) error
		use  func(dir string) (string, []string)
	}{{"apt", withApt, useApt}, {"pip", withPip, usePip}} {
		dir := filepath.Join(cache, "sensor-engine-test", "python-"+way.name+"-"+hex.EncodeToString(sum[:8]))
		p.program, p.env = way.use(dir)
		if hasGRPC(ctx, p.program, p.env) == nil {
			return interpreter{p.program, p.env, nil}
		}
		err := install(ctx, dir, way.make)
		if err == nil {
			err = hasGRPC(ctx, p.program, p.env)
		}
		if err == nil {
			return interpreter{p.program, p.env, nil}
		}
		p.err = errors.Join(p.err, fmt.Errorf("%s: %w", way.name, err))
	}
	return p
})

// install makes dir, beside it and moved, so that half a job is never taken for
// a whole one.
func install(ctx context.Context, dir string, how func(ctx context.Context, dir string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := how(ctx, tmp); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// command runs a program and returns what it wrote.
func command(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		err = fmt.Errorf("%s: %w: %s", name, err, text[max(0, len(text)-300):])
	}
	return string(out), err
}

func hasGRPC(ctx context.Context, program string, env []string) error {
	_, err := command(ctx, "", env, program, "-c", "import grpc, google.protobuf.internal.builder")
	return err
}

func withPip(ctx context.Context, dir string) error {
	if _, err := command(ctx, "", nil, "python3", "-m", "venv", dir); err != nil {
		return err
	}
	_, err := command(ctx, "", nil, filepath.Join(dir, "bin", "python3"), "-m", "pip", "install", "--quiet", "--retries", "0", "--timeout", "10",
		"-r", filepath.Join(pythonExample, "requirements.txt"))
	return err
}

func usePip(dir string) (string, []string) { return filepath.Join(dir, "bin", "python3"), nil }

func withApt(ctx context.Context, dir string) error {
	plan, err := command(ctx, "", nil, "apt-get", "install", "--simulate", "--no-install-recommends", "python3-grpcio")
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "python-grpcio")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	args := []string{"download"}
	for line := range strings.Lines(plan) {
		if rest, ok := strings.CutPrefix(line, "Inst "); ok {
			name, _, _ := strings.Cut(rest, " ")
			args = append(args, name)
		}
	}
	if _, err := command(ctx, tmp, nil, "apt-get", args...); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return err
	}
	for _, p := range packages {
		if _, err := command(ctx, "", nil, "dpkg", "--extract", p, dir); err != nil {
			return err
		}
	}
	return nil
}

func useApt(dir string) (string, []string) {
	triplet := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH] + "-linux-gnu"
	return "/usr/bin/python3", []string{
		"PYTHONPATH=" + filepath.Join(dir, "usr/lib/python3/dist-packages"),
		"LD_LIBRARY_PATH=" + filepath.Join(dir, "usr/lib", triplet),
	}
}
