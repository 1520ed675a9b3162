// Package jq owns the jq programs of the specs: how they are compiled and
// checked, and what running one may cost. The language is jq as gojq
// (github.com/itchyny/gojq) has it, with these differences, all made on the
// syntax tree at compile time:
//
//   - What would give another result when the same log is folded again is
//     refused: the clock, the machine's time zone, the environment, further
//     inputs, functions whose last digits depend on the processor.
//   - Every run has the budget of an expression, counted in steps and bytes and
//     never in time. Four instructions of the program are a step; what gojq does on
//     its own, such as comparing or joining texts, is charged before it does it.
//     Beyond the budget the run ends with [expression.ErrBudget], which the
//     program cannot catch.
//   - Regular expressions and layouts of times are literals. What is assigned to
//     (the left side of =, |= and the like) is a plain path, without .. and
//     functions.
//
// The package is pure: it does no I/O, reads no clock and starts no goroutine.
package jq

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/itchyny/gojq"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// MaxSource is the most bytes of source of one program. It is part of the
// language.
const MaxSource = 16 << 10

// ErrNothing says that a program gave no value.
var ErrNothing = errors.New("the jq program gave no value")

// Program is a compiled jq program. It is safe for concurrent use; runs of one
// program wait for each other.
type Program struct {
	source string
	names  []string // of the attributes it reads
	all    bool

	// gojq writes into constants of the code when it deletes parts of them, so
	// that only one run at a time may use it.
	mu      sync.Mutex
	code    *gojq.Code
	meter   *meter
	budget  int
	regexps []*regexp.Regexp
	global  []bool // which of them find all matches
	factors []int  // what matching a byte costs
}

// attributes are those of an event.
var attributes = []string{"data", "datacontenttype", "dataschema", "extensions", "id", "request", "source", "subject", "time", "type"}

// Compile compiles e, whose input is an event as an object of its attributes.
// path is the path of the program in its document, for the diagnostics, which
// carry no resource. When there are errors the program is nil.
func Compile(e specs.Expr, path string) (*Program, specs.Diagnostics) {
	c := &compilation{expr: e, path: path, program: &Program{source: e.Source, budget: expression.Budget}}
	c.compile()
	if c.found.HasErrors() {
		return nil, c.found
	}
	return c.program, c.found
}

// Attributes returns the attributes of events that the program may read; the
// environment of a run need not hold others. all is true when it may read any.
func (p *Program) Attributes() (names []string, all bool) { return p.names, p.all }

// DataFields is what [expression.Program.DataFields] is: a program may read
// all of the data.
func (p *Program) DataFields() (names []string, whole bool) { return nil, true }

// FieldReads lists nothing: of a jq program it is not known what it reads of
// the data.
func (p *Program) FieldReads() []expression.FieldRead { return nil }

// Source returns the text of the program.
func (p *Program) Source() string { return p.source }

// Eval runs the program on an event whose attributes are in env, which is not
// changed, and returns the one value it gives, in the types of JSON with whole
// numbers as int64 where they fit. The error is [ErrNothing], wraps
// [expression.ErrBudget], or says what failed: also when it gives more than
// one value.
func (p *Program) Eval(env map[string]any) (out any, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.meter = newMeter(p.budget)
	defer func() {
		if r := recover(); r != nil { // gojq met a value it does not expect
			out, err = nil, fmt.Errorf("the jq program failed: %v", r)
		}
		if p.meter.spent() {
			out, err = nil, expression.ErrBudget
		}
	}()
	in, err := p.input(env)
	if err != nil {
		return nil, err
	}
	values := p.code.RunWithContext(p.meter, in)
	v, ok := values.Next()
	switch failed := asError(v); {
	case !ok:
		return nil, ErrNothing
	case failed != nil:
		return nil, failed
	}
	switch more, ok := values.Next(); {
	case !ok:
	case asError(more) != nil:
		return nil, asError(more)
	default:
		return nil, errors.New("the jq program gave more than one value; put them into a list: […]")
	}
	return p.meter.output(v, 0)
}

// input is the event as gojq takes it.
func (p *Program) input(env map[string]any) (any, error) {
	names := p.names
	if p.all {
		names = attributes
	}
	in := make(map[string]any, len(names))
	for _, name := range names {
		v, err := p.meter.input(env[name], 0)
		if err != nil {
			return nil, err
		}
		in[name] = v
	}
	return in, nil
}

// asError is the error that a run ended with, nil when v is a value. Its text
// is bounded.
func asError(v any) error {
	err, ok := v.(error)
	if !ok {
		return nil
	}
	if errors.Is(err, expression.ErrBudget) {
		return expression.ErrBudget
	}
	// The text of what error() was given is as long as that.
	if ve, ok := errors.AsType[gojq.ValueError](err); ok {
		if text, ok := ve.Value().(string); ok {
			return errors.New(clip(text))
		}
		return errors.New("error: " + gojq.Preview(ve.Value()))
	}
	return errors.New(clip(err.Error()))
}

// clip bounds a text that may hold parts of an event.
func clip(s string) string {
	const limit = 200
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// compilation is the state of one Compile.
type compilation struct {
	expr    specs.Expr
	path    string
	program *Program
	found   specs.Diagnostics
}

// errorAt reports what is wrong at an offset of the source, in bytes.
func (c *compilation) errorAt(offset int, code specs.Code, hint, format string, args ...any) {
	before := c.expr.Source[:min(max(offset, 0), len(c.expr.Source))]
	line := 1 + strings.Count(before, "\n")
	col := 1 + len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
	c.found = append(c.found, specs.Diagnostic{
		Pos: c.expr.Pos.At(line, col), Severity: specs.Error, Code: code, Path: c.path,
		Message: clip(fmt.Sprintf(format, args...)), Hint: hint,
	})
}

func (c *compilation) compile() {
	src := c.expr.Source
	if len(src) > MaxSource {
		c.errorAt(0, CodeTooLarge, "move the logic into a function", "the jq program has %d bytes, the limit is %d", len(src), MaxSource)
		return
	}
	query, err := gojq.Parse(src)
	if err != nil {
		offset := len(src)
		if pe, ok := errors.AsType[*gojq.ParseError](err); ok {
			offset = pe.Offset - len(pe.Token)
		}
		c.errorAt(offset, CodeSyntax, "", "%v", err)
		return
	}
	if query.Meta != nil || len(query.Imports) > 0 {
		c.errorAt(0, CodeNotDeterministic, "write the definitions into the program", "modules are files, which the log does not hold")
		return
	}
	c.program.names, c.program.all = reads(query)
	w := &rewriter{c: c}
	query = w.program(query)
	if c.found.HasErrors() {
		return
	}
	code, err := gojq.Compile(query, c.program.functions()...)
	if err != nil {
		msg := err.Error()
		name := msg[strings.LastIndexByte(msg, ' ')+1:]
		c.errorAt(find(src, name), CodeUnknownName, "", "%s", msg)
		return
	}
	c.program.code = code
}

// reads tells which attributes of its input a program reads.
func reads(q *gojq.Query) (names []string, all bool) {
	r := &reader{}
	r.query(q)
	slices.Sort(r.names)
	return slices.Compact(r.names), r.all
}

// reader follows the input through a program as far as it is plain to see.
type reader struct {
	names []string
	all   bool
}

func (r *reader) query(q *gojq.Query) {
	switch {
	case q == nil || r.all:
	case len(q.FuncDefs) > 0:
		r.all = true
	case q.Term != nil:
		r.term(q.Term)
	case q.Op == gojq.OpPipe && len(q.Patterns) == 0:
		r.query(q.Left) // what follows has another input
	case q.Op >= gojq.OpAssign:
		r.all = true
	default:
		r.query(q.Left)
		r.query(q.Right)
	}
}

func (r *reader) term(t *gojq.Term) {
	for _, s := range t.SuffixList {
		if s.Index != nil {
			r.index(s.Index)
		}
	}
	switch t.Type {
	case gojq.TermTypeNull, gojq.TermTypeTrue, gojq.TermTypeFalse, gojq.TermTypeNumber:
	case gojq.TermTypeIdentity, gojq.TermTypeIndex:
		r.attribute(t)
	case gojq.TermTypeString, gojq.TermTypeFormat:
		r.all = r.all || t.Type == gojq.TermTypeFormat && t.Str == nil
		if t.Str != nil {
			r.text(t.Str)
		}
	case gojq.TermTypeArray:
		r.query(t.Array.Query)
	case gojq.TermTypeObject:
		for _, kv := range t.Object.KeyVals {
			r.query(kv.KeyQuery)
			if kv.KeyString != nil {
				r.text(kv.KeyString)
			}
			if r.query(kv.Val); kv.Val == nil && !strings.HasPrefix(kv.Key, "$") {
				r.add(kv.Key)
				r.all = r.all || kv.Key == ""
			}
		}
	case gojq.TermTypeIf:
		r.query(t.If.Cond)
		r.query(t.If.Then)
		for _, e := range t.If.Elif {
			r.query(e.Cond)
			r.query(e.Then)
		}
		if r.query(t.If.Else); t.If.Else == nil {
			r.all = true
		}
	case gojq.TermTypeUnary:
		r.term(t.Unary.Term)
	case gojq.TermTypeQuery:
		r.query(t.Query)
	case gojq.TermTypeFunc:
		switch {
		case strings.HasPrefix(t.Func.Name, "$"):
		case t.Func.Name == "empty" && len(t.Func.Args) == 0:
		default:
			r.all = true
		}
	default:
		r.all = true
	}
}

// attribute is a path that begins with the input.
func (r *reader) attribute(t *gojq.Term) {
	first := t.Index
	if t.Type == gojq.TermTypeIdentity {
		if len(t.SuffixList) == 0 || t.SuffixList[0].Index == nil {
			r.all = true
			return
		}
		first = t.SuffixList[0].Index
	}
	switch {
	case first.Name != "":
		r.add(first.Name)
	case first.Str != nil && first.Str.Queries == nil:
		r.add(first.Str.Str)
	case first.Start != nil && !first.IsSlice && len(name(first.Start)) > 0:
		r.add(name(first.Start))
	default:
		r.all = true
	}
	if t.Index != nil {
		r.index(t.Index)
	}
}

// name is the text of a query that is one.
func name(q *gojq.Query) string {
	s, _ := literal(q)
	return s
}

func (r *reader) add(name string) {
	if slices.Contains(attributes, name) { // others are not there
		r.names = append(r.names, name)
	}
}

func (r *reader) index(x *gojq.Index) {
	r.query(x.Start)
	r.query(x.End)
	if x.Str != nil {
		r.text(x.Str)
	}
}

func (r *reader) text(s *gojq.String) {
	for _, q := range s.Queries {
		r.query(q)
	}
}

// find is the offset of a name in a source, outside of texts and comments where
// it is there, or 0.
func find(src, name string) int {
	name, _, _ = strings.Cut(name, "/")
	word := func(b byte) bool {
		return b == '_' || b == '$' || b == '@' || b == '.' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
	}
	inside, text, comment := -1, false, false
	var within []int // open parentheses of the queries in texts
	for i := 0; i < len(src); i++ {
		switch {
		case comment:
			comment = src[i] != '\n'
			continue
		case !text && src[i] == '#':
			comment = true
			continue
		case text && src[i] == '\\':
			if i++; i < len(src) && src[i] == '(' {
				text, within = false, append(within, 0)
			}
			continue
		case src[i] == '"':
			text = !text
			continue
		case !text && len(within) > 0 && src[i] == '(':
			within[len(within)-1]++
		case !text && len(within) > 0 && src[i] == ')':
			if within[len(within)-1]--; within[len(within)-1] < 0 {
				text, within = true, within[:len(within)-1]
				continue
			}
		}
		if !strings.HasPrefix(src[i:], name) || name == "" ||
			i > 0 && word(src[i-1]) && word(name[0]) || i+len(name) < len(src) && src[i+len(name)] != '.' && word(src[i+len(name)]) {
			continue
		}
		if !text {
			return i
		}
		if inside < 0 {
			inside = i
		}
	}
	return max(inside, 0)
}
