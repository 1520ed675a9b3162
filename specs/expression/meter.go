package expression

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp/syntax"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/vm"
	"github.com/expr-lang/expr/vm/runtime"
)

// ErrBudget says that an evaluation was ended because it did more than
// [Budget] allows.
var ErrBudget = errors.New("the expression exceeds its budget of steps and bytes")

// maxWalk is how deep a value may be nested that is compared or printed.
const maxWalk = 10_000

// class says how a function of expr is made deterministic and bounded.
type class uint8

const (
	// constant: costs the same whatever it is given, and depends on nothing else.
	constant class = iota + 1
	// loop: runs a predicate; each turn is counted. Without a predicate its
	// list is.
	loop
	// sized: expr's own implementation, after the size of its arguments was
	// charged.
	sized
	// own: our implementation, in ownFunctions.
	own
	// refused: depends on more than its arguments.
	refused
)

// classes has every function of expr; a test fails when a new version brings
// one that nobody has thought about.
var classes = map[string]class{
	"all": loop, "none": loop, "any": loop, "one": loop, "filter": loop, "map": loop, "find": loop,
	"findIndex": loop, "findLast": loop, "findLastIndex": loop, "count": loop, "sum": loop,
	"groupBy": loop, "sortBy": loop, "reduce": loop,

	"type": constant, "abs": constant, "ceil": constant, "floor": constant, "round": constant,
	"first": constant, "last": constant, "get": constant, "take": constant,
	"bitand": constant, "bitor": constant, "bitxor": constant, "bitnand": constant, "bitshl": constant,
	"bitshr": constant, "bitushr": constant, "bitnot": constant,

	"len": sized, "int": sized, "float": sized, "string": sized, "trim": sized, "trimPrefix": sized,
	"trimSuffix": sized, "upper": sized, "lower": sized, "indexOf": sized, "lastIndexOf": sized,
	"hasPrefix": sized, "hasSuffix": sized, "max": sized, "min": sized, "mean": sized, "median": sized,
	"duration": sized, "fromPairs": sized, "reverse": sized, "concat": sized, "flatten": sized, "sort": sized,

	"split": own, "splitAfter": own, "replace": own, "repeat": own, "join": own, "uniq": own,
	"toJSON": own, "fromJSON": own, "toBase64": own, "fromBase64": own,
	"keys": own, "values": own, "toPairs": own, "date": own, "timezone": own,

	"now": refused,
}

var refusals = map[string]string{"now": "use the event's `time`"}

// meter makes every part whose cost grows with the data report it. It runs
// after the type check, so the nodes it makes carry the type of those they
// replace.
func (c *compilation) meter(node *ast.Node) {
	if *node == nil {
		return
	}
	if c.trace != nil {
		defer c.trace.watch(node, *node)
	}
	if c.lenient != nil {
		defer c.tolerant(node, *node)
	}
	switch n := (*node).(type) {
	case *ast.UnaryNode:
		c.meter(&n.Node)
	case *ast.BinaryNode:
		c.meter(&n.Left)
		c.meter(&n.Right)
		c.meterBinary(node, n)
	case *ast.ChainNode:
		c.meter(&n.Node)
	case *ast.MemberNode:
		// A key or bound that does not fit is printed in full.
		c.meter(&n.Node)
		c.meter(&n.Property)
		chargedKey(&n.Property)
	case *ast.SliceNode:
		c.meter(&n.Node)
		c.meter(&n.From)
		chargedKey(&n.From)
		c.meter(&n.To)
		chargedKey(&n.To)
	case *ast.CallNode:
		if m, ok := n.Callee.(*ast.MemberNode); ok {
			c.meter(&m.Node)
		}
		for i := range n.Arguments {
			c.meter(&n.Arguments[i])
			charged(&n.Arguments[i], charge)
		}
	case *ast.BuiltinNode:
		for i := range n.Arguments {
			c.meter(&n.Arguments[i])
		}
		c.meterBuiltin(node, n)
	case *ast.PredicateNode:
		c.meter(&n.Node)
		turn := safeCall(n, tick)
		body := &ast.SequenceNode{Nodes: []ast.Node{turn, n.Node}}
		body.SetLocation(n.Node.Location())
		body.SetNature(*n.Node.Nature())
		n.Node = body
	case *ast.ConditionalNode:
		c.meter(&n.Cond)
		c.meter(&n.Exp1)
		c.meter(&n.Exp2)
	case *ast.VariableDeclaratorNode:
		c.meter(&n.Value)
		c.meter(&n.Expr)
	case *ast.SequenceNode:
		for i := range n.Nodes {
			c.meter(&n.Nodes[i])
		}
	case *ast.ArrayNode:
		for i := range n.Nodes {
			c.meter(&n.Nodes[i])
		}
	case *ast.MapNode:
		for i := range n.Pairs {
			c.meter(&n.Pairs[i])
		}
	case *ast.PairNode:
		c.meter(&n.Key)
		c.meter(&n.Value)
	}
}

func (c *compilation) meterBinary(node *ast.Node, n *ast.BinaryNode) {
	switch n.Operator {
	case "+":
		if number(n.Left) || number(n.Right) {
			return
		}
		replace(node, add, n.Left, n.Right)
	case "==", "!=", "<", ">", "<=", ">=":
		// Comparing with a scalar costs at most the scalar.
		if !scalar(n.Left) && !scalar(n.Right) {
			charged(&n.Left, charge)
		}
	case "in":
		if a, ok := n.Right.(*ast.ArrayNode); !ok || !all(a.Nodes, scalar) {
			charged(&n.Right, charge)
		}
	case "contains":
		charged(&n.Left, charge)
	case "startsWith", "endsWith":
		if !scalar(n.Right) {
			charged(&n.Right, charge)
		}
	case "matches":
		charged(&n.Left, chargePattern(n.Right.(*ast.StringNode).Value))
	}
}

func all(ns []ast.Node, ok func(ast.Node) bool) bool {
	return !slices.ContainsFunc(ns, func(n ast.Node) bool { return !ok(n) })
}

func literal(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.NilNode, *ast.BoolNode, *ast.IntegerNode, *ast.FloatNode, *ast.StringNode:
		return true
	case *ast.UnaryNode:
		return literal(n.Node)
	}
	return false
}

func number(n ast.Node) bool {
	switch n.Type().Kind() {
	case reflect.Int, reflect.Int64, reflect.Float64:
		return true
	}
	return false
}

// scalar reports whether n is known to be small: a literal, a number or a
// truth value.
func scalar(n ast.Node) bool {
	return literal(n) || number(n) || n.Type().Kind() == reflect.Bool
}

func (c *compilation) meterBuiltin(node *ast.Node, n *ast.BuiltinNode) {
	switch classes[n.Name] {
	case loop:
		if len(n.Arguments) == 1 {
			charged(&n.Arguments[0], chargeItems)
		}
	case own:
		replace(node, ownFunctions[n.Name], n.Arguments...)
	case sized:
		if n.Name == "len" {
			charged(&n.Arguments[0], chargeText)
			return
		}
		if len(n.Arguments) == 1 && scalar(n.Arguments[0]) {
			return
		}
		replace(node, sizedFunction(builtin.Builtins[builtin.Index[n.Name]]), n.Arguments...)
	case constant, refused:
	}
}

// safeCall is a call of f that link turns into a counted one.
func safeCall(at ast.Node, f vm.SafeFunction, args ...ast.Node) *ast.CallNode {
	call := &ast.CallNode{Callee: &ast.ConstantNode{Value: f}, Arguments: args}
	call.SetLocation(at.Location())
	call.SetNature(*at.Nature())
	return call
}

func replace(node *ast.Node, f vm.SafeFunction, args ...ast.Node) {
	*node = safeCall(*node, f, args...)
}

// charged puts f, which returns its argument, between a node and its user.
func charged(node *ast.Node, f vm.SafeFunction) {
	if !literal(*node) {
		replace(node, f, *node)
	}
}

func chargedKey(node *ast.Node) {
	if *node != nil && !scalar(*node) {
		charged(node, charge)
	}
}

// tick is one turn of a loop.
func tick(...any) (any, uint, error) { return nil, 1, nil }

// charge costs the whole size of its argument.
func charge(args ...any) (any, uint, error) { return args[0], size(args[0]), nil }

// chargeItems costs the length of a list.
func chargeItems(args ...any) (any, uint, error) {
	if v := reflect.ValueOf(args[0]); v.Kind() == reflect.Slice {
		return args[0], uint(v.Len()), nil
	}
	return args[0], 0, nil
}

// chargeText costs the length of a text, which is counted in characters.
func chargeText(args ...any) (any, uint, error) {
	if s, ok := args[0].(string); ok {
		return s, text(len(s)), nil
	}
	return args[0], 0, nil
}

// chargePattern costs what matching the pattern may: length of the text times
// length of the program.
func chargePattern(pattern string) vm.SafeFunction {
	factor := 1
	if re, err := syntax.Parse(pattern, syntax.Perl); err == nil {
		if prog, err := syntax.Compile(re.Simplify()); err == nil {
			factor += len(prog.Inst) / 16
		}
	}
	return func(args ...any) (any, uint, error) {
		n := 0
		switch v := args[0].(type) {
		case string:
			n = len(v)
		case []byte:
			n = len(v)
		}
		cost := uint(1 + n/4*factor)
		if cost >= Budget {
			return nil, 0, ErrBudget
		}
		return args[0], cost, nil
	}
}

// text is the cost of n bytes.
func text(n int) uint { return uint(n) / 16 }

// size is what a value costs to look at: its elements and its text. It stops
// counting at the budget, so a value built from many references to itself
// costs no more to measure. What is nested too deep to be walked costs the
// whole budget.
func size(v any) uint {
	left := uint(Budget)
	measure(v, &left, 0)
	return Budget - left
}

func measure(v any, left *uint, depth int) {
	take := func(n uint) { *left -= min(*left, n) }
	take(1)
	if depth++; depth > maxWalk {
		*left = 0
	}
	if *left == 0 {
		return
	}
	switch v := v.(type) {
	case nil, bool, int, int64, float64, time.Time, time.Duration:
	case string:
		take(text(len(v)))
	case []byte:
		take(text(len(v)))
	case []any:
		for _, e := range v {
			if measure(e, left, depth); *left == 0 {
				return
			}
		}
	case map[string]any:
		for k, e := range v {
			take(text(len(k)))
			if measure(e, left, depth); *left == 0 {
				return
			}
		}
	case []int:
		take(uint(len(v)))
	case []float64:
		take(uint(len(v)))
	case []string:
		for _, s := range v {
			take(1 + text(len(s)))
		}
	default:
		rv := reflect.ValueOf(v)
		switch rv.Kind() {
		case reflect.Slice, reflect.Array:
			for i := 0; i < rv.Len() && *left > 0; i++ {
				measure(rv.Index(i).Interface(), left, depth)
			}
		case reflect.Map:
			for it := rv.MapRange(); it.Next() && *left > 0; {
				measure(it.Key().Interface(), left, depth)
				measure(it.Value().Interface(), left, depth)
			}
		}
	}
}

func sizeAll(args []any) uint {
	var n uint
	for _, a := range args {
		n += size(a)
	}
	return n
}

// sizedFunction charges the arguments of one of expr's functions, then calls it.
func sizedFunction(f *builtin.Function) vm.SafeFunction {
	return func(args ...any) (any, uint, error) {
		cost := sizeAll(args)
		if cost >= Budget {
			return nil, 0, ErrBudget
		}
		switch {
		case f.Fast != nil:
			return f.Fast(args[0]), cost, nil
		case f.Safe != nil:
			v, more, err := f.Safe(args...)
			return v, cost + more, err
		default:
			v, err := f.Func(args...)
			return v, cost, err
		}
	}
}

// add is the operator +. Texts are the only sums that grow.
func add(args ...any) (any, uint, error) {
	a, ok := args[0].(string)
	b, ok2 := args[1].(string)
	if !ok || !ok2 {
		return runtime.Add(args[0], args[1]), 0, nil
	}
	if err := produces(len(a) + len(b)); err != nil {
		return nil, 0, err
	}
	return a + b, text(len(a) + len(b)), nil
}

// produces refuses a text of n bytes that the budget has no room for.
func produces(n int) error {
	if n < 0 || text(n) >= Budget {
		return ErrBudget
	}
	return nil
}

// argument returns an argument of type T or panics as expr's own functions do,
// with the message that explain understands.
func argument[T any](args []any, i int) T { return args[i].(T) }

func call(name string, args []any) (any, error) {
	return builtin.Builtins[builtin.Index[name]].Func(args...)
}

// ownFunctions are the functions of class own. Arguments were checked at
// compile time as far as their types are known.
var ownFunctions = map[string]vm.SafeFunction{
	"split":      func(args ...any) (any, uint, error) { return split("split", args) },
	"splitAfter": func(args ...any) (any, uint, error) { return split("splitAfter", args) },
	"replace": func(args ...any) (any, uint, error) {
		s, from, to := argument[string](args, 0), argument[string](args, 1), argument[string](args, 2)
		n := strings.Count(s, from)
		if len(args) == 4 {
			if limit := runtime.ToInt(args[3]); limit >= 0 {
				n = min(n, limit)
			}
		}
		length := len(s) + n*max(0, len(to)-len(from))
		if err := produces(length); err != nil {
			return nil, 0, err
		}
		v, err := call("replace", args)
		return v, 1 + text(length+len(s)), err
	},
	"repeat": func(args ...any) (any, uint, error) {
		s, n := argument[string](args, 0), runtime.ToInt(args[1])
		switch {
		case n < 0:
			return nil, 0, fmt.Errorf("repeat cannot take %d times", n)
		case n > Budget:
			return nil, 0, ErrBudget
		}
		if err := produces(len(s) * n); err != nil {
			return nil, 0, err
		}
		return strings.Repeat(s, n), 1 + text(len(s)*n), nil
	},
	"join": func(args ...any) (any, uint, error) {
		glue := ""
		if len(args) == 2 {
			glue = argument[string](args, 1)
		}
		var parts []string
		switch v := args[0].(type) {
		case []string:
			parts = v
		case []any:
			parts = make([]string, len(v))
			for i := range v {
				parts[i] = argument[string](v, i)
			}
		default:
			return nil, 0, fmt.Errorf("invalid argument for join (type %T)", v)
		}
		length := len(glue) * len(parts)
		for _, p := range parts {
			length += len(p)
		}
		if err := produces(length); err != nil {
			return nil, 0, err
		}
		return strings.Join(parts, glue), uint(len(parts)) + text(length), nil
	},
	"uniq": func(args ...any) (any, uint, error) {
		// Each element is compared with each different one before it.
		v := reflect.ValueOf(args[0])
		if v.Kind() != reflect.Slice && v.Kind() != reflect.Array {
			return nil, 0, fmt.Errorf("cannot uniq %s", v.Kind())
		}
		out, whole, cost := []any{}, size(args[0]), uint(0)
		for i := range v.Len() {
			e := v.Index(i).Interface()
			if !slices.ContainsFunc(out, func(o any) bool { return runtime.Equal(e, o) }) {
				out = append(out, e)
				if cost += whole; cost >= Budget {
					return nil, 0, ErrBudget
				}
			}
		}
		return out, cost, nil
	},
	"toJSON": func(args ...any) (any, uint, error) {
		v, err := canonical(args[0], new(canonicalState))
		if err != nil {
			return nil, 0, err
		}
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return nil, 0, err
		}
		return string(b), size(args[0]) + text(len(b)), nil
	},
	"fromJSON": func(args ...any) (any, uint, error) {
		s := argument[string](args, 0)
		if err := produces(len(s)); err != nil {
			return nil, 0, err
		}
		v, err := parseJSON(s)
		if err != nil {
			return nil, 0, err
		}
		return v, text(len(s)) + size(v), nil
	},
	"toBase64": func(args ...any) (any, uint, error) {
		s := argument[string](args, 0)
		if err := produces(2 * len(s)); err != nil {
			return nil, 0, err
		}
		return base64.StdEncoding.EncodeToString([]byte(s)), 1 + text(2*len(s)), nil
	},
	"fromBase64": func(args ...any) (any, uint, error) {
		s := argument[string](args, 0)
		b, err := base64.StdEncoding.DecodeString(s)
		return string(b), 1 + text(len(s)), err
	},
	"keys": func(args ...any) (any, uint, error) {
		ps, cost, err := pairs("keys", args[0])
		out := make([]any, len(ps))
		for i := range ps {
			out[i] = ps[i][0]
		}
		return out, cost, err
	},
	"values": func(args ...any) (any, uint, error) {
		ps, cost, err := pairs("values", args[0])
		out := make([]any, len(ps))
		for i := range ps {
			out[i] = ps[i][1]
		}
		return out, cost, err
	},
	"toPairs": func(args ...any) (any, uint, error) {
		ps, cost, err := pairs("toPairs", args[0])
		out := make([]any, len(ps))
		for i := range ps {
			out[i] = []any{ps[i][0], ps[i][1]}
		}
		return out, cost, err
	},
	"date":     date,
	"timezone": timezone,
}

func split(name string, args []any) (any, uint, error) {
	s, sep := argument[string](args, 0), argument[string](args, 1)
	parts := uint(strings.Count(s, sep) + 1)
	cost := parts + text(len(s))
	if cost >= Budget {
		return nil, 0, ErrBudget
	}
	v, err := call(name, args)
	return v, cost, err
}

// pairs are the entries of a map in the order of their keys: by type, then by
// value.
func pairs(name string, m any) ([][2]any, uint, error) {
	v := reflect.ValueOf(m)
	if v.Kind() != reflect.Map {
		return nil, 0, fmt.Errorf("%s takes an object (type %T)", name, m)
	}
	type entry struct {
		order string
		pair  [2]any
	}
	es := make([]entry, 0, v.Len())
	cost := uint(0)
	for it := v.MapRange(); it.Next(); {
		k := it.Key().Interface()
		cost += 1 + size(k)
		if cost >= Budget {
			return nil, 0, ErrBudget
		}
		order, ok := k.(string)
		if !ok {
			order = fmt.Sprintf("%T %v", k, k)
		}
		es = append(es, entry{order, [2]any{k, it.Value().Interface()}})
	}
	slices.SortFunc(es, func(a, b entry) int { return strings.Compare(a.order, b.order) })
	out := make([][2]any, len(es))
	for i := range es {
		out[i] = es[i].pair
	}
	return out, cost, nil
}

// layouts are those expr's date tries.
var layouts = []string{time.DateOnly, time.TimeOnly, time.DateTime, time.RFC3339, time.RFC822, time.RFC850, time.RFC1123}

// date is expr's, but a zone's abbreviation or offset never means the
// machine's own zone.
func date(args ...any) (any, uint, error) {
	zone := time.UTC
	if z, ok := args[0].(*time.Location); ok {
		zone, args = z, args[1:]
	}
	if len(args) == 0 {
		return nil, 0, errors.New("date needs a text")
	}
	cost := sizeAll(args)
	s := argument[string](args, 0)
	if len(args) == 3 {
		z, _, err := timezone(args[2])
		if err != nil {
			return nil, 0, err
		}
		zone = z.(*time.Location)
	}
	if len(args) > 1 {
		t, err := time.ParseInLocation(argument[string](args, 1), s, zone)
		return t, cost, err
	}
	for _, l := range layouts {
		if t, err := time.ParseInLocation(l, s, zone); err == nil {
			return t, cost, nil
		}
	}
	return nil, 0, fmt.Errorf("invalid date %s", clip(s))
}

func timezone(args ...any) (any, uint, error) {
	name := argument[string](args, 0)
	if name == "Local" {
		return nil, 0, errors.New("the zone \"Local\" depends on the machine; name one, such as \"Europe/Berlin\"")
	}
	z, err := time.LoadLocation(name)
	return z, 1 + text(len(name)), err
}
