package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

const (
	// installLimit is how long an installation may take, and installPause how long
	// after it failed it is tried again.
	installLimit = 15 * time.Minute
	installPause = 10 * time.Second
)

// Installed is what a function needs beside its code, described by a T, in a
// directory that is made once for all that need the same. What is installed once
// stays the same for the function, whatever its files say later. The zero value
// has nothing; the owner closes it. It is safe for concurrent use.
type Installed[T any] struct {
	mu   sync.Mutex
	kept *Kept
	what *T
}

// Wanted returns what is installed, or else what read says: nil for nothing.
func (i *Installed[T]) Wanted(read func() (*T, error)) (*T, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.what != nil {
		return i.what, nil
	}
	return read()
}

// Open opens dir with what, which fill installs when it is not there; see [Keep].
// name says what that is, in messages. An error tells when to try again.
func (i *Installed[T]) Open(ctx context.Context, dir string, what *T, name string, log *slog.Logger, fill func(ctx context.Context, dir string) error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.kept != nil && i.kept.Dir == dir && i.kept.whole() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	kept, err := Keep(ctx, dir, func(ctx context.Context, dir string) error {
		begin := time.Now()
		if err := fill(ctx, dir); err != nil {
			return err
		}
		if log != nil {
			log.Info("what the function needs is installed", "what", name, "took", time.Since(begin).Round(time.Millisecond))
		}
		return nil
	})
	if err != nil {
		return &triggers.RetryAfterError{After: installPause, Err: fmt.Errorf("its %s cannot be installed: %w", name, err)}
	}
	if i.kept != nil {
		_ = i.kept.Close()
	}
	i.kept, i.what = kept, what
	return nil
}

// Dir is the directory that is open, "" for none.
func (i *Installed[T]) Dir() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.kept == nil {
		return ""
	}
	return i.kept.Dir
}

// Close lets the directory be removed one day. err is joined with its error.
func (i *Installed[T]) Close(err error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.kept == nil {
		return err
	}
	return errors.Join(err, i.kept.Close())
}
