// Package driver owns the source type "driver": a program of the user's that
// the engine runs and that brings events, by posting CloudEvents to an address
// of its own on the loopback interface, or by writing them to its stdout line
// by line. It owns the process from its start to the end of everything it
// left behind, its arguments and environment, and what a message of it must
// look like. It must not know what becomes of the events.
package driver

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
)

// DefaultType is the CloudEvents type of a driver's events. They bring their
// own, it is never used.
const DefaultType = "driver"

// Config is one driver of an EventSource.
type Config struct {
	Type         string           `yaml:"type" required:"true" ref:"DriverType" doc:"Name of the DriverType, which says what program runs." example:"ticker"`
	Set          specs.Settings   `yaml:"set" doc:"Settings of the program, passed as --key=value; a key without a value becomes the flag --key." example:"{seconds: 5}"`
	Secrets      []string         `yaml:"secrets" ref:"Secret" doc:"Names of Secrets, all of whose keys the program gets as environment variables, in capitals and with '_' for '-'; of two that are the same, the later Secret's wins." example:"[vcenter]"`
	InheritEnv   []string         `yaml:"inheritEnv" doc:"Variables of the engine that the program gets too, besides PATH, HOME, TZ and LANG." example:"[HTTPS_PROXY]"`
	MaxMessage   specs.Size       `yaml:"maxMessage" min:"1" max:"60MiB" doc:"Largest message: a line on stdout or the body of a request. Larger ones are refused; default 1MiB." example:"16MiB"`
	Grace        specs.Duration   `yaml:"grace" max:"7s" doc:"Time between SIGTERM and SIGKILL when the program has to end; default 5s." example:"2s"`
	LegacyPort   bool             `yaml:"legacyPort" doc:"Whether events are also taken on 127.0.0.1:8080, without a token, from a program that knows only this address. One driver of a machine can have it."`
	SharedSecret *specs.SecretRef `yaml:"sharedSecret" doc:"For a DriverType with expose: requests must carry this value as Authorization: Bearer, or in the query as secret; default: all are forwarded."`
}

const (
	defaultMaxMessage = 1 << 20
	defaultGrace      = specs.Duration(5 * time.Second)
	legacyAddress     = "127.0.0.1:8080"
	// endpointSetting is the setting whose value is always the address that
	// takes the events.
	endpointSetting = "dispatch-api-endpoint"
)

// Factory makes drivers. With several replicas, only one runs each.
func Factory() sources.Factory {
	g := &gates{held: map[string]chan struct{}{}}
	return sources.Factory{
		Type: specs.Type{
			Name: "driver",
			Doc:  "Events from a program that the engine runs: it posts CloudEvents or writes them to its stdout.",
			New:  func() any { return &Config{MaxMessage: defaultMaxMessage, Grace: defaultGrace} },
		},
		DefaultType: DefaultType,
		Single:      true,
		Push:        true,
		Routes:      routes,
		MaxEvent:    func(config any) int64 { return int64(config.(*Config).MaxMessage) },
		Check:       check,
		Describe:    describe,
		Make: func(config any, env sources.Env) (sources.Source, error) {
			return newDriver(config.(*Config), env, g)
		},
	}
}

// Validate reports what the types of the fields cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	for i, name := range c.InheritEnv {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			ck.Errorf(fmt.Sprintf("inheritEnv[%d]", i), specs.CodeInvalidValue, "for example HTTPS_PROXY", "%q is no name of a variable", name)
		}
	}
	for key, value := range c.Set {
		if strings.IndexByte(value, 0) >= 0 {
			ck.Errorf("set."+key, specs.CodeInvalidValue, "", "an argument cannot contain a NUL byte")
		}
	}
}

// program is what a DriverType says, with paths that do not depend on where
// the engine runs.
type program struct {
	*specs.DriverType
	name    string
	command []string
	dir     string
}

func lookup(c *Config, env sources.Env) (*program, error) {
	var res *specs.Resource
	if env.Resource != nil {
		res = env.Resource(specs.Ref{Kind: specs.KindDriverType, Name: c.Type})
	}
	if res == nil {
		return nil, fmt.Errorf("there is no DriverType %s", c.Type)
	}
	t, ok := res.Spec.(*specs.DriverType)
	if !ok {
		return nil, fmt.Errorf("%s is no DriverType", res.Ref())
	}
	dir, err := filepath.Abs(filepath.Dir(res.Pos.File))
	if err != nil {
		return nil, err
	}
	p := &program{DriverType: t, name: c.Type, command: t.Command, dir: dir}
	if t.Path != "" {
		p.command = []string{join(dir, t.Path)}
	} else if len(t.Command) == 0 || t.Command[0] == "" {
		return nil, fmt.Errorf("the DriverType %s has no command", c.Type)
	}
	return p, nil
}

func join(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// prefix is the path below which an exposed driver is found.
func prefix(env sources.Env) string { return "/drivers/" + env.Source + "/" + env.Event + "/" }

func routes(config any, env sources.Env) []sources.Route {
	p, err := lookup(config.(*Config), env)
	if err != nil || !p.Expose {
		return nil
	}
	return []sources.Route{route(env)}
}

func route(env sources.Env) sources.Route { return sources.Route{Path: prefix(env) + "{path...}"} }

func describe(config any, env sources.Env, _ time.Time) []sources.Detail {
	c := config.(*Config)
	p, err := lookup(c, env)
	if err != nil {
		return nil
	}
	words := append(slices.Clone(p.command), flags(merge(p.Set, c.Set))...)
	for i, w := range words {
		if w == "" || strings.ContainsAny(w, " \t\r\n\"'`$\\*?[]{}()<>|&;#~") {
			words[i] = strconv.Quote(w)
		}
	}
	out := []sources.Detail{{Name: "Command", Values: []string{strings.Join(words, " ")}}}
	if p.Expose {
		out = append(out, sources.Detail{Name: "URL", Values: []string{env.Base + prefix(env)}})
	}
	return out
}

// check finds what is wrong with a driver as seen from its type.
func check(config any, env sources.Env, ck *specs.Checker) {
	c := config.(*Config)
	p, err := lookup(c, env)
	if err != nil {
		return // told with the reference
	}
	if c.SharedSecret != nil && !p.Expose {
		ck.Errorf("sharedSecret", specs.CodeInvalidValue, "set expose: true there, or leave sharedSecret out", "the DriverType %s is not exposed, there is nothing to protect", c.Type)
	}
	if p.SecretFlags && len(c.Secrets) > 0 {
		ck.Warnf("secrets", specs.CodeInvalidValue, "let the program read them from its environment and leave secretFlags out", "the DriverType %s passes secrets as flags, which every local user can read", c.Type)
	}
	if c.LegacyPort {
		ck.Warnf("legacyPort", specs.CodeInvalidValue, "post to the URL in ENGINE_EVENTS_URL instead", "every local program can bring events in the name of this driver through %s", legacyAddress)
	}
	checkSettings(p, c, ck)
}

// gates let one driver of a name run at a time, also when the next is started
// before the last has ended.
type gates struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// enter waits until nobody is inside under the name. It returns nil when ctx
// ends first.
func (g *gates) enter(ctx context.Context, name string) (leave func()) {
	for {
		g.mu.Lock()
		wait := g.held[name]
		if wait == nil {
			left := make(chan struct{})
			g.held[name] = left
			g.mu.Unlock()
			return func() {
				g.mu.Lock()
				delete(g.held, name)
				g.mu.Unlock()
				close(left)
			}
		}
		g.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil
		}
	}
}
