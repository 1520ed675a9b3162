// Package exec owns the function kind `exec`: it runs a program for each
// call, without a shell, in a process group of its own that does not outlive
// the call, or keeps programs running that take calls as lines. On Linux, processes that left the group are found by their
// environment and killed as well when the call ran out of time or they hold
// its output open. It must not know queues, retries or sensors.
package exec

import (
	"bytes"
	"context"
	_ "embed" // for the example
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/program"
	"github.com/sensor-engine/engine/triggers/worker"
)

// Config is the config of an `exec` function.
type Config struct {
	Command    []string                      `yaml:"command" required:"true" doc:"Program and arguments. No shell is involved and there are no templates: event data reaches the program on stdin and in variables only. A program with a '/' is relative to this file, others are looked up in PATH." example:"[./resize.sh, --fast]"`
	Env        map[string]specs.TextOrSecret `yaml:"env" doc:"Environment variables; a value is text with ${ expr } or a secret."`
	InheritEnv []string                      `yaml:"inheritEnv" doc:"Variables of the engine that the program gets too, besides PATH, HOME, TZ and LANG."`
	Dir        string                        `yaml:"dir" doc:"Working directory, relative to this file; default: this file's directory."`
	Stdin      string                        `yaml:"stdin" enum:"data,event,input,none" doc:"What the program reads: the event's data untouched, the whole event as CloudEvents JSON, the trigger's input as JSON, or nothing. Default: the input if there is one, else data."`
	Mode       string                        `yaml:"mode" enum:"call,worker" doc:"Whether the program is started for each call, or once, as a worker that gets calls as lines of JSON; default call."`
	Workers    int                           `yaml:"workers" min:"1" max:"1000" doc:"With mode worker: most processes; each makes one call at a time, further calls wait. Default: the function's concurrency."`
	Idle       specs.Duration                `yaml:"idle" min:"1s" doc:"With mode worker: how long a process waits for a call before it is stopped; default 5m."`
}

// modeWorker is the choice of Config.Mode that is not the default.
const modeWorker = "worker"

const (
	// grace is the time between SIGTERM and SIGKILL.
	grace = 2 * time.Second
	// pipeDelay is how long output is awaited after the whole group is dead,
	// because a process that left the group may hold the pipes.
	pipeDelay = time.Second
)

//go:embed example.yaml
var example string

// Factory returns the kind `exec`.
func Factory() triggers.Factory {
	gate := worker.NewGate()
	return triggers.Factory{
		Type: specs.Type{
			Name: "exec",
			Doc:  "Runs a program with the event on stdin and in CE_* variables; its stdout is the output, its stderr the log. Or keeps it running and sends it calls as lines of JSON.",
			New:  func() any { return &Config{} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			if cfg := config.(*Config); cfg.Mode == modeWorker {
				return newWorkers(cfg, env, gate)
			}
			return newFunction(config.(*Config), env)
		},
		Files:  func(config any, dir string) []string { return config.(*Config).files(dir) },
		Grants: true,
	}
}

type function struct {
	cfg *Config
	// base is the part of the environment that is the same for every call.
	base []string
	dir  string
	// root is the directory of the spec's file, to which the program is relative.
	root string
}

func newFunction(cfg *Config, env triggers.Env) (*function, error) {
	if len(cfg.Command) == 0 || cfg.Command[0] == "" {
		return nil, errors.New("command is empty")
	}
	root, err := filepath.Abs(env.Dir)
	if err != nil {
		return nil, err
	}
	f := &function{cfg: cfg, root: root, dir: root, base: process.Environ(cfg.InheritEnv...)}
	if cfg.Dir != "" {
		f.dir = triggers.Join(root, cfg.Dir)
	}
	for name, v := range cfg.Env {
		if _, constant := triggers.Literal(v.Text); !constant && sensitive(name) {
			return nil, fmt.Errorf("env.%s: %s", name, sensitiveText)
		}
	}
	return f, nil
}

// Invoke runs the program. At ctx's end the group gets SIGTERM, two seconds
// later SIGKILL; so Invoke returns a little after ctx when the program
// insists.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	path, err := process.Find(f.cfg.Command[0], f.root)
	if err != nil {
		return triggers.Result{}, &triggers.PermanentError{Err: err}
	}
	env, err := f.environ(c)
	if err != nil {
		return triggers.Result{}, err
	}
	in, err := program.Stdin(f.cfg.Stdin, c)
	if err != nil {
		return triggers.Result{}, err
	}
	stdout, stderr := &program.Capped{Limit: triggers.MaxOutput}, &program.Capped{Limit: triggers.MaxLogs}
	cmd := &exec.Cmd{
		Path: path, Args: f.cfg.Command, Dir: f.dir, Env: env,
		Stdout: stdout, Stderr: stderr, WaitDelay: pipeDelay,
	}
	if len(in) > 0 {
		cmd.Stdin = bytes.NewReader(in)
	}
	p, err := process.Start(cmd, nil)
	if err != nil {
		return triggers.Result{}, f.startError(err)
	}
	stop := context.AfterFunc(ctx, func() { p.Terminate(grace) })
	<-p.Done()
	interrupted := !stop()
	if (interrupted || errors.Is(p.Err(), exec.ErrWaitDelay)) && c.Key != "" {
		process.Sweep("ENGINE_KEY="+c.Key, "ENGINE_ATTEMPT="+strconv.Itoa(c.Attempt))
	}

	res := triggers.Result{
		Output: stdout.Kept, ContentType: triggers.MediaType(stdout.Kept), Truncated: stdout.Cut,
		Logs: triggers.Logs{Stderr: stderr.Kept, Truncated: stderr.Cut},
	}
	if p.State() == nil {
		return res, fmt.Errorf("%s: %w", f.cfg.Command[0], p.Err())
	}
	code, signal := process.Outcome(p.State())
	if res.Status = "exit " + strconv.Itoa(code); signal != "" {
		res.Status = "killed by " + signal
	}
	switch {
	case interrupted:
		return res, fmt.Errorf("%s did not end in time (%s): %w", f.cfg.Command[0], res.Status, ctx.Err())
	case code != 0 || signal != "":
		return res, fmt.Errorf("%s: %s%s", f.cfg.Command[0], res.Status, program.Excerpt(stderr.Kept))
	}
	return res, nil
}

// startError tells what the kernel's short answer means for the spec.
func (f *function) startError(err error) error {
	name := f.cfg.Command[0]
	if st, e := os.Stat(f.dir); e != nil || !st.IsDir() {
		return triggers.Permanentf("%s: working directory %s is missing; create it or change dir", name, f.dir)
	}
	text, final := process.StartError(err, f.root)
	if final {
		return triggers.Permanentf("%s: %s", name, text)
	}
	return fmt.Errorf("%s: cannot start: %w", name, err)
}
