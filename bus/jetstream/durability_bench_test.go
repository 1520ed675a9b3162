//go:build unix

package jetstream

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// BenchmarkDurability compares the durabilities, with the server's own sync
// of each write, and with the bare cost of a write and its sync.
func BenchmarkDurability(b *testing.B) {
	b.Run("raw", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		data := make([]byte, 600)
		start := cpu()
		for b.Loop() {
			if _, err := f.Write(data); err != nil {
				b.Fatal(err)
			}
			if err := syncData(f); err != nil {
				b.Fatal(err)
			}
		}
		perSecond(b, start)
	})
	for _, n := range []int{1, 16, 128} {
		for _, mode := range []string{"os", "fsync", "syncAlways"} {
			b.Run(fmt.Sprintf("%s/%d", mode, n), func(b *testing.B) {
				o := options(b)
				o.CheckInterval = 0
				o.Limits.Events = 40 * gib
				if mode == "syncAlways" {
					o.syncAlways = true
				} else {
					o.Durability = Durability(mode)
				}
				l := mustOpen(b, o).Events()
				r := event()
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
}
