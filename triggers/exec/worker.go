package exec

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/process"
	"github.com/sensor-engine/engine/triggers/worker"
)

// workers is a function whose program takes one call after the other.
type workers struct {
	*worker.Pool
	cfg *Config
	env triggers.Env
}

func newWorkers(cfg *Config, env triggers.Env, gate *worker.Gate) (*workers, error) {
	if len(cfg.Command) == 0 || cfg.Command[0] == "" {
		return nil, errors.New("command is empty")
	}
	env, err := env.Absolute()
	if err != nil {
		return nil, err
	}
	w := &workers{cfg: cfg, env: env}
	w.Pool = worker.NewPool(worker.Options{
		Command: w.command, Lines: true, Size: cmp.Or(cfg.Workers, env.Concurrency), Idle: cfg.Idle.D(), Gate: gate, Logger: env.Logger,
	})
	w.Warm()
	return w, nil
}

func (w *workers) command(context.Context) (*exec.Cmd, error) {
	program, err := process.Find(w.cfg.Command[0], w.env.Dir)
	if err != nil {
		return nil, triggers.Errorf(triggers.SystemError, "%w", err)
	}
	own, err := worker.Environ(w.cfg.Env, w.env.Secret)
	if err != nil {
		return nil, err
	}
	// Python would keep its answers until there are more.
	env := append(process.Environ(w.cfg.InheritEnv...), "PYTHONUNBUFFERED=1")
	return &exec.Cmd{Path: program, Args: w.cfg.Command, Dir: w.cfg.dir(w.env.Dir), Env: append(env, own...)}, nil
}

// dir is the working directory.
func (c *Config) dir(root string) string {
	if c.Dir == "" {
		return root
	}
	return triggers.Join(root, c.Dir)
}

// files are the files that a program which keeps running was made from, as far
// as its command names them.
func (c *Config) files(root string) []string {
	if c.Mode != modeWorker {
		return nil
	}
	var files []string
	for i, arg := range c.Command {
		path := triggers.Join(c.dir(root), arg)
		if i == 0 {
			path = triggers.Join(root, arg)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			files = append(files, path)
		}
	}
	return files
}
