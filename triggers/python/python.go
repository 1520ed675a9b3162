// Package python owns the function kind `python`: a function of two arguments
// in a Python file, a directory or the spec itself, in warm worker processes. It
// owns the interpreter, the environment with the function's requirements and
// the script of the workers. It must not know queues, retries or sensors.
package python

import (
	"context"
	_ "embed"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/worker"
)

// Config is the config of a `python` function.
type Config struct {
	File         string      `yaml:"file" doc:"Python file with the function, relative to this file. It can import its neighbours." example:"hello.py"`
	Dir          string      `yaml:"dir" doc:"Directory with modules, relative to this file; handler says which." example:"functions"`
	Source       string      `yaml:"source" doc:"The code itself."`
	Handler      string      `yaml:"handler" doc:"The function, as module.function, or function alone for file and source; default handle, of a dir there is none." example:"hello.handle"`
	Requirements specs.Value `yaml:"requirements" doc:"What pip installs for the function: the path of a file, relative to this file, or a list. It is installed once into an environment of its own." example:"requirements.txt"`
	Python       string      `yaml:"python" doc:"Interpreter, 3.8 or later: looked up in PATH, or with a / relative to this file; default python3." example:"python3.12"`

	worker.Config `yaml:",inline"`
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
	*worker.Pool
	cfg       *Config
	env       triggers.Env // its directories are absolute
	shared    *interpreters
	code      *worker.Snapshot // nil for none
	installed worker.Installed[wanted]
}

func newFunction(cfg *Config, env triggers.Env, shared *interpreters) (*function, error) {
	env, err := env.Absolute()
	if err != nil {
		return nil, err
	}
	f := &function{cfg: cfg, env: env, shared: shared}
	f.code = shared.library.Take(cfg.code(env.Dir), func(name string) bool { return filepath.Ext(name) == ".py" }, "__pycache__", "site-packages")
	o := cfg.Options(env, shared.gate)
	o.Command, o.Hello = f.command, f.hello
	f.Pool = worker.NewPool(o)
	f.Warm()
	return f, nil
}

// Close ends the processes and waits for their end.
func (f *function) Close() error { return f.installed.Close(f.Pool.Close()) }

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
		return triggers.Join(root, c.Dir), module, function
	case c.File != "":
		file := triggers.Join(root, c.File)
		return filepath.Dir(file), stem(file), function
	}
	return root, inline, function
}

func stem(file string) string { return strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)) }

// hello tells a worker what to load.
func (f *function) hello() ([][]byte, error) {
	path, module, name := f.cfg.source(f.env.Dir)
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
	python, err := f.shared.find(ctx, f.cfg.Python, f.env.Dir)
	if err != nil {
		return nil, err
	}
	program := python.Executable
	wanted, err := f.installed.Wanted(func() (*wanted, error) { return f.cfg.requirements(f.env.Dir) })
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
	}
	// Compiled code is told from that of an older text by the second in which the
	// text was saved and its size.
	if f.env.Data == "" || time.Since(f.code.Newest()) < 2*time.Second {
		env = append(env, "PYTHONDONTWRITEBYTECODE=1")
	}
	dir, _, _ := f.cfg.source(f.env.Dir)
	return &exec.Cmd{Path: program, Args: []string{program, "-c", boot}, Dir: dir, Env: append(env, own...)}, nil
}

// code are the files and directories with code.
func (c *Config) code(dir string) []string { return c.where().Paths(dir, "*.py") }

// where says where the code is.
func (c *Config) where() worker.Code { return worker.Code{File: c.File, Dir: c.Dir, Source: c.Source} }

// files are what the function is made from.
func (c *Config) files(dir string) []string {
	files := c.code(dir)
	if name, ok := c.Requirements.Root.(string); ok {
		files = append(files, requirementFiles(triggers.Join(dir, name))...)
	}
	return files
}

// check reports what is wrong with the files.
func (c *Config) check(dir string, ck *specs.Checker) {
	if c.where().Check(ck, dir, "module.function") {
		path, module, _ := c.source(dir)
		if base := filepath.Join(path, filepath.FromSlash(strings.ReplaceAll(module, ".", "/"))); !exists(base+".py") && !exists(base) {
			ck.Errorf("handler", specs.CodeInvalidValue, "module.function, where module is a file below "+c.Dir, "there is no module %s in %s", module, c.Dir)
		}
	}
	if name, ok := c.Requirements.Root.(string); ok {
		if _, err := os.Stat(triggers.Join(dir, name)); err != nil {
			triggers.Unreadable(ck, "requirements", name, err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	c.where().Validate(ck, "file: hello.py, dir: functions or source: the code itself")
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
