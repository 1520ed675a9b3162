package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// readyWithin bounds the start of the embedded server. Recovery of large
// streams happens before it is ready.
const readyWithin = 5 * time.Minute

// embedded runs the server inside this process and can exchange it for a
// fresh one on the same store: the connection sees a reconnect.
type embedded struct {
	o    Options
	life sync.Mutex // one start or stop at a time

	mu  sync.Mutex
	srv *server.Server // nil while none runs
}

func (e *embedded) options() *server.Options {
	so := &server.Options{
		ServerName:             "engine",
		JetStream:              true,
		StoreDir:               e.o.Dir,
		DontListen:             true,
		NoSigs:                 true,
		SyncAlways:             e.o.syncAlways,
		MaxPayload:             int32(e.o.MaxPayload), // checked: at most 64 MiB
		DisableJetStreamBanner: true,
		// Explicit, for the default is a share of the disk at start. Every
		// stream has a limit, and a lower one of the whole would refuse to
		// shrink them.
		JetStreamMaxStore:  1 << 50,
		JetStreamMaxMemory: 64 * mib,
	}
	if e.o.ListenPort != 0 {
		so.DontListen, so.Host, so.Port = false, "127.0.0.1", e.o.ListenPort
	}
	return so
}

// start runs a server, if none runs.
func (e *embedded) start() error {
	e.life.Lock()
	defer e.life.Unlock()
	if e.server() != nil {
		return nil
	}
	if err := os.MkdirAll(e.o.Dir, 0o750); err != nil {
		return storeError(e.o.Dir, err)
	}
	// The server reports an unusable store only in its log.
	probe := filepath.Join(e.o.Dir, ".probe")
	f, err := os.OpenFile(probe, os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return storeError(e.o.Dir, err)
	}
	_ = f.Close()
	_ = os.Remove(probe)

	s, err := server.NewServer(e.options())
	if err != nil {
		return fmt.Errorf("embedded bus: %w", err)
	}
	lg := &serverLog{log: e.o.Logger}
	s.SetLoggerV2(lg, false, false, false)
	s.Start()
	if !s.ReadyForConnections(readyWithin) || !s.JetStreamEnabled() {
		s.Shutdown()
		s.WaitForShutdown()
		reason := lg.first()
		if reason == "" {
			reason = "it did not become ready"
		}
		return fmt.Errorf("embedded bus in %s did not start: %s", e.o.Dir, reason)
	}
	e.mu.Lock()
	e.srv = s
	e.mu.Unlock()
	return nil
}

// stop ends the server and waits until it has released the store.
func (e *embedded) stop() {
	e.life.Lock()
	defer e.life.Unlock()
	e.mu.Lock()
	s := e.srv
	e.srv = nil
	e.mu.Unlock()
	if s != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
}

func (e *embedded) server() *server.Server {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.srv
}

// broken says why the server cannot store any more, or "".
func (e *embedded) broken() string {
	s := e.server()
	if s == nil {
		return "the embedded server is down"
	}
	if !s.JetStreamEnabled() {
		return "the embedded server gave its store up"
	}
	if h := s.Healthz(&server.HealthzOptions{}); h != nil && h.Status != "ok" {
		return h.Error
	}
	return ""
}

// InProcessConn implements [nats.InProcessConnProvider]: always to the server
// that runs now.
func (e *embedded) InProcessConn() (net.Conn, error) {
	s := e.server()
	if s == nil {
		return nil, errors.New("the embedded server is down")
	}
	return s.InProcessConn()
}

func storeError(dir string, err error) error {
	fix := "choose another --data"
	if errors.Is(err, os.ErrPermission) {
		fix = fmt.Sprintf("give the user with uid %d the right to write there, or choose another --data", os.Getuid())
	}
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("bus directory %s cannot be written: %w; %s", dir, err, fix)
}

// serverLog passes the server's warnings and errors on, at most burst of them
// a minute: in an outage it has one per message.
type serverLog struct {
	log     *slog.Logger
	mu      sync.Mutex
	window  time.Time
	n       int
	dropped int
	reason  string
}

const burst = 4

func (l *serverLog) write(level slog.Level, format string, v []any) {
	msg := fmt.Sprintf(format, v...)
	l.mu.Lock()
	if l.reason == "" && level >= slog.LevelError {
		l.reason = msg
	}
	now := time.Now()
	if now.Sub(l.window) > time.Minute {
		l.window, l.n = now, 0
	}
	l.n++
	if l.n > burst {
		l.dropped++
		l.mu.Unlock()
		return
	}
	dropped := l.dropped
	l.dropped = 0
	l.mu.Unlock()
	args := []any{slog.String("message", msg)}
	if dropped > 0 {
		args = append(args, slog.Int("suppressed", dropped))
	}
	l.log.Log(context.Background(), level, "embedded bus", args...)
}

// first is the first error, which tells why a start failed.
func (l *serverLog) first() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reason
}

func (l *serverLog) Noticef(string, ...any)    {}
func (l *serverLog) Debugf(string, ...any)     {}
func (l *serverLog) Tracef(string, ...any)     {}
func (l *serverLog) Warnf(f string, v ...any)  { l.write(slog.LevelWarn, f, v) }
func (l *serverLog) Errorf(f string, v ...any) { l.write(slog.LevelError, f, v) }
func (l *serverLog) Fatalf(f string, v ...any) { l.write(slog.LevelError, f, v) }
