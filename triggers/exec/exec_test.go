package exec

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// values returns every text as it is and one secret.
type values struct{ triggers.Values }

func (values) TextOrSecret(t specs.TextOrSecret) (string, error) {
	if t.Secret != nil {
		return t.Prefix + "hidden", nil
	}
	return strings.ReplaceAll(t.Text.Value, "${ nul }", "a\x00b"), nil
}

func event() *bus.Event {
	return &bus.Event{
		ID: "1", Source: "/shop", Type: "order", Subject: "$(id); `id`", DataContentType: "application/json",
		Time: time.Unix(1, 0).UTC(), Data: []byte(`{"id":1234567890123456789}`),
		Extensions: map[string]string{"traceparent": "00-ab", "path": "/evil"},
	}
}

// call returns a call with a key of its own: what is left of a call is found by
// its key.
func call() *triggers.Call {
	return &triggers.Call{Key: rand.Text(), Attempt: 2, Sensor: "s", Trigger: "t", Function: "f", Event: event(), Values: values{}}
}

func sh(script string) *Config { return &Config{Command: []string{"sh", "-c", script}} }

func invoke(t testing.TB, ctx context.Context, cfg *Config, c *triggers.Call) (triggers.Result, error) {
	t.Helper()
	f, err := newFunction(cfg, triggers.Env{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return f.Invoke(ctx, c)
}

func permanent(err error) bool {
	var p *triggers.PermanentError
	return errors.As(err, &p)
}

func TestOutcome(t *testing.T) {
	for name, tc := range map[string]struct {
		script                          string
		out, typ, logs, status, failure string
	}{
		"json":         {script: `echo '{"a":1}'; echo hi >&2`, out: "{\"a\":1}\n", typ: "application/json", logs: "hi\n", status: "exit 0"},
		"text":         {script: `echo hello`, out: "hello\n", typ: "text/plain; charset=utf-8", status: "exit 0"},
		"silent":       {script: `:`, status: "exit 0"},
		"invalid utf8": {script: `printf '\377\376'`, out: "\xff\xfe", typ: "application/octet-stream", status: "exit 0"},
		"nul":          {script: `printf 'a\000b'`, out: "a\x00b", typ: "application/octet-stream", status: "exit 0"},
		"exit 3":       {script: `echo one >&2; printf 'two\033[31m\n' >&2; exit 3`, logs: "one\ntwo\x1b[31m\n", status: "exit 3", failure: "sh: exit 3: two [31m"},
		"signal":       {script: `kill -SEGV $$`, status: "killed by SIGSEGV", failure: "sh: killed by SIGSEGV"},
		"killed":       {script: `kill -9 $$`, status: "killed by SIGKILL", failure: "sh: killed by SIGKILL"},
		"stdin unread": {script: `exec 0<&-; echo x`, out: "x\n", typ: "text/plain; charset=utf-8", status: "exit 0"},
	} {
		t.Run(name, func(t *testing.T) {
			c := call()
			c.Event.Data = make([]byte, 1<<20) // more than a pipe holds
			res, err := invoke(t, t.Context(), sh(tc.script), c)
			if (err == nil) != (tc.failure == "") || err != nil && err.Error() != tc.failure || permanent(err) {
				t.Errorf("error %v, want %q", err, tc.failure)
			}
			if string(res.Output) != tc.out || res.ContentType != tc.typ || string(res.Logs.Stderr) != tc.logs || res.Status != tc.status || res.Truncated {
				t.Errorf("got %+v", res)
			}
		})
	}
}

func TestStdin(t *testing.T) {
	for _, tc := range []struct {
		stdin string
		input any
		want  string
	}{
		{"", nil, `{"id":1234567890123456789}`},
		{"", map[string]any{"a": "b"}, `{"a":"b"}`},
		{"data", "x", `{"id":1234567890123456789}`},
		{"input", nil, ``},
		{"none", "x", ``},
		{"event", nil, `{"specversion":"1.0","id":"1","source":"/shop","type":"order","subject":"$(id); ` + "`id`" + `","time":"1970-01-01T00:00:01Z","datacontenttype":"application/json","path":"/evil","traceparent":"00-ab","data":{"id":1234567890123456789}}`},
	} {
		c := call()
		c.Input, c.HasInput = tc.input, tc.input != nil
		res, err := invoke(t, t.Context(), &Config{Command: []string{"cat"}, Stdin: tc.stdin}, c)
		if err != nil || string(res.Output) != tc.want {
			t.Errorf("%q: %s, want %s (%v)", tc.stdin, res.Output, tc.want, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("LEAK", "secret of the engine")
	t.Setenv("WANTED", "yes")
	cfg := &Config{Command: []string{"env"}, InheritEnv: []string{"WANTED", "ABSENT"}, Env: map[string]specs.TextOrSecret{
		"TOKEN": {Secret: &specs.SecretRef{Name: "a", Key: "b"}, Prefix: "Bearer "},
		"CE_ID": {Text: specs.Text{Value: "mine"}},
	}}
	c := call()
	res, err := invoke(t, t.Context(), cfg, c)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(res.Output)) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		got[k] = v
	}
	for k, v := range map[string]string{
		"WANTED": "yes", "TOKEN": "Bearer hidden", "CE_ID": "mine", "CE_TYPE": "order", "CE_SOURCE": "/shop",
		"CE_SUBJECT": "$(id); `id`", "CE_TIME": "1970-01-01T00:00:01Z", "CE_DATACONTENTTYPE": "application/json",
		"CE_EXT_TRACEPARENT": "00-ab", "CE_EXT_PATH": "/evil", "ENGINE_KEY": c.Key, "ENGINE_ATTEMPT": "2",
		"ENGINE_SENSOR": "s", "ENGINE_TRIGGER": "t", "ENGINE_FUNCTION": "f", "PATH": os.Getenv("PATH"),
	} {
		if got[k] != v {
			t.Errorf("%s=%q, want %q", k, got[k], v)
		}
	}
	for _, k := range []string{"LEAK", "ABSENT"} {
		if v, ok := got[k]; ok {
			t.Errorf("%s=%q leaked", k, v)
		}
	}

	cfg = &Config{Command: []string{"env"}, Env: map[string]specs.TextOrSecret{"X": {Text: specs.Text{Value: "${ nul }"}}}}
	if _, err := invoke(t, t.Context(), cfg, call()); !permanent(err) {
		t.Errorf("NUL: %v", err)
	}
	for _, name := range []string{"PATH", "LD_PRELOAD", "BASH_ENV", "DYLD_INSERT_LIBRARIES"} {
		cfg := &Config{Command: []string{"env"}, Env: map[string]specs.TextOrSecret{name: {Text: specs.Text{Value: "${ data.x }"}}}}
		if _, err := newFunction(cfg, triggers.Env{}); err == nil {
			t.Errorf("%s may come from an event", name)
		}
	}
}

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("ok.sh", "#!/bin/sh\npwd", 0o700)
	write("plain.sh", "#!/bin/sh\n", 0o600)
	write("noshebang", "echo", 0o700)
	write("badshebang", "#!/no/such/interpreter\n", 0o700)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ program, dir, out, failure string }{
		{program: "./ok.sh", out: dir + "\n"},
		{program: "./ok.sh", dir: "sub", out: dir + "/sub\n"},
		{program: "./ok.sh", dir: "absent", failure: "working directory"},
		{program: "./absent.sh", failure: "relative to the file that names it"},
		{program: "no-such-program-anywhere", failure: "not found in the engine's PATH"},
		{program: "./noshebang", failure: "#!/bin/sh"},
		{program: "./badshebang", failure: "interpreter"},
	} {
		f, err := newFunction(&Config{Command: []string{tc.program}, Dir: tc.dir}, triggers.Env{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		res, err := f.Invoke(t.Context(), call())
		if string(res.Output) != tc.out || (err == nil) != (tc.failure == "") {
			t.Errorf("%s: %q, %v", tc.program, res.Output, err)
		}
		if err != nil && (!permanent(err) || !strings.Contains(err.Error(), tc.failure)) {
			t.Errorf("%s: %v, want %q", tc.program, err, tc.failure)
		}
	}
	if os.Getuid() != 0 {
		f, _ := newFunction(&Config{Command: []string{"./plain.sh"}}, triggers.Env{Dir: dir})
		if _, err := f.Invoke(t.Context(), call()); !permanent(err) || !strings.Contains(err.Error(), "chmod") {
			t.Errorf("not executable: %v", err)
		}
	}
}

// alive reports whether a process exists and is no zombie.
func alive(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func gone(t *testing.T, pids ...string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for _, pid := range pids {
		if strings.TrimSpace(pid) == "" {
			t.Error("a process did not start")
		}
		for alive(pid) {
			if time.Now().After(deadline) {
				t.Errorf("process %s is still there", pid)
				break
			}
			runtime.Gosched()
		}
	}
}

func TestHang(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	for name, script := range map[string]string{
		"sleeps":           `sleep 1000 & echo $$ $!; wait`,
		"leaves the group": `setsid sh -c 'echo $$; exec sleep 1000' & setsid setsid sh -c 'trap "" TERM; echo $$; sleep 1000; :' & sleep 1000 & wait`,
		"ignores SIGTERM":  `trap '' TERM; sh -c 'trap "" TERM; while :; do sleep 1000; done' & echo $$ $!; while :; do sleep 1000; done`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			begin := time.Now()
			res, err := invoke(t, ctx, sh(script), call())
			if !errors.Is(err, context.DeadlineExceeded) || permanent(err) {
				t.Errorf("error %v", err)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
			want := "killed by SIGTERM"
			if name == "ignores SIGTERM" {
				want = "killed by SIGKILL"
			}
			if res.Status != want {
				t.Errorf("status %q, want %q", res.Status, want)
			}
			gone(t, strings.Fields(string(res.Output))...)
		})
	}
}

func TestLeftBehind(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	// A child in the background holds the pipes and outlives its parent.
	begin := time.Now()
	res, err := invoke(t, t.Context(), sh(`sleep 1000 & echo $!`), call())
	if err != nil || res.Status != "exit 0" {
		t.Fatalf("%+v, %v", res, err)
	}
	gone(t, strings.TrimSpace(string(res.Output)))

	// One that left the group as well must not hang the call.
	res, err = invoke(t, t.Context(), sh(`setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.2; exit 0`), call())
	if err != nil || res.Status != "exit 0" {
		t.Errorf("%+v, %v", res, err)
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("took %v", d)
	}
	gone(t, strings.TrimSpace(string(res.Output)))
}

func TestFlood(t *testing.T) {
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	res, err := invoke(t, t.Context(), sh(`head -c 200000000 /dev/zero | tr '\0' 'x'; head -c 5000000 /dev/zero >&2; echo done > marker; cat marker >&2`), call())
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if len(res.Output) != triggers.MaxOutput || len(res.Logs.Stderr) != triggers.MaxLogs || !res.Truncated || !res.Logs.Truncated {
		t.Errorf("kept %d and %d, truncated %v", len(res.Output), len(res.Logs.Stderr), res.Truncated)
	}
	// All that was ever allocated, not only what remains: a bound on RSS.
	if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
		t.Errorf("allocated %d bytes", n)
	}
}

func BenchmarkSpawn(b *testing.B) {
	f, err := newFunction(&Config{Command: []string{"true"}}, triggers.Env{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	c := call()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Invoke(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}

func TestSecretsAreVariables(t *testing.T) {
	c := call()
	c.Secrets = map[string]string{"api-token": "a", "Plain": "b"}
	cfg := sh(`echo "$API_TOKEN $PLAIN $OWN"`)
	cfg.Env = map[string]specs.TextOrSecret{"OWN": {Text: specs.Text{Value: "c"}}}
	if res, err := invoke(t, t.Context(), cfg, c); string(res.Output) != "a b c\n" || err != nil {
		t.Errorf("%q, %v", res.Output, err)
	}
	c.Secrets = map[string]string{"ld-preload": "x"}
	if _, err := invoke(t, t.Context(), cfg, c); !permanent(err) || !strings.Contains(err.Error(), "rename the key") {
		t.Error(err)
	}
}
