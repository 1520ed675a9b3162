package wasm

import (
	"bytes"
	"encoding/binary"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
)

var update = flag.Bool("update", false, "write testdata/echo.wasm")

// assemble puts a module together; bodies of sections are without their sizes.
func assemble(sections ...[]byte) []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range sections {
		out = append(out, s[0])
		out = binary.AppendUvarint(out, uint64(len(s)-1))
		out = append(out, s[1:]...)
	}
	return out
}

func cat(parts ...any) []byte {
	var out []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			out = binary.AppendUvarint(out, uint64(p))
		case string:
			out = binary.AppendUvarint(out, uint64(len(p)))
			out = append(out, p...)
		case []byte:
			out = append(out, p...)
		}
	}
	return out
}

// Parts of small modules: types 0 is () → (), 1 is (i32 × 4) → i32.
var (
	types    = []byte{1, 2, 0x60, 0, 0, 0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f}
	start    = cat(7, 1, "_start", 0, 0)                                       // export "_start" (func 0)
	single   = []byte{3, 1, 0}                                                 // one function of type 0
	one      = []byte{5, 1, 0, 1}                                              // a memory of one page
	imported = func(name string) []byte { return cat(2, 1, wasi, name, 0, 1) } // of type 1
)

// code is the section with one function.
func code(instructions ...byte) []byte {
	body := cat(0, instructions, []byte{0x0b}) // no locals, end
	return cat(10, 1, len(body), body)
}

// small is a module that does one thing.
func small(extra []byte, instructions ...byte) []byte {
	sections := [][]byte{types, single}
	if extra != nil {
		sections = append(sections, extra)
	}
	return assemble(append(sections, start, code(instructions...))...)
}

// i32 is i32.const.
func i32(v int32) []byte {
	out := []byte{0x41}
	for {
		b := byte(v & 0x7f)
		v >>= 7
		if v == 0 && b&0x40 == 0 || v == -1 && b&0x40 != 0 {
			return append(out, b)
		}
		out = append(out, b|0x80)
	}
}

const (
	opUnreachable, opLoop, opIf, opEnd, opBr, opCall, opDrop = 0x00, 0x03, 0x04, 0x0b, 0x0c, 0x10, 0x1a
	opLoad, opStore                                          = 0x28, 0x36
	none                                                     = 0x40
)

var store, load32 = []byte{opStore, 2, 0}, []byte{opLoad, 2, 0}

// echo is testdata/echo.wat.
func echo() []byte {
	body := cat(
		[]byte{opLoop, none},
		i32(0), i32(16), store,
		i32(4), i32(65536), store,
		i32(0), i32(0), i32(1), i32(8), []byte{opCall, 0, opDrop},
		i32(4), i32(8), load32, store,
		i32(8), load32, []byte{opIf, none},
		i32(1), i32(0), i32(1), i32(12), []byte{opCall, 1, opDrop},
		[]byte{opBr, 1, opEnd, opEnd},
	)
	return assemble(
		types, cat(2, 2, wasi, "fd_read", 0, 1, wasi, "fd_write", 0, 1), single, []byte{5, 1, 0, 2},
		cat(7, 2, "memory", 2, 0, "_start", 0, 2), code(body...),
	)
}

// TestEcho: the committed module is what its text says.
func TestEcho(t *testing.T) {
	want := echo()
	if *update {
		if err := os.WriteFile("testdata/echo.wasm", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("testdata/echo.wasm")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("testdata/echo.wasm is not that of binary_test.go: go test -update (%v)", err)
	}
}

func TestOutline(t *testing.T) {
	component := []byte("\x00asm\x0d\x00\x01\x00")
	for name, tc := range map[string]struct {
		code []byte
		want string
	}{
		"good":       {echo(), ""},
		"empty":      {nil, "this is no WebAssembly module"},
		"text":       {[]byte("(module)"), "this is no WebAssembly module"},
		"component":  {component, "this is a component (WASI preview 2)"},
		"version":    {[]byte("\x00asm\x02\x00\x00\x00"), "version 2 of WebAssembly"},
		"cut":        {echo()[:60], "this is no WebAssembly module"},
		"header":     {echo()[:8], "it is a library"},
		"library":    {assemble(types, single, one, code()), "it is a library"},
		"javascript": {assemble(types, cat(2, 1, "gojs", "runtime.ticks", 0, 0), single, start, code()), "built for a JavaScript host (it imports gojs.runtime.ticks)"},
		"preview 0":  {assemble(types, cat(2, 1, "wasi_unstable", "fd_read", 0, 1), single, start, code()), "WASI preview 0"},
		"other":      {assemble(types, cat(2, 1, "env", "system", 0, 0), single, start, code()), "imports env.system; it can have wasi_snapshot_preview1 only"},
		"memory":     {assemble(types, single, cat(5, 1, 0, 2000), start, code()), "needs 125 MiB of memory to begin with, and memory is 64 MiB"},
		"endless":    {assemble(cat(2, 1<<30)), "this is no WebAssembly module"},
		"long name":  {assemble(cat(2, 1, 1<<40)), "this is no WebAssembly module"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := readOutline(bytes.NewReader(tc.code))
			if err == nil {
				err = o.check(defaultMemory)
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestCapTables(t *testing.T) {
	table := func(parts ...any) []byte { return small(cat(append([]any{4}, parts...)...)) }
	funcs := 0x70
	for name, tc := range map[string]struct {
		code, want []byte
		failure    string
	}{
		"none":      {code: echo(), want: echo()},
		"unbounded": {code: table(1, funcs, 0, 7), want: table(1, funcs, 1, 7, maxTable)},
		"small":     {code: table(1, funcs, 1, 7, 9), want: table(1, funcs, 1, 7, 9)},
		"large":     {code: table(2, 0x6f, 1, 0, 1<<31, funcs, 0, 1), want: table(2, 0x6f, 1, 0, maxTable, funcs, 1, 1, maxTable)},
		"too large": {code: table(1, funcs, 0, maxTable+1), failure: "a table of 131073 elements"},
		"too many":  {code: table(append([]any{17}, make([]any, 17*3)...)...), failure: "this is no WebAssembly module"},
		"a lot":     {code: table(17, bytes.Repeat([]byte{0x70, 0, 0}, 17)), failure: "the module has 17 tables"},
		"kind":      {code: table(1, 0x63, 0, 0), failure: "not supported"},
		"flags":     {code: table(1, funcs, 4, 1), failure: "not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := capTables(tc.code)
			if tc.failure != "" {
				if err == nil || !strings.Contains(err.Error(), tc.failure) {
					t.Errorf("%v, want %q", err, tc.failure)
				}
				return
			}
			if err != nil || !bytes.Equal(got, tc.want) {
				t.Errorf("%x, want %x (%v)", got, tc.want, err)
			}
		})
	}
}

// FuzzBinary: whatever a file holds, reading it ends, and what is a module
// before the cap is one after it.
func FuzzBinary(f *testing.F) {
	f.Add(echo())
	f.Add(small(cat(4, 1, 0x70, 0, 7)))
	f.Add([]byte("\x00asm\x0d\x00\x01\x00"))
	r := wazero.NewRuntimeWithConfig(f.Context(), wazero.NewRuntimeConfigInterpreter())
	f.Cleanup(func() { _ = r.Close(f.Context()) })
	f.Fuzz(func(t *testing.T, code []byte) {
		o, err := readOutline(bytes.NewReader(code))
		if err != nil || o.check(defaultMemory) != nil {
			return
		}
		capped, err := capTables(code)
		if err != nil {
			return
		}
		before, err := r.CompileModule(t.Context(), code)
		if err != nil {
			return
		}
		_ = before.Close(t.Context())
		after, err := r.CompileModule(t.Context(), capped)
		if err != nil {
			t.Fatalf("%v\n%x\n%x", err, code, capped)
		}
		_ = after.Close(t.Context())
	})
}
