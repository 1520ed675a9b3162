// Package python owns the function kind `python`: a function of two arguments
// in a Python file, a directory or the spec itself, in warm worker processes. It
// owns the interpreter, the environment with the function's requirements and
// the script of the workers. It must not know queues, retries or sensors.
package python

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/worker"
)

// Config is the config of a `python` function.
type Config struct {
	File         string                        `yaml:"file" doc:"Python file with the function, relative to this file. It can import its neighbours." example:"hello.py"`
	Dir          string                        `yaml:"dir" doc:"Directory with modules, relative to this file; handler says which." example:"functions"`
	Source       string                        `yaml:"source" doc:"The code itself."`
	Handler      string                        `yaml:"handler" doc:"The function, as module.function, or function alone for file and source; default handle, of a dir there is none." example:"hello.handle"`
	Requirements specs.Value                   `yaml:"requirements" doc:"What pip installs for the function: the path of a file, relative to this file, or a list. It is installed once into an environment of its own." example:"requirements.txt"`
	Python       string                        `yaml:"python" doc:"Interpreter, 3.8 or later: looked up in PATH, or with a / relative to this file; default python3." example:"python3.12"`
	Workers      int                           `yaml:"workers" min:"1" max:"1000" doc:"Most processes; each makes one call at a time, further calls wait. Default: the function's concurrency." example:"2"`
	Idle         specs.Duration                `yaml:"idle" min:"1s" doc:"How long a process waits for a call before it is stopped; default 5m." example:"1h"`
	Env          map[string]specs.TextOrSecret `yaml:"env" doc:"Environment variables of the processes; a value is text or a secret, without expressions. What is secret belongs in the function's secrets."`
	InheritEnv   []string                      `yaml:"inheritEnv" doc:"Variables of the engine that the processes get too, besides PATH, HOME, TZ and LANG." example:"[HTTPS_PROXY]"`
}

const (
	defaultPython  = "python3"
	defaultHandler = "handle"
	// inline is the module of code in a spec.
	inline = "function"
)

//go:embed worker.py
var script []byte

//go:embed boot.py
var boot string

//go:embed example.yaml
var example string

// Factory returns the kind `python`.
func Factory() triggers.Factory {
	shared := &interpreters{known: map[string]interpreter{}, gate: worker.NewGate()}
	return triggers.Factory{
		Type: specs.Type{
			Name: "python",
			Doc:  "Calls a Python function, handle(context, payload), in processes that stay warm.",
			New:  func() any { return &Config{} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env, shared)
		},
		Check:  func(config any, dir string, ck *specs.Checker) { config.(*Config).check(dir, ck) },
		Files:  func(config any, dir string) []string { return config.(*Config).files(dir) },
		Grants: true,
	}
}

// function is one function and its workers.
type function struct {
	cfg    *Config
	env    triggers.Env
	root   string // directory of the spec's file
	shared *interpreters
	pool   *worker.Pool
	code   *worker.Snapshot // nil for none

	mu        sync.Mutex
	kept      *worker.Kept // the environment in use
	installed *wanted      // and what is installed there
}

func newFunction(cfg *Config, env triggers.Env, shared *interpreters) (*function, error) {
	root, err := filepath.Abs(env.Dir)
	if err != nil {
		return nil, err
	}
	if env.Data != "" {
		if env.Data, err = filepath.Abs(env.Data); err != nil {
			return nil, err
		}
	}
	f := &function{cfg: cfg, env: env, root: root, shared: shared}
	f.code = worker.Take(cfg.code(root), func(name string) bool { return filepath.Ext(name) == ".py" }, "__pycache__")
	size := env.Concurrency
	if cfg.Workers > 0 {
		size = cfg.Workers
	}
	f.pool = worker.NewPool(worker.Options{
		Command: f.command, Hello: f.hello, Size: size, Idle: cfg.Idle.D(), Gate: shared.gate, Logger: env.Logger,
	})
	f.pool.Warm()
	return f, nil
}

// Invoke calls the function. When ctx ends, the process of the call is killed.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	return f.pool.Invoke(ctx, c)
}

// Prepare waits for the first process, and for what has to be installed.
func (f *function) Prepare(ctx context.Context) error { return f.pool.Prepare(ctx) }

// Ready tells why the function cannot be called, nil when it can, or nobody
// knows yet.
func (f *function) Ready() error { return f.pool.Failure() }

// Processes is how many processes live or start.
func (f *function) Processes() int { return f.pool.Workers() }

// Close ends the processes and waits for their end.
func (f *function) Close() error {
	err := f.pool.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept != nil {
		err = errors.Join(err, f.kept.Close())
	}
	return err
}

// source is where the code is: the directory to import from, the module and
// the function in it.
func (c *Config) source(root string) (path, module, function string) {
	module, function = "", c.Handler
	if i := strings.LastIndexByte(c.Handler, '.'); i >= 0 {
		module, function = c.Handler[:i], c.Handler[i+1:]
	}
	if function == "" {
		function = defaultHandler
	}
	switch {
	case c.Dir != "":
		return join(root, c.Dir), module, function
	case c.File != "":
		file := join(root, c.File)
		return filepath.Dir(file), stem(file), function
	}
	return root, inline, function
}

func stem(file string) string { return strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)) }

func join(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// hello tells a worker what to load.
func (f *function) hello() ([][]byte, error) {
	path, module, name := f.cfg.source(f.root)
	m := map[string]any{
		"path": path, "module": module, "function": name, "file": filepath.Join(path, module+".py"),
		"maxOutput": triggers.MaxOutput, "maxMeta": triggers.MaxEmissionBytes,
	}
	if f.cfg.Source != "" {
		m["source"], m["file"] = f.cfg.Source, "<"+inline+">"
	}
	if texts := f.code.Changed(); texts != nil {
		m["files"] = texts
	}
	hello, err := json.Marshal(m)
	return [][]byte{script, hello}, err
}

// command makes the command of a worker. What has to be installed is.
func (f *function) command(ctx context.Context) (*exec.Cmd, error) {
	python, err := f.shared.find(ctx, f.cfg.Python, f.root)
	if err != nil {
		return nil, err
	}
	program := python.Executable
	wanted, err := f.wanted()
	if err != nil {
		return nil, err
	}
	if wanted != nil {
		if program, err = f.environment(ctx, python, wanted); err != nil {
			return nil, err
		}
	}
	own, err := worker.Environ(f.cfg.Env, f.env.Secret)
	if err != nil {
		return nil, err
	}
	env := process.Environ(f.cfg.InheritEnv...)
	if f.env.Data != "" { // not beside the specs
		env = append(env, "PYTHONPYCACHEPREFIX="+filepath.Join(f.env.Data, "python", "cache"))
	} else {
		env = append(env, "PYTHONDONTWRITEBYTECODE=1")
	}
	dir, _, _ := f.cfg.source(f.root)
	return &exec.Cmd{Path: program, Args: []string{program, "-c", boot}, Dir: dir, Env: append(env, own...)}, nil
}

// code are the files and directories with code.
func (c *Config) code(dir string) []string {
	switch {
	case c.Dir != "":
		return []string{join(dir, c.Dir)}
	case c.File != "":
		file := join(dir, c.File)
		return append([]string{file}, worker.Near(file, "*.py")...) // what it may import
	}
	return nil
}

// files are what the function is made from.
func (c *Config) files(dir string) []string {
	files := c.code(dir)
	if name, ok := c.Requirements.Root.(string); ok {
		files = append(files, requirementFiles(join(dir, name))...)
	}
	return files
}

// check reports what is wrong with the files.
func (c *Config) check(dir string, ck *specs.Checker) {
	missing := func(field, path string, err error) {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		ck.Errorf(field, specs.CodeUnreadable, "a path is relative to this file", "%s: %v", path, err)
	}
	switch {
	case c.File != "":
		if info, err := os.Stat(join(dir, c.File)); err != nil {
			missing("file", c.File, err)
		} else if info.IsDir() {
			ck.Errorf("file", specs.CodeInvalidValue, "write dir: "+c.File+" and handler: module.function", "handler is required, source path %s is a directory", c.File)
		}
	case c.Dir != "":
		path, module, _ := c.source(dir)
		if info, err := os.Stat(path); err != nil {
			missing("dir", c.Dir, err)
		} else if !info.IsDir() {
			ck.Errorf("dir", specs.CodeInvalidValue, "write file: "+c.Dir, "%s is no directory", c.Dir)
		} else if base := filepath.Join(path, filepath.FromSlash(strings.ReplaceAll(module, ".", "/"))); !exists(base+".py") && !exists(base) {
			ck.Errorf("handler", specs.CodeInvalidValue, "module.function, where module is a file below "+c.Dir, "there is no module %s in %s", module, c.Dir)
		}
	}
	if name, ok := c.Requirements.Root.(string); ok {
		if _, err := os.Stat(join(dir, name)); err != nil {
			missing("requirements", name, err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	given := 0
	for _, s := range []string{c.File, c.Dir, c.Source} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		ck.Errorf("", specs.CodeInvalidValue, "file: hello.py, dir: functions or source: the code itself", "the code must be given in one way")
	}
	module, _, dotted := strings.Cut(c.Handler, ".")
	switch {
	case c.Dir != "" && c.Handler == "":
		ck.Errorf("", specs.CodeMissingKey, "write handler: module.function", "handler is required, source path %s is a directory", c.Dir)
	case c.Dir != "" && !dotted:
		ck.Errorf("handler", specs.CodeInvalidValue, "module.function", "%q does not say in which module it is", c.Handler)
	case c.File != "" && (strings.Contains(stem(c.File), ".") || filepath.Ext(c.File) != ".py"):
		ck.Errorf("file", specs.CodeInvalidValue, "a name such as hello.py", "%s cannot be imported", c.File)
	case c.File != "" && dotted && module != stem(c.File):
		ck.Errorf("handler", specs.CodeInvalidValue, stem(c.File)+".function, or the function alone", "the module is %s, not %s", stem(c.File), module)
	case c.Source != "" && dotted:
		ck.Errorf("handler", specs.CodeInvalidValue, "the name of the function alone", "code in a spec is in no module")
	}
	if strings.HasSuffix(c.Handler, ".") || strings.HasPrefix(c.Handler, ".") || strings.ContainsAny(c.Handler, " /\\:()") {
		ck.Errorf("handler", specs.CodeInvalidValue, "module.function", "%q names no function", c.Handler)
	}
	worker.CheckEnv(ck, c.Env, c.InheritEnv)
	c.checkRequirements(ck)
}
