package driver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/sourcetest"
	"github.com/sensor-engine/engine/specs"
)

// TestMain is also the program that drivers in these tests run.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "driver-program" {
		programs()[os.Args[2]](os.Args[3:])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func forever() { select {} }

// option is the value of a flag --name=value of the program.
func option(args []string, name string) string {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return v
		}
	}
	return ""
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(9)
	}
}

// publish writes a file that is complete as soon as it is there.
func publish(path string, content []byte) {
	must(os.WriteFile(path+".part", content, 0o600))
	must(os.Rename(path+".part", path))
}

func line(id string) string {
	return `{"specversion":"1.0","id":"` + id + `","type":"probe.seen","source":"probe","data":{"n":1}}` + "\n"
}

func post(body string) (int, error) {
	req, err := http.NewRequest(http.MethodPost, os.Getenv("ENGINE_EVENTS_URL"), strings.NewReader(body))
	must(err)
	req.Header.Set("Authorization", "Bearer "+os.Getenv("AUTH_TOKEN"))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

func programs() map[string]func(args []string) {
	return map[string]func(args []string){
		"wait": func([]string) { forever() },
		"dump": func(args []string) {
			b, err := json.Marshal(map[string]any{"args": args, "env": os.Environ()})
			must(err)
			publish(option(args, "out"), b)
			forever()
		},
		"exit": func(args []string) {
			f, err := os.OpenFile(option(args, "out"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			must(err)
			fmt.Fprintln(f, os.Getpid())
			fmt.Fprintln(os.Stderr, "first line")
			fmt.Fprintln(os.Stderr, "the disk is gone, token", os.Getenv("AUTH_TOKEN"))
			code, err := strconv.Atoi(option(args, "code"))
			must(err)
			syscall.Exit(code) // os.Exit says more on stderr when coverage is measured
		},
		"crash": func([]string) {
			must(syscall.Kill(os.Getpid(), syscall.SIGKILL))
			forever()
		},
		// Copies a file to stdout, and waits or ends.
		"cat": func(args []string) {
			f, err := os.Open(option(args, "in"))
			must(err)
			_, err = io.Copy(os.Stdout, f)
			must(err)
			if option(args, "then") == "wait" {
				forever()
			}
		},
		// Posts and writes events when the file "go" appears, and notes what
		// was acknowledged.
		"work": func(args []string) {
			dir := option(args, "dir")
			for {
				if _, err := os.Stat(filepath.Join(dir, "go")); err == nil {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			n, err := strconv.Atoi(option(args, "n"))
			must(err)
			var acknowledged []string
			for i := range n {
				fmt.Print(line(fmt.Sprint("out-", i)))
				id := fmt.Sprint("post-", i)
				for {
					status, err := post(line(id))
					must(err)
					if status == http.StatusCreated {
						break
					}
					if status != http.StatusServiceUnavailable {
						must(fmt.Errorf("status %d", status))
					}
				}
				acknowledged = append(acknowledged, id)
			}
			publish(filepath.Join(dir, "acknowledged"), []byte(strings.Join(acknowledged, "\n")))
			forever()
		},
		// Writes numbered events to stdout until it is killed, as fast as it is read.
		"stream": func(args []string) {
			for i := 0; ; i++ {
				_, err := fmt.Print(line(option(args, "prefix") + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(i)))
				must(err)
				if option(args, "slow") != "" {
					time.Sleep(time.Millisecond)
				}
			}
		},
		// Posts numbered events as a driver of Dispatch does, and notes which
		// were acknowledged.
		"dispatch": func(args []string) {
			url := "http://" + option(args, endpointSetting) + gatewayPath
			res, err := http.Get(url)
			must(err)
			must(res.Body.Close())
			f, err := os.OpenFile(option(args, "out"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			must(err)
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", os.Getpid(), i)
				req, err := http.NewRequest(http.MethodPost, url+"?authToken="+os.Getenv("AUTH_TOKEN"), strings.NewReader(
					`[{"cloudEventsVersion":"0.1","eventType":"ticker.tick","source":"s","eventID":"`+id+`"}]`))
				must(err)
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Cookie", "unset")
				res, err := http.DefaultClient.Do(req)
				must(err)
				_, err = io.Copy(io.Discard, res.Body)
				must(err)
				must(res.Body.Close())
				if res.StatusCode != http.StatusOK {
					must(fmt.Errorf("status %d", res.StatusCode))
				}
				fmt.Fprintln(f, id)
			}
		},
		"stubborn": func(args []string) {
			signal.Ignore(syscall.SIGTERM)
			publish(option(args, "out"), []byte(strconv.Itoa(os.Getpid())))
			forever()
		},
		"graceful": func(args []string) {
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGTERM)
			publish(option(args, "out"), []byte(strconv.Itoa(os.Getpid())))
			<-c
			fmt.Print(line("last"))
			if _, err := post(line("last-post")); err != nil {
				must(err)
			}
		},
		// Forks one process in its group and one that leaves it.
		"fork": func(args []string) {
			var pids []string
			for _, leave := range []bool{false, true} {
				c := exec.Command(os.Args[0], "driver-program", "wait")
				c.Stdout, c.Stderr = os.Stdout, os.Stderr
				c.SysProcAttr = &syscall.SysProcAttr{Setsid: leave}
				must(c.Start())
				pids = append(pids, strconv.Itoa(c.Process.Pid))
			}
			publish(option(args, "out"), []byte(strings.Join(pids, "\n")))
			if option(args, "then") == "wait" {
				forever()
			}
		},
		"serve": func(args []string) {
			if d, err := time.ParseDuration(option(args, "after")); err == nil {
				time.Sleep(d)
			}
			must(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				must(err)
				fmt.Fprintf(w, "%s %s auth=%q prefix=%s body=%s", r.Method, r.URL, r.Header.Get("Authorization"), r.Header.Get("X-Forwarded-Prefix"), b)
			})))
		},
		"chatter": func(args []string) {
			for i := range 5000 {
				fmt.Fprintln(os.Stderr, "line", i)
			}
			fmt.Fprintln(os.Stderr, strings.Repeat("long ", 10000))
			publish(option(args, "out"), nil)
			forever()
		},
		// Write or post n events as fast as it goes, and end.
		"flood": func(args []string) {
			n, err := strconv.Atoi(option(args, "n"))
			must(err)
			out := bufio.NewWriterSize(os.Stdout, 64<<10)
			for i := range n {
				_, err := out.WriteString(line("event-" + strconv.Itoa(i)))
				must(err)
			}
			must(out.Flush())
		},
		"poster": func(args []string) {
			n, err := strconv.Atoi(option(args, "n"))
			must(err)
			batch, err := strconv.Atoi(option(args, "batch"))
			must(err)
			http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 16
			var next atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for {
						i := int(next.Add(1)) - 1
						if i*batch >= n {
							return
						}
						var body strings.Builder
						for j := range batch {
							body.WriteString(line("event-" + strconv.Itoa(i*batch+j)))
						}
						status, err := post(body.String())
						must(err)
						if status != http.StatusCreated {
							must(fmt.Errorf("status %d", status))
						}
					}
				})
			}
			wg.Wait()
		},
		// Starts a driver as an engine does and is killed.
		"engine": func(args []string) {
			s := source(nil, &Config{Type: "probe", Set: specs.Settings{"out": option(args, "out")}, MaxMessage: 1 << 20}, probe("stubborn"))
			_ = s.Run(context.Background(), &bareHost{})
		},
	}
}

// probe is a DriverType of this test binary.
func probe(program string, with ...func(*specs.DriverType)) *specs.DriverType {
	t := &specs.DriverType{Command: []string{os.Args[0], "driver-program", program}}
	for _, w := range with {
		w(t)
	}
	return t
}

// environment has a DriverType "probe" and Secrets.
func environment(typ *specs.DriverType, secrets map[string]*specs.Secret) sources.Env {
	return sources.Env{
		Source: "test", Event: "event",
		Resource: func(ref specs.Ref) *specs.Resource {
			r := &specs.Resource{Kind: ref.Kind, Metadata: specs.Metadata{Name: ref.Name}, Pos: specs.Pos{File: "drivers.yaml", Line: 1, Col: 1}}
			if ref == (specs.Ref{Kind: specs.KindDriverType, Name: "probe"}) && typ != nil {
				r.Spec = typ
				return r
			}
			if s := secrets[ref.Name]; ref.Kind == specs.KindSecret && s != nil {
				r.Spec = s
				return r
			}
			return nil
		},
	}
}

// config is a valid config with the defaults.
func config(set specs.Settings, with ...func(*Config)) *Config {
	c := Factory().New().(*Config)
	c.Type, c.Set = "probe", set
	for _, w := range with {
		w(c)
	}
	return c
}

func source(t testing.TB, c *Config, typ *specs.DriverType) *driver {
	d, err := newDriver(c, environment(typ, nil), &gates{held: map[string]chan struct{}{}})
	if err != nil {
		if t == nil {
			must(err)
		}
		t.Fatal(err)
	}
	return d
}

// host is a host whose log and status can be looked at.
type host struct {
	*sourcetest.Host
	mu      sync.Mutex
	details []string
	log     bytes.Buffer
}

func newHost(t testing.TB) *host { return &host{Host: sourcetest.NewHost(t, DefaultType)} }

func (h *host) Ready(detail string) {
	h.mu.Lock()
	h.details = append(h.details, detail)
	h.mu.Unlock()
	h.Host.Ready(detail)
}

func (h *host) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(h, nil)) }

func (h *host) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(b)
}

func (h *host) logged() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.String()
}

// detail is what the status says now, "" before the source was ready.
func (h *host) detail() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.details) == 0 {
		return ""
	}
	return h.details[len(h.details)-1]
}

func (h *host) ids() []string {
	var out []string
	for _, ev := range h.Events() {
		out = append(out, ev.ID)
	}
	return out
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// content waits for a file and returns what is in it.
func content(t testing.TB, path string) string {
	t.Helper()
	var b []byte
	eventually(t, path+" is there", func() bool {
		var err error
		b, err = os.ReadFile(path)
		return err == nil
	})
	return string(b)
}

func pids(t testing.TB, path string) (out []int) {
	for s := range strings.FieldsSeq(content(t, path)) {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return syscall.Kill(pid, 0) == nil && !exists("/proc/self/stat")
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return !slices.Contains([]string{"Z", "X"}, fields[0])
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
