package python

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/worker"
)

// interpreters are the interpreters that were asked what they are.
type interpreters struct {
	gate    *worker.Gate
	library worker.Library
	mu      sync.Mutex
	known   map[string]interpreter // by path
}

// interpreter is what an interpreter says of itself.
type interpreter struct {
	// Executable is the program itself, where its path was one that only
	// starts it.
	Executable string
	Version    [3]int
	// Tag tells interpreters apart that cannot share what was installed.
	Tag string
}

const ask = `import json, sys, sysconfig
print(json.dumps({"executable": sys.executable, "version": sys.version_info[:3], "tag": sys.version + sysconfig.get_platform() + sys.prefix}))`

// find returns the interpreter that a config names.
func (s *interpreters) find(ctx context.Context, name, root string) (interpreter, error) {
	if name == "" {
		name = defaultPython
	}
	path, err := process.Find(name, root)
	if err != nil {
		return interpreter{}, triggers.Errorf(triggers.SystemError, "%w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.known[path]; ok && exists(known.Executable) {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := process.Run(ctx, &exec.Cmd{Path: path, Args: []string{path, "-c", ask}, Env: process.Environ(), Stdout: &out}); err != nil {
		return interpreter{}, fmt.Errorf("%s: %w", name, err)
	}
	var is interpreter
	if err := json.Unmarshal(out.Bytes(), &is); err != nil {
		return interpreter{}, fmt.Errorf("%s does not answer as Python does: %w", name, err)
	}
	if slices.Compare(is.Version[:2], []int{3, 8}) < 0 {
		return interpreter{}, fmt.Errorf("%s is Python %d.%d; 3.8 or later is needed", name, is.Version[0], is.Version[1])
	}
	if is.Executable == "" {
		is.Executable = path
	}
	s.known[path] = is
	return is, nil
}

func (c *Config) checkRequirements(ck *specs.Checker) {
	switch r := c.Requirements.Root.(type) {
	case nil:
	case string:
		if r == "" {
			ck.Errorf("requirements", specs.CodeMissingKey, "for example requirements: requirements.txt", "it names no file")
		}
	case []any:
		for i, item := range r {
			if s, ok := item.(string); !ok || strings.TrimSpace(s) == "" || strings.ContainsAny(s, "\n\r") {
				ck.Errorf(fmt.Sprintf("requirements[%d]", i), specs.CodeInvalidValue, "for example requests==2.32.3", "it is no requirement")
			}
		}
	default:
		ck.Errorf("requirements", specs.CodeWrongType, "requirements.txt, or [requests==2.32.3]", "requirements are the path of a file or a list")
	}
}

// wanted is what has to be installed.
type wanted struct {
	// file is the file of requirements, "" for those in lines.
	file  string
	lines []string
	// hash covers all files and what they name.
	hash []byte
}

// requirements reads what has to be installed, nil for nothing.
func (c *Config) requirements(root string) (*wanted, error) {
	h := sha256.New()
	w := &wanted{}
	switch r := c.Requirements.Root.(type) {
	case string:
		w.file = triggers.Join(root, r)
		for _, name := range requirementFiles(w.file) {
			f, err := os.Open(name)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(h, "%s\n", filepath.Base(name))
			_, err = io.Copy(h, f)
			_ = f.Close()
			if err != nil {
				return nil, err
			}
		}
	case []any:
		for _, item := range r {
			s, _ := item.(string) // was checked
			w.lines = append(w.lines, s)
		}
		if len(w.lines) == 0 {
			return nil, nil
		}
		fmt.Fprint(h, strings.Join(w.lines, "\n"))
	default:
		return nil, nil
	}
	w.hash = h.Sum(nil)
	return w, nil
}

// requirementFiles are a file of requirements, those it includes, and the files
// it names as requirements.
func requirementFiles(file string) []string {
	var files []string
	var add func(string)
	add = func(name string) {
		if slices.Contains(files, name) || len(files) > 1000 {
			return
		}
		files = append(files, name)
		f, err := os.Open(name)
		if err != nil {
			return
		}
		defer f.Close()
		in := bufio.NewScanner(f)
		for in.Scan() {
			line, _, _ := strings.Cut(strings.TrimSpace(in.Text()), " #")
			for _, flag := range []string{"-r", "--requirement", "-c", "--constraint"} {
				if rest, ok := strings.CutPrefix(line, flag); ok && rest != "" && strings.ContainsAny(rest[:1], " =") {
					add(triggers.Join(filepath.Dir(name), strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(rest), "="))))
				}
			}
			if strings.HasSuffix(line, ".whl") || strings.HasSuffix(line, ".tar.gz") || strings.HasSuffix(line, ".zip") {
				if path := triggers.Join(filepath.Dir(name), line); exists(path) {
					files = append(files, path)
				}
			}
		}
	}
	add(file)
	return files
}

// environment returns the interpreter of an environment with the requirements,
// made when there is none.
func (f *function) environment(ctx context.Context, python interpreter, w *wanted) (string, error) {
	if f.env.Data == "" {
		return "", errors.New("requirements cannot be installed: there is no directory to keep them in")
	}
	sum := sha256.Sum256(append(append([]byte(python.Executable+"\n"+python.Tag+"\n"), w.hash...), strings.Join(w.lines, "\n")...))
	dir := filepath.Join(f.env.Data, "python", "environments", hex.EncodeToString(sum[:12]))
	return filepath.Join(dir, "bin", "python"), f.installed.Open(ctx, dir, w, "requirements", f.env.Logger, func(ctx context.Context, dir string) error {
		return f.install(ctx, python, w, dir)
	})
}

// passed are variables of the engine that say where packages come from.
var passed = []string{
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
	"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_CONFIG_FILE", "PIP_CACHE_DIR",
}

func (f *function) install(ctx context.Context, python interpreter, w *wanted, dir string) error {
	env := append(process.Environ(append(passed, f.cfg.InheritEnv...)...), "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_INPUT=1")
	exe := python.Executable
	if err := process.Run(ctx, &exec.Cmd{Path: exe, Args: []string{exe, "-m", "venv", dir}, Env: env}); err != nil {
		return fmt.Errorf("python -m venv: %w (on Debian the package python3-venv is needed)", err)
	}
	at := f.env.Dir
	args := []string{filepath.Join(dir, "bin", "python"), "-m", "pip", "install", "--quiet"}
	if w.file != "" {
		at = filepath.Dir(w.file)
		args = append(args, "-r", w.file)
	} else {
		args = append(append(args, "--"), w.lines...)
	}
	if err := process.Run(ctx, &exec.Cmd{Path: args[0], Args: args, Dir: at, Env: env}); err != nil {
		return fmt.Errorf("pip install: %w", err)
	}
	if now, err := f.cfg.requirements(f.env.Dir); err != nil || !bytes.Equal(now.hash, w.hash) {
		return errors.New("the files of requirements have changed meanwhile")
	}
	return nil
}
