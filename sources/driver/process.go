package driver

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/sensor-engine/engine/triggers/process"
)

const (
	// idle is how long output is awaited after the process has ended: one
	// that left the process group may hold the pipe.
	idle = 500 * time.Millisecond
	// leftover bounds what such a process can add to the output: no pipe
	// holds more.
	leftover = 1 << 20
)

// running is one run of a driver's program and its pipes.
type running struct {
	*process.Process
	// stdout and stderr end with the process.
	stdout, stderr *pipe
	stdin          *os.File
}

// start starts cmd. The stdin of the process is a pipe that nobody writes to:
// it ends with the engine, however that ends. By mark, an entry of the
// environment that nothing else has, what left the group is found.
func start(cmd *exec.Cmd, mark string) (*running, error) {
	r := &running{}
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	for range 3 {
		from, to, err := os.Pipe()
		if err != nil {
			closeAll()
			return nil, err
		}
		files = append(files, from, to)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[3], files[5]
	r.stdin, r.stdout, r.stderr = files[1], &pipe{f: files[2]}, &pipe{f: files[4]}
	var err error
	r.Process, err = process.Start(cmd, func() {
		process.Sweep(mark)
		_ = r.stdin.Close()
		r.stdout.end()
		r.stderr.end()
	})
	if err != nil {
		closeAll()
		return nil, err
	}
	for _, i := range []int{0, 3, 5} { // the process has its own
		_ = files[i].Close()
	}
	return r, nil
}

// pipe reads what a process writes until it has ended.
type pipe struct {
	f     *os.File
	ended atomic.Bool
	left  int // of leftover; used by the reader only
}

// end makes Read end soon. It is called once.
func (p *pipe) end() {
	_ = p.f.SetReadDeadline(time.Unix(1, 0)) // wakes a reader that waits
	p.ended.Store(true)
}

// Read reads as a file does, and ends at the latest a moment after the process.
func (p *pipe) Read(b []byte) (int, error) {
	for {
		ended := p.ended.Load()
		if ended {
			if err := p.f.SetReadDeadline(time.Now().Add(idle)); err != nil {
				return 0, err
			}
		}
		n, err := p.f.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) && !ended {
			runtime.Gosched()
			continue
		}
		if ended {
			if p.left += n; p.left > leftover {
				return n, os.ErrDeadlineExceeded
			}
		}
		return n, err
	}
}

// excerpt is the beginning of what a driver wrote, fit for one line.
func excerpt(line []byte, limit int) string {
	line = bytes.TrimSpace(line)
	more := ""
	if len(line) > limit {
		// Cut between words: half a secret could not be masked any more.
		cut := max(bytes.LastIndexAny(line[:limit], " \t,"), 0)
		line, more = line[:cut], "…"
	}
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(line), "?"))
	return strings.TrimSpace(s) + more
}

// closeOutput closes the output of a process that has ended, when nobody reads
// it any more.
func (r *running) closeOutput() {
	_ = r.stdout.f.Close()
	_ = r.stderr.f.Close()
}
