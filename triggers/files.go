package triggers

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/sensor-engine/engine/specs"
)

// Join returns a path of a config, which is relative to dir, the directory of the
// spec's file.
func Join(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// WithoutPath is the reason in an error about a file that has been named already.
func WithoutPath(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Unreadable reports that the file or directory that a field names cannot be
// read.
func Unreadable(ck *specs.Checker, field, path string, err error) {
	ck.Errorf(field, specs.CodeUnreadable, "a path is relative to this file", "%s: %v", path, WithoutPath(err))
}

// Absolute returns env with absolute directories.
func (env Env) Absolute() (Env, error) {
	dir, err := filepath.Abs(env.Dir)
	if err != nil {
		return env, err
	}
	env.Dir = dir
	if env.Data != "" {
		env.Data, err = filepath.Abs(env.Data)
	}
	return env, err
}
