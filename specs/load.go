package specs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Loader turns files into resources. The zero limits mean the defaults. The same
// files give the same result, and it may be used from many goroutines.
type Loader struct {
	Types Types
	// MaxFileSize, MaxNodes and MaxDepth bound one file: bytes (default
	// 4 MiB), YAML nodes with aliases expanded (default 1,000,000), nesting
	// (default 100).
	MaxFileSize, MaxNodes, MaxDepth int
	// Cache, when it is set, spares Load the files that are as they were. It
	// must not be shared by Loaders with different types or limits.
	Cache *Cache
}

// Cache remembers what the files of the last Load gave, so that the next one
// parses only those whose content changed; the resources of the others are the
// same pointers, which is safe because resources are never changed. The zero
// Cache is empty and ready, and safe for concurrent use.
type Cache struct {
	mu    sync.Mutex
	files map[string]cachedFile
}

type cachedFile struct {
	sum    [sha256.Size]byte
	parsed parsedFile
}

func (c *Cache) get(name string, sum [sha256.Size]byte) (parsedFile, bool) {
	if c == nil {
		return parsedFile{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.files[name]
	return f.parsed, ok && f.sum == sum
}

// replace forgets all files but these.
func (c *Cache) replace(files map[string]cachedFile) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files = files
}

// Loaded is everything one read of the roots gave.
type Loaded struct {
	// Resources are those valid in themselves, sorted by kind and name. Of
	// duplicates only the first (by file and line) is here.
	Resources []*Resource
	// Invalid are the resources that are there but have errors of their own,
	// as far as kind and name could be read.
	Invalid []Ref
	// Files are all files read, sorted by path.
	Files []File
	// Roots are the paths asked for, in order.
	Roots []Root
	// Diagnostics are all problems found, sorted.
	Diagnostics Diagnostics
}

// File is one file that was read.
type File struct {
	Path string
	// Broken is true when the file could not be read or is no YAML, so that
	// nothing is known of what it defines.
	Broken bool
	// Refs are the resources it defines, valid or not.
	Refs []Ref
}

// Root is one path that was asked for.
type Root struct {
	Path string
	// Err is set when it, or a directory in it, is missing or unreadable, so
	// that nothing may be concluded from the absence of a resource.
	Err error
	// Device identifies the file system it is on, to notice a changed mount.
	Device uint64
}

// Set returns the valid resources as a set.
func (l *Loaded) Set() *Set {
	s := &Set{Resources: make(map[Ref]*Resource, len(l.Resources))}
	for _, r := range l.Resources {
		s.Resources[r.Ref()] = r
	}
	return s
}

// Load reads files and directories: every *.yaml and *.yml, recursively,
// without spec tests ([IsTestFile]), hidden entries and editors' backups. Symbolic links are followed
// within their root. What is wrong with the files is in Loaded.Diagnostics; the
// error is that of ctx alone.
func (l Loader) Load(ctx context.Context, paths ...string) (*Loaded, error) {
	out := &Loaded{}
	w := walker{limit: l.limits().size, seen: map[string]bool{}}
	table := typeTable{}
	files := map[string]cachedFile{}
	var parsed []parsedFile
	for _, path := range paths {
		root, err := w.root(ctx, path, func(name string, data []byte) {
			sum := sha256.Sum256(data)
			p, ok := l.Cache.get(name, sum)
			if !ok {
				p = l.parseFile(Pos{File: name}, data, table)
			}
			files[name] = cachedFile{sum, p}
			parsed = append(parsed, p)
		})
		if err != nil {
			return nil, err
		}
		out.Roots = append(out.Roots, root)
	}
	l.Cache.replace(files)
	out.Files = append(out.Files, w.broken...)
	out.Diagnostics = append(out.Diagnostics, w.found...)
	out.merge(parsed)
	return out, nil
}

// LoadBytes reads documents from memory; name stands for the file.
func (l Loader) LoadBytes(name string, data []byte) *Loaded {
	return l.LoadSource(Pos{File: name}, string(data))
}

// LoadSource reads a stored [Resource.Source] again. Given its Resource.Pos,
// every place in the result is the one it had in the file.
func (l Loader) LoadSource(pos Pos, source string) *Loaded {
	out := &Loaded{}
	out.merge([]parsedFile{l.parseFile(pos, []byte(source), typeTable{})})
	return out
}

// parsedFile is what one file gave. It depends on name, data and the types
// alone.
type parsedFile struct {
	name   string
	broken bool
	docs   []document
	found  Diagnostics
}

// parseFile reads one file whose text begins at the line of pos.
func (l Loader) parseFile(pos Pos, data []byte, table typeTable) parsedFile {
	src := &source{file: pos.File, offset: max(pos.Line-1, 0)}
	docs, ok := src.readDocuments(data, l.limits())
	p := parsedFile{name: pos.File, broken: !ok}
	for _, raw := range docs {
		d := &decoder{source: src, types: l.Types, table: table}
		doc := d.resource(raw.root, src.lines.document(raw.root.line))
		if raw.errors > 0 {
			doc.resource = nil
		}
		for i := raw.from; i < raw.to; i++ {
			src.found[i].Ref = d.ref
		}
		p.docs = append(p.docs, doc)
	}
	p.found = src.found
	return p
}

// merge puts what the files gave together and finds resources defined twice.
func (l *Loaded) merge(files []parsedFile) {
	slices.SortStableFunc(files, func(a, b parsedFile) int { return strings.Compare(a.name, b.name) })
	first := map[Ref]Pos{}
	for _, p := range files {
		f := File{Path: p.name, Broken: p.broken}
		own := map[Ref]bool{}
		l.Diagnostics = append(l.Diagnostics, p.found...)
		for _, doc := range p.docs {
			if p.broken {
				break
			}
			if doc.ref == (Ref{}) {
				continue
			}
			if !own[doc.ref] {
				own[doc.ref] = true
				f.Refs = append(f.Refs, doc.ref)
			}
			if before, ok := first[doc.ref]; ok {
				l.Diagnostics = append(l.Diagnostics, Diagnostic{
					Pos: doc.pos, Severity: Error, Code: CodeDuplicateResource, Ref: doc.ref, Path: "metadata.name",
					Message: fmt.Sprintf("%s %q is already defined at %s", doc.ref.Kind, doc.ref.Name, before),
					Hint:    "rename or remove one of them", Related: []Pos{before},
				})
				continue
			}
			first[doc.ref] = doc.pos
			if doc.resource != nil {
				l.Resources = append(l.Resources, doc.resource)
			} else {
				l.Invalid = append(l.Invalid, doc.ref)
			}
		}
		l.Files = append(l.Files, f)
	}
	slices.SortFunc(l.Resources, func(a, b *Resource) int { return compareRefs(a.Ref(), b.Ref()) })
	slices.SortFunc(l.Invalid, compareRefs)
	slices.SortStableFunc(l.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	l.Diagnostics = l.Diagnostics.Sort()
}
