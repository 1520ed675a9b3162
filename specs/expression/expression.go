// Package expression owns the expression language of the specs: which names an
// expression may use, how it is compiled and checked, and what evaluating it
// may cost. The language is expr (github.com/expr-lang/expr) with seven
// differences, all made on the syntax tree at compile time:
//
//   - A dependency's bare name in a boolean place (an operand of &&, || and !,
//     the condition of ?:, the whole of a condition) means "has arrived".
//   - absent(name) asks whether the event of a dependency that is declared so
//     has stayed away; its bare name is refused.
//   - What would give another result when the same log is folded again is
//     replaced (keys, values and toPairs are in order, date knows no local
//     zone) or refused (now, Local).
//   - Every evaluation has a budget, counted in steps and bytes and never in
//     time; beyond it the evaluation ends with [ErrBudget].
//   - The pattern of matches is a literal, so that it is compiled once and its
//     cost is known.
//   - The default of ?? is taken when anything on the path before it is missing,
//     not only when its end is nil.
//   - fromJSON gives whole numbers as int64, as everywhere else; toJSON takes
//     times, durations and lists of every type.
//
// An evaluation that asks for what is not there ends with a [MissingError].
// The package is pure: it does no I/O, reads no clock and starts no goroutine.
// It must not know sensors, sources or functions.
package expression

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/checker"
	"github.com/expr-lang/expr/compiler"
	"github.com/expr-lang/expr/conf"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/vm"

	"github.com/sensor-engine/engine/specs"
)

// Limits of one expression. They are part of the language: what is within them
// must stay within them in later versions.
const (
	// MaxSource is the most bytes of source.
	MaxSource = 16 << 10
	// MaxNodes is the most nodes of the syntax tree.
	MaxNodes = 4096
	// MaxPattern is the most bytes of a regular expression.
	MaxPattern = 1000
	// Budget is the most steps of one evaluation. A turn of a loop, an element
	// made or looked at and 16 bytes of text made or looked at are one step.
	Budget = 1 << 20
)

// Want says what kind of result an expression must have.
type Want uint8

// The wants.
const (
	// WantAny takes every result.
	WantAny Want = iota
	// WantBool takes true and false only.
	WantBool
)

// Program is a compiled expression. It is safe for concurrent use.
type Program struct {
	code  *vm.Program
	expr  specs.Expr
	scope Scope
	want  Want
	names []string
	vars  []string
	reads reads
	// guards are parts of the expression; guarded is true when it has no others.
	guards  []Guard
	guarded bool
	// absences must be true for the whole to be.
	absences   []string
	fieldReads []FieldRead

	vms sync.Pool // *vm.VM

	once  sync.Once
	sites map[int][]ast.Node
}

// Compile compiles e for the names of sc. path is the path of the expression
// in its document, for the diagnostics, which carry no resource. When there
// are errors the program is nil.
func Compile(e specs.Expr, path string, sc Scope, want Want) (*Program, specs.Diagnostics) {
	c := &compilation{expr: e, path: path, scope: sc, want: want}
	p := c.compile()
	if c.found.HasErrors() {
		return nil, c.found
	}
	return p, c.found
}

// compilation is the state of one Compile.
type compilation struct {
	expr  specs.Expr
	path  string
	scope Scope
	want  Want
	found specs.Diagnostics

	names      []string
	vars       []string
	reads      reads
	fieldReads []FieldRead
	// optional counts the ?. and ?? around what is rewritten; lenient are the
	// parts that give nil for what is not there, because of a ??.
	optional int
	lenient  map[ast.Node]bool
	// trace is set when the expression is compiled to be traced.
	trace *tracing
}

// reads is what an expression may read of events: attributes by name, or all.
type reads struct {
	names []string
	all   bool
	// fields are the fields of data that are read, unless whole is set.
	fields []string
	whole  bool
}

func (r *reads) add(name string) {
	if !slices.Contains(r.names, name) {
		r.names = append(r.names, name)
	}
}

func (r *reads) field(name string) {
	if !slices.Contains(r.fields, name) {
		r.fields = append(r.fields, name)
	}
}

func (r *reads) merge(o reads) {
	r.all = r.all || o.all
	for _, n := range o.names {
		r.add(n)
	}
	r.whole = r.whole || o.whole
	for _, f := range o.fields {
		r.field(f)
	}
}

func (r *reads) has(name string) bool { return r.all || slices.Contains(r.names, name) }

func (c *compilation) errorAt(loc file.Location, code specs.Code, hint, format string, args ...any) {
	line, col := lineCol(c.expr.Source, loc.From)
	c.found = append(c.found, specs.Diagnostic{
		Pos: c.expr.Pos.At(line, col), Severity: specs.Error, Code: code, Path: c.path,
		Message: clip(fmt.Sprintf(format, args...)), Hint: hint,
	})
}

// lineCol turns an offset in characters into a line and a column from 1.
func lineCol(src string, offset int) (line, col int) {
	line, col = 1, 1
	for _, r := range src {
		if offset <= 0 {
			break
		}
		offset--
		if r == '\n' {
			line, col = line+1, 1
		} else {
			col++
		}
	}
	return line, col
}

func (c *compilation) compile() *Program {
	src, want := c.expr.Source, c.want
	if len(src) > MaxSource {
		c.errorAt(file.Location{}, CodeTooLarge, "split it over several dependencies or move it into a function",
			"the expression has %d bytes, the limit is %d", len(src), MaxSource)
		return nil
	}
	if strings.TrimSpace(src) == "" {
		c.errorAt(file.Location{}, CodeSyntax, "", "the expression is empty")
		return nil
	}
	config := c.scope.config()
	tree, err := parser.ParseWithConfig(src, config)
	if err != nil {
		c.parseError(err)
		return nil
	}
	if c.trace != nil {
		c.trace.plan(tree.Node)
	}
	c.rewrite(&tree.Node, want == WantBool)
	if c.found.HasErrors() {
		return nil
	}
	if _, err = checker.Check(tree, config); err != nil {
		c.checkError(err)
		return nil
	}
	if want == WantBool {
		if t := tree.Node.Type(); t.Kind() != reflect.Bool && t.Kind() != reflect.Interface {
			c.errorAt(leftmost(tree.Node), CodeNotBoolean, "compare it with something",
				"the condition gives %s, not true or false", typeName(t))
			return nil
		}
	}
	var guards []Guard
	guarded := false
	if want == WantBool && c.scope.deps == nil {
		guards, guarded = guardsOf(tree.Node)
		if c.trace != nil {
			c.trace.noteGuards(tree.Node)
		}
	}
	absences := c.requiredAbsences(tree.Node)
	c.meter(&tree.Node)
	if c.found.HasErrors() {
		return nil
	}
	code, err := compiler.Compile(tree, config)
	if err != nil {
		msg, _, _ := strings.Cut(err.Error(), "\n")
		c.errorAt(file.Location{}, CodeType, "", "%s", msg)
		return nil
	}
	link(code)
	return &Program{
		code: code, expr: c.expr, scope: c.scope, want: want, names: c.names, vars: c.vars, reads: c.reads,
		guards: guards, guarded: guarded, absences: absences, fieldReads: c.fieldReads,
	}
}

// parseError reports what expr's parser found.
func (c *compilation) parseError(err error) {
	var fe *file.Error
	if !errors.As(err, &fe) {
		c.errorAt(file.Location{}, CodeSyntax, "", "%v", err)
		return
	}
	if strings.Contains(fe.Message, "maximum allowed nodes") {
		c.errorAt(file.Location{}, CodeTooLarge, "move the logic into a function",
			"the expression has more than %d parts", MaxNodes)
		return
	}
	msg, hint := fe.Message, ""
	switch {
	case strings.Contains(msg, `Operator("=")`):
		hint = "equality is written =="
	case strings.Contains(msg, "token EOF"):
		msg = "the expression ends too early"
	}
	c.errorAt(fe.Location, CodeSyntax, hint, "%s", msg)
}

// checkError reports what expr's type checker found.
func (c *compilation) checkError(err error) {
	var fe *file.Error
	if !errors.As(err, &fe) {
		c.errorAt(file.Location{}, CodeType, "", "%v", err)
		return
	}
	code, hint := CodeType, ""
	switch {
	case strings.HasPrefix(fe.Message, "unknown name "):
		code = CodeUnknownName
		name := strings.TrimPrefix(fe.Message, "unknown name ")
		hint = c.scope.hint(name, strings.Contains(c.expr.Source, name+"("))
	case strings.HasPrefix(fe.Message, "unknown field "):
		code = CodeUnknownName
		hint = c.scope.fieldHint(strings.TrimPrefix(fe.Message, "unknown field "))
	case strings.HasPrefix(fe.Message, "non-bool expression"):
		code = CodeNotBoolean
	}
	c.errorAt(fe.Location, code, hint, "%s", tidyTypes(fe.Message))
}

// tidyTypes replaces Go's names of the types an author meets.
func tidyTypes(msg string) string {
	return strings.NewReplacer("map[string]interface {}", "object", "map[string]any", "object",
		"[]interface {}", "list", "interface {}", "any", "time.Time", "time", "time.Duration", "duration").Replace(msg)
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Map:
		return "an object"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.String:
		return "a string"
	case reflect.Int, reflect.Int64, reflect.Float64:
		return "a number"
	case reflect.Func:
		return "a function"
	default:
		return "a " + tidyTypes(t.String())
	}
}

// leftmost is the location of the first token of n.
func leftmost(n ast.Node) file.Location {
	loc := n.Location()
	ast.Walk(&n, visitFunc(func(m *ast.Node) {
		if l := (*m).Location(); l.To > 0 && l.From < loc.From {
			loc = l
		}
	}))
	return loc
}

type visitFunc func(*ast.Node)

func (f visitFunc) Visit(n *ast.Node) { f(n) }

// link turns the calls of metering functions into the instruction that adds
// what they cost to the memory the virtual machine counts. The compiler only
// uses it for expr's own functions.
func link(code *vm.Program) {
	for i := 1; i < len(code.Bytecode); i++ {
		if code.Bytecode[i] != vm.OpCall || code.Bytecode[i-1] != vm.OpPush {
			continue
		}
		if _, ok := code.Constants[code.Arguments[i-1]].(vm.SafeFunction); ok {
			code.Bytecode[i] = vm.OpCallSafe
		}
	}
}

// NeedsData reports whether an evaluation may read an event's payload.
func (p *Program) NeedsData() bool { return p.reads.has("data") }

// NeedsRequest reports whether an evaluation may read an event's HTTP request.
func (p *Program) NeedsRequest() bool { return p.reads.has("request") }

// Attributes returns the attributes of events that an evaluation may read; the
// environment need not hold others. all is true when it may read any. In a
// firing scope no attribute at all means that only the arrival of the
// dependencies counts.
func (p *Program) Attributes() (names []string, all bool) { return p.reads.names, p.reads.all }

// Dependencies returns the names of the dependencies the expression refers to,
// in the order of their first use, as declared.
func (p *Program) Dependencies() []string { return p.names }

// Variables returns those of the names item, index, triggers and batch that the
// expression refers to.
func (p *Program) Variables() []string { return p.vars }

// Absences returns those of the dependencies declared absent without whose
// absence the expression is not true, whatever else has arrived. There may be
// others of which this is not seen.
func (p *Program) Absences() []string { return p.absences }

// DataFields returns the fields of an event's data that an evaluation may
// read; the data of the environment need not hold others. whole is true when
// it may read any, or the data itself.
func (p *Program) DataFields() (names []string, whole bool) {
	return p.reads.fields, p.reads.whole || p.reads.all
}

// Source returns the text of the expression.
func (p *Program) Source() string { return p.expr.Source }

// Eval evaluates the expression. env is not changed and may be shared while
// nobody changes it. The error is a *[MissingError], wraps [ErrBudget], or says
// what failed.
func (p *Program) Eval(env map[string]any) (any, error) {
	m, _ := p.vms.Get().(*vm.VM)
	if m == nil {
		m = &vm.VM{MemoryBudget: Budget}
	}
	v, err := m.Run(p.code, env)
	p.vms.Put(m)
	if err != nil {
		return nil, p.explain(err)
	}
	return v, nil
}

// Bool evaluates an expression compiled with WantBool.
func (p *Program) Bool(env map[string]any) (bool, error) {
	v, err := p.Eval(env)
	if err != nil {
		return false, err
	}
	switch v := v.(type) {
	case bool:
		return v, nil
	case nil:
		return false, &MissingError{Path: p.nilPath()}
	default:
		return false, fmt.Errorf("%s is %s, not true or false", clip(p.nilPath()), typeName(reflect.TypeOf(v)))
	}
}

// Functions lists the names of the functions expressions may call.
func Functions() []string {
	var names []string
	for _, f := range builtin.Builtins {
		if c, ok := classes[f.Name]; ok && c != refused {
			names = append(names, f.Name)
		}
	}
	return names
}

// config is expr's configuration for a scope. Optimisation is off: it would
// replace metered loops and gains nothing for expressions this small.
func (sc Scope) config() *conf.Config {
	config := conf.CreateNew()
	config.Optimize = false
	config.MaxNodes = MaxNodes
	config.WithEnv(sc.types)
	// A function's name without a call is no value.
	config.Builtins = nil
	return config
}
