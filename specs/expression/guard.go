package expression

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// Guard is a part of an expression that must hold for the whole to be true and
// is decided without evaluating it: the value at a path is one of some
// constants. `data.kind == "push"`, `"push" == data.kind` and
// `data.kind in ["push", "tag"]` are guards wherever && joins them to the rest.
type Guard struct {
	// Path is an attribute of the event and, below data and extensions, the
	// names of fields.
	Path []string
	// Keys are the constants, as [ScalarKey] gives them.
	Keys []string
}

// Test decides the guard for an event whose attributes are in env. missing is
// the path that is not there when it cannot be decided, which counts as false.
func (g *Guard) Test(env map[string]any) (ok bool, missing string) {
	key, missing := g.Key(env)
	return key != "" && slices.Contains(g.Keys, key), missing
}

// Key is the key of the value at the guard's path, "" when it is none that a
// constant can have. missing is the path that is not there.
func (g *Guard) Key(env map[string]any) (key, missing string) {
	v, missing := g.value(env)
	if missing == "" {
		key, _ = ScalarKey(v)
	}
	return key, missing
}

// value is the value at the guard's path.
func (g *Guard) value(env map[string]any) (v any, missing string) {
	v = env[g.Path[0]]
	for i, name := range g.Path[1:] {
		m, ok := v.(map[string]any)
		if !ok {
			if v == nil {
				return nil, PathText(g.Path[:i+1])
			}
			return nil, PathText(g.Path[:i+2])
		}
		v = m[name]
	}
	return v, ""
}

// PathText writes a path as expressions do: data.a, data["x-y"].
func PathText(path []string) string {
	var b strings.Builder
	for i, name := range path {
		switch {
		case i == 0:
			b.WriteString(name)
		case plainName(name):
			b.WriteString("." + name)
		default:
			b.WriteString("[" + strconv.Quote(name) + "]")
		}
	}
	return clip(b.String())
}

func plainName(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

// exact is the limit below which a whole number is the same as int64 and as
// float64, so that == cannot tell them apart.
const exact = 1 << 53

// ScalarKey is a text that is equal for two texts, numbers or booleans exactly
// when == says that they are; ok is false for other values.
func ScalarKey(v any) (key string, ok bool) {
	switch v := v.(type) {
	case string:
		return "s" + v, true
	case bool:
		return "b" + strconv.FormatBool(v), true
	case int64:
		return "n" + strconv.FormatInt(v, 10), true
	case int:
		return "n" + strconv.Itoa(v), true
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < exact {
			return "n" + strconv.FormatInt(int64(v), 10), true
		}
		return "f" + strconv.FormatFloat(v, 'g', -1, 64), true
	}
	return "", false
}

// Guards returns the guards of an expression over one event. only is true when
// nothing else is to be decided. They must be decided before the rest: an
// expression whose guard does not hold is false, whatever the rest would say.
func (p *Program) Guards() (guards []Guard, only bool) { return p.guards, p.guarded }

// guardsOf collects the guards of a rewritten tree.
func guardsOf(n ast.Node) (guards []Guard, only bool) {
	if b, ok := n.(*ast.BinaryNode); ok && (b.Operator == "&&" || b.Operator == "and") {
		left, a := guardsOf(b.Left)
		right, z := guardsOf(b.Right)
		return append(left, right...), a && z
	}
	if g, ok := guardOf(n); ok {
		return []Guard{g}, true
	}
	return nil, false
}

func guardOf(n ast.Node) (g Guard, ok bool) {
	b, ok := n.(*ast.BinaryNode)
	if !ok {
		return g, false
	}
	switch b.Operator {
	case "==":
		path, value := b.Left, b.Right
		if literal(path) {
			path, value = value, path
		}
		key, ok := constantKey(value)
		if !ok {
			return g, false
		}
		g.Keys = []string{key}
		g.Path, ok = pathOf(path)
		return g, ok
	case "in":
		list, ok := b.Right.(*ast.ArrayNode)
		if !ok {
			return g, false
		}
		for _, item := range list.Nodes {
			key, ok := constantKey(item)
			if !ok {
				return g, false
			}
			g.Keys = append(g.Keys, key)
		}
		g.Path, ok = pathOf(b.Left)
		return g, ok && len(g.Keys) > 0
	}
	return g, false
}

// pathOf reads `type`, `data.a.b` and `extensions.x`.
func pathOf(n ast.Node) ([]string, bool) {
	switch n := n.(type) {
	case *ast.IdentifierNode:
		switch n.Value {
		case "id", "type", "source", "subject", "datacontenttype", "dataschema":
			return []string{n.Value}, true
		}
	case *ast.MemberNode:
		name, ok := n.Property.(*ast.StringNode)
		if !ok || n.Optional || n.Method {
			return nil, false
		}
		if id, ok := n.Node.(*ast.IdentifierNode); ok {
			return []string{id.Value, name.Value}, id.Value == "data" || id.Value == "extensions"
		}
		path, ok := pathOf(n.Node)
		if !ok || len(path) < 2 {
			return nil, false
		}
		return append(path, name.Value), true
	}
	return nil, false
}

// constantKey is the key of a constant that is written out.
func constantKey(n ast.Node) (string, bool) {
	sign := 1
	if u, ok := n.(*ast.UnaryNode); ok && (u.Operator == "-" || u.Operator == "+") {
		if n = u.Node; u.Operator == "-" {
			sign = -1
		}
		switch n.(type) {
		case *ast.IntegerNode, *ast.FloatNode:
		default:
			return "", false
		}
	}
	switch n := n.(type) {
	case *ast.StringNode:
		return ScalarKey(n.Value)
	case *ast.BoolNode:
		return ScalarKey(n.Value)
	case *ast.IntegerNode:
		if n.Value >= exact || n.Value <= -exact {
			return "", false
		}
		return ScalarKey(sign * n.Value)
	case *ast.FloatNode:
		if math.Abs(n.Value) >= exact || math.IsNaN(n.Value) {
			return "", false
		}
		return ScalarKey(float64(sign) * n.Value)
	}
	return "", false
}
