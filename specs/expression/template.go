package expression

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/specs"
)

// Template is a compiled value whose strings may hold expressions. It is safe
// for concurrent use.
type Template struct {
	root     node
	constant bool
	reads    reads
	names    []string
	vars     []string

	fieldReads []FieldRead
}

// node is one value of a template.
type node interface {
	render(r *rendering) (any, error)
}

// rendering is the state of one Render.
type rendering struct {
	env   map[string]any
	state canonicalState
}

type (
	// fixed is a value without expressions.
	fixed struct{ value any }
	// whole is a string that is one expression and keeps its type.
	whole struct {
		path string
		prog *Program
	}
	// mixed is a string with expressions in it.
	mixed struct {
		path  string
		parts []part
	}
	part struct {
		text string
		prog *Program
	}
	list   []node
	object struct {
		keys  []string
		nodes []node
	}
)

// CompileTemplate compiles a value of any shape. When there are errors the
// template is nil.
func CompileTemplate(t specs.Template, sc Scope) (*Template, specs.Diagnostics) {
	b := &builder{scope: sc}
	return b.template(t.Root, t.Path)
}

// CompileText compiles a string. When there are errors the template is nil.
func CompileText(t specs.Text, sc Scope) (*Template, specs.Diagnostics) {
	b := &builder{scope: sc}
	return b.template(t, t.Path)
}

// builder compiles one template.
type builder struct {
	scope Scope
	found specs.Diagnostics
	reads reads
	names []string
	vars  []string

	fieldReads []FieldRead
}

func (b *builder) template(root any, path string) (*Template, specs.Diagnostics) {
	n := b.node(root, path)
	if b.found.HasErrors() {
		return nil, b.found
	}
	_, constant := n.(fixed)
	return &Template{root: n, constant: constant, reads: b.reads, names: b.names, vars: b.vars, fieldReads: b.fieldReads}, b.found
}

func (b *builder) node(v any, path string) node {
	switch v := v.(type) {
	case specs.Text:
		return b.text(v, path)
	case []any:
		nodes := make(list, len(v))
		for i := range v {
			nodes[i] = b.node(v[i], path+"["+strconv.Itoa(i)+"]")
		}
		return fold(nodes, nodes)
	case map[string]any:
		o := object{keys: slices.Sorted(maps.Keys(v))}
		for _, k := range o.keys {
			o.nodes = append(o.nodes, b.node(v[k], path+"."+k))
		}
		return fold(o, o.nodes)
	default:
		return fixed{v}
	}
}

// fold makes a value whose parts are all fixed a fixed one.
func fold(n node, parts []node) node {
	for _, p := range parts {
		if _, ok := p.(fixed); !ok {
			return n
		}
	}
	v, err := n.render(&rendering{})
	if err != nil {
		return n
	}
	return fixed{v}
}

func (b *builder) text(t specs.Text, path string) node {
	if t.Path != "" {
		path = t.Path
	}
	parts, bad := scan(t.Value)
	if bad >= 0 {
		line, col := lineColByte(t.Value, bad)
		b.found = append(b.found, specs.Diagnostic{
			Pos: t.Pos.At(line, col), Severity: specs.Error, Code: CodeUnterminated, Path: path,
			Message: "`${` without its `}`", Hint: "write $${ for the two characters themselves; quote the string if it contains # or {",
		})
		return fixed{}
	}
	var out []part
	for _, p := range parts {
		if !p.expr {
			out = append(out, part{text: p.text})
			continue
		}
		line, col := lineColByte(t.Value, p.at)
		pos := t.Pos
		pos.Pos, pos.Fixed = t.Pos.At(line, col), t.Pos.Fixed || line > 1 && t.Pos.Indent == 0
		prog, ds := Compile(specs.Expr{Source: p.text, Pos: pos}, path, b.scope, WantAny)
		b.found = append(b.found, ds...)
		if prog != nil {
			b.reads.merge(prog.reads)
			b.fieldReads = append(b.fieldReads, prog.fieldReads...)
			b.names = appendNew(b.names, prog.names)
			b.vars = appendNew(b.vars, prog.vars)
		}
		out = append(out, part{prog: prog})
	}
	switch {
	case len(out) == 0:
		return fixed{""}
	case len(out) == 1 && parts[0].expr:
		return whole{path, out[0].prog}
	case len(out) == 1:
		return fixed{out[0].text}
	default:
		return mixed{path, out}
	}
}

// appendNew appends what is not in the list.
func appendNew(list, names []string) []string {
	for _, n := range names {
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

// lineColByte turns an offset in bytes into line and column from 1, the column
// in characters.
func lineColByte(s string, offset int) (line, col int) {
	before := s[:offset]
	line = 1 + strings.Count(before, "\n")
	return line, 1 + len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
}

// Constant reports whether the template holds no expression.
func (t *Template) Constant() bool { return t.constant }

// NeedsData reports whether rendering may read an event's payload.
func (t *Template) NeedsData() bool { return t.reads.has("data") }

// NeedsRequest reports whether rendering may read an event's HTTP request.
func (t *Template) NeedsRequest() bool { return t.reads.has("request") }

// Attributes returns the attributes of events that rendering may read, as
// [Program.Attributes] does.
func (t *Template) Attributes() (names []string, all bool) { return t.reads.names, t.reads.all }

// Dependencies returns the names of the dependencies the template refers to,
// in the order of their first use, as declared.
func (t *Template) Dependencies() []string { return t.names }

// Variables returns what [Program.Variables] does.
func (t *Template) Variables() []string { return t.vars }

// Render gives the value: nil, bool, int64, float64, string, []any or
// map[string]any of the same. Parts of it may belong to env; it must not be
// changed. An error names the path of the string it is about and wraps a
// *[MissingError] or [ErrBudget] where that is the reason.
func (t *Template) Render(env map[string]any) (any, error) {
	return t.root.render(&rendering{env: env})
}

// RenderString gives the value as text: a string as it is, numbers plain, the
// rest as compact JSON. A value of nil is a *[MissingError].
func (t *Template) RenderString(env map[string]any) (string, error) {
	v, err := t.Render(env)
	if err != nil {
		return "", err
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case nil:
		if w, ok := t.root.(whole); ok {
			return "", fmt.Errorf("%s: %w", w.path, &MissingError{Path: w.prog.nilPath()})
		}
		return "", nil
	}
	b, err := appendText(nil, v)
	return string(b), err
}

func (f fixed) render(*rendering) (any, error) { return f.value, nil }

// Value evaluates the expression as [Program.Eval] does and gives what a
// template that is nothing else would.
func (p *Program) Value(env map[string]any) (any, error) { return p.value(&rendering{env: env}) }

func (p *Program) value(r *rendering) (any, error) {
	v, err := p.Eval(r.env)
	if err != nil {
		return nil, err
	}
	return canonical(v, &r.state)
}

func (w whole) render(r *rendering) (any, error) {
	v, err := w.prog.value(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.path, err)
	}
	return v, nil
}

func (m mixed) render(r *rendering) (any, error) {
	var b []byte
	for _, p := range m.parts {
		if p.prog == nil {
			b = append(b, p.text...)
			continue
		}
		v, err := p.prog.value(r)
		if err == nil && v == nil {
			err = &MissingError{Path: p.prog.nilPath()}
		}
		if err == nil {
			b, err = appendText(b, v)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.path, err)
		}
	}
	return string(b), nil
}

func (l list) render(r *rendering) (any, error) {
	out := make([]any, len(l))
	for i, n := range l {
		v, err := n.render(r)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

func (o object) render(r *rendering) (any, error) {
	out := make(map[string]any, len(o.keys))
	for i, n := range o.nodes {
		v, err := n.render(r)
		if err != nil {
			return nil, err
		}
		out[o.keys[i]] = v
	}
	return out, nil
}

// piece is a part of a scanned string: text, or the source of an expression
// that begins at byte at.
type piece struct {
	text string
	expr bool
	at   int
}

// scan splits a string at its ${ }. bad is the offset of a `${` that does not
// end, or -1.
func scan(s string) (pieces []piece, bad int) {
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			pieces = append(pieces, piece{text: text.String()})
			text.Reset()
		}
	}
	for i := 0; i < len(s); {
		switch {
		case strings.HasPrefix(s[i:], "$${"):
			text.WriteString("${")
			i += 3
		case strings.HasPrefix(s[i:], "${"):
			end := closing(s, i+2)
			if end < 0 {
				return nil, i
			}
			flush()
			pieces = append(pieces, piece{text: s[i+2 : end], expr: true, at: i + 2})
			i = end + 1
		default:
			text.WriteByte(s[i])
			i++
		}
	}
	flush()
	return pieces, -1
}

// closing is the offset of the '}' that ends the expression beginning at i, or
// -1. Braces in strings, comments and inner objects do not count.
func closing(s string, i int) int {
	depth := 0
	for i < len(s) {
		switch c := s[i]; {
		case c == '{':
			depth++
		case c == '}':
			if depth == 0 {
				return i
			}
			depth--
		case c == '\'' || c == '"':
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' {
					i++
				}
			}
		case c == '`':
			for i++; i < len(s) && s[i] != '`'; i++ {
			}
		case strings.HasPrefix(s[i:], "//"):
			for i < len(s) && s[i] != '\n' {
				i++
			}
		case strings.HasPrefix(s[i:], "/*"):
			end := strings.Index(s[i+2:], "*/")
			if end < 0 {
				return -1
			}
			i += 2 + end + 1
		}
		i++
	}
	return -1
}
