package driver

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// flood runs a driver of n events to its end, with a host that stores nothing.
func flood(b *testing.B, program string, n, batch int) time.Duration {
	b.Helper()
	d := source(b, config(specs.Settings{"n": strconv.Itoa(n), "batch": strconv.Itoa(batch)}), probe(program))
	begin := time.Now()
	if err := d.Run(b.Context(), &bareHost{}); err == nil || !strings.Contains(err.Error(), "exited with code 0") {
		b.Fatal(err)
	}
	return time.Since(begin)
}

func report(b *testing.B, events int, spent, nothing time.Duration) {
	b.ReportMetric(float64(events)/spent.Seconds(), "events/s")
	b.ReportMetric(float64(events)/nothing.Seconds(), "drained/s")
	b.ReportMetric(nothing.Seconds()/spent.Seconds(), "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkStdout compares a driver's events on stdout with the same output
// read into nothing.
func BenchmarkStdout(b *testing.B) {
	const n = 200_000
	var spent, nothing time.Duration
	events := 0
	for b.Loop() {
		events += n
		spent += flood(b, "flood", n, 1)
		cmd := exec.Command(os.Args[0], "driver-program", "flood", "--n="+strconv.Itoa(n))
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, out); err != nil {
			b.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
		nothing += time.Since(begin)
	}
	report(b, events, spent, nothing)
}

// BenchmarkHTTP compares the events that a driver posts on 8 connections with
// the same requests to a server that reads them into nothing.
func BenchmarkHTTP(b *testing.B) {
	for _, batch := range []int{1, 100} {
		b.Run("batch="+strconv.Itoa(batch), func(b *testing.B) {
			n := 20_000 * min(batch, 10)
			var spent, nothing time.Duration
			events := 0
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err == nil {
					w.WriteHeader(http.StatusCreated)
				}
			})}
			done := make(chan error)
			go func() { done <- srv.Serve(l) }()
			for b.Loop() {
				events += n
				spent += flood(b, "poster", n, batch)
				cmd := exec.Command(os.Args[0], "driver-program", "poster", "--n="+strconv.Itoa(n), "--batch="+strconv.Itoa(batch))
				cmd.Env = append(os.Environ(), "ENGINE_EVENTS_URL=http://"+l.Addr().String()+"/")
				begin := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				nothing += time.Since(begin)
			}
			_ = srv.Close()
			if err := <-done; !errors.Is(err, http.ErrServerClosed) {
				b.Fatal(err)
			}
			report(b, events, spent, nothing)
		})
	}
}

// BenchmarkParse is one line of a usual size.
func BenchmarkParse(b *testing.B) {
	msg := []byte(line("event-1"))
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parse(msg); err != nil {
			b.Fatal(err)
		}
	}
}
