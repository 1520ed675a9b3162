// Package all lists the function kinds the program is built with. It must
// hold nothing else.
package all

import (
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/email"
	"github.com/sensor-engine/engine/triggers/exec"
	"github.com/sensor-engine/engine/triggers/grpc"
	"github.com/sensor-engine/engine/triggers/http"
	"github.com/sensor-engine/engine/triggers/log"
	"github.com/sensor-engine/engine/triggers/nats"
	"github.com/sensor-engine/engine/triggers/node"
	"github.com/sensor-engine/engine/triggers/publish"
	"github.com/sensor-engine/engine/triggers/python"
	"github.com/sensor-engine/engine/triggers/slack"
	"github.com/sensor-engine/engine/triggers/wasm"
)

// All returns every function kind, by name.
func All() triggers.Registry {
	return triggers.Registry{
		email.Factory(),
		exec.Factory(),
		grpc.Factory(),
		http.Factory(),
		log.Factory(),
		nats.Factory(),
		node.Factory(),
		publish.Factory(),
		python.Factory(),
		slack.Factory(),
		wasm.Factory(),
	}
}
