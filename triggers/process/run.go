package process

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Run runs a program to its end or that of ctx. An error has the last of what
// it wrote to its stderr, and to its stdout where cmd does not say who takes
// that.
func Run(ctx context.Context, cmd *exec.Cmd) error {
	var said tail
	cmd.Stderr = &said
	if cmd.Stdout == nil {
		cmd.Stdout = &said
	}
	cmd.WaitDelay = time.Second
	p, err := Start(cmd, nil)
	if err != nil {
		text, _ := StartError(err, cmd.Dir)
		return errors.New(text)
	}
	stop := context.AfterFunc(ctx, p.Kill)
	defer stop()
	<-p.Done()
	if ctx.Err() != nil {
		return fmt.Errorf("it took too long: %w", ctx.Err())
	}
	if code, signal := Outcome(p.State()); code != 0 || signal != "" {
		return fmt.Errorf("it %s: %s", Ended(p.State()), said.text())
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 4 << 10
	t.kept = append(t.kept, p...)
	if len(t.kept) > 2*most {
		t.kept = append([]byte(nil), t.kept[len(t.kept)-most:]...)
	}
	return len(p), nil
}

// text is the last lines on one.
func (t *tail) text() string {
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(t.kept), "?")), "\n")
	lines = lines[max(0, len(lines)-4):]
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, " ")
}
