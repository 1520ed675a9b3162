package triggertest

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// BenchPayload is what benchmarked calls carry.
const BenchPayload = `{"id":1234567,"name":"Jon","place":"Winterfell","items":[{"sku":"a","n":1},{"sku":"b","n":2}]}`

// BenchCalls measures calls of a function from as many callers as it has
// workers, with the contract around it.
func BenchCalls(b *testing.B, f triggers.Factory, config string, workers int) {
	b.Helper()
	fn := benchFunction(b, f, config, workers)
	defer fn.Close()
	benchParallel(b, workers, func(int) (func() error, func()) {
		return func() error { return benchCall(fn) }, func() {}
	})
	b.ReportMetric(float64(RSS(b))/(1<<20), "MiB/worker")
}

func benchFunction(b *testing.B, f triggers.Factory, config string, workers int) *triggers.Contract {
	b.Helper()
	fn, err := f.Make(Config(b, f, config), triggers.Env{Dir: b.TempDir(), Concurrency: workers})
	if err != nil {
		b.Fatal(err)
	}
	return &triggers.Contract{Function: fn, Host: &Host{}, MaxHops: bus.MaxHops}
}

func benchCall(fn triggers.Function) error {
	c := NewCall("key")
	c.Event.Data = []byte(BenchPayload)
	_, err := fn.Invoke(context.Background(), c)
	return err
}

// BenchFirstCall makes a function, calls it once and closes it.
func BenchFirstCall(b *testing.B, f triggers.Factory, config string) {
	b.Helper()
	fn := benchFunction(b, f, config, 1)
	if err := benchCall(fn); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	if err := fn.Close(); err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
}

// BenchPipes measures the same payload echoed by as many processes, each with
// a caller of its own, over stdin and stdout, and nothing else.
func BenchPipes(b *testing.B, command func() *exec.Cmd, workers int) {
	b.Helper()
	benchParallel(b, workers, func(int) (func() error, func()) {
		cmd := command()
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		r := bufio.NewReader(out)
		line := []byte(BenchPayload + "\n")
		return func() error {
				if _, err := in.Write(line); err != nil {
					return err
				}
				_, err := r.ReadSlice('\n')
				return err
			}, func() {
				_ = in.Close()
				_ = cmd.Wait()
			}
	})
}

// benchParallel makes b.N calls from n callers, after a first one each.
func benchParallel(b *testing.B, n int, caller func(i int) (call func() error, end func())) {
	b.Helper()
	calls := make([]func() error, n)
	for i := range n {
		call, end := caller(i)
		defer end()
		calls[i] = call
	}
	var first sync.WaitGroup
	for _, call := range calls {
		first.Go(func() {
			for range 100 {
				if err := call(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	first.Wait()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for _, call := range calls {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// RSS is the memory of the children of this process, on average, in bytes; 0
// where it is not told.
func RSS(b *testing.B) int {
	b.Helper()
	id := strconv.Itoa(os.Getpid())
	tasks, err := os.ReadDir("/proc/" + id + "/task")
	if err != nil {
		return 0
	}
	total, n := 0, 0
	for _, task := range tasks {
		f, err := os.Open("/proc/" + id + "/task/" + task.Name() + "/children")
		if err != nil {
			continue
		}
		list, _ := io.ReadAll(f)
		_ = f.Close()
		for pid := range strings.FieldsSeq(string(list)) {
			if mem, err := os.ReadFile("/proc/" + pid + "/statm"); err == nil {
				if fields := strings.Fields(string(mem)); len(fields) > 1 {
					pages, _ := strconv.Atoi(fields[1])
					total += pages * os.Getpagesize()
					n++
				}
			}
		}
	}
	return total / max(n, 1)
}
