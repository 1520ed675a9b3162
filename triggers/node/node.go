// Package node owns the function kind `node`: a JavaScript function of two
// arguments in a file, a directory or the spec itself, in warm worker processes.
// It owns the interpreter, the directory with the function's packages and the
// script of the workers. It must not know queues, retries or sensors.
package node

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/worker"
)

// Config is the config of a `node` function.
type Config struct {
	File         string                        `yaml:"file" doc:"JavaScript file whose module.exports is the function, relative to this file; of an ES module, the default export or one named handle." example:"hello.js"`
	Dir          string                        `yaml:"dir" doc:"Directory with the function, relative to this file; handler says in which file." example:"functions"`
	Source       string                        `yaml:"source" doc:"The code itself, which sets module.exports or is an ES module."`
	Handler      string                        `yaml:"handler" doc:"File below dir with the function, as for file." example:"./hello.js"`
	Package      string                        `yaml:"package" doc:"Path of a package.json, relative to this file, whose dependencies npm installs once; with the package-lock.json beside it, if there is one." example:"package.json"`
	Dependencies map[string]string             `yaml:"dependencies" doc:"Packages and their versions, instead of package." example:"{lodash: ^4.17.21}"`
	Node         string                        `yaml:"node" doc:"Interpreter, 16 or later: looked up in PATH, or with a / relative to this file; default node." example:"/opt/node22/bin/node"`
	Workers      int                           `yaml:"workers" min:"1" max:"1000" doc:"Most processes; each makes one call at a time, further calls wait. Default: the function's concurrency." example:"2"`
	Idle         specs.Duration                `yaml:"idle" min:"1s" doc:"How long a process waits for a call before it is stopped; default 5m." example:"1h"`
	Env          map[string]specs.TextOrSecret `yaml:"env" doc:"Environment variables of the processes; a value is text or a secret, without expressions. What is secret belongs in the function's secrets."`
	InheritEnv   []string                      `yaml:"inheritEnv" doc:"Variables of the engine that the processes get too, besides PATH, HOME, TZ and LANG." example:"[HTTPS_PROXY]"`
}

const (
	defaultNode = "node"
	// inline is the name of code in a spec.
	inline = "<function>"
)

//go:embed worker.js
var script []byte

//go:embed boot.js
var boot string

//go:embed example.yaml
var example string

// Factory returns the kind `node`.
func Factory() triggers.Factory {
	gate := worker.NewGate()
	return triggers.Factory{
		Type: specs.Type{
			Name: "node",
			Doc:  "Calls a JavaScript function, module.exports = function (context, payload), in Node processes that stay warm.",
			New:  func() any { return &Config{} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env, gate)
		},
		Check:  func(config any, dir string, ck *specs.Checker) { config.(*Config).check(dir, ck) },
		Files:  func(config any, dir string) []string { return config.(*Config).files(dir) },
		Grants: true,
	}
}

// function is one function and its workers.
type function struct {
	cfg  *Config
	env  triggers.Env
	root string // directory of the spec's file
	pool *worker.Pool
	code *worker.Snapshot // nil for none

	mu        sync.Mutex
	kept      *worker.Kept // the packages in use
	installed *packages    // and what is installed there
}

func newFunction(cfg *Config, env triggers.Env, gate worker.Gate) (*function, error) {
	root, err := filepath.Abs(env.Dir)
	if err != nil {
		return nil, err
	}
	if env.Data != "" {
		if env.Data, err = filepath.Abs(env.Data); err != nil {
			return nil, err
		}
	}
	f := &function{cfg: cfg, env: env, root: root}
	f.code = worker.Take(cfg.code(root), func(name string) bool {
		return slices.Contains([]string{".js", ".cjs", ".mjs", ".json"}, filepath.Ext(name))
	}, modulesDir)
	size := env.Concurrency
	if cfg.Workers > 0 {
		size = cfg.Workers
	}
	f.pool = worker.NewPool(worker.Options{
		Command: f.command, Hello: f.hello, Size: size, Idle: cfg.Idle.D(), Gate: gate, Logger: env.Logger,
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

// source is where the code is: the directory it belongs to, the file, "" when it
// is in the spec, and how that is called.
func (c *Config) source(root string) (dir, file, name string) {
	switch {
	case c.Dir != "":
		dir = join(root, c.Dir)
		file = join(dir, c.Handler)
		return dir, file, filepath.Clean(c.Handler)
	case c.File != "":
		file = join(root, c.File)
		return filepath.Dir(file), file, filepath.Base(file)
	}
	return root, "", "the code"
}

func join(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// hello tells a worker what to load.
func (f *function) hello() ([][]byte, error) {
	dir, file, name := f.cfg.source(f.root)
	m := map[string]any{"path": dir, "file": file, "name": name, "maxOutput": triggers.MaxOutput, "maxMeta": triggers.MaxEmissionBytes}
	if f.cfg.Source != "" {
		m["source"], m["file"] = f.cfg.Source, filepath.Join(dir, inline)
	}
	if texts := f.code.Changed(); texts != nil {
		m["files"] = texts
	}
	f.mu.Lock()
	if f.kept != nil {
		m["packages"] = f.kept.Dir
	}
	f.mu.Unlock()
	hello, err := json.Marshal(m)
	return [][]byte{script, hello}, err
}

// command makes the command of a worker. What has to be installed is.
func (f *function) command(ctx context.Context) (*exec.Cmd, error) {
	name := f.cfg.Node
	if name == "" {
		name = defaultNode
	}
	program, err := process.Find(name, f.root)
	if err != nil {
		return nil, triggers.Errorf(triggers.SystemError, "%w", err)
	}
	own, err := worker.Environ(f.cfg.Env, f.env.Secret)
	if err != nil {
		return nil, err
	}
	env := process.Environ(f.cfg.InheritEnv...)
	wanted, err := f.wanted()
	if err != nil {
		return nil, err
	}
	if wanted != nil {
		modules, err := f.modules(ctx, program, wanted)
		if err != nil {
			return nil, err
		}
		env = append(env, "NODE_PATH="+modules)
	}
	dir, _, _ := f.cfg.source(f.root)
	return &exec.Cmd{Path: program, Args: []string{program, "-e", boot}, Dir: dir, Env: append(env, own...)}, nil
}

// code are the files and directories with code.
func (c *Config) code(dir string) []string {
	switch {
	case c.Dir != "":
		return []string{join(dir, c.Dir)}
	case c.File != "":
		file := join(dir, c.File)
		return append([]string{file}, worker.Near(file, "*.js", "*.cjs", "*.mjs", packageFile)...) // what it may require
	}
	return nil
}

// files are what the function is made from.
func (c *Config) files(dir string) []string {
	files := c.code(dir)
	if c.Package != "" {
		files = append(files, join(dir, c.Package), filepath.Join(filepath.Dir(join(dir, c.Package)), lockFile))
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
			ck.Errorf("file", specs.CodeInvalidValue, "write dir: "+c.File+" and handler: ./file.js", "handler is required, source path %s is a directory", c.File)
		}
	case c.Dir != "":
		path, file, _ := c.source(dir)
		if info, err := os.Stat(path); err != nil {
			missing("dir", c.Dir, err)
		} else if !info.IsDir() {
			ck.Errorf("dir", specs.CodeInvalidValue, "write file: "+c.Dir, "%s is no directory", c.Dir)
		} else if _, err := os.Stat(file); err != nil {
			ck.Errorf("handler", specs.CodeInvalidValue, "a file below "+c.Dir, "there is no file %s in %s", c.Handler, c.Dir)
		}
	}
	if c.Package != "" {
		if _, err := c.packages(dir); err != nil {
			missing("package", c.Package, err)
		}
	}
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
		ck.Errorf("", specs.CodeInvalidValue, "file: hello.js, dir: functions or source: the code itself", "the code must be given in one way")
	}
	switch {
	case c.Dir != "" && c.Handler == "":
		ck.Errorf("", specs.CodeMissingKey, "write handler: ./file.js", "handler is required, source path %s is a directory", c.Dir)
	case c.Dir != "" && !filepath.IsLocal(c.Handler):
		ck.Errorf("handler", specs.CodeInvalidValue, "a path such as ./hello.js", "%s is not below %s", c.Handler, c.Dir)
	case c.Dir == "" && c.Handler != "" && filepath.Base(c.Handler) != filepath.Base(c.File):
		ck.Errorf("handler", specs.CodeInvalidValue, "remove it, or write dir", "the function is what %s exports", "the file")
	}
	if c.Package != "" && len(c.Dependencies) > 0 {
		ck.Errorf("dependencies", specs.CodeInvalidValue, "keep one of them", "package is given, and dependencies too")
	}
	for name, version := range c.Dependencies {
		if name == "" || version == "" || strings.ContainsAny(name, " \\\"") || strings.HasPrefix(name, ".") {
			ck.Errorf("dependencies."+name, specs.CodeInvalidValue, "for example lodash: ^4.17.21", "it is no package with a version")
		}
	}
	worker.CheckEnv(ck, c.Env, c.InheritEnv)
}
