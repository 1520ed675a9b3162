package expression

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/types"
)

// attributes are the names of an event's attributes and their types.
func attributes() types.Map {
	return types.Map{
		"id": types.String, "type": types.String, "source": types.String, "subject": types.String,
		"time": types.TypeOf(time.Time{}), "datacontenttype": types.String, "dataschema": types.String,
		"extensions": types.TypeOf(map[string]any{}), "data": types.Any, "request": types.Any,
	}
}

// Ident is the form of a resource or dependency name in expressions: '-' is
// written '_'.
func Ident(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Reserved reports whether name cannot be used for a dependency, because the
// language gives it another meaning.
func Reserved(name string) bool {
	switch name {
	case "true", "false", "nil", "not", "in", "and", "or", "matches", "contains", "startsWith", "endsWith", "let", "if", "else":
		return true
	}
	return false
}

// Dep is a dependency a scope knows.
type Dep struct {
	// Name is its name as declared.
	Name string
	// List is true when expressions see a list of events.
	List bool
	// Absent is true when the staying away of its event is meant, which
	// expressions ask for as absent(name) and in no other way.
	Absent bool
}

// Scope is the set of names an expression may use. It is not changed after it
// was made and may be used for any number of expressions.
type Scope struct {
	types types.Map
	// alias are names for the environment itself; deps are dependencies by
	// their form in expressions.
	alias map[string]bool
	deps  map[string]Dep
	// vars are names that stand for no event, with the fields they have.
	vars map[string][]string
}

// EventScope has the attributes of one event (id, type, source, subject, time,
// datacontenttype, dataschema, extensions, data, request) and each alias as an
// object of the same. The environment of an evaluation is what
// (*bus.Event).Attributes returns. An attribute wins over an alias of its name.
func EventScope(alias ...string) Scope {
	sc := Scope{types: attributes(), alias: make(map[string]bool, len(alias))}
	for _, a := range alias {
		a = Ident(a)
		if _, ok := sc.types[a]; a != "" && !ok {
			sc.alias[a] = true
		}
	}
	return sc
}

// FiringScope has the dependencies by name. In the environment each is nil
// until it has arrived, then an object with the attributes of its event, or,
// for a list, a []any of those. One that is declared absent is true when its
// event has stayed away.
func FiringScope(deps ...Dep) Scope {
	sc := Scope{types: make(types.Map, len(deps)), deps: make(map[string]Dep, len(deps))}
	event := attributes()
	for _, d := range deps {
		var t types.Type = event
		if d.List {
			t = types.Array(event)
		}
		if d.Absent {
			t = types.TypeOf(true)
		}
		sc.types[Ident(d.Name)] = t
		sc.deps[Ident(d.Name)] = d
	}
	return sc
}

// BatchScope is for the templates of a trigger that fires a batch: `batch` is
// the list of what was gathered, each an object of the dependencies as in
// [FiringScope].
func BatchScope(deps ...Dep) Scope {
	sc := FiringScope(deps...)
	return FiringScope().with("batch", types.Array(sc.types), slices.Sorted(maps.Keys(sc.types)))
}

// WithItem adds `item`, any value, and `index`, its place in the list a firing
// is fanned out over.
func (sc Scope) WithItem() Scope {
	return sc.with("item", types.Any, nil).with("index", types.Int, nil)
}

// WithResults adds `triggers`, an object of the results of other triggers by
// name, each with outcome, output, error and attempts.
func (sc Scope) WithResults(triggers ...string) Scope {
	results := make(types.Map, len(triggers))
	for _, name := range triggers {
		results[Ident(name)] = types.Map{"outcome": types.String, "output": types.Any, "error": types.Any, "attempts": types.Any}
	}
	return sc.with("triggers", results, slices.Sorted(maps.Keys(results)))
}

// with is the scope with one more name, which hides a dependency of that name.
func (sc Scope) with(name string, t types.Type, fields []string) Scope {
	sc.types, sc.vars, sc.deps = maps.Clone(sc.types), maps.Clone(sc.vars), maps.Clone(sc.deps)
	if sc.vars == nil {
		sc.vars = map[string][]string{}
	}
	sc.types[name], sc.vars[name] = t, fields
	delete(sc.deps, name)
	return sc
}

// CallScope is for the templates of a function called by name: the attributes
// of the event as in [EventScope], `event` for all of them, and `input`, which
// the environment holds under that name.
func CallScope() Scope {
	sc := EventScope("event")
	sc.types["input"] = types.Any
	return sc
}

// RequestScope is for the templates of an endpoint: `data`, what a request was
// mapped to, and `request`, an object of its method, path, params, query and
// headers.
func RequestScope() Scope {
	return Scope{types: types.Map{"data": types.Any, "request": types.Any}}
}

// WithOutput adds `output`, what a function gave.
func (sc Scope) WithOutput() Scope { return sc.with("output", types.Any, nil) }

// ResponseScope is for what a function's spec says of an answer: `status`, an
// int64; `headers`, an object of text by name in lower case, of a list of texts
// where a name comes more than once; and `body`: any value when it is JSON, else
// text, or nil when it is neither.
func ResponseScope() Scope {
	return Scope{types: types.Map{
		"status": types.TypeOf(int64(0)), "headers": types.TypeOf(map[string]any{}), "body": types.Any,
	}}
}

// hint suggests what an unknown name was meant to be.
func (sc Scope) hint(name string, called bool) string {
	known := slices.Collect(maps.Keys(sc.types))
	known = append(known, slices.Collect(maps.Keys(sc.alias))...)
	slices.Sort(known)
	candidates := known
	if called {
		candidates = Functions()
	}
	if n := Nearest(name, candidates); n != "" {
		return "did you mean " + n + "?"
	}
	switch {
	case name == "absent":
		return "whether an event stays away is asked in the condition of a sensor"
	case called:
		return "there is no function of this name"
	case sc.deps != nil && len(known) == 0:
		return "there are no dependencies"
	case sc.deps != nil:
		return "the dependencies are " + strings.Join(known, ", ")
	case sc.types["data"] == nil:
		return "the names are " + strings.Join(known, ", ")
	default:
		return "the payload is `data`: write data." + name
	}
}

// fieldHint suggests what an unknown field was meant to be.
func (sc Scope) fieldHint(name string) string {
	var known []string
	for _, fields := range sc.vars {
		known = append(known, fields...)
	}
	if len(known) == 0 {
		return attributeHint(name)
	}
	slices.Sort(known)
	if n := Nearest(name, slices.Concat(known, slices.Sorted(maps.Keys(attributes())))); n != "" {
		return "did you mean " + n + "?"
	}
	return "there are " + strings.Join(known, ", ")
}

func attributeHint(name string) string {
	known := slices.Sorted(maps.Keys(attributes()))
	if n := Nearest(name, known); n != "" {
		return "did you mean " + n + "?"
	}
	return "the payload is `data`: write data." + name
}

// Nearest returns the candidate that differs from name by at most a third of
// its letters, or "".
func Nearest(name string, candidates []string) string {
	best, limit := "", max(1, len(name)/3)
	for _, c := range candidates {
		if d := distance(strings.ToLower(name), strings.ToLower(c), limit); d <= limit {
			if d < limit || best == "" {
				best = c
			}
			limit = d
		}
	}
	return best
}

// distance is the number of letters to insert, delete, change or swap with
// their neighbour (optimal string alignment), or more than limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
