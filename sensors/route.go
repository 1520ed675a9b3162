package sensors

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs/expression"
)

// Route tells for which dependencies and correlation key the program wants the
// event. It does not change the program. The slices of the result belong to
// the view and are valid until its next use.
//
// A dependency whose selectors do not fit has no verdict; one whose `when` or
// correlation was evaluated and did not hold has one.
func (p *Program) Route(v *View) Routing {
	v.matches, v.verdicts = v.few[:0], v.fewer[:0]
	key, keyed := "", p.correlate == nil
	for i := range p.deps {
		d := &p.deps[i]
		if !d.selects(v.event) {
			continue
		}
		if d.when != nil {
			env, err := v.environment(&d.need)
			ok := false
			if err == nil {
				ok, err = d.when.Bool(env)
			}
			if !ok {
				v.verdicts = append(v.verdicts, verdictOf(err, d.name, v.event.Seq))
				continue
			}
		}
		if !keyed {
			var err error
			if key, err = p.correlation(v); err != nil {
				v.verdicts = append(v.verdicts, verdictOf(err, d.name, v.event.Seq))
				continue
			}
			keyed = true
		}
		v.matches = append(v.matches, Match{Dep: i, Key: key})
	}
	return Routing{Matches: v.matches, Verdicts: v.verdicts}
}

func (d *dependency) selects(ev *bus.Event) bool {
	return d.source.match(ev.EventSource) && d.event.match(ev.EventName) && d.kind.match(ev.Type) && d.subject.match(ev.Subject)
}

// verdictOf turns the result of an expression that is not true into a verdict.
func verdictOf(err error, dep string, seq uint64) Verdict {
	out := Verdict{Outcome: No, Dependency: dep, Seq: seq}
	var missing *expression.MissingError
	switch {
	case err == nil:
	case errors.As(err, &missing):
		out.Outcome, out.Detail = Missing, missing.Path
	default:
		out.Outcome, out.Detail = Failed, err.Error()
	}
	return out
}

func (p *Program) correlation(v *View) (string, error) {
	env, err := v.environment(&p.routeNeed)
	if err != nil {
		return "", err
	}
	value, err := p.correlate.Eval(env)
	if err != nil {
		return "", err
	}
	if value == nil {
		return "", &expression.MissingError{Path: p.correlate.Source()}
	}
	return correlationKey(value)
}

// maxKey is the most bytes of a correlation key that is kept as it is.
const maxKey = 200

// correlationKey is the canonical form of a correlation value. Values pair
// when expr's == would say so for what JSON can hold: 1 and 1.0 do, 1 and "1"
// do not. A text is its own key; everything else, and a text that is empty or
// begins with '#', is '#' and its JSON. A long key is '#sha256:' and its hash.
func correlationKey(value any) (string, error) {
	var key string
	switch v := value.(type) {
	case string:
		if v == "" || v[0] == '#' {
			key = "#" + strconv.Quote(v)
		} else if key = v; len(v) <= maxKey {
			key = strings.Clone(v) // it may be a part of the whole payload
		}
	case int64:
		key = "#" + strconv.FormatInt(v, 10)
	case int:
		key = "#" + strconv.Itoa(v)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<63 {
			key = "#" + strconv.FormatInt(int64(v), 10)
			break
		}
		key = "#" + strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		key = "#" + strconv.FormatBool(v)
	case time.Time:
		key = v.UTC().Format(time.RFC3339Nano)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return "", errors.New("the correlation value is not JSON")
		}
		key = "#" + string(b)
	}
	if len(key) > maxKey {
		sum := sha256.Sum256([]byte(key))
		key = "#sha256:" + base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return key, nil
}

// pattern is a compiled glob: `*` stands for any text, `?` for one character.
// The empty pattern matches everything.
type pattern struct {
	text string
	glob bool
}

func newPattern(s string) pattern {
	if s == "*" {
		s = ""
	}
	return pattern{text: s, glob: strings.ContainsAny(s, "*?")}
}

// exact reports whether the pattern is one text.
func (p pattern) exact() bool { return p.text != "" && !p.glob }

func (p pattern) match(s string) bool {
	switch {
	case p.text == "":
		return true
	case !p.glob:
		return p.text == s
	}
	return glob(p.text, s)
}

// glob matches in time proportional to the product of the lengths.
func glob(pattern, s string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(s) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && pattern[i] == '?':
			i++
			j += runeLen(s[j:])
		case i < len(pattern) && pattern[i] == s[j]:
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(pattern) && pattern[i] == '*' {
		i++
	}
	return i == len(pattern)
}

func runeLen(s string) int {
	for i := range s {
		if i > 0 {
			return i
		}
	}
	return len(s)
}

// Index finds the programs that may want an event without asking each. It is
// not changed after it was made and is safe for concurrent use.
//
// Programs whose every dependency names one EventSource and event, or one
// type, are found by hash; the others are asked for every event. An index on
// the equality filters of `when` fits below the two tables.
type Index struct {
	programs []*Program
	pairs    map[pair][]int32
	types    map[string][]int32
	rest     []int32
}

type pair struct{ source, event string }

// NewIndex returns an index of programs. [Index.Lookup] keeps their order.
func NewIndex(programs []*Program) *Index {
	x := &Index{programs: slices.Clone(programs), pairs: map[pair][]int32{}, types: map[string][]int32{}}
	add := func(list []int32, n int32) []int32 {
		if len(list) > 0 && list[len(list)-1] == n {
			return list
		}
		return append(list, n)
	}
	for i, p := range programs {
		n := int32(i)
		scan := slices.ContainsFunc(p.deps, func(d dependency) bool {
			return !(d.source.exact() && d.event.exact()) && !d.kind.exact()
		})
		if scan {
			x.rest = append(x.rest, n)
			continue
		}
		for j := range p.deps {
			if d := &p.deps[j]; d.source.exact() && d.event.exact() {
				k := pair{d.source.text, d.event.text}
				x.pairs[k] = add(x.pairs[k], n)
			} else {
				x.types[d.kind.text] = add(x.types[d.kind.text], n)
			}
		}
	}
	return x
}

// Lookup appends the programs that may want ev to dst, in their order.
func (x *Index) Lookup(ev *bus.Event, dst []*Program) []*Program {
	a, b, c := x.pairs[pair{ev.EventSource, ev.EventName}], x.types[ev.Type], x.rest
	for len(a)+len(b)+len(c) > 0 {
		n := int32(math.MaxInt32)
		for _, l := range [...][]int32{a, b, c} {
			if len(l) > 0 {
				n = min(n, l[0])
			}
		}
		for _, l := range [...]*[]int32{&a, &b, &c} {
			if len(*l) > 0 && (*l)[0] == n {
				*l = (*l)[1:]
			}
		}
		dst = append(dst, x.programs[n])
	}
	return dst
}
