// Package exec owns the function kind `exec`: it runs a program for each
// call, without a shell, in a process group of its own that does not outlive
// the call. On Linux, processes that left the group are found by their
// environment and killed as well when the call ran out of time or they hold
// its output open. It must not know queues, retries or sensors.
package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
)

// Config is the config of an `exec` function.
type Config struct {
	Command    []string                      `yaml:"command" required:"true" doc:"Program and arguments. No shell is involved and there are no templates: event data reaches the program on stdin and in variables only. A program with a '/' is relative to this file, others are looked up in PATH." example:"[./resize.sh, --fast]"`
	Env        map[string]specs.TextOrSecret `yaml:"env" doc:"Environment variables; a value is text with ${ expr } or a secret."`
	InheritEnv []string                      `yaml:"inheritEnv" doc:"Variables of the engine that the program gets too, besides PATH, HOME, TZ and LANG."`
	Dir        string                        `yaml:"dir" doc:"Working directory, relative to this file; default: this file's directory."`
	Stdin      string                        `yaml:"stdin" enum:"data,event,input,none" doc:"What the program reads: the event's data untouched, the whole event as CloudEvents JSON, the trigger's input as JSON, or nothing. Default: the input if there is one, else data."`
}

// Choices of Config.Stdin.
const (
	stdinData  = "data"
	stdinEvent = "event"
	stdinInput = "input"
	stdinNone  = "none"
)

const (
	// grace is the time between SIGTERM and SIGKILL.
	grace = 2 * time.Second
	// pipeDelay is how long output is awaited after the whole group is dead,
	// because a process that left the group may hold the pipes.
	pipeDelay = time.Second
	// maxExcerpt is how much of stderr an error repeats, in bytes.
	maxExcerpt = 200
)

// Factory returns the kind `exec`.
func Factory() triggers.Factory {
	return triggers.Factory{
		Type: specs.Type{
			Name: "exec",
			Doc:  "Runs a program with the event on stdin and in CE_* variables; its stdout is the output, its stderr the log.",
			New:  func() any { return &Config{} },
		},
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return newFunction(config.(*Config), env)
		},
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
	vars []string // names of cfg.Env, sorted
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
		f.dir = join(root, cfg.Dir)
	}
	for name, v := range cfg.Env {
		if _, constant := triggers.Literal(v.Text); !constant && sensitive(name) {
			return nil, fmt.Errorf("env.%s: %s", name, sensitiveText)
		}
		f.vars = append(f.vars, name)
	}
	slices.Sort(f.vars)
	return f, nil
}

func join(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// Invoke runs the program. At ctx's end the group gets SIGTERM, two seconds
// later SIGKILL; so Invoke returns a little after ctx when the program
// insists.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	program, err := process.Find(f.cfg.Command[0], f.root)
	if err != nil {
		return triggers.Result{}, &triggers.PermanentError{Err: err}
	}
	env, err := f.environ(c)
	if err != nil {
		return triggers.Result{}, err
	}
	in, err := f.stdin(c)
	if err != nil {
		return triggers.Result{}, err
	}
	stdout, stderr := &capped{limit: triggers.MaxOutput}, &capped{limit: triggers.MaxLogs}
	cmd := &exec.Cmd{
		Path: program, Args: f.cfg.Command, Dir: f.dir, Env: env,
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
		Output: stdout.kept, ContentType: contentType(stdout.kept), Truncated: stdout.cut,
		Logs: triggers.Logs{Stderr: stderr.kept, Truncated: stderr.cut},
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
		return res, fmt.Errorf("%s: %s%s", f.cfg.Command[0], res.Status, excerpt(stderr.kept))
	}
	return res, nil
}

// excerpt is the last line of a log, fit for one line of another.
func excerpt(log []byte) string {
	line := bytes.TrimSpace(log)
	if i := bytes.LastIndexByte(line, '\n'); i >= 0 {
		line = line[i+1:]
	}
	more := ""
	if len(line) > maxExcerpt {
		// Cut between words: half a secret could not be masked any more.
		line, more = line[:max(bytes.LastIndexByte(line[:maxExcerpt], ' '), 0)], "…"
	}
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(line), "?"))
	if s = strings.TrimSpace(s); s == "" {
		return ""
	}
	return ": " + s + more
}

// contentType tells JSON from text from anything else.
func contentType(out []byte) string {
	switch {
	case len(bytes.TrimSpace(out)) == 0:
		return ""
	case bus.ValidJSON(out):
		return "application/json"
	case utf8.Valid(out) && bytes.IndexByte(out, 0) < 0:
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
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

// stdin returns what the program reads.
func (f *function) stdin(c *triggers.Call) ([]byte, error) {
	what := f.cfg.Stdin
	if what == "" {
		what = stdinData
		if c.HasInput {
			what = stdinInput
		}
	}
	switch {
	case what == stdinInput && c.HasInput:
		b, err := json.Marshal(c.Input)
		if err != nil {
			return nil, triggers.Permanentf("input is not JSON: %w", err)
		}
		return b, nil
	case what == stdinData && c.Event != nil:
		return c.Event.Data, nil
	case what == stdinEvent && c.Event != nil:
		return structured(c.Event)
	}
	return nil, nil
}

// capped keeps the first limit bytes and takes the rest without keeping it.
type capped struct {
	limit int
	kept  []byte
	cut   bool
}

// Sizes of what is kept: most programs print little, and one that prints more
// than is kept leaves little behind for the collector. Both limits are reached
// exactly.
const (
	firstBuffer = 4 << 10
	growth      = 4
)

// Write keeps what still fits.
func (w *capped) Write(p []byte) (int, error) {
	n := min(len(p), w.limit-len(w.kept))
	if need := len(w.kept) + n; need > cap(w.kept) {
		size := max(growth*cap(w.kept), firstBuffer)
		for size < need {
			size *= growth
		}
		w.kept = append(make([]byte, 0, size), w.kept...)
	}
	w.kept = append(w.kept, p[:n]...)
	w.cut = w.cut || n < len(p)
	return len(p), nil
}
