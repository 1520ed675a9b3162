package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReadmesOfExamples does what the README of an example says to type, one
// command after the other, and looks for what it says is to be seen: below a
// command in a block `console`, and in the engine's log in a block `text`.
// "…" stands for anything, alone in a line for any lines.
func TestReadmesOfExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "examples", "*", "README.md"))
	if err != nil || len(files) < 2 {
		t.Fatalf("examples with a README: %v %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			follow(t, filepath.Base(filepath.Dir(file)), string(b))
		})
	}
}

var fence = regexp.MustCompile("(?s)```(\\w+)\n(.*?)```")

// needs are programs without which the README of an example cannot be followed.
var needs = map[string][]string{"endpoint": {"node", "sed"}, "python": {"python3"}}

func follow(t *testing.T, name, readme string) {
	for _, program := range append([]string{"sh", "curl"}, needs[name]...) {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	e := example(t, name)
	const run = "go run ./cmd/engine run examples/"
	commands := 0
	for _, block := range fence.FindAllStringSubmatch(readme, -1) {
		lines := strings.Split(strings.TrimSuffix(block[2], "\n"), "\n")
		switch block[1] {
		case "console":
			for len(lines) > 0 {
				command, ok := strings.CutPrefix(lines[0], "$ ")
				if !ok {
					t.Fatalf("%q is below no command", lines[0])
				}
				n := 1
				for n < len(lines) && !strings.HasPrefix(lines[n], "$ ") {
					n++
				}
				commands++
				if command == run+name {
					e.start()
					e.logs(lines[1:n])
				} else {
					e.types(name, command, lines[1:n])
				}
				lines = lines[n:]
			}
		case "text":
			e.logs(lines)
		default:
			t.Errorf("a block of %s is neither a console nor a log", block[1])
		}
	}
	if commands < 2 || e.proc == nil {
		t.Fatalf("%d commands, among them one to start the engine: %v", commands, e.proc != nil)
	}
	e.stop()
}

// types runs a command as in a shell in the repository. One that asks the
// engine is repeated until it gives what is to be seen.
func (e *engine) types(name, command string, want []string) {
	e.t.Helper()
	const verb = "go run ./cmd/engine "
	script := strings.NewReplacer(verb, binary+" ", "127.0.0.1:12000", e.in, "examples/"+name, e.specs).Replace(command)
	once := func() error {
		ctx, cancel := context.WithTimeout(e.t.Context(), 2*time.Minute) // some build a program
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", "-c", script)
		cmd.Env = append(cleanEnv(), "ENGINE_API=http://"+e.api)
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		if got := slices.Collect(strings.Lines(string(out))); !seen(want, got) {
			return fmt.Errorf("the README shows\n%s\nit gives\n%s", strings.Join(want, "\n"), out)
		}
		return nil
	}
	if strings.HasPrefix(command, verb) {
		eventually(e.t, readyTimeout, command, once)
	} else if err := once(); err != nil {
		e.t.Errorf("%s: %v", command, err)
	}
}

// seen compares lines, blanks aside.
func seen(want, got []string) bool {
	switch {
	case len(want) == 0:
		return len(got) == 0
	case want[0] == "…":
		return len(want) == 1 || len(got) > 0 && (seen(want[1:], got) || seen(want, got[1:]))
	}
	return len(got) > 0 && like(want[0]).MatchString(strings.Join(strings.Fields(got[0]), " ")) && seen(want[1:], got[1:])
}

// like is a pattern for a line in which "…" stands for anything.
func like(line string) *regexp.Regexp {
	line = regexp.QuoteMeta(strings.Join(strings.Fields(line), " "))
	return regexp.MustCompile("^" + strings.ReplaceAll(line, "…", ".*") + "$")
}

var attribute = regexp.MustCompile(`(\w+)=("(?:[^"\\]|\\.)*"|\S+)`)

// logs waits until the log has each of the lines, which are written as people
// see them: key=value, of which the log may have more.
func (e *engine) logs(want []string) {
	e.t.Helper()
	for _, line := range want {
		attributes := map[string]*regexp.Regexp{}
		for _, m := range attribute.FindAllStringSubmatch(line, -1) {
			value := m[2]
			if strings.HasPrefix(value, `"`) {
				if err := json.Unmarshal([]byte(value), &value); err != nil {
					e.t.Fatalf("%s: %v", line, err)
				}
			}
			attributes[m[1]] = like(value)
		}
		if attributes["msg"] == nil {
			e.t.Fatalf("%q is no line of a log", line)
		}
		eventually(e.t, arriveTimeout, "the log says "+line, func() error {
			for logged := range strings.SplitSeq(e.log(), "\n") {
				var has map[string]any
				if json.Unmarshal([]byte(logged), &has) != nil {
					continue
				}
				ok := true
				for key, value := range attributes {
					ok = ok && value.MatchString(strings.Join(strings.Fields(fmt.Sprint(has[key])), " "))
				}
				if ok {
					return nil
				}
			}
			return errors.New("it does not")
		})
	}
}
