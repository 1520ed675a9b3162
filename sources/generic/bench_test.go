package generic

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sensor-engine/engine/sources/generic/eventing"
)

// BenchmarkStream compares events that come through the source and are stored
// by an engine on an embedded bus with the same stream drained into nothing by
// the same client library. Server and client share the machine.
func BenchmarkStream(b *testing.B) {
	const batch = 5000
	for _, bm := range []struct {
		name  string
		bytes int
		full  bool // with ids and cursors
		store bool
	}{
		{"200B/nothing", 200, false, false},
		{"200B/stored", 200, false, true},
		{"200B,cursors/nothing", 200, true, false},
		{"200B,cursors/stored", 200, true, true},
		{"10KiB/nothing", 10 << 10, false, false},
		{"10KiB/stored", 10 << 10, false, true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			orders := make(chan int)
			payload := []byte(`{"text": "` + strings.Repeat("x", bm.bytes-12) + `"}`)
			s := newServer(b, "", func(_ *eventing.EventSource, s stream) error {
				sent := 0
				for {
					select {
					case n := <-orders:
						for range n {
							m := &eventing.Event{Payload: payload}
							if sent++; bm.full {
								m.Id = strconv.Itoa(sent)
								m.Cursor = m.Id
							}
							if err := s.Send(m); err != nil {
								return err
							}
						}
					case <-s.Context().Done():
						return nil
					}
				}
			})
			var done func(want uint64)
			if bm.store {
				e := startEngine(b, spec(b, s.addr, "      insecure: true\n"), b.TempDir())
				done = func(want uint64) {
					for e.status().Stored < want {
						<-time.After(200 * time.Microsecond)
					}
				}
			} else {
				done = drain(b, s.addr)
			}
			want := uint64(0)
			more := func() {
				want += batch
				orders <- batch
				done(want)
			}
			more() // connected
			b.ReportAllocs()
			b.SetBytes(int64(bm.bytes) * batch)
			b.ResetTimer()
			begin, used := time.Now(), cpu()
			for b.Loop() {
				more()
			}
			n := float64(want - batch)
			b.ReportMetric(n/time.Since(begin).Seconds(), "events/s")
			b.ReportMetric(float64(cpu()-used)/n, "cpu-ns/event") // what other programs take does not count
		})
	}
}

// cpu is the processor time this process used, in nanoseconds.
func cpu() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// drain receives what the server sends and forgets it.
func drain(b *testing.B, addr string) (done func(want uint64)) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	st, err := eventing.NewEventingClient(conn).StartEventSource(ctx, &eventing.EventSource{Name: "orders"})
	if err != nil {
		b.Fatal(err)
	}
	var got atomic.Uint64
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			if err := st.RecvMsg(new(eventing.Event)); err != nil {
				return
			}
			got.Add(1)
		}
	})
	b.Cleanup(func() {
		cancel()
		ended.Wait()
		_ = conn.Close()
	})
	return func(want uint64) {
		for got.Load() < want {
			<-time.After(200 * time.Microsecond)
		}
	}
}
