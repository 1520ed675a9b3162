package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sensor-engine/engine/specs"
)

var update = flag.Bool("update", false, "write the golden files")

// testEnv is a world of buffers and a few variables.
func testEnv(vars map[string]string) (e *env, stdout, stderr *bytes.Buffer) {
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return &env{
		stdin: strings.NewReader(""), stdout: stdout, stderr: stderr, version: "v1", exit: func(int) {},
		lookup: func(name string) (string, bool) { v, ok := vars[name]; return v, ok },
	}, stdout, stderr
}

// walk calls fn for every verb.
func walk(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, fn)
	}
}

// TestVariables: every flag has a variable in its help, and no variable means
// two things.
func TestVariables(t *testing.T) {
	e, _, _ := testEnv(nil)
	meaning := map[string]string{}
	walk(e.root(), func(cmd *cobra.Command) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			name := variable(cmd, f)
			if !strings.HasSuffix(f.Usage, " [$"+name+"]") {
				t.Errorf("%s --%s: the help %q does not end with %s", cmd.CommandPath(), f.Name, f.Usage, name)
			}
			what := f.Name
			if f.Annotations[shared] == nil {
				what = cmd.CommandPath() + " " + f.Name
			}
			if was, ok := meaning[name]; ok && was != what {
				t.Errorf("%s means %q and %q", name, was, what)
			}
			meaning[name] = what
		})
	})
	for _, name := range []string{"ENGINE_LISTEN", "ENGINE_API", "ENGINE_DATA", "ENGINE_BUS", "ENGINE_API_TOKEN", "ENGINE_EMIT_DATA", "ENGINE_DLQ_LIST_SENSOR"} {
		if meaning[name] == "" {
			t.Errorf("there is no %s", name)
		}
	}
}

func TestVerbsAreDescribed(t *testing.T) {
	e, _, _ := testEnv(nil)
	walk(e.root(), func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short text %q", cmd.CommandPath(), cmd.Short)
		}
	})
}

// TestReference compares docs/cli.md with the program; `make gen` or -update
// renews it.
func TestReference(t *testing.T) {
	e, _, _ := testEnv(nil)
	golden(t, filepath.Join("..", "..", "docs", "cli.md"), reference(e))
}

func TestHelp(t *testing.T) {
	for _, verb := range []string{"", "run", "events", "dlq redrive"} {
		e, out, _ := testEnv(nil)
		if code := execute(t.Context(), e, append(strings.Fields(verb), "--help")); code != 0 {
			t.Errorf("%s --help: exit code %d", verb, code)
		}
		golden(t, filepath.Join("testdata", "help"+strings.ReplaceAll(" "+verb, " ", "-")+".golden"), out.String())
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is out of date; -update or `make gen` renews it. Now it is\n%s", path, got)
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		name string
		vars map[string]string
		args []string
		code int
		want string // in standard output or standard error
	}{
		{"variable", map[string]string{"ENGINE_OUTPUT": "json"}, []string{"version"}, 0, `"version": "v1"`},
		{"flag wins", map[string]string{"ENGINE_OUTPUT": "json"}, []string{"version", "-o", "text"}, 0, "engine v1 ("},
		{"wrong variable", map[string]string{"ENGINE_OUTPUT": "xml"}, []string{"version"}, 2, `ENGINE_OUTPUT="xml"`},
		{"empty variable", map[string]string{"ENGINE_OUTPUT": ""}, []string{"version"}, 0, "engine v1 ("},
		{"data directory of emit", map[string]string{"ENGINE_DATA": "elsewhere"}, []string{"emit", "t", "--data", "{}"}, 3, "data directory elsewhere; start one, or say where it is with ENGINE_DATA or --api"},
		{"api", map[string]string{"ENGINE_API": "127.0.0.1:1"}, []string{"get"}, 3, "no engine answers at http://127.0.0.1:1"},
		{"unknown verb", nil, []string{"fly"}, 2, `unknown command "fly"`},
		{"two tokens", map[string]string{"ENGINE_API_TOKEN": "a", "ENGINE_API_TOKEN_FILE": "b"}, []string{"run"}, 2, "both given"},
		{"API for everybody", nil, []string{"run", "--api", ":8180"}, 2, "needs a token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, out, errOut := testEnv(c.vars)
			if code := execute(t.Context(), e, c.args); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(out.String()+errOut.String(), c.want) {
				t.Errorf("no %q in\n%s%s", c.want, out, errOut)
			}
		})
	}
}

func TestWriteYAML(t *testing.T) {
	for in, want := range map[string]string{
		`null`:                                "null\n",
		`{}`:                                  "{}\n",
		`[]`:                                  "[]\n",
		`"plain text"`:                        "plain text\n",
		`12345678901234567890`:                "12345678901234567890\n",
		`["true","no","1.5","","a: b","-"]`:   "- \"true\"\n- \"no\"\n- \"1.5\"\n- \"\"\n- \"a: b\"\n- \"-\"\n",
		`{"z":1,"a":[{"b":true,"c":[]},[1]]}`: "z: 1\na:\n  - b: true\n    c: []\n  - - 1\n",
		`{"on":{"x y":null}}`:                 "\"on\":\n  x y: null\n",
		`{"t":"a\nb\n","u":"a\n\nb"}`:         "t: |\n  a\n  b\nu: |-\n  a\n\n  b\n",
		`["a\nb"]`:                            "- |-\n  a\n  b\n",
		`"a\u0000b\n"`:                        "\"a\\u0000b\\n\"\n",
		`{"e":{},"f":"<&>","g":"ä"}`:          "e: {}\nf: \"<&>\"\ng: \"ä\"\n",
	} {
		var b bytes.Buffer
		if err := writeYAML(&b, []byte(in)); err != nil || b.String() != want {
			t.Errorf("%s: error %v\n%s\nwant\n%s", in, err, b.String(), want)
		}
	}
	if err := writeYAML(io.Discard, []byte(`{"a":`)); err == nil {
		t.Error("half a text is no error")
	}
}

func TestRefArgs(t *testing.T) {
	for in, want := range map[string]string{
		"sensor x": "Sensor x", "Sensors/x": "Sensor x", "es": "EventSource ", "fn/a": "Function a", "": " ",
	} {
		if kind, name, err := refArgs(strings.Fields(in)); err != nil || string(kind)+" "+name != want {
			t.Errorf("%q: %s %s, error %v", in, kind, name, err)
		}
	}
	for _, in := range []string{"banana", "sensor/x y"} {
		if _, _, err := refArgs(strings.Fields(in)); err == nil {
			t.Errorf("%q is no error", in)
		}
	}
}

func TestClean(t *testing.T) {
	if got := clean("a\x1b[31mb\nc\u202ed"); strings.ContainsAny(got, "\x1b\n\u202e") {
		t.Errorf("%q may do something to a terminal", got)
	}
	if got := short("äöüß", 3); got != "äö…" {
		t.Errorf("short: %q", got)
	}
}

func TestHeaderValue(t *testing.T) {
	if got := headerValue("a b\"%ä\r\n"); got != "a%20b%22%25%C3%A4%0D%0A" {
		t.Error(got)
	}
}

// load reads specs from memory.
func load(t *testing.T, text string) *specs.Loaded {
	t.Helper()
	l := catalog().Loader().LoadBytes("a.yaml", []byte(text))
	if l.Diagnostics.HasErrors() {
		t.Fatal(l.Diagnostics.Err())
	}
	return l
}

func TestFitPayload(t *testing.T) {
	with := func(maxBody string) string {
		return "apiVersion: engine/v1\nkind: EventSource\nmetadata: {name: a}\nspec: {webhook: {x: {path: /x, maxBody: " + maxBody + "}}}\n"
	}
	for _, c := range []struct {
		maxBody string
		flags   runFlags
		want    int
	}{
		{maxBody: "1MiB", want: 8 << 20},
		{maxBody: "20MiB", want: 20<<20 + payloadHeadroom},
		{maxBody: "64MiB", want: 64 << 20},
		{maxBody: "8000TiB", want: 64 << 20},
		{maxBody: "2MiB", flags: runFlags{payload: 1 << 20}, want: 1 << 20},
		{maxBody: "2MiB", flags: runFlags{bus: "nats://x"}, want: 0},
	} {
		c.flags.fitPayload(catalog(), load(t, with(c.maxBody)))
		if int(c.flags.payload) != c.want {
			t.Errorf("%+v: %d", c, c.flags.payload)
		}
	}
}

func TestWebhookURLs(t *testing.T) {
	l := load(t, `apiVersion: engine/v1
kind: EventSource
metadata: {name: a}
spec:
  webhook: {x: {path: /x}, y: {path: "/y/{id}", methods: [PUT, DELETE]}}
  ticker: {z: {every: 1s}}
`)
	var got []string
	for _, u := range webhookURLs(catalog(), l, "0.0.0.0:80") {
		got = append(got, u.name+" "+u.curl())
	}
	if want := []string{"a/x curl -d '{}' http://127.0.0.1:80/x", "a/y curl -X PUT http://127.0.0.1:80/y/{id}"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestAnnounce(t *testing.T) {
	dir := t.TempDir()
	forget, err := announce(dir, "[::]:8180", "sesame")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(announcementPath(dir))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, error %v", info.Mode(), err)
	}
	c := &client{data: dir}
	if err := c.find(); err != nil || c.base != "http://127.0.0.1:8180" || c.token != "sesame" {
		t.Errorf("found %q %q, error %v", c.base, c.token, err)
	}
	forget()
	if err := (&client{data: dir}).find(); err == nil {
		t.Error("found although it is gone")
	}
}

// TestStarter: what init writes is valid and has no warnings.
func TestStarter(t *testing.T) {
	e, out, _ := testEnv(nil)
	dir := filepath.Join(t.TempDir(), "demo")
	if code := execute(t.Context(), e, []string{"init", dir}); code != 0 {
		t.Fatal(code)
	}
	out.Reset()
	if code := execute(context.Background(), e, []string{"validate", dir, "-o", "json"}); code != 0 {
		t.Error(code)
	}
	var f findings
	if err := json.Unmarshal(out.Bytes(), &f); err != nil || f.Resources != 6 || len(f.Diagnostics) != 0 {
		t.Errorf("error %v, %+v", err, f)
	}
}
