package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// binDir is where the engine was built.
var binDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "engine-cli-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=v9.9.9-test", "-o", filepath.Join(dir, "engine"), "./cmd/engine")
		build.Dir = filepath.Join("..", "..")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the engine: %v\n%s", err, out)
			return 1
		}
		binDir = dir
		return m.Run()
	}())
}

// patience ends a script that hangs; it measures nothing.
const patience = 30 * time.Second

// TestScripts runs every *.txtar file. In a script $LISTEN and $API are free
// addresses, which `engine run` takes from its variables, and $ROOT is the
// repository.
func TestScripts(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	// A cached result holds as long as the files the test looked at are the
	// same: those the binary was built from count.
	for _, room := range []string{"bus", "cmd", "engine", "sensors", "sources", "specs", "triggers"} {
		look := func(_ string, _ fs.DirEntry, err error) error { return err }
		if err := filepath.WalkDir(filepath.Join(root, room), look); err != nil {
			t.Fatal(err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: ".",
		Setup: func(e *testscript.Env) error {
			addrs, err := freeAddrs(2)
			if err != nil {
				return err
			}
			e.Setenv("PATH", binDir+string(filepath.ListSeparator)+os.Getenv("PATH"))
			e.Setenv("ROOT", root)
			e.Setenv("LISTEN", addrs[0])
			e.Setenv("API", addrs[1])
			e.Setenv("ENGINE_LISTEN", addrs[0])
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":  code,
			"until": until,
			"post":  post,
			"get":   get,
			"ready": ready,
			"files": files,
			"shown": shown,
		},
	})
}

// code N COMMAND… runs a command that must end with exit code N.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND [ARG…]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
	if want := args[0]; strconv.Itoa(got) != want {
		ts.Fatalf("%s: exit code %d, want %s", strings.Join(args[1:], " "), got, want)
	}
}

var errUnmatched = errors.New("the output is not as it should become")

// until PATTERN COMMAND… repeats a command until what it prints on standard
// output matches, or with ! does not match any more.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND [ARG…]")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	eventually(ts, func() error {
		// Not by ts.Exec, which would log every attempt.
		name := args[1]
		if name == "engine" {
			name = filepath.Join(binDir, name)
		}
		cmd := exec.Command(name, args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = os.Environ()
		for _, name := range []string{"ENGINE_API", "ENGINE_API_TOKEN", "ENGINE_DATA"} {
			cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
		}
		var out, problems bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &problems
		err := cmd.Run()
		if re.Match(out.Bytes()) != neg {
			_, _ = ts.Stdout().Write(out.Bytes())
			_, _ = ts.Stderr().Write(problems.Bytes())
			return nil
		}
		return fmt.Errorf("%s: %w\n%s%s", strings.Join(args[1:], " "), errors.Join(errUnmatched, err), &out, &problems)
	})
}

// post STATUS URL DATA [HEADER VALUE]… posts.
func post(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: post STATUS URL DATA [HEADER VALUE]…")
	}
	request(ts, http.MethodPost, args[0], args[1], args[2], args[3:])
}

// get STATUS URL [HEADER VALUE]… gets; the body is what stdout looks at.
func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: get STATUS URL [HEADER VALUE]…")
	}
	request(ts, http.MethodGet, args[0], args[1], "", args[2:])
}

func request(ts *testscript.TestScript, method, want, url, data string, header []string) {
	req, err := http.NewRequest(method, url, strings.NewReader(data))
	ts.Check(err)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	_, _ = ts.Stdout().Write(body)
	if strconv.Itoa(resp.StatusCode) != want {
		ts.Fatalf("%s %s: status %d, want %s\n%s", method, url, resp.StatusCode, want, body)
	}
}

// ready waits until the engine on $API is ready.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: ready")
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(ts, func() error {
		resp, err := client.Get("http://" + ts.Getenv("API") + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
}

// eventually repeats check until it gives nil.
func eventually(ts *testscript.TestScript, check func() error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not within %v: %v", patience, err)
		}
	}
}

// freeAddrs returns n loopback addresses on which nothing listens at the moment.
func freeAddrs(n int) (addrs []string, err error) {
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() //nolint:gocritic // only at the end, or the same port comes again
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, nil
}
