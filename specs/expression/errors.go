package expression

import (
	"errors"
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
)

// MissingError says that an expression asked for what is not there: a path
// into something absent, nil where a value is needed, or an ordering of values
// of different types.
type MissingError struct {
	// Path is the path as written, for example `data.a`.
	Path string
}

// Error is "missing `data.a`".
func (e *MissingError) Error() string { return "missing `" + e.Path + "`" }

// clip bounds a text that may hold parts of an event.
func clip(s string) string {
	const limit = 200
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// explain turns what the virtual machine says into this package's errors.
func (p *Program) explain(err error) error {
	if errors.Is(err, ErrBudget) {
		return ErrBudget
	}
	var fe *file.Error
	if !errors.As(err, &fe) {
		return errors.New(clip(err.Error()))
	}
	if fe.Message == "memory budget exceeded" {
		return ErrBudget
	}
	if path, ok := p.missing(fe); ok {
		return &MissingError{Path: path}
	}
	return errors.New(clip(tidyTypes(fe.Message)))
}

// missing finds the path an error is about, if it is one about something that
// is not there.
func (p *Program) missing(fe *file.Error) (string, bool) {
	msg := fe.Message
	for _, n := range p.nodesAt(fe.From) {
		switch n := n.(type) {
		case *ast.MemberNode:
			switch {
			case strings.HasPrefix(msg, "cannot fetch ") && strings.HasSuffix(msg, " from <nil>"):
				return clip(n.Node.String()), true
			case strings.HasPrefix(msg, "cannot fetch "), strings.HasPrefix(msg, "index out of range"),
				strings.HasPrefix(msg, "invalid operation: int("):
				return clip(n.String()), true
			}
		case *ast.SliceNode:
			if strings.HasPrefix(msg, "cannot slice") || strings.Contains(msg, "<nil>") || strings.Contains(msg, "zero Value") {
				return clip(n.Node.String()), true
			}
		case *ast.UnaryNode:
			if strings.Contains(msg, "is nil, not") || strings.HasSuffix(msg, "<nil>") {
				return clip(nilPart(n.Node).String()), true
			}
		case *ast.BinaryNode:
			if operand := missingOperand(n, msg); operand != nil {
				return clip(nilPart(operand).String()), true
			}
		case *ast.ConditionalNode:
			if strings.Contains(msg, "is nil, not bool") {
				return clip(nilPart(n.Cond).String()), true
			}
		case *ast.BuiltinNode:
			if nilArgument(msg) && len(n.Arguments) > 0 {
				return clip(n.Arguments[argumentAbout(n.Arguments)].String()), true
			}
		case *ast.CallNode:
			if nilArgument(msg) && len(n.Arguments) > 0 {
				return clip(n.Arguments[argumentAbout(n.Arguments)].String()), true
			}
		}
	}
	return "", false
}

func nilArgument(msg string) bool {
	return strings.Contains(msg, "is nil, not") || strings.Contains(msg, "<nil>") ||
		strings.Contains(msg, "on zero Value") || strings.HasSuffix(msg, " invalid")
}

// argumentAbout is the first argument that is not written out.
func argumentAbout(args []ast.Node) int {
	for i, a := range args {
		if !literal(a) {
			return i
		}
	}
	return 0
}

// missingOperand is the operand an error of a binary operator is about, nil
// when the error is of another kind.
func missingOperand(n *ast.BinaryNode, msg string) ast.Node {
	first := n.Left
	if literal(first) {
		first = n.Right
	}
	if strings.Contains(msg, "is nil, not") || strings.Contains(msg, "(<nil>)") {
		return first
	}
	types, ok := strings.CutPrefix(msg, "invalid operation: ")
	if !ok {
		return nil
	}
	left, right, ok := strings.Cut(types, " "+n.Operator+" ")
	if !ok {
		return nil
	}
	ordering := n.Operator == "<" || n.Operator == ">" || n.Operator == "<=" || n.Operator == ">="
	switch {
	case left == "<nil>":
		return n.Left
	case right == "<nil>":
		return n.Right
	case ordering:
		return first
	}
	return nil
}

// nilPart is the part of n that can be nil when n is: the left operands of &&
// and || have been looked at by then.
func nilPart(n ast.Node) ast.Node {
	for {
		switch m := n.(type) {
		case *ast.BinaryNode:
			switch m.Operator {
			case "&&", "||", "and", "or":
				n = m.Right
				continue
			}
		case *ast.VariableDeclaratorNode:
			n = m.Expr
			continue
		case *ast.SequenceNode:
			n = m.Nodes[len(m.Nodes)-1]
			continue
		}
		return n
	}
}

// nilPath names the expression's result.
func (p *Program) nilPath() string {
	p.once.Do(p.index)
	return clip(nilPart(p.sites[-1][0]).String())
}

func (p *Program) nodesAt(offset int) []ast.Node {
	p.once.Do(p.index)
	return p.sites[offset]
}

// index parses the source again, as written, when the first evaluation fails.
func (p *Program) index() {
	tree, err := parser.Parse(p.expr.Source)
	if err != nil {
		tree.Node = &ast.NilNode{}
	}
	p.sites = map[int][]ast.Node{-1: {tree.Node}}
	ast.Walk(&tree.Node, visitFunc(func(n *ast.Node) {
		from := (*n).Location().From
		p.sites[from] = append(p.sites[from], *n)
	}))
}
