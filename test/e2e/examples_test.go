package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// example copies the files of an example and moves the engine's default
// address in them to that of the test.
func example(t *testing.T, name string) *engine {
	t.Helper()
	e := newEngine(t, nil)
	dir := filepath.Join("..", "..", "examples", name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range entries {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		e.write(f.Name(), strings.ReplaceAll(string(b), "127.0.0.1:12000", e.in))
	}
	return e
}

// says waits until the log has what.
func (e *engine) says(what string) {
	e.t.Helper()
	eventually(e.t, readyTimeout, "the log says "+what, func() error {
		if !strings.Contains(e.log(), what) {
			return errors.New("it does not")
		}
		return nil
	})
}

var buildCommand = regexp.MustCompile(`(?m)^\$ (.* go build .*)$`)

// built returns the directory of an example, or a copy of it in which is built
// what its README says to build.
func built(t *testing.T, dir string) string {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	commands := buildCommand.FindAllStringSubmatch(string(readme), -1)
	if err != nil || len(commands) == 0 {
		return dir
	}
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(c[1], "examples/"+filepath.Base(dir), to))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c[1], err, out)
		}
	}
	return to
}

// TestExamplesAreValid: no example has as much as a warning.
func TestExamplesAreValid(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join("..", "..", "examples", "*"))
	if err != nil || len(dirs) < 2 {
		t.Fatalf("examples: %v %v", dirs, err)
	}
	for _, dir := range dirs {
		stdout, stderr, code := execute(t, nil, "validate", built(t, dir))
		if code != 0 || strings.Contains(stderr, "warning[") || strings.Contains(stderr, "error[") {
			t.Errorf("%s: exit code %d\n%s%s", dir, code, stdout, stderr)
		}
	}
	// Editors find the schema: each file names it, and the path leads there.
	files, err := filepath.Glob(filepath.Join("..", "..", "examples", "*", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := bytes.Cut(b, []byte("# yaml-language-server: $schema="))
		path, _, _ := strings.Cut(string(rest), "\n")
		if !ok {
			t.Errorf("%s: no editor modeline", file)
		} else if _, err := os.Stat(filepath.Join(filepath.Dir(file), path)); err != nil {
			t.Errorf("%s: the modeline's schema: %v", file, err)
		}
	}
}

// TestExamplesHaveTests: every example has spec tests, and they pass.
func TestExamplesHaveTests(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join("..", "..", "examples", "*"))
	if err != nil || len(dirs) < 2 {
		t.Fatalf("examples: %v %v", dirs, err)
	}
	for _, dir := range dirs {
		stdout, stderr, code := execute(t, nil, "test", built(t, dir))
		if code != 0 || !strings.HasSuffix(stdout, " passed\n") {
			t.Errorf("%s: exit code %d\n%s%s", dir, code, stdout, stderr)
		}
	}
}

// TestQuickstart: events fire within seconds, by themselves and by curl.
func TestQuickstart(t *testing.T) {
	e := example(t, "quickstart")
	e.start()
	e.says("tick from quickstart")
	if s := e.post("/orders", `{"item": "nail", "total": 2}`); s != http.StatusAccepted {
		t.Errorf("status %d", s)
	}
	if s := e.post("/orders", `{"item": "ladder", "total": 180}`); s != http.StatusAccepted {
		t.Errorf("status %d", s)
	}
	e.says("large order: ladder for 180")
	e.says(e.in) // where to curl
	if strings.Contains(e.log(), "nail") {
		t.Error("the small order fired")
	}
	e.stop()
}

// TestOrders: the order is shipped when it is placed and paid, whichever first.
func TestOrders(t *testing.T) {
	e := example(t, "orders")
	key, err := os.ReadFile(filepath.Join(e.specs, "hook.key"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, bytes.TrimRight(key, "\n"))
	e.start()
	pay := `{"orderId": 7, "amount": 180}`
	mac.Write([]byte(pay))
	if s := e.post("/payments", pay, "X-Signature", hex.EncodeToString(mac.Sum(nil))); s != http.StatusAccepted {
		t.Fatalf("payment: status %d", s)
	}
	if s := e.post("/payments", pay, "X-Signature", "00"); s != http.StatusUnauthorized {
		t.Errorf("unsigned payment: status %d, want 401", s)
	}
	if s := e.post("/orders", `{"orderId": 8, "total": 500}`); s != http.StatusAccepted {
		t.Fatalf("order: status %d", s)
	}
	if s := e.post("/orders", `{"orderId": 7, "total": 180}`); s != http.StatusAccepted {
		t.Fatalf("order: status %d", s)
	}
	e.says("shipped order 7, paid 180")
	if strings.Contains(e.log(), "shipped order 8") {
		t.Error("an order that nobody paid was shipped")
	}
	e.stop()
}
