package generic

import (
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/generic/eventing"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

// raw is the codec of a server that sends whatever bytes it likes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (raw) Unmarshal([]byte, any) error   { return nil }
func (raw) Name() string                  { return "proto" }

var _ encoding.Codec = raw{}

// rawServer answers each call with these messages.
func rawServer(t *testing.T, messages ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		for _, m := range messages {
			if err := s.SendMsg([]byte(m)); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return nil
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-done
	})
	return l.Addr().String()
}

// TestReasons: what cannot work says what is wrong and what to do.
func TestReasons(t *testing.T) {
	dir := t.TempDir()
	ca, other := newAuthority(t, dir, "ca"), newAuthority(t, dir, "other")
	cert := ca.leaf("server", nil)
	other.leaf("stranger", nil)
	old := ca.leaf("old", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	named := ca.leaf("named", func(c *x509.Certificate) { c.IPAddresses = nil })
	elsewhere := ca.leaf("elsewhere", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} })

	plain := newServer(t, "", count(3)).addr
	guarded := newServer(t, "", func(*eventing.EventSource, stream) error {
		return status.Error(codes.Unauthenticated, "who are you?")
	}).addr
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<html>hello</html>"))
	})
	serveHTTP := func(start func(*httptest.Server)) string {
		s := httptest.NewUnstartedServer(page)
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetHTTP1(true)
		start(s)
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	html1 := serveHTTP((*httptest.Server).Start)
	htmlTLS1 := serveHTTP((*httptest.Server).StartTLS)
	html2 := serveHTTP(func(s *httptest.Server) {
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	})
	htmlTLS2 := serveHTTP(func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.Config.Protocols.SetHTTP2(true)
		s.StartTLS()
	})
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
	secure := newServer(t, "", count(3), tlsServer(cert, nil)).addr
	mutual := newServer(t, "", count(3), tlsServer(cert, ca)).addr
	bearer := &Auth{Bearer: specs.SecretRef{Name: "shop", Key: "token"}}
	withTLS := func(tls TLS) func(*Config) {
		return func(c *Config) { c.Insecure, c.TLS = false, &tls }
	}
	message := func(change func(*eventing.Event)) string {
		return newServer(t, "", func(_ *eventing.EventSource, s stream) error {
			m := &eventing.Event{Payload: []byte("x")}
			change(m)
			if err := s.Send(m); err != nil {
				return err
			}
			<-s.Context().Done()
			return nil
		}).addr
	}
	for name, tt := range map[string]struct {
		addr   string
		change func(*Config)
		want   string
	}{
		"nothing listens":   {refused.Addr().String(), nil, "nothing listens there: start it, or check url"},
		"no socket":         {"unix://" + filepath.Join(dir, "none.sock"), nil, "there is no such socket: start it, or check url"},
		"unknown host":      {"nowhere.invalid:8080", nil, "check url"},
		"no TLS there":      {plain, withTLS(TLS{CA: "ca.pem"}), "it speaks no TLS: set insecure: true"},
		"TLS there":         {secure, nil, "it may want TLS (insecure: true is set)"},
		"unknown authority": {secure, withTLS(TLS{CA: "other.pem"}), "of an unknown authority: give that in tls.ca"},
		"system's roots":    {secure, func(c *Config) { c.Insecure = false }, "of an unknown authority: give that in tls.ca"},
		"wrong name":        {secure, withTLS(TLS{CA: "ca.pem", ServerName: "example.com"}), "for another name: set tls.serverName (certificate is valid for localhost, not example.com)"},
		"no address":        {newServer(t, "", count(3), tlsServer(named, nil)).addr, withTLS(TLS{CA: "ca.pem"}), "set tls.serverName to a name it has"},
		"wrong address":     {newServer(t, "", count(3), tlsServer(elsewhere, nil)).addr, withTLS(TLS{CA: "ca.pem"}), "set tls.serverName (certificate is valid for 10.0.0.1, not 127.0.0.1)"},
		"expired":           {newServer(t, "", count(3), tlsServer(old, nil)).addr, withTLS(TLS{CA: "ca.pem"}), "its certificate has expired or is not valid yet (current time "},
		"no client cert":    {mutual, withTLS(TLS{CA: "ca.pem"}), "it wants a client certificate: give tls.cert and tls.key"},
		"wrong client cert": {mutual, withTLS(TLS{CA: "ca.pem", Cert: "stranger.pem", Key: "stranger-key.pem"}), "it refused the TLS connection: check tls.cert and tls.key (remote error: tls: "},
		"missing CA file":   {secure, withTLS(TLS{CA: "none.pem"}), "tls.ca: open "},
		"CA file is a key":  {secure, withTLS(TLS{CA: "ca-key.pem"}), "tls.ca: ca-key.pem holds no PEM certificate"},
		"missing cert file": {secure, withTLS(TLS{Cert: "none.pem", Key: "none-key.pem"}), "tls.cert and tls.key: open "},
		"HTTP/1.1":          {html1, nil, "it speaks HTTP/1.1 and is no gRPC server: check the port in url"},
		"HTTP/1.1 over TLS": {htmlTLS1, withTLS(TLS{InsecureSkipVerify: true}), "is no gRPC server: check the port in url"},
		"HTML":              {html2, nil, "it answered with a page and not with gRPC: it is a web server or a proxy that does not pass gRPC on (unexpected content-type \"text/html"},
		"HTML over TLS":     {htmlTLS2, withTLS(TLS{InsecureSkipVerify: true}), "it answered with a page and not with gRPC"},
		"no such service":   {emptyServer(t), nil, "it has no method /generic.Eventing/StartEventSource: register the service of generic.proto in it"},
		"token wanted":      {guarded, nil, "it wants to know who calls (who are you?): give auth.bearer"},
		"token refused":     {guarded, func(c *Config) { c.Auth = bearer }, "it refused the token, key token of Secret shop (who are you?)"},
		"token unfit":       {guarded, func(c *Config) { c.Auth = &Auth{Bearer: specs.SecretRef{Name: "shop", Key: "unfit"}} }, "auth.bearer: key unfit of Secret shop is no token"},
		"wrong proto":       {rawServer(t, "\x1a\x05hello\x20\x07"), nil, "the server sent a message that is no generic.Event: it must use generic.proto"},
		"no proto":          {rawServer(t, "<html>hello</html>"), nil, "it sent a message that is no generic.Event: it must use generic.proto"},
		"no text":           {rawServer(t, "\x0a\x01\xff\x12\x01x"), nil, "it sent a message that is no generic.Event"},
		"long cursor":       {message(func(m *eventing.Event) { m.Cursor = strings.Repeat("x", 5000) }), nil, "a cursor of 5000 bytes, the most is 4096: it must send a shorter one"},
		"long attributes":   {message(func(m *eventing.Event) { m.Subject = strings.Repeat("ü", 15000) }), nil, "attributes of 90027 bytes, the most is 61440: it must send them in the payload"},
		"server's own words": {newServer(t, "", func(*eventing.EventSource, stream) error {
			return status.Error(codes.Internal, "the database\nis away")
		}).addr, nil, "Internal: the database is away"},
		"cursor refused": {newServer(t, "", func(*eventing.EventSource, stream) error { return status.Error(codes.OutOfRange, "too old") }).addr, nil, "it cannot go on from the cursor (too old)"},
	} {
		t.Run(name, func(t *testing.T) {
			h := sourcetest.NewHost(t, DefaultType)
			h.SetSecret("shop/token", "s3cret")
			h.SetSecret("shop/unfit", "s3cret\nx")
			err := run(t, config(tt.addr, func(c *Config) {
				if tt.change != nil {
					tt.change(c)
				}
			}), sources.Env{Dir: dir, Source: "shop", Event: "orders"}, h)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Run = %v\nwant %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error has the secret: %v", err)
			}
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("the error is more than a line: %q", err)
			}
			if n := len(h.Events()); n != 0 {
				t.Errorf("%d events are stored", n)
			}
			t.Log(err)
		})
	}
}

// emptyServer is a gRPC server without the service.
func emptyServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-done
	})
	return l.Addr().String()
}
