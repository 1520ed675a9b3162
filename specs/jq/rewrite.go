package jq

import (
	_ "embed"
	"maps"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/itchyny/gojq"

	"github.com/sensor-engine/engine/specs/expression"
)

// Limits of what a program may hold. They are part of the language.
const (
	// maxPattern is the most bytes of a regular expression.
	maxPattern = expression.MaxPattern
	// maxLayout is the most bytes of the layout of a time.
	maxLayout = 200
	// maxDigits is the most digits of a number that is written out.
	maxDigits = 1000
)

// The names of our own functions and variables in the rewritten tree are none
// that a program can have.
const (
	fnIter    = "@iter"    // charges the length of a list or object
	fnIndex   = "@index"   // charges what looking something up costs
	fnAssign  = "@assign"  // charges what changing a part costs
	fnMatches = "@matches" // the matches of a regular expression
	fnTest    = "@test"    // whether one matches
	fnParts   = "@parts"   // the matches and the texts before them
	fnSplits  = "@splits"  // the texts beside them
	fnCost    = "@cost:"   // charges what the function of this name costs
)

//go:embed prelude.jq
var preludeSource string

// rewriter makes a program charge what it costs: before each thing that gojq
// does on its own it puts a call that charges for it and gives its input on.
// Such a call in a path changes nothing, for it gives the very same value.
type rewriter struct {
	c *compilation
	// scopes are the functions that the program defines, innermost last.
	scopes []map[string]bool
	// op is the assignment whose target is rewritten.
	op string
	// ours is true while the prelude is rewritten, which may use what programs
	// may not.
	ours bool
	vars int
	// prelude has the definitions by name; used are those to be put in.
	prelude map[string]*gojq.FuncDef
	used    map[string]bool
}

// program rewrites the whole program and puts the definitions it needs before
// it.
func (w *rewriter) program(q *gojq.Query) *gojq.Query {
	defs, err := gojq.Parse(preludeSource + " .")
	if err != nil {
		panic("specs/jq: the prelude: " + err.Error()) // a test compiles it
	}
	w.prelude, w.used = map[string]*gojq.FuncDef{}, map[string]bool{}
	order := map[string]int{}
	for i, fd := range defs.FuncDefs {
		name := signature(fd.Name, len(fd.Args))
		w.prelude[name], order[name] = fd, i
	}
	q = w.query(q)
	w.ours = true
	done := map[string]*gojq.FuncDef{}
	for len(done) < len(w.used) {
		for name := range maps.Clone(w.used) {
			if done[name] == nil {
				w.scopes = nil
				done[name] = w.funcDef(w.prelude[name])
			}
		}
	}
	// They may refer to each other in the order of the prelude only.
	names := slices.SortedFunc(maps.Keys(done), func(a, b string) int { return order[a] - order[b] })
	out := *q
	out.FuncDefs = nil
	for _, name := range names {
		out.FuncDefs = append(out.FuncDefs, done[name])
	}
	out.FuncDefs = append(out.FuncDefs, q.FuncDefs...)
	return &out
}

func signature(name string, args int) string { return name + "/" + strconv.Itoa(args) }

// unsupported reports something whose cost cannot be told.
func (w *rewriter) unsupported(at, hint, format string, args ...any) {
	w.c.errorAt(find(w.c.expr.Source, at), CodeUnsupported, hint, format, args...)
}

// Parts of a tree.

func pipe(l, r *gojq.Query) *gojq.Query { return &gojq.Query{Left: l, Op: gojq.OpPipe, Right: r} }

func term(t *gojq.Term) *gojq.Query { return &gojq.Query{Term: t} }

func identity() *gojq.Query { return term(&gojq.Term{Type: gojq.TermTypeIdentity}) }

func call(name string, args ...*gojq.Query) *gojq.Query {
	return term(&gojq.Term{Type: gojq.TermTypeFunc, Func: &gojq.Func{Name: name, Args: args}})
}

func text(s string) *gojq.Query {
	return term(&gojq.Term{Type: gojq.TermTypeString, Str: &gojq.String{Str: s}})
}

func num(n int) *gojq.Query {
	return term(&gojq.Term{Type: gojq.TermTypeNumber, Number: strconv.Itoa(n)})
}

// parens keeps names that are defined in q within q.
func parens(q *gojq.Query) *gojq.Query {
	return term(&gojq.Term{Type: gojq.TermTypeQuery, Query: q})
}

// bind is `value as $x | body`.
func (w *rewriter) bind(value *gojq.Query, body func(x *gojq.Query) *gojq.Query) *gojq.Query {
	name := "$." + strconv.Itoa(w.vars)
	w.vars++
	return &gojq.Query{Left: value, Op: gojq.OpPipe, Patterns: []*gojq.Pattern{{Name: name}}, Right: body(call(name))}
}

// bindAll binds values as gojq evaluates arguments: the last one first.
func (w *rewriter) bindAll(values []*gojq.Query, body func(xs []*gojq.Query) *gojq.Query) *gojq.Query {
	if len(values) == 0 {
		return body(nil)
	}
	last := len(values) - 1
	if constant(values[last]) {
		return w.bindAll(values[:last], func(xs []*gojq.Query) *gojq.Query { return body(append(xs, values[last])) })
	}
	return w.bind(values[last], func(x *gojq.Query) *gojq.Query {
		return w.bindAll(values[:last], func(xs []*gojq.Query) *gojq.Query { return body(append(xs, x)) })
	})
}

// constant reports whether q is a literal that is small.
func constant(q *gojq.Query) bool {
	if q.Term == nil || len(q.FuncDefs) > 0 || len(q.Term.SuffixList) > 0 {
		return false
	}
	switch q.Term.Type {
	case gojq.TermTypeNull, gojq.TermTypeTrue, gojq.TermTypeFalse, gojq.TermTypeNumber:
		return true
	case gojq.TermTypeString:
		return q.Term.Str.Queries == nil
	case gojq.TermTypeUnary:
		return constant(term(q.Term.Unary.Term))
	default:
		return false
	}
}

func (w *rewriter) defined(name string) bool {
	return slices.ContainsFunc(w.scopes, func(s map[string]bool) bool { return s[name] })
}

// within rewrites what sees definitions.
func (w *rewriter) within(defs []*gojq.FuncDef, f func()) []*gojq.FuncDef {
	if len(defs) == 0 {
		f()
		return nil
	}
	scope := map[string]bool{}
	w.scopes = append(w.scopes, scope)
	out := make([]*gojq.FuncDef, len(defs))
	for i, fd := range defs {
		scope[signature(fd.Name, len(fd.Args))] = true // it may call itself
		out[i] = w.funcDef(fd)
	}
	f()
	w.scopes = w.scopes[:len(w.scopes)-1]
	return out
}

func (w *rewriter) funcDef(fd *gojq.FuncDef) *gojq.FuncDef {
	scope := map[string]bool{}
	for _, arg := range fd.Args {
		scope[signature(strings.TrimPrefix(arg, "$"), 0)] = true
	}
	w.scopes = append(w.scopes, scope)
	defer func() { w.scopes = w.scopes[:len(w.scopes)-1] }()
	return &gojq.FuncDef{Name: fd.Name, Args: fd.Args, Body: w.query(fd.Body)}
}

func (w *rewriter) query(q *gojq.Query) *gojq.Query {
	if q == nil {
		return nil
	}
	out := &gojq.Query{}
	out.FuncDefs = w.within(q.FuncDefs, func() {
		body := w.body(q)
		out.Term, out.Left, out.Op, out.Right, out.Patterns = body.Term, body.Left, body.Op, body.Right, body.Patterns
		if len(body.FuncDefs) > 0 { // not made here
			*out = *parens(body)
		}
	})
	return out
}

// body rewrites a query without its definitions.
func (w *rewriter) body(q *gojq.Query) *gojq.Query {
	switch {
	case q.Term != nil:
		return w.term(q.Term)
	case q.Op == gojq.OpPipe && len(q.Patterns) > 0:
		return &gojq.Query{Left: w.query(q.Left), Op: q.Op, Patterns: w.patterns(q.Patterns), Right: w.query(q.Right)}
	case q.Op == gojq.OpPipe, q.Op == gojq.OpComma, q.Op == gojq.OpAlt, q.Op == gojq.OpAnd, q.Op == gojq.OpOr:
		return &gojq.Query{Left: w.query(q.Left), Op: q.Op, Right: w.query(q.Right)}
	case q.Op == gojq.OpModify:
		w.op = q.Op.String()
		return &gojq.Query{Left: w.target(q.Left), Op: gojq.OpModify, Right: w.query(q.Right)}
	case q.Op == gojq.OpAssign:
		return w.bind(w.query(q.Right), func(x *gojq.Query) *gojq.Query {
			w.op = q.Op.String()
			return &gojq.Query{Left: w.target(q.Left), Op: gojq.OpModify, Right: x}
		})
	case q.Op >= gojq.OpUpdateAdd:
		return w.bind(w.query(q.Right), func(x *gojq.Query) *gojq.Query {
			w.op = q.Op.String()
			return &gojq.Query{Left: w.target(q.Left), Op: gojq.OpModify, Right: w.operator(updates[q.Op], identity(), x)}
		})
	case q.Op == 0:
		w.c.errorAt(0, CodeSyntax, "write . for the event as it is", "the jq program is empty")
		return q
	}
	return w.operator(q.Op, w.query(q.Left), w.query(q.Right))
}

var updates = map[gojq.Operator]gojq.Operator{
	gojq.OpUpdateAdd: gojq.OpAdd, gojq.OpUpdateSub: gojq.OpSub, gojq.OpUpdateMul: gojq.OpMul,
	gojq.OpUpdateDiv: gojq.OpDiv, gojq.OpUpdateMod: gojq.OpMod, gojq.OpUpdateAlt: gojq.OpAlt,
}

// operator charges for an operator whose operands are rewritten.
func (w *rewriter) operator(op gojq.Operator, l, r *gojq.Query) *gojq.Query {
	plain := func(l, r *gojq.Query) *gojq.Query { return &gojq.Query{Left: l, Op: op, Right: r} }
	if op == gojq.OpAlt || constant(l) && constant(r) && op != gojq.OpMul {
		return plain(l, r)
	}
	switch op {
	case gojq.OpEq, gojq.OpNe, gojq.OpGt, gojq.OpLt, gojq.OpGe, gojq.OpLe: // as long as the shorter one
		if constant(l) || constant(r) {
			return plain(l, r)
		}
	default:
	}
	return w.bindAll([]*gojq.Query{l, r}, func(xs []*gojq.Query) *gojq.Query {
		return pipe(call(fnCost+op.String(), xs...), plain(xs[0], xs[1]))
	})
}

func (w *rewriter) term(t *gojq.Term) *gojq.Query {
	if len(t.SuffixList) == 0 {
		if t.Type == gojq.TermTypeIndex {
			return w.steps(nil, []step{{index: t.Index}}, false)
		}
		return w.base(t)
	}
	base := *t
	base.SuffixList = nil
	return w.suffixes(&base, t.SuffixList, false)
}

// step is one part of a path: an index or [], and whether ? follows.
type step struct {
	index    *gojq.Index // nil for []
	optional bool
}

// suffixes rewrites a term with what follows it. assigned is true in the
// target of an assignment.
func (w *rewriter) suffixes(base *gojq.Term, list []*gojq.Suffix, assigned bool) *gojq.Query {
	var at *gojq.Query // nil for the identity
	var path []step
	switch base.Type {
	case gojq.TermTypeIdentity:
	case gojq.TermTypeIndex:
		path = append(path, step{index: base.Index})
	default:
		if assigned {
			at = w.targetTerm(base)
		} else {
			at = w.base(base)
		}
	}
	flush := func() {
		if len(path) > 0 {
			at, path = w.steps(at, path, assigned), nil
		}
	}
	for _, s := range list {
		switch {
		case s.Optional && len(path) > 0 && !path[len(path)-1].optional:
			path[len(path)-1].optional = true
		case s.Optional:
			flush()
			if at == nil {
				at = identity()
			}
			at = term(&gojq.Term{Type: gojq.TermTypeTry, Try: &gojq.Try{Body: at}})
		default:
			path = append(path, step{index: s.Index})
		}
	}
	flush()
	if at == nil {
		at = identity()
	}
	return at
}

// steps goes a path from at, the identity when it is nil.
func (w *rewriter) steps(at *gojq.Query, path []step, assigned bool) *gojq.Query {
	// What an index is computed from has the input of the whole: it is bound
	// first, the last one outermost.
	var values []*gojq.Query
	type keys struct{ one, start, end int }
	where := make([]keys, len(path))
	value := func(q *gojq.Query) int {
		if q == nil {
			return -1
		}
		values = append(values, w.query(q))
		return len(values) - 1
	}
	for i, s := range path {
		where[i] = keys{-1, -1, -1}
		switch x := s.index; {
		case x == nil || x.Name != "":
		case x.Str != nil:
			where[i].one = value(term(&gojq.Term{Type: gojq.TermTypeString, Str: x.Str}))
		case x.IsSlice:
			where[i].end, where[i].start = value(x.End), value(x.Start)
		default:
			where[i].one = value(x.Start)
		}
	}
	return w.bindAll(values, func(xs []*gojq.Query) *gojq.Query {
		get := func(i int) *gojq.Query {
			if i < 0 {
				return nil
			}
			return xs[i]
		}
		out := at
		then := func(q *gojq.Query) {
			if out == nil {
				out = q
			} else {
				out = pipe(out, q)
			}
		}
		for i, s := range path {
			next := &gojq.Term{Type: gojq.TermTypeIdentity}
			switch x := s.index; {
			case x == nil:
				then(call(fnIter))
				next.SuffixList = []*gojq.Suffix{{Iter: true}}
			case x.Name != "":
				if assigned {
					then(call(fnAssign))
				}
				next = &gojq.Term{Type: gojq.TermTypeIndex, Index: x}
			case x.IsSlice:
				w.lookUp(then, assigned, nil)
				next = &gojq.Term{Type: gojq.TermTypeIndex, Index: &gojq.Index{
					IsSlice: true, Start: get(where[i].start), End: get(where[i].end),
				}}
			default:
				key := get(where[i].one)
				w.lookUp(then, assigned, key)
				next = &gojq.Term{Type: gojq.TermTypeIndex, Index: &gojq.Index{Start: key}}
			}
			if s.optional {
				next.SuffixList = append(next.SuffixList, &gojq.Suffix{Optional: true})
			}
			then(term(next))
		}
		return out
	})
}

// lookUp charges for looking something up, or for changing it.
func (w *rewriter) lookUp(then func(*gojq.Query), assigned bool, key *gojq.Query) {
	name := fnIndex
	if assigned {
		name = fnAssign
	}
	switch {
	case key == nil:
		then(call(name))
	case !assigned && constant(key) && key.Term.Type == gojq.TermTypeString:
	default:
		then(call(name, key))
	}
}

// base rewrites a term without what follows it.
func (w *rewriter) base(t *gojq.Term) *gojq.Query {
	out := &gojq.Term{Type: t.Type}
	switch t.Type {
	case gojq.TermTypeRecurse:
		return w.function(&gojq.Func{Name: "recurse"})
	case gojq.TermTypeFunc:
		return w.function(t.Func)
	case gojq.TermTypeNumber:
		if len(t.Number) > maxDigits {
			w.unsupported(t.Number, "", "a number of %d digits; the limit is %d", len(t.Number), maxDigits)
		}
		return term(t)
	case gojq.TermTypeUnary:
		if constant(term(t)) {
			return term(t)
		}
		out.Unary = &gojq.Unary{Op: t.Unary.Op, Term: parens(w.term(t.Unary.Term)).Term}
	case gojq.TermTypeObject:
		out.Object = w.object(t.Object)
	case gojq.TermTypeArray:
		out.Array = &gojq.Array{Query: w.query(t.Array.Query)}
	case gojq.TermTypeString:
		return w.text(t.Str, "")
	case gojq.TermTypeFormat:
		if t.Str != nil {
			return w.text(t.Str, t.Format)
		}
		return w.format(t.Format)
	case gojq.TermTypeIf:
		out.If = &gojq.If{Cond: w.query(t.If.Cond), Then: w.query(t.If.Then), Else: w.query(t.If.Else)}
		for _, e := range t.If.Elif {
			out.If.Elif = append(out.If.Elif, &gojq.IfElif{Cond: w.query(e.Cond), Then: w.query(e.Then)})
		}
	case gojq.TermTypeTry:
		out.Try = &gojq.Try{Body: w.query(t.Try.Body), Catch: w.query(t.Try.Catch)}
	case gojq.TermTypeReduce:
		r := t.Reduce
		out.Reduce = &gojq.Reduce{Query: w.query(r.Query), Patterns: w.patterns(r.Patterns), Start: w.query(r.Start), Update: w.query(r.Update)}
	case gojq.TermTypeForeach:
		f := t.Foreach
		out.Foreach = &gojq.Foreach{
			Query: w.query(f.Query), Patterns: w.patterns(f.Patterns), Start: w.query(f.Start),
			Update: w.query(f.Update), Extract: w.query(f.Extract),
		}
	case gojq.TermTypeLabel:
		out.Label = &gojq.Label{Ident: t.Label.Ident, Body: w.query(t.Label.Body)}
	case gojq.TermTypeQuery:
		out.Query = w.query(t.Query)
	default: // identity, null, true, false, break
		return term(t)
	}
	return term(out)
}

// text is a string with queries in it: a sum of texts.
func (w *rewriter) text(s *gojq.String, format string) *gojq.Query {
	if s.Queries == nil {
		return text(s.Str)
	}
	var out *gojq.Query
	for _, q := range s.Queries {
		part := q
		if q.Term == nil || q.Term.Str == nil { // not one of the texts between
			as := w.format("@text")
			if format != "" {
				as = w.format(format)
			}
			part = parens(pipe(w.query(q), as))
		}
		if out == nil {
			out = part
		} else {
			out = w.operator(gojq.OpAdd, out, part)
		}
	}
	return parens(out)
}

// formats are the @names.
var formats = []string{"@text", "@json", "@html", "@uri", "@urid", "@csv", "@tsv", "@sh", "@base64", "@base64d"}

func (w *rewriter) format(name string) *gojq.Query {
	if !slices.Contains(formats, name) {
		w.c.errorAt(find(w.c.expr.Source, name), CodeUnknownName, suggest(name, formats), "unknown format %s", name)
	}
	return pipe(call(fnCost+"@"), term(&gojq.Term{Type: gojq.TermTypeFormat, Format: name}))
}

func suggest(name string, candidates []string) string {
	if near := expression.Nearest(name, candidates); near != "" {
		return "did you mean " + near + "?"
	}
	return ""
}

func (w *rewriter) object(o *gojq.Object) *gojq.Object {
	out := &gojq.Object{}
	for _, kv := range o.KeyVals {
		n := &gojq.ObjectKeyVal{Key: kv.Key, KeyString: kv.KeyString, KeyQuery: w.query(kv.KeyQuery), Val: w.query(kv.Val)}
		if s := kv.KeyString; s != nil && s.Queries != nil {
			key := w.text(s, "")
			n.KeyString, n.KeyQuery = nil, key
			if kv.Val == nil { // {"\(x)"} is {"\(x)": .["\(x)"]}
				n.Val = w.steps(nil, []step{{index: &gojq.Index{Str: s}}}, false)
			}
		}
		out.KeyVals = append(out.KeyVals, n)
	}
	return out
}

func (w *rewriter) patterns(ps []*gojq.Pattern) []*gojq.Pattern {
	for _, p := range ps {
		w.patterns(p.Array)
		for _, o := range p.Object {
			if o.KeyQuery != nil || o.KeyString != nil && (o.KeyString.Queries != nil || o.KeyString.Str == "") {
				w.unsupported("as", "bind the whole, then read the part", "a computed key in a pattern is not supported")
			}
			if o.Val != nil {
				w.patterns([]*gojq.Pattern{o.Val})
			}
		}
	}
	return ps
}

// function rewrites a call.
func (w *rewriter) function(f *gojq.Func) *gojq.Query {
	name := signature(f.Name, len(f.Args))
	closures := func() *gojq.Query {
		args := make([]*gojq.Query, len(f.Args))
		for i := range f.Args {
			args[i] = w.query(f.Args[i])
		}
		return call(f.Name, args...)
	}
	if w.defined(name) {
		return closures()
	}
	if strings.HasPrefix(f.Name, "$") {
		if f.Name == "$ENV" {
			w.refuse("env", "$ENV")
		}
		return call(f.Name)
	}
	kind := classes[name]
	if w.ours && strings.HasPrefix(f.Name, "_") {
		if kind = metered; w.prelude[name] != nil {
			kind = defined
		}
	}
	switch kind {
	case free:
		return closures()
	case defined:
		w.used[name] = true
		return closures()
	case metered:
		args := make([]*gojq.Query, len(f.Args))
		for i := range f.Args {
			args[i] = w.query(f.Args[i])
		}
		return w.bindAll(args, func(xs []*gojq.Query) *gojq.Query {
			return pipe(call(fnCost+f.Name, xs...), call(f.Name, xs...))
		})
	case path:
		return pipe(closures(), call(fnIter))
	case pattern:
		return w.pattern(f)
	case layout:
		return w.layout(f)
	case refused:
		w.refuse(f.Name, f.Name)
	default:
		w.unknown(f)
	}
	return identity()
}

func (w *rewriter) refuse(name, written string) {
	why, ok := refusals[name]
	if !ok {
		why = [2]string{"has last digits that depend on the processor", "use it in a function that a trigger calls"}
	}
	code := CodeNotDeterministic
	if strings.HasPrefix(why[0], "is not") || name == "combinations" || name == "format" {
		code = CodeUnsupported
	}
	w.c.errorAt(find(w.c.expr.Source, written), code, why[1], "%s %s", written, why[0])
}

func (w *rewriter) unknown(f *gojq.Func) {
	var names []string
	hint := ""
	for name, kind := range classes {
		n, args, _ := strings.Cut(name, "/")
		switch {
		case kind == refused:
		case n == f.Name:
			hint = "it takes " + args + " arguments"
			if args == "1" {
				hint = "it takes 1 argument"
			}
		default:
			names = append(names, n)
		}
	}
	slices.Sort(names)
	if hint == "" {
		hint = suggest(f.Name, names)
	}
	w.c.errorAt(find(w.c.expr.Source, f.Name), CodeUnknownName, hint, "unknown function %s/%d", f.Name, len(f.Args))
}

// literal is the text of an argument that is written out.
func literal(q *gojq.Query) (string, bool) {
	if !constant(q) || q.Term.Type != gojq.TermTypeString {
		return "", false
	}
	return q.Term.Str.Str, true
}

// pattern rewrites a function that takes a regular expression and flags.
func (w *rewriter) pattern(f *gojq.Func) *gojq.Query {
	re, ok := literal(f.Args[0])
	if !ok {
		w.unsupported(f.Name, "write the regular expression into the program", "the regular expression of %s must be a text in quotes", f.Name)
		return identity()
	}
	flags := ""
	replaces := f.Name == "sub" || f.Name == "gsub"
	if at := 1 + boolInt(replaces); len(f.Args) > at {
		if flags, ok = literal(f.Args[at]); !ok && !(constant(f.Args[at]) && f.Args[at].Term.Type == gojq.TermTypeNull) {
			w.unsupported(f.Name, `such as "gi"`, "the flags of %s must be a text in quotes", f.Name)
			return identity()
		}
	}
	if f.Name == "scan" || f.Name == "gsub" || f.Name == "split" || f.Name == "splits" {
		flags += "g"
	}
	i, ok := w.regexp(f.Name, re, flags)
	if !ok {
		return identity()
	}
	switch f.Name {
	case "test":
		return call(fnTest, num(i))
	case "match":
		return pipe(call(fnMatches, num(i)), term(&gojq.Term{Type: gojq.TermTypeIdentity, SuffixList: []*gojq.Suffix{{Iter: true}}}))
	case "split":
		return call(fnSplits, num(i))
	case "splits":
		return pipe(call(fnSplits, num(i)), term(&gojq.Term{Type: gojq.TermTypeIdentity, SuffixList: []*gojq.Suffix{{Iter: true}}}))
	case "capture":
		w.used["_capture/1"] = true
		return call("_capture", call(fnMatches, num(i)))
	case "scan":
		w.used["_scan/1"] = true
		return call("_scan", call(fnMatches, num(i)))
	}
	w.used["_replace/2"] = true
	return call("_replace", call(fnParts, num(i)), w.query(f.Args[1]))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// regexp compiles a regular expression and returns its number.
func (w *rewriter) regexp(name, re, flags string) (int, bool) {
	at := find(w.c.expr.Source, name)
	if i := strings.IndexFunc(flags, func(r rune) bool { return r != 'g' && r != 'i' && r != 'm' }); i >= 0 {
		w.c.errorAt(at, CodeUnsupported, "there are g (all), i (upper and lower case are the same) and m (. matches a line's end)", "unknown flags %q of %s", flags, name)
		return 0, false
	}
	if len(re) > maxPattern {
		w.c.errorAt(at, CodeTooLarge, "", "the regular expression has %d bytes, the limit is %d", len(re), maxPattern)
		return 0, false
	}
	if strings.Contains(flags, "i") {
		re = "(?i)" + re
	}
	if strings.Contains(flags, "m") {
		re = "(?s)" + re
	}
	compiled, err := regexp.Compile(re)
	if err != nil {
		w.c.errorAt(at, CodeSyntax, "", "%v", err)
		return 0, false
	}
	factor := 1
	if parsed, err := syntax.Parse(re, syntax.Perl); err == nil {
		if prog, err := syntax.Compile(parsed.Simplify()); err == nil {
			factor += len(prog.Inst) / 16
		}
	}
	p := w.c.program
	p.regexps, p.factors = append(p.regexps, compiled), append(p.factors, factor)
	p.global = append(p.global, strings.Contains(flags, "g"))
	return len(p.regexps) - 1, true
}

// layout rewrites a function that takes the layout of a time.
func (w *rewriter) layout(f *gojq.Func) *gojq.Query {
	s, ok := literal(f.Args[0])
	switch {
	case !ok:
		w.unsupported(f.Name, `such as "%Y-%m-%d"`, "the layout of %s must be a text in quotes", f.Name)
	case len(s) > maxLayout:
		w.c.errorAt(find(w.c.expr.Source, f.Name), CodeTooLarge, "", "the layout has %d bytes, the limit is %d", len(s), maxLayout)
	case f.Name == "strptime" && strings.Contains(s, "Z"):
		w.c.errorAt(find(w.c.expr.Source, f.Name), CodeNotDeterministic, "use %z for +02:00, or cut the name off", "what the name of a time zone (%%Z) means depends on the machine")
	}
	return pipe(call(fnCost+f.Name), call(f.Name, f.Args...))
}

// target rewrites the left side of an assignment. It must be a path of which no
// part is another part's beginning, so that each is changed once.
func (w *rewriter) target(q *gojq.Query) *gojq.Query {
	switch {
	case q.Term != nil && len(q.FuncDefs) == 0:
		t := q.Term
		switch {
		case t.Type == gojq.TermTypeIndex || len(t.SuffixList) > 0:
			base := *t
			base.SuffixList = nil
			return w.suffixes(&base, t.SuffixList, true)
		default:
			return w.targetTerm(t)
		}
	case q.Op == gojq.OpPipe && len(q.Patterns) > 0:
		return &gojq.Query{Left: w.query(q.Left), Op: q.Op, Patterns: w.patterns(q.Patterns), Right: w.target(q.Right)}
	case q.Op == gojq.OpPipe:
		return pipe(w.target(q.Left), w.target(q.Right))
	case q.Op == gojq.OpComma && apart(paths(q, nil)):
		return &gojq.Query{Left: w.target(q.Left), Op: q.Op, Right: w.target(q.Right)}
	}
	w.badTarget()
	return identity()
}

func (w *rewriter) badTarget() {
	w.c.errorAt(find(w.c.expr.Source, w.op), CodeUnsupported, "assign to a path such as .a[].b, with select where needed; use map, with_entries or walk for the rest",
		"the left side of %s is no plain path", w.op)
}

// targetTerm rewrites a term of a target without what follows it.
func (w *rewriter) targetTerm(t *gojq.Term) *gojq.Query {
	switch t.Type {
	case gojq.TermTypeIdentity:
		return identity()
	case gojq.TermTypeQuery:
		return parens(w.target(t.Query))
	case gojq.TermTypeIf:
		out := &gojq.If{Cond: w.query(t.If.Cond), Then: w.target(t.If.Then)}
		if t.If.Else != nil {
			out.Else = w.target(t.If.Else)
		}
		for _, e := range t.If.Elif {
			out.Elif = append(out.Elif, &gojq.IfElif{Cond: w.query(e.Cond), Then: w.target(e.Then)})
		}
		return term(&gojq.Term{Type: gojq.TermTypeIf, If: out})
	case gojq.TermTypeFunc:
		name := signature(t.Func.Name, len(t.Func.Args))
		if (name == "select/1" || name == "empty/0") && !w.defined(name) {
			return w.function(t.Func)
		}
	default:
	}
	w.badTarget()
	return identity()
}

// paths lists the paths that commas join when they are constant, nil when one
// is not.
func paths(q *gojq.Query, to [][]string) [][]string {
	if q.Op == gojq.OpComma {
		if to = paths(q.Left, to); to == nil {
			return nil
		}
		return paths(q.Right, to)
	}
	if q.Term == nil || len(q.FuncDefs) > 0 {
		return nil
	}
	var out []string
	add := func(x *gojq.Index) bool {
		switch {
		case x == nil:
			return false
		case x.Name != "":
			out = append(out, "."+x.Name)
		case x.Str != nil && x.Str.Queries == nil:
			out = append(out, "."+x.Str.Str)
		default:
			return false
		}
		return true
	}
	switch q.Term.Type {
	case gojq.TermTypeQuery:
		if len(q.Term.SuffixList) == 0 {
			return paths(q.Term.Query, to)
		}
		return nil
	case gojq.TermTypeIdentity:
	case gojq.TermTypeIndex:
		if !add(q.Term.Index) {
			return nil
		}
	default:
		return nil
	}
	for _, s := range q.Term.SuffixList {
		if !s.Optional && !add(s.Index) {
			return nil
		}
	}
	return append(to, out)
}

// apart reports whether no path is another one's beginning.
func apart(ps [][]string) bool {
	for i, a := range ps {
		for j, b := range ps {
			if i != j && len(a) <= len(b) && slices.Equal(a, b[:len(a)]) {
				return false
			}
		}
	}
	return len(ps) > 0
}
