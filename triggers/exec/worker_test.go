package exec

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// asWorker is the variable that makes the test's own program the worker.
const asWorker = "ENGINE_EXEC_TEST_WORKER"

func TestMain(m *testing.M) {
	switch mode := os.Getenv(asWorker); mode {
	case "probe", "slow", "refuse", "fail", "key":
		probe(mode)
		return
	case "echo":
		echo()
		return
	}
	os.Exit(m.Run())
}

// echo is the least there is between two processes: a line of JSON in, a line
// out, read and written by the same program, as in the benchmarks of python and
// node.
func echo() {
	for in := bufio.NewReader(os.Stdin); ; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var value any
		if err := json.Unmarshal(line, &value); err != nil {
			panic(err)
		}
		b, err := json.Marshal(value)
		if err != nil {
			panic(err)
		}
		_, _ = os.Stdout.Write(append(b, '\n'))
	}
}

// probe does what its payload says, or always the same; see package triggertest.
func probe(mode string) {
	type object = map[string]any
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	calls := 0
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return
		}
		var req struct {
			ID      uint64
			Context json.RawMessage
			Payload struct {
				Do, Out, Err string
				Value        json.RawMessage
				Bytes        int
				Fail         bool
			}
		}
		if err := json.Unmarshal(line, &req); err != nil {
			panic(err)
		}
		calls++
		switch mode {
		case "slow":
			req.Payload.Do = "sleep"
		case "refuse":
			req.Payload.Do = "input"
		case "fail":
			req.Payload.Do = "function"
		case "key":
			var ctx struct{ Key string }
			if err := json.Unmarshal(req.Context, &ctx); err != nil {
				panic(err)
			}
			req.Payload.Do, req.Payload.Value = "echo", json.RawMessage(strconv.Quote(ctx.Key))
		}
		answer := object{"id": req.ID}
		failed := func(class string) {
			answer["error"] = object{"type": class, "message": "no", "stacktrace": []string{"here"}}
		}
		switch p := req.Payload; p.Do {
		case "echo":
			answer["payload"] = p.Value
		case "length":
			answer["payload"] = len(p.Value) - 2
		case "context":
			answer["payload"] = req.Context
		case "state":
			answer["payload"] = object{"pid": os.Getpid(), "calls": calls}
		case "sleep":
			time.Sleep(1000 * time.Second)
		case "print":
			fmt.Fprint(os.Stderr, p.Err)
		case "big":
			answer["payload"] = strings.Repeat("x", p.Bytes)
		case "input":
			failed("InputError")
		case "function":
			failed("FunctionError")
		case "emit":
			answer["events"] = []object{
				{"type": "a", "data": object{"n": 1}, "subject": "s"},
				{"type": "b", "data": "text", "datacontenttype": "text/plain"},
			}
			if p.Fail {
				failed("")
			}
		case "exit":
			os.Exit(3)
		case "kill":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case "half", "answer":
			whole := fmt.Sprintf("{\"id\":%d,\"payload\":\"whole\"}\n", req.ID)
			if p.Do == "half" {
				whole = whole[:len(whole)/2]
			}
			fmt.Print(whole)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case "garbage":
			fmt.Println("garbage")
		case "hang":
			cmd := exec.Command("sh", "-c", "sleep 0.1; echo late; sleep 1000")
			cmd.Stdout = os.Stdout
			if err := cmd.Start(); err != nil {
				panic(err)
			}
			answer["payload"] = cmd.Process.Pid
		}
		b, err := json.Marshal(answer)
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s\n", b)
	}
}

func workerConfig(mode string) string {
	// A program that looks for data races waits for a second before it ends.
	return fmt.Sprintf("mode: worker\ncommand: [%q]\nenv: {%s: %s, GORACE: atexit_sleep_ms=0}", os.Args[0], asWorker, mode)
}

func TestWorkerContract(t *testing.T) {
	const stdout = "stdout has the answers"
	env := triggers.Env{Dir: t.TempDir()}
	triggertest.Run(t, triggertest.Suite{
		Factory: Factory(), Mode: modeWorker,
		OK: workerConfig("probe"), Slow: workerConfig("slow"), Permanent: workerConfig("refuse"), Retryable: workerConfig("fail"), Key: workerConfig("key"),
		Env: env,
		Worker: &triggertest.Worker{
			Factory: Factory(), Config: workerConfig("probe"), Env: env,
			Cannot: map[string]string{"fork": "Go has no fork", "flood": stdout, "stdout": stdout, "close": "there are no descriptors but 0 to 2"},
		},
	})
}

// What is no answer is told, with what came instead.
func TestAnswers(t *testing.T) {
	for script, want := range map[string]string{
		`echo '{"id":1,"payload":[1]}'`:                             "",
		`echo; echo '{"id":1}'`:                                     "",
		`echo hello`:                                                `a line is no JSON object: "hello"`,
		`echo '[1]'`:                                                "a line is no JSON object",
		`echo '{"payload":1}'`:                                      "its id is not that of the call, 1",
		`echo '{"id":2,"payload":1}'`:                               "its id is not that of the call, 1",
		`printf '{"id":1}\n{"id":1}\n'`:                             "more than one line came",
		`printf '{"id":1}'; exit 0`:                                 "the worker exited with code 0 during the call",
		`echo oh no >&2; exit 5`:                                    "the worker exited with code 5 during the call: oh no",
		`echo '{"id":1,"error":{"type":"X"}}'`:                      `its error is of type "X"; there are InputError, FunctionError and SystemError`,
		`echo '{"id":1,"error":{"message":"m"}}'`:                   "FunctionError: m",
		`echo '{"id":1,"events":[{"type":"t","time":"x"}]}'`:        "emitted event 1: its time is no timestamp",
		`echo '{"id":1,"events":[{"type":"t","data_base64":"="}]}'`: "emitted event 1: its data_base64 is not base64",
		`echo '{"id":1,"events":[{"type":"t","data":1,"datacontenttype":"text/plain"}]}'`: "its data is no text, it cannot be text/plain",
	} {
		f, err := Factory().Make(&Config{Mode: modeWorker, Command: []string{"sh", "-c", "read line; " + script + "; read line"}}, triggers.Env{Dir: t.TempDir(), Concurrency: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Invoke(t.Context(), triggertest.NewCall("k"))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", script, err, want)
		}
		if err := f.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWorkerNotThere(t *testing.T) {
	for program, want := range map[string]string{"./none": "program not found", "no-such-program": "not found in the engine's PATH"} {
		f, err := Factory().Make(&Config{Mode: modeWorker, Command: []string{program}}, triggers.Env{Dir: t.TempDir(), Concurrency: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Invoke(t.Context(), triggertest.NewCall("k")); err == nil || triggers.ClassOf(err) != triggers.SystemError || !strings.Contains(err.Error(), "the function is not ready: "+want) && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		if err := f.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFilesOfWorkers(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/w.py", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"", modeWorker} {
		got := strings.Join((&Config{Mode: mode, Command: []string{"python3", "-u", "w.py"}}).files(dir), " ")
		if want := map[string]string{"": "", modeWorker: dir + "/w.py"}[mode]; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func benchCommand() *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asWorker+"=echo")
	return cmd
}

// BenchmarkWorker is a call with everything of the contract, logs included, next
// to an echo by the same program.
func BenchmarkWorker(b *testing.B) {
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", n), func(b *testing.B) {
			triggertest.BenchRatio(b, Factory(), workerConfig("probe"), benchCommand, n)
		})
	}
}

// BenchmarkWorkerProcessPerCall starts the program for each call, next to calls.
func BenchmarkWorkerProcessPerCall(b *testing.B) {
	triggertest.BenchPerCall(b, Factory(), workerConfig("probe"), benchCommand)
}

// BenchmarkWorkerColdStart is a first call, with the start of its process.
func BenchmarkWorkerColdStart(b *testing.B) {
	f := Factory()
	for b.Loop() {
		triggertest.BenchFirstCall(b, f, workerConfig("probe"))
	}
}
