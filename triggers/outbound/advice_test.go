package outbound

import (
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

// TestAdvised: connections that fail for a known reason say what to do.
func TestAdvised(t *testing.T) {
	plain := httptest.NewServer(nil)
	defer plain.Close()
	secure := httptest.NewTLSServer(nil)
	defer secure.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	dir, dialer := t.TempDir(), Dialer()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	open := &HTTP{Dial: dialer.DialContext}
	named := &HTTP{Dial: dialer.DialContext, Dir: dir, TLS: &TLS{CA: specs.TextOrSecret{Text: specs.Text{Value: "ca.pem"}}, ServerName: "elsewhere.test"}}
	for _, tc := range []struct {
		by        *HTTP
		url, want string
	}{
		{open, "http://" + ln.Addr().String(), "connection refused; start what should answer there"},
		{open, "http://no-such-host.invalid", "; check the name of the host"},
		{open, strings.Replace(plain.URL, "http:", "https:", 1), "; it speaks no TLS there"},
		{open, secure.URL, "; nobody who is trusted vouches for its certificate: put the authority into tls.ca"},
		{named, secure.URL, "; put the name in its certificate into tls.serverName"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, tc.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		transport, err := tc.by.Transport()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s answers", tc.url)
			continue
		}
		if got := Advised(err); !strings.Contains(got.Error(), tc.want) || !errors.Is(got, err) {
			t.Errorf("%v, want %s", got, tc.want)
		}
	}
	if err := errors.New("other"); Advised(err) != err { //nolint:errorlint // the very same
		t.Error("another error is changed")
	}
}
