package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// addresses are the hosts and ports of a round.
type addresses struct {
	in, api string // of the target
	sink    string // of the harness
}

// target is a program that takes events on in and posts them to the sink.
type target struct {
	name string
	// command makes the process, not yet started; dir is its own.
	command func(ctx context.Context, dir string, a addresses) (*exec.Cmd, error)
}

// stopTimeout bounds how long a target may take to end after SIGTERM.
const stopTimeout = 30 * time.Second

// round starts the target afresh, warms it up and measures n events; rate 0 is
// a closed loop.
func (t target) round(ctx context.Context, o options, work string, n int, rate float64) (_ result, err error) {
	dir, err := os.MkdirTemp(work, t.name+"-")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	led := newLedger(o.warmup + n)
	sink, err := led.listen()
	if err != nil {
		return result{}, err
	}
	defer sink.Close()
	free, err := freeAddrs(2)
	if err != nil {
		return result{}, err
	}
	a := addresses{in: free[0], api: free[1], sink: sink.Addr()}
	cmd, err := t.command(ctx, dir, a)
	if err != nil {
		return result{}, err
	}
	logs, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return result{}, err
	}
	defer logs.Close()
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	if err := cmd.Start(); err != nil {
		return result{}, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			b, _ := os.ReadFile(logs.Name())
			err = fmt.Errorf("%w\nits log ends with:\n%s", err, tail(b, 20))
		}
	}()
	probe := "http://" + a.in + "/"
	if t.name == "engine" {
		probe = "http://" + a.api + "/readyz"
	}
	if err := waitReady(ctx, probe, ended); err != nil {
		return result{}, err
	}

	if _, err := led.drive(ctx, a.in, o.conns, o.size, 0, o.warmup, 0); err != nil {
		return result{}, fmt.Errorf("warming up: %w", err)
	}
	if err := led.settle(ctx, o.patience); err != nil {
		return result{}, err
	}
	before := usageOf(cmd.Process.Pid)
	sp, err := led.drive(ctx, a.in, o.conns, o.size, o.warmup, n, rate)
	if err != nil {
		return result{}, err
	}
	if err := led.settle(ctx, o.patience); err != nil {
		return result{}, err
	}
	after := usageOf(cmd.Process.Pid)

	// Stopping before counting lets a late duplicate arrive.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return result{}, err
	}
	select {
	case werr := <-ended:
		if werr != nil {
			return result{}, fmt.Errorf("did not end cleanly after SIGTERM: %w", werr)
		}
	case <-time.After(stopTimeout):
		return result{}, fmt.Errorf("still runs %s after SIGTERM", stopTimeout)
	}
	if err := sink.Close(); err != nil {
		return result{}, err
	}
	r := led.result(o.warmup, sp)
	r.CPU = (after.cpu - before.cpu).Seconds() / float64(n) * 1000
	r.PeakMiB = float64(after.peak) / (1 << 20)
	return r, nil
}

// waitReady polls url until it answers 200.
func waitReady(ctx context.Context, url string, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("no answer")
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case err := <-ended:
			return fmt.Errorf("ended before it was ready: %v", err) //nolint:errorlint // nil when it ended with 0
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", last)
		case <-tick.C:
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
		defer ln.Close() // only at the end, or the same port comes again
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, nil
}

// usage is what a process has used.
type usage struct {
	cpu  time.Duration
	peak int64 // bytes
}

// usageOf reads it from /proc; zero where there is none.
func usageOf(pid int) (u usage) {
	const hz = 100 // USER_HZ, the same on every Linux that Go runs on
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		// The second field, the name, may hold anything but ends with the last ')'.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) > 12 {
			user, _ := strconv.ParseInt(f[11], 10, 64)
			system, _ := strconv.ParseInt(f[12], 10, 64)
			u.cpu = time.Duration(user+system) * time.Second / hz
		}
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
				u.peak = kib << 10
			}
		}
	}
	return u
}

// tail returns the last n lines of b.
func tail(b []byte, n int) []byte {
	b = bytes.TrimRight(b, "\n")
	for i, c := range slices.Backward(b) {
		if c == '\n' {
			if n--; n == 0 {
				return b[i+1:]
			}
		}
	}
	return b
}
