package triggertest

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// BenchPayload is what benchmarked calls carry.
const BenchPayload = `{"id":1234567,"name":"Jon","place":"Winterfell","items":[{"sku":"a","n":1},{"sku":"b","n":2}]}`

// EchoPython and EchoNode are the least that these languages need for a line of
// JSON in and a line out, read and written.
const (
	EchoPython = `import json, sys
out = sys.stdout
for line in sys.stdin:
    out.write(json.dumps(json.loads(line)) + "\n")
    out.flush()
`
	EchoNode = `let kept = '';
process.stdin.setEncoding('utf8');
process.stdin.on('data', (chunk) => {
  kept += chunk;
  for (let i; (i = kept.indexOf('\n')) >= 0; kept = kept.slice(i + 1)) {
    process.stdout.write(JSON.stringify(JSON.parse(kept.slice(0, i))) + '\n');
  }
});
`
)

// BenchMemory reports the memory of a worker after calls.
func BenchMemory(b *testing.B, f triggers.Factory, config string) {
	b.Helper()
	fn := benchFunction(b, f, config, 1)
	defer fn.Close()
	for b.Loop() {
		if err := benchCall(fn); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(BenchResident()/(1<<20), "MiB/worker")
}

func benchFunction(b *testing.B, f triggers.Factory, config string, workers int) *triggers.Contract {
	b.Helper()
	fn, err := f.Make(Config(b, f, config), triggers.Env{Dir: b.TempDir(), Concurrency: workers})
	if err != nil {
		b.Fatal(err)
	}
	return &triggers.Contract{Function: fn, Host: &Host{}, MaxHops: bus.MaxHops}
}

// BenchCallers makes a function and gives what calls it for each of n callers,
// and what closes it.
func BenchCallers(b *testing.B, f triggers.Factory, config string, n int) (callers []func() error, end func()) {
	b.Helper()
	fn := benchFunction(b, f, config, n)
	values, err := NewValues(Config(b, f, config), nil)
	if err != nil {
		b.Fatal(err)
	}
	for range n {
		callers = append(callers, func() error {
			c := NewCall("key")
			c.Event.Data, c.Values = []byte(BenchPayload), values.Of(c)
			_, err := fn.Invoke(context.Background(), c)
			return err
		})
	}
	return callers, func() {
		if err := fn.Close(); err != nil {
			b.Error(err)
		}
	}
}

// BenchPipes are as many callers of what echoes the same payload over stdin and
// stdout, with a process each: the least there is between two processes.
func BenchPipes(b *testing.B, command func() *exec.Cmd, n int) (callers []func() error, end func()) {
	b.Helper()
	var ends []func()
	for range n {
		call, end := benchPipe(b, command())
		callers, ends = append(callers, call), append(ends, end)
	}
	return callers, func() {
		for _, end := range ends {
			end()
		}
	}
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

// BenchRatio measures calls of a function and, in turns with them, the same
// payload echoed over stdin and stdout by as many processes of command, with a
// caller for each: the least there is between two processes. It reports the rate
// of both, and the first as a part of the second.
func BenchRatio(b *testing.B, f triggers.Factory, config string, command func() *exec.Cmd, workers int) {
	b.Helper()
	calls, end := BenchCallers(b, f, config, workers)
	defer end()
	pipes, end := BenchPipes(b, command, workers)
	defer end()
	const turn = 500
	BenchTurn(b, calls, turn)
	BenchTurn(b, pipes, turn)
	b.ResetTimer()
	var called, echoed time.Duration
	for done := 0; done < b.N; done += turn {
		n := min(turn, b.N-done)
		called += BenchTurn(b, calls, n)
		echoed += BenchTurn(b, pipes, n)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/called.Seconds(), "calls/s")
	b.ReportMetric(float64(b.N)/echoed.Seconds(), "echoes/s")
	b.ReportMetric(echoed.Seconds()/called.Seconds(), "of-raw-pipe")
}

// BenchPerCall reports what a call of a function costs in parts of a process
// that is started for it.
func BenchPerCall(b *testing.B, f triggers.Factory, config string, command func() *exec.Cmd) {
	b.Helper()
	calls, end := BenchCallers(b, f, config, 1)
	defer end()
	BenchTurn(b, calls, 100)
	const turn = 1000
	var called, spawned time.Duration
	n := 0
	for b.Loop() {
		called += BenchTurn(b, calls, turn) / turn
		begin := time.Now()
		cmd := command()
		cmd.Stdin = strings.NewReader(BenchPayload + "\n")
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		spawned += time.Since(begin)
		n++
	}
	b.ReportMetric(float64(spawned.Microseconds())/float64(n)/1000, "ms/process")
	b.ReportMetric(spawned.Seconds()/called.Seconds(), "times-process-per-call")
}

func benchPipe(b *testing.B, cmd *exec.Cmd) (call func() error, end func()) {
	b.Helper()
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
}

// BenchTurn makes n calls, each caller its part, and returns how long it took.
func BenchTurn(b *testing.B, callers []func() error, n int) time.Duration {
	b.Helper()
	begin := time.Now()
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for _, call := range callers {
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
	return time.Since(begin)
}

// BenchResident is the resident memory of the children of this process, on
// average, in bytes; 0 where it is not told.
func BenchResident() float64 {
	id := strconv.Itoa(os.Getpid())
	tasks, err := os.ReadDir("/proc/" + id + "/task")
	if err != nil {
		return 0
	}
	total, n := 0, 0
	for _, task := range tasks {
		list, err := os.ReadFile("/proc/" + id + "/task/" + task.Name() + "/children")
		if err != nil {
			continue
		}
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
	return float64(total) / float64(max(n, 1))
}
