package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Options are the limits of a server; the zero values mean the defaults.
type Options struct {
	// HeaderTimeout bounds the time for the headers of a request (default
	// 10 s), ReadTimeout for the whole of it, body included (default 30 s),
	// IdleTimeout for a connection between two requests (default 2 min).
	HeaderTimeout, ReadTimeout, IdleTimeout time.Duration
	// MaxHeaderBytes bounds request line and headers, default 64 KiB.
	MaxHeaderBytes int
	// Flag is the flag that sets the address, for errors, such as "--listen".
	Flag string
	// Logger gets what goes wrong on connections, at level debug; nil is
	// slog.Default.
	Logger *slog.Logger
}

// Server serves HTTP/1.1 on one address. Cleartext HTTP/2 is off.
type Server struct {
	http *http.Server
	ln   net.Listener
	done chan struct{}
	err  error
}

// Listen opens addr ("host:port"; port 0 takes a free one) and serves h there
// until [Server.Shutdown]. The error of an address that cannot be used says
// why and what to do. When no more connections can be accepted for the moment,
// for lack of file descriptors, it tries again with growing waits.
func Listen(ctx context.Context, addr string, h http.Handler, o Options) (*Server, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, explain(addr, o.Flag, err)
	}
	log := o.Logger
	if log == nil {
		log = slog.Default()
	}
	var http1 http.Protocols
	http1.SetHTTP1(true)
	s := &Server{
		ln:   ln,
		done: make(chan struct{}),
		http: &http.Server{
			Handler:           h,
			ReadHeaderTimeout: or(o.HeaderTimeout, 10*time.Second),
			ReadTimeout:       or(o.ReadTimeout, 30*time.Second),
			IdleTimeout:       or(o.IdleTimeout, 2*time.Minute),
			MaxHeaderBytes:    or(o.MaxHeaderBytes, 64<<10),
			Protocols:         &http1,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.err = fmt.Errorf("serving HTTP on %s: %w", addr, err)
		}
	}()
	return s, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func explain(addr, flag string, err error) error {
	other := "choose another address"
	if flag != "" {
		other += " with " + flag
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("cannot listen on %s: the address is in use, perhaps by another engine; stop that program or %s: %w", addr, other, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("cannot listen on %s: not permitted, ports below 1024 need privileges; %s: %w", addr, other, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot listen on %s: this machine does not have the address; %s: %w", addr, other, err)
	}
	return fmt.Errorf("cannot listen on %s; %s: %w", addr, other, err)
}

// Addr is the address that is listened on, with the port that was taken.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Done is closed when the server no longer accepts connections.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err returns, after Done, why the server ended, nil when it was shut down.
func (s *Server) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Shutdown closes the listener and idle connections and waits until the
// requests on their way are answered. When ctx ends before, it closes all
// connections and returns an error.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("requests on %s were cut off: %w", s.Addr(), err), s.http.Close())
	}
	<-s.done
	return err
}
