//go:build unix

package jetstream

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

// event is a record of 300 bytes with the headers of an event.
func event() bus.Record {
	e := bus.Event{
		ID: "0190f2a0-7c1e-7bb8-9a53-2f4cf3a1b2c3", Source: "/shop/orders", Type: "order.created",
		DataContentType: "application/json", EventSource: "shop", EventName: "orders",
		Data: bytes.Repeat([]byte("0123456789"), 30),
	}
	return e.Record()
}

func benchBus(b *testing.B) *Bus {
	o := options(b)
	o.CheckInterval = 0
	o.Limits.Events = 40 * gib
	o.Limits.Jobs = 40 * gib
	return mustOpen(b, o)
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := benchBus(b).Events()
			r := event()
			b.ReportAllocs()
			b.ResetTimer()
			start := cpu()
			var wg sync.WaitGroup
			for g := range n {
				wg.Go(func() {
					for i := g; i < b.N; i += n {
						if _, err := l.Append(context.Background(), r); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			perSecond(b, start)
		})
	}
}

func BenchmarkAppendAsync(b *testing.B) {
	l := benchBus(b).Events()
	r := event()
	var wg sync.WaitGroup
	done := func(_ bus.Ack, err error) {
		if err != nil {
			b.Error(err)
		}
		wg.Done()
	}
	b.ReportAllocs()
	start := cpu()
	for b.Loop() {
		wg.Add(1)
		if err := l.AppendAsync(context.Background(), r, done); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
	perSecond(b, start)
}

// BenchmarkPublishMsgAsync is what the client library offers, for comparison.
func BenchmarkPublishMsgAsync(b *testing.B) {
	bs := benchBus(b)
	js, err := jetstream.New(bs.nc, jetstream.WithPublishAsyncMaxPending(4096), jetstream.WithPublishAsyncTimeout(bs.o.AckTimeout))
	if err != nil {
		b.Fatal(err)
	}
	r := event()
	publish := func() jetstream.PubAckFuture {
		f, err := js.PublishMsgAsync(&nats.Msg{Subject: r.Subject, Header: nats.Header(r.Header), Data: r.Data}, jetstream.WithStallWait(bs.o.AckTimeout))
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	b.Run("stream", func(b *testing.B) {
		b.ReportAllocs()
		start := cpu()
		for b.Loop() {
			publish()
		}
		<-js.PublishAsyncComplete()
		perSecond(b, start)
	})
	b.Run("64", func(b *testing.B) {
		b.ReportAllocs()
		b.ResetTimer()
		start := cpu()
		var wg sync.WaitGroup
		for g := range 64 {
			wg.Go(func() {
				for i := g; i < b.N; i += 64 {
					f := publish()
					select {
					case <-f.Ok():
					case err := <-f.Err():
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		perSecond(b, start)
	})
}

// cpu is the processor time used so far. On a shared machine it says more
// than the wall clock.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perSecond reports the rate and, given the processor time at the start, what
// a record cost of it, server included.
func perSecond(b *testing.B, start time.Duration) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(cpu()-start)/float64(b.N), "cpu-ns/op")
}

// prefill appends n records and waits for them.
func prefill(b *testing.B, l bus.Log, n int, r func(i int) bus.Record) {
	b.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		err := l.AppendAsync(context.Background(), r(i), func(_ bus.Ack, err error) {
			if err != nil {
				b.Error(err)
			}
			wg.Done()
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
}

func BenchmarkRead(b *testing.B) {
	l := benchBus(b).Events()
	ev := event()
	prefill(b, l, b.N, func(int) bus.Record { return ev })
	r, err := l.Read(context.Background(), 0, "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	for n := 0; n < b.N; {
		rs, err := r.Next(context.Background(), 512)
		if err != nil {
			b.Fatal(err)
		}
		n += len(rs)
	}
	perSecond(b, start)
	b.StopTimer()
	_ = r.Close()
}

// BenchmarkReadLatency is one record from Append to a waiting reader.
func BenchmarkReadLatency(b *testing.B) {
	l := benchBus(b).Events()
	ev := event()
	r, err := l.Read(context.Background(), 0, "")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	got := make(chan struct{})
	go func() {
		for {
			if _, err := r.Next(b.Context(), 512); err != nil {
				return
			}
			got <- struct{}{}
		}
	}()
	for b.Loop() {
		if err := l.AppendAsync(context.Background(), ev, func(bus.Ack, error) {}); err != nil {
			b.Fatal(err)
		}
		<-got
	}
}

func BenchmarkReadJobs(b *testing.B) {
	q := benchBus(b).Jobs()
	prefill(b, q, b.N, func(i int) bus.Record {
		return bus.Record{Subject: fmt.Sprintf("%s%d.s.t", bus.JobsPrefix, i%16), Data: make([]byte, 300)}
	})
	r, err := q.Read(context.Background(), 0, "")
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	start := cpu()
	for n := 0; n < b.N; {
		rs, err := r.Next(context.Background(), 512)
		if err != nil {
			b.Fatal(err)
		}
		n += len(rs)
	}
	perSecond(b, start)
	b.StopTimer()
	_ = r.Close()
}

// BenchmarkConsume works jobs off over 16 partitions.
func BenchmarkConsume(b *testing.B) {
	q := benchBus(b).Jobs()
	prefill(b, q, b.N, func(i int) bus.Record {
		return bus.Record{Subject: fmt.Sprintf("%s%d.s.t", bus.JobsPrefix, i%16), Data: make([]byte, 300)}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg, left sync.WaitGroup
	left.Add(b.N)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	for p := range 16 {
		wg.Go(func() {
			_ = q.Consume(ctx, p, 256, func(d bus.Delivery) {
				if err := d.Done(); err != nil {
					b.Error(err)
				}
				left.Done()
			})
		})
	}
	left.Wait()
	perSecond(b, start)
	b.StopTimer()
	cancel()
	wg.Wait()
}

// BenchmarkJob is one job from Append to Done, one at a time.
func BenchmarkJob(b *testing.B) {
	q := benchBus(b).Jobs()
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = q.Consume(ctx, 0, 256, func(d bus.Delivery) {
			_ = d.Done()
			got <- struct{}{}
		})
	})
	r := bus.Record{Subject: bus.JobsPrefix + "0.s.t", Data: make([]byte, 300)}
	for b.Loop() {
		if err := q.AppendAsync(ctx, r, func(bus.Ack, error) {}); err != nil {
			b.Fatal(err)
		}
		<-got
	}
	cancel()
	wg.Wait()
}

func BenchmarkStorePut(b *testing.B) {
	s := benchBus(b).State()
	v := make([]byte, 200)
	keys := make([]string, 10000)
	for i := range keys {
		keys[i] = fmt.Sprintf("sensor.shop.k%d", i)
	}
	b.Run("wait", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			if _, err := s.Put(context.Background(), keys[i%len(keys)], v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("async", func(b *testing.B) {
		var wg sync.WaitGroup
		done := func(_ uint64, err error) {
			if err != nil {
				b.Error(err)
			}
			wg.Done()
		}
		i := 0
		b.ReportAllocs()
		start := cpu()
		for b.Loop() {
			i++
			wg.Add(1)
			if err := s.PutAsync(context.Background(), keys[i%len(keys)], v, done); err != nil {
				b.Fatal(err)
			}
		}
		wg.Wait()
		perSecond(b, start)
	})
}

// BenchmarkStoreScan reads 100,000 keys.
func BenchmarkStoreScan(b *testing.B) {
	s := benchBus(b).State()
	const n = 100_000
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		if err := s.PutAsync(context.Background(), fmt.Sprintf("sensor.s%d.k%d", i%10, i), make([]byte, 200), func(uint64, error) { wg.Done() }); err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
	for b.Loop() {
		got := 0
		if err := s.Scan(context.Background(), "", func(bus.Entry) error { got++; return nil }); err != nil || got != n {
			b.Fatal(got, err)
		}
	}
}

func BenchmarkNextDelete(b *testing.B) {
	l := benchBus(b).Parked()
	prefill(b, l, b.N, func(i int) bus.Record {
		return bus.Record{Subject: fmt.Sprintf("%ss.t%d.retry", bus.ParkedPrefix, i%8), Data: make([]byte, 300)}
	})
	b.ResetTimer()
	start := cpu()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			filter := fmt.Sprintf("%ss.t%d.>", bus.ParkedPrefix, g)
			for i := g; i < b.N; i += 8 {
				r, err := l.Next(context.Background(), filter, 0)
				if err != nil {
					b.Error(err)
					return
				}
				if err := l.Delete(context.Background(), r.Seq); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	perSecond(b, start)
}
