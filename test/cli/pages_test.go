package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// fence is one fenced block of a page.
var fence = regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```$")

// files PAGE writes the blocks of a page that begin with a comment that is the
// name of a file.
func files(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: files PAGE")
	}
	n := 0
	for _, b := range fence.FindAllStringSubmatch(ts.ReadFile(args[0]), -1) {
		m := regexp.MustCompile(`\A# ([\w/]+\.yaml)\n`).FindStringSubmatch(b[2])
		if m == nil {
			continue
		}
		n++
		name := ts.MkAbs(m[1])
		ts.Check(os.MkdirAll(filepath.Dir(name), 0o750))
		ts.Check(os.WriteFile(name, []byte(b[2]), 0o600))
	}
	if n == 0 {
		ts.Fatalf("%s has no files", args[0])
	}
}

// differs are parts of an output that are others each time: times, and keys
// that hash one.
var differs = regexp.MustCompile(`(?:\d{4}-\d\d-\d\d[T ])?\d\d:\d\d:\d\d(?:\.\d+)?Z?|(?:replay\.)?[\w-]{24,}`)

// asks are the commands that may be repeated until they show what they should.
var asks = regexp.MustCompile(`^engine (explain|replay|runs|events|get)\b`)

// shown PAGE runs the commands of the blocks marked `console` and compares what
// they print.
func shown(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: shown PAGE")
	}
	n := 0
	for _, b := range fence.FindAllStringSubmatch(ts.ReadFile(args[0]), -1) {
		if b[1] != "console" {
			continue
		}
		for _, part := range strings.Split("\n"+b[2], "\n$ ")[1:] {
			n++
			command, want, _ := strings.Cut(part, "\n")
			try := func() error {
				got, err := console(ts, command)
				if differs.ReplaceAllString(got, "…") != differs.ReplaceAllString(strings.TrimSuffix(want, "\n"), "…") {
					return fmt.Errorf("$ %s\n%s\n%w: the page has\n%s", command, got, errUnmatched, want)
				}
				return err
			}
			if asks.MatchString(command) && !strings.Contains(command, "--execute") {
				eventually(ts, try)
			} else {
				ts.Check(try())
			}
		}
	}
	if n == 0 {
		ts.Fatalf("%s shows no command", args[0])
	}
}

// console is what a command prints on a terminal.
func console(ts *testscript.TestScript, command string) (string, error) {
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "ENGINE_API="+ts.Getenv("ENGINE_API"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSuffix(out.String(), "\n"), err
}
