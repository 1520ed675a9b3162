package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// stubs are what the printed resources refer to.
const stubs = `apiVersion: engine/v1
kind: Function
metadata: {name: f}
spec: {exec: {command: [cat]}}
---
apiVersion: engine/v1
kind: Secret
metadata: {name: a}
spec: {env: {k: A_K}}
---
apiVersion: engine/v1
kind: Secret
metadata: {name: b}
spec: {env: {k: B_K}}
---
apiVersion: engine/v1
kind: DriverType
metadata: {name: vcenter}
spec: {command: ["true"]}
---
apiVersion: engine/v1
kind: EventSource
metadata: {name: shop}
spec: {webhook: {orders: {path: /stub/orders}, payments: {path: /stub/payments}}}
`

// TestNewPrintsWhatIsValid: whatever the flags, what is printed passes
// `engine validate` beside what it refers to; else nothing is printed, and it
// is said why.
func TestNewPrintsWhatIsValid(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{
		"hello.py": "def handle(ctx, payload):\n    return payload\n", "hello.js": "module.exports = (c, p) => p\n",
		"in.json": `{"type": "object"}`, "stubs.yaml": stubs,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	printed := map[string]int{}
	check := func(t *rapid.T, kind string) {
		pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
		name := pick("name", "n", "a-name", "n1", "n2", "n3", "Bad_Name", "")
		var args []string
		maybe := func(flag string, values ...string) {
			if rapid.IntRange(0, 2).Draw(t, flag) == 0 {
				args = append(args, flag+"="+pick(flag+" value", values...))
			}
		}
		switch kind {
		case "function":
			args = []string{name}
			switch pick("what", "py", "js", "url", "command") {
			case "py":
				args = append(args, "hello.py")
				maybe("--handler", "hello.handle", "handle", "")
			case "js":
				args = append(args, "hello.js")
			case "url":
				args = append(args, "--url="+pick("url", "http://127.0.0.1/${ input.id }", "https://a.test", "no url", "${ nothing }"))
			default:
				args = append(args, "--command="+pick("command", "cat", "sh,-c,echo: #1", ""))
			}
			maybe("--schema-in", "in.json")
			maybe("--schema-out", "in.json")
			maybe("--concurrency", "1", "-1", "100000")
			maybe("--attempts", "3", "0", "-1")
		case "subscription":
			args = []string{"f"}
			maybe("--event-type", "a.b", "*", "a b", "yes", "1.0", "!x", "#", "a: b")
			maybe("--name", name)
			maybe("--source", "shop", "*", "~")
			maybe("--when", "data.n > 1", "data.", "true", "'#' in data.tags", "!data.x")
			maybe("--input", "1", "{\"a\": \"${ event.data.n }\"}", "[null, \"yes\"]", "{", "\"${ x\"")
		case "endpoint":
			args = []string{name, "f"}
			maybe("--method", "get", "GET,POST", "GET,get", "A B", "TRACE", "OPTIONS")
			maybe("--path", "/a/{b}", "/", "a", "/{x", "/a#b")
			maybe("--domain", "api.test", "API.test", "a.test,b.test", "a:1")
			maybe("--auth", "public", "basic", "bearer=a/k", "basic=jon:a/k", "hmac=X-Sig:a/k", "apiKeys=X-Key:b", "bearer=a", "oauth2", "bearer=a/none")
			maybe("--cors", "true", "false")
			maybe("--async", "true")
			maybe("--https-only", "true")
			maybe("--disable", "true")
		case "source":
			typ := pick("type", "webhook", "ticker", "vcenter", "calendar")
			args = []string{typ}
			maybe("--name", name)
			maybe("--event", "tick", "E", "a-b")
			set := map[string][]string{
				"webhook":  {"path=/x", "path=x", "methods=[\"PUT\"]", "auth.bearer.name=a", "auth.bearer.key=k", "maxBody=1KiB", "nothing=1"},
				"ticker":   {"every=5s", "every=5", "immediate", "immediate=yes", "data={\"a\": [1, \"2\"]}"},
				"vcenter":  {"seconds=2", "flag", "k=a=b", "a.b=~", "x y=1", "=1"},
				"calendar": {"schedule=0 0 * * *", "schedule=x", "timezone=Europe/Amsterdam"},
			}[typ]
			for _, s := range rapid.SliceOfNDistinct(rapid.SampledFrom(set), 0, 4, rapid.ID[string]).Draw(t, "set") {
				args = append(args, "--set="+s)
			}
		case "sensor":
			args = []string{name}
			for _, on := range rapid.SliceOfN(rapid.SampledFrom([]string{"shop/orders", "o=shop/orders", "shop/payments", "a.b", "data=a.b", "x=*"}), 1, 3).Draw(t, "on") {
				args = append(args, "--on="+on)
			}
			maybe("--when", "data.total > 100", "data..x")
			maybe("--correlate", "data.orderId", "1 +")
			maybe("--within", "10m", "10", "soon")
			maybe("--condition", "orders", "orders && payments", "o || x", "nothing")
			args = append(args, pick("calls", "--function=f", "--log=seen ${ orders.id }", "--log=plain: #text", "--function="))
			maybe("--input", "{\"a\": \"${ orders.data.n }\"}", "5")
		}
		if kind != "endpoint" {
			maybe("--timeout", "10s", "500", "soon")
		}
		maybe("--secret", "a", "a,b")
		e, stdout, stderr := testEnv(nil)
		code := execute(t.Context(), e, append([]string{"new", kind}, args...))
		if (code == 0) != (stdout.Len() > 0) || (code == 0) == (stderr.Len() > 0) {
			t.Fatalf("new %s %q: exit code %d\n%s%s", kind, args, code, stdout, stderr)
		}
		if code != 0 {
			return
		}
		printed[kind]++
		if err := os.WriteFile("new.yaml", stdout.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		again, _, problems := testEnv(nil)
		validated := execute(t.Context(), again, []string{"validate", "new.yaml", "stubs.yaml"})
		// What it refers to may come later, and need not be as it is here.
		bad := slices.DeleteFunc(strings.Split(strings.TrimSpace(problems.String()), "\n"), func(line string) bool {
			return !strings.Contains(line, "error[") || strings.Contains(line, "error[unknown-") || strings.Contains(line, "are not handed secrets") || strings.Contains(line, "error[duplicate-resource]")
		})
		if len(bad) > 0 || validated > 1 {
			t.Fatalf("new %s %q:\n%s\nis not valid: exit code %d\n%s", kind, args, stdout, validated, strings.Join(bad, "\n"))
		}
	}
	for _, kind := range []string{"function", "subscription", "endpoint", "source", "sensor"} {
		rapid.Check(t, func(t *rapid.T) { check(t, kind) })
		if printed[kind] == 0 {
			t.Errorf("nothing was printed of kind %s: the test looked at nothing", kind)
		}
	}
}

func TestNewUsage(t *testing.T) {
	for _, args := range [][]string{
		{"new"},
		{"new", "banana"},
		{"new", "function", "f"},
		{"new", "function", "f", t.TempDir()},
		{"new", "function", "f", "x.py", "--url=http://a.test"},
		{"new", "function", "f", "x.rb"},
		{"new", "subscription", "f"},
		{"new", "endpoint", "e", "f", "--auth=basic"},
		{"new", "endpoint", "e", "f", "-p", "/a,/b"},
		{"new", "source", "ticker", "--set", "a=1", "--set", "a.b=1"},
		{"new", "sensor", "s", "--on", "a"},
		{"new", "sensor", "s", "--function", "f"},
	} {
		e, stdout, stderr := testEnv(nil)
		if code := execute(t.Context(), e, args); code != exitUsage || stdout.Len() > 0 {
			t.Errorf("%q: exit code %d\n%s%s", args, code, stdout, stderr)
		}
	}
}
