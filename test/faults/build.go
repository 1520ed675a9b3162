package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// build is an engine to be built: the one in the tree, changed by patches.
type build struct{ patches []patch }

// patch changes source files for one build.
type patch struct {
	name  string
	edits []edit
}

// edit replaces text that occurs once in a file, or adds a file when old is "".
// A path that begins with $GOROOT is one of the standard library.
type edit struct{ file, old, new string }

// builds makes engines and keeps them for as long as the program runs.
type builds struct {
	dir, root, goroot string
	mu                sync.Mutex
	made              map[string]string // binary by names of patches
}

func newBuilds(ctx context.Context, dir, engine string) (*builds, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	f := strings.Fields(string(out))
	if len(f) != 2 {
		return nil, fmt.Errorf("go env says %q: run this inside the module", out)
	}
	b := &builds{dir: dir, root: filepath.Dir(f[0]), goroot: f[1], made: map[string]string{}}
	if engine != "" {
		if b.made[""], err = filepath.Abs(engine); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// get returns the path of an engine.
func (b *builds) get(ctx context.Context, of build) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for _, p := range of.patches {
		names = append(names, p.name)
	}
	name := strings.Join(names, "+")
	if bin := b.made[name]; bin != "" {
		return bin, nil
	}
	bin := filepath.Join(b.dir, fmt.Sprintf("bin%d", len(b.made)), "engine")
	args := []string{"build", "-trimpath", "-o", bin}
	if len(of.patches) > 0 {
		overlay, err := b.overlay(filepath.Dir(bin), of.patches)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/engine")...)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the engine %s: %w\n%s", name, err, out)
	}
	b.made[name] = bin
	return bin, nil
}

// overlay writes the changed files below dir and the file that tells the go
// command of them.
func (b *builds) overlay(dir string, patches []patch) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	texts := map[string]string{}
	for _, p := range patches {
		for _, e := range p.edits {
			path := filepath.Join(b.root, e.file)
			if rest, std := strings.CutPrefix(e.file, "$GOROOT/"); std {
				path = filepath.Join(b.goroot, rest)
			}
			if e.old == "" {
				texts[path] = e.new
				continue
			}
			text, changed := texts[path]
			if !changed {
				src, err := os.ReadFile(path)
				if err != nil {
					return "", err
				}
				text = string(src)
			}
			if n := strings.Count(text, e.old); n != 1 {
				return "", fmt.Errorf("patch %q: %s has %d times %q, want once: bring the patch up to date", p.name, e.file, n, e.old)
			}
			texts[path] = strings.Replace(text, e.old, e.new, 1)
		}
	}
	replace := map[string]string{}
	for path, text := range texts {
		copied := filepath.Join(dir, fmt.Sprintf("%d-%s", len(replace), filepath.Base(path)))
		if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[path] = copied
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, list, 0o600)
}

// slowCheckpoint makes the moment between enqueueing and checkpoint long, so
// that kills hit it, and the dedup window of JOBS short, so that it can be
// waited out.
func slowCheckpoint() patch {
	return patch{"slow-checkpoint", []edit{
		{"engine/fold/fold.go", "o.CheckpointEvery = 5 * time.Millisecond", "o.CheckpointEvery = 400 * time.Millisecond"},
		{"bus/jetstream/streams.go", "jobs.Duplicates = 30 * time.Second", fmt.Sprintf("jobs.Duplicates = %d", window)},
	}}
}

// steppedClock makes time.Now follow a file: its first eight bytes are the
// seconds by which the wall clock is off. The monotonic clock stays as it is,
// as when somebody sets the time of a machine. (libfaketime does nothing to a
// static Go program, and a time namespace has no wall clock.)
func steppedClock() patch {
	return patch{"stepped-clock", []edit{
		{"$GOROOT/src/time/time.go", "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n", "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n\tsec += clockOffset()\n"},
		{"$GOROOT/src/time/offset.go", "", `package time

import (
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

var (
	offsetOnce sync.Once
	offsetMem  *atomic.Int64
)

func clockOffset() int64 {
	offsetOnce.Do(func() {
		path, ok := syscall.Getenv("FAULT_CLOCK")
		if !ok {
			return
		}
		fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			panic(err)
		}
		mem, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			panic(err)
		}
		offsetMem = (*atomic.Int64)(unsafe.Pointer(&mem[0]))
	})
	if offsetMem == nil {
		return 0
	}
	return offsetMem.Load()
}
`},
	}}
}

// fragileBus makes the embedded server end, or give its store up as it does
// after a failed write, when a file says so.
func fragileBus() patch {
	return patch{"fragile-bus", []edit{
		{"bus/jetstream/server.go", "	e.srv = s\n", "	e.srv = s\n	go fall(s)\n"},
		{"bus/jetstream/fall.go", "", `package jetstream

import (
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func fall(s *server.Server) {
	for ; s.Running(); time.Sleep(5 * time.Millisecond) {
		how, err := os.ReadFile(os.Getenv("FAULT_BUS"))
		if err != nil {
			continue
		}
		_ = os.Remove(os.Getenv("FAULT_BUS"))
		if string(how) == "store" {
			_ = s.DisableJetStream()
		} else {
			s.Shutdown()
		}
		return
	}
}
`},
	}}
}
