package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// bucket is the plain model of one key: a level that is filled by time.
type bucket struct {
	level time.Duration
	at    time.Time
	held  int
	used  []time.Time
}

// TestKeyLimit: whatever is asked when, a call is free exactly when a token
// bucket of the key alone says so, however long calls are held; so no key has
// more than burst + rate·t calls in any time t, and none waits for another.
func TestKeyLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		calls := rapid.IntRange(1, 5).Draw(t, "calls")
		per := time.Duration(rapid.IntRange(1, 1000).Draw(t, "per")) * time.Millisecond
		burst := rapid.IntRange(1, 6).Draw(t, "burst")
		l := NewKeyLimit(calls, per, burst)
		every := (per + time.Duration(calls) - 1) / time.Duration(calls)
		full := time.Duration(burst) * every
		now := l.base
		model := map[string]*bucket{}
		of := func(key string) *bucket {
			b := model[key]
			if b == nil {
				b = &bucket{level: full, at: now}
				model[key] = b
			}
			b.level, b.at = min(full, b.level+now.Sub(b.at)), now
			return b
		}
		free := func(b *bucket) bool { return b.level-time.Duration(b.held)*every >= every }
		key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "key")) })
		t.Repeat(map[string]func(*rapid.T){
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*full)).Draw(t, "time")))
			},
			"hold": func(t *rapid.T) {
				k := key.Draw(t, "of")
				b := of(k)
				when := l.when(k, now)
				ok := l.hold(k, now)
				if ok != free(b) || ok == when.After(now) {
					t.Fatalf("free %v, want %v; asked to come after %v", ok, free(b), when.Sub(now))
				}
				switch {
				case ok:
					b.held++
				case b.held == 0: // then it is known exactly
					if need := every - b.level; when.Sub(now) != need {
						t.Fatalf("free after %v, want %v", when.Sub(now), need)
					}
				case when.Sub(now) > heldPoll && when.Sub(now) > every-b.level:
					t.Fatalf("what is held may be dropped before %v", when.Sub(now))
				}
			},
			"use": func(t *rapid.T) {
				k := key.Draw(t, "of")
				if b := of(k); b.held > 0 {
					l.use(k, now)
					b.held--
					b.level -= every
					b.used = append(b.used, now)
				}
			},
			"drop": func(t *rapid.T) {
				k := key.Draw(t, "of")
				if b := of(k); b.held > 0 {
					l.drop(k)
					b.held--
				}
			},
			"": func(t *rapid.T) {
				for k, b := range model {
					for i := range b.used {
						for j := i; j < len(b.used); j++ {
							if n := time.Duration(j - i + 1); n*every > full+b.used[j].Sub(b.used[i]) {
								t.Fatalf("key %s: %d calls in %v", k, n, b.used[j].Sub(b.used[i]))
							}
						}
					}
				}
			},
		})
	})
}

// What is kept is about as much as keys have buckets that are not full.
func TestKeyLimitForgets(t *testing.T) {
	l := NewKeyLimit(1, time.Second, 1)
	now := l.base
	for i := range 100_000 { // a thousand keys are limited at a time
		now = now.Add(time.Millisecond)
		key := fmt.Sprint(i)
		if !l.hold(key, now) {
			t.Fatal(key)
		}
		l.use(key, now)
		if len(l.cells) != len(l.names) || len(l.cells) > 2100 {
			t.Fatalf("%d cells of %d names", len(l.cells), len(l.names))
		}
	}
	now = now.Add(time.Hour)
	for range 2000 {
		l.hold("one", now)
		l.drop("one")
	}
	if len(l.cells) > 1 || cap(l.names) > 1024 {
		t.Errorf("%d cells, room for %d", len(l.cells), cap(l.names))
	}
}

func TestKeyLimitsOfEverySize(t *testing.T) {
	for _, c := range []struct {
		calls int
		per   time.Duration
		burst int
	}{
		{1, math.MaxInt64, 1}, {1, time.Hour, math.MaxInt}, {math.MaxInt, time.Nanosecond, math.MaxInt}, {math.MaxInt, time.Millisecond, 1},
	} {
		l := NewKeyLimit(c.calls, c.per, c.burst)
		now := time.Now()
		for i := range 100 {
			when := l.when("k", now)
			ok := l.hold("k", now)
			if ok == when.After(now) {
				t.Errorf("%+v: asked to come after %v", c, when.Sub(now))
			}
			if want := i == 0 || c.burst > 1 || c.calls > 1; ok != want {
				t.Errorf("%+v: call %d: %v", c, i, ok)
			}
			if ok {
				l.use("k", now)
			}
			now = now.Add(time.Microsecond)
		}
	}
}

// Who waits for a call gets the first one that is free, and does not wait when
// that comes too late.
func TestKeyLimitTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewKeyLimit(1, time.Second, 1)
		start := time.Now()
		take := func(limit time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			err := keyLimits{l}.take(ctx, "")
			if err == nil {
				l.use("", time.Now())
			}
			return err
		}
		for range 3 {
			if err := take(time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("three calls took %v", d)
		}
		if err := take(time.Second / 2); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.take(ctx, ""); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		// One of two limits has nothing free: nothing of the other is lost.
		free := NewKeyLimit(1, time.Hour, 1)
		if err := (keyLimits{free, l}).take(ctx, ""); err == nil || !free.hold("", time.Now()) {
			t.Errorf("%v", err)
		}
	})
}

// BenchmarkKeyLimit is what a limit costs a call, and what it keeps of a key.
func BenchmarkKeyLimit(b *testing.B) {
	for _, keys := range []int{1, 1000, 1_000_000} {
		b.Run(fmt.Sprint("keys=", keys), func(b *testing.B) {
			names := make([]string, keys)
			for i := range names {
				names[i] = fmt.Sprint("key", i)
			}
			l := NewKeyLimit(1, time.Hour, 1_000_000)
			call := func(i int) {
				key, now := names[i%keys], time.Now()
				if l.hold(key, now) {
					l.use(key, now)
				}
			}
			before := heapInUse()
			for i := range keys {
				call(i)
			}
			size := (heapInUse() - before) / float64(keys)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				call(i)
			}
			b.ReportMetric(size, "B/key")
		})
	}
}
