// Package wasm owns the function kind `wasm`: it runs a WASI preview 1 command
// in a sandbox, a new instance for each call, with what the spec grants it and
// nothing else: no network, no files but those of its mounts, bounded memory,
// and no time after its deadline. It must not know queues, retries or sensors.
package wasm

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed" // for the example
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	wasys "github.com/tetratelabs/wazero/sys"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/program"
	"github.com/sensor-engine/engine/triggers/worker"
)

// Config is the config of a `wasm` function.
type Config struct {
	File   string                        `yaml:"file" required:"true" doc:"The module, a WASI preview 1 command (wasm32-wasip1), relative to this file." example:"filter.wasm"`
	Args   []string                      `yaml:"args" doc:"Arguments after the program's name. They have no templates: event data reaches the program on stdin and in variables." example:"[--strict]"`
	Env    map[string]specs.TextOrSecret `yaml:"env" doc:"Environment variables; a value is text with ${ expr } or a secret. Nothing of the engine's own environment is passed on."`
	Stdin  string                        `yaml:"stdin" enum:"data,event,input,none" doc:"What the program reads: the event's data untouched, the whole event as CloudEvents JSON, the trigger's input as JSON, or nothing. Default: the input if there is one, else data."`
	Mode   string                        `yaml:"mode" enum:"call,worker" doc:"Whether stdin and stdout are what the call is about, or the call comes as a line of JSON and the answer is one, as with workers of exec; default call. Either way each call is an instance of its own, whose stdin ends."`
	Memory specs.Size                    `yaml:"memory" doc:"Most memory of one call, up to 4GiB; default 64MiB. Concurrent calls have a memory each."`
	Mounts []Mount                       `yaml:"mounts" doc:"Directories that the program may use; without any it has no files."`
}

// Mount is a directory that a program may use.
type Mount struct {
	Host     string `yaml:"host" required:"true" doc:"The directory, relative to this file. What lies outside cannot be reached, not by links either."`
	Guest    string `yaml:"guest" required:"true" doc:"Where the program sees it." example:"/data"`
	ReadOnly *bool  `yaml:"readOnly" doc:"Whether the program may only read; default true. What it writes has no limit but the disk."`
}

func (m Mount) readOnly() bool { return m.ReadOnly == nil || *m.ReadOnly }

const (
	modeCall   = "call"
	modeWorker = "worker"

	defaultMemory = 64 << 20
	maxMemory     = 4 << 30
	// maxTrace is how many lines of a stack are kept.
	maxTrace = 32
)

//go:embed example.yaml
var example string

// Factory returns the kind `wasm`. Functions of one Factory share what they
// have compiled.
func Factory() triggers.Factory {
	shared := newLibrary()
	return triggers.Factory{
		Type: specs.Type{
			Name: "wasm",
			Doc:  "Runs a WebAssembly program (WASI preview 1) in a sandbox, with the event on stdin and in CE_* variables; its stdout is the output, its stderr the log.",
			New:  func() any { return &Config{Mode: modeCall, Memory: defaultMemory} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(shared, config.(*Config), env), nil
		},
		Check:  check,
		Files:  func(config any, dir string) []string { return []string{triggers.Join(dir, config.(*Config).File)} },
		Grants: true,
	}
}

type function struct {
	cfg    *Config
	dir    string
	name   string // of the module, for people
	limit  uint64
	base   wazero.ModuleConfig
	module *module // nil when broken
	broken error
}

func newFunction(shared *library, cfg *Config, env triggers.Env) *function {
	f := &function{cfg: cfg, dir: env.Dir, name: filepath.Base(cfg.File), limit: cfg.limit()}
	f.base = wazero.NewModuleConfig().WithName("").WithStartFunctions().WithArgs(append([]string{f.name}, cfg.Args...)...).
		WithSysWalltime().WithSysNanotime().WithRandSource(rand.Reader)
	code, err := load(triggers.Join(env.Dir, cfg.File), f.limit)
	if err != nil {
		f.broken = err
		return f
	}
	log, dir := env.Logger, ""
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if env.Data != "" {
		dir = filepath.Join(env.Data, "wasm")
	}
	f.module = shared.open(code, dir, log)
	return f
}

func (c *Config) limit() uint64 {
	if c.Memory <= 0 {
		return defaultMemory
	}
	return uint64(c.Memory)
}

// load reads a module that can be run with limit bytes of memory.
func load(path string, limit uint64) ([]byte, error) {
	r, err := open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	code, err := io.ReadAll(r)
	if err != nil {
		return nil, triggers.WithoutPath(err)
	}
	o, err := readOutline(bytes.NewReader(code))
	if err == nil {
		err = o.check(limit)
	}
	if err != nil {
		return nil, err
	}
	return capTables(code)
}

// open opens the file of a module. Its errors do not repeat the path.
func open(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, triggers.WithoutPath(err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, errors.New("this is no file")
	case info.Size() > maxFile:
		return nil, fmt.Errorf("the module has %d MiB, and %d are the most", info.Size()>>20, maxFile>>20)
	}
	r, err := os.Open(path)
	return r, triggers.WithoutPath(err)
}

// Close frees the module when nobody else uses it.
func (f *function) Close() error {
	if f.module != nil {
		f.module.close()
	}
	return nil
}

// Prepare waits until the module is compiled.
func (f *function) Prepare(ctx context.Context) error {
	if f.module == nil || f.module.made() {
		return nil
	}
	select {
	case <-f.module.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ready tells why the module cannot be run, nil when it can or is still being
// compiled.
func (f *function) Ready() error {
	err := f.broken
	if f.module != nil && f.module.made() {
		err = f.module.err
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", f.cfg.File, err)
	}
	return err
}

// Invoke runs the program in a new instance. It ends with ctx.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	if f.broken != nil {
		return triggers.Result{}, &triggers.PermanentError{Err: f.Ready()}
	}
	if err := f.module.wait(ctx); err != nil {
		if err = fmt.Errorf("%s: %w", f.cfg.File, err); ctx.Err() == nil {
			err = &triggers.PermanentError{Err: err}
		}
		return triggers.Result{}, err
	}
	env, err := program.Environ(c, f.cfg.Env, nil)
	if err != nil {
		return triggers.Result{}, err
	}
	in, most, err := f.stdin(ctx, c)
	if err != nil {
		return triggers.Result{}, err
	}
	stdout, stderr := &program.Capped{Limit: most}, &program.Capped{Limit: triggers.MaxLogs}
	cfg := f.base.WithStdin(bytes.NewReader(in)).WithStdout(stdout).WithStderr(stderr).WithNanosleep(sleep(ctx))
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		cfg = cfg.WithEnv(name, value)
	}
	if len(f.cfg.Mounts) > 0 {
		fs, closeAll, err := mounts(f.cfg.Mounts, f.dir)
		if err != nil {
			return triggers.Result{}, triggers.Permanentf("mounts: %w", err)
		}
		defer closeAll()
		cfg = cfg.WithFSConfig(fs)
	}
	memory := &memories{limit: f.limit}
	err = f.module.run(experimental.WithMemoryAllocator(ctx, memory), cfg)
	status, err := f.outcome(ctx, err, memory.refused, stderr.Kept)
	res := triggers.Result{Status: status}
	switch {
	case f.cfg.Mode != modeWorker:
		res.Output, res.ContentType, res.Truncated = stdout.Kept, triggers.MediaType(stdout.Kept), stdout.Cut
	case err == nil && stdout.Cut:
		err = triggers.Errorf(triggers.FunctionError, "%s: the answer is longer than %d bytes", f.name, worker.MaxLine)
	case err == nil:
		res, err = worker.Answer(stdout.Kept)
	}
	res.Logs = triggers.Logs{Stderr: stderr.Kept, Truncated: stderr.Cut}
	return res, err
}

// stdin returns what the program reads, and how much of what it writes counts.
func (f *function) stdin(ctx context.Context, c *triggers.Call) (in []byte, most int, err error) {
	if f.cfg.Mode == modeWorker {
		in, err = worker.Line(ctx, c)
		return in, worker.MaxLine, err
	}
	in, err = program.Stdin(f.cfg.Stdin, c)
	return in, triggers.MaxOutput, err
}

// sleep is how a program waits: not beyond ctx.
func sleep(ctx context.Context) wasys.Nanosleep {
	return func(ns int64) {
		t := time.NewTimer(time.Duration(ns))
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// run makes an instance and runs it to its end.
func (m *module) run(ctx context.Context, cfg wazero.ModuleConfig) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = triggers.Errorf(triggers.SystemError, "the sandbox failed: %v", r)
		}
	}()
	instance, err := m.runtime.InstantiateModule(ctx, m.compiled, cfg)
	if err != nil {
		return err
	}
	defer instance.Close(context.WithoutCancel(ctx))
	_, err = instance.ExportedFunction("_start").Call(ctx)
	return err
}

// outcome says in a word how a run ended, and what that means.
func (f *function) outcome(ctx context.Context, err error, refused bool, log []byte) (status string, failure error) {
	exit, exited := errors.AsType[*wasys.ExitError](err)
	switch {
	case err == nil, exited && exit.ExitCode() == 0:
		return "exit 0", nil
	case ctx.Err() != nil:
		return "stopped", fmt.Errorf("%s did not end in time: %w", f.name, ctx.Err())
	}
	more := ""
	if refused {
		more = fmt.Sprintf(" (it was refused more memory than %s)", size(f.limit))
	}
	if exited {
		status = fmt.Sprintf("exit %d", exit.ExitCode())
		return status, triggers.Errorf(triggers.FunctionError, "%s: %s%s%s", f.name, status, more, program.Excerpt(log))
	}
	if e, ok := errors.AsType[*triggers.Error](err); ok {
		return "failed", e
	}
	what, trace, _ := strings.Cut(err.Error(), "\nwasm stack trace:\n")
	what = strings.TrimPrefix(what, "wasm error: ")
	e := triggers.Errorf(triggers.FunctionError, "%s: trap: %s%s%s", f.name, what, more, program.Excerpt(log))
	for line := range strings.Lines(trace) {
		if len(e.Stacktrace) < maxTrace {
			e.Stacktrace = append(e.Stacktrace, strings.TrimSpace(line))
		}
	}
	return "trap: " + what, e
}

func size(n uint64) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
