package exec

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/worker"
)

// workers is a function whose program takes one call after the other.
type workers struct {
	cfg  *Config
	env  triggers.Env
	root string
	pool *worker.Pool
}

func newWorkers(cfg *Config, env triggers.Env, gate worker.Gate) (*workers, error) {
	if len(cfg.Command) == 0 || cfg.Command[0] == "" {
		return nil, errors.New("command is empty")
	}
	root, err := filepath.Abs(env.Dir)
	if err != nil {
		return nil, err
	}
	w := &workers{cfg: cfg, env: env, root: root}
	size := env.Concurrency
	if cfg.Workers > 0 {
		size = cfg.Workers
	}
	w.pool = worker.NewPool(worker.Options{Command: w.command, Lines: true, Size: size, Idle: cfg.Idle.D(), Gate: gate, Logger: env.Logger})
	w.pool.Warm()
	return w, nil
}

func (w *workers) command(context.Context) (*exec.Cmd, error) {
	program, err := process.Find(w.cfg.Command[0], w.root)
	if err != nil {
		return nil, triggers.Errorf(triggers.SystemError, "%w", err)
	}
	own, err := worker.Environ(w.cfg.Env, w.env.Secret)
	if err != nil {
		return nil, err
	}
	// Python would keep its answers until there are more.
	env := append(process.Environ(w.cfg.InheritEnv...), "PYTHONUNBUFFERED=1")
	return &exec.Cmd{Path: program, Args: w.cfg.Command, Dir: w.cfg.dir(w.root), Env: append(env, own...)}, nil
}

// Invoke sends the call to a process that runs. When ctx ends, that process is
// killed.
func (w *workers) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	return w.pool.Invoke(ctx, c)
}

// Prepare waits for the first process.
func (w *workers) Prepare(ctx context.Context) error { return w.pool.Prepare(ctx) }

// Ready tells why the function cannot be called, nil when it can, or nobody
// knows yet.
func (w *workers) Ready() error { return w.pool.Failure() }

// Processes is how many processes live or start.
func (w *workers) Processes() int { return w.pool.Workers() }

// Close ends the processes and waits for their end.
func (w *workers) Close() error { return w.pool.Close() }

// dir is the working directory.
func (c *Config) dir(root string) string {
	if c.Dir == "" {
		return root
	}
	return join(root, c.Dir)
}

// files are the files that a program which keeps running was made from, as far
// as its command names them.
func (c *Config) files(root string) []string {
	if c.Mode != modeWorker {
		return nil
	}
	var files []string
	for i, arg := range c.Command {
		path := join(c.dir(root), arg)
		if i == 0 {
			path = join(root, arg)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, path)
		}
	}
	return files
}
