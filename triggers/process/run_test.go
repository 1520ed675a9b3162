package process

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	cmd := sh("echo said; echo other >&2")
	cmd.Stdout = &out
	if err := Run(t.Context(), cmd); err != nil || out.String() != "said\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	for script, want := range map[string]string{
		"echo one; echo two >&2; exit 3": "it exited with code 3: one two",
		"seq 1 100000; kill -9 $$":       "it was killed by SIGKILL: 99997 99998 99999 100000",
	} {
		if err := Run(t.Context(), sh(script)); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := Run(t.Context(), &exec.Cmd{Path: "/none"}); err == nil || !strings.Contains(err.Error(), "program not found") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Run(ctx, sh("sleep 1000 & sleep 1000")); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
