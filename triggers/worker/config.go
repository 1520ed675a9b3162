package worker

import (
	"cmp"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Config is the part of a config that is about the processes of a function in a
// language.
type Config struct {
	Workers    int                           `yaml:"workers" min:"1" max:"1000" doc:"Most processes; each makes one call at a time, further calls wait. Default: the function's concurrency." example:"2"`
	Idle       specs.Duration                `yaml:"idle" min:"1s" doc:"How long a process waits for a call before it is stopped; default 5m." example:"1h"`
	Env        map[string]specs.TextOrSecret `yaml:"env" doc:"Environment variables of the processes; a value is text or a secret, without expressions. What is secret belongs in the function's secrets."`
	InheritEnv []string                      `yaml:"inheritEnv" doc:"Variables of the engine that the processes get too, besides PATH, HOME, TZ and LANG." example:"[HTTPS_PROXY]"`
}

// Options are those that follow from the config and env. The caller says what is
// run.
func (c *Config) Options(env triggers.Env, gate *Gate) Options {
	return Options{Size: cmp.Or(c.Workers, env.Concurrency), Idle: c.Idle.D(), Gate: gate, Logger: env.Logger}
}
