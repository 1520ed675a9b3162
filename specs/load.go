package specs

// Loader turns files into resources. The zero limits mean the defaults.
type Loader struct {
	Types Types
	// MaxFileSize, MaxNodes and MaxDepth bound one file: bytes (default
	// 4 MiB), YAML nodes with aliases expanded (default 1,000,000), nesting
	// (default 100).
	MaxFileSize, MaxNodes, MaxDepth int
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
	// Err is set when it is missing or unreadable.
	Err error
	// Device identifies the file system it is on, to notice a changed mount.
	Device uint64
}
