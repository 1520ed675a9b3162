package specs_test

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/specs"
)

var update = flag.Bool("update", false, "write the golden files")

// codes reads the codes from the source, so that none can be forgotten.
func codes(t *testing.T, file string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			code, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, code)
		}
		return true
	})
	return out
}

// golden compares with a file, or writes it with -update.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n got:\n%s\nwant:\n%s", file, got, want)
	}
}

func text(ds specs.Diagnostics) string {
	var b strings.Builder
	for _, d := range ds {
		b.WriteString(d.String() + "\n")
		for _, p := range d.Related {
			b.WriteString("  " + p.String() + "\n")
		}
	}
	return b.String()
}

// TestDiagnostics has one case for each code: testdata/diagnostics/CODE.yaml
// and what is said about it. Codes about the file system make their own files.
func TestDiagnostics(t *testing.T) {
	dir := filepath.Join("testdata", "diagnostics")
	fileSystem := map[string]func(t *testing.T, dir string) []string{
		"unreadable": func(t *testing.T, dir string) []string {
			symlink(t, "missing.yaml", filepath.Join(dir, "broken.yaml"))
			return []string{dir, filepath.Join(dir, "absent")}
		},
		"test-file": func(t *testing.T, dir string) []string {
			write(t, filepath.Join(dir, "a_test.yaml"), "tests: []")
			return []string{filepath.Join(dir, "a_test.yaml")}
		},
		"link-outside": func(t *testing.T, dir string) []string {
			write(t, filepath.Join(dir, "secret.yaml"), "secret: data")
			if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
				t.Fatal(err)
			}
			symlink(t, "../secret.yaml", filepath.Join(dir, "root", "link.yaml"))
			return []string{filepath.Join(dir, "root")}
		},
	}
	for _, code := range codes(t, "codes.go") {
		t.Run(code, func(t *testing.T) {
			l := loader()
			var ds specs.Diagnostics
			if build := fileSystem[code]; build != nil {
				tmp, err := filepath.EvalSymlinks(t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				got, err := l.Load(t.Context(), build(t, tmp)...)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range got.Diagnostics {
					d.Pos.File = strings.ReplaceAll(d.Pos.File, tmp, "")
					d.Message = strings.ReplaceAll(d.Message, tmp, "")
					ds = append(ds, d)
				}
			} else {
				data, err := os.ReadFile(filepath.Join(dir, code+".yaml"))
				if err != nil {
					t.Fatal(err)
				}
				switch specs.Code(code) {
				case specs.CodeTooManyNodes:
					l.MaxNodes = 1000
				case specs.CodeFileTooLarge:
					l.MaxFileSize = 1024
				}
				got := l.LoadBytes(code+".yaml", data)
				ds = slices.Concat(got.Diagnostics, l.Check(got.Set(), got.Invalid...)).Sort()
			}
			if !slices.ContainsFunc(ds, func(d specs.Diagnostic) bool { return d.Code == specs.Code(code) }) {
				t.Errorf("no diagnostic has this code:\n%s", text(ds))
			}
			golden(t, filepath.Join(dir, code+".golden"), text(ds))
		})
	}
}

func TestEveryCodeIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/diagnostics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range slices.Concat(codes(t, "codes.go"), codes(t, "expression/codes.go"), codes(t, "jq/codes.go")) {
		if !bytes.Contains(doc, []byte("\n### "+code+"\n")) {
			t.Errorf("docs/diagnostics.md has no section %q", code)
		}
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Skip(err)
	}
}

// TestKindDiagnostics: what is wrong with kinds whose rules no code has alone.
func TestKindDiagnostics(t *testing.T) {
	files, err := filepath.Glob("testdata/kinds/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		l := loader()
		loaded, err := l.Load(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		found := slices.Concat(loaded.Diagnostics, l.Check(loaded.Set(), loaded.Invalid...))
		golden(t, strings.TrimSuffix(file, ".yaml")+".golden", text(found))
	}
}
