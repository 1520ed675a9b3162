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
	if c.trace != nil {
		defer c.trace.moved(*node, node)
	}
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		c.identifier(node, n, boolean)
	case *ast.UnaryNode:
		not := n.Operator == "!" || n.Operator == "not"
		if not && c.negated(n) {
			return
		}
		c.rewrite(&n.Node, not)
	case *ast.BinaryNode:
		logic := n.Operator == "&&" || n.Operator == "||" || n.Operator == "and" || n.Operator == "or"
		if n.Operator == "??" {
			c.defaults(n)
			c.optional++
		}
		c.rewrite(&n.Left, logic)
		if n.Operator == "??" {
			c.optional--
			c.never(n)
		}
		c.rewrite(&n.Right, logic)
		if n.Operator == "matches" {
			c.pattern(n)
		}
	case *ast.ChainNode:
		c.optional++
		c.rewrite(&n.Node, false)
		c.optional--
	case *ast.MemberNode:
		c.member(node, n)
	case *ast.SliceNode:
		c.rewrite(&n.Node, false)
		c.rewrite(&n.From, false)
		c.rewrite(&n.To, false)
	case *ast.CallNode:
		if c.scope.deps != nil && isAbsent(n) {
			c.absent(node, n)
			return
		}
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

// negated reports `!name` and `!absent(name)`.
func (c *compilation) negated(n *ast.UnaryNode) bool {
	if c.scope.deps == nil {
		return false
	}
	operator := n.Operator + spaced(n.Operator)
	switch operand := n.Node.(type) {
	case *ast.IdentifierNode:
		d, ok := c.scope.deps[operand.Value]
		if !ok {
			return false
		}
		hint := "write absent(" + operand.Value + ")"
		if !d.Absent {
			hint = "to ask whether an event stays away, give " + d.Name + " absent: {for, after} and write absent(" + operand.Value + ")"
		}
		c.errorAt(n.Location(), CodeNegatedDependency, hint, "%s%s would be true until %s arrives", operator, operand.Value, operand.Value)
		return true
	case *ast.CallNode:
		if !isAbsent(operand) {
			return false
		}
		c.errorAt(n.Location(), CodeNegatedDependency, "name a dependency without absent for the event that should arrive",
			"%sabsent() would be true until the time is up", operator)
		return true
	}
	return false
}

func isAbsent(n *ast.CallNode) bool {
	callee, ok := n.Callee.(*ast.IdentifierNode)
	return ok && callee.Value == "absent"
}

// absent gives `absent(name)` its meaning: `name == true`.
func (c *compilation) absent(node *ast.Node, n *ast.CallNode) {
	var id *ast.IdentifierNode
	if len(n.Arguments) == 1 {
		id, _ = n.Arguments[0].(*ast.IdentifierNode)
	}
	if id == nil {
		c.errorAt(n.Location(), CodeAbsentDependency, "write absent(name)", "absent() takes the name of one dependency")
		return
	}
	d, ok := c.scope.deps[id.Value]
	switch {
	case !ok:
		c.errorAt(id.Location(), CodeUnknownName, c.scope.hint(id.Value, false), "unknown name %s", id.Value)
		return
	case !d.Absent:
		c.errorAt(id.Location(), CodeAbsentDependency, "give it absent: {for, after}", "dependency %s does not say when it counts as absent", d.Name)
		return
	}
	c.refer(d)
	yes := &ast.BoolNode{Value: true}
	yes.SetLocation(n.Location())
	asked := &ast.BinaryNode{Operator: "==", Left: id, Right: yes}
	asked.SetLocation(n.Location())
	*node = asked
}

// mentioned reports a dependency that is declared absent where its event is
// meant.
func (c *compilation) mentioned(n ast.Node, d Dep) bool {
	if d.Absent {
		c.errorAt(n.Location(), CodeAbsentDependency,
			"ask absent("+Ident(d.Name)+"); to read the event, declare a second dependency without absent",
			"%s is declared absent, so it never arrives", d.Name)
	}
	return d.Absent
}

// requiredAbsences collects the dependencies whose absence must be asked for
// and true for a rewritten tree to be true.
func (c *compilation) requiredAbsences(n ast.Node) []string {
	b, ok := n.(*ast.BinaryNode)
	switch {
	case !ok:
	case b.Operator == "&&" || b.Operator == "and":
		return append(c.requiredAbsences(b.Left), c.requiredAbsences(b.Right)...)
	case b.Operator == "||" || b.Operator == "or":
		right := c.requiredAbsences(b.Right)
		return slices.DeleteFunc(c.requiredAbsences(b.Left), func(name string) bool { return !slices.Contains(right, name) })
	case b.Operator == "==":
		if id, ok := b.Left.(*ast.IdentifierNode); ok && c.scope.deps[id.Value].Absent {
			return []string{c.scope.deps[id.Value].Name}
		}
	}
	return nil
}

func spaced(operator string) string {
	if operator == "not" {
		return " "
	}
	return ""
}

func (c *compilation) identifier(node *ast.Node, n *ast.IdentifierNode, boolean bool) {
	if d, ok := c.scope.deps[n.Value]; ok {
		if c.mentioned(n, d) {
			return
		}
		c.refer(d)
		if boolean {
			ast.Patch(node, arrived(n, d.List))
			return
		}
		c.reads.all = true
		return
	}
	if _, ok := c.scope.vars[n.Value]; ok {
		if !slices.Contains(c.vars, n.Value) {
			c.vars = append(c.vars, n.Value)
		}
		c.reads.all = c.reads.all || n.Value == "batch"
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
		c.fieldRead(n.Node, prop)
		return
	}
	if !isName || !isField {
		c.rewrite(&n.Node, false)
		c.rewrite(&n.Property, false)
		return
	}
	if d, ok := c.scope.deps[id.Value]; ok {
		if c.mentioned(id, d) {
			return
		}
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
