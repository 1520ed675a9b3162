package e2e

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sensor-engine/engine/test/load"
)

// TestBadSpecs: each is an error that names file, line and column, from
// `validate` as from a running engine, and the engine stays up.
func TestBadSpecs(t *testing.T) {
	rec := newRecorder(t)
	good := inSpec(rec.Addr(), "v1")
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"broken YAML": {"apiVersion: engine/v1\nkind: Sensor\nspec: [\n", []string{"bad.yaml:"}},
		"unknown key": {
			strings.Replace(good, "dependencies:", "dependecies:", 1),
			[]string{"bad.yaml:12:3: error[", "dependecies", "dependencies"},
		},
		"dangling reference": {
			strings.Replace(good, "source: load", "source: lode", 1),
			[]string{"bad.yaml:13:", "lode", "load"},
		},
		"cyclic alias": {
			"apiVersion: engine/v1\nkind: EventSource\nmetadata: {name: x}\nspec: &a {webhook: *a}\n",
			[]string{"bad.yaml:4:"},
		},
		"alias bomb": {
			"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
				"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n" +
				"g: [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
			[]string{"bad.yaml:"},
		},
		"deep nesting": {strings.Repeat("[", 200_000), []string{"bad.yaml"}},
		"binary":       {"\x00\x01\xff\xfe", []string{"bad.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t, map[string]string{"bad.yaml": c.text})
			_, stderr, code := execute(t, nil, "validate", e.specs)
			if code != 1 {
				t.Errorf("validate: exit code %d, want 1", code)
			}
			for _, w := range c.want {
				if !strings.Contains(stderr, w) {
					t.Errorf("validate does not say %q:\n%s", w, tail(stderr, 10))
				}
			}
			if len(stderr) > 64<<10 {
				t.Errorf("validate says %d bytes, nobody reads that", len(stderr))
			}
			// The running engine reports it once and serves what is valid.
			e.write("good.yaml", `apiVersion: engine/v1
kind: EventSource
metadata: {name: good}
spec: {webhook: {good: {path: /good}}}
`)
			e.start()
			if s := e.post("/good", `{}`); s != http.StatusAccepted {
				t.Errorf("the valid webhook answered %d", s)
			}
			if !strings.Contains(e.log(), "bad.yaml") {
				t.Error("the log does not name the file")
			}
			e.stop()
		})
	}
}

// TestBadRequests: what is wrong with a request is its sender's problem, told
// by the status; the engine goes on.
func TestBadRequests(t *testing.T) {
	e := newEngine(t, map[string]string{"hook.yaml": `apiVersion: engine/v1
kind: EventSource
metadata: {name: hooks}
spec:
  webhook:
    open: {path: /open}
    signed:
      path: /signed
      auth: {hmac: {header: X-Signature, secret: {name: hooks, key: hook}}}
---
apiVersion: engine/v1
kind: Secret
metadata: {name: hooks}
spec: {env: {hook: TEST_HOOK_KEY}}
`})
	e.env = []string{"TEST_HOOK_KEY=key"}
	e.start()
	sign := func(body string) string {
		m := hmac.New(sha256.New, []byte("key"))
		m.Write([]byte(body))
		return hex.EncodeToString(m.Sum(nil))
	}
	for _, c := range []struct {
		name, path, body string
		header           []string
		want             int
	}{
		{"good", "/open", `{}`, nil, http.StatusAccepted},
		{"no such path", "/nowhere", `{}`, nil, http.StatusNotFound},
		{"broken JSON", "/open", `{"a":`, nil, http.StatusBadRequest},
		{"too large", "/open", `"` + strings.Repeat("x", 2<<20) + `"`, nil, http.StatusRequestEntityTooLarge},
		{"signed", "/signed", `{"a":1}`, []string{"X-Signature", sign(`{"a":1}`)}, http.StatusAccepted},
		{"no signature", "/signed", `{"a":1}`, nil, http.StatusUnauthorized},
		{"signature of something else", "/signed", `{"a":1}`, []string{"X-Signature", sign(`{"a":2}`)}, http.StatusUnauthorized},
		{"signature is no hex", "/signed", `{"a":1}`, []string{"X-Signature", "zz"}, http.StatusUnauthorized},
	} {
		if got := e.post(c.path, c.body, c.header...); got != c.want {
			t.Errorf("%s: status %d, want %d", c.name, got, c.want)
		}
	}
	resp, err := client.Get(e.url("/open")) //nolint:noctx // the client has a time-out
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: status %d, want 405", resp.StatusCode)
	}

	t.Run("50 MB body", func(t *testing.T) {
		// By hand, because the answer comes while the body is still being sent.
		nc, err := net.Dial("tcp", e.in)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		const size = 50 << 20
		_ = nc.SetDeadline(time.Now().Add(readyTimeout))
		fmt.Fprintf(nc, "POST /open HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", size)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = io.CopyN(nc, zeros{}, size) // fails when the engine hangs up: it may
		}()
		resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d, want 413", resp.StatusCode)
		}
		_ = nc.Close()
		<-sent
	})
	t.Run("garbage instead of HTTP", func(t *testing.T) {
		for _, raw := range []string{"\x16\x03\x01\x00\xff", "GET\r\n\r\n", "POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"} {
			nc, err := net.Dial("tcp", e.in)
			if err != nil {
				t.Fatal(err)
			}
			_ = nc.SetDeadline(time.Now().Add(readyTimeout))
			_, _ = io.WriteString(nc, raw)
			_ = nc.(*net.TCPConn).CloseWrite()
			answer, _ := io.ReadAll(io.LimitReader(nc, 1<<10))
			if bytes.Contains(answer, []byte(" 202 ")) {
				t.Errorf("%q was accepted", raw)
			}
			_ = nc.Close()
		}
	})
	if s := e.post("/open", `{}`); s != http.StatusAccepted {
		t.Errorf("status %d after all that, want 202", s)
	}
	e.stop()
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

const oneWebhook = `apiVersion: engine/v1
kind: EventSource
metadata: {name: one}
spec: {webhook: {in: {path: /in}}}
`

// refused runs the engine, which must end by itself with a failure and say all
// of want.
func (e *engine) refused(want ...string) {
	e.t.Helper()
	e.launch()
	select {
	case <-e.ended:
	case <-time.After(20 * time.Second):
		e.t.Fatal("still runs after 20 s")
	}
	if code := e.proc.ProcessState.ExitCode(); code <= 0 {
		e.t.Errorf("exit code %d, want a failure", code)
	}
	e.proc = nil
	for _, w := range want {
		if !strings.Contains(e.log(), w) {
			e.t.Errorf("does not say %q:\n%s", w, tail(e.log(), 10))
		}
	}
}

func TestPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, set := range map[string]func(*engine){
		"listen": func(e *engine) { e.in = ln.Addr().String() },
		"api":    func(e *engine) { e.api = ln.Addr().String() },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, map[string]string{"one.yaml": oneWebhook})
			set(e)
			e.refused(ln.Addr().String(), "in use")
		})
	}
}

func TestSecondEngine(t *testing.T) {
	e := newEngine(t, map[string]string{"one.yaml": oneWebhook})
	e.start()
	second := newEngine(t, map[string]string{"one.yaml": oneWebhook})
	second.data = e.data
	second.refused(e.data, fmt.Sprint(e.proc.Process.Pid))
	if s := e.post("/in", `{}`); s != http.StatusAccepted {
		t.Errorf("the first engine answers %d", s)
	}
	e.stop()
	// The lock goes with its owner.
	second.start()
	second.kill()
	second.start()
	second.stop()
}

func TestReadOnlyData(t *testing.T) {
	e := newEngine(t, map[string]string{"one.yaml": oneWebhook})
	if err := os.Mkdir(e.data, 0o555); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 {
		e.refused(e.data, "permission denied")
		return
	}
	// Nothing is read-only for root, so somebody else runs it; the way to the
	// files must be open to them.
	for dir := e.data; dir != filepath.Dir(os.TempDir()) && len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if dir == e.data {
			continue
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "run", e.specs, "--data", e.data, "--listen", e.in, "--api", e.api)
	cmd.Env = cleanEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		t.Fatalf("want a failure, got %v\n%s", err, out)
	}
	for _, want := range []string{e.data, "permission denied"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
	if m := panicked.Find(out); m != nil {
		t.Errorf("output has %q:\n%s", m, out)
	}
}

// TestMissingSpecs: a path that is not there is a mistake, not an empty set.
func TestMissingSpecs(t *testing.T) {
	e := newEngine(t, nil)
	e.specs = filepath.Join(e.specs, "nowhere")
	e.refused(e.specs)
}

// TestUnreachableBus: without its bus the engine is not ready and says why; it
// may wait for the bus or give up, but accepts nothing it cannot store.
func TestUnreachableBus(t *testing.T) {
	e := newEngine(t, map[string]string{"one.yaml": oneWebhook})
	bus := freeAddrs(t, 1)[0]
	e.args = []string{"--bus", "nats://" + bus}
	e.launch()
	eventually(t, readyTimeout, "the log names the bus", func() error {
		if !strings.Contains(e.log(), bus) {
			return errors.New("it does not")
		}
		return nil
	})
	select {
	case <-e.ended:
		if code := e.proc.ProcessState.ExitCode(); code <= 0 {
			t.Errorf("exit code %d, want a failure", code)
		}
	case <-time.After(2 * time.Second):
		if status, _, err := get("http://" + e.api + "/readyz"); err == nil && status == http.StatusOK {
			t.Error("it says it is ready")
		}
		if c, err := load.Dial(e.in); err == nil {
			if status, _, err := c.Post("/in", "", []byte(`{}`)); err == nil && status < 400 {
				t.Errorf("it answers %d to an event it cannot store", status)
			}
			_ = c.Close()
		}
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"run", "--no-such-flag"},
		{"no-such-verb"},
		{"run", ".", "--log-format", "xml"},
		{"run", ".", "--listen", "nonsense"},
		{"validate", filepath.Join(t.TempDir(), "nowhere")},
	} {
		stdout, stderr, code := execute(t, nil, args...)
		if code <= 0 {
			t.Errorf("engine %s: exit code %d, want a failure", strings.Join(args, " "), code)
		}
		if !strings.Contains(stderr, args[len(args)-1]) {
			t.Errorf("engine %s: stderr does not name %q:\n%s%s", strings.Join(args, " "), args[len(args)-1], stdout, stderr)
		}
	}
}
