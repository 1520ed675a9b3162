package http

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

func TestEventChoosesHost(t *testing.T) {
	for u, want := range map[string]bool{
		"http://a/": false, "http://a/${ x }": false, "http://a?q=${ x }": false, "http://a#${ x }": false, "https://$${a}/${ x }": false,
		"${ x }": true, "http://${ x }/": true, "http://${ x }.example.com/": true, "http://a${ x }": true, "http://a:${ x }/": true,
		"http://u:${ x }@a/": true, "${ x }://a/": true, "http:${ x }": true, "http://a\\${ x }": true, "/a/${ x }": true,
	} {
		if eventChoosesHost(text(u)) != want {
			t.Errorf("%s: %v", u, !want)
		}
	}
	if eventChoosesHost(secret()) {
		t.Error("a secret is not from an event")
	}
}

// TestGuard: an event does not lead calls to this machine, whatever it says,
// over either path.
func TestGuard(t *testing.T) { paths(t, testGuard) }

func testGuard(t *testing.T, newTest maker) {
	var calls atomic.Int64
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		calls.Add(1)
	})
	plain, secured := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secured.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(plain.URL, "http://"), ":")
	insecure := &outbound.TLS{InsecureSkipVerify: true}
	// Somebody else may call it, over the same pool if it were one.
	f := newTest(t, &Config{URL: text(plain.URL)}, 1)
	if _, err := f.Invoke(t.Context(), &triggers.Call{Event: event()}); err != nil {
		t.Fatal(err)
	}
	calls.Store(0)
	for _, raw := range []string{
		plain.URL, secured.URL, "http://localhost:" + port, "http://127.0.0.1.:" + port, "http://[::1]:" + port, "http://[::ffff:127.0.0.1]:" + port,
		"http://[::ffff:7f00:1]:" + port, "http://[::]:" + port, "http://0.0.0.0:" + port, "http://0:" + port, "http://127.1:" + port, "http://0x7f.1:" + port,
		"http://0x7f000001:" + port, "http://2130706433:" + port, "http://0177.0.0.1:" + port, "http://u:p@127.0.0.1:" + port + "/@1.1.1.1",
		"http://169.254.169.254/latest/meta-data/", "http://[fe80::1%25eth0]:" + port,
	} {
		for _, u := range []string{"${ whole }", "http://${ host }/"} {
			f := newTest(t, &Config{URL: text(u), TLS: insecure}, 1)
			_, err := f.Invoke(t.Context(), &triggers.Call{Event: event(), Values: fixed{value: raw}})
			if err == nil {
				t.Errorf("%s: no error", raw)
			} else if strings.Contains(err.Error(), "is not a public address") && (triggers.ClassOf(err) != triggers.InputError || !triggers.Permanent(err)) {
				t.Errorf("%s: %v is not the input's fault", raw, err)
			}
		}
	}
	if n := calls.Load(); n > 0 {
		t.Errorf("%d calls came through", n)
	}
	_, err := newTest(t, &Config{URL: text("${ whole }")}, 1).Invoke(t.Context(), &triggers.Call{Event: event(), Values: fixed{value: plain.URL}})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1 is not a public address, and the event chose it") {
		t.Error(err)
	}
	for _, allow := range []string{"127.0.0.0/8", "127.0.0.1"} {
		f := newTest(t, &Config{URL: text("${ whole }"), Allow: []string{allow}, TLS: insecure}, 1)
		for _, u := range []string{plain.URL, secured.URL} {
			if _, err := f.Invoke(t.Context(), &triggers.Call{Event: event(), Values: fixed{value: u}}); err != nil {
				t.Errorf("%s: %v", allow, err)
			}
		}
	}
	f = newTest(t, &Config{URL: text("${ whole }"), Allow: []string{"localhost"}}, 1)
	if _, err := f.Invoke(t.Context(), &triggers.Call{Event: event(), Values: fixed{value: "http://localhost:" + port}}); err != nil {
		t.Error(err)
	}
	if _, err := f.Invoke(t.Context(), &triggers.Call{Event: event(), Values: fixed{value: plain.URL}}); err == nil {
		t.Error("an address is allowed by another name")
	}
}

// TestSharedConnections: functions with the same settings have the same
// connections, others do not.
func TestSharedConnections(t *testing.T) {
	var n network
	same := func(c *Config) *function {
		f, err := newFunction(c, triggers.Env{}, &n)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := same(&Config{URL: text("http://a/")}), same(&Config{URL: text("http://b/${ x }"), Headers: map[string]specs.TextOrSecret{"X": text("y")}})
	if a.links != b.links || n.Len() != 1 {
		t.Error("two pools with the same settings")
	}
	others := []*function{
		same(&Config{URL: text("http://${ x }/")}), same(&Config{URL: text("http://${ x }/"), Allow: []string{"10.0.0.0/8"}}),
		same(&Config{URL: text("https://a/"), TLS: &outbound.TLS{}}), same(&Config{URL: text("https://a/"), TLS: &outbound.TLS{CA: text("a.pem")}}),
		same(&Config{URL: text("https://a/"), TLS: &outbound.TLS{CA: secret()}}),
	}
	if n.Len() != 1+len(others) {
		t.Errorf("%d pools", n.Len())
	}
	_ = a.Close()
	if n.Len() != 1+len(others) {
		t.Error("closed while it is used")
	}
	for _, f := range append(others, b) {
		_ = f.Close()
	}
	if n.Len() != 0 || !b.links.pool.closed {
		t.Errorf("%d pools stay", n.Len())
	}
}
