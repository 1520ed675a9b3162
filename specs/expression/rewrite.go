package expression

import (
	"slices"

	"github.com/expr-lang/expr/ast"
)

// predicates are the functions whose predicate must give true or false.
var predicates = map[string]bool{
	"all": true, "none": true, "any": true, "one": true, "filter": true, "find": true,
	"findIndex": true, "findLast": true, "findLastIndex": true, "count": true,
}

// rewrite gives names their meaning: dependencies in a boolean place become
// "has arrived", aliases become the event itself. It notes what is read and
// reports what is refused. boolean says that the node is in a boolean place.
func (c *compilation) rewrite(node *ast.Node, boolean bool) {
	if *node == nil {
		return
	}
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		c.identifier(node, n, boolean)
	case *ast.UnaryNode:
		not := n.Operator == "!" || n.Operator == "not"
		if id, ok := n.Node.(*ast.IdentifierNode); ok && not {
			if _, ok := c.scope.deps[id.Value]; ok {
				c.errorAt(n.Location(), CodeNegatedDependency,
					"a name means that its event has arrived; that an event stays away cannot be asked for; compare what the events say instead",
					"%s%s would be true until %s arrives", n.Operator, spaced(n.Operator)+id.Value, id.Value)
				return
			}
		}
		c.rewrite(&n.Node, not)
	case *ast.BinaryNode:
		logic := n.Operator == "&&" || n.Operator == "||" || n.Operator == "and" || n.Operator == "or"
		c.rewrite(&n.Left, logic)
		c.rewrite(&n.Right, logic)
		if n.Operator == "matches" {
			c.pattern(n)
		}
	case *ast.ChainNode:
		c.rewrite(&n.Node, false)
	case *ast.MemberNode:
		c.member(node, n)
	case *ast.SliceNode:
		c.rewrite(&n.Node, false)
		c.rewrite(&n.From, false)
		c.rewrite(&n.To, false)
	case *ast.CallNode:
		c.call(n)
	case *ast.BuiltinNode:
		if hint, ok := refusals[n.Name]; ok {
			c.errorAt(n.Location(), CodeNotDeterministic, hint, "%s() reads the clock", n.Name)
		}
		for i := range n.Arguments {
			if p, ok := n.Arguments[i].(*ast.PredicateNode); ok {
				c.rewrite(&p.Node, predicates[n.Name])
			} else {
				c.rewrite(&n.Arguments[i], false)
			}
		}
	case *ast.PredicateNode:
		c.rewrite(&n.Node, boolean)
	case *ast.ConditionalNode:
		c.rewrite(&n.Cond, true)
		c.rewrite(&n.Exp1, boolean)
		c.rewrite(&n.Exp2, boolean)
	case *ast.VariableDeclaratorNode:
		if c.scope.alias[n.Name] {
			c.errorAt(n.Location(), CodeType, "choose another name", "cannot redeclare %s", n.Name)
			return
		}
		c.rewrite(&n.Value, false)
		c.rewrite(&n.Expr, boolean)
	case *ast.SequenceNode:
		for i := range n.Nodes {
			c.rewrite(&n.Nodes[i], boolean && i == len(n.Nodes)-1)
		}
	case *ast.ArrayNode:
		for i := range n.Nodes {
			c.rewrite(&n.Nodes[i], false)
		}
	case *ast.MapNode:
		for i := range n.Pairs {
			c.rewrite(&n.Pairs[i], false)
		}
	case *ast.PairNode:
		c.rewrite(&n.Key, false)
		c.rewrite(&n.Value, false)
	}
}

func spaced(operator string) string {
	if operator == "not" {
		return " "
	}
	return ""
}

func (c *compilation) identifier(node *ast.Node, n *ast.IdentifierNode, boolean bool) {
	if d, ok := c.scope.deps[n.Value]; ok {
		c.refer(d)
		if boolean {
			ast.Patch(node, arrived(n, d.List))
			return
		}
		c.reads.all = true
		return
	}
	switch {
	case c.scope.alias[n.Value] && boolean:
		c.errorAt(n.Location(), CodeNotBoolean, "ask for one of its attributes, such as "+n.Value+".data",
			"%s is the event itself, not true or false", n.Value)
	case c.scope.alias[n.Value]:
		c.reads.all = true
		id := *n
		id.Value = "$env"
		ast.Patch(node, &id)
	case n.Value == "$env":
		c.errorAt(n.Location(), CodeUnknownName, "", "unknown name $env")
	case c.scope.deps == nil:
		c.reads.add(n.Value)
		c.reads.whole = c.reads.whole || n.Value == "data"
	}
}

func (c *compilation) refer(d Dep) {
	if !slices.Contains(c.names, d.Name) {
		c.names = append(c.names, d.Name)
	}
}

// arrived is `name != nil`, or for a list `name != nil && len(name) > 0`.
func arrived(n *ast.IdentifierNode, list bool) ast.Node {
	at := func(m ast.Node) ast.Node { m.SetLocation(n.Location()); return m }
	there := at(&ast.BinaryNode{Operator: "!=", Left: n, Right: at(&ast.NilNode{})})
	if !list {
		return there
	}
	id := *n
	length := at(&ast.BuiltinNode{Name: "len", Arguments: []ast.Node{&id}})
	return at(&ast.BinaryNode{
		Operator: "&&", Left: there,
		Right: at(&ast.BinaryNode{Operator: ">", Left: length, Right: at(&ast.IntegerNode{})}),
	})
}

func (c *compilation) member(node *ast.Node, n *ast.MemberNode) {
	id, isName := n.Node.(*ast.IdentifierNode)
	prop, isField := n.Property.(*ast.StringNode)
	if isField && c.isData(n.Node) {
		// A field of the payload: note which, and that the rest is not read.
		whole := c.reads.whole
		c.rewrite(&n.Node, false)
		c.reads.whole = whole
		c.reads.field(prop.Value)
		return
	}
	if !isName || !isField {
		c.rewrite(&n.Node, false)
		c.rewrite(&n.Property, false)
		return
	}
	if d, ok := c.scope.deps[id.Value]; ok {
		c.refer(d)
		c.reads.add(prop.Value)
		c.reads.whole = c.reads.whole || prop.Value == "data"
		return
	}
	if !c.scope.alias[id.Value] {
		c.rewrite(&n.Node, false)
		return
	}
	if _, ok := c.scope.types[prop.Value]; !ok || prop.Value == "input" {
		c.errorAt(prop.Location(), CodeUnknownName, attributeHint(prop.Value), "unknown field %s", prop.Value)
		return
	}
	name := &ast.IdentifierNode{Value: prop.Value}
	name.SetLocation(prop.Location())
	*node = name
	c.identifier(node, name, false)
}

// isData reports whether n is an event's whole payload: `data`, `alias.data` or
// `dependency.data`.
func (c *compilation) isData(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.ChainNode:
		return c.isData(n.Node)
	case *ast.IdentifierNode:
		return c.scope.deps == nil && n.Value == "data"
	case *ast.MemberNode:
		id, ok := n.Node.(*ast.IdentifierNode)
		prop, ok2 := n.Property.(*ast.StringNode)
		if !ok || !ok2 || prop.Value != "data" {
			return false
		}
		_, dep := c.scope.deps[id.Value]
		return dep || c.scope.alias[id.Value]
	}
	return false
}

func (c *compilation) call(n *ast.CallNode) {
	switch callee := n.Callee.(type) {
	case *ast.MemberNode:
		if name, ok := callee.Property.(*ast.StringNode); ok && name.Value == "Local" {
			c.errorAt(n.Location(), CodeNotDeterministic, "use UTC(), or In(timezone(\"Europe/Berlin\"))",
				"Local() depends on the machine")
			return
		}
		c.rewrite(&n.Callee, false)
	case *ast.IdentifierNode:
		// An unknown function is the type checker's to report.
	default:
		c.rewrite(&n.Callee, false)
	}
	for i := range n.Arguments {
		c.rewrite(&n.Arguments[i], false)
	}
}

// pattern checks the right side of `matches`.
func (c *compilation) pattern(n *ast.BinaryNode) {
	s, ok := n.Right.(*ast.StringNode)
	switch {
	case !ok:
		c.errorAt(n.Right.Location(), CodePattern, "use contains, startsWith or endsWith for text that is not known before",
			"the pattern of matches must be a string literal")
	case len(s.Value) > MaxPattern:
		c.errorAt(n.Right.Location(), CodePattern, "", "the pattern has %d bytes, the limit is %d", len(s.Value), MaxPattern)
	}
}
