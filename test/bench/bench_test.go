package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestMain lets the test binary play the programs that are measured.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case "ceiling":
			main()
			return
		case "faulty":
			err = serveFaulty(os.Args[2], os.Args[3])
		default:
			os.Exit(m.Run())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveFaulty passes events on, but of every hundred it loses one, sends one
// twice, alters one and refuses one.
func serveFaulty(listen, sink string) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	var n atomic.Int64
	send := func(body []byte) {
		_ = post(context.Background(), http.DefaultClient, sink, body)
	}
	return (&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Length", "0")
		switch n.Add(1) % 100 {
		case 10:
			w.WriteHeader(http.StatusAccepted)
		case 20:
			send(body)
			send(body)
			w.WriteHeader(http.StatusAccepted)
		case 30:
			send(bytes.ToUpper(body))
			send(body)
			w.WriteHeader(http.StatusAccepted)
		case 40:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			send(body)
			w.WriteHeader(http.StatusAccepted)
		}
	})}).Serve(ln)
}

func TestCeiling(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), strings.Fields("-ceiling-only -events 600 -warmup 50 -conns 4 -rounds 2 -rate 2000 -paced 300"), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"end to end/s", "p99.9 ms", "CPU s/1000", "fixed rate: 2000"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}
	out.Reset()
	if err := run(t.Context(), strings.Fields("-ceiling-only -json -events 600 -warmup 50 -conns 4 -rounds 1 -rate 0"), &out); err != nil {
		t.Fatal(err)
	}
	var rep report
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		t.Fatal(err)
	}
	if rs := rep.Rounds["ceiling"]; len(rs) != 1 || rs[0].EndToEnd <= 0 || rs[0].Latency[0] <= 0 || len(rep.Paced) != 0 {
		t.Errorf("unexpected report: %+v", rep)
	}
}

// TestFaultsAreCounted shows that the harness can fail.
func TestFaultsAreCounted(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	faulty := target{name: "faulty", command: func(ctx context.Context, _ string, a addresses) (*exec.Cmd, error) {
		return exec.CommandContext(ctx, "sh", "-c", `trap 'kill $!; exit 0' TERM; "$0" faulty "$1" "http://$2/" & wait`, self, a.in, a.sink), nil
	}}
	// The warm-up loses nothing: the first fault is the tenth request.
	r, err := faulty.round(t.Context(), options{warmup: 1, conns: 2, size: 100, patience: time.Second}, t.TempDir(), 299, 0)
	if err != nil {
		t.Fatal(err)
	}
	if r.Lost != 3 || r.Duplicated != 3 || r.Foreign != 3 || r.Refused != 3 {
		t.Errorf("counted %d lost, %d duplicated, %d altered, %d refused; want 3 of each", r.Lost, r.Duplicated, r.Foreign, r.Refused)
	}
	rep := report{Rounds: map[string][]result{"faulty": {r}}}
	if rep.check() == nil {
		t.Error("losses are no error")
	}
}

func TestEndsBeforeReady(t *testing.T) {
	broken := target{name: "broken", command: func(ctx context.Context, _ string, _ addresses) (*exec.Cmd, error) {
		return exec.CommandContext(ctx, "sh", "-c", "echo cannot do it >&2; exit 3"), nil
	}}
	_, err := broken.round(t.Context(), options{warmup: 1, conns: 1, size: 100, patience: time.Second}, t.TempDir(), 1, 0)
	if err == nil || !strings.Contains(err.Error(), "cannot do it") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("the error does not say why: %v", err)
	}
}

func TestTimes(t *testing.T) {
	var ns []int64
	for i := range int64(1000) {
		ns = append(ns, (1000-i)*1e6)
	}
	if got, want := timesOf(ns), (times{500, 900, 990, 999, 1000}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := timesOf(nil); got != (times{}) {
		t.Errorf("nothing measured gives %v", got)
	}
	if m := median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("median %v", m)
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median %v", m)
	}
}

func TestBody(t *testing.T) {
	b := newBody(256)
	setNumber(b, 1234567)
	if len(b) != 256 || !json.Valid(b) {
		t.Fatalf("not 256 bytes of JSON: %s", b)
	}
	if n, ok := number(b); !ok || n != 1234567 {
		t.Errorf("got %d, %v", n, ok)
	}
	for _, bad := range []string{"", "{}", strings.ToUpper(string(b)), string(b[:100])} {
		if _, ok := number([]byte(bad)); ok {
			t.Errorf("%q passes for an event", bad)
		}
	}
}
