// Package secrets owns secret values: where they are read and how they are
// kept out of everything people see. A value is handed to who asks by
// reference and to nobody else; errors name references, variables and files,
// never values. It must not know sources, sensors or functions.
package secrets

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sensor-engine/engine/specs"
)

// maxFile is the largest secret file, in bytes.
const maxFile = 1 << 20

// Resolver resolves references to secrets. It is safe for concurrent use. A
// variable is read at each call; a file too, when it changed on disk.
type Resolver struct {
	lookup func(string) (string, bool)
	masker *Masker
	// set maps the names of Secrets to where their values come from.
	set atomic.Pointer[map[string]origin]

	mu    sync.Mutex
	files map[string]cached
}

// origin is a Secret and the directory its files are relative to.
type origin struct {
	spec *specs.Secret
	dir  string
}

// cached is the content of a file and what it looked like when it was read.
type cached struct {
	info  os.FileInfo
	value string
}

// NewResolver returns a resolver that knows no secrets yet. lookup finds
// environment variables, as os.LookupEnv does. Every value handed out is made
// known to masker first.
func NewResolver(lookup func(string) (string, bool), masker *Masker) *Resolver {
	r := &Resolver{lookup: lookup, masker: masker, files: map[string]cached{}}
	r.set.Store(&map[string]origin{})
	return r
}

// Apply makes the Secrets of set the ones that are resolved from now on, and
// forgets contents of files that no longer belong to one.
func (r *Resolver) Apply(set *specs.Set) {
	next := map[string]origin{}
	used := map[string]bool{}
	for ref, res := range set.Resources {
		spec, ok := res.Spec.(*specs.Secret)
		if ref.Kind != specs.KindSecret || !ok {
			continue
		}
		o := origin{spec: spec, dir: filepath.Dir(res.Pos.File)}
		next[ref.Name] = o
		for _, f := range spec.Files {
			used[o.path(f)] = true
		}
	}
	r.set.Store(&next)
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.files {
		if !used[p] {
			delete(r.files, p)
		}
	}
}

func (o origin) path(file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(o.dir, file)
}

// Secret returns the value of a reference. An empty value is an error: it is
// never what was meant, and a signature with an empty key protects nothing.
func (r *Resolver) Secret(ref specs.SecretRef) (string, error) {
	return r.secret(*r.set.Load(), ref)
}

func (r *Resolver) secret(set map[string]origin, ref specs.SecretRef) (string, error) {
	v, err := r.resolve(set, ref)
	if err == nil && v == "" {
		err = errors.New("the value is empty")
	}
	if err != nil {
		return "", fmt.Errorf("secret %s, key %s: %w", ref.Name, ref.Key, err)
	}
	r.masker.Add(v)
	return v, nil
}

// Values returns all values of a Secret, by key. When one of them is missing,
// there are none.
func (r *Resolver) Values(name string) (map[string]string, error) {
	return r.values(*r.set.Load(), name)
}

func (r *Resolver) values(set map[string]origin, name string) (map[string]string, error) {
	o, ok := set[name]
	if !ok {
		return nil, fmt.Errorf("secret %s: there is no Secret of this name", name)
	}
	out := make(map[string]string, len(o.spec.Env)+len(o.spec.Files))
	for _, keys := range [...]map[string]string{o.spec.Env, o.spec.Files} {
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			v, err := r.secret(set, specs.SecretRef{Name: name, Key: key})
			if err != nil {
				return nil, err
			}
			out[key] = v
		}
	}
	return out, nil
}

// Pinned resolves some Secrets as they were when it was made, whatever has
// become of them, and all others as they are. Values are read at each call all
// the same. It is safe for concurrent use.
type Pinned struct {
	r   *Resolver
	own map[string]origin
}

// Pin returns a [Pinned] for the Secrets of these names; a name without a Secret
// is not pinned.
func (r *Resolver) Pin(names []string) *Pinned {
	p := &Pinned{r: r, own: make(map[string]origin, len(names))}
	set := *r.set.Load()
	for _, name := range names {
		if o, ok := set[name]; ok {
			p.own[name] = o
		}
	}
	return p
}

// Secret returns the value of a reference, as [Resolver.Secret] does.
func (p *Pinned) Secret(ref specs.SecretRef) (string, error) {
	return p.r.secret(p.of(ref.Name), ref)
}

// Values returns all values of a Secret, as [Resolver.Values] does.
func (p *Pinned) Values(name string) (map[string]string, error) {
	return p.r.values(p.of(name), name)
}

// of is where to look a name up.
func (p *Pinned) of(name string) map[string]origin {
	if _, ok := p.own[name]; ok {
		return p.own
	}
	return *p.r.set.Load()
}

func (r *Resolver) resolve(set map[string]origin, ref specs.SecretRef) (string, error) {
	o, ok := set[ref.Name]
	if !ok {
		return "", errors.New("there is no Secret of this name")
	}
	if name, ok := o.spec.Env[ref.Key]; ok {
		v, ok := r.lookup(name)
		if !ok {
			return "", fmt.Errorf("environment variable %s is not set; set it before the engine starts", name)
		}
		return v, nil
	}
	if file, ok := o.spec.Files[ref.Key]; ok {
		return r.file(o.path(file))
	}
	return "", errors.New("the Secret has no such key in env or files")
}

// file returns the content of a file without one trailing newline.
func (r *Resolver) file(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	c, ok := r.files[path]
	r.mu.Unlock()
	if ok && os.SameFile(c.info, info) && c.info.ModTime().Equal(info.ModTime()) && c.info.Size() == info.Size() {
		return c.value, nil
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	v := string(b)
	if s, ok := strings.CutSuffix(v, "\n"); ok {
		v = strings.TrimSuffix(s, "\r")
	}
	// info is older than the content: a change in between is read next time.
	r.mu.Lock()
	r.files[path] = cached{info, v}
	r.mu.Unlock()
	return v, nil
}
