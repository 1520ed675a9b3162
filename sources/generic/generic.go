package generic

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/generic/eventing"
)

// Names of the request metadata. A key that ends in -bin takes any bytes.
const (
	hdrAuth        = "authorization"
	hdrEventSource = "engine-eventsource"
	hdrCursor      = "engine-cursor-bin"
)

const (
	// window is how many bytes a server may send ahead of what is read.
	window = 256 << 10
	// readyAfter is how long a stream on which nothing comes must not fail to
	// count as there: servers need not answer before their first event.
	readyAfter = 300 * time.Millisecond
	// healthyAfter is how long a stream that brought nothing must last for the
	// wait before the next one to start over.
	healthyAfter = 10 * time.Second
	// maxReconnect bounds the wait between two streams, unless the spec wants more.
	maxReconnect = 30 * time.Second
	// grace is how long a server that worked may be away before this counts as
	// a failure: most are only restarted.
	grace = 5 * time.Second
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 10 * time.Second
)

// source is one stream.
type source struct {
	cfg         *Config
	env         sources.Env
	text        []byte
	contentType string
}

func newSource(c *Config, env sources.Env) (*source, error) {
	text, err := c.text()
	if err != nil {
		return nil, fmt.Errorf("config of a generic source: %w", err)
	}
	s := &source{cfg: c, env: env, text: text, contentType: c.ContentType}
	if s.contentType == autoType {
		s.contentType = ""
	}
	return s, nil
}

// outcome is how a stream ended.
type outcome struct {
	// err is for people; nil when the server ended the stream without an error.
	err error
	// worked is true when the stream brought something or lasted; then the next
	// one may come soon.
	worked bool
	// ready is true when the stream was there at all.
	ready bool
}

// Run calls the server and stores what it sends until ctx ends. A stream that
// worked is followed by the next one; a server that cannot be called, or sends
// what is no event, is an error, so that the supervisor shows the reason and
// tries again. Either way, what was received is stored first.
func (s *source) Run(ctx context.Context, h sources.Host) error {
	if ctx.Err() != nil {
		return nil
	}
	position, err := h.Cursor().Load(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("loading the cursor: %w", err)
	}
	h.Report(sources.Progress{Position: position})
	p := newPipeline(ctx, h, position)
	defer p.close(context.WithoutCancel(ctx))
	var away time.Time // since when a server that worked is not there
	wait := s.cfg.Reconnect.D()
	for {
		out := s.stream(ctx, h, p)
		if p.flush(ctx) != nil {
			return nil
		}
		switch {
		case out.err == nil && s.cfg.OnEnd == onEndDone:
			h.Ready("done: the server ended the stream")
			<-ctx.Done()
			return nil
		case asRefused(out.err) != nil:
			return out.err
		case out.worked:
			away, wait = time.Now(), s.cfg.Reconnect.D()
		case out.err == nil: // the server has nothing now
		case away.IsZero() || time.Since(away) > grace:
			return out.err
		}
		pause := wait/2 + rand.N(wait/2+1)
		wait = min(2*wait, max(maxReconnect, s.cfg.Reconnect.D()))
		if out.err != nil {
			h.Ready("connecting again: " + out.err.Error())
			if out.ready {
				h.Logger().Info("stream lost; connecting again", "error", out.err, "in", pause.Round(time.Millisecond))
			}
		} else {
			h.Ready("the server ended the stream; calling it again in " + pause.Round(time.Millisecond).String())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// stream calls the server once and hands what it sends to p, until the stream
// or ctx ends.
func (s *source) stream(ctx context.Context, h sources.Host, p *pipeline) (out outcome) {
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(err error) outcome {
		out.err = s.explain(err)
		return out
	}
	md, err := s.metadata(h, p)
	if err != nil {
		return fail(err)
	}
	conn, err := s.dial()
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	connected := "connected to " + s.cfg.URL
	p.rest(connected)
	begin := time.Now()
	st, err := eventing.NewEventingClient(conn).StartEventSource(
		metadata.NewOutgoingContext(call, md), &eventing.EventSource{Name: s.env.Event, Config: s.text})
	if err != nil {
		return fail(err)
	}
	told := make(chan struct{})
	timer := time.AfterFunc(readyAfter, func() {
		h.Ready(connected)
		close(told)
	})
	ready := func() {
		if timer.Stop() {
			h.Ready(connected)
		} else {
			<-told
		}
		out.ready = true
	}
	// What the timer says must not come after what follows the stream.
	defer func() {
		if !out.ready && !timer.Stop() {
			<-told
			out.ready = true
		}
		out.worked = out.worked || out.ready && time.Since(begin) > healthyAfter
	}()
	warned := false
	for {
		m := new(eventing.Event)
		if err := st.RecvMsg(m); errors.Is(err, io.EOF) {
			out.ready = out.ready || timer.Stop()
			return out
		} else if err != nil {
			return fail(err)
		}
		ev, leftOut, err := convert(m, s.contentType)
		if err != nil {
			return fail(err)
		}
		if len(leftOut) > 0 && !warned {
			warned = true
			h.Logger().Warn("attributes that CloudEvents do not allow are left out", "attributes", list(leftOut))
		}
		if !out.worked {
			ready()
			out.worked = true
		}
		if err := p.add(ctx, ev); err != nil {
			return fail(err)
		}
	}
}

// metadata is what goes with the call.
func (s *source) metadata(h sources.Host, p *pipeline) (metadata.MD, error) {
	md := metadata.Pairs(hdrEventSource, s.env.Source)
	if position := p.stands(); position != "" {
		md.Set(hdrCursor, position)
	}
	if s.cfg.Auth == nil {
		return md, nil
	}
	ref := s.cfg.Auth.Bearer
	token, err := h.Secret(ref)
	if err != nil {
		return nil, fmt.Errorf("auth.bearer: %w", err)
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("auth.bearer: key %s of Secret %s is no token: it is empty or has spaces or control characters", ref.Key, ref.Name)
	}
	md.Set(hdrAuth, "Bearer "+token)
	return md, nil
}

// dial makes a connection, which is opened by the first call. It is used for
// one stream: files and names are looked up anew for the next.
func (s *source) dial() (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if !s.cfg.Insecure {
		c, err := tlsConfig(s.cfg.TLS, s.env.Dir)
		if err != nil {
			return nil, err
		}
		creds = alerts{credentials.NewTLS(c)}
	}
	return grpc.NewClient(s.cfg.URL,
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: s.cfg.Keepalive.Time.D(), Timeout: s.cfg.Keepalive.Timeout.D()}),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(int(s.cfg.MaxMessage))),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithUserAgent("sensor-engine"),
	)
}

// alerts are TLS credentials whose connections tell why the server broke them.
// With TLS 1.3 a server looks at the client's certificate after the handshake,
// and what it says of it is lost when the next write fails before it is read.
type alerts struct {
	credentials.TransportCredentials
}

// ClientHandshake is that of the credentials.
func (a alerts) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := a.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err == nil {
		conn = alertConn{conn}
	}
	return conn, info, err
}

// Clone is that of the credentials.
func (a alerts) Clone() credentials.TransportCredentials {
	return alerts{a.TransportCredentials.Clone()}
}

type alertConn struct{ net.Conn }

// Write returns the server's alert instead of its own error when there is one.
func (c alertConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && c.SetReadDeadline(time.Now().Add(100*time.Millisecond)) == nil {
		if _, alert := c.Read(make([]byte, 1)); alert != nil && strings.Contains(alert.Error(), "remote error: tls: ") {
			err = alert
		}
	}
	return n, err
}

func tlsConfig(t *TLS, dir string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return c, nil
	}
	c.ServerName = t.ServerName
	c.InsecureSkipVerify = t.InsecureSkipVerify
	if t.CA != "" {
		pem, err := os.ReadFile(path(dir, t.CA))
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: %s holds no PEM certificate", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(path(dir, t.Cert), path(dir, t.Key))
		if err != nil {
			return nil, fmt.Errorf("tls.cert and tls.key: %w", err)
		}
		// Sent also when the server does not name its authority: then it says why not.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c, nil
}

func path(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}
