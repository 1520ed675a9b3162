package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/sensor-engine/engine/triggers/worker"
)

// compilers is how many functions of one module are compiled at a time.
const compilers = 2

// library holds the modules of all functions of one [Factory]: a module that
// several functions run is compiled once, one at a time.
type library struct {
	compiling chan struct{} // holds one token

	mu      sync.Mutex
	modules map[[sha256.Size]byte]*module
}

func newLibrary() *library {
	return &library{compiling: make(chan struct{}, 1), modules: map[[sha256.Size]byte]*module{}}
}

// module is a compiled module, or one that is being compiled. It is shared by
// the functions that have it open.
type module struct {
	library *library
	sum     [sha256.Size]byte
	users   int // guarded by library.mu
	cancel  context.CancelFunc
	ready   chan struct{} // closed when the following are set for good

	runtime  wazero.Runtime
	cache    wazero.CompilationCache
	compiled wazero.CompiledModule
	kept     *worker.Kept // where the code is on disk, nil when it is not
	err      error
}

// open returns the module of some code and begins to compile it if nobody has.
// dir is where compiled code is kept across restarts, "" for nowhere. The caller
// closes the module.
func (l *library) open(code []byte, dir string, log *slog.Logger) *module {
	sum := sha256.Sum256(code)
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.modules[sum]
	if m == nil {
		ctx, cancel := context.WithCancel(context.Background())
		m = &module{library: l, sum: sum, cancel: cancel, ready: make(chan struct{})}
		l.modules[sum] = m
		go m.make(ctx, code, dir, log)
	}
	m.users++
	return m
}

// close gives the module up; the last user frees it.
func (m *module) close() {
	l := m.library
	l.mu.Lock()
	m.users--
	last := m.users == 0
	if last {
		delete(l.modules, m.sum)
	}
	l.mu.Unlock()
	if last {
		m.cancel()
		<-m.ready
		m.free()
	}
}

// made reports whether the module is compiled, or known not to be.
func (m *module) made() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// wait returns when the module is compiled, or with the reason why it is not.
func (m *module) wait(ctx context.Context) error {
	if m.made() {
		return m.err
	}
	select {
	case <-m.ready:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("the module is still being compiled: %w", ctx.Err())
	}
}

// make compiles the module.
func (m *module) make(ctx context.Context, code []byte, dir string, log *slog.Logger) {
	defer close(m.ready)
	select {
	case m.library.compiling <- struct{}{}:
		defer func() { <-m.library.compiling }()
	case <-ctx.Done():
		m.err = ctx.Err()
		return
	}
	var disk error
	if dir != "" {
		dir = filepath.Join(dir, hex.EncodeToString(m.sum[:]))
		if disk = m.compileIn(ctx, code, dir); disk == nil || ctx.Err() != nil {
			m.err = disk
			return
		}
		// It may be what was kept that is broken.
		m.free() //nolint:contextcheck // it is freed however ctx ended
		disk = errors.Join(disk, os.RemoveAll(dir))
	}
	if m.err = m.compile(ctx, code, wazero.NewCompilationCache()); m.err == nil && disk != nil {
		log.Warn("compiled code cannot be kept on disk this time", "error", disk)
	}
}

// compileIn compiles the module, or takes it from dir, where it stays.
func (m *module) compileIn(ctx context.Context, code []byte, dir string) error {
	kept, err := worker.Keep(ctx, dir, func(context.Context, string) error { return nil })
	if err != nil {
		return err
	}
	m.kept = kept
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return err
	}
	return m.compile(ctx, code, cache)
}

func (m *module) compile(ctx context.Context, code []byte, cache wazero.CompilationCache) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the compiler failed: %v", r)
		}
	}()
	m.cache = cache
	m.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCompilationCache(cache).WithCloseOnContextDone(true))
	host := m.runtime.NewHostModuleBuilder(wasi)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(host)
	// Theirs makes room for every number a module can think of.
	host.NewFunctionBuilder().WithFunc(func(_, _ int32) int32 { return errnoNotSupported }).Export("fd_renumber")
	if _, err := host.Instantiate(ctx); err != nil {
		return err
	}
	m.compiled, err = m.runtime.CompileModule(experimental.WithCompilationWorkers(ctx, compilers), code)
	return err
}

// errnoNotSupported is notsup of WASI.
const errnoNotSupported = 58

// free frees what was compiled.
func (m *module) free() {
	ctx := context.Background()
	if m.runtime != nil {
		_ = m.runtime.Close(ctx)
	}
	if m.cache != nil {
		_ = m.cache.Close(ctx)
	}
	if m.kept != nil {
		_ = m.kept.Close()
	}
	m.runtime, m.cache, m.compiled, m.kept = nil, nil, nil, nil
}
