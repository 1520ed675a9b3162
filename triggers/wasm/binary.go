package wasm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// wasi is the module that WASI preview 1 programs import.
const wasi = "wasi_snapshot_preview1"

const (
	// maxFile is the largest module, in bytes.
	maxFile = 256 << 20
	// maxSection bounds the sections that are looked into, in bytes; code and
	// data are not among them.
	maxSection = 16 << 20
	// pageSize is that of linear memory.
	pageSize = 64 << 10
	// maxTables and maxTable bound the tables of a module and the elements of
	// each, so that table.grow cannot take the memory that memory.grow is refused.
	maxTables = 16
	maxTable  = 1 << 17
)

// The sections that are looked into.
const (
	sectionImport = 2
	sectionTable  = 4
	sectionMemory = 5
	sectionExport = 7
)

// outline is what the sections before the code say of a module.
type outline struct {
	// imports are the names of modules and what is imported from them.
	imports [][2]string
	// pages is how many pages of memory the module begins with.
	pages uint64
	// command is true when it has an entry point.
	command bool
}

// errNoModule is about what does not even look like a module.
var errNoModule = errors.New("this is no WebAssembly module")

// readOutline reads the outline of a module. It validates nothing but what it
// reads; the code is not looked at.
func readOutline(r io.ReadSeeker) (*outline, error) {
	o := &outline{}
	err := sections(r, func(id byte, body *section) error {
		switch id {
		case sectionImport:
			for range body.count() {
				module, name := body.name(), body.name()
				o.imports = append(o.imports, [2]string{module, name})
				switch body.byte() {
				case 0: // function
					body.uint()
				case 1: // table
					body.byte()
					body.limits()
				case 2: // memory
					_, minimum, _ := body.limits()
					o.pages = max(o.pages, minimum)
				case 3: // global
					body.byte()
					body.byte()
				default: // of a proposal that is not supported
					return nil
				}
			}
		case sectionMemory:
			for range body.count() {
				_, minimum, _ := body.limits()
				o.pages = max(o.pages, minimum)
			}
		case sectionExport:
			for range body.count() {
				name, kind := body.name(), body.byte()
				body.uint()
				o.command = o.command || name == "_start" && kind == 0
			}
		}
		return body.err
	})
	return o, err
}

// check reports what keeps the module from being a command for limit bytes of
// memory.
func (o *outline) check(limit uint64) error {
	for _, i := range o.imports {
		switch module, name := i[0], i[1]; {
		case module == wasi:
		case module == "wasi_unstable":
			return fmt.Errorf("the module was built for WASI preview 0; build it with a toolchain for preview 1 (wasm32-wasip1)")
		case strings.HasPrefix(module, "wbg") || strings.HasPrefix(module, "./") || module == "gojs" || module == "go":
			return fmt.Errorf("the module was built for a JavaScript host (it imports %s.%s); build it for WASI preview 1 (wasm32-wasip1, GOOS=wasip1)", module, name)
		default:
			return fmt.Errorf("the module imports %s.%s; it can have %s only", module, name, wasi)
		}
	}
	if !o.command {
		return errors.New("the module has no entry point _start: it is a library; build it as a command")
	}
	if need := o.pages * pageSize; need > limit {
		return fmt.Errorf("the module needs %d MiB of memory to begin with, and memory is %d MiB", need>>20, limit>>20)
	}
	return nil
}

// capTables returns the module with an upper bound for every table that has
// none or a higher one.
func capTables(code []byte) ([]byte, error) {
	var out []byte
	copied := 0
	err := sections(bytes.NewReader(code), func(id byte, body *section) error {
		if id != sectionTable {
			return nil
		}
		n := body.count()
		if n > maxTables {
			return fmt.Errorf("the module has %d tables, and %d are the most", n, maxTables)
		}
		tables := binary.AppendUvarint(nil, n)
		for range n {
			kind := body.byte()
			flags, minimum, maximum := body.limits()
			switch {
			case kind != 0x6f && kind != 0x70 || flags > bounded: // references to externals, to functions
				return errors.New("the module has a table of a kind that is not supported")
			case minimum > maxTable:
				return fmt.Errorf("the module has a table of %d elements, and %d are the most", minimum, maxTable)
			case flags != bounded || maximum > maxTable:
				maximum = maxTable
			}
			tables = append(tables, kind, bounded)
			tables = binary.AppendUvarint(tables, minimum)
			tables = binary.AppendUvarint(tables, maximum)
		}
		if body.err != nil || len(body.rest) > 0 {
			return errNoModule
		}
		out = append(out, code[copied:body.begin]...)
		out = append(out, sectionTable)
		out = binary.AppendUvarint(out, uint64(len(tables)))
		out = append(out, tables...)
		copied = body.end
		return nil
	})
	return append(out, code[copied:]...), err
}

// sections calls visit for the sections up to the exports, in their order.
func sections(r io.ReadSeeker, visit func(id byte, body *section) error) error {
	br := bufio.NewReader(r)
	var head [8]byte
	if _, err := io.ReadFull(br, head[:]); err != nil || !bytes.HasPrefix(head[:], []byte("\x00asm")) {
		return errNoModule
	}
	switch version := head[4:]; {
	case bytes.Equal(version, []byte{1, 0, 0, 0}):
	case version[2] == 1:
		return errors.New("this is a component (WASI preview 2); build a module for preview 1 (wasm32-wasip1)")
	default:
		return fmt.Errorf("this is version %d of WebAssembly, which is not supported", version[0])
	}
	for at := len(head); ; {
		id, err := br.ReadByte()
		if err != nil {
			return nil //nolint:nilerr // the end of a module without exports
		}
		c := &counter{r: br, n: 1}
		size, err := binary.ReadUvarint(c)
		if err != nil || size > maxFile {
			return errNoModule
		}
		s := &section{begin: at, end: at + c.n + int(size)}
		at = s.end
		if !slices.Contains([]byte{sectionImport, sectionTable, sectionMemory, sectionExport}, id) {
			if err := skip(br, r, int64(size)); err != nil {
				return errNoModule
			}
			continue
		}
		if size > maxSection {
			return errNoModule
		}
		s.rest = make([]byte, size)
		if _, err := io.ReadFull(br, s.rest); err != nil {
			return errNoModule
		}
		if err := visit(id, s); err != nil || id == sectionExport {
			return err
		}
	}
}

// skip moves on by n bytes.
func skip(br *bufio.Reader, r io.ReadSeeker, n int64) error {
	if buffered := int64(br.Buffered()); n > buffered {
		_, err := r.Seek(n-buffered, io.SeekCurrent)
		br.Reset(r)
		return err
	}
	_, err := br.Discard(int(n))
	return err
}

// counter counts the bytes it reads.
type counter struct {
	r io.ByteReader
	n int
}

// ReadByte implements io.ByteReader.
func (c *counter) ReadByte() (byte, error) {
	c.n++
	return c.r.ReadByte()
}

// section is a section that is being read. After the first mistake everything
// is zero.
type section struct {
	begin, end int // in the module
	rest       []byte
	err        error
}

func (s *section) fail() uint64 {
	s.rest, s.err = nil, errNoModule
	return 0
}

func (s *section) byte() byte {
	if len(s.rest) == 0 {
		return byte(s.fail())
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return b
}

func (s *section) uint() uint64 {
	v, n := binary.Uvarint(s.rest)
	if n <= 0 {
		return s.fail()
	}
	s.rest = s.rest[n:]
	return v
}

// count is the number of entries that follow, each at least a byte.
func (s *section) count() uint64 {
	n := s.uint()
	if n > uint64(len(s.rest)) {
		return s.fail()
	}
	return n
}

func (s *section) name() string {
	n := s.uint()
	if n > uint64(len(s.rest)) {
		s.fail()
		return ""
	}
	name := string(s.rest[:n])
	s.rest = s.rest[n:]
	return name
}

// bounded is the flag of limits that have a maximum.
const bounded = 1

// limits are those of a table or memory.
func (s *section) limits() (flags byte, minimum, maximum uint64) {
	flags = s.byte()
	minimum = s.uint()
	if flags&bounded != 0 {
		maximum = s.uint()
	}
	return flags, minimum, maximum
}
