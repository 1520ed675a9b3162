package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sensor-engine/engine/test/load"
)

// addresses are the hosts and ports of a round.
type addresses struct {
	in, api string   // of the target
	sinks   []string // of the harness, one per lane
}

// target is a program that takes events on in and posts them to the sinks.
type target struct {
	name string
	// command makes the process, not yet started; dir is its own.
	command func(ctx context.Context, dir string, a addresses) (*exec.Cmd, error)
	// ready is the URL to poll until the process takes events.
	ready func(a addresses) string
	// foreign programs may end as they like, and what they lose is told but no error.
	foreign bool
}

// attempt is one target with its lanes, run at the same time.
type attempt struct {
	target
	lanes []lane
}

// stopTimeout bounds how long a target may take to end after SIGTERM.
const stopTimeout = 30 * time.Second

// round starts the target afresh, warms it up and measures its lanes; the
// results are in their order.
func (t attempt) round(ctx context.Context, o options, work string) (_ []result, err error) {
	dir, err := os.MkdirTemp(work, "round-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	free, err := freeAddrs(2)
	if err != nil {
		return nil, err
	}
	a := addresses{in: free[0], api: free[1]}
	leds := make([]*ledger, len(t.lanes))
	sinks := make([]*load.Sink, len(t.lanes))
	for i, l := range t.lanes {
		leds[i] = newLedger(l)
		if sinks[i], err = leds[i].listen(); err != nil {
			return nil, err
		}
		defer sinks[i].Close()
		a.sinks = append(a.sinks, sinks[i].Addr())
	}
	cmd, err := t.command(ctx, dir, a)
	if err != nil {
		return nil, err
	}
	logs, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	if err := cmd.Start(); err != nil {
		return nil, err
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
	if err := waitReady(ctx, t.ready(a), ended); err != nil {
		return nil, err
	}

	err = each(leds, func(_ int, l *ledger) error {
		if _, err := l.drive(ctx, a.in, 0, l.warmup, 0); err != nil {
			return fmt.Errorf("warming up: %w", err)
		}
		return l.settle(ctx, o.patience)
	})
	if err != nil {
		return nil, err
	}
	before, others := usageOf(cmd.Process.Pid), startOthers(cmd.Process.Pid)
	spans, opened := make([]span, len(leds)), make([]int64, len(leds))
	waiting, files := make([]int64, len(leds)), make([]int64, len(leds))
	err = each(leds, func(i int, l *ledger) (err error) {
		open := func() {}
		if l.hold {
			open = l.holdCalls()
			defer open()
		}
		if spans[i], err = l.drive(ctx, a.in, l.warmup, l.events, l.rate); err != nil {
			return err
		}
		opened[i] = spans[i].from
		if l.hold {
			waiting[i], files[i] = usageOf(cmd.Process.Pid).resident, sizeOf(dir)
			opened[i] = int64(time.Since(l.start))
			open()
		}
		return l.settle(ctx, o.patience)
	})
	if err != nil {
		return nil, err
	}
	after, share := usageOf(cmd.Process.Pid), others.share()

	// Stopping before counting lets a late duplicate arrive.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	select {
	case werr := <-ended:
		if werr != nil && !t.foreign {
			return nil, fmt.Errorf("did not end cleanly after SIGTERM: %w", werr)
		}
	case <-time.After(stopTimeout):
		return nil, fmt.Errorf("still runs %s after SIGTERM", stopTimeout)
	}
	n := 0
	for i, s := range sinks {
		if err := s.Close(); err != nil {
			return nil, err
		}
		n += leds[i].events
	}
	rs := make([]result, len(leds))
	for i, l := range leds {
		rs[i] = l.result(spans[i], opened[i])
		rs[i].CPU = (after.cpu - before.cpu).Seconds() / float64(n) * 1000
		rs[i].Others = share
		rs[i].PeakMiB = float64(after.peak) / (1 << 20)
		rs[i].WaitingMiB = float64(waiting[i]) / (1 << 20)
		rs[i].DiskMiB = float64(files[i]) / (1 << 20)
	}
	return rs, nil
}

// each runs f for every ledger at the same time.
func each(leds []*ledger, f func(int, *ledger) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(leds))
	for i, l := range leds {
		wg.Go(func() { errs[i] = f(i, l) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// waitReady polls url until it answers 2xx.
func waitReady(ctx context.Context, url string, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
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
			if resp.StatusCode/100 == 2 {
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
	cpu      time.Duration
	resident int64 // bytes
	peak     int64 // bytes
}

// hz is USER_HZ, the same on every Linux that Go runs on.
const hz = 100

// othersUse watches the time that all cores spend on neither a process nor the
// harness.
type othersUse struct {
	pid   int
	from  time.Time
	spent time.Duration
}

func startOthers(pid int) othersUse {
	return othersUse{pid, time.Now(), spentBeside(pid)}
}

// share is the part of all cores since the start, 0 where it is not told.
func (u othersUse) share() float64 {
	all := time.Since(u.from) * time.Duration(runtime.NumCPU())
	return max(0, float64(spentBeside(u.pid)-u.spent)/float64(all))
}

// spentBeside is the user and system time of all processes but pid and this one.
func spentBeside(pid int) time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[:max(0, bytes.IndexByte(b, '\n'))]))
	if len(f) < 4 {
		return 0
	}
	ticks := int64(0)
	for _, v := range f[1:4] { // user, nice, system
		n, _ := strconv.ParseInt(v, 10, 64)
		ticks += n
	}
	return time.Duration(ticks)*time.Second/hz - usageOf(pid).cpu - usageOf(os.Getpid()).cpu
}

// usageOf reads it from /proc; zero where there is none.
func usageOf(pid int) (u usage) {
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
			name, v, _ := strings.Cut(line, ":")
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			switch name {
			case "VmHWM":
				u.peak = kib << 10
			case "VmRSS":
				u.resident = kib << 10
			}
		}
	}
	return u
}

// sizeOf is the size of the files in dir, in bytes. What vanishes meanwhile
// does not count.
func sizeOf(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
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
