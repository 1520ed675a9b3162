package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

var (
	cutsDone   = regexp.MustCompile(`(\d+) cuts, (\d+) events acknowledged`)
	cutsFailed = regexp.MustCompile(`cut \d+ .*promises are broken.*|the moment came .*`)
)

// powerCut cuts the power, as far as the store can tell. A killed process
// leaves the page cache intact, so this is not done to a running engine: a test
// of the bus keeps account of what was synced, and starts the spine again on
// that alone.
func powerCut(t *trial) {
	args := []string{"test", "-count=1", "-v", "-timeout", "30m", "-run", "^TestPowerLoss"}
	if t.o.patch != nil {
		overlay, err := t.o.builds.overlay(t.path("overlay"), []patch{*t.o.patch})
		t.must(err)
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(t.ctx, "go", append(args, "./"+filepath.Join("bus", "jetstream"))...)
	cmd.Dir = t.o.builds.root
	cmd.Env = append(os.Environ(), "POWER_CUTS="+strconv.Itoa(t.n), "TMPDIR="+t.path("tmp"))
	out, err := cmd.CombinedOutput()
	cuts := 0
	for _, m := range cutsDone.FindAllSubmatch(out, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		events, _ := strconv.Atoi(string(m[2]))
		cuts += n
		t.Acked += events
	}
	for _, m := range cutsFailed.FindAll(out, -1) {
		t.failf("%s", m)
	}
	if err != nil && len(t.Failures) == 0 {
		t.failf("%v: %s", err, lastLine(string(out)))
	}
	t.note("%d cuts in all; without the syncs the same cuts lose events", cuts)
}
