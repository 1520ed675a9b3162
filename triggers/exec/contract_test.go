package exec

import (
	"testing"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

func TestContract(t *testing.T) {
	triggertest.Run(t, triggertest.Suite{
		Factory:   Factory(),
		OK:        "command: [cat]\nenv: {ID: '${ data.id }', TOKEN: {secret: {name: a, key: b}}}",
		Slow:      "command: [sleep, '1000']",
		Permanent: "command: [./absent]",
		Retryable: "command: [sh, -c, 'exit 1']",
		Secrets:   map[string]string{"a/b": "canary-token"},
		Env:       triggers.Env{Dir: t.TempDir()},
	})
}

func TestValidate(t *testing.T) {
	triggertest.Validate(t, Factory(), map[string]string{
		"command: []":                                         "missing-key",
		"command: ['']":                                       "the program is empty",
		"command: [echo, '${ data.id }']":                     "command has no templates",
		"command: [sh, -c, 'echo ${HOME}']":                   "",
		"command: [env]\nenv: {LD_PRELOAD: '${ data.x }'}":    "decides what code runs",
		"command: [env]\nenv: {PATH: /bin, A: '${ data.x }'}": "",
		"command: [env]\nenv: {'A=B': c}":                     "is no name of a variable",
		"command: [env]\nstdin: body":                         "unknown-value",
		"command: [env]\nworkers: 2":                          "the program is started for each call",
		"command: [env]\nidle: 2s":                            "the program is started for each call",
		"command: [env]\nmode: worker\nworkers: 2\nidle: 2s":  "",
		"command: [env]\nmode: worker\nstdin: data":           "a worker reads lines of JSON",
		"command: [env]\nmode: worker\nenv: {A: '${ data }'}": "variables are set when a worker starts",
	})
}
