package driver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers/process"
)

// flush is how long events that a driver brought may take to be stored after
// it had to end.
const flush = 2 * time.Second

// driver is one driver; each Run is one process.
type driver struct {
	cfg     *Config
	env     sources.Env
	program *program
	gates   *gates
	// legacy is the address of legacyPort.
	legacy string
}

func newDriver(c *Config, env sources.Env, g *gates) (*driver, error) {
	p, err := lookup(c, env)
	if err != nil {
		return nil, err
	}
	return &driver{cfg: c, env: env, program: p, gates: g, legacy: legacyAddress}, nil
}

// Run runs the program once and takes its events until it ends, which is an
// error whatever its exit code, or ctx does. It returns when the process, its
// process group and everything else that Run started are gone, and what the
// driver brought is stored; when ctx ends it gives up on the latter after two
// seconds.
func (d *driver) Run(ctx context.Context, h sources.Host) error {
	leave := d.gates.enter(ctx, d.env.Source+"/"+d.env.Event)
	if leave == nil {
		return nil
	}
	defer leave()
	if ctx.Err() != nil {
		return nil
	}
	secrets, err := d.secrets(h)
	if err != nil {
		return err
	}
	token := hex.EncodeToString(random(24))
	st := newStatus(h, token)
	defer st.end()

	// What the driver brought is stored a little beyond the end of ctx.
	storing, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	in := &intake{status: st}
	defer in.close(storing)
	side := sidecar{
		ctx: storing, host: h, status: st, token: sha256.Sum256([]byte(token)),
		limit: int64(d.cfg.MaxMessage), slots: make(chan struct{}, maxRequests),
	}
	address, err := in.listen("127.0.0.1:0", side)
	if err != nil {
		return fmt.Errorf("driver %s: cannot listen for its events: %w", d.cfg.Type, err)
	}
	legacy := ""
	if d.cfg.LegacyPort {
		side.open = true
		if legacy, err = in.listen(d.legacy, side); errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("driver %s: the address of legacyPort, %s, is in use by another driver with legacyPort or another program; end that, or leave legacyPort out", d.cfg.Type, d.legacy)
		} else if err != nil {
			return fmt.Errorf("driver %s: cannot listen on the address of legacyPort: %w", d.cfg.Type, err)
		}
	}
	port := ""
	if d.program.Expose {
		if port, err = freePort(); err != nil {
			return fmt.Errorf("driver %s: no port for it to listen on: %w", d.cfg.Type, err)
		}
	}
	if d.program.Expose {
		forward := newProxy(net.JoinHostPort("127.0.0.1", port), prefix(d.env), d.cfg.SharedSecret, h)
		defer forward.close()
		remove, err := h.Handle(route(d.env), forward)
		if err != nil {
			return fmt.Errorf("driver %s: no requests can be forwarded to it: %w", d.cfg.Type, err)
		}
		defer remove()
	}
	cmd, err := d.command(secrets, address, legacy, port, token)
	if err != nil {
		return err
	}
	p, err := start(cmd, "AUTH_TOKEN="+token)
	if err != nil {
		return d.startError(err)
	}
	base := "process " + strconv.Itoa(cmd.Process.Pid)
	if d.program.Expose {
		base += ", requests to " + prefix(d.env)
	}
	if legacy != "" {
		base += ", events on " + legacy
	}
	st.started(base)

	var reading sync.WaitGroup
	stored := make(chan struct{})
	reading.Go(func() { readLog(p.stderr, st) })
	reading.Go(func() {
		defer close(stored)
		readEvents(p.stdout, d.cfg.MaxMessage, newQueue(storing, h, st), st)
	})
	defer p.closeOutput()
	defer reading.Wait()

	running := time.AfterFunc(moment, st.ready)
	defer running.Stop()
	select {
	case <-p.Done():
	case <-ctx.Done():
	}
	p.Stop(d.cfg.Grace.D()) // at once when it has ended by itself
	running.Stop()

	// What it wrote and posted is stored; while it has to end, not for ever.
	go func() {
		select {
		case <-storing.Done():
		case <-ctx.Done():
			select {
			case <-storing.Done():
			case <-time.After(flush):
				giveUp()
			}
		}
	}()
	in.close(storing)
	<-stored
	giveUp()
	reading.Wait()
	lastLine := st.end()
	if ctx.Err() != nil {
		return nil
	}
	text := fmt.Sprintf("driver %s %s", d.cfg.Type, process.Ended(p.State()))
	if lastLine != "" {
		text += ": " + excerpt([]byte(lastLine), 300)
	}
	return errors.New(text)
}

// intake is the servers that take the events of one run.
type intake struct {
	status  *status
	servers []*http.Server
	running sync.WaitGroup
	// serving is held for reading by each request; after closed was set there
	// are no more.
	serving sync.RWMutex
	closed  bool
}

// listen serves s on address until close, and returns the actual address.
func (in *intake) listen(address string, s sidecar) (string, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	srv := &http.Server{
		Handler:           in.while(&s),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       24 * time.Hour, // a driver may be quiet for long, and never waits for nothing
		MaxHeaderBytes:    128 << 10,
		ErrorLog:          slog.NewLogLogger(in.status.log.Handler(), slog.LevelDebug),
	}
	in.servers = append(in.servers, srv)
	in.running.Go(func() { _ = srv.Serve(l) }) // ends with close
	return l.Addr().String(), nil
}

// while lets requests through until close.
func (in *intake) while(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in.serving.RLock()
		defer in.serving.RUnlock()
		if !in.closed {
			h.ServeHTTP(w, r)
		}
	})
}

// close ends the servers when the requests that were read are answered. It
// returns at the latest when these can store nothing any more.
func (in *intake) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), idle)
	defer cancel()
	for _, srv := range in.servers {
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close() // connections of one that is gone
		}
	}
	in.running.Wait()
	in.serving.Lock()
	defer in.serving.Unlock()
	in.closed = true
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// freePort finds a port that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

// secret is one value that the program gets.
type secret struct{ key, value string }

// secrets resolves all keys of all Secrets, in their order.
func (d *driver) secrets(h sources.Host) ([]secret, error) {
	var out []secret
	for _, name := range d.cfg.Secrets {
		var res *specs.Resource
		if d.env.Resource != nil {
			res = d.env.Resource(specs.Ref{Kind: specs.KindSecret, Name: name})
		}
		if res == nil {
			return nil, fmt.Errorf("driver %s: there is no Secret %s", d.cfg.Type, name)
		}
		spec, ok := res.Spec.(*specs.Secret)
		if !ok {
			return nil, fmt.Errorf("driver %s: %s is no Secret", d.cfg.Type, name)
		}
		keys := slices.AppendSeq(slices.Collect(maps.Keys(spec.Env)), maps.Keys(spec.Files))
		slices.Sort(keys)
		for _, key := range slices.Compact(keys) {
			v, err := h.Secret(specs.SecretRef{Name: name, Key: key})
			if err != nil {
				return nil, fmt.Errorf("driver %s: %w", d.cfg.Type, err)
			}
			if strings.IndexByte(v, 0) >= 0 {
				return nil, fmt.Errorf("driver %s: secret %s, key %s has a NUL byte, which no variable can have", d.cfg.Type, name, key)
			}
			out = append(out, secret{key, v})
		}
	}
	return out, nil
}

// variable is the name of the variable for the key of a secret.
func variable(key string) string {
	return strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// command makes the command of one run.
func (d *driver) command(secrets []secret, address, legacy, port, token string) (*exec.Cmd, error) {
	path, err := process.Find(d.program.command[0], d.program.dir)
	if err != nil {
		return nil, fmt.Errorf("driver %s: %w", d.cfg.Type, err)
	}
	set := merge(d.program.Set, d.cfg.Set)
	env := make([]string, 0, 16+len(secrets))
	env = append(env, "PYTHONUNBUFFERED=1") // or its output would wait for more
	env = append(env, process.Environ(d.cfg.InheritEnv...)...)
	for _, s := range secrets {
		env = append(env, variable(s.key)+"="+s.value)
		if d.program.SecretFlags {
			set[s.key] = s.value
		}
	}
	if _, ok := set[endpointSetting]; ok {
		set[endpointSetting] = address
	}
	_, listen, _ := net.SplitHostPort(address)
	if legacy != "" {
		_, listen, _ = net.SplitHostPort(legacy)
	}
	env = append(
		env, // of the same name, the last one wins
		"AUTH_TOKEN="+token,
		"DISPATCH_LISTENER_HTTP_PORT="+listen,
		"DISPATCH_DRIVER_NAME="+d.env.Event,
		"DISPATCH_DRIVER_TYPE="+d.cfg.Type,
		"ENGINE_EVENTS_URL=http://"+address+"/",
		"ENGINE_SOURCE="+d.env.Source,
		"ENGINE_EVENT="+d.env.Event,
		"K_SINK=http://"+address+"/?authToken="+token,
	)
	if port != "" {
		env = append(env, "PORT="+port)
	}
	return &exec.Cmd{Path: path, Args: append(slices.Clone(d.program.command), flags(set)...), Dir: d.program.dir, Env: unique(env)}, nil
}

// unique keeps the last entry of each name.
func unique(env []string) []string {
	last := make(map[string]int, len(env))
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		last[name] = i
	}
	out := make([]string, 0, len(last))
	for i, e := range env {
		if name, _, _ := strings.Cut(e, "="); last[name] == i {
			out = append(out, e)
		}
	}
	return out
}

// startError tells what the kernel's short answer means for the spec.
func (d *driver) startError(err error) error {
	text, _ := process.StartError(err, d.program.dir)
	return fmt.Errorf("driver %s: cannot start %s: %s", d.cfg.Type, d.program.command[0], text)
}
