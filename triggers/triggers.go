// Package triggers owns the contract of functions: what a call is ([Call]),
// what a kind must do ([Function]), how its failures are told apart, the retry
// policy, and how a kind is made known ([Factory]). Each kind has a folder of
// its own below this one and imports this package, specs and bus, never a
// sibling. It must not know queues, sensors or the engine.
package triggers

import (
	"context"
	"log/slog"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
)

// Function does what a trigger asks for. Invoke obeys ctx's deadline and may
// be called from many goroutines. The same call may come twice: Call.Key tells.
// A function that also implements io.Closer is closed when it is replaced and
// its last call has ended. One that may be unable to take calls can have a
// method Ready() error that says why; it must not block.
type Function interface {
	Invoke(ctx context.Context, c *Call) (Result, error)
}

// Preparer is a [Function] that needs time before its first call, to compile
// something for example. Prepare blocks until it can be called, or is not going
// to be, which Invoke then tells; its error is that of ctx. Workers await it
// before the time of a call begins, so that no attempt is lost to it. Where there
// is a version before, this one takes its place when [Contract.Prove] says that it
// has started, or when neither can be called.
type Preparer interface {
	Prepare(ctx context.Context) error
}

// Prover is a [Preparer] for which being prepared says little. Prove waits until
// the function is known to have started, and tells why it does not; its error is
// that of ctx when that ends.
type Prover interface {
	Prove(ctx context.Context) error
}

// Call is one call of a function.
type Call struct {
	// Key is the idempotency key: the same for every attempt and redrive of
	// one firing.
	Key string
	// Attempt counts real calls, from 1.
	Attempt int
	// Sensor, Trigger and Function are names; Function is the function's, or
	// "<sensor>.<trigger>" when it is inline.
	Sensor, Trigger, Function string
	// Event is the last event that contributed to the firing. It is nil when
	// time alone fired it or a person called by hand without one.
	Event *bus.Event
	// Input is the rendered input, or a json.RawMessage that is valid, of a call
	// that no trigger renders; HasInput tells whether there is one.
	Input    any
	HasInput bool
	// Grants are the names of Secrets that the caller adds to those of the
	// function. [Contract] makes Secrets of them.
	Grants []string
	// Secrets are the values the function was granted, by key. They must never
	// appear in results, logs or errors.
	Secrets map[string]string
	// HTTPContext is the JSON object that tells of the HTTP request that waits
	// for the answer, nil when none does.
	HTTPContext []byte
	// Values renders the templates of the config and resolves its secrets.
	Values Values
}

// Values gives a function the values of its config that are known only at the
// time of a call. Secrets must never appear in results, logs or errors.
type Values interface {
	// Text returns the rendered text.
	Text(t specs.Text) (string, error)
	// Template returns the rendered value: nil, bool, int64, float64, string,
	// []any, map[string]any.
	Template(t specs.Template) (any, error)
	// TextOrSecret returns the rendered text or prefix and secret.
	TextOrSecret(t specs.TextOrSecret) (string, error)
	// Secret returns a secret's value.
	Secret(ref specs.SecretRef) (string, error)
}

// Result is what a call gave.
type Result struct {
	// Output is the answer, at most [MaxOutput] bytes, and its media type.
	Output      []byte
	ContentType string
	// Logs is what the function wrote beside its answer.
	Logs Logs
	// Truncated is true when Output was cut.
	Truncated bool
	// Status is a short word for people: "200 OK", "exit 0".
	Status string
	// Events are what the call wants stored when it succeeded; [Contract] sees
	// to that.
	Events []Emission
}

// Logs is what a function wrote to its two streams, each at most [MaxLogs].
type Logs struct {
	Stdout, Stderr []byte
	// Truncated is true when one of them was cut.
	Truncated bool
}

// MaxOutput is the most of an answer that is kept, and MaxLogs of a stream of
// logs, in bytes.
const (
	MaxOutput = 1 << 20
	MaxLogs   = 64 << 10
)

// Host is what the engine gives the functions it makes.
type Host interface {
	// Publish stores an event durably. The caller sets what identifies it.
	Publish(ctx context.Context, ev *bus.Event) error
}

// Env is what a function is made with.
type Env struct {
	Host Host
	// Dir is the directory of the spec's file; paths in the config are
	// relative to it.
	Dir string
	// Concurrency is the most calls at the same time.
	Concurrency int
	// Logger logs with the names of the function attached; nil means silence.
	Logger *slog.Logger
	// Data is the directory where a kind keeps what it made from a config and
	// wants to find again, below its own name; "" when there is none.
	Data string
	// Secret resolves secrets that a function needs before it is called; nil
	// when there are none.
	Secret func(specs.SecretRef) (string, error)
}

// Factory makes functions of one kind.
type Factory struct {
	specs.Type
	// Make makes the function of a config that passed validation. It does no
	// network I/O; what it starts is freed by Close.
	Make func(config any, env Env) (Function, error)
	// Check, unless nil, reports what is wrong with a valid config and the files
	// it names; paths are relative to dir. It runs nothing.
	Check func(config any, dir string, ck *specs.Checker)
	// Files, unless nil, are the files and directories that a function is made
	// from: it is made anew when they change.
	Files func(config any, dir string) []string
	// Example is a file that shows the kind: example.yaml in its folder.
	Example string
	// Grants is true when calls use [Call.Secrets].
	Grants bool
}

// Registry is the list of function kinds.
type Registry []Factory

// Lookup finds a kind by name, or nil.
func (r Registry) Lookup(name string) *Factory {
	for i := range r {
		if r[i].Name == name {
			return &r[i]
		}
	}
	return nil
}

// Types returns the kinds for package specs.
func (r Registry) Types() []specs.Type {
	out := make([]specs.Type, len(r))
	for i := range r {
		out[i] = r[i].Type
	}
	return out
}
