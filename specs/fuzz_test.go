package specs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sensor-engine/engine/specs"
)

// FuzzLoad looks for panics, for places outside the text, and for stored
// sources that are not what they were.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(shop))
	files, err := filepath.Glob("testdata/diagnostics/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &a {<<: *a}\r\nb: |+\r\n  x\u2028 y\r\n"))
	f.Add([]byte("--- &a !x\n- *a\n...\n%YAML 1.1\n--- >\n  folded\n"))
	l := loader()
	l.MaxNodes, l.MaxDepth = 5000, 50
	f.Fuzz(func(t *testing.T, data []byte) {
		got := l.LoadBytes("x", data)
		breaks := strings.NewReplacer("\r\n", "\n", "\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n")
		lines := strings.Split(breaks.Replace(strings.TrimPrefix(string(data), "\ufeff")), "\n")
		inside := func(p specs.Pos) {
			if p.Line < 1 || p.Line > len(lines) || p.Col < 1 || p.Col > utf8.RuneCountInString(lines[p.Line-1])+1 {
				t.Errorf("%s is outside of the text\n%s", p, text(got.Diagnostics))
			}
		}
		for _, d := range got.Diagnostics {
			inside(d.Pos)
			for _, p := range d.Related {
				inside(p)
			}
		}
		l.Check(got.Set(), got.Invalid...)
		for _, r := range got.Resources {
			again := l.LoadSource(r.Pos, r.Source)
			if len(again.Resources) != 1 || again.Resources[0].Hash != r.Hash || again.Resources[0].NamePos != r.NamePos {
				t.Errorf("%s is not the same when loaded again from\n%s\n%s", r.Ref(), r.Source, text(again.Diagnostics))
			}
		}
	})
}
