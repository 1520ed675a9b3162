package worker

import (
	"os"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Code says where the code of a function is, as its config does: in a file, in a
// directory, or in the spec itself. Paths are relative to the spec's file.
type Code struct{ File, Dir, Source string }

// Validate reports when the code is not given in exactly one way. example has all
// of them.
func (c Code) Validate(ck *specs.Checker, example string) {
	given := 0
	for _, s := range []string{c.File, c.Dir, c.Source} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		ck.Errorf("", specs.CodeInvalidValue, example, "the code must be given in one way")
	}
}

// Check reports what is wrong with the file or directory below root. handler is
// how one in a directory is named. It returns true when there is a directory to
// look for the handler in.
func (c Code) Check(ck *specs.Checker, root, handler string) bool {
	switch {
	case c.File != "":
		if info, err := os.Stat(triggers.Join(root, c.File)); err != nil {
			triggers.Unreadable(ck, "file", c.File, err)
		} else if info.IsDir() {
			ck.Errorf("file", specs.CodeInvalidValue, "write dir: "+c.File+" and handler: "+handler, "handler is required, source path %s is a directory", c.File)
		}
	case c.Dir != "":
		if info, err := os.Stat(triggers.Join(root, c.Dir)); err != nil {
			triggers.Unreadable(ck, "dir", c.Dir, err)
		} else if !info.IsDir() {
			ck.Errorf("dir", specs.CodeInvalidValue, "write file: "+c.Dir, "%s is no directory", c.Dir)
		} else {
			return true
		}
	}
	return false
}

// Paths are the files and directories with the code: with a file those beside it
// that match one of the patterns of package [filepath], which it may load; none
// for code in the spec.
func (c Code) Paths(root string, patterns ...string) []string {
	switch {
	case c.Dir != "":
		return []string{triggers.Join(root, c.Dir)}
	case c.File != "":
		file := triggers.Join(root, c.File)
		return append([]string{file}, near(file, patterns...)...)
	}
	return nil
}
