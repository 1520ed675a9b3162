package exec

import (
	"fmt"
	"testing"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

func TestContract(t *testing.T) {
	sh := func(script string) string { return fmt.Sprintf("command: [sh, -c, %q]", script) }
	triggertest.Run(t, triggertest.Suite{
		Factory:   Factory(),
		OK:        "command: [cat]\nenv: {ID: '${ data.id }', TOKEN: {secret: {name: a, key: b}}}",
		Slow:      "command: [sleep, '1000']",
		Permanent: "command: [./absent]",
		Retryable: sh("exit 1"),
		Key:       "command: [printenv, ENGINE_KEY]",
		Length:    "command: [wc, -c]",
		Huge:      sh("head -c 67108864 /dev/zero"),
		Text:      "command: [cat]",
		Crash: map[string]string{
			triggertest.BeforeReading: sh("kill -9 $$"),
			triggertest.WhileReading:  sh("head -c 1000 >/dev/null; kill -9 $$"),
			triggertest.AfterReading:  sh("cat >/dev/null; kill -9 $$"),
			triggertest.WhileWriting:  sh("cat >/dev/null; printf '{\"a\":'; kill -9 $$"),
			triggertest.AfterWriting:  sh("cat >/dev/null; printf '{}'; kill -9 $$"),
		},
		Secrets: map[string]string{"a/b": "canary-token"},
		Env:     triggers.Env{Dir: t.TempDir()},
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
