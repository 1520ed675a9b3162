package sensors

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/specs/jq"
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
		if d.when != nil || len(d.guards) > 0 || d.transform != nil {
			verdict, told := d.wants(v, v.indexed && p.guarded)
			if verdict.Outcome != Yes {
				if !told {
					v.verdicts = append(v.verdicts, verdict)
				}
				continue
			}
		}
		own := key
		if p.correlate != nil && (!keyed || d.transform != nil) {
			var err error
			if own, err = p.correlation(d, v); err != nil {
				v.verdicts = append(v.verdicts, verdictOf(err, d.name, v.event.Seq))
				continue
			}
			if d.transform == nil {
				key, keyed = own, true
			}
		}
		v.matches = append(v.matches, Match{Dep: i, Key: own})
	}
	if len(p.steps) > 0 {
		if m, ok := p.result(v.event); ok {
			v.matches = append(v.matches, m)
		}
	}
	return Routing{Matches: v.matches, Verdicts: v.verdicts}
}

// wants evaluates the filter of a dependency whose selectors fit: first its
// guards, then the rest, on what the transform gives. told is true when the index has told the verdict, as
// it does for the first guard of an indexed program.
func (d *dependency) wants(v *View, indexed bool) (verdict Verdict, told bool) {
	for i := range d.guards {
		// The first guard reads what the index reads, and the payload only when
		// it is about it.
		n := &d.need
		if i == 0 {
			n = &d.first
		}
		env, err := v.environment(n)
		if err != nil {
			return verdictOf(err, d.name, v.event.Seq), indexed && i == 0
		}
		ok, missing := d.guards[i].Test(env)
		if missing != "" {
			return Verdict{Outcome: Missing, Dependency: d.name, Seq: v.event.Seq, Detail: missing}, indexed && i == 0
		}
		if !ok {
			return Verdict{Outcome: No, Dependency: d.name, Seq: v.event.Seq}, false
		}
	}
	if d.when == nil && d.transform == nil || d.decided {
		return Verdict{Outcome: Yes}, false
	}
	env, err := v.environment(&d.need)
	if err == nil && d.transform != nil {
		env, err = d.transformed(env)
		v.transformed = env
	}
	ok := d.when == nil
	if err == nil && !ok {
		ok, err = d.when.Bool(env)
	}
	ok = ok && err == nil
	if !ok {
		return verdictOf(err, d.name, v.event.Seq), false
	}
	return Verdict{Outcome: Yes}, false
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
	case errors.Is(err, jq.ErrNothing):
		out.Detail = err.Error()
	default:
		out.Outcome, out.Detail = Failed, err.Error()
	}
	return out
}

// correlation is the key of the event for a dependency that wants it.
func (p *Program) correlation(d *dependency, v *View) (string, error) {
	env, err := v.transformed, error(nil)
	if d.transform == nil {
		env, err = v.environment(&p.routeNeed)
	}
	if err != nil {
		return "", err
	}
	return keyOf(p.correlate, env)
}

// keyOf is the key of what an expression gives, which must not be nil.
func keyOf(p *expression.Program, env map[string]any) (string, error) {
	value, err := p.Eval(env)
	if err != nil {
		return "", err
	}
	if value == nil {
		return "", &expression.MissingError{Path: p.Source()}
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
