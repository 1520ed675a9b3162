package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Bounds that end a trial that hangs; they measure nothing.
const (
	startTimeout  = 60 * time.Second
	arriveTimeout = 120 * time.Second
)

// engine is one engine: its files, its addresses and, while it runs, its
// process.
type engine struct {
	t           *trial
	binary      string
	specs, data string
	in, api     string // host and port of events and of the API
	logFile     string
	env, args   []string
	shell       string // run before the engine, in its process
	proc        *exec.Cmd
	ended       chan struct{} // closed when proc has ended
}

// engine makes an engine with the given spec files; it is not started. At the
// end of the trial it is killed, and its log must be free of panics.
func (t *trial) engine(files map[string]string, of build) *engine {
	dir := t.path("engine")
	addrs := t.addrs(2)
	if t.o.patch != nil {
		of.patches = append(of.patches, *t.o.patch)
	}
	binary, err := t.o.builds.get(t.ctx, of)
	t.must(err)
	e := &engine{
		t: t, binary: binary, specs: filepath.Join(dir, "specs"), data: filepath.Join(dir, "data"),
		in: addrs[0], api: addrs[1], logFile: filepath.Join(dir, "log"),
	}
	t.must(os.Mkdir(e.specs, 0o755))
	for name, text := range files {
		e.write(name, text)
	}
	t.after(func() {
		e.kill()
		if m := panicked.FindString(e.log()); m != "" {
			t.failf("the engine's log has %q: %s", m, e.logFile)
		}
	})
	return e
}

// panicked finds what a log must not contain.
var panicked = regexp.MustCompile(`panicked|fatal error:|goroutine \d+ \[|SIGSEGV|runtime error`)

// write replaces a spec file with a rename.
func (e *engine) write(name, text string) {
	tmp := filepath.Join(e.specs, "."+name+".tmp")
	e.t.must(os.WriteFile(tmp, []byte(text), 0o644))
	e.t.must(os.Rename(tmp, filepath.Join(e.specs, name)))
}

// launch starts the process and does not wait for anything.
func (e *engine) launch() {
	log, err := os.OpenFile(e.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	e.t.must(err)
	defer log.Close()
	args := append([]string{"run", e.specs, "--data", e.data, "--listen", e.in, "--api", e.api, "--log-format", "json"}, e.args...)
	proc := exec.Command(e.binary, args...)
	if e.shell != "" {
		proc = exec.Command("sh", append([]string{"-c", e.shell + `; exec "$0" "$@"`, e.binary}, args...)...)
	}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ENGINE_") {
			proc.Env = append(proc.Env, v)
		}
	}
	proc.Env = append(proc.Env, e.env...)
	proc.Stdout, proc.Stderr = log, log
	e.t.must(proc.Start())
	ended := make(chan struct{})
	go func() {
		_ = proc.Wait() // ProcessState tells
		close(ended)
	}()
	e.proc, e.ended = proc, ended
}

// start starts the process, waits until it is ready and returns how long that
// took.
func (e *engine) start() time.Duration {
	begin := time.Now()
	e.launch()
	e.awaitReady()
	return time.Since(begin)
}

func (e *engine) awaitReady() {
	if !e.t.eventually(startTimeout, "the engine is ready", func() error {
		select {
		case <-e.ended:
			e.t.fatalf("the engine ended before it was ready: %v: %s", e.proc.ProcessState, lastLine(e.log()))
		default:
		}
		status, body, err := get("http://" + e.api + "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz: %d %s", status, body)
		}
		return err
	}) {
		panic(over{})
	}
}

// kill ends the process with SIGKILL, if it runs.
func (e *engine) kill() {
	if e.proc != nil {
		_ = e.proc.Process.Kill()
		<-e.ended
		e.proc = nil
	}
}

// stop ends the process with SIGTERM, which must give exit code 0 in time.
func (e *engine) stop() {
	e.signal(syscall.SIGTERM)
	select {
	case <-e.ended:
		if code := e.proc.ProcessState.ExitCode(); code != 0 {
			e.t.failf("exit code %d after SIGTERM: %s", code, lastLine(e.log()))
		}
		e.proc = nil
	case <-time.After(30 * time.Second):
		e.t.failf("still runs 30 s after SIGTERM")
		e.kill()
	}
}

func (e *engine) signal(s syscall.Signal) {
	if err := e.proc.Process.Signal(s); err != nil {
		e.t.fatalf("%v: the engine is gone: %v %s", s, err, lastLine(e.log()))
	}
}

// alive fails the trial when the process has ended.
func (e *engine) alive() bool {
	select {
	case <-e.ended:
		e.t.failf("the engine ended: %v: %s", e.proc.ProcessState, lastLine(e.log()))
		return false
	default:
		return true
	}
}

func (e *engine) log() string {
	b, _ := os.ReadFile(e.logFile)
	return string(b)
}

// rss is the resident memory in bytes.
func (e *engine) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.proc.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// status is what the API says of an engine, as far as we look at it.
type status struct {
	Ready  bool
	Alarms []struct{ Code, Message string }
	Fold   struct{ Folded, Covered uint64 }
}

func (e *engine) status() (s status, err error) {
	_, body, err := get("http://" + e.api + "/api/v1/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &s)
	}
	return s, err
}

// alarmed waits until the status has an alarm.
func (e *engine) alarmed(code string) {
	e.t.eventually(10*time.Second, "the status has the alarm "+code, func() error {
		s, err := e.status()
		if err != nil {
			return err
		}
		for _, a := range s.Alarms {
			if a.Code == code {
				return nil
			}
		}
		return fmt.Errorf("it has %v", s.Alarms)
	})
}

// client keeps no connections.
var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(url string) (status int, body string, err error) {
	resp, err := client.Get(url) //nolint:noctx // the client has a time-out
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// post sends one event and returns the answer's status and Retry-After.
func (e *engine) post(path, body string, header ...string) (status int, retryAfter string, err error) {
	req, err := http.NewRequestWithContext(e.t.ctx, http.MethodPost, "http://"+e.in+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Retry-After"), nil
}

// accepted posts one event that must be accepted.
func (e *engine) accepted(path, body string, header ...string) {
	if s, _, err := e.post(path, body, header...); s != http.StatusAccepted {
		e.t.fatalf("%s answered %d %v", path, s, err)
	}
}

// addrs returns n loopback addresses on which nothing listens at the moment.
func (t *trial) addrs(n int) (addrs []string) {
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		t.must(err)
		defer ln.Close() // only at the end, or the same port comes again
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
