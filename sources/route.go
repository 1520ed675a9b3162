package sources

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Segment is one part of a route's path between slashes.
type Segment struct {
	// Text is the literal text, or the name of the wildcard.
	Text string
	// Wild is true for a wildcard, Rest for one that takes the whole rest of
	// the path, slashes included. A path that ends in "/" ends with a nameless
	// Rest.
	Wild, Rest bool
}

// ParsePath splits the pattern of a path into its segments. The rules are
// those of net/http: `{name}` matches one segment that is not empty, a final
// `{name...}` or "/" the rest, `{$}` after a final "/" just the slash. A
// pattern has no escapes: a request's path is unescaped before it is compared.
func ParsePath(path string) ([]Segment, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("path %q does not begin with /", path)
	}
	if i := strings.IndexFunc(path, func(r rune) bool {
		return r == '%' || r == '?' || r == '#' || r == '\\' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}); i >= 0 {
		return nil, fmt.Errorf("path %q has the character %q, which a path pattern must not have", path, []rune(path[i:])[0])
	}
	parts := strings.Split(path[1:], "/")
	segs := make([]Segment, 0, len(parts))
	seen := make(map[string]bool, 2)
	for i, p := range parts {
		last := i == len(parts)-1
		switch {
		case p == "" && last:
			return append(segs, Segment{Wild: true, Rest: true}), nil
		case p == "" || p == "." || p == "..":
			return nil, fmt.Errorf("path %q has the segment %q, which no request can match", path, p)
		case p == "{$}":
			if !last {
				return nil, fmt.Errorf("path %q has {$} before its end", path)
			}
			return append(segs, Segment{}), nil
		case p[0] != '{' || p[len(p)-1] != '}':
			if strings.ContainsAny(p, "{}") {
				return nil, fmt.Errorf("path %q: a {name} must be a whole segment, not a part of %q", path, p)
			}
			segs = append(segs, Segment{Text: p})
			continue
		}
		name, rest := strings.CutSuffix(p[1:len(p)-1], "...")
		if rest && !last {
			return nil, fmt.Errorf("path %q has %s before its end", path, p)
		}
		if err := identifier(name); err != nil {
			return nil, fmt.Errorf("path %q: parameter %q %w", path, name, err)
		}
		if seen[name] {
			return nil, fmt.Errorf("path %q has the parameter %q twice", path, name)
		}
		seen[name] = true
		segs = append(segs, Segment{Text: name, Wild: true, Rest: rest})
	}
	return segs, nil
}

func identifier(name string) error {
	for i, r := range name {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
			return errors.New("is not a name: letters, digits and _ only, no digit first")
		}
	}
	if name == "" {
		return errors.New("has no name")
	}
	return nil
}

// Conflict reports whether two routes claim a request and neither is more
// specific than the other, by the rules of net/http: `/orders/new` and
// `/orders/{id}` live together, `/{shop}/new` and `/orders/{id}` do not; a
// route for some hosts is more specific than one for all. Routes whose path
// does not parse conflict with nothing.
func Conflict(a, b Route) bool {
	pa, err := ParsePath(a.Path)
	if err != nil {
		return false
	}
	pb, err := ParsePath(b.Path)
	if err != nil {
		return false
	}
	return Overlap(a, pa, b, pb)
}

// Overlap is [Conflict] for paths that were parsed before.
func Overlap(a Route, ap []Segment, b Route, bp []Segment) bool {
	// A route for some hosts wins over one for all.
	if (len(a.Hosts) == 0) != (len(b.Hosts) == 0) {
		return false
	}
	if len(a.Hosts) > 0 && !slices.ContainsFunc(a.Hosts, func(h string) bool { return slices.Contains(b.Hosts, h) }) {
		return false
	}
	paths := comparePaths(ap, bp)
	if paths == disjoint {
		return false
	}
	for _, m := range orAny(a.Methods) {
		for _, n := range orAny(b.Methods) {
			switch methods := compareMethods(m, n); {
			case methods == disjoint:
			case methods == equal && (paths == equal || paths == overlaps),
				methods != equal && paths != equal && methods != paths:
				return true
			}
		}
	}
	return false
}

// relation says how the set of requests of one pattern lies to another's.
type relation int

const (
	equal relation = iota
	narrower
	wider
	disjoint
	overlaps
)

func orAny(methods []string) []string {
	if len(methods) == 0 {
		return []string{""}
	}
	return methods
}

func compareMethods(a, b string) relation {
	switch {
	case a == b:
		return equal
	case a == "", a == "GET" && b == "HEAD": // GET serves HEAD too
		return wider
	case b == "", b == "GET" && a == "HEAD":
		return narrower
	}
	return disjoint
}

func comparePaths(a, b []Segment) relation {
	endA, endB := a[len(a)-1].Rest, b[len(b)-1].Rest
	if len(a) != len(b) && !endA && !endB || len(a) < len(b) && !endA || len(b) < len(a) && !endB {
		return disjoint
	}
	rel := equal
	for i := 0; i < len(a) && i < len(b); i++ {
		r := compareSegments(a[i], b[i])
		if r == disjoint {
			return disjoint
		}
		if rel = combine(rel, r); a[i].Rest || b[i].Rest {
			break
		}
	}
	// The shorter one ends with a Rest, which also takes what the longer one
	// has beyond it.
	switch {
	case len(a) < len(b):
		rel = combine(rel, wider)
	case len(a) > len(b):
		rel = combine(rel, narrower)
	}
	return rel
}

func compareSegments(a, b Segment) relation {
	switch {
	case a.Rest && b.Rest:
		return equal
	case a.Rest:
		return wider
	case b.Rest:
		return narrower
	case a.Wild && b.Wild:
		return equal
	case a.Wild && b.Text != "":
		return wider
	case b.Wild && a.Text != "":
		return narrower
	case !a.Wild && !b.Wild && a.Text == b.Text:
		return equal
	}
	return disjoint // a wildcard does not match the empty segment of {$}
}

func combine(a, b relation) relation {
	switch {
	case a == equal:
		return b
	case b == equal || a == b:
		return a
	}
	return overlaps
}
