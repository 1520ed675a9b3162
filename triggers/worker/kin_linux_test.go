package worker

import (
	"os/exec"
	"testing"
)

// Whatever is started is seen, so that children are looked for.
func TestLastPID(t *testing.T) {
	l := openLastPID()
	if l == nil {
		t.Skip("/proc/loadavg is not the kernel's")
	}
	defer l.close()
	for range 3 {
		before := l.read()
		if err := exec.Command("true").Run(); err != nil {
			t.Fatal(err)
		}
		if after := l.read(); before == 0 || after == before {
			t.Errorf("%d before a process was started, %d after", before, after)
		}
	}
}
