package engine_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// asWorker is the variable that makes this program a worker of kind exec, or an
// echo of lines of JSON.
const asWorker = "ENGINE_TEST_LINES"

// lines answers calls by the protocol of workers, or gives each line back, read
// and written as JSON.
func lines(mode string) {
	for in := bufio.NewReader(os.Stdin); ; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var answer any
		if err := json.Unmarshal(line, &answer); err != nil {
			panic(err)
		}
		if call, ok := answer.(map[string]any); ok && mode == "worker" {
			answer = map[string]any{"id": call["id"], "payload": call["payload"]}
		}
		b, err := json.Marshal(answer)
		if err != nil {
			panic(err)
		}
		_, _ = os.Stdout.Write(append(b, '\n'))
	}
}

// published is the page that gets the tables of BenchmarkFunctions, and rounds
// how often it measures everything.
var (
	published = flag.String("functions", "", "`page` whose tables of functions BenchmarkFunctions replaces")
	rounds    = flag.Int("rounds", 1, "rounds of BenchmarkFunctions")
)

// measuredKind is a function that is measured, and what it is compared with.
type measuredKind struct {
	name, kind, config string
	// echo is the command of the raw pipe; nil for a kind without processes.
	// bare is what it is compared with instead, a caller that is made for each
	// of several.
	echo func() *exec.Cmd
	bare func() func() error
	// command is started for each call instead; nil: echo is.
	command []string
	// memory is true where the memory of a process says something about the kind.
	memory bool
}

// BenchmarkFunctions prints the tables of functions in docs/performance.md:
// calls of each kind next to the least there is, a process per call, what a start
// takes, and what endpoints and events add. Each round measures everything in
// turns; cells are medians of them.
//
//	go test ./engine -run '^$' -bench '^BenchmarkFunctions$' -benchtime 1x -rounds 5 -functions ../docs/performance.md
func BenchmarkFunctions(b *testing.B) {
	needPython(b)
	triggertest.Need(b, exec.Command("node", "-e", "0"), "nodejs")
	fn := newBenchServer(b)
	guest, native := guests(b)
	self := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asWorker+"=echo")
		return cmd
	}
	python, err := exec.Command("python3", "-c", "import sys; print(sys.executable, end='')").Output()
	if err != nil {
		b.Fatal(err)
	}
	kinds := []measuredKind{
		{name: "`python`", kind: "python", config: "source: 'def handle(context, payload): return payload'", echo: func() *exec.Cmd { return exec.Command(string(python), "-c", triggertest.EchoPython) }, memory: true},
		{name: "`node`", kind: "node", config: "source: 'module.exports = (context, payload) => payload'", echo: func() *exec.Cmd { return exec.Command("node", "-e", triggertest.EchoNode) }, memory: true},
		{name: "`exec`, `mode: worker`, a Go program", kind: "exec", config: fmt.Sprintf("mode: worker\ncommand: [%q]\nenv: {%s: worker}", os.Args[0], asWorker), echo: self},
		{name: "`wasm`, 189 bytes that copy", kind: "wasm", config: "file: " + absolute(b, "../triggers/wasm/testdata/echo.wasm"), command: []string{"cat"}},
		{name: "`wasm`, a Go program", kind: "wasm", config: "file: " + guest + "\nargs: [echo]", command: []string{native, "echo"}},
		{name: "`http`, next to a bare client", kind: "http", config: "url: " + fn, bare: func() func() error { return bareClient(fn) }, command: []string{"cat"}},
	}
	m := &measurements{rounds: map[string][]float64{}}
	for range *rounds {
		for _, k := range kinds {
			m.kind(b, k)
		}
		m.endpoint(b, fn)
		for _, kind := range []struct{ name, spec string }{
			{"`log`", "log: {message: '${ data.at }', level: debug}"},
			{"`http`", "http: {url: \"" + fn + "\"}"},
			{"`python`", "python: {source: 'def handle(context, payload): return payload'}"},
			{"`node`", "node: {source: 'module.exports = (context, payload) => payload'}"},
		} {
			took := eventLatencies(b, kind.spec, 1000)
			m.add("event p50 "+kind.name, milliseconds(took[len(took)/2]))
			m.add("event p99 "+kind.name, milliseconds(took[len(took)*99/100]))
		}
	}
	b.ReportMetric(0, "ns/op")
	table := m.tables(kinds, *rounds)
	fmt.Printf("\n%s\n", table)
	if *published != "" {
		publishTables(b, *published, table)
	}
}

// measurements are the values of all rounds, by what they are of.
type measurements struct {
	keys   []string
	rounds map[string][]float64
}

func (m *measurements) add(key string, v float64) {
	if m.rounds[key] == nil {
		m.keys = append(m.keys, key)
	}
	m.rounds[key] = append(m.rounds[key], v)
}

// cell is the median of a value, "" when it was not measured.
func (m *measurements) cell(key, format string) string {
	all := slices.Sorted(slices.Values(m.rounds[key]))
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf(format, (all[(len(all)-1)/2]+all[len(all)/2])/2)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// timed makes a caller note how long its calls take.
func timed(call func() error, took *[]time.Duration) func() error {
	return func() error {
		begin := time.Now()
		err := call()
		*took = append(*took, time.Since(begin))
		return err
	}
}

// kind measures one function.
func (m *measurements) kind(b *testing.B, k measuredKind) {
	f := *catalog().Functions.Lookup(k.kind)
	begin := time.Now()
	calls, end := triggertest.BenchCallers(b, f, k.config, 1)
	if err := calls[0](); err != nil {
		b.Fatalf("%s: %v", k.name, err)
	}
	m.add(k.name+" cold", milliseconds(time.Since(begin)))
	// A turn is about 100 ms long.
	const few, turns = 20, 5
	triggertest.BenchTurn(b, calls, few)
	turn := int(min(max(100*time.Millisecond*few/triggertest.BenchTurn(b, calls, few), few), 5000))
	triggertest.BenchTurn(b, calls, turn)
	if k.memory {
		m.add(k.name+" memory", triggertest.BenchResident()/(1<<20))
	}
	end()
	var mean time.Duration
	for _, n := range []int{1, 2} {
		calls, end := triggertest.BenchCallers(b, f, k.config, n)
		took := make([][]time.Duration, n)
		for i, call := range calls {
			calls[i] = timed(call, &took[i])
		}
		var others []func() error
		endOthers := func() {}
		switch {
		case k.echo != nil:
			others, endOthers = triggertest.BenchPipes(b, k.echo, n)
		case k.bare != nil:
			for range n {
				others = append(others, k.bare())
			}
		}
		triggertest.BenchTurn(b, calls, 2*turn)
		if others != nil {
			triggertest.BenchTurn(b, others, 2*turn)
		}
		for i := range took {
			took[i] = took[i][:0]
		}
		var called, least time.Duration
		for range turns {
			called += triggertest.BenchTurn(b, calls, turn*n)
			if others != nil {
				least += triggertest.BenchTurn(b, others, turn*n)
			}
		}
		end()
		endOthers()
		if others != nil {
			m.add(fmt.Sprint(k.name, " of least ", n), least.Seconds()/called.Seconds())
		}
		if n == 1 {
			mean = called / time.Duration(turn*turns)
			all := slices.Sorted(slices.Values(took[0]))
			m.add(k.name+" rate", 1/mean.Seconds())
			m.add(k.name+" p99", milliseconds(all[len(all)*99/100]))
		}
	}
	// A process for each call, through kind exec where the call has no pipe.
	command := k.echo
	if command == nil {
		command = func() *exec.Cmd { return exec.Command(k.command[0], k.command[1:]...) }
	}
	const processes = 5
	begin = time.Now()
	for range processes {
		cmd := command()
		cmd.Stdin = strings.NewReader(triggertest.BenchPayload + "\n")
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
	m.add(k.name+" process", time.Since(begin).Seconds()/processes/mean.Seconds())
}

// endpoint measures requests to an HTTP function through an endpoint and
// without one.
func (m *measurements) endpoint(b *testing.B, fn string) {
	r := start(b, written(b, "f.yaml", head+"kind: Function\nmetadata: {name: f}\nspec: {http: {url: \""+fn+"\"}}\n---\n"+endpoint("f", "path: /f, function: f")), b.TempDir())
	defer r.stop()
	direct, err := newRequester(strings.TrimPrefix(fn, "http://"))
	if err != nil {
		b.Fatal(err)
	}
	defer direct.Close()
	through, err := newRequester(r.e.Addr())
	if err != nil {
		b.Fatal(err)
	}
	defer through.Close()
	var took, tookDirect []time.Duration
	one, other := []func() error{timed(through.post, &took)}, []func() error{timed(direct.post, &tookDirect)}
	const turn = 250
	var with, without time.Duration
	for i := range 5 {
		a, c := triggertest.BenchTurn(b, one, turn), triggertest.BenchTurn(b, other, turn)
		if i == 0 { // warms up
			took, tookDirect = took[:0], tookDirect[:0]
			continue
		}
		with, without = with+a, without+c
	}
	slices.Sort(took)
	slices.Sort(tookDirect)
	m.add("endpoint rate", without.Seconds()/with.Seconds())
	m.add("endpoint p50", milliseconds(took[len(took)/2]))
	m.add("endpoint direct p50", milliseconds(tookDirect[len(tookDirect)/2]))
	m.add("endpoint p99", milliseconds(took[len(took)*99/100]))
	m.add("endpoint direct p99", milliseconds(tookDirect[len(tookDirect)*99/100]))
}

// tables are the results in Markdown.
func (m *measurements) tables(kinds []measuredKind, rounds int) string {
	var t strings.Builder
	fmt.Fprintf(&t, "%s, %d processors, %s/%s, %s; rounds: %d.\n\n", time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), rounds)
	t.WriteString("| | calls/s, 1 caller | p99 | of the least there is, 1 caller | 2 callers | against a process per call | first call | memory of a process |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, k := range kinds {
		fmt.Fprintf(&t, "| %s | %s | %s ms | %s | %s | %s times | %s ms | %s |\n", k.name, m.cell(k.name+" rate", "%.0f"), m.cell(k.name+" p99", "%.2f"),
			m.cell(k.name+" of least 1", "%.2f"), m.cell(k.name+" of least 2", "%.2f"), m.cell(k.name+" process", "%.1f"), m.cell(k.name+" cold", "%.1f"), m.cell(k.name+" memory", "%.0f MiB"))
	}
	t.WriteString("\n| from an event at 500 a second to the end of its call, stored on both hops | p50 | p99 |\n|---|--:|--:|\n")
	for _, key := range m.keys {
		if name, ok := strings.CutPrefix(key, "event p50 "); ok {
			fmt.Fprintf(&t, "| %s | %s ms | %s ms |\n", name, m.cell(key, "%.2f"), m.cell("event p99 "+name, "%.2f"))
		}
	}
	t.WriteString("\n| a request to an HTTP function, 1 connection | p50 | p99 | rate |\n|---|--:|--:|--:|\n")
	fmt.Fprintf(&t, "| at the function | %s ms | %s ms | 1 |\n", m.cell("endpoint direct p50", "%.2f"), m.cell("endpoint direct p99", "%.2f"))
	fmt.Fprintf(&t, "| through an endpoint | %s ms | %s ms | %s |\n", m.cell("endpoint p50", "%.2f"), m.cell("endpoint p99", "%.2f"), m.cell("endpoint rate", "%.2f"))
	return t.String()
}

// publishTables puts the tables between their markers on a page.
func publishTables(b *testing.B, page, table string) {
	text, err := os.ReadFile(page)
	if err != nil {
		b.Fatal(err)
	}
	const begin, end = "<!-- results: functions -->\n", "<!-- end of results: functions -->"
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		b.Fatalf("%s has no markers %s", page, begin)
	}
	if err := os.WriteFile(page, []byte(before+begin+table+end+after), 0o644); err != nil {
		b.Fatal(err)
	}
}

func absolute(b *testing.B, path string) string {
	b.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// guests builds one Go program for the sandbox and for this machine.
func guests(b *testing.B) (wasm, native string) {
	b.Helper()
	dir := b.TempDir()
	wasm, native = filepath.Join(dir, "guest.wasm"), filepath.Join(dir, "guest")
	for path, env := range map[string][]string{wasm: {"GOOS=wasip1", "GOARCH=wasm"}, native: nil} {
		cmd := exec.Command("go", "build", "-o", path, "../triggers/wasm/testdata/guest")
		cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
	}
	return wasm, native
}

// bareClient posts the payload with what net/http offers.
func bareClient(url string) func() error {
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, IdleConnTimeout: time.Second}}
	return func() error {
		resp, err := client.Post(url, "application/json", strings.NewReader(triggertest.BenchPayload))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return errors.Join(err, resp.Body.Close())
	}
}

// requester posts over one connection.
type requester struct {
	net.Conn
	rd  *bufio.Reader
	req []byte
}

func newRequester(addr string) (*requester, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	const body = `{"orderId":"o-1","total":120}`
	req := fmt.Appendf(nil, "POST /f HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	return &requester{conn, bufio.NewReader(conn), req}, nil
}

func (r *requester) post() error {
	if _, err := r.Write(r.req); err != nil {
		return err
	}
	resp, err := http.ReadResponse(r.rd, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return err
}

// eventLatencies posts n events to a webhook, 500 a second, and returns how
// long it took from there to the end of the call they lead to, sorted: stored,
// folded, the job stored, called. The kind log is what the engine takes alone.
func eventLatencies(b *testing.B, spec string, n int) []time.Duration {
	b.Helper()
	r := start(b, written(b, "f.yaml", shop("orders")+"---\n"+head+"kind: Function\nmetadata: {name: f}\nspec:\n  "+spec+"\n---\n"+head+`kind: Sensor
metadata: {name: s}
spec:
  dependencies: [{name: order, source: shop, event: orders}]
  triggers: [{name: call, function: f}]
`), b.TempDir())
	defer r.stop()
	r.post("/orders", `{"at":"0"}`)
	r.until("the first call", func() bool { return r.callsDone() == 1 })
	const rate = 500
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / rate)))
		wg.Go(func() { r.post("/orders", fmt.Sprintf(`{"at":"%d"}`, time.Now().UnixNano())) })
	}
	wg.Wait()
	r.until("all calls", func() bool { return r.callsDone() == uint64(n)+1 })
	return r.latencies(n)
}

// callsDone counts the calls that did.
func (r *running) callsDone() (n uint64) {
	for _, t := range r.e.Jobs().Status() {
		n += t.Stats.Succeeded.Load()
	}
	return n
}

// latencies are the times from when a call's output says its event was sent to
// the end of the call, sorted.
func (r *running) latencies(n int) (out []time.Duration) {
	r.t.Helper()
	r.until("the history", func() bool {
		runs, err := jobs.ReadRuns(r.t.Context(), r.bus, jobs.RunFilter{Limit: n})
		if err != nil {
			r.t.Fatal(err)
		}
		out = out[:0]
		for _, run := range runs {
			var of struct {
				Output     any
				Started    time.Time
				DurationMs float64
			}
			if err := json.Unmarshal(run.JSON, &of); err != nil {
				r.t.Fatal(err)
			}
			text := fmt.Sprint(of.Output) // of log
			if back, ok := of.Output.(map[string]any); ok {
				text = fmt.Sprint(back["at"])
			}
			var at int64
			if _, err := fmt.Sscan(text, &at); err != nil {
				r.t.Fatal(err)
			}
			if at > 0 {
				out = append(out, of.Started.Add(time.Duration(of.DurationMs*float64(time.Millisecond))).Sub(time.Unix(0, at)))
			}
		}
		return len(out) >= n*9/10
	})
	slices.Sort(out)
	return out
}
