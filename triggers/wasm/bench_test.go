package wasm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sensor-engine/engine/triggers"
	execkind "github.com/sensor-engine/engine/triggers/exec"
)

// BenchmarkCall compares a call in the sandbox with a process of its own: cat
// with one of 189 bytes that does the same, and one program in Go, built for
// both.
func BenchmarkCall(b *testing.B) {
	path := guest(b)
	native := filepath.Join(b.TempDir(), "guest")
	cmd := exec.Command("go", "build", "-o", native, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	spawn := func(command ...string) triggers.Function {
		f, err := execkind.Factory().Make(&execkind.Config{Command: command}, triggers.Env{Dir: "."})
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	sandbox := func(cfg *Config) triggers.Function {
		f := newFunction(sharedLibrary, cfg, triggers.Env{Dir: "."})
		b.Cleanup(func() { _ = f.Close() })
		if err := f.module.wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		return f
	}
	for _, bb := range []struct {
		name string
		f    triggers.Function
	}{
		{"small/process", spawn("cat")},
		{"small/wasm", sandbox(&Config{File: "testdata/echo.wasm"})},
		{"go/process", spawn(native, "echo")},
		{"go/wasm", sandbox(&Config{File: path, Args: []string{"echo"}})},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bb.f.Invoke(b.Context(), call(nil)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCompile compares compiling a program in Go with finding it on disk.
func BenchmarkCompile(b *testing.B) {
	path, data := guest(b), b.TempDir()
	for name, dir := range map[string]string{"cold": "", "on disk": data} {
		b.Run(name, func(b *testing.B) {
			compile := func() {
				f := newFunction(newLibrary(), &Config{File: path}, triggers.Env{Data: dir})
				defer f.Close()
				if err := f.module.wait(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			if dir != "" {
				compile()
			}
			for b.Loop() {
				compile()
			}
		})
	}
}
