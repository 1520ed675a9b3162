package triggers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sensor-engine/engine/bus"
)

// Class says whose fault a failed call is.
type Class string

// The classes of failures.
const (
	// InputError: the function was given what it cannot work with. Another
	// call with the same input gives the same, so it is not repeated.
	InputError Class = "InputError"
	// FunctionError: the function failed, took too long or gave something
	// that is no answer. It is repeated as the retry policy says.
	FunctionError Class = "FunctionError"
	// SystemError: the function could not be called, or its answer was lost.
	// It is repeated as the retry policy says.
	SystemError Class = "SystemError"
)

// Error is a failure of a call with its class. InputErrors are permanent.
type Error struct {
	Class   Class
	Message string
	// Stacktrace is where in the function it happened, a line each, in the
	// order of its language; nil when that is not known.
	Stacktrace []string
	// Err is what caused it, for errors.Is and errors.As; may be nil.
	Err error
}

// Errorf formats an Error without a stack trace. What %w names is its cause.
func Errorf(class Class, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Class: class, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Error is class and message.
func (e *Error) Error() string { return string(e.Class) + ": " + e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf is the class of any error of a call: that of the [*Error] in it, or
// what the error tells by itself.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	for _, system := range []error{context.Canceled, bus.ErrFull, bus.ErrUnavailable, bus.ErrClosed} {
		if errors.Is(err, system) {
			return SystemError
		}
	}
	return FunctionError
}

// Permanent reports whether a retry would not cure err: it has a
// [*PermanentError] or an InputError in it.
func Permanent(err error) bool {
	if _, ok := errors.AsType[*PermanentError](err); ok {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	return ok && e.Class == InputError
}

// PermanentError is a failure that a retry would not cure.
type PermanentError struct{ Err error }

// Error is the wrapped error's text.
func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *PermanentError) Unwrap() error { return e.Err }

// Permanentf formats a PermanentError.
func Permanentf(format string, args ...any) error {
	return &PermanentError{fmt.Errorf(format, args...)}
}

// RetryAfterError is a failure whose callee said when to come back.
type RetryAfterError struct {
	After time.Duration
	Err   error
}

// Error is the wrapped error's text.
func (e *RetryAfterError) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *RetryAfterError) Unwrap() error { return e.Err }
