package engine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkReloadOneOfThousand changes one of 1,000 resources and waits until
// it is in force, asked for as `engine reload` does.
func BenchmarkReloadOneOfThousand(b *testing.B) {
	dir := b.TempDir()
	sensor := func(i, n int) {
		text := fmt.Sprintf(head+`kind: Sensor
metadata: {name: s%d}
spec:
  dependencies: [{name: a, source: shop, event: orders, when: data.n == %d}]
  triggers: [{name: t, log: {message: "order %d"}}]
`, i, n, n)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("s%d.yaml", i)), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte(shop("orders")), 0o600); err != nil {
		b.Fatal(err)
	}
	for i := range 999 {
		sensor(i, i)
	}
	r := start(b, dir, b.TempDir())
	n := 1000
	for b.Loop() {
		n++
		sensor(7, n)
		if _, err := r.e.Reload(b.Context(), false); err != nil {
			b.Fatal(err)
		}
	}
}
