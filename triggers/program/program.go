// Package program owns what the kinds that run programs have in common, so
// that a program can move from one to another: what it is given for a call, in
// variables and on stdin, and what counts of what it writes. It must not know
// how programs are run.
package program

import (
	"bytes"
	"strings"
	"unicode"

	"github.com/sensor-engine/engine/triggers"
)

// Choices of what a program reads on stdin.
const (
	StdinData  = "data"
	StdinEvent = "event"
	StdinInput = "input"
	StdinNone  = "none"
)

// Stdin returns what the program reads: the event's data untouched, the whole
// event as CloudEvents JSON, the input of the call as JSON, or nothing. "" is
// the input if there is one, else the data. Without an event, data is the input.
// It may be the event's own data.
func Stdin(what string, c *triggers.Call) ([]byte, error) {
	if what == "" {
		what = StdinData
		if c.HasInput {
			what = StdinInput
		}
	}
	switch {
	case c.HasInput && (what == StdinInput || what == StdinData && c.Event == nil):
		return c.InputJSON()
	case what == StdinData && c.Event != nil:
		return c.Event.Data, nil
	case what == StdinEvent && c.Event != nil:
		return c.Event.AppendStructured(nil), nil
	}
	return nil, nil
}

// maxExcerpt is how much of a log an error repeats, in bytes.
const maxExcerpt = 200

// Excerpt is ": " and the last line of a log, fit for one line of another; ""
// when there is none.
func Excerpt(log []byte) string {
	line := bytes.TrimSpace(log)
	if i := bytes.LastIndexByte(line, '\n'); i >= 0 {
		line = line[i+1:]
	}
	more := ""
	if len(line) > maxExcerpt {
		// Cut between words: half a secret could not be masked any more.
		line, more = line[:max(bytes.LastIndexByte(line[:maxExcerpt], ' '), 0)], "…"
	}
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(line), "?"))
	if s = strings.TrimSpace(s); s == "" {
		return ""
	}
	return ": " + s + more
}

// Capped is an io.Writer that keeps the first Limit bytes and takes the rest
// without keeping it. It is not safe for concurrent use.
type Capped struct {
	Limit int
	// Kept is what was written, and Cut is true when that is not all.
	Kept []byte
	Cut  bool
}

// Sizes of what is kept: most programs print little, and one that prints more
// than is kept leaves little behind for the collector. Both limits are reached
// exactly.
const (
	firstBuffer = 4 << 10
	growth      = 4
)

// Write keeps what still fits; it never fails.
func (w *Capped) Write(p []byte) (int, error) {
	n := min(len(p), w.Limit-len(w.Kept))
	if need := len(w.Kept) + n; need > cap(w.Kept) {
		size := max(growth*cap(w.Kept), firstBuffer)
		for size < need {
			size *= growth
		}
		w.Kept = append(make([]byte, 0, size), w.Kept...)
	}
	w.Kept = append(w.Kept, p[:n]...)
	w.Cut = w.Cut || n < len(p)
	return len(p), nil
}
