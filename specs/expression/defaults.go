package expression

import (
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm/runtime"

	"github.com/sensor-engine/engine/specs"
)

// FieldRead is a place where an expression reads a field of an event's data:
// `data.total`.
type FieldRead struct {
	// Dependency is the dependency whose event it is, as declared; "" where the
	// expression is about one event.
	Dependency string
	Field      string
	// Pos and Path are where the field is named.
	Pos  specs.Pos
	Path string
	// Optional is true when the expression provides for its absence, with ?? or
	// ?.
	Optional bool
}

// FieldReads lists where the expression reads fields of an event's data by
// name, in the order in which they are written. There may be others: those
// of the elements of a list of events are not listed.
func (p *Program) FieldReads() []FieldRead { return p.fieldReads }

// FieldReads lists what the expressions of the template read, as
// [Program.FieldReads] does.
func (t *Template) FieldReads() []FieldRead { return t.fieldReads }

// fieldRead notes that a field of data is read.
func (c *compilation) fieldRead(data ast.Node, field *ast.StringNode) {
	r := FieldRead{Field: field.Value, Path: c.path, Optional: c.optional > 0}
	if chain, ok := data.(*ast.ChainNode); ok {
		data = chain.Node
	}
	if m, ok := data.(*ast.MemberNode); ok {
		if id, ok := m.Node.(*ast.IdentifierNode); ok {
			r.Dependency = c.scope.deps[id.Value].Name
		}
	}
	line, col := lineCol(c.expr.Source, field.Location().From)
	r.Pos = c.expr.Pos.At(line, col)
	c.fieldReads = append(c.fieldReads, r)
}

// defaults prepares a `left ?? right`: what is missing on the way to left is
// nil, so that right is taken. Left that is never nil is reported.
func (c *compilation) defaults(n *ast.BinaryNode) {
	c.lenientPath(n.Left)
	report := func(hint, format string, args ...any) {
		c.errorAt(leftmost(n.Left), CodeUnusedDefault, hint, format, args...)
	}
	switch left := n.Left.(type) {
	case *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.StringNode, *ast.ArrayNode, *ast.MapNode:
		report("?? binds more tightly than any other operator: put what may be missing alone on its left, as in (data.a ?? 5) + 1",
			"the left side of ?? is %s, so its default is never taken", clip(n.Left.String()))
	case *ast.BinaryNode:
		if _, logic := logical(left); !logic && left.Operator != "??" {
			report("write ?? after each path that may be missing, as in (data.a ?? 5) + 1",
				"the left side of ?? is never nil, so its default is never taken")
		}
	case *ast.UnaryNode:
		report("write ?? after the path that may be missing, as in -(data.a ?? 5)",
			"the left side of ?? is never nil, so its default is never taken")
	}
}

// never reports a default for an attribute that every event has.
func (c *compilation) never(n *ast.BinaryNode) {
	id, ok := n.Left.(*ast.IdentifierNode)
	if !ok || c.scope.deps != nil {
		return
	}
	switch id.Value {
	case "id", "type", "source", "time", "extensions":
		c.errorAt(id.Location(), CodeUnusedDefault, "", "every event has %s, so the default is never taken", id.Value)
	case "subject", "datacontenttype", "dataschema":
		c.errorAt(id.Location(), CodeUnusedDefault, "write "+id.Value+` != "" ? `+id.Value+" : …",
			"%s is an empty text when the event has none, so the default is never taken", id.Value)
	}
}

// lenientPath marks the parts of a path that give nil when what they look into
// is not there.
func (c *compilation) lenientPath(n ast.Node) {
	switch n := n.(type) {
	case *ast.ChainNode:
		c.lenientPath(n.Node)
	case *ast.MemberNode:
		c.lenientPath(n.Node)
		if !c.waits(n) {
			c.tolerate(n)
		}
	case *ast.SliceNode:
		c.lenientPath(n.Node)
		c.tolerate(n)
	case *ast.ConditionalNode:
		c.lenientPath(n.Exp1)
		c.lenientPath(n.Exp2)
	case *ast.VariableDeclaratorNode:
		c.lenientPath(n.Expr)
	case *ast.SequenceNode:
		c.lenientPath(n.Nodes[len(n.Nodes)-1])
	case *ast.BinaryNode:
		if n.Operator == "??" {
			c.lenientPath(n.Right)
		}
	}
}

func (c *compilation) tolerate(n ast.Node) {
	if c.lenient == nil {
		c.lenient = map[ast.Node]bool{}
	}
	c.lenient[n] = true
}

// waits reports whether n reads a dependency in a condition: that it has not
// arrived is no missing value, the condition waits for it.
func (c *compilation) waits(n *ast.MemberNode) bool {
	id, ok := n.Node.(*ast.IdentifierNode)
	if !ok || n.Optional || c.want != WantBool {
		return false
	}
	_, dep := c.scope.deps[id.Value]
	return dep
}

// tolerant makes a part that was metered give nil for what is not there.
func (c *compilation) tolerant(node *ast.Node, was ast.Node) {
	if !c.lenient[was] {
		return
	}
	switch n := (*node).(type) {
	case *ast.MemberNode:
		replace(node, fetch, n.Node, n.Property)
	case *ast.SliceNode:
		bound := func(b ast.Node) ast.Node {
			if b == nil {
				b = &ast.NilNode{}
				b.SetLocation(n.Location())
			}
			return b
		}
		replace(node, slice, n.Node, bound(n.From), bound(n.To))
	}
}

// fetch is the value at a key, or nil.
func fetch(args ...any) (v any, cost uint, err error) {
	switch from := args[0].(type) {
	case nil:
		return nil, 0, nil
	case map[string]any:
		if key, ok := args[1].(string); ok {
			return from[key], 0, nil
		}
	}
	defer func() {
		if recover() != nil { // there is no such key, index or field
			v, cost, err = nil, 0, nil
		}
	}()
	return runtime.Fetch(args[0], args[1]), 0, nil
}

// slice is a part of a list or text, or nil.
func slice(args ...any) (v any, cost uint, err error) {
	defer func() {
		if recover() != nil { // it is no list or text
			v, cost, err = nil, 0, nil
		}
	}()
	from, to := 0, 0
	if args[1] != nil {
		from = runtime.ToInt(args[1])
	}
	if args[2] != nil {
		to = runtime.ToInt(args[2])
	} else {
		to = runtime.Len(args[0])
	}
	return runtime.Slice(args[0], from, to), 0, nil
}
