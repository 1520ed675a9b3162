package triggertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Source is the config of a function whose code is in the spec.
func Source(code string) string {
	return "source: |\n  " + strings.ReplaceAll(strings.TrimSpace(code), "\n", "\n  ")
}

// Write writes a file and the directories above it.
func Write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// Invoke makes one call with a payload, JSON, and granted secrets.
func Invoke(t testing.TB, fn triggers.Function, payload string, secrets map[string]string) (triggers.Result, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := NewCall("k")
	c.Event.Data, c.Secrets = []byte(payload), secrets
	return fn.Invoke(ctx, c)
}

// Case is what a function does with a payload, null when it is "": it gives Want,
// or fails with an error of Class that has Message and Stack in it.
type Case struct {
	What, Code, Payload string
	Want                string
	Class               triggers.Class
	Message, Stack      string
}

// Cases calls each function twice: a failure leaves the next call as it was. made
// makes it of its config, and hidden is what no stack trace may have in it.
func Cases(t *testing.T, made func(t testing.TB, config string) triggers.Function, hidden string, cases []Case) {
	t.Helper()
	for _, tc := range cases {
		t.Run(tc.What, func(t *testing.T) {
			t.Parallel()
			if tc.Payload == "" {
				tc.Payload = "null"
			}
			fn := made(t, Source(tc.Code))
			for range 2 {
				res, err := Invoke(t, fn, tc.Payload, nil)
				if tc.Class == "" {
					if err != nil || string(res.Output) != tc.Want {
						t.Fatalf("%s, %v, want %s", res.Output, err, tc.Want)
					}
					continue
				}
				e, ok := errors.AsType[*triggers.Error](err)
				if !ok || e.Class != tc.Class || !strings.Contains(e.Message, tc.Message) {
					t.Fatalf("%s, %v, want %s: %s", res.Output, err, tc.Class, tc.Message)
				}
				stack := strings.Join(e.Stacktrace, "\n")
				if !strings.Contains(stack, tc.Stack) || strings.Contains(stack, hidden) {
					t.Errorf("stack trace:\n%s", stack)
				}
			}
		})
	}
}

// NotReady checks that a function says why it cannot be called, in one sentence
// with want in it, before its first call and in that, which is repeated.
func NotReady(t *testing.T, fn triggers.Function, config, want string) {
	t.Helper()
	_, err := Invoke(t, fn, "null", nil)
	later, _ := errors.AsType[*triggers.RetryAfterError](err)
	if err == nil || later == nil || triggers.ClassOf(err) != triggers.SystemError || triggers.Permanent(err) ||
		!strings.Contains(err.Error(), "the function is not ready: ") || !strings.Contains(err.Error(), want) {
		t.Errorf("%s\n got %v\nwant %s", config, err, want)
	}
	if ready := fn.(interface{ Ready() error }).Ready(); ready == nil || strings.Contains(ready.Error(), "\n") {
		t.Errorf("%s: %v", config, ready)
	}
}

// Files checks what is wrong with valid configs and the files below dir: each has
// a part of it as value, or "" when there is nothing.
func Files(t *testing.T, f triggers.Factory, dir string, configs map[string]string) {
	t.Helper()
	for config, want := range configs {
		ck := specs.NewChecker(specs.Ref{}, "spec."+f.Name, nil)
		f.Check(Config(t, f, config), dir, ck)
		var got []string
		for _, d := range ck.Found() {
			got = append(got, d.Message)
		}
		if text := strings.Join(got, "\n"); !strings.Contains(text, want) || (want == "") != (text == "") {
			t.Errorf("%s\n got %s\nwant %s", config, text, want)
		}
	}
}
