package expression

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/ast"
)

// Outcome says how the evaluation of an expression, or of a part of it, went.
type Outcome string

// The outcomes.
const (
	// Evaluated: it gave a value.
	Evaluated Outcome = "value"
	// Missing: it asked for what is not there; Detail is the path.
	Missing Outcome = "missing"
	// Failed: it went wrong otherwise; Detail says how.
	Failed Outcome = "failed"
	// Skipped: it was not evaluated, because the rest decided.
	Skipped Outcome = "skipped"
)

// Limits of a [Trace]. What does not fit is left out.
const (
	// maxTraced is the most parts of one expression that are traced.
	maxTraced = 256
	// maxShown is about how many bytes are shown of one value, and maxShownAll
	// of all values of a trace.
	maxShown, maxShownAll = 512, 64 << 10
	// maxText, maxItems and maxNested bound what is shown of one text, how many
	// elements of a list or object, and how deep.
	maxText, maxItems, maxNested = 200, 16, 4
)

// Trace tells how the evaluation of an expression went: what it gave, and the
// same of its parts. Written out it is JSON.
type Trace struct {
	// Source is the text of the expression or part.
	Source  string  `json:"source"`
	Outcome Outcome `json:"outcome"`
	// Value is what it gave, in the types of JSON; nil is also the value null.
	Value any `json:"value,omitempty"`
	// Cut is true when Value leaves something out: the end of a text (which
	// then ends in "…"), elements of a list or object, or everything.
	Cut bool `json:"cut,omitempty"`
	// Detail is the path that is missing, or what failed.
	Detail string `json:"detail,omitempty"`
	// Parts are the parts whose value is not plain to see, in the order in which
	// they are written: the operands of operators, the arguments of functions.
	// Those joined by one kind of && or || are all on one level. What a function
	// does for each element of a list is not told.
	Parts []Trace `json:"parts,omitempty"`
}

// TraceOf is the trace of an evaluation of which only the result is known.
func TraceOf(source string, v any, err error) Trace {
	t := Trace{Source: clip(source), Outcome: Evaluated}
	if err != nil {
		t.Outcome, t.Detail = outcomeOf(err)
		return t
	}
	t.Value, t.Cut = (&preview{all: maxShownAll}).of(v)
	return t
}

// Held reports whether it gave true.
func (t *Trace) Held() bool { return t.Outcome == Evaluated && t.Value == true }

// Trace evaluates the expression as [Program.Eval] does, with the same result
// at the same cost, and tells what its parts gave. Of an expression compiled
// with [WantBool] the whole has the outcome that [Program.Bool] has. The
// expression is compiled again for it, which takes much longer than an
// evaluation.
func (p *Program) Trace(env map[string]any) Trace { return p.trace(env, nil) }

// TraceFilter is [Program.Trace] for who decides the guards first, as
// [Program.Guards] asks for: when one does not hold, the rest is skipped.
func (p *Program) TraceFilter(env map[string]any) Trace { return p.trace(env, p.guards) }

func (p *Program) trace(env map[string]any, guards []Guard) Trace {
	tr := &tracing{source: p.expr.Source, points: map[ast.Node]*point{}, shown: preview{all: maxShownAll}}
	c := &compilation{expr: p.expr, scope: p.scope, want: p.want, trace: tr}
	traced := c.compile()
	for i := range guards {
		if ok, missing := guards[i].Test(env); !ok {
			return tr.stopped(env, guards[:i+1], missing)
		}
	}
	var v any
	var err error
	if p.want == WantBool {
		v, err = traced.Bool(env)
	} else {
		v, err = traced.Eval(env)
	}
	out := tr.tell(tr.root, err)
	if err != nil {
		out.Value, out.Cut = nil, false
		out.Outcome, out.Detail = outcomeOf(err)
		return out
	}
	out.Outcome = Evaluated
	out.Value, out.Cut = tr.shown.of(v)
	return out
}

func outcomeOf(err error) (Outcome, string) {
	if m, ok := errors.AsType[*MissingError](err); ok {
		return Missing, m.Path
	}
	return Failed, err.Error()
}

// tracing finds out what the parts of an expression give while it is
// evaluated once.
type tracing struct {
	source string
	root   *point
	points map[ast.Node]*point // by the node that gives the value
	count  int
	// guards are the points of the guards, in their order.
	guards []*point
	shown  preview
}

// point is one part to be told of.
type point struct {
	text         string
	parts        []*point
	began, ended bool
	value        any
}

// plan decides of which parts of a parsed tree to tell.
func (tr *tracing) plan(root ast.Node) { tr.root = tr.point(root) }

func (tr *tracing) point(n ast.Node) *point {
	pt := &point{text: tr.text(n)}
	tr.points[n] = pt
	tr.count++
	if b, ok := n.(*ast.BinaryNode); ok {
		if _, logic := logical(b); logic {
			for _, o := range flatten(b, nil) {
				if tr.count < maxTraced {
					pt.parts = append(pt.parts, tr.point(o))
				}
			}
			return pt
		}
	}
	pt.parts = tr.inner(n)
	return pt
}

// text is the source of a part. Of a large part only the beginning is shown,
// so it is not written out in full, which takes long.
func (tr *tracing) text(n ast.Node) string {
	nodes := 0
	ast.Walk(&n, visitFunc(func(*ast.Node) { nodes++ }))
	if nodes <= maxText {
		return clip(n.String())
	}
	from := leftmost(n).From
	for i := range tr.source {
		if from--; from < 0 {
			return clip(tr.source[i:])
		}
	}
	return "…"
}

// noteGuards finds the guards of a rewritten tree.
func (tr *tracing) noteGuards(root ast.Node) {
	operands := []ast.Node{root}
	if b, ok := root.(*ast.BinaryNode); ok {
		if and, _ := logical(b); and {
			operands = flatten(b, nil)
		}
	}
	for _, n := range operands {
		if _, ok := guardOf(n); ok {
			tr.guards = append(tr.guards, tr.points[n])
		}
	}
}

// logical tells the kind of && and ||.
func logical(b *ast.BinaryNode) (and, ok bool) {
	switch b.Operator {
	case "&&", "and":
		return true, true
	case "||", "or":
		return false, true
	}
	return false, false
}

// flatten lists the operands of b and of all that the same operator joins.
func flatten(b *ast.BinaryNode, to []ast.Node) []ast.Node {
	and, _ := logical(b)
	for _, n := range [...]ast.Node{b.Left, b.Right} {
		if o, ok := n.(*ast.BinaryNode); ok {
			if same, logic := logical(o); logic && same == and {
				to = flatten(o, to)
				continue
			}
		}
		to = append(to, n)
	}
	return to
}

// some are the points of parts: one for each whose value is not plain to see.
func (tr *tracing) some(ns ...ast.Node) (out []*point) {
	for _, n := range ns {
		switch n := n.(type) {
		case nil, *ast.PredicateNode, *ast.PointerNode, *ast.BytesNode, *ast.ConstantNode:
		case *ast.ArrayNode, *ast.MapNode, *ast.PairNode:
			out = append(out, tr.inner(n)...)
		default:
			if !literal(n) && tr.count < maxTraced {
				out = append(out, tr.point(n))
			}
		}
	}
	return out
}

// inner are the points below a node.
func (tr *tracing) inner(n ast.Node) []*point {
	switch n := n.(type) {
	case *ast.UnaryNode:
		return tr.some(n.Node)
	case *ast.BinaryNode:
		return tr.some(n.Left, n.Right)
	case *ast.ChainNode:
		return tr.inner(n.Node)
	case *ast.MemberNode:
		return append(tr.base(n.Node), tr.some(n.Property)...)
	case *ast.SliceNode:
		return append(tr.base(n.Node), tr.some(n.From, n.To)...)
	case *ast.CallNode:
		var out []*point
		if m, ok := n.Callee.(*ast.MemberNode); ok {
			out = tr.base(m.Node)
		}
		if isAbsent(n) {
			return nil
		}
		return append(out, tr.some(n.Arguments...)...)
	case *ast.BuiltinNode:
		return tr.some(n.Arguments...)
	case *ast.ConditionalNode:
		return tr.some(n.Cond, n.Exp1, n.Exp2)
	case *ast.VariableDeclaratorNode:
		return tr.some(n.Value, n.Expr)
	case *ast.SequenceNode:
		return tr.some(n.Nodes...)
	case *ast.ArrayNode:
		return tr.some(n.Nodes...)
	case *ast.MapNode:
		return tr.some(n.Pairs...)
	case *ast.PairNode:
		return tr.some(n.Key, n.Value)
	}
	return nil
}

// base is what a path begins with, unless it is a name: of data.a.b only the
// whole is told.
func (tr *tracing) base(n ast.Node) []*point {
	switch n := n.(type) {
	case *ast.IdentifierNode:
		return nil
	case *ast.ChainNode:
		return tr.base(n.Node)
	case *ast.MemberNode, *ast.SliceNode:
		return tr.inner(n)
	}
	return tr.some(n)
}

// moved notes that a node was replaced by one with the same meaning.
func (tr *tracing) moved(from ast.Node, to *ast.Node) {
	if pt, ok := tr.points[from]; ok && from != *to {
		delete(tr.points, from)
		tr.points[*to] = pt
	}
}

// watch makes a part, which is was before it was metered, report.
func (tr *tracing) watch(node *ast.Node, was ast.Node) {
	pt, ok := tr.points[was]
	if !ok {
		return
	}
	begin := func(...any) (any, uint, error) { pt.began = true; return nil, 0, nil }
	end := func(args ...any) (any, uint, error) {
		pt.ended, pt.value = true, args[0]
		return args[0], 0, nil
	}
	n := *node
	body := &ast.SequenceNode{Nodes: []ast.Node{safeCall(n, begin), n}}
	body.SetLocation(n.Location())
	body.SetNature(*n.Nature())
	*node = safeCall(n, end, body)
}

// tell tells what became of a point and those below it; err ended the
// evaluation.
func (tr *tracing) tell(pt *point, err error) Trace {
	t := Trace{Source: pt.text}
	switch {
	case pt.ended:
		t.Outcome = Evaluated
		t.Value, t.Cut = tr.shown.of(pt.value)
	case pt.began && err != nil:
		t.Outcome, t.Detail = outcomeOf(err)
	default:
		t.Outcome = Skipped
	}
	for _, part := range pt.parts {
		t.Parts = append(t.Parts, tr.tell(part, err))
	}
	return t
}

// stopped tells of an evaluation that ended with the last of guards, which did
// not hold.
func (tr *tracing) stopped(env map[string]any, guards []Guard, missing string) Trace {
	end := func(pt *point, value any, err error) {
		pt.began, pt.ended, pt.value = true, err == nil, value
	}
	var failure error
	for i := range guards {
		pt := tr.guards[i]
		if pt == nil { // too many parts
			continue
		}
		end(pt, i < len(guards)-1, nil)
		for _, path := range pt.parts { // the other side is constant
			v, _ := guards[i].value(env)
			end(path, v, nil)
		}
		if i == len(guards)-1 && missing != "" {
			failure = &MissingError{Path: missing}
			end(pt, nil, failure)
			for _, path := range pt.parts {
				end(path, nil, failure)
			}
		}
	}
	end(tr.root, false, failure)
	return tr.tell(tr.root, failure)
}

// preview gives values in the types of JSON, of bounded size. The same value
// gives the same, whatever the order of its keys in memory.
type preview struct {
	all  int // bytes left for all values
	left int // for this one
	cut  bool
}

func (p *preview) of(v any) (any, bool) {
	if p.all <= 0 {
		return nil, true
	}
	p.left, p.cut = min(maxShown, p.all), false
	before := p.left
	out := p.value(v, 0)
	p.all -= before - p.left
	return out, p.cut
}

func (p *preview) value(v any, depth int) any {
	p.left -= 8
	if p.left <= 0 {
		p.cut = true
		return nil
	}
	switch v := v.(type) {
	case nil, bool:
		return v
	case string:
		return p.text(v)
	case []byte:
		p.cut = true
		return nil
	case []any:
		if depth == maxNested {
			p.cut = p.cut || len(v) > 0
			return []any{}
		}
		out := make([]any, 0, min(len(v), maxItems))
		for _, e := range v {
			if len(out) == maxItems || p.left <= 0 {
				p.cut = true
				break
			}
			out = append(out, p.value(e, depth+1))
		}
		return out
	case map[string]any:
		if depth == maxNested {
			p.cut = p.cut || len(v) > 0
			return map[string]any{}
		}
		out := make(map[string]any, min(len(v), maxItems))
		for _, k := range least(v, maxItems) {
			if p.left <= len(k) || len(k) > maxText {
				p.cut = true
				break
			}
			p.left -= len(k)
			out[k] = p.value(v[k], depth+1)
		}
		p.cut = p.cut || len(v) > maxItems
		return out
	case time.Time, time.Duration, int, int64, float64:
		c, err := canonical(v, new(canonicalState))
		if err != nil { // NaN and infinities
			return p.text(strings.TrimSuffix(err.Error(), " is no JSON number"))
		}
		return c
	}
	return p.other(reflect.ValueOf(v), depth)
}

// other shows lists and objects of other types, such as those of functions.
func (p *preview) other(v reflect.Value, depth int) any {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		out := make([]any, 0, min(v.Len(), maxItems+1))
		for i := range min(v.Len(), maxItems+1) {
			out = append(out, v.Index(i).Interface())
		}
		return p.value(out, depth)
	case reflect.Map:
		out := make(map[string]any, v.Len())
		for it := v.MapRange(); it.Next(); {
			out[fmt.Sprint(it.Key().Interface())] = it.Value().Interface()
		}
		return p.value(out, depth)
	case reflect.Func:
		return p.text("function")
	}
	return p.text(fmt.Sprint(v.Interface()))
}

func (p *preview) text(s string) string {
	limit := min(maxText, max(p.left, 0))
	if len(s) > limit {
		s, p.cut = strings.ToValidUTF8(s[:limit], "")+"…", true
	}
	p.left -= len(s)
	return s
}

// least are the first n keys in their order.
func least(m map[string]any, n int) []string {
	if len(m) <= n {
		return slices.Sorted(maps.Keys(m))
	}
	out := make([]string, 0, n+1)
	for k := range m {
		i, _ := slices.BinarySearch(out, k)
		if i == n {
			continue
		}
		if out = slices.Insert(out, i, k); len(out) > n {
			out = out[:n]
		}
	}
	return out
}
