// Package node owns the function kind `node`: a JavaScript function of two
// arguments in a file, a directory or the spec itself, in warm worker processes.
// It owns the interpreter, the directory with the function's packages and the
// script of the workers. It must not know queues, retries or sensors.
package node

import (
	"context"
	_ "embed"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/worker"
)

// Config is the config of a `node` function.
type Config struct {
	File         string            `yaml:"file" doc:"JavaScript file whose module.exports is the function, relative to this file; of an ES module, the default export or one named handle." example:"hello.js"`
	Dir          string            `yaml:"dir" doc:"Directory with the function, relative to this file; handler says in which file." example:"functions"`
	Source       string            `yaml:"source" doc:"The code itself, which sets module.exports or is an ES module."`
	Handler      string            `yaml:"handler" doc:"File below dir with the function, as for file." example:"./hello.js"`
	Package      string            `yaml:"package" doc:"Path of a package.json, relative to this file, whose dependencies npm installs once; with the package-lock.json beside it, if there is one." example:"package.json"`
	Dependencies map[string]string `yaml:"dependencies" doc:"Packages and their versions, instead of package." example:"{lodash: ^4.17.21}"`
	Node         string            `yaml:"node" doc:"Interpreter, 16 or later: looked up in PATH, or with a / relative to this file; default node." example:"/opt/node22/bin/node"`

	worker.Config `yaml:",inline"`
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
	shared := &shared{gate: worker.NewGate()}
	return triggers.Factory{
		Type: specs.Type{
			Name: "node",
			Doc:  "Calls a JavaScript function, module.exports = function (context, payload), in Node processes that stay warm.",
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

// shared is what all functions have together.
type shared struct {
	gate    *worker.Gate
	library worker.Library
}

// function is one function and its workers.
type function struct {
	*worker.Pool
	cfg       *Config
	env       triggers.Env     // its directories are absolute
	code      *worker.Snapshot // nil for none
	installed worker.Installed[packages]
}

func newFunction(cfg *Config, env triggers.Env, shared *shared) (*function, error) {
	env, err := env.Absolute()
	if err != nil {
		return nil, err
	}
	f := &function{cfg: cfg, env: env}
	f.code = shared.library.Take(cfg.code(env.Dir), func(name string) bool {
		return slices.Contains([]string{".js", ".cjs", ".mjs", ".json"}, filepath.Ext(name))
	}, modulesDir)
	o := cfg.Options(env, shared.gate)
	o.Command, o.Hello = f.command, f.hello
	f.Pool = worker.NewPool(o)
	f.Warm()
	return f, nil
}

// Close ends the processes and waits for their end.
func (f *function) Close() error { return f.installed.Close(f.Pool.Close()) }

// source is where the code is: the directory it belongs to, the file, "" when it
// is in the spec, and how that is called.
func (c *Config) source(root string) (dir, file, name string) {
	switch {
	case c.Dir != "":
		dir = triggers.Join(root, c.Dir)
		file = triggers.Join(dir, c.Handler)
		return dir, file, filepath.Clean(c.Handler)
	case c.File != "":
		file = triggers.Join(root, c.File)
		return filepath.Dir(file), file, filepath.Base(file)
	}
	return root, "", "the code"
}

// hello tells a worker what to load.
func (f *function) hello() ([][]byte, error) {
	dir, file, name := f.cfg.source(f.env.Dir)
	m := map[string]any{"path": dir, "file": file, "name": name, "maxOutput": triggers.MaxOutput, "maxMeta": triggers.MaxEmissionBytes}
	if f.cfg.Source != "" {
		m["source"], m["file"] = f.cfg.Source, filepath.Join(dir, inline)
	}
	if texts := f.code.Changed(); texts != nil {
		m["files"] = texts
	}
	if dir := f.installed.Dir(); dir != "" {
		m["packages"] = dir
	}
	hello, err := json.Marshal(m)
	return [][]byte{script, hello}, err
}

// command makes the command of a worker. What has to be installed is.
func (f *function) command(ctx context.Context) (*exec.Cmd, error) {
	name := f.cfg.Node
	if name == "" {
		name = defaultNode
	}
	program, err := process.Find(name, f.env.Dir)
	if err != nil {
		return nil, triggers.Errorf(triggers.SystemError, "%w", err)
	}
	own, err := worker.Environ(f.cfg.Env, f.env.Secret)
	if err != nil {
		return nil, err
	}
	env := process.Environ(f.cfg.InheritEnv...)
	wanted, err := f.installed.Wanted(func() (*packages, error) { return f.cfg.packages(f.env.Dir) })
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
	dir, _, _ := f.cfg.source(f.env.Dir)
	return &exec.Cmd{Path: program, Args: []string{program, "-e", boot}, Dir: dir, Env: append(env, own...)}, nil
}

// code are the files and directories with code.
func (c *Config) code(dir string) []string {
	return c.where().Paths(dir, "*.js", "*.cjs", "*.mjs", packageFile)
}

// where says where the code is.
func (c *Config) where() worker.Code { return worker.Code{File: c.File, Dir: c.Dir, Source: c.Source} }

// files are what the function is made from.
func (c *Config) files(dir string) []string {
	files := c.code(dir)
	if c.Package != "" {
		files = append(files, triggers.Join(dir, c.Package), filepath.Join(filepath.Dir(triggers.Join(dir, c.Package)), lockFile))
	}
	return files
}

// check reports what is wrong with the files.
func (c *Config) check(dir string, ck *specs.Checker) {
	if c.where().Check(ck, dir, "./file.js") {
		_, file, _ := c.source(dir)
		if _, err := os.Stat(file); err != nil {
			ck.Errorf("handler", specs.CodeInvalidValue, "a file below "+c.Dir, "there is no file %s in %s", c.Handler, c.Dir)
		}
	}
	if c.Package != "" {
		if _, err := c.packages(dir); err != nil {
			triggers.Unreadable(ck, "package", c.Package, err)
		}
	}
}

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	c.where().Validate(ck, "file: hello.js, dir: functions or source: the code itself")
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
