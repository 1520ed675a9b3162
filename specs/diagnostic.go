package specs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity tells whether a diagnostic keeps a resource from running.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Code names one sort of problem; docs/diagnostics.md explains each.
type Code string

// Diagnostic is one thing wrong with a spec, and where.
type Diagnostic struct {
	Pos      Pos      `json:"pos"`
	Severity Severity `json:"severity"`
	Code     Code     `json:"code"`
	// Ref is the resource it belongs to; zero when none is known.
	Ref Ref `json:"ref"`
	// Path is the path within the document, for example "spec.triggers[0].name".
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
	// Hint says what to do, "" when there is nothing to say.
	Hint string `json:"hint,omitempty"`
	// Related are other places, for example that of a first definition.
	Related []Pos `json:"related,omitempty"`
}

// String is the diagnostic on one line:
// `file:line:col: error[code] path: message (hint)`.
func (d Diagnostic) String() string {
	var b strings.Builder
	if d.Pos.File != "" {
		b.WriteString(d.Pos.File)
		if d.Pos.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", d.Pos.Line, d.Pos.Col)
		}
		b.WriteString(": ")
	}
	fmt.Fprintf(&b, "%s[%s] ", d.Severity, d.Code)
	if d.Path != "" {
		b.WriteString(d.Path + ": ")
	}
	b.WriteString(d.Message)
	if d.Hint != "" {
		b.WriteString(" (" + d.Hint + ")")
	}
	return b.String()
}

// Diagnostics is a list of diagnostics.
type Diagnostics []Diagnostic

// HasErrors reports whether one of them is an error.
func (ds Diagnostics) HasErrors() bool {
	return slices.ContainsFunc(ds, func(d Diagnostic) bool { return d.Severity == Error })
}

// Sort orders by file, line, column and code and removes exact repetitions.
func (ds Diagnostics) Sort() Diagnostics {
	slices.SortStableFunc(ds, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Pos.File, b.Pos.File), cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Col, b.Pos.Col), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(ds, func(a, b Diagnostic) bool { return a.String() == b.String() })
}

// Err returns nil when there are no errors, otherwise an error that prints all
// of them, one a line.
func (ds Diagnostics) Err() error {
	if !ds.HasErrors() {
		return nil
	}
	return &diagnosticsError{ds}
}

type diagnosticsError struct{ ds Diagnostics }

func (e *diagnosticsError) Error() string {
	lines := make([]string, len(e.ds))
	for i, d := range e.ds {
		lines[i] = d.String()
	}
	return strings.Join(lines, "\n")
}
